"""From the forward half of a training program to the whole: gradients backwards through every operation, then a step for each parameter.

The walk goes from the loss to the program's input, as deep as there are rules; nobody asks yet which of it is needed. Gradients of a tensor
that several operations read are **summed** (where published device code keeps the last one, and loses the skip connection's). Steps come at
the very end, as one would write them down; ``reorder`` brings them forward.

A rule turns the gradient of an operation's result into those of its inputs. Additions, means and reshapes cost nothing: their factors go
into the gradient's ``unit``, and one buffer may be the gradient of several tensors.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import lcm, prod
from typing import Any

import numpy as np

from lilliput.errors import GraphError, UnsupportedOpError
from lilliput.mcu.training import graph as t
from lilliput.mcu.training.arithmetic import (
    CHANCE_BITS,
    MASTER_FRACTION_BITS,
    channel_factors,
    gradient_bits,
    step_factors,
    sum_shift,
    unit_factor,
)
from lilliput.mcu.training.optimizer import SGD
from lilliput.quantize import qgraph as q


@dataclass(frozen=True)
class Gradient:
    """A buffer as the gradient of one tensor: mantissas in the tensor's order, or one pixel that stands for all of them."""

    buffer: str
    unit: float


def autodiff(program: t.Program, optimizer: SGD) -> t.Program:
    """Add the backward half and the steps.

    Raises:
        UnsupportedOpError: a trained layer's gradient would have to pass an operation without a rule; names it and the layer.
    """
    walk = _Walk(program, optimizer)
    for op in reversed(program.ops):
        walk.visit(op)
    return replace(program, ops=(*program.ops, *walk.ops, *walk.steps), buffers=walk.buffers)


class _Walk:
    def __init__(self, program: t.Program, optimizer: SGD) -> None:
        self.program, self.optimizer = program, optimizer
        self.buffers = dict(program.buffers)
        self.ops: list[t.Op] = []
        self.steps: list[t.Op] = []
        self.gradients: dict[str, Gradient] = {}
        self.blocked: dict[str, t.Op] = {}
        """Tensors whose gradient is not known, and the operation without a rule that is in the way."""

    def visit(self, op: t.Op) -> None:
        """One operation backwards."""
        made = op.outputs[0]
        if made in self.blocked:
            self.block(op, self.blocked[made])
        elif isinstance(op, t.Loss):
            self.receive(op.inputs[0], Gradient(made, self.buffers[made].unit))
        elif made in self.gradients:
            rule = RULES.get(type(op))
            if isinstance(op, t.Infer):
                rule = INFER_RULES.get(type(op.qop))
            if rule is None:
                self.block(op, op)
            else:
                rule(op, self.gradients[made], self)

    def block(self, op: t.Op, cause: t.Op) -> None:
        """No gradient for what this operation reads."""
        if isinstance(op, t.ConvSum) and op.uses:
            source = cause.qop.source if isinstance(cause, t.Infer) else ""
            kind = type(cause.qop).__name__ if isinstance(cause, t.Infer) else cause.kind
            rules = ", ".join(sorted({"Conv2d", "Linear", "Add", "Mean", *(kind.__name__ for kind in INFER_RULES)}))
            raise UnsupportedOpError(
                f"no gradient rule for '{cause.name}' ({kind}, module '{source}'), through which '{op.layer.name}' "
                f"(module '{op.layer.source}') would be trained; there are rules for {rules}; "
                "train only layers after it"
            )
        for name in op.inputs:
            self.blocked[name] = cause
            self.gradients.pop(name, None)

    def receive(self, tensor: str, gradient: Gradient) -> None:
        """One reader's share of a tensor's gradient; a second share is added to the first."""
        if tensor in self.blocked:
            return
        held = self.gradients.get(tensor)
        if held is None:
            self.gradients[tensor] = gradient
        elif held.buffer == gradient.buffer:
            self.gradients[tensor] = Gradient(held.buffer, held.unit + gradient.unit)
        else:
            shape = self.buffers[tensor].shape
            first, second = (self.spelled_out(each, shape) for each in (held, gradient))
            factors = [unit_factor(each.unit) for each in (first, second)]
            total = self.buffer(f"d.{tensor}", "gradient", shape)
            self.ops.append(
                t.AddGradients(
                    name=total,
                    inputs=(first.buffer, second.buffer),
                    outputs=(total,),
                    factors=(factors[0][0], factors[1][0]),
                    factor_exponents=(factors[0][1], factors[1][1]),
                )
            )
            self.gradients[tensor] = Gradient(total, 1.0)

    def spelled_out(self, gradient: Gradient, shape: tuple[int, ...]) -> Gradient:
        """The same gradient with a mantissa for each element."""
        if self.buffers[gradient.buffer].elements == prod(shape):
            return gradient
        height, width, channels = shape
        return self.pooled(gradient, (height, width, channels), (1, 1, channels), (height, width), (1, 1), (0, 0, 0, 0))

    def pooled(
        self,
        gradient: Gradient,
        input_shape: t.Image,
        output_shape: t.Image,
        kernel: tuple[int, int],
        stride: tuple[int, int],
        padding: tuple[int, int, int, int],
        weights: tuple[tuple[int, ...], tuple[int, ...]] | None = None,
        unit: float = 1.0,
    ) -> Gradient:
        """Sums over windows, backwards."""
        weights = weights or ((1,) * output_shape[0], (1,) * output_shape[1])
        meeting = prod(-(-size // step) for size, step in zip(kernel, stride, strict=True))
        if meeting * max(weights[0]) * max(weights[1]) >= 2**16:
            raise GraphError(
                f"average pooling of {kernel} with stride {stride}: its gradient's sums could leave 32 bits"
            )
        name = self.buffer(f"d.{gradient.buffer}.spread", "gradient", input_shape, gradient.unit * unit)
        self.ops.append(
            t.PoolGradient(
                name=name,
                inputs=(gradient.buffer,),
                outputs=(name,),
                input_shape=input_shape,
                output_shape=output_shape,
                kernel=kernel,
                stride=stride,
                padding=padding,
                row_weights=weights[0],
                column_weights=weights[1],
            )
        )
        return Gradient(name, gradient.unit * unit)

    def buffer(self, name: str, role: t.Role, shape: tuple[int, ...], unit: float = 1.0) -> str:
        """A new buffer; a name that is taken gets another stroke."""
        while name in self.buffers:
            name += "'"
        self.buffers[name] = t.Buffer(name, role, shape, unit)
        return name

    def masked(self, op: t.Op, gradient: Gradient) -> Gradient:
        """The gradient where the result was not clamped."""
        made, mask = op.outputs
        name = self.buffer(f"d.{made}.masked", "gradient", self.buffers[mask].shape, gradient.unit)
        self.ops.append(t.MaskGradient(name=name, inputs=(gradient.buffer, mask), outputs=(name,)))
        return Gradient(name, gradient.unit)


# --- rules: gradient of the result -> gradients of the inputs


def _requantize(op: t.Requantize, gradient: Gradient, walk: _Walk) -> None:
    """y = round(sum * eff[c]) + zy, so d sum = d y * eff[c] where it was not clamped."""
    (total,) = op.inputs
    layer = next(each.layer for each in walk.program.ops if isinstance(each, t.ConvSum) and each.outputs == (total,))
    masked = walk.masked(op, gradient)
    effective = np.ldexp(op.scaling.multiplier.astype(np.float64), op.scaling.shift.astype(np.int64) - 31)
    factor, exponent = channel_factors(effective * masked.unit)
    name = walk.buffer(f"d.{total}", "gradient", layer.output_shape)
    walk.ops.append(
        t.ScaleGradient(
            name=name,
            inputs=(masked.buffer,),
            outputs=(name,),
            layer=layer,
            factor=factor,
            factor_exponent=exponent,
            bits=gradient_bits(layer.products),
        )
    )
    walk.receive(total, Gradient(name, 1.0))


def _conv_sum(op: t.ConvSum, gradient: Gradient, walk: _Walk) -> None:
    """sum = conv(x - zx, w) + b: d b sums d sum over pixels, d x convolves it transposed, d w correlates it with x - zx.

    In this order: a step that follows d w at once must not change the weights that d x reads.
    """
    layer, ga = op.layer, gradient.buffer
    bits = gradient_bits(layer.products)
    if layer.bias_parameter is not None:
        name = walk.buffer(f"d.{layer.bias_parameter}", "parameter gradient", (layer.output_shape[2],))
        shift = sum_shift(layer.pixels, 2**bits - 1, 1)
        walk.ops.append(t.BiasGradient(name=name, inputs=(ga,), outputs=(name,), layer=layer, sum_shift=shift))
        walk.steps.append(
            t.BiasStep(
                name=layer.bias_parameter,
                inputs=(name,),
                outputs=(),
                layer=layer,
                factors=_bias_factors(walk, layer, gradient.unit),
                truncates=walk.optimizer.master == "truncate",
            )
        )
    x = op.inputs[0]
    # of the input's own shape: a linear layer sees (1, 1, features) where the tensor may be (features,)
    name = walk.buffer(f"d.{x}", "gradient", walk.buffers[x].shape, gradient.unit)
    walk.ops.append(t.ConvInputGradient(name=name, inputs=(ga,), outputs=(name,), layer=layer))
    walk.receive(x, Gradient(name, gradient.unit))
    if layer.weight_parameter is not None:
        is_kept = not layer.trains_all_channels
        name = walk.buffer(f"d.{layer.weight_parameter}", "parameter gradient", (len(layer.selection),))
        walk.ops.append(
            t.ConvWeightGradient(
                name=name,
                inputs=(ga, f"{layer.name}.kept" if is_kept else x),
                outputs=(name,),
                layer=layer,
                sum_shift=sum_shift(layer.pixels, 2**bits - 1, layer.largest_input),
                is_kept=is_kept,
            )
        )
        walk.steps.append(
            t.WeightStep(
                name=layer.weight_parameter,
                inputs=(name,),
                outputs=(),
                layer=layer,
                factors=_weight_factors(walk, layer, gradient.unit),
                rule=walk.optimizer.master,
            )
        )


def _add(op: t.Add, gradient: Gradient, walk: _Walk) -> None:
    """y = (x1 - z1) * s1 / sy + (x2 - z2) * s2 / sy: one masked buffer serves both, in two units."""
    masked = walk.masked(op, gradient)
    tensors = walk.program.tensors
    for name in op.inputs:
        walk.receive(name, Gradient(masked.buffer, masked.unit * tensors[name].scale / tensors[op.outputs[0]].scale))


def _mean(op: t.Mean, gradient: Gradient, walk: _Walk) -> None:
    """y = sum(x - zx) * sx / (sy * pixels): every pixel has the same gradient, so one stands for all."""
    masked = walk.masked(op, gradient)
    factor = float(np.ldexp(op.qop.multiplier, op.qop.shift - 31))
    walk.receive(op.inputs[0], Gradient(masked.buffer, masked.unit * factor))


def _reshape(op: t.Infer, gradient: Gradient, walk: _Walk) -> None:
    """The same numbers."""
    shape = walk.buffers[op.outputs[0]].shape
    walk.receive(op.inputs[0], walk.spelled_out(gradient, shape))


def _avg_pool(op: t.Infer, gradient: Gradient, walk: _Walk) -> None:
    """y = mean of the pixels of the window that lie inside the image."""
    pool = op.qop
    assert isinstance(pool, q.AvgPool2d)
    tensors = walk.program.tensors
    x, y = tensors[pool.inputs[0]].shape, tensors[pool.name].shape
    if pool.clamp.lower > -128 or pool.clamp.upper < 127:
        raise UnsupportedOpError(
            f"no gradient rule for '{op.name}' (AvgPool2d, module '{pool.source}') with a clamp of its own, "
            f"[{pool.clamp.lower}, {pool.clamp.upper}]; clamp before pooling instead"
        )
    if y[:2] == (1, 1) and pool.kernel == x[:2] and not any(pool.padding):
        walk.receive(op.inputs[0], Gradient(gradient.buffer, gradient.unit / prod(pool.kernel)))
        return
    rows, columns = (_window_counts(pool, axis, x[axis], y[axis]) for axis in (0, 1))
    common = lcm(*rows), lcm(*columns)
    weights = tuple(common[0] // count for count in rows), tuple(common[1] // count for count in columns)
    gradient = walk.spelled_out(gradient, y)
    walk.receive(
        op.inputs[0],
        walk.pooled(
            gradient,
            (x[0], x[1], x[2]),
            (y[0], y[1], y[2]),
            pool.kernel,
            pool.stride,
            pool.padding,
            weights,
            1 / (common[0] * common[1]),
        ),
    )


def _window_counts(pool: q.AvgPool2d, axis: int, size: int, count: int) -> tuple[int, ...]:
    """Pixels inside the image under each window, along one axis."""
    starts = [index * pool.stride[axis] - pool.padding[axis] for index in range(count)]
    return tuple(min(size, start + pool.kernel[axis]) - max(0, start) for start in starts)


RULES: dict[type[t.Op], Callable[[Any, Gradient, _Walk], None]] = {
    t.Requantize: _requantize,
    t.ConvSum: _conv_sum,
    t.Add: _add,
    t.Mean: _mean,
}
INFER_RULES: dict[type[q.QOp], Callable[[Any, Gradient, _Walk], None]] = {q.Reshape: _reshape, q.AvgPool2d: _avg_pool}
"""Of operations that inference's own kernels do."""


# --- factors of steps


def _weight_factors(walk: _Walk, layer: t.Layer, unit: float) -> t.StepFactors:
    """lr / sw**2 in the master's last place. A head, which published simulations keep in floats, is always stepped as real numbers."""
    fraction_bits = MASTER_FRACTION_BITS if walk.optimizer.master == "int16" else CHANCE_BITS
    return _factors(walk, layer, layer.weight_scale, fraction_bits, unit)


def _bias_factors(walk: _Walk, layer: t.Layer, unit: float) -> t.StepFactors:
    """lr / (sx * sw)**2 in the master's last place."""
    assert layer.bias_parameter is not None
    fraction_bits = walk.program.parameters[layer.bias_parameter].fraction_bits
    return _factors(walk, layer, layer.input_scale * layer.weight_scale, fraction_bits, unit)


def _factors(walk: _Walk, layer: t.Layer, scale: np.ndarray, fraction_bits: int, unit: float) -> t.StepFactors:
    is_head = layer.name == walk.program.head.name
    scaling = scale**-2.0 if walk.optimizer.qas or is_head else np.ones_like(scale)
    return t.StepFactors(*step_factors(walk.optimizer.lr * scaling * unit * 2.0**fraction_bits))

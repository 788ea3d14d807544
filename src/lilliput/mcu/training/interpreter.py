"""Run a training program with numpy: the meaning of every operation, one function each. The C kernels must equal it bit for bit.

Sums of products go through float64 matrix products, which are exact here: every partial sum is an integer below 2**53. Nothing else is
floating point.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float64, Int8, Int64, Shaped

from lilliput.errors import GraphError
from lilliput.mcu.training import arithmetic, xorshift
from lilliput.mcu.training import graph as t
from lilliput.mcu.training.loss import cross_entropy
from lilliput.quantize import arithmetic as forward_arithmetic
from lilliput.quantize.interpreter import RULES as INFERENCE

Values = Shaped[np.ndarray, " ..."]


@dataclass(eq=False)
class State:
    """What outlives a step: the masters of all trained tensors, and the random stream."""

    masters: dict[str, Values]
    random: int = xorshift.SEED

    @classmethod
    def start(cls, program: t.Program) -> State:
        """As the firmware begins."""
        return cls({name: parameter.initial.copy() for name, parameter in program.parameters.items()})

    def copy(self) -> State:
        """Another state with the same numbers."""
        return State({name: master.copy() for name, master in self.masters.items()}, self.random)

    @property
    def digest(self) -> str:
        """SHA-256 of all trained tensors' bytes, little-endian, in the program's order."""
        sha = hashlib.sha256()
        for master in self.masters.values():
            sha.update(master.astype(master.dtype.newbyteorder("<")).tobytes())
        return sha.hexdigest()


@dataclass(eq=False)
class Run:
    """One sample on its way through a program: the buffers made so far."""

    program: t.Program
    state: State
    label: int = 0
    rate: int = arithmetic.RATE_ONE
    values: MutableMapping[str, Values] = field(default_factory=dict)
    """By buffer; masks as booleans."""
    exponents: dict[str, int] = field(default_factory=dict)
    """Of gradients."""
    loss_q16: int = 0

    def set(self, name: str, values: Values, exponent: int | None = None) -> None:
        """Put a result into its buffer."""
        buffer = self.program.buffers[name]
        self.values[name] = values.reshape(buffer.shape)
        if exponent is not None:
            self.exponents[name] = exponent


def train_step(program: t.Program, state: State, codes: Int8[np.ndarray, " ..."], label: int, rate: int) -> Run:
    """One step of gradient descent on one sample; moves the state's masters.

    Args:
        program: before or after any pass.
        state: moved in place.
        codes: the cut tensor's, without a batch axis.
        label: the class that is right.
        rate: 0 to 2**15, the factor of the compiled learning rate.
    """
    run = Run(program, state, label, rate)
    run.set(program.input, codes)
    for op in program.ops:
        evaluate(op, run)
    return run


def logits(program: t.Program, state: State, codes: Int8[np.ndarray, " ..."]) -> Int64[np.ndarray, " classes"]:
    """The head's sums for one sample, nothing moved."""
    run = Run(program, state)
    run.set(program.input, codes)
    for op in program.ops:
        evaluate(op, run)
        if program.logits in op.outputs:
            break
    return run.values[program.logits].reshape(-1)


def evaluate(op: t.Op, run: Run) -> None:
    """One operation."""
    rule = RULES.get(type(op))
    if rule is None:
        raise GraphError(
            f"training program '{run.program.name}': '{op.name}' is a {type(op).__name__}, which has no rule"
        )
    rule(op, run)


# --- forward


def _infer(op: t.Infer, run: Run) -> None:
    tensors = run.program.tensors
    inputs = [run.values[name][None] for name in op.inputs]
    y = INFERENCE[type(op.qop)](op.qop, inputs, [tensors[name] for name in op.qop.inputs], tensors[op.qop.name])
    run.set(op.outputs[0], y[0])


def _conv_sum(op: t.ConvSum | t.Conv, run: Run) -> None:
    run.set(op.outputs[0], _sums(op.layer, run, op.inputs[0]))


def _conv(op: t.Conv, run: Run) -> None:
    _requantized(op, run, _sums(op.layer, run, op.inputs[0]))


def _requantize(op: t.Requantize, run: Run) -> None:
    _requantized(op, run, run.values[op.inputs[0]])


def _requantized(op: t.Requantize | t.Conv, run: Run, total: Int64[np.ndarray, "h w c"]) -> None:
    scaling = op.scaling
    factors = scaling.multiplier.astype(np.int64), scaling.shift.astype(np.int64)
    _clamped(op, run, forward_arithmetic.multiply_by_quantized_multiplier(total, *factors) + scaling.zero_point)


def _add(op: t.Add, run: Run) -> None:
    first, second = (
        run.values[name].astype(np.int64) - zero for name, zero in zip(op.inputs, op.input_zero_points, strict=True)
    )
    _clamped(op, run, forward_arithmetic.add(first, second, op.qop.multiplier, op.qop.shift) + op.zero_point)


def _mean(op: t.Mean, run: Run) -> None:
    total = (run.values[op.inputs[0]].astype(np.int64) - op.input_zero_point).sum(axis=(0, 1))
    scaled = forward_arithmetic.multiply_by_quantized_multiplier(total, op.qop.multiplier, op.qop.shift)
    _clamped(op, run, scaled + op.zero_point)


def _clamped(op: t.Requantize | t.Conv | t.Add | t.Mean, run: Run, code: Int64[np.ndarray, " ..."]) -> None:
    clamp = op.qop.clamp if isinstance(op, (t.Add, t.Mean)) else op.scaling.clamp
    run.set(op.outputs[0], np.clip(code, clamp.lower, clamp.upper).astype(np.int8))
    for mask in op.outputs[1:]:
        run.set(mask, (code >= clamp.lower) & (code <= clamp.upper))


def _keep(op: t.Keep, run: Run) -> None:
    run.set(op.outputs[0], run.values[op.inputs[0]][..., list(op.channels)])


def _loss(op: t.Loss, run: Run) -> None:
    values = run.values[op.inputs[0]].reshape(-1)
    mantissa, exponent, run.loss_q16 = cross_entropy(values, run.label, op.multiplier, op.shift, op.bits)
    run.set(op.outputs[0], mantissa, exponent)


# --- gradients of activations


def _mask_gradient(op: t.MaskGradient, run: Run) -> None:
    gradient, mask = op.inputs
    inside = run.values[mask]
    run.set(
        op.outputs[0], arithmetic.mask_gradient(_spread(run, gradient, inside.shape), inside), run.exponents[gradient]
    )


def _scale_gradient(op: t.ScaleGradient, run: Run) -> None:
    gradient, *masks = op.inputs
    mantissa = _spread(run, gradient, op.layer.output_shape)
    for mask in masks:
        mantissa = arithmetic.mask_gradient(mantissa, run.values[mask])
    scaled, shift = arithmetic.scale_gradient(mantissa, op.factor, op.bits)
    exponent = run.exponents[gradient] + op.factor_exponent + arithmetic.FACTOR_SHIFT + shift
    run.set(op.outputs[0], scaled, exponent)


def _conv_dx(op: t.ConvInputGradient, run: Run) -> None:
    layer = op.layer
    total = correlate_transposed(layer, run.values[op.inputs[0]].astype(np.float64), weights(layer, run.state))
    mantissa, shift = arithmetic.normalise(total.astype(np.int64))
    run.set(op.outputs[0], mantissa, run.exponents[op.inputs[0]] + shift)


def _add_gradients(op: t.AddGradients, run: Run) -> None:
    first, second = op.inputs
    mantissa, exponent = arithmetic.add_gradients(
        run.values[first].reshape(-1),
        op.factors[0],
        run.exponents[first] + op.factor_exponents[0],
        run.values[second].reshape(-1),
        op.factors[1],
        run.exponents[second] + op.factor_exponents[1],
    )
    run.set(op.outputs[0], mantissa, exponent)


def _pool_dx(op: t.PoolGradient, run: Run) -> None:
    weight = np.outer(op.row_weights, op.column_weights)[..., None]
    total = pool_transposed(op, run.values[op.inputs[0]].reshape(op.output_shape).astype(np.int64) * weight)
    mantissa, shift = arithmetic.normalise(total)
    run.set(op.outputs[0], mantissa, run.exponents[op.inputs[0]] + shift)


def _spread(run: Run, gradient: str, shape: tuple[int, ...]) -> Values:
    """A gradient of one pixel repeated over the image; any other in the shape asked for."""
    mantissa = run.values[gradient]
    is_one_pixel = mantissa.size == shape[-1]
    return np.broadcast_to(mantissa.reshape(-1), shape) if is_one_pixel else mantissa.reshape(shape)


# --- gradients of parameters, and steps


def _conv_dw(op: t.ConvWeightGradient, run: Run) -> None:
    ga = op.inputs[0]
    run.set(op.outputs[0], _weight_gradient(op, run), run.exponents[ga] + op.sum_shift)


def _conv_dw_step(op: t.ConvWeightStep, run: Run) -> None:
    _move_weights(op, run, _weight_gradient(op, run), run.exponents[op.inputs[0]] + op.sum_shift)


def _weight_step(op: t.WeightStep, run: Run) -> None:
    gradient = op.inputs[0]
    _move_weights(op, run, run.values[gradient].reshape(-1), run.exponents[gradient])


def _bias_gradient(op: t.BiasGradient, run: Run) -> None:
    run.set(op.outputs[0], _bias_sums(op, run), run.exponents[op.inputs[0]] + op.sum_shift)


def _bias_gradient_step(op: t.BiasGradientStep, run: Run) -> None:
    _move_biases(op, run, _bias_sums(op, run), run.exponents[op.inputs[0]] + op.sum_shift)


def _bias_step(op: t.BiasStep, run: Run) -> None:
    _move_biases(op, run, run.values[op.inputs[0]].reshape(-1), run.exponents[op.inputs[0]])


def _weight_gradient(op: t.ConvWeightGradient | t.ConvWeightStep, run: Run) -> Int64[np.ndarray, " trained"]:
    """In the master's order."""
    layer, (ga, x) = op.layer, op.inputs
    codes = run.values[x].reshape(*layer.input_shape[:2], -1).astype(np.float64) - layer.input_zero_point
    if op.is_kept:
        image = np.zeros(layer.input_shape)
        image[..., list(layer.channels)] = codes
        codes = image
    total = correlate_weights(layer, codes, run.values[ga].astype(np.float64))
    return arithmetic.truncate(total.reshape(-1)[layer.selection].astype(np.int64), op.sum_shift)


def _bias_sums(op: t.BiasGradient | t.BiasGradientStep, run: Run) -> Int64[np.ndarray, " out"]:
    ga = run.values[op.inputs[0]].astype(np.int64)
    return arithmetic.truncate(ga.sum(axis=(0, 1)), op.sum_shift)


def _move_weights(
    op: t.WeightStep | t.ConvWeightStep, run: Run, gradient: Int64[np.ndarray, " trained"], exponent: int
) -> None:
    layer, (name,) = op.layer, op.updates
    out_of = layer.selection // layer.weight[0].size
    factor, power = op.factors.mantissa[out_of], op.factors.exponent[out_of]
    delta = arithmetic.step(gradient, exponent, factor, power, run.rate)
    master = run.state.masters[name]
    if op.rule == "int16":
        run.state.masters[name] = arithmetic.update_q7_8(master, delta)
    elif op.rule == "int8":
        numbers, run.state.random = xorshift.draw(run.state.random, len(master))
        run.state.masters[name] = arithmetic.update_by_chance(master, delta, numbers)
    elif op.rule == "nearest":
        run.state.masters[name] = arithmetic.update_to_nearest(master, delta)
    else:
        run.state.masters[name] = arithmetic.update_truncated(master, delta)


def _move_biases(
    op: t.BiasStep | t.BiasGradientStep, run: Run, gradient: Int64[np.ndarray, " out"], exponent: int
) -> None:
    (name,) = op.updates
    delta = arithmetic.step(gradient, exponent, op.factors.mantissa, op.factors.exponent, run.rate)
    if op.truncates:
        bits = run.program.parameters[name].fraction_bits
        delta = arithmetic.truncate(delta, bits) << bits
    run.state.masters[name] = arithmetic.update_bias(run.state.masters[name], delta)


# --- convolutions, in all three directions


def weights(layer: t.Layer, state: State) -> Int8[np.ndarray, "out kh kw in_per_group"]:
    """All int8 weights: those in flash, and those that masters stand for."""
    if layer.weight_parameter is None:
        return layer.weight
    master = state.masters[layer.weight_parameter]
    whole = layer.weight.copy()
    whole.reshape(-1)[layer.selection] = arithmetic.weight_codes(master) if master.dtype == np.int16 else master
    return whole


def biases(layer: t.Layer, program: t.Program, state: State) -> Shaped[np.ndarray, " out"]:
    """All int32 biases."""
    if layer.bias_parameter is None:
        return layer.bias
    bits = program.parameters[layer.bias_parameter].fraction_bits
    return arithmetic.bias_codes(state.masters[layer.bias_parameter], bits)


def _sums(layer: t.Layer, run: Run, x: str) -> Int64[np.ndarray, "h w c"]:
    codes = run.values[x].reshape(layer.input_shape).astype(np.float64) - layer.input_zero_point
    total = correlate(layer, codes, weights(layer, run.state))
    return total.astype(np.int64) + biases(layer, run.program, run.state)


def correlate(
    layer: t.Layer, x: Float64[np.ndarray, "h w c"], weight: Shaped[np.ndarray, "out kh kw in_per_group"]
) -> Float64[np.ndarray, "oh ow out"]:
    """The convolution itself, without bias."""
    result = np.zeros(layer.output_shape)
    padded = _padded(layer, x)
    for (row, column), window in taps(layer):
        pixels = padded[window]
        kernel = weight[:, row, column, :].astype(np.float64)
        if layer.is_depthwise:
            result += np.repeat(pixels, len(weight) // layer.groups, axis=-1) * kernel[:, 0]
            continue
        for out, into in groups(layer):
            result[..., out] += pixels[..., into] @ kernel[out].T
    return result


def correlate_transposed(
    layer: t.Layer, ga: Float64[np.ndarray, "oh ow out"], weight: Shaped[np.ndarray, "out kh kw in_per_group"]
) -> Float64[np.ndarray, "h w c"]:
    """The gradient with respect to the input: each output pixel's gradient spread over its window."""
    padded = _padded(layer, np.zeros(layer.input_shape))
    for (row, column), window in taps(layer):
        kernel = weight[:, row, column, :].astype(np.float64)
        if layer.is_depthwise:
            product = ga * kernel[:, 0]
            padded[window] += product.reshape(*ga.shape[:2], layer.groups, -1).sum(axis=-1)
            continue
        for out, into in groups(layer):
            padded[(*window, into)] += ga[..., out] @ kernel[out]
    top, left, _, _ = layer.padding
    height, width, _ = layer.input_shape
    return padded[top : top + height, left : left + width]


def correlate_weights(
    layer: t.Layer, x: Float64[np.ndarray, "h w c"], ga: Float64[np.ndarray, "oh ow out"]
) -> Float64[np.ndarray, "out kh kw in_per_group"]:
    """The gradient with respect to the weights: sum over output pixels of ga * x."""
    result = np.zeros(layer.weight.shape)
    padded = _padded(layer, x)
    for (row, column), window in taps(layer):
        pixels = padded[window]
        if layer.is_depthwise:
            repeated = np.repeat(pixels, len(layer.weight) // layer.groups, axis=-1)
            result[:, row, column, 0] = (ga * repeated).sum(axis=(0, 1))
            continue
        for out, into in groups(layer):
            size = ga[..., out].shape[-1]
            result[out, row, column] = ga[..., out].reshape(-1, size).T @ pixels[..., into].reshape(layer.pixels, -1)
    return result


def pool_transposed(op: t.PoolGradient, weighted: Values) -> Values:
    """Each input pixel's sum over the windows it lies in."""
    top, left, bottom, right = op.padding
    height, width, channels = op.input_shape
    padded = np.zeros((height + top + bottom, width + left + right, channels), dtype=weighted.dtype)
    for row in range(op.kernel[0]):
        for column in range(op.kernel[1]):
            rows = slice(row, row + (op.output_shape[0] - 1) * op.stride[0] + 1, op.stride[0])
            columns = slice(column, column + (op.output_shape[1] - 1) * op.stride[1] + 1, op.stride[1])
            padded[rows, columns] += weighted
    return padded[top : top + height, left : left + width]


def taps(layer: t.Layer) -> Iterator[tuple[tuple[int, int], tuple[slice, slice]]]:
    """For each place in the kernel, the pixels of the padded input that the output positions see there."""
    height, width, _ = layer.output_shape
    for row in range(layer.kernel[0]):
        for column in range(layer.kernel[1]):
            top, left = row * layer.dilation[0], column * layer.dilation[1]
            rows = slice(top, top + (height - 1) * layer.stride[0] + 1, layer.stride[0])
            columns = slice(left, left + (width - 1) * layer.stride[1] + 1, layer.stride[1])
            yield (row, column), (rows, columns)


def groups(layer: t.Layer) -> Iterator[tuple[slice, slice]]:
    """Output and input channels of each group."""
    out, into = len(layer.weight) // layer.groups, layer.weight.shape[3]
    for group in range(layer.groups):
        yield slice(group * out, (group + 1) * out), slice(group * into, (group + 1) * into)


def _padded(layer: t.Layer, x: Float64[np.ndarray, "h w c"]) -> Float64[np.ndarray, "ph pw c"]:
    top, left, bottom, right = layer.padding
    return np.pad(x, ((top, bottom), (left, right), (0, 0))) if any(layer.padding) else x


RULES: Mapping[type[t.Op], Callable[[Any, Run], None]] = {
    t.Infer: _infer,
    t.ConvSum: _conv_sum,
    t.Requantize: _requantize,
    t.Conv: _conv,
    t.Add: _add,
    t.Mean: _mean,
    t.Keep: _keep,
    t.Loss: _loss,
    t.MaskGradient: _mask_gradient,
    t.ScaleGradient: _scale_gradient,
    t.ConvInputGradient: _conv_dx,
    t.ConvWeightGradient: _conv_dw,
    t.BiasGradient: _bias_gradient,
    t.WeightStep: _weight_step,
    t.BiasStep: _bias_step,
    t.ConvWeightStep: _conv_dw_step,
    t.BiasGradientStep: _bias_gradient_step,
    t.AddGradients: _add_gradients,
    t.PoolGradient: _pool_dx,
}
"""The meaning of each operation: ``rule(op, run)`` reads the run's buffers and sets others."""

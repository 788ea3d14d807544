"""A training program in real numbers: every operation without its roundings, written apart from the integer interpreter.

Gradients hold what mantissa * 2**exponent stands for. Used to check rules by central differences, and integers against rules.
"""

from collections.abc import Mapping

import numpy as np
import torch
from torch.nn import functional

from lilliput.mcu.training import graph as t
from lilliput.quantize import qgraph as q

Values = dict[str, np.ndarray]


def masters(program: t.Program) -> Values:
    """All trained tensors as real codes."""
    return {name: p.initial.astype(float) / 2.0**p.fraction_bits for name, p in program.parameters.items()}


def forward(
    program: t.Program, parameters: Mapping[str, np.ndarray], x: np.ndarray, label: int
) -> tuple[float, Values]:
    """The loss in nats and all buffers of the forward half; masks as 0 and 1."""
    values: Values = {program.input: x.astype(float)}
    loss = float("nan")
    for op in program.ops:
        inputs = [values[name] for name in op.inputs]
        if isinstance(op, (t.ConvSum, t.Conv)):
            total = convolve(op.layer, inputs[0], real_weight(op.layer, parameters)) + real_bias(op.layer, parameters)
            if isinstance(op, t.Conv):
                clamp(values, op, total * effective(op.scaling) + op.scaling.zero_point, op.scaling.clamp)
            else:
                values[op.outputs[0]] = total
        elif isinstance(op, t.Requantize):
            clamp(values, op, inputs[0] * effective(op.scaling) + op.scaling.zero_point, op.scaling.clamp)
        elif isinstance(op, t.Add):
            scales = [program.tensors[name].scale for name in (*op.inputs, op.qop.name)]
            total = sum(
                (each - zero) * scale / scales[2]
                for each, zero, scale in zip(inputs, op.input_zero_points, scales[:2], strict=True)
            )
            clamp(values, op, total + op.zero_point, op.qop.clamp)
        elif isinstance(op, t.Mean):
            real = op.qop.multiplier * 2.0 ** (op.qop.shift - 31)
            clamp(values, op, (inputs[0] - op.input_zero_point).sum(axis=(0, 1)) * real + op.zero_point, op.qop.clamp)
        elif isinstance(op, t.Keep):
            values[op.outputs[0]] = inputs[0][..., list(op.channels)]
        elif isinstance(op, t.Infer) and isinstance(op.qop, q.Reshape):
            values[op.outputs[0]] = inputs[0].reshape(program.buffers[op.outputs[0]].shape)
        elif isinstance(op, t.Infer) and isinstance(op.qop, q.AvgPool2d):
            values[op.outputs[0]] = average(op.qop, inputs[0], program.buffers[op.outputs[0]].shape)
        elif isinstance(op, t.Loss):
            logits = inputs[0].reshape(-1) * program.buffers[op.outputs[0]].unit
            shifted = logits - logits.max()
            loss = float(np.log(np.exp(shifted).sum()) - shifted[label])
            values["probabilities"] = np.exp(shifted) / np.exp(shifted).sum()
            return loss, values
    raise AssertionError("no loss")


def backward(
    program: t.Program, parameters: Mapping[str, np.ndarray], values: Values, label: int
) -> tuple[Values, Values]:
    """Gradients of all buffers, and how far each trained tensor moves, in codes."""
    loss = next(index for index, op in enumerate(program.ops) if isinstance(op, t.Loss))
    values = dict(values)
    values[program.ops[loss].outputs[0]] = values["probabilities"] - np.eye(len(values["probabilities"]))[label]
    moves: Values = {}
    for op in program.ops[loss + 1 :]:
        inputs = [values[name] for name in op.inputs]
        if isinstance(op, t.MaskGradient):
            values[op.outputs[0]] = spread(inputs[0], inputs[1].shape) * inputs[1]
        elif isinstance(op, t.ScaleGradient):
            gradient = spread(inputs[0], op.layer.output_shape)
            for mask in inputs[1:]:
                gradient = gradient * mask
            values[op.outputs[0]] = gradient * op.factor * 2.0**op.factor_exponent
        elif isinstance(op, t.ConvInputGradient):
            values[op.outputs[0]] = convolve_transposed(op.layer, inputs[0], real_weight(op.layer, parameters))
        elif isinstance(op, t.AddGradients):
            real = [f * 2.0**e for f, e in zip(op.factors, op.factor_exponents, strict=True)]
            values[op.outputs[0]] = inputs[0].reshape(-1) * real[0] + inputs[1].reshape(-1) * real[1]
        elif isinstance(op, t.PoolGradient):
            values[op.outputs[0]] = pool_transposed(op, inputs[0])
        elif isinstance(op, (t.ConvWeightGradient, t.ConvWeightStep)):
            gradient = weight_gradient(op, inputs[0], inputs[1])
            if isinstance(op, t.ConvWeightStep):
                moves[op.updates[0]] = step(op, gradient, program)
            else:
                values[op.outputs[0]] = gradient
        elif isinstance(op, (t.BiasGradient, t.BiasGradientStep)):
            gradient = inputs[0].reshape(-1, inputs[0].shape[-1]).sum(axis=0)
            if isinstance(op, t.BiasGradientStep):
                moves[op.updates[0]] = step(op, gradient, program)
            else:
                values[op.outputs[0]] = gradient
        elif isinstance(op, (t.WeightStep, t.BiasStep)):
            moves[op.updates[0]] = step(op, inputs[0], program)
        else:
            raise AssertionError(op.kind)
    return values, moves


def step(op: t.Op, gradient: np.ndarray, program: t.Program) -> np.ndarray:
    """Distance in codes: the compiled factor times the gradient."""
    parameter = program.parameters[op.updates[0]]
    factors = op.factors.mantissa * 2.0**op.factors.exponent
    if parameter.role == "weight":
        factors = factors[op.layer.selection // op.layer.weight[0].size]
        return gradient * factors / 2.0 ** (8 if op.rule == "int16" else 24)
    return gradient * factors / 2.0**parameter.fraction_bits


def effective(scaling: t.Scaling) -> np.ndarray:
    return scaling.multiplier * 2.0 ** (scaling.shift.astype(float) - 31)


def clamp(values: Values, op: t.Op, code: np.ndarray, limits: q.Clamp) -> None:
    values[op.outputs[0]] = code.clip(limits.lower, limits.upper)
    for mask in op.outputs[1:]:
        inside = (code >= limits.lower) & (code <= limits.upper)
        values[mask] = inside.astype(float).reshape(1, 1, -1) if isinstance(op, t.Mean) else inside.astype(float)


def spread(gradient: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    one = gradient.size == shape[-1]
    return np.broadcast_to(gradient.reshape(-1), shape) if one else gradient.reshape(shape)


def real_weight(layer: t.Layer, parameters: Mapping[str, np.ndarray]) -> np.ndarray:
    weight = layer.weight.astype(float)
    if layer.weight_parameter is not None:
        weight.reshape(-1)[layer.selection] = parameters[layer.weight_parameter]
    return weight


def real_bias(layer: t.Layer, parameters: Mapping[str, np.ndarray]) -> np.ndarray:
    return layer.bias.astype(float) if layer.bias_parameter is None else parameters[layer.bias_parameter]


# --- convolutions by torch, so that no line is shared with the interpreter


def padded(layer: t.Layer, x: np.ndarray) -> torch.Tensor:
    top, left, bottom, right = layer.padding
    image = torch.from_numpy((x.reshape(layer.input_shape) - layer.input_zero_point).transpose(2, 0, 1)[None].copy())
    return functional.pad(image, (left, right, top, bottom))


def kernel(weight: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(weight.transpose(0, 3, 1, 2).copy())


def _convolve(layer: t.Layer, image: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return functional.conv2d(image, weight, stride=layer.stride, dilation=layer.dilation, groups=layer.groups)[0]


def convolve(layer: t.Layer, x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    return _convolve(layer, padded(layer, x), kernel(weight)).numpy().transpose(1, 2, 0)


def convolve_transposed(layer: t.Layer, ga: np.ndarray, weight: np.ndarray) -> np.ndarray:
    image = padded(layer, np.zeros(layer.input_shape)).requires_grad_()
    outward = torch.from_numpy(ga.reshape(layer.output_shape).transpose(2, 0, 1).copy())
    (gradient,) = torch.autograd.grad(_convolve(layer, image, kernel(weight)), image, outward)
    top, left, _, _ = layer.padding
    height, width, _ = layer.input_shape
    return gradient[0, :, top : top + height, left : left + width].numpy().transpose(1, 2, 0)


def weight_gradient(op: t.Op, ga: np.ndarray, x: np.ndarray) -> np.ndarray:
    layer = op.layer
    if op.is_kept:
        image = np.full(layer.input_shape, float(layer.input_zero_point))
        image[..., list(layer.channels)] = x
        x = image
    weight = kernel(layer.weight.astype(float)).requires_grad_()
    outward = torch.from_numpy(ga.reshape(layer.output_shape).transpose(2, 0, 1).copy())
    (gradient,) = torch.autograd.grad(_convolve(layer, padded(layer, x), weight), weight, outward)
    return gradient.numpy().transpose(0, 2, 3, 1).reshape(-1)[layer.selection]


def average(op: q.AvgPool2d, x: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    result = np.zeros(shape)
    for y, left in np.ndindex(shape[:2]):
        result[y, left] = x[_window(op, y, left, x.shape)].mean(axis=(0, 1))
    return result


def pool_transposed(op: t.PoolGradient, gradient: np.ndarray) -> np.ndarray:
    result = np.zeros(op.input_shape)
    gradient = gradient.reshape(op.output_shape)
    for y, left in np.ndindex(op.output_shape[:2]):
        weight = op.row_weights[y] * op.column_weights[left]
        result[_window(op, y, left, op.input_shape)] += gradient[y, left] * weight
    return result


def _window(op: q.AvgPool2d | t.PoolGradient, y: int, x: int, shape: tuple[int, ...]) -> tuple[slice, slice]:
    starts = [index * stride - before for index, stride, before in zip((y, x), op.stride, op.padding[:2], strict=True)]
    rows, columns = (
        slice(max(0, start), min(size, start + window))
        for start, size, window in zip(starts, shape[:2], op.kernel, strict=True)
    )
    return rows, columns

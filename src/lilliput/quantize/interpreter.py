"""Run an integer graph with numpy: integers from the input codes to the output codes.

Sums of products go through float64 matrix products, which are exact here: every partial sum is an integer below 2**53 (the graph's own
check keeps it below 2**31). Nothing else is floating point. This is the reference that the C kernels must equal byte for byte, so each
rule is written to be read, one operation a function.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float64, Int8, Int64

from lilliput.errors import GraphError
from lilliput.quantize import arithmetic
from lilliput.quantize.qgraph import (
    Add,
    AvgPool2d,
    Concat,
    Conv2d,
    Crop,
    Linear,
    Lookup,
    MaxPool2d,
    Mean,
    Mul,
    Pad,
    Paste,
    QOp,
    QTensor,
    QuantizedGraph,
    Reshape,
    Softmax,
    UpsampleNearest,
)
from lilliput.quantize.softmax import softmax

Codes = Int8[np.ndarray, " batch ..."]


CHUNK_ELEMENTS = 2**20
"""Most elements of the largest tensor at once: the work then stays in the processor's cache, and its memory is bounded."""


def run(graph: QuantizedGraph, codes: Codes, observe: Callable[[str, Codes], None] | None = None) -> tuple[Codes, ...]:
    """Output codes for a batch of input codes. ``observe(name, codes)`` sees the input and every operation's result.

    Raises:
        GraphError: the input's shape is not (batch, *the input tensor's shape).
    """
    expected = graph.tensors[graph.input].shape
    if codes.shape[1:] != expected:
        raise GraphError(
            f"integer graph '{graph.name}': input codes have shape {list(codes.shape)}; must be (batch, "
            f"{', '.join(str(size) for size in expected)}), channels last"
        )
    samples = max(1, CHUNK_ELEMENTS // max(tensor.bytes for tensor in graph.tensors.values()))
    if observe is not None or len(codes) <= samples:
        return _run(graph, codes, observe)
    parts = [_run(graph, codes[start : start + samples], None) for start in range(0, len(codes), samples)]
    return tuple(np.concatenate(each) for each in zip(*parts, strict=True))


def _run(graph: QuantizedGraph, codes: Codes, observe: Callable[[str, Codes], None] | None) -> tuple[Codes, ...]:
    live: dict[str, Codes] = {graph.input: codes}
    last_use = {name: index for index, op in enumerate(graph.ops) for name in op.inputs}
    if observe is not None:
        observe(graph.input, codes)
    for index, op in enumerate(graph.ops):
        live[op.name] = evaluate(op, [live[name] for name in op.inputs], graph)
        if observe is not None:
            observe(op.name, live[op.name])
        for name in set(op.inputs):
            if last_use[name] == index and name not in graph.outputs:
                del live[name]
    return tuple(live[name] for name in graph.outputs)


def evaluate(op: QOp, inputs: Sequence[Codes], graph: QuantizedGraph) -> Codes:
    """One operation's output codes from its inputs' codes."""
    rule = RULES.get(type(op))
    if rule is None:
        raise GraphError(f"integer graph '{graph.name}': '{op.name}' is a {type(op).__name__}, which has no rule")
    return rule(op, inputs, [graph.tensors[name] for name in op.inputs], graph.tensors[op.name])


def _conv2d(op: Conv2d, inputs: Sequence[Codes], x: Sequence[QTensor], y: QTensor) -> Codes:
    padded = _padded(_centred(inputs[0], x[0]), op.padding, 0)
    out_channels, kernel_height, kernel_width, in_per_group = op.weight.shape
    taps = _windows(padded, (kernel_height, kernel_width), op.stride, op.dilation, y.shape[:2])
    out_per_group = out_channels // op.groups
    accumulator = np.zeros((len(padded), *y.shape), dtype=np.float64)
    for (row, column), tap in taps:
        weight = op.weight[:, row, column, :].astype(np.float64)
        if in_per_group == 1:
            accumulator += (np.repeat(tap, out_per_group, axis=-1) if out_per_group > 1 else tap) * weight[:, 0]
            continue
        for group in range(op.groups):
            out = slice(group * out_per_group, (group + 1) * out_per_group)
            into = slice(group * in_per_group, (group + 1) * in_per_group)
            accumulator[..., out] += tap[..., into] @ weight[out].T
    return _rescale(op, accumulator, y)


def _linear(op: Linear, inputs: Sequence[Codes], x: Sequence[QTensor], y: QTensor) -> Codes:
    return _rescale(op, _centred(inputs[0], x[0]) @ op.weight.T.astype(np.float64), y)


def _rescale(op: Conv2d | Linear, accumulator: Float64[np.ndarray, "*shape"], y: QTensor) -> Codes:
    total = accumulator.astype(np.int64) + op.bias.astype(np.int64)
    multiplier, shift = op.multiplier.astype(np.int64), op.shift.astype(np.int64)
    return arithmetic.requantize(total, multiplier, shift, y.zero_point, op.clamp.lower, op.clamp.upper)


def _add(op: Add, inputs: Sequence[Codes], x: Sequence[QTensor], y: QTensor) -> Codes:
    first, second = (_differences(codes, tensor) for codes, tensor in zip(inputs, x, strict=True))
    total = arithmetic.add(first, second, op.multiplier, op.shift) + y.zero_point
    return np.clip(total, op.clamp.lower, op.clamp.upper).astype(np.int8)


def _mul(op: Mul, inputs: Sequence[Codes], x: Sequence[QTensor], y: QTensor) -> Codes:
    first, second = (_differences(codes, tensor) for codes, tensor in zip(inputs, x, strict=True))
    if second.ndim < first.ndim:
        second = second.reshape(len(second), *(1,) * (first.ndim - second.ndim), *second.shape[1:])
    product = first * second
    return arithmetic.requantize(product, op.multiplier, op.shift, y.zero_point, op.clamp.lower, op.clamp.upper)


def _avg_pool2d(op: AvgPool2d, inputs: Sequence[Codes], x: Sequence[QTensor], y: QTensor) -> Codes:
    codes = inputs[0].astype(np.int64)
    inside = np.ones((1, *codes.shape[1:3], 1), dtype=np.int64)
    total, count = (
        sum(tap for _, tap in _windows(_padded(each, op.padding, 0), op.kernel, op.stride, (1, 1), y.shape[:2]))
        for each in (codes, inside)
    )
    mean = arithmetic.divide_rounding_half_away(np.asarray(total), np.asarray(count))
    return np.clip(mean, op.clamp.lower, op.clamp.upper).astype(np.int8)


def _max_pool2d(op: MaxPool2d, inputs: Sequence[Codes], x: Sequence[QTensor], y: QTensor) -> Codes:
    padded = _padded(inputs[0], op.padding, -128)
    taps = [tap for _, tap in _windows(padded, op.kernel, op.stride, op.dilation, y.shape[:2])]
    return np.clip(np.max(taps, axis=0), op.clamp.lower, op.clamp.upper).astype(np.int8)


def _mean(op: Mean, inputs: Sequence[Codes], x: Sequence[QTensor], y: QTensor) -> Codes:
    total = _differences(inputs[0], x[0]).sum(axis=(1, 2))
    codes = arithmetic.requantize(total, op.multiplier, op.shift, y.zero_point, op.clamp.lower, op.clamp.upper)
    return codes.reshape(len(codes), *y.shape)


def _lookup(op: Lookup, inputs: Sequence[Codes], x: Sequence[QTensor], y: QTensor) -> Codes:
    return op.table[inputs[0].astype(np.int64) + 128]


def _pad(op: Pad, inputs: Sequence[Codes], x: Sequence[QTensor], y: QTensor) -> Codes:
    return _padded(inputs[0], op.padding, y.zero_point)


def _upsample_nearest(op: UpsampleNearest, inputs: Sequence[Codes], x: Sequence[QTensor], y: QTensor) -> Codes:
    return inputs[0].repeat(op.factor[0], axis=1).repeat(op.factor[1], axis=2)


def _crop(op: Crop, inputs: Sequence[Codes], x: Sequence[QTensor], y: QTensor) -> Codes:
    height, width, _ = y.shape
    return inputs[0][:, op.top : op.top + height, op.left : op.left + width].copy()


def _paste(op: Paste, inputs: Sequence[Codes], x: Sequence[QTensor], y: QTensor) -> Codes:
    height, width, _ = x[0].shape
    whole = inputs[1].copy() if len(inputs) > 1 else np.full((len(inputs[0]), *y.shape), y.zero_point, dtype=np.int8)
    whole[:, op.top : op.top + height, op.left : op.left + width] = inputs[0]
    return whole


RULES: dict[type[QOp], Callable[..., Any]] = {
    Conv2d: _conv2d,
    Linear: _linear,
    Add: _add,
    Mul: _mul,
    AvgPool2d: _avg_pool2d,
    MaxPool2d: _max_pool2d,
    Mean: _mean,
    Softmax: lambda op, inputs, x, y: softmax(inputs[0], op.multiplier, op.shift, op.diff_min),
    Lookup: _lookup,
    Concat: lambda op, inputs, x, y: np.concatenate(inputs, axis=op.axis + 1),
    Pad: _pad,
    Reshape: lambda op, inputs, x, y: inputs[0].reshape(len(inputs[0]), *y.shape),
    UpsampleNearest: _upsample_nearest,
    Crop: _crop,
    Paste: _paste,
}
"""The meaning of each operation: ``rule(op, input codes, input tensors, output tensor)``."""


def _differences(codes: Codes, tensor: QTensor) -> Int64[np.ndarray, " batch ..."]:
    return codes.astype(np.int64) - tensor.zero_point


def _centred(codes: Codes, tensor: QTensor) -> Float64[np.ndarray, " batch ..."]:
    return codes.astype(np.float64) - tensor.zero_point


def _padded(x: np.ndarray, padding: tuple[int, int, int, int], value: int) -> np.ndarray:
    top, left, bottom, right = padding
    if not any(padding):
        return x
    return np.pad(x, ((0, 0), (top, bottom), (left, right), (0, 0)), constant_values=value)


def _windows(
    padded: np.ndarray,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    dilation: tuple[int, int],
    output: tuple[int, ...],
) -> Iterator[tuple[tuple[int, int], np.ndarray]]:
    """For each place in the kernel, the pixel that every output position sees there."""
    for row in range(kernel[0]):
        for column in range(kernel[1]):
            top, left = row * dilation[0], column * dilation[1]
            rows = slice(top, top + (output[0] - 1) * stride[0] + 1, stride[0])
            columns = slice(left, left + (output[1] - 1) * stride[1] + 1, stride[1])
            yield (row, column), padded[:, rows, columns, :]

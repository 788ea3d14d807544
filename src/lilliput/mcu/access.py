"""When a kernel's output may lie on its input: what it still has to read, against what it has written, in the order it does both.

The orders are those of the C kernels in ``runtime/nn``; the tests run each kernel both ways.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

import numpy as np

from lilliput.quantize.qgraph import (
    Add,
    AvgPool2d,
    Conv2d,
    Crop,
    Linear,
    Lookup,
    MaxPool2d,
    Mean,
    Mul,
    Paste,
    QOp,
    QTensor,
    Reshape,
    Softmax,
)

_NOTHING = np.iinfo(np.int64).max


def can_run_in_place(op: QOp, tensors: Mapping[str, QTensor]) -> bool:
    """Whether the output may take over the first input's memory, from its first byte on (of an Add: either input's)."""
    source, result = tensors[op.inputs[0]], tensors[op.name]
    if isinstance(op, (Crop, Paste)):
        return True  # bytes move towards the buffer's beginning, the first ones first
    if result.bytes > source.bytes:
        # From the last pixels to the first: each pair is read before it is written, and what is still to be read lies before both.
        return isinstance(op, Conv2d) and _is_pointwise(op) and prod(source.shape[:2]) > 1
    if isinstance(op, (Add, Lookup, Mean, Mul, Reshape, Softmax)):
        return True  # each code is read for the last time before, or when, its byte is written
    if isinstance(op, (AvgPool2d, MaxPool2d)):
        return _pool_can(op, source.shape, result.shape)
    if isinstance(op, Conv2d) and op.is_depthwise:
        return _depthwise_can(op, source.shape, result.shape)
    if isinstance(op, Conv2d):
        return _convolution_can(op, source.shape, result.shape)
    if isinstance(op, Linear):
        # One vector: four outputs are summed, then written, and the next four need the whole input again. More: two rows at a time.
        return result.shape[-1] <= (4 if prod(source.shape[:-1]) == 1 else source.shape[-1])
    return False


def _pool_can(op: AvgPool2d | MaxPool2d, source: tuple[int, ...], result: tuple[int, ...]) -> bool:
    """Output pixel o of a channel is written after its window is read: later windows must not begin before their own o."""
    dilation = op.dilation if isinstance(op, MaxPool2d) else (1, 1)
    first = _first_pixels(source, result, op.kernel, op.stride, dilation, op.padding)
    return bool((first >= np.arange(first.size)).all())


def _convolution_can(op: Conv2d, source: tuple[int, ...], result: tuple[int, ...]) -> bool:
    """Two output pixels are written, with all their channels, after both windows are read."""
    if op.groups > 1:  # a later group of the same pixels is still to be read
        return False
    first = _first_pixels(source, result, op.weight.shape[1:3], op.stride, op.dilation, op.padding)
    if first.size == 1 and source[:2] == op.weight.shape[1:3]:
        return result[2] <= 4  # runs as a fully connected layer
    still_read = np.minimum.accumulate(first[::-1])[::-1]
    ends = np.arange(2, first.size, 2)
    in_bytes = np.where(still_read[ends] == _NOTHING, _NOTHING, still_read[ends] * source[2])
    return bool((ends * result[2] <= in_bytes).all())


def _is_pointwise(op: Conv2d) -> bool:
    return op.weight.shape[1:3] == (1, 1) and op.stride == (1, 1) and not any(op.padding) and op.groups == 1


def _depthwise_can(op: Conv2d, source: tuple[int, ...], result: tuple[int, ...]) -> bool:
    """An output row of a channel is written after the input rows of its windows are copied: it may cover those, and unused ones."""
    if result[2] != source[2] or result[0] * result[1] > source[0] * source[1]:
        return False
    (stride, _), (dilation, _), top = op.stride, op.dilation, op.padding[0]
    starts = np.arange(result[0]) * stride - top
    span = (op.weight.shape[1] - 1) * dilation + 1
    for y, start in enumerate(starts):
        covered = ((y + 1) * result[1] - 1) // source[1]
        uncopied = max(0, start + span)
        later = (starts[y + 1 :, None] + np.arange(op.weight.shape[1]) * dilation).ravel()
        if ((later >= uncopied) & (later <= covered)).any():
            return False
    return True


def _first_pixels(
    source: tuple[int, ...],
    result: tuple[int, ...],
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    dilation: tuple[int, ...],
    padding: tuple[int, int, int, int],
) -> np.ndarray:
    """Index of the first input pixel under each output pixel's window; a huge number where the window lies wholly outside."""
    rows, columns = (_first_taps(source[i], result[i], kernel[i], stride[i], dilation[i], padding[i]) for i in (0, 1))
    inside = (rows[:, None] >= 0) & (columns >= 0)
    return np.where(inside, rows[:, None] * source[1] + columns, _NOTHING).ravel()


def _first_taps(size: int, count: int, kernel: int, stride: int, dilation: int, before: int) -> np.ndarray:
    """Coordinate of the first tap inside the image, along one axis; -1 where there is none."""
    taps = np.arange(count)[:, None] * stride - before + np.arange(kernel) * dilation
    inside = (taps >= 0) & (taps < size)
    return np.where(inside.any(axis=1), taps[np.arange(count), inside.argmax(axis=1)], -1)

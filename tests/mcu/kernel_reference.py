"""What the kernels must compute, written a second time in numpy from the specification: slow, plain, on int64.

Shares nothing with ``lilliput.quantize.arithmetic`` or the C code; both roundings are stated by their definitions.
"""

from __future__ import annotations

from math import prod

import numpy as np

from lilliput.quantize.qgraph import (
    Add,
    AvgPool2d,
    Concat,
    Conv2d,
    Linear,
    Lookup,
    MaxPool2d,
    Mean,
    Mul,
    Pad,
    QOp,
    QTensor,
    Reshape,
    Softmax,
    UpsampleNearest,
)


def evaluate(op: QOp, tensors: dict[str, QTensor], inputs: list[np.ndarray]) -> np.ndarray:
    """The int8 output of one operation."""
    x = [each.astype(np.int64) for each in inputs]
    zero = [tensors[name].zero_point for name in op.inputs]
    out = tensors[op.name]
    match op:
        case Conv2d():
            y = rescale(_convolve(x[0], zero[0], op), op.multiplier, op.shift) + out.zero_point
        case Linear():
            sums = (x[0] - zero[0]) @ op.weight.astype(np.int64).T + op.bias
            y = rescale(sums, op.multiplier, op.shift) + out.zero_point
        case Add():
            parts = [rescale((x[i] - zero[i]) * 2**20, op.multiplier[i], op.shift[i]) for i in (0, 1)]
            y = rescale(parts[0] + parts[1], op.multiplier[2], op.shift[2]) + out.zero_point
        case Mul():
            y = rescale((x[0] - zero[0]) * (x[1] - zero[1]), op.multiplier, op.shift) + out.zero_point
        case AvgPool2d() | MaxPool2d():
            y = _pool(x[0], op, out.shape)
        case Mean():
            y = rescale((x[0] - zero[0]).sum(axis=(0, 1)), op.multiplier, op.shift).reshape(out.shape) + out.zero_point
        case Softmax():
            y = np.apply_along_axis(_softmax, -1, x[0], op)
        case Lookup():
            y = op.table.astype(np.int64)[x[0] + 128]
        case Concat():
            y = np.concatenate(x, axis=op.axis)
        case Pad():
            top, left, bottom, right = op.padding
            y = np.pad(x[0], ((top, bottom), (left, right), (0, 0)), constant_values=zero[0])
        case Reshape():
            y = x[0].reshape(out.shape)
        case UpsampleNearest():
            y = x[0].repeat(op.factor[0], axis=0).repeat(op.factor[1], axis=1)
        case _:
            raise NotImplementedError(type(op))
    clamp = getattr(op, "clamp", None)
    return np.clip(y, clamp.lower if clamp else -128, clamp.upper if clamp else 127).astype(np.int8)


def rescale(x: np.ndarray, multiplier: np.ndarray | int, shift: np.ndarray | int) -> np.ndarray:
    """Shift left; multiply doubling, the high half rounded by a signed nudge and a truncating division; divide, ties away from zero."""
    shift = np.asarray(shift, dtype=np.int64)
    product = (x << np.maximum(shift, 0)) * np.asarray(multiplier, dtype=np.int64)
    nudged = product + np.where(product >= 0, 2**30, 1 - 2**30)
    high = np.sign(nudged) * (np.abs(nudged) // 2**31)
    power = np.int64(1) << np.maximum(-shift, 0)
    return np.sign(high) * ((2 * np.abs(high) + power) // (2 * power))


def _convolve(x: np.ndarray, zero_point: int, op: Conv2d) -> np.ndarray:
    out, kernel_h, kernel_w, group_in = op.weight.shape
    top, left, bottom, right = op.padding
    real = np.pad(x - zero_point, ((top, bottom), (left, right), (0, 0)))
    out_h = (real.shape[0] - (kernel_h - 1) * op.dilation[0] - 1) // op.stride[0] + 1
    out_w = (real.shape[1] - (kernel_w - 1) * op.dilation[1] - 1) // op.stride[1] + 1
    sums = np.zeros((out_h, out_w, out), dtype=np.int64) + op.bias
    per_group = out // op.groups
    for channel in range(out):
        inside = slice(channel // per_group * group_in, (channel // per_group + 1) * group_in)
        for i in range(kernel_h):
            for j in range(kernel_w):
                rows = slice(i * op.dilation[0], i * op.dilation[0] + (out_h - 1) * op.stride[0] + 1, op.stride[0])
                columns = slice(j * op.dilation[1], j * op.dilation[1] + (out_w - 1) * op.stride[1] + 1, op.stride[1])
                sums[:, :, channel] += real[rows, columns, inside] @ op.weight[channel, i, j].astype(np.int64)
    return sums


def _pool(x: np.ndarray, op: AvgPool2d | MaxPool2d, shape: tuple[int, ...]) -> np.ndarray:
    dilation = getattr(op, "dilation", (1, 1))
    y = np.zeros(shape, dtype=np.int64)
    for i in range(shape[0]):
        for j in range(shape[1]):
            rows = [i * op.stride[0] - op.padding[0] + k * dilation[0] for k in range(op.kernel[0])]
            columns = [j * op.stride[1] - op.padding[1] + k * dilation[1] for k in range(op.kernel[1])]
            window = x[[r for r in rows if 0 <= r < x.shape[0]]][:, [c for c in columns if 0 <= c < x.shape[1]]]
            if isinstance(op, MaxPool2d):
                y[i, j] = window.max(axis=(0, 1))
            else:
                total, count = window.sum(axis=(0, 1)), prod(window.shape[:2])
                y[i, j] = np.sign(total) * ((2 * np.abs(total) + count) // (2 * count))
    return y


# Softmax: gemmlowp's fixed point, with Python integers


def _high_mul(a: int, b: int) -> int:
    product = a * b
    nudged = product + (2**30 if product >= 0 else 1 - 2**30)
    return nudged // 2**31 if nudged >= 0 else -(-nudged // 2**31)


def _half_away(x: int, bits: int) -> int:
    magnitude = (abs(x) + (1 << bits >> 1)) >> bits
    return magnitude if x >= 0 else -magnitude


def _saturate(x: int) -> int:
    return max(-(2**31), min(2**31 - 1, x))


def _exp_of_negative(a: int) -> int:
    """Q5.26 to Q0.31."""
    if a == 0:
        return 2**31 - 1
    fraction = a % 2**24 - 2**24  # in [-1/4, 0)
    x = _saturate(fraction << 5) + 2**28
    x2 = _high_mul(x, x)
    x3, x4 = _high_mul(x2, x), _high_mul(x2, x2)
    tail = _half_away(_high_mul(_half_away(x4, 2) + x3, 715827883) + x2, 1)
    result = 1895147668 + _high_mul(1895147668, x + tail)
    remainder = fraction - a
    for bit, factor in enumerate((1672461947, 1302514674, 790015084, 290630308, 39332535, 720401, 242)):
        if remainder >> (24 + bit) & 1:
            result = _high_mul(result, factor)
    return result


def _softmax(row: np.ndarray, op: Softmax) -> np.ndarray:
    differences = [int(x) - int(row.max()) for x in row]
    powers = [
        _exp_of_negative(int(rescale(np.int64(d), op.multiplier, op.shift))) if d >= op.diff_min else None
        for d in differences
    ]
    total = sum(_half_away(power, 12) for power in powers if power is not None)
    headroom = 32 - total.bit_length()
    half_denominator = ((total << headroom) - 2**31 + 2**31 - 1 + 1) // 2
    x = 1515870810 + _high_mul(half_denominator, -1010580540)
    for _ in range(3):
        x += _saturate(_high_mul(x, 2**29 - _high_mul(half_denominator, x)) << 2)
    reciprocal = _saturate(x << 1)
    bits = 12 - headroom + 31 - 8
    return np.array(
        [-128 if power is None else min(127, _half_away(_high_mul(reciprocal, power), bits) - 128) for power in powers]
    )

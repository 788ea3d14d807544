"""From an integer operation to the call of a C kernel: which function, its parameters, its constants, its scratch memory.

A kernel is called as ``function(&params, inputs..., output, scratch);`` with the inputs in the operation's order and, where a residual
addition is fused into its producer, the skip tensor after them; the output may then be the skip tensor's own memory. Scratch is 4-byte
aligned. What each kernel does is written in ``runtime/nn``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from lilliput.errors import GraphError, UnsupportedOpError
from lilliput.mcu.access import can_run_in_place
from lilliput.mcu.packing import fold_zero_point, pack_weights, scale_constants
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

__all__ = ["ConstantTable", "KernelCall", "can_fuse_add", "can_run_in_place", "lower", "scratch_bytes"]

Tensors = Mapping[str, QTensor]

_MOST_CONCAT_INPUTS = 8
_MOST_SOFTMAX_CLASSES = 4095
"""The sum of exponentials has 12 integer bits."""


@dataclass(frozen=True, eq=False)
class ConstantTable:
    """A flat array of integers that goes to flash."""

    name: str
    """Its whole name in C: the call's symbol, an underscore, what it holds."""
    c_type: str
    values: np.ndarray

    @property
    def bytes(self) -> int:
        """Size in flash."""
        return self.values.nbytes


@dataclass(frozen=True, eq=False)
class KernelCall:
    """One call of a kernel, as C generation writes it."""

    function: str
    params_type: str
    params: str
    """Initializer of the constant parameter struct; it names the constants."""
    constants: tuple[ConstantTable, ...]
    scratch_bytes: int
    macs: int
    """What an instrumented kernel counts: multiply-accumulates with a weight of the network, padding included; zeros that only fill up
    a machine word are left out."""


def lower(
    op: QOp, tensors: Tensors, *, symbol: str, fused_add: Add | None = None, in_place: bool = False
) -> KernelCall:
    """The kernel call of an operation.

    Args:
        tensors: of the graph, by name.
        symbol: a C identifier of this call; its constants' names start with it.
        fused_add: the residual addition that takes this operation's output, to be done by the same call.
        in_place: the first input's memory is also the output's; with a fused addition it is the skip tensor's, which always goes.
    Raises:
        UnsupportedOpError: no kernel for it, or the addition cannot be fused into it.
        GraphError: it cannot run in place.
    """
    if fused_add is not None and not can_fuse_add(op, fused_add):
        raise UnsupportedOpError(
            f"'{fused_add.name}' cannot be fused into '{op.name}' ({type(op).__name__}, module '{op.source}'): only a Conv2d that is not "
            "depthwise or a Linear takes an Add, of its own output and another tensor; lower them one by one"
        )
    if in_place and fused_add is None and not can_run_in_place(op, tensors):
        raise GraphError(
            f"'{op.name}' ({type(op).__name__}, module '{op.source}') would read codes it has overwritten: give it an output apart"
        )
    rule = _RULES.get(type(op))
    if rule is None:
        kinds = ", ".join(sorted(kind.__name__ for kind in _RULES))
        raise UnsupportedOpError(
            f"no C kernel for '{op.name}' ({type(op).__name__}, module '{op.source}'); there are kernels for {kinds}"
        )
    return rule(op, tensors, symbol, fused_add)


def scratch_bytes(op: QOp, tensors: Tensors, *, fused_add: Add | None = None, in_place: bool = False) -> int:
    """Working memory that the operation's kernel needs besides its inputs and output; the same in place and not."""
    del in_place
    if isinstance(op, Conv2d) and op.is_depthwise:
        return _ring(op, tensors).scratch_bytes
    if isinstance(op, (Conv2d, Linear)):
        return _convolution(op, tensors, fused_add).scratch_bytes
    return 0


def can_fuse_add(op: QOp, add: Add) -> bool:
    """Whether a kernel does this operation and the addition of its output to another tensor in one go."""
    is_host = isinstance(op, Linear) or (isinstance(op, Conv2d) and not op.is_depthwise)
    return is_host and add.inputs.count(op.name) == 1


# Layers with weights


@dataclass(frozen=True)
class _Convolution:
    """A convolution, or a linear layer seen as one, in the terms of ``ll_conv_params``."""

    in_shape: tuple[int, int, int]
    out_shape: tuple[int, int, int]
    kernel: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]
    top: int
    left: int
    groups: int
    is_one_vector: bool
    """The window is the whole input, once: a fully connected layer."""
    fused: bool

    @property
    def group_in(self) -> int:
        return self.in_shape[2] // self.groups

    @property
    def window(self) -> int:
        """Codes under the kernel, in one group."""
        return prod(self.kernel) * self.group_in

    @property
    def is_1x1(self) -> bool:
        """Output pixels are made of input pixels one by one, and these of whole words."""
        plain = self.kernel == self.stride == (1, 1) and self.groups == 1 and self.top == self.left == 0
        return plain and self.in_shape[:2] == self.out_shape[:2] and self.group_in % 4 == 0

    @property
    def function(self) -> str:
        if self.is_one_vector:
            return "ll_linear"
        return f"ll_conv{'_1x1' if self.is_1x1 else ''}{'_add' if self.fused else ''}"

    @property
    def scratch_bytes(self) -> int:
        """Two pixels' windows in 16 bits, one in 8 where channels do not fill words, two pixels of output before an addition."""
        if self.is_one_vector:
            return 0
        whole = -(-self.window // 4) * 4
        return 4 * whole + (whole if self.group_in % 4 else 0) + (2 * self.out_shape[2] if self.fused else 0)

    @property
    def macs(self) -> int:
        return prod(self.out_shape) * self.window


def _convolution(op: Conv2d | Linear, tensors: Tensors, fused_add: Add | None) -> _Convolution:
    source, result = tensors[op.inputs[0]].shape, tensors[op.name].shape
    fused = fused_add is not None
    if isinstance(op, Linear):
        rows = prod(source[:-1])
        shapes = (1, rows, source[-1]), (1, rows, result[-1])
        return _Convolution(
            *shapes, (1, 1), (1, 1), (1, 1), 0, 0, 1, is_one_vector=rows == 1 and not fused, fused=fused
        )
    out, kernel_h, kernel_w, _ = op.weight.shape
    in_shape, out_shape = (source[0], source[1], source[2]), (result[0], result[1], out)
    covers = (kernel_h, kernel_w) == in_shape[:2] and op.padding == (0, 0, 0, 0) and op.groups == 1
    covers = covers and (op.dilation == (1, 1) or (kernel_h, kernel_w) == (1, 1))
    return _Convolution(
        in_shape,
        out_shape,
        (kernel_h, kernel_w),
        op.stride,
        op.dilation,
        op.padding[0],
        op.padding[1],
        op.groups,
        is_one_vector=covers and not fused,
        fused=fused,
    )


def _lower_convolution(op: QOp, tensors: Tensors, symbol: str, fused_add: Add | None) -> KernelCall:
    assert isinstance(op, (Conv2d, Linear))
    if isinstance(op, Conv2d) and op.is_depthwise:
        return _lower_depthwise(op, tensors, symbol)
    shape = _convolution(op, tensors, fused_add)
    weight = op.weight.reshape(op.weight.shape[0], -1)
    packed = [pack_weights(each) for each in np.split(weight, shape.groups)]
    is_paired = all(paired for _, paired in packed)
    if not is_paired:
        packed = [pack_weights(each, allow_pairs=False) for each in np.split(weight, shape.groups)]
    words = np.concatenate([each for each, _ in packed])
    scaling, channels = _scaling(op, weight, tensors, symbol)
    constants = (ConstantTable(f"{symbol}_weights", "uint32_t", words), channels)
    common = {"scaling": scaling, "weights": f"{symbol}_weights", "is_paired": int(is_paired)}
    if shape.is_one_vector:
        params = _struct(common | {"out_c": shape.out_shape[2], "in_c": shape.window})
        return KernelCall(shape.function, "ll_linear_params", params, constants, shape.scratch_bytes, shape.macs)
    _check_sizes(
        op, *shape.in_shape, *shape.out_shape, *shape.kernel, *shape.stride, *shape.dilation, shape.top, shape.left
    )
    params = _struct(
        common
        | {"in_zero_point": tensors[op.inputs[0]].zero_point}
        | dict(zip(("in_h", "in_w", "in_c"), shape.in_shape, strict=True))
        | dict(zip(("out_h", "out_w", "out_c"), shape.out_shape, strict=True))
        | _window(shape.kernel, shape.stride, shape.dilation, shape.top, shape.left)
        | {"groups": shape.groups, "group_words": words.size // shape.groups}
    )
    if fused_add is not None:
        params = _struct({"conv": params, "add": _add_params(fused_add, tensors, first=op.name, count=0)})
    kind = "ll_conv_add_params" if fused_add is not None else "ll_conv_params"
    return KernelCall(shape.function, kind, params, constants, shape.scratch_bytes, shape.macs)


@dataclass(frozen=True)
class _Ring:
    """The rows a depthwise kernel holds, in the terms of ``ll_depthwise_params``."""

    rows: int
    width: int
    is_3x3: bool
    weight_words: int
    kernel_rows: int

    @property
    def scratch_bytes(self) -> int:
        return 2 * self.rows * self.width + (0 if self.is_3x3 else 4 * (self.weight_words + self.kernel_rows))


def _ring(op: Conv2d, tensors: Tensors) -> _Ring:
    out, kernel_h, kernel_w, _ = op.weight.shape
    multiplier = out // op.groups
    needed = (tensors[op.name].shape[1] - 1) * op.stride[1] + (kernel_w - 1) * op.dilation[1] + 1
    is_3x3 = (kernel_h, kernel_w) == (3, 3) and op.stride[1] <= 2 and op.dilation == (1, 1) and multiplier == 1
    return _Ring(
        rows=(kernel_h - 1) * op.dilation[0] + 1,
        width=(needed + 2) // 2 * 2,  # taps are loaded in pairs: at least one halfword more than needed, and even
        is_3x3=is_3x3,
        weight_words=multiplier * kernel_h * -(-kernel_w // 2),
        kernel_rows=kernel_h,
    )


def _lower_depthwise(op: Conv2d, tensors: Tensors, symbol: str) -> KernelCall:
    source, result = tensors[op.inputs[0]], tensors[op.name]
    out, kernel_h, kernel_w, _ = op.weight.shape
    ring = _ring(op, tensors)
    weight = op.weight.reshape(out, -1)
    scaling, channels = _scaling(op, weight, tensors, symbol)
    sizes = (
        *source.shape,
        *result.shape,
        kernel_h,
        kernel_w,
        *op.stride,
        *op.dilation,
        *op.padding[:2],
        ring.rows,
        ring.width,
    )
    _check_sizes(op, *sizes)
    params = _struct(
        {"scaling": scaling, "weights": f"{symbol}_weights", "in_zero_point": source.zero_point}
        | dict(zip(("in_h", "in_w", "in_c", "out_h", "out_w"), (*source.shape, *result.shape[:2]), strict=True))
        | {"channel_multiplier": out // op.groups}
        | _window((kernel_h, kernel_w), op.stride, op.dilation, op.padding[0], op.padding[1])
        | {"ring_w": ring.width, "ring_h": ring.rows}
    )
    constants = (ConstantTable(f"{symbol}_weights", "int8_t", weight.reshape(-1)), channels)
    function = "ll_depthwise_3x3" if ring.is_3x3 else "ll_depthwise"
    macs = prod(result.shape) * kernel_h * kernel_w
    return KernelCall(function, "ll_depthwise_params", params, constants, ring.scratch_bytes, macs)


def _scaling(op: Conv2d | Linear, weight: np.ndarray, tensors: Tensors, symbol: str) -> tuple[str, ConstantTable]:
    bias = fold_zero_point(weight, op.bias, tensors[op.inputs[0]].zero_point)
    values, is_plain = scale_constants(weight, bias, op.multiplier, op.shift)
    fields = {
        "channels": f"{symbol}_channels",
        "zero_point": tensors[op.name].zero_point,
        "lower": op.clamp.lower,
        "upper": op.clamp.upper,
        "is_plain_scale": int(is_plain),
    }
    return _struct(fields), ConstantTable(f"{symbol}_channels", "int32_t", values)


# Layers without weights


def _lower_add(op: QOp, tensors: Tensors, symbol: str, fused_add: Add | None) -> KernelCall:
    assert isinstance(op, Add)
    return _simple(
        "ll_add", "ll_add_params", _add_params(op, tensors, first=op.inputs[0], count=tensors[op.name].bytes)
    )


def _add_params(op: Add, tensors: Tensors, *, first: str, count: int) -> str:
    """With the named input first: a sum commutes."""
    order = (0, 1) if op.inputs[0] == first else (1, 0)
    zero_points = [tensors[op.inputs[i]].zero_point for i in order] + [tensors[op.name].zero_point]
    multipliers, shifts = ([each[i] for i in (*order, 2)] for each in (op.multiplier, op.shift))
    # The kernel's quick way, which every addition takes whose factors are made by the specification.
    halves = [i for i in (0, 1) if (multipliers[i], shifts[i]) == (2**30, 0) and -30 <= shifts[1 - i] <= 0]
    half = halves[0] if halves and -22 <= shifts[2] <= -1 else -1
    return _struct(
        {
            "zero_point": _array(zero_points),
            "multiplier": _array(multipliers),
            "shift": _array(shifts),
            "lower": op.clamp.lower,
            "upper": op.clamp.upper,
            "half": half,
            "count": count,
        }
    )


def _lower_mul(op: QOp, tensors: Tensors, symbol: str, fused_add: Add | None) -> KernelCall:
    assert isinstance(op, Mul)
    first, second, result = (tensors[name] for name in (*op.inputs, op.name))
    repeats = second.shape == first.shape or tuple(size for size in second.shape if size > 1) in (first.shape[-1:], ())
    if first.shape != result.shape or not repeats:
        raise UnsupportedOpError(
            f"'{op.name}' (Mul, module '{op.source}') multiplies {list(first.shape)} by {list(second.shape)}; "
            "the kernel takes two of one shape, or a second of (channel,) or (1, 1, channel); give the larger one first"
        )
    fields = {
        "zero_point": _array([first.zero_point, second.zero_point, result.zero_point]),
        "multiplier": op.multiplier,
        "shift": op.shift,
        "lower": op.clamp.lower,
        "upper": op.clamp.upper,
        "is_plain_scale": int(-22 <= op.shift <= -1),
        "count": first.bytes,
        "repeat": first.bytes // second.bytes,
    }
    return _simple("ll_mul", "ll_mul_params", _struct(fields))


def _lower_pool(op: QOp, tensors: Tensors, symbol: str, fused_add: Add | None) -> KernelCall:
    assert isinstance(op, (AvgPool2d, MaxPool2d))
    source, result = tensors[op.inputs[0]].shape, tensors[op.name].shape
    dilation = op.dilation if isinstance(op, MaxPool2d) else (1, 1)
    _check_sizes(op, *source, *result, *op.kernel, *op.stride, *dilation, *op.padding)
    fields = (
        dict(zip(("in_h", "in_w", "channels", "out_h", "out_w"), (*source, *result[:2]), strict=True))
        | _window(op.kernel, op.stride, dilation, op.padding[0], op.padding[1])
        | {"lower": op.clamp.lower, "upper": op.clamp.upper}
    )
    return _simple("ll_max_pool" if isinstance(op, MaxPool2d) else "ll_avg_pool", "ll_pool_params", _struct(fields))


def _lower_mean(op: QOp, tensors: Tensors, symbol: str, fused_add: Add | None) -> KernelCall:
    assert isinstance(op, Mean)
    source, result = tensors[op.inputs[0]], tensors[op.name]
    fields = {
        "pixels": prod(source.shape[:-1]),
        "channels": source.shape[-1],
        "in_zero_point": source.zero_point,
        "zero_point": result.zero_point,
        "multiplier": op.multiplier,
        "shift": op.shift,
        "lower": op.clamp.lower,
        "upper": op.clamp.upper,
    }
    return _simple("ll_mean", "ll_mean_params", _struct(fields))


def _lower_softmax(op: QOp, tensors: Tensors, symbol: str, fused_add: Add | None) -> KernelCall:
    assert isinstance(op, Softmax)
    shape = tensors[op.name].shape
    if shape[-1] > _MOST_SOFTMAX_CLASSES:
        raise UnsupportedOpError(
            f"'{op.name}' (Softmax, module '{op.source}') is over {shape[-1]:,} classes; "
            f"the kernel sums at most {_MOST_SOFTMAX_CLASSES:,}; leave the softmax out and take the largest"
        )
    fields = {
        "rows": prod(shape[:-1]),
        "depth": shape[-1],
        "multiplier": op.multiplier,
        "shift": op.shift,
        "diff_min": op.diff_min,
    }
    return _simple("ll_softmax", "ll_softmax_params", _struct(fields))


def _lower_lookup(op: QOp, tensors: Tensors, symbol: str, fused_add: Add | None) -> KernelCall:
    assert isinstance(op, Lookup)
    table = ConstantTable(f"{symbol}_table", "int8_t", op.table)
    params = _struct({"table": table.name, "count": tensors[op.name].bytes})
    return KernelCall("ll_lookup", "ll_lookup_params", params, (table,), 0, 0)


def _lower_concat(op: QOp, tensors: Tensors, symbol: str, fused_add: Add | None) -> KernelCall:
    assert isinstance(op, Concat)
    if len(op.inputs) > _MOST_CONCAT_INPUTS:
        raise UnsupportedOpError(
            f"'{op.name}' (Concat, module '{op.source}') joins {len(op.inputs)} tensors; the kernels take up to {_MOST_CONCAT_INPUTS}; "
            "join some of them first"
        )
    shapes = [tensors[name].shape for name in op.inputs]
    axis = op.axis % len(shapes[0])
    fields = {
        "outer": prod(shapes[0][:axis]),
        "inputs": len(shapes),
        "bytes": _array([prod(shape[axis:]) for shape in shapes]),
    }
    return _simple(f"ll_concat_{len(shapes)}", "ll_concat_params", _struct(fields))


def _lower_pad(op: QOp, tensors: Tensors, symbol: str, fused_add: Add | None) -> KernelCall:
    assert isinstance(op, Pad)
    source = tensors[op.inputs[0]]
    _check_sizes(op, *source.shape, *op.padding)
    fields = (
        dict(zip(("in_h", "in_w", "channels"), source.shape, strict=True))
        | dict(zip(("top", "left", "bottom", "right"), op.padding, strict=True))
        | {"zero_point": source.zero_point}
    )
    return _simple("ll_pad", "ll_pad_params", _struct(fields))


def _lower_reshape(op: QOp, tensors: Tensors, symbol: str, fused_add: Add | None) -> KernelCall:
    return _simple("ll_copy", "ll_copy_params", _struct({"count": tensors[op.name].bytes}))


def _lower_upsample(op: QOp, tensors: Tensors, symbol: str, fused_add: Add | None) -> KernelCall:
    assert isinstance(op, UpsampleNearest)
    source = tensors[op.inputs[0]].shape
    _check_sizes(op, *source, *op.factor)
    fields = dict(zip(("in_h", "in_w", "channels", "factor_h", "factor_w"), (*source, *op.factor), strict=True))
    return _simple("ll_upsample_nearest", "ll_upsample_params", _struct(fields))


_RULES: dict[type[QOp], Callable[[Any, Tensors, str, Add | None], KernelCall]] = {
    Conv2d: _lower_convolution,
    Linear: _lower_convolution,
    Add: _lower_add,
    Mul: _lower_mul,
    AvgPool2d: _lower_pool,
    MaxPool2d: _lower_pool,
    Mean: _lower_mean,
    Softmax: _lower_softmax,
    Lookup: _lower_lookup,
    Concat: _lower_concat,
    Pad: _lower_pad,
    Reshape: _lower_reshape,
    UpsampleNearest: _lower_upsample,
}


# C


def _simple(function: str, params_type: str, params: str) -> KernelCall:
    return KernelCall(function, params_type, params, (), 0, 0)


def _window(
    kernel: tuple[int, int], stride: tuple[int, int], dilation: tuple[int, int], top: int, left: int
) -> dict[str, int]:
    names = ("kernel_h", "kernel_w", "stride_h", "stride_w", "dilation_h", "dilation_w", "pad_top", "pad_left")
    return dict(zip(names, (*kernel, *stride, *dilation, top, left), strict=True))


def _struct(fields: Mapping[str, object]) -> str:
    return "{" + ", ".join(f".{name} = {value}" for name, value in fields.items()) + "}"


def _array(values: list[int]) -> str:
    return "{" + ", ".join(map(str, values)) + "}"


def _check_sizes(op: QOp, *sizes: int) -> None:
    if max(sizes) >= 2**15:
        raise UnsupportedOpError(
            f"'{op.name}' ({type(op).__name__}, module '{op.source}') has a size of {max(sizes):,}; "
            "the kernels take up to 32,767; use smaller images"
        )

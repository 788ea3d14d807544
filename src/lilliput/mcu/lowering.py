"""From an integer operation to the call of a C kernel: which function, its parameters, its constants, its scratch memory.

A kernel is called as ``function(&params, inputs..., output, scratch);`` with the inputs in the operation's order and, where a residual
addition is fused into its producer, the skip tensor after them; the output may then be the skip tensor's own memory. Of a Crop the input is
the first byte of the part, of a Paste the output is where the piece goes. Scratch is 4-byte aligned. What each kernel does is written in
``runtime/nn``.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

from lilliput.errors import GraphError, UnsupportedOpError
from lilliput.mcu.access import can_run_in_place
from lilliput.mcu.addition import add_params
from lilliput.mcu.kernel_call import (
    ConstantTable,
    KernelCall,
    Tensors,
    array_c,
    bare_call,
    check_sizes,
    struct_c,
    window_fields,
)
from lilliput.mcu.weighted_layers import layer_scratch_bytes, lower_convolution
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
    Reshape,
    Softmax,
    UpsampleNearest,
)

__all__ = ["ConstantTable", "KernelCall", "can_fuse_add", "can_run_in_place", "lower", "scratch_bytes"]

_MOST_CONCAT_INPUTS = 8
_MOST_SOFTMAX_CLASSES = 4095
"""The sum of exponentials has 12 integer bits."""


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
    return layer_scratch_bytes(op, tensors, fused_add) if isinstance(op, (Conv2d, Linear)) else 0


def can_fuse_add(op: QOp, add: Add) -> bool:
    """Whether a kernel does this operation and the addition of its output to another tensor in one go."""
    is_host = isinstance(op, Linear) or (isinstance(op, Conv2d) and not op.is_depthwise)
    return is_host and add.inputs.count(op.name) == 1


def _lower_add(op: QOp, tensors: Tensors, symbol: str, fused_add: Add | None) -> KernelCall:
    assert isinstance(op, Add)
    return bare_call(
        "ll_add", "ll_add_params", add_params(op, tensors, first=op.inputs[0], count=tensors[op.name].bytes)
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
        "zero_point": array_c([first.zero_point, second.zero_point, result.zero_point]),
        "multiplier": op.multiplier,
        "shift": op.shift,
        "lower": op.clamp.lower,
        "upper": op.clamp.upper,
        "is_plain_scale": int(-22 <= op.shift <= -1),
        "count": first.bytes,
        "repeat": first.bytes // second.bytes,
    }
    return bare_call("ll_mul", "ll_mul_params", struct_c(fields))


def _lower_pool(op: QOp, tensors: Tensors, symbol: str, fused_add: Add | None) -> KernelCall:
    assert isinstance(op, (AvgPool2d, MaxPool2d))
    source, result = tensors[op.inputs[0]].shape, tensors[op.name].shape
    dilation = op.dilation if isinstance(op, MaxPool2d) else (1, 1)
    check_sizes(op, *source, *result, *op.kernel, *op.stride, *dilation, *op.padding)
    fields = (
        dict(zip(("in_h", "in_w", "channels", "out_h", "out_w"), (*source, *result[:2]), strict=True))
        | window_fields(op.kernel, op.stride, dilation, op.padding[0], op.padding[1])
        | {"lower": op.clamp.lower, "upper": op.clamp.upper}
    )
    return bare_call("ll_max_pool" if isinstance(op, MaxPool2d) else "ll_avg_pool", "ll_pool_params", struct_c(fields))


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
    return bare_call("ll_mean", "ll_mean_params", struct_c(fields))


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
    return bare_call("ll_softmax", "ll_softmax_params", struct_c(fields))


def _lower_lookup(op: QOp, tensors: Tensors, symbol: str, fused_add: Add | None) -> KernelCall:
    assert isinstance(op, Lookup)
    table = ConstantTable(f"{symbol}_table", "int8_t", op.table)
    params = struct_c({"table": table.name, "count": tensors[op.name].bytes})
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
        "bytes": array_c([prod(shape[axis:]) for shape in shapes]),
    }
    return bare_call(f"ll_concat_{len(shapes)}", "ll_concat_params", struct_c(fields))


def _lower_pad(op: QOp, tensors: Tensors, symbol: str, fused_add: Add | None) -> KernelCall:
    assert isinstance(op, Pad)
    source = tensors[op.inputs[0]]
    check_sizes(op, *source.shape, *op.padding)
    fields = (
        dict(zip(("in_h", "in_w", "channels"), source.shape, strict=True))
        | dict(zip(("top", "left", "bottom", "right"), op.padding, strict=True))
        | {"zero_point": source.zero_point}
    )
    return bare_call("ll_pad", "ll_pad_params", struct_c(fields))


def _lower_crop(op: QOp, tensors: Tensors, symbol: str, fused_add: Add | None) -> KernelCall:
    return _copy(op, tensors[op.name].shape, tensors[op.inputs[0]].shape, tensors[op.name].shape)


def _lower_paste(op: QOp, tensors: Tensors, symbol: str, fused_add: Add | None) -> KernelCall:
    piece = tensors[op.inputs[0]].shape
    return _copy(op, piece, piece, tensors[op.name].shape)


def _copy(op: QOp, part: tuple[int, ...], source: tuple[int, ...], result: tuple[int, ...]) -> KernelCall:
    """Rows of a part, from a map of one width to a map of another; where both are its own, one run of bytes."""
    rows, row_bytes = part[0], part[1] * part[2]
    if part[1] == source[1] == result[1]:
        rows, row_bytes = 1, rows * row_bytes
    pitches = {"from_bytes": source[1] * source[2], "to_bytes": result[1] * result[2]}
    return bare_call("ll_copy_rows", "ll_copy_rows_params", struct_c({"rows": rows, "row_bytes": row_bytes} | pitches))


def _lower_reshape(op: QOp, tensors: Tensors, symbol: str, fused_add: Add | None) -> KernelCall:
    return bare_call("ll_copy", "ll_copy_params", struct_c({"count": tensors[op.name].bytes}))


def _lower_upsample(op: QOp, tensors: Tensors, symbol: str, fused_add: Add | None) -> KernelCall:
    assert isinstance(op, UpsampleNearest)
    source = tensors[op.inputs[0]].shape
    check_sizes(op, *source, *op.factor)
    fields = dict(zip(("in_h", "in_w", "channels", "factor_h", "factor_w"), (*source, *op.factor), strict=True))
    return bare_call("ll_upsample_nearest", "ll_upsample_params", struct_c(fields))


_RULES: dict[type[QOp], Callable[[Any, Tensors, str, Add | None], KernelCall]] = {
    Conv2d: lower_convolution,
    Linear: lower_convolution,
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
    Crop: _lower_crop,
    Paste: _lower_paste,
}

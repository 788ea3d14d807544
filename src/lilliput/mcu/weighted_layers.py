"""Lowering of the layers with weights: convolution, its depthwise and fully connected special cases, linear."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np

from lilliput.mcu.addition import add_params
from lilliput.mcu.kernel_call import ConstantTable, KernelCall, Tensors, check_sizes, struct_c, window_fields
from lilliput.mcu.packing import fold_zero_point, pack_weights, scale_constants
from lilliput.mcu.scratch import (
    dense_scratch_bytes,
    depthwise_is_square,
    depthwise_ring_width,
    depthwise_scratch_bytes,
)
from lilliput.quantize.qgraph import Add, Conv2d, Linear, QOp


def lower_convolution(op: QOp, tensors: Tensors, symbol: str, fused_add: Add | None) -> KernelCall:
    """The call of a Conv2d or Linear, with the addition that follows it if one is given."""
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
        params = struct_c(common | {"out_c": shape.out_shape[2], "in_c": shape.window})
        return KernelCall(shape.function, "ll_linear_params", params, constants, shape.scratch_bytes, shape.macs)
    check_sizes(
        op, *shape.in_shape, *shape.out_shape, *shape.kernel, *shape.stride, *shape.dilation, shape.top, shape.left
    )
    params = struct_c(
        common
        | {"in_zero_point": tensors[op.inputs[0]].zero_point}
        | dict(zip(("in_h", "in_w", "in_c"), shape.in_shape, strict=True))
        | dict(zip(("out_h", "out_w", "out_c"), shape.out_shape, strict=True))
        | window_fields(shape.kernel, shape.stride, shape.dilation, shape.top, shape.left)
        | {"groups": shape.groups, "group_words": words.size // shape.groups}
    )
    if fused_add is not None:
        params = struct_c({"conv": params, "add": add_params(fused_add, tensors, first=op.name, count=0)})
    kind = "ll_conv_add_params" if fused_add is not None else "ll_conv_params"
    return KernelCall(shape.function, kind, params, constants, shape.scratch_bytes, shape.macs)


def layer_scratch_bytes(op: Conv2d | Linear, tensors: Tensors, fused_add: Add | None) -> int:
    """What the layer's kernel needs besides inputs and output."""
    if isinstance(op, Conv2d) and op.is_depthwise:
        return _ring(op, tensors).scratch_bytes
    return _convolution(op, tensors, fused_add).scratch_bytes


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
        """None for one vector: its codes are read where they lie."""
        if self.is_one_vector:
            return 0
        return dense_scratch_bytes(self.window, self.group_in, self.out_shape[2] if self.fused else 0)

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


@dataclass(frozen=True)
class _Ring:
    """The rows a depthwise kernel holds, in the terms of ``ll_depthwise_params``."""

    rows: int
    width: int
    is_square: bool
    scratch_bytes: int


def _ring(op: Conv2d, tensors: Tensors) -> _Ring:
    out, kernel_h, kernel_w, _ = op.weight.shape
    multiplier = out // op.groups
    out_width, stride = tensors[op.name].shape[1], op.stride[1]
    return _Ring(
        rows=(kernel_h - 1) * op.dilation[0] + 1,
        width=depthwise_ring_width(out_width, kernel_w, stride, op.dilation[1]),
        is_square=bool(depthwise_is_square(kernel_h, kernel_w, stride, *op.dilation, multiplier)),
        scratch_bytes=depthwise_scratch_bytes(out_width, kernel_h, kernel_w, stride, *op.dilation, multiplier),
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
    check_sizes(op, *sizes)
    params = struct_c(
        {"scaling": scaling, "weights": f"{symbol}_weights", "in_zero_point": source.zero_point}
        | dict(zip(("in_h", "in_w", "in_c", "out_h", "out_w"), (*source.shape, *result.shape[:2]), strict=True))
        | {"channel_multiplier": out // op.groups}
        | window_fields((kernel_h, kernel_w), op.stride, op.dilation, op.padding[0], op.padding[1])
        | {"ring_w": ring.width, "ring_h": ring.rows}
    )
    constants = (ConstantTable(f"{symbol}_weights", "int8_t", weight.reshape(-1)), channels)
    function = f"ll_depthwise_{kernel_h}x{kernel_w}" if ring.is_square else "ll_depthwise"
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
    return struct_c(fields), ConstantTable(f"{symbol}_channels", "int32_t", values)

"""Bytes that the C kernels need besides their inputs and outputs, as arithmetic: for whole numbers and for arrays of them."""

from __future__ import annotations

from typing import Any


def dense_scratch_bytes(window: Any, group_in: Any, fused_out: Any = 0) -> Any:
    """Of a convolution or a matrix product: two windows in 16 bits, one in 8 where channels do not fill words, two sums before an addition.

    Args:
        window: codes under the kernel, in one group.
        group_in: input channels of a group.
        fused_out: output channels where a residual addition is fused into the layer, else 0.
    """
    whole = -(-window // 4) * 4
    return 4 * whole + whole * (group_in % 4 != 0) + 2 * fused_out


def depthwise_scratch_bytes(
    out_width: Any,
    kernel_h: Any,
    kernel_w: Any,
    stride: Any,
    dilation_h: Any = 1,
    dilation_w: Any = 1,
    multiplier: Any = 1,
) -> Any:
    """Of a depthwise convolution: a ring of input rows in 16 bits, and the filter in words."""
    width = depthwise_ring_width(out_width, kernel_w, stride, dilation_w)
    rows = (kernel_h - 1) * dilation_h + 1
    is_square = depthwise_is_square(kernel_h, kernel_w, stride, dilation_h, dilation_w, multiplier)
    # A square filter: its rows in pairs, at stride 1 also in pairs that start one tap later; all but one row twice.
    row_words = (stride == 1) * (kernel_w - 1) + (stride != 1) * ((kernel_w + 1) // 2)
    square_words = (2 * kernel_h - 1) * row_words
    # Any other: its rows in pairs, and where each begins in the ring.
    other_words = multiplier * kernel_h * -(-kernel_w // 2) + kernel_h
    return 2 * rows * width + 4 * (is_square * square_words + (1 - is_square) * other_words)


def depthwise_ring_width(out_width: Any, kernel_w: Any, stride: Any, dilation_w: Any = 1) -> Any:
    """Halfwords of a row: taps are loaded in pairs, so at least one more than the windows reach, and even."""
    needed = (out_width - 1) * stride + (kernel_w - 1) * dilation_w + 1
    return (needed + 2) // 2 * 2


def depthwise_is_square(
    kernel_h: Any, kernel_w: Any, stride: Any, dilation_h: Any = 1, dilation_w: Any = 1, multiplier: Any = 1
) -> Any:
    """Whether a kernel for plain windows of 3x3, 5x5 or 7x7 takes it (1 or 0)."""
    is_plain = (dilation_h == 1) & (dilation_w == 1) & (multiplier == 1) & (stride <= 2)
    return (((kernel_h == 3) | (kernel_h == 5) | (kernel_h == 7)) & (kernel_w == kernel_h) & is_plain) * 1

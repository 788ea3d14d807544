"""The operations of an integer network in floating point, with the published straight-through derivatives.

Tensors are channels last with a batch axis: (batch, height, width, channel) or (batch, feature).

Source: Lin et al. 2022 (arXiv:2206.15472), published simulation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lilliput.quantize.arithmetic import ADD_LEFT_SHIFT
from lilliput.quantize.qgraph import Add, AvgPool2d, Clamp, Conv2d, Linear, Mean, QOp, QTensor, Reshape


def layer(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    op: Conv2d | Linear,
    input_tensor: QTensor,
    output_tensor: QTensor,
    factor: Tensor,
    is_rounded: bool,
) -> Tensor:
    """A convolution or linear layer with everything up to its clamp.

    Args:
        x: codes.
        weight: codes that are whole where ``is_rounded``; of a convolution (out, in, row, column).
        bias: codes, not rounded.
        op: the layer; its own weights are not read.
        input_tensor: of which ``x`` is.
        output_tensor: of which the result is.
        factor: input scale * weight scale / output scale, one an output channel.
        is_rounded: the result is rounded half to even.
    """
    return _Layer.apply(x, weight, bias, op, input_tensor, output_tensor, factor, is_rounded)


def rounded(x: Tensor) -> Tensor:
    """Half to even, with derivative 1."""
    return _Round.apply(x)


def identity(x: Tensor) -> Tensor:
    """What stands in for a rounding that is switched off."""
    return x


class _Round(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.round()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0]


class _Layer(torch.autograd.Function):
    """One function from codes to codes, so that little is kept: the mask, and the input only where the weight is trained."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        op: Conv2d | Linear,
        input_tensor: QTensor,
        output_tensor: QTensor,
        factor: Tensor,
        is_rounded: bool,
    ) -> Tensor:
        centred = x - input_tensor.zero_point
        if isinstance(op, Conv2d):
            top, left, bottom, right = op.padding
            padded = F.pad(centred, (0, 0, left, right, top, bottom)) if any(op.padding) else centred
            result = F.conv2d(_first(padded), weight, None, op.stride, 0, op.dilation, op.groups)
            total = result.permute(0, 2, 3, 1)
        else:
            padded = centred
            total = F.linear(padded, weight)
        if is_rounded:
            total = total.round()  # whole already, unless the sum left float32's 24 bits
        total = total.add_(bias).mul_(factor)
        if is_rounded:
            total.round_()
        total.add_(output_tensor.zero_point)
        clamped = total.clamp(op.clamp.lower, op.clamp.upper)
        ctx.op, ctx.shape = op, padded.shape
        ctx.save_for_backward(
            total == clamped,
            factor,
            weight if ctx.needs_input_grad[0] else None,
            padded if ctx.needs_input_grad[1] else None,
        )
        return clamped

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        inside, factor, weight, padded = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        accumulated = gradients[0] * inside * factor
        bias_gradient = accumulated.sum(tuple(range(accumulated.ndim - 1))) if needs_bias else None
        op = ctx.op
        if isinstance(op, Linear):
            flat = accumulated.reshape(-1, accumulated.shape[-1])
            x_gradient = accumulated @ weight if needs_x else None
            weight_gradient = flat.T @ padded.reshape(len(flat), -1) if needs_weight else None
        else:
            x_gradient, weight_gradient = _conv_gradients(op, accumulated, ctx.shape, weight, padded)
        return x_gradient, weight_gradient, bias_gradient, None, None, None, None, None


def _conv_gradients(
    op: Conv2d, accumulated: Tensor, shape: Sequence[int], weight: Tensor | None, padded: Tensor | None
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of the input, where the weight is given, and of the weight, where the input is."""
    if weight is None and padded is None:
        return None, None
    # What is not needed is there by its shape alone.
    out, kernel_height, kernel_width, per_group = op.weight.shape
    as_weight = (
        accumulated.new_empty(1).expand(out, per_group, kernel_height, kernel_width) if weight is None else weight
    )
    as_input = accumulated.new_empty(1).expand(*shape) if padded is None else padded
    x_gradient, weight_gradient, _ = torch.ops.aten.convolution_backward(
        _first(accumulated),
        _first(as_input),
        as_weight,
        None,
        list(op.stride),
        [0, 0],
        list(op.dilation),
        False,
        [0, 0],
        op.groups,
        [weight is not None, padded is not None, False],
    )
    if x_gradient is not None:
        top, left, bottom, right = op.padding
        _, height, width, _ = shape
        x_gradient = x_gradient.permute(0, 2, 3, 1)[:, top : height - bottom, left : width - right]
    return x_gradient, weight_gradient


def _clamped(x: Tensor, clamp: Clamp) -> Tensor:
    """Its derivative is 1 where x lies within, ends included."""
    return x.clamp(clamp.lower, clamp.upper)


def _real(multiplier: int, shift: int) -> float:
    return multiplier * 2.0 ** (shift - 31)


def _add(op: Add, inputs: Sequence[Tensor], x: Sequence[QTensor], y: QTensor, round_: Callable[..., Tensor]) -> Tensor:
    # The third factor carries the 20 bits that the first two sums are raised by: together s1 / sy and s2 / sy.
    last = _real(op.multiplier[2], op.shift[2]) * 2.0**ADD_LEFT_SHIFT
    first, second = (_real(op.multiplier[index], op.shift[index]) * last for index in range(2))
    total = (inputs[0] - x[0].zero_point) * first + (inputs[1] - x[1].zero_point) * second
    return _clamped(round_(total) + y.zero_point, op.clamp)


def _mean(
    op: Mean, inputs: Sequence[Tensor], x: Sequence[QTensor], y: QTensor, round_: Callable[..., Tensor]
) -> Tensor:
    total = (inputs[0] - x[0].zero_point).sum((1, 2)) * _real(op.multiplier, op.shift)
    # The published mean is of codes, zero point and all, which decides where ties go.
    return _clamped(round_(total + y.zero_point), op.clamp).reshape(-1, *y.shape)


def _avg_pool(
    op: AvgPool2d, inputs: Sequence[Tensor], x: Sequence[QTensor], y: QTensor, round_: Callable[..., Tensor]
) -> Tensor:
    top, left, bottom, right = op.padding
    images = _first(inputs[0])
    padded, inside = (F.pad(each, (left, right, top, bottom)) for each in (images, torch.ones_like(images[:1, :1])))
    total, share = (F.avg_pool2d(each, op.kernel, op.stride) for each in (padded, inside))
    return _clamped(round_((total / share).permute(0, 2, 3, 1)), op.clamp)


def _reshape(
    op: Reshape, inputs: Sequence[Tensor], x: Sequence[QTensor], y: QTensor, round_: Callable[..., Tensor]
) -> Tensor:
    return inputs[0].reshape(-1, *y.shape)


RULES: dict[type[QOp], Callable[..., Tensor]] = {Add: _add, Mean: _mean, AvgPool2d: _avg_pool, Reshape: _reshape}
"""Operations without weights that gradients pass; all others run on integers, before the first trained parameter."""


def _first(x: Tensor) -> Tensor:
    """The same memory with the channel axis second, as torch numbers it."""
    return x.permute(0, 3, 1, 2)

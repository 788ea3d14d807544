"""Affine ladders: 2**b equal steps over the range of some weights.

With an integer zero point the range is widened to hold zero, and zero is a level (what integer toolchains need, and what SplitQuant's
masked tensors need so that a weight gets no error from the two clusters that it isn't in). With a float start the ladder runs from the
least to the greatest weight and spends no code on zero.

Source: Jacob et al. 2018 (arXiv:1712.05877), section 2.1, for the integer zero point; Song and Lin 2025 (arXiv:2501.12428) with scale
S = (2**b - 1) / (max - min): our step is 1 / S, and our codes are theirs plus 2**(b-1).
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int16, Shaped
from torch import Tensor

from lilliput.errors import DataError
from lilliput.quantize.lowbit.ladders import Ladders, look_up

# A set whose weights are equal, or all but, needs no step: 1 keeps everything finite. Weights come scaled to a maximum of 2**13 to 2**14.
LEAST_STEP = 2.0**-24


def zero_ladders(lower: Tensor, upper: Tensor, bits: int, dtype: torch.dtype) -> Ladders:
    """Ladders over [min(lower, 0), max(upper, 0)] with an integer zero point.

    Args:
        lower: of each set and ladder (rows, groups, k); above ``upper`` where a ladder has no members.
        upper: of the same.
        bits: 1 to 8.
        dtype: of the stored steps; codes are chosen for steps as stored.
    """
    lower, upper = lower.clamp(max=0.0).double(), upper.clamp(min=0.0).double()
    step = as_stored(_step(lower, upper, bits), dtype)
    zero = torch.round(-lower / step.double()).clamp(0, 2**bits - 1)
    return Ladders(bits, step, None, zero.to(torch.uint8))


def start_ladders(lower: Tensor, upper: Tensor, bits: int, dtype: torch.dtype) -> Ladders:
    """Ladders over [lower, upper] with a float start; step 1 and start 0 where a ladder has no members."""
    empty = lower > upper
    lower, upper = lower.masked_fill(empty, 0).double(), upper.masked_fill(empty, 0).double()
    return Ladders(bits, as_stored(_step(lower, upper, bits), dtype), as_stored(lower, dtype), None)


def symmetric_ladders(lower: Tensor, upper: Tensor, bits: int, dtype: torch.dtype) -> Ladders:
    """Ladders whose zero is the middle code 2**(bits-1), as far below zero as the larger side needs."""
    largest = torch.maximum(lower.abs(), upper.abs()).double()
    step = largest / max(2 ** (bits - 1) - 0.5, 0.5)
    step = as_stored(torch.where(step > LEAST_STEP, step, 1.0), dtype)
    zero = torch.full(step.shape, 2 ** (bits - 1), dtype=torch.uint8, device=step.device)
    return Ladders(bits, step, None, zero)


def nearest_symbols(
    weight: Float[Tensor, "rows columns"], ladders: Ladders, ladder: Shaped[Tensor, "rows columns"], group_size: int
) -> Int16[Tensor, "rows columns"]:
    """The symbol of the nearest level on each weight's own ladder.

    Args:
        weight: what to quantize.
        ladders: with steps.
        ladder: which ladder of its set each weight takes, 0 to k - 1.
        group_size: columns that share a set.
    """
    assert ladders.step is not None, "ladders of one level have no codes"
    step = look_up(ladder, ladders.step.float(), group_size)
    position = look_up(ladder, ladders.position.float(), group_size)
    codes = torch.round(weight / step).add_(position) if ladders.zero is not None else (weight - position).div_(step)
    codes = codes.round_().clamp_(0, 2**ladders.bits - 1)
    return (ladder.to(torch.int16) << ladders.bits) + codes.to(torch.int16)


def as_stored(values: Float[Tensor, "*shape"], dtype: torch.dtype) -> Float[Tensor, "*shape"]:
    """Rounded to the type they are stored in.

    Raises:
        DataError: a value is too large for it.
    """
    stored = values.to(dtype)
    if not bool(torch.isfinite(stored).all()):
        largest = values.abs().max().item()
        raise DataError(f"a step or start of {largest:.4g} is too large for float16 (65504); try scale_dtype='float32'")
    return stored


def _step(lower: Tensor, upper: Tensor, bits: int) -> Tensor:
    step = (upper - lower) / (2**bits - 1)
    return torch.where(step > LEAST_STEP, step, 1.0)

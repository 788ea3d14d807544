"""Ladders fitted to their members by least squares.

A range that ends at its members is not what errs least. Levels half a step inside the ends serve evenly spread members better, and where
most members are near zero (weights with heavy tails) a level at zero does, which only a range that holds zero has. So: take the better
of both ranges for each ladder, then alternate between codes for given steps and the best start and step for given codes (a line through
members over codes), and keep the best that was seen, as it will be stored.

Source: ours; the alternation is Lloyd's, on a ladder in place of free levels.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from lilliput.quantize.lowbit.affine import LEAST_STEP, as_stored
from lilliput.quantize.lowbit.ladders import Ladders

_ROUNDS = 4


def best_fit(
    weight: Float[Tensor, "rows columns"],
    cluster: UInt8[Tensor, "rows columns"],
    candidates: list[Ladders],
    group_size: int,
    dtype: torch.dtype,
) -> Ladders:
    """Ladders with a float start, none worse for its members than a candidate.

    Args:
        weight: what to quantize.
        cluster: which ladder of its set each weight takes.
        candidates: ladders of equal shape and bits, to start from.
        group_size: columns that share a set.
        dtype: of the stored starts and steps; errors are those of stored ones.
    """
    bits, shape = candidates[0].bits, candidates[0].position.shape
    member, w = _flat_index(cluster, shape, group_size), weight.flatten()

    def codes_of(start: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
        """The code of each weight, and the squared error of each ladder."""
        own_start, own_step = start.float().flatten()[member], step.float().flatten()[member]
        codes = ((w - own_start) / own_step).round_().clamp_(0, 2**bits - 1)
        return codes, total((w - own_start - own_step * codes).square_())

    def total(values: Tensor) -> Tensor:
        """The sum over each ladder's members, float64."""
        return torch.bincount(member, values, minlength=shape.numel()).double().reshape(shape)

    best = _start_and_step(candidates[0], dtype)
    codes, least = codes_of(*best)
    for candidate in candidates[1:]:
        other = _start_and_step(candidate, dtype)
        other_codes, error = codes_of(*other)
        better = error < least
        best = torch.where(better, other[0], best[0]), torch.where(better, other[1], best[1])
        least, codes = torch.where(better, error, least), torch.where(better.flatten()[member], other_codes, codes)
    count, sum_w = total(torch.ones_like(w)), total(w)
    start, step = best
    for _ in range(_ROUNDS if bits > 0 else 0):
        # The line w = start + step * code through the members, in the least squares.
        sum_q, sum_qq, sum_wq = total(codes), total(codes.square()), total(w * codes)
        spread = count * sum_qq - sum_q.square()
        slope = (count * sum_wq - sum_q * sum_w) / spread
        slope = torch.where((spread > 0) & (slope > LEAST_STEP), slope, step.double())
        intercept = torch.where(count > 0, (sum_w - slope * sum_q) / count, start.double())
        start, step = as_stored(intercept, dtype), as_stored(slope, dtype)
        codes, error = codes_of(start, step)
        better = error < least
        if not bool(better.any()):
            break
        best = torch.where(better, start, best[0]), torch.where(better, step, best[1])
        least = torch.where(better, error, least)
    return Ladders(bits, best[1], best[0], None)


def _start_and_step(ladders: Ladders, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    assert ladders.step is not None, "ladders of one level have nothing to fit"
    position = ladders.position
    return position if ladders.zero is None else as_stored(
        -position.double() * ladders.step.double(), dtype
    ), ladders.step


def _flat_index(cluster: Tensor, shape: torch.Size, group_size: int) -> Int64[Tensor, " weights"]:
    """Which of all ladders each weight takes."""
    rows, columns = cluster.shape
    set_rows, groups, k = shape
    group = torch.arange(columns, device=cluster.device) // group_size * k
    row = torch.arange(rows, device=cluster.device)[:, None] * (groups * k if set_rows > 1 else 0)
    return (cluster.long() + group + row).flatten()

"""Certified radii: how far a point may be moved before its class could change, by Lipschitz constants of the margins.

Along the segment from the centre to a point at distance r, margin j falls by at most the integral of its local Lipschitz constant,

    margin_j(x) >= margin_j(x0) - sum_k (r_k - r_(k-1)) L_j(r_k),   0 = r_0 < r_1 < ... < r_K = r,

because the k-th part of the segment lies in the ball of radius r_k. While all margins stay above 0 the class is the same.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor, nn

from lilliput.certify.interval import value_interval
from lilliput.certify.lipschitz import check_centres, check_options, output_rows, prepared
from lilliput.certify.method import METHODS, Problem
from lilliput.certify.region import Norm, Region
from lilliput.certify.rounding import ball_box, least_of
from lilliput.errors import ConfigError
from lilliput.graph import Graph

_ROUNDING = {torch.float64: 1e-9, torch.float32: 1e-4}
"""Relative; far above what sums of a network's size can be off by, far below what anybody would notice."""
_LEAST_SHARE = 2.0**-12
"""Of ``max_eps``: a radius below this times the tolerance is 0."""
_FIRST_SHARE = 2.0**-4
"""Of the most that could be certified: where the search begins."""
_MOST_STEPS = 64
_CENTRES_AT_ONCE = 256
_CONSTANTS = 16
"""Lipschitz constants that a search takes, about."""

Rate = Callable[[Tensor, Tensor], Tensor]
"""(indices of centres, a radius for each) to the Lipschitz constants of their margins, (centres, rows)."""


def certified_radius(
    model: nn.Module | Graph,
    x0: Tensor,
    y: int | Tensor,
    norm: str = "inf",
    *,
    max_eps: float | int = 1.0,
    clip: tuple[float | int, float | int] | None = None,
    method: str = "crown",
    tolerance: float = 0.02,
    alpha_steps: int = 20,
    time_limit: float | int = 30.0,
    total_time_limit: float | int | None = None,
    seed: int = 0,
    dtype: str = "float64",
    rigorous: bool = False,
) -> float | Tensor:
    """A radius within which no point gets another class than y, as large as the method can show.

    Args:
        model: a classifier in evaluation mode; or its graph, traced with batch 1. The class is its largest output.
        x0: one centre, of the network's input shape without the batch, or a batch of them with it.
        y: class of each centre.
        norm: of the perturbation: "inf", "1" or "2".
        max_eps: search no further than this, in the units of the network's input.
        clip: least and greatest value that an input can have; the ball is cut to it.
        method: of the Lipschitz constants, a name of ``METHODS``.
        tolerance: relative; the search ends when a step of this share of the radius fails.
        alpha_steps: for methods that have them.
        time_limit: seconds for each constant, for methods that refine.
        total_time_limit: seconds for all centres together. When they are over, the radii are what has been certified until then; methods
            that refine get an even share for each constant. A constant that has been begun is finished.
        seed: for methods with random choices.
        dtype: "float64" or "float32" for all arithmetic.
        rigorous: the radius holds in real arithmetic for the weights as they are stored, as ``local_lipschitz`` says it; without it, a
            billionth is left for rounding (in float64).
    Returns:
        For one centre a number, for a batch a tensor (centres,), in the units of the network's input; 0 where the centre itself is
        not of class y, or where two classes tie.
    Raises:
        ConfigError, DataError, GraphError, UnsupportedOpError: as ``local_lipschitz``.
    Source: ours. Radii r <= margin / L(r) are Hein and Andriushchenko 2017 (arXiv:1705.08475), theorem 2.1; the sum over parts of the
        segment certifies at least as much, since L grows with r.

    >>> model = nn.Sequential(nn.Linear(1, 2, bias=False))
    >>> _ = model[0].weight.data.copy_(torch.tensor([[1.0], [-1.0]]))
    >>> round(certified_radius(model, torch.tensor([0.5]), y=0), 6)
    0.5
    """
    check_options(float(max_eps), norm, clip, method, dtype, rigorous, "margins", y)
    if not 0 < tolerance < 1:
        raise ConfigError(f"tolerance={tolerance}: must be between 0 and 1; try tolerance=0.02")
    check_total_time_limit(total_time_limit)
    started = time.perf_counter()
    precision = torch.float64 if dtype == "float64" else torch.float32
    network, centres, is_single = prepared(model, x0, precision, None, rigorous)
    check_centres(centres, clip)
    rows = output_rows(network, "margins", y, len(centres))
    flat = centres.flatten(1)
    problem = Problem(
        network,
        Region.ball(flat, 0.0, cast(Norm, norm), rigorous=rigorous),
        rows,
        alpha_steps,
        float(time_limit),
        seed,
    )
    radii: list[Tensor] = []
    with torch.no_grad():
        for start in range(0, len(flat), _CENTRES_AT_ONCE):
            some = slice(start, start + _CENTRES_AT_ONCE)
            outputs, _ = network.run(centres[some])
            margins = (rows[some] @ outputs[..., None]).squeeze(-1)
            if rigorous:
                margins = least_of(rows[some], value_interval(network, problem.region.take(some)))
            deadline, share = _deadline(started, total_time_limit, float(time_limit), len(radii), len(flat))
            rate = _rate(replace(problem, time_limit=share), flat[some], rows[some], clip, method)
            # A centre need not win by more than sums can be off.
            least = _ROUNDING[precision] * (1 + outputs.abs().amax(1, keepdim=True))
            radii.append(_search(rate, margins, least.expand_as(margins), float(max_eps), tolerance, deadline))
    found = torch.cat(radii) * (1 - _ROUNDING[precision])
    return float(found[0]) if is_single else found


def check_total_time_limit(seconds: float | int | None) -> None:
    """Refuse a limit that is none."""
    if seconds is not None and not (math.isfinite(seconds) and seconds >= 0):
        raise ConfigError(f"total_time_limit={seconds}: must be seconds, 0 or more, or None for no limit")


def _deadline(started: float, total: float | int | None, each: float, batch: int, centres: int) -> tuple[float, float]:
    """When the search of a batch of centres ends, and the seconds for each of its constants."""
    if total is None:
        return math.inf, each
    batches = -(-centres // _CENTRES_AT_ONCE) - batch
    now = time.perf_counter()
    seconds = max(started + total - now, 0.0) / batches
    return now + seconds, min(each, seconds / _CONSTANTS)


def _rate(
    problem: Problem, centres: Tensor, rows: Tensor, clip: tuple[float | int, float | int] | None, name: str
) -> Rate:
    norm, is_counted = problem.region.norm, problem.network.rigorous

    def rate(some: Tensor, radii: Tensor) -> Tensor:
        if norm == "inf":  # the ball is its box, and every box may have a radius of its own
            largest = Region.ball(centres[some], float(radii.max()), norm, clip, rigorous=is_counted)
            if is_counted:
                lower, upper = ball_box(centres[some], radii[:, None], clip)
            else:
                lower, upper = centres[some] - radii[:, None], centres[some] + radii[:, None]
            region = replace(
                largest, lower=torch.maximum(lower, largest.lower), upper=torch.minimum(upper, largest.upper)
            )
            return METHODS[name](replace(problem, region=region, rows=rows[some])).norm
        found = rows.new_empty((len(some), rows.shape[1]))
        for radius in radii.unique().tolist():
            same = radii == radius
            region = Region.ball(centres[some[same]], radius, norm, clip, rigorous=is_counted)
            found[same] = METHODS[name](replace(problem, region=region, rows=rows[some[same]])).norm
        return found

    return rate


def _search(rate: Rate, margins: Tensor, least: Tensor, max_eps: float, tolerance: float, deadline: float) -> Tensor:
    """Radius reached from 0, from the inside, for bounds are cheap where few gates are undecided, in steps of an eighth to a quarter of it.

    After a step that cannot be certified the next one goes where the margins should end if the constants grew exponentially in between.
    Constants hold in every smaller ball too, so those of the failed step tell in the end how far what is left of the margins goes.
    """
    radius, left = torch.zeros_like(margins[:, 0]), margins.clone()
    is_open = (left > least).all(1)
    if not bool(is_open.any()) or time.perf_counter() >= deadline:
        return radius
    fence, beyond, inner = torch.full_like(radius, torch.inf), torch.zeros_like(margins), torch.zeros_like(margins)
    some = is_open.nonzero().squeeze(1)
    # Already with the gradients at the centres no more than this could be certified.
    inner[some] = rate(some, radius[some])
    most = (left[some] / inner[some]).amin(1).clamp(max=max_eps)
    step = torch.zeros_like(radius)
    # Halves of max_eps, so that centres share radii: outside l_inf each radius is a call of its own.
    step[some] = max_eps * torch.exp2(torch.floor(torch.log2(most * _FIRST_SHARE / max_eps)))
    for _ in range(_MOST_STEPS):
        is_open &= (radius < max_eps) & (step > tolerance * radius.clamp(min=_LEAST_SHARE * max_eps))
        some = is_open.nonzero().squeeze(1)
        if not len(some) or time.perf_counter() >= deadline:
            break
        there = (radius[some] + step[some]).clamp(max=max_eps)
        found = rate(some, there)
        remaining = left[some] - (there - radius[some])[:, None] * found * (1 + _ROUNDING[found.dtype])
        is_certified = (remaining > least[some]).all(1)  # False for NaN, as it must be
        left[some] = torch.where(is_certified[:, None], remaining, left[some])
        radius[some] = torch.where(is_certified, there, radius[some])
        fence[some] = torch.where(is_certified, fence[some], there)
        beyond[some] = torch.where(is_certified[:, None], beyond[some], found)
        inner[some] = torch.where(is_certified[:, None], found, inner[some])
        grown = torch.where(2 * step[some] <= radius[some] / 4, 2.0, 1.0) * step[some]
        gap = fence[some] - radius[some]
        share = _promising(left[some] - least[some], inner[some], beyond[some], gap)
        step[some] = torch.where(fence[some].isfinite(), share * gap, grown)
    rest = ((left - least) / (beyond * (1 + _ROUNDING[beyond.dtype]))).amin(1).clamp(min=0)
    rest = torch.where(rest.isfinite() & fence.isfinite(), torch.minimum(rest, fence - radius), 0.0)
    assert math.isfinite(float((radius + rest).sum()))
    return radius + rest


def _promising(left: Tensor, inner: Tensor, beyond: Tensor, gap: Tensor) -> Tensor:
    """Share of the way to the fence, in sixteenths from 1 to 15, after which the margins should just not be used up."""
    share = torch.arange(1, 16, dtype=left.dtype, device=left.device) / 16
    between = inner[..., None] ** (1 - share) * beyond[..., None] ** share
    is_left = (left[..., None] > share * gap[:, None, None] * between).all(1)
    return (is_left.sum(-1).clamp(min=1)) / 16

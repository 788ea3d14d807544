"""Bounds of the gates' inputs with trained lines, for tighter masks; then CROWN's Jacobian chain.

The slope of the line below each undecided gate is free. Adam lowers the widths of the gates' inputs; every step's bounds are sound, so each
neuron keeps the intersection over all of them.

Source: Xu et al. 2021 (alpha-CROWN, arXiv:2011.13824) with the steps of Shi et al. 2022: rate 0.5, times 0.98 a step, an early stop after
10 without gain. Ours differs: the objective is the width of the inputs, not the outputs' margins, and one pass serves all rows.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lilliput.certify.interval import intersect
from lilliput.certify.network import Network
from lilliput.certify.preactivation import Preactivations, preactivations
from lilliput.certify.problem import Answer, Problem
from lilliput.certify.propagated import answer_from
from lilliput.certify.region import Region

_RATE, _DECAY, _PATIENCE = 0.5, 0.98, 10


def alpha(problem: Problem) -> Answer:
    """CROWN with masks from trained lines; never looser than CROWN with its own."""
    network, region = problem.network, problem.region
    start = preactivations(network, region)
    loose, bounds = answer_from(problem, start)
    trained = trained_preactivations(network, region, start, problem.alpha_steps)
    tight, _ = answer_from(problem, trained, within=bounds)
    return Answer(torch.minimum(loose.norm, tight.norm), tight.jacobian)


def trained_preactivations(network: Network, region: Region, start: Preactivations, steps: int) -> Preactivations:
    """The bounds cut with those of every step of training.

    Args:
        start: bounds that hold already.
        steps: of Adam, at most.
    """
    # Nothing is to be gained where only the first gate's inputs are open, for those are exact.
    if steps <= 0 or len(network.gates) < 2:
        return start
    best, least, patience = start, _width(network, start), 0
    slopes: dict[int, Tensor] = {}
    for step, lower, upper in zip(network.gates, start.lower, start.upper, strict=True):
        slopes[step.index] = step.gate.lines(lower, upper)[0].clone().requires_grad_()
    limits = [(low.clone(), high.clone()) for low, high in start.slopes(network)]
    with torch.enable_grad():
        optimizer = torch.optim.Adam(slopes.values(), lr=_RATE)
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, _DECAY)
        for _ in range(steps):
            optimizer.zero_grad()
            # Not within the best: a bound that is worse than one before would have no gradient to recover by.
            found = preactivations(network, region, lower_slopes=slopes)
            width = _objective(network, found)
            if not (width.requires_grad and bool(width.isfinite())):
                break
            width.backward()
            optimizer.step()
            schedule.step()
            with torch.no_grad():
                for slope, (low, high) in zip(slopes.values(), limits, strict=True):
                    slope.copy_(torch.maximum(torch.minimum(slope, high), low))
            best = _both(best, found)
            now = _width(network, best)
            patience = 0 if now < least * (1 - 1e-4) else patience + 1
            least = min(least, now)
            if patience >= _PATIENCE:
                break
    if not best.lower[0].isfinite().all():
        return start
    # The best masks together give better lines than any step had.
    return _both(best, preactivations(network, region, within=best))


def _both(a: Preactivations, b: Preactivations) -> Preactivations:
    pairs = [
        intersect((low, high), (lower.detach(), upper.detach()))
        for low, high, lower, upper in zip(a.lower, a.upper, b.lower, b.upper, strict=True)
    ]
    return Preactivations(tuple(pair[0] for pair in pairs), tuple(pair[1] for pair in pairs))


def _objective(network: Network, bounds: Preactivations) -> Tensor:
    """Sum of the widths of all inputs that leave their gate undecided."""
    total = bounds.lower[0].new_zeros(())
    for lower, upper, (least, greatest) in zip(bounds.lower, bounds.upper, bounds.slopes(network), strict=True):
        total = total + torch.where(least < greatest, upper - lower, 0.0).sum()
    return total


def _width(network: Network, bounds: Preactivations) -> float:
    with torch.no_grad():
        return float(_objective(network, bounds))

"""Bounds of the gates' inputs with trained lines, for tighter masks; then CROWN's Jacobian chain.

The slope of the line below each undecided gate is free, and any slope is sound. Adam lowers the upper bounds of an input and of its
negative, gate by gate: the earlier gates' bounds are then as tight as they will be. Each bounded side of each neuron has slopes of its
own, so no neuron pays for another's gain, and what is approached is the optimum of the triangle relaxation's linear program.

Source: Xu et al. 2021 (alpha-CROWN, arXiv:2011.13824), where slopes are separate for each bounded neuron too; that the optimum is the
linear program's, Salman et al. 2019 (arXiv:1902.08722). Ours differs: the objective is the inputs themselves, not the outputs' margins,
gates are trained one after the other, and one training serves all rows of the Jacobian.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lilliput.certify.charges import ValueCharges
from lilliput.certify.interval import Interval, intersect, value_interval
from lilliput.certify.network import Activation, Network
from lilliput.certify.preactivation import Lines, Preactivations, preactivations, rows_per_chunk, upper_bound
from lilliput.certify.problem import Answer, Problem
from lilliput.certify.propagated import answer_from
from lilliput.certify.region import Region

_RATE, _DECAY = 0.3, 0.95
_PATIENCE, _GAIN = 5, 2e-4
"""Steps without a gain of this share of the widths, after which training stops."""


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
        steps: of Adam for each gate, at most.
    """
    # Nothing is to be gained where only the first gate's inputs are open, for those are exact.
    if steps <= 0 or len(network.gates) < 2 or not all(bool(lower.isfinite().all()) for lower in start.lower):
        return start
    bounds: list[Interval] = []
    for step in network.gates:
        z = (start.lower[step.index], start.upper[step.index])
        least, greatest = step.gate.slope_range(*z)
        units = (least < greatest).any(0).nonzero().squeeze(1)
        if bounds and len(units):
            lower, upper = z[0].clone(), z[1].clone()
            # Each row is held for every earlier gate, with what its gradient needs.
            for some in units.split(rows_per_chunk(network, 4 * len(z[0]) * len(bounds))):
                lower[:, some], upper[:, some] = _trained(
                    network, region, step, (lower[:, some], upper[:, some]), some, bounds, steps
                )
            z = lower, upper
        bounds.append(z)
    best = Preactivations(tuple(lower for lower, _ in bounds), tuple(upper for _, upper in bounds))
    # Interval arithmetic is now and then tighter behind bounds that were trained.
    return preactivations(network, region, within=best)


def _trained(
    network: Network, region: Region, step: Activation, z: Interval, units: Tensor, bounds: list[Interval], steps: int
) -> Interval:
    """The intervals of some of a gate's inputs, (domains, units), cut at every step."""
    rows = z[0].new_zeros((len(units), network.units(step.index)))
    rows[torch.arange(len(units)), units] = 1.0
    gates = network.gates[: len(bounds)]
    slopes = [_first_slopes(each, bounds[each.index], len(units)) for each in gates]
    limits = [
        each.gate.slope_range(lower[:, None], upper[:, None])
        for each, (lower, upper) in zip(gates, bounds, strict=True)
    ]
    lower, upper = z
    width, patience = float((upper - lower).sum()), 0
    charges = None
    if network.rigorous:
        charges = ValueCharges(network, region)
        value_interval(network, region, bounds, charges)
    optimizer = torch.optim.Adam(slopes, lr=_RATE)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, _DECAY)
    for _ in range(steps):
        optimizer.zero_grad()
        with torch.enable_grad():
            lines = {
                each.index: _lines(each, bounds[each.index], slope) for each, slope in zip(gates, slopes, strict=True)
            }
            # Not cut with what is known: a bound that is worse than one before would have no gradient to recover by.
            most = upper_bound(network.plain, region, {step.source: rows[None, None]}, lines)
            total = most.sum()
        if not (total.requires_grad and bool(total.isfinite())):
            break
        total.backward()
        if charges is not None:  # the same lines, with their rounding
            with torch.no_grad():
                for each in gates:
                    z = bounds[each.index]
                    charges.gate(each, z, lines[each.index], each.gate.output_range(*z))
                most = upper_bound(network, region, {step.source: rows[None, None]}, lines, charges=charges)
        lower, upper = intersect((lower, upper), (-most[1].detach(), most[0].detach()))
        before, width = width, float((upper - lower).sum())
        patience = 0 if width < before * (1 - _GAIN) else patience + 1
        if patience >= _PATIENCE:
            break
        optimizer.step()
        schedule.step()
        for slope, (least, greatest) in zip(slopes, limits, strict=True):
            slope.data.copy_(torch.maximum(torch.minimum(slope, greatest), least))
    return lower, upper


def _first_slopes(step: Activation, z: Interval, rows: int) -> Tensor:
    """CROWN's choice, for each side and row (sides, domains, rows, units); smooth gates share them, for their lines cost more."""
    slope = step.gate.lines(*z)[0][None, :, None]
    shape = (2, len(z[0]), rows, -1) if step.gate.is_piecewise_linear else slope.shape
    return slope.expand(*shape).clone().requires_grad_()


def _lines(step: Activation, z: Interval, slopes: Tensor) -> Lines:
    below_k, below_b, above_k, above_b = step.gate.lines(z[0][:, None], z[1][:, None], slopes)
    return Lines(below_k, below_b, above_k[None], above_b[None])

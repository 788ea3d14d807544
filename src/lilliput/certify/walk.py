"""Lower bounds by walking between linear regions: from the best point across the plane of each gate, to where the row's norm is larger.

Random points rarely meet the steepest region when there are many inputs. A region next to the one that a point is in differs by one gate,
and the way there is along that gate's gradient; a network's norm changes nowhere else.

Source: ours; local search over activation patterns is how LipMIP (Jordan and Dimakis 2020) gets its first incumbents, by a solver.
"""

from __future__ import annotations

import time

import torch
from torch import Tensor

from lilliput.certify.network import Activation, Network, sum_of
from lilliput.certify.preactivation import Preactivations, rows_per_chunk
from lilliput.certify.region import Region
from lilliput.certify.witness import Witness, norm_at

_BEYOND = (1.02, 1.3, 2.0, 4.0)
"""How far to go, in distances to the plane; the first is just behind it, the others go on into what lies there."""


def walk(
    network: Network,
    region: Region,
    rows: Tensor,
    start: Witness,
    *,
    masks: Preactivations,
    deadline: float,
    rounds: int = 20,
) -> Witness:
    """Points that are at least as good as those given, one for each (domain, row).

    Args:
        rows: (domains, rows, outputs).
        masks: bounds of the gates' inputs in the region or in one around it: a plane that no domain meets is not walked to.
        deadline: on ``time.perf_counter``'s clock; what was found by then is given.
        rounds: at most; every round tries each gate's plane from each best point, and ends early where none is better.
    """
    if not network.gates or region.eps == 0 or not start.norm.numel():
        return start
    domains, count = start.norm.shape
    owners = torch.arange(domains, device=rows.device).repeat_interleave(count)
    here, each_row = region.take(owners), rows.reshape(len(owners), 1, -1)
    x, best = start.point.reshape(len(owners), -1).clone(), start.norm.flatten().clone()
    moving = torch.ones_like(best, dtype=torch.bool)
    planes = _planes(network, masks)
    for _ in range(rounds if len(planes[0]) else 0):
        for some in moving.nonzero().squeeze(1).split(rows_per_chunk(network, network.inputs)):
            if time.perf_counter() >= deadline:
                return Witness(best.reshape(domains, count), x.reshape(domains, count, -1))
            there, size = _neighbours(network, here.take(some), each_row[some], x[some], planes)
            # Less would be rounding, and might go round in circles.
            better = size > best[some] * (1 + 1e-9)
            x[some] = torch.where(better[:, None], there, x[some])
            best[some] = torch.where(better, size, best[some])
            moving[some] = better
        if not bool(moving.any()):
            break
    return Witness(best.reshape(domains, count), x.reshape(domains, count, -1))


def _neighbours(
    network: Network, region: Region, rows: Tensor, x: Tensor, planes: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """For each point the best of the points behind one plane (unit, value), and its norm."""
    units, at = planes
    z, gradient = _gate_inputs(network, x)
    z, gradient = z[:, units], gradient[:, units]
    towards = gradient.sign() if region.norm == "inf" else gradient
    rise = (gradient * towards).sum(-1).clamp(min=torch.finfo(z.dtype).tiny)
    steps = towards * ((at - z) / rise).clamp(-1e30, 1e30)[..., None]
    best, most = x, torch.zeros_like(x[:, 0])
    everyone = torch.arange(len(x), device=x.device)
    for beyond in _BEYOND:
        there = region.nearest((x[:, None] + beyond * steps).transpose(0, 1))
        size = norm_at(network, there.flatten(0, 1), rows.repeat(len(units), 1, 1), region.norm)
        value, which = size.reshape(len(units), len(x)).max(0)
        best = torch.where((value > most)[:, None], there[which, everyone], best)
        most = torch.maximum(most, value)
    return best, most


def _gate_inputs(network: Network, x: Tensor) -> tuple[Tensor, Tensor]:
    """Of all gates' units in order: inputs (points, units), and their gradients (points, units, n)."""
    n = network.inputs
    shape = network.shapes[network.input]
    _, before = network.run(x.reshape(-1, *shape))
    tangents = {network.input: torch.eye(n, dtype=x.dtype, device=x.device).repeat(len(x), 1).reshape(-1, *shape)}
    gradients: list[Tensor] = []
    for step in network.steps:
        if isinstance(step, Activation):
            dz = tangents[step.source].reshape(len(x), n, -1)
            gradients.append(dz)
            moved = dz * step.gate.slope(before[step.index])[:, None]
            tangents[step.name] = moved.reshape(-1, *network.shapes[step.name])
        else:
            tangents[step.name] = sum_of([linear.apply(tangents[name]) for name, linear in step.terms])
    return torch.cat(before, 1), torch.cat(gradients, 2).transpose(1, 2)


def _planes(network: Network, masks: Preactivations) -> tuple[Tensor, Tensor]:
    """Units, counted through all gates, and the values at which their slope jumps, where an input can have them."""
    units, at, first = [], [], 0
    for step in network.gates:
        lower, upper = masks.lower[step.index].amin(0), masks.upper[step.index].amax(0)
        for knot in step.gate.knots:
            met = ((lower <= knot.at) & (knot.at <= upper)).nonzero().squeeze(1)
            units.append(first + met)
            at.append(torch.full((len(met),), knot.at, dtype=network.dtype, device=met.device))
        first += network.units(step.index)
    return torch.cat(units), torch.cat(at)

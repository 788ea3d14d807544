"""Domains of branch and bound, many in one batch, and how one is split."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lilliput.certify.coupling import Coupling
from lilliput.certify.halfspace import HalfSpaces
from lilliput.certify.interval import intersect
from lilliput.certify.jacobian import JacobianBounds, bound_jacobian, joined
from lilliput.certify.network import Network
from lilliput.certify.preactivation import Lines, Preactivations, preactivations, stacked, upper_line
from lilliput.certify.region import Region, joined_regions

MOST_CUTS = 8
"""Half-spaces kept for each domain, newest first; older ones have clipped the box already."""
MOST_INPUTS = 64
"""Beyond this many inputs, sorting coefficients costs more than half-spaces gain."""


@dataclass(frozen=True)
class Domains:
    """Parts of one centre's region, each for one row of the outputs; tensors have domains first."""

    rows: Tensor
    """Numbers of the rows, (domains,)."""
    box: Region
    """The region cut by splits of the input alone: exact."""
    region: Region
    """The same, clipped by what the gates' splits imply."""
    masks: Preactivations
    bounds: JacobianBounds
    """Of one row each."""
    splits: tuple[Tensor, ...]
    """For each gate, which units are fixed by a split, (domains, units)."""

    def __len__(self) -> int:
        """Number of domains."""
        return len(self.rows)

    def take(self, domains: Tensor | slice) -> Domains:
        """Some of them."""
        return Domains(
            self.rows[domains],
            self.box.take(domains),
            self.region.take(domains),
            self.masks.take(domains),
            self.bounds.take(domains),
            tuple(split[domains] for split in self.splits),
        )

    @staticmethod
    def joined(parts: list[Domains]) -> Domains:
        """All of the parts', in order."""
        if len(parts) == 1:
            return parts[0]
        return Domains(
            torch.cat([part.rows for part in parts]),
            joined_regions([part.box for part in parts]),
            joined_regions([part.region for part in parts]),
            stacked([part.masks for part in parts]),
            joined([part.bounds for part in parts]),
            tuple(torch.cat(each) for each in zip(*(part.splits for part in parts), strict=True)),
        )


def root(network: Network, region: Region, masks: Preactivations, bounds: JacobianBounds) -> Domains:
    """One domain for each row of one centre."""
    rows = torch.arange(bounds.norm.shape[1], device=bounds.norm.device)
    every = torch.zeros_like(rows)
    whole = region.take(every)
    is_small = network.inputs <= MOST_INPUTS
    cut = replace(whole, cuts=HalfSpaces.none(len(rows), MOST_CUTS, whole.centre) if is_small else None)
    here = masks.take(every)
    splits = tuple(torch.zeros_like(lower, dtype=torch.bool) for lower in here.lower)
    return Domains(rows, whole, cut, here, bounds.by_row(), splits)


def gate_halves(network: Network, parents: Domains, gates: Tensor, units: Tensor) -> Domains:
    """Below and above a kink of one unit each, or the middle of a smooth one's interval: all lower halves, then all upper ones.

    The bounds are the parents' still; boxes are clipped by the half-spaces that the split implies.
    """
    count = len(parents)
    lower, upper, splits = (
        [t.repeat(2, 1) for t in ts] for ts in (parents.masks.lower, parents.masks.upper, parents.splits)
    )
    H, h = parents.region.centre.new_zeros(2, count, network.inputs), parents.region.centre.new_zeros(2, count)
    has_cuts = parents.region.cuts is not None
    for gate in gates.unique().tolist():
        some = (gates == gate).nonzero().squeeze(1)
        unit = units[some]
        kind = network.gates[gate].gate
        low, high = parents.masks.lower[gate][some, unit], parents.masks.upper[gate][some, unit]
        at = (low + high) / 2
        if kind.is_piecewise_linear:
            knots = torch.tensor([knot.at for knot in kind.knots], dtype=at.dtype, device=at.device)
            away = torch.where(
                (low[:, None] <= knots) & (knots <= high[:, None]), (at[:, None] - knots).abs(), torch.inf
            )
            at = knots[away.argmin(1)]
        # No gap that floating point could tell: what lies between the halves is a face of both.
        hair = torch.maximum(at.abs() * torch.finfo(at.dtype).eps, torch.full_like(at, torch.finfo(at.dtype).tiny))
        upper[gate][some, unit] = torch.minimum(high, at - hair)
        lower[gate][some + count, unit] = torch.maximum(low, at + hair)
        splits[gate][some, unit] = True
        splits[gate][some + count, unit] = True
        if has_cuts:
            A, bias = _input_line(network, parents.masks.take(some), gate, unit)
            H[:, some] = A.flip(0)
            h[:, some] = torch.stack([bias[1] + at, bias[0] - at])
    masks = Preactivations(tuple(lower), tuple(upper))
    both = parents.take(torch.arange(2 * count, device=units.device) % count)
    region = _clipped(both.region, H.flatten(0, 1), h.flatten()) if has_cuts else both.region
    return replace(both, region=region, masks=masks, splits=tuple(splits))


def _input_line(network: Network, masks: Preactivations, gate: int, units: Tensor) -> tuple[Tensor, Tensor]:
    """Linear functions above a unit's input and above its negative, one unit in each domain: (2, domains, n) and (2, domains)."""
    step = network.gates[gate]
    rows = masks.lower[gate].new_zeros(1, len(units), 1, network.units(gate))
    rows[0, torch.arange(len(units)), 0, units] = 1.0
    earlier = zip(network.gates, masks.lower, masks.upper, strict=True)
    lines = {each.index: Lines(*each.gate.lines(low, high)) for each, low, high in earlier if each.index < gate}
    A, bias = upper_line(network, {step.source: rows}, lines)
    domains = len(units)
    return A.expand(2, domains, 1, -1)[:, :, 0], bias.expand(2, domains, 1)[:, :, 0]


def _clipped(region: Region, H: Tensor, h: Tensor) -> Region:
    """The region with one more half-space in each domain, and its box clipped."""
    assert region.cuts is not None
    cuts = HalfSpaces(
        torch.cat([H[:, None], region.cuts.H[:, :-1]], 1), torch.cat([h[:, None], region.cuts.h[:, :-1]], 1)
    )
    cut = replace(region, cuts=cuts)
    eye = torch.eye(H.shape[1], dtype=H.dtype, device=H.device)
    unit = torch.stack([eye, -eye])[:, None].expand(2, len(H), *eye.shape)
    most = cuts.most(unit, (region.lower + region.upper) / 2, (region.upper - region.lower) / 2)
    lower, upper = intersect((region.lower, region.upper), (-most[1], most[0]))
    return replace(cut, lower=lower, upper=upper)


def input_halves(parents: Domains) -> Domains:
    """Halves of the boxes, across the edge along which the row may change most: all lower halves, then all upper ones."""
    steepest = torch.maximum(parents.bounds.jacobian[0].abs(), parents.bounds.jacobian[1].abs())[:, 0]
    lower, upper = parents.region.lower, parents.region.upper
    edge = ((upper - lower) * steepest.clamp(min=1e-9 * float(steepest.max()))).argmax(1)
    count = len(parents)
    every = torch.arange(count, device=edge.device)
    middle = ((lower + upper) / 2)[every, edge]
    both = parents.take(torch.arange(2 * count, device=edge.device) % count)

    def halved(region: Region) -> Region:
        low, high = region.lower.clone(), region.upper.clone()
        high[every, edge] = middle
        low[every + count, edge] = middle
        return replace(region, lower=low, upper=high)

    return replace(both, box=halved(both.box), region=halved(both.region))


def bounded(network: Network, children: Domains, rows: Tensor) -> tuple[Domains, Tensor]:
    """The children with bounds of their own, without those that are empty; and which ones are left.

    Args:
        rows: all rows of the outputs, (rows, outputs).
    """
    region = children.region
    masks = preactivations(network, region, within=children.masks)
    empty = is_empty(masks, children.masks, network)
    if region.cuts is not None:
        empty |= region.cuts.misses((region.lower + region.upper) / 2, (region.upper - region.lower) / 2)
    left = (~empty).nonzero().squeeze(1)
    children, masks = children.take(left), masks.take(left)
    slopes = masks.slopes(network)
    bounds = bound_jacobian(
        network, slopes, rows[children.rows][:, None], region.norm, within=children.bounds,
        coupling=Coupling.of(network, children.region, masks),
    )  # fmt: skip
    return replace(children, masks=masks, bounds=bounds), left


def is_empty(masks: Preactivations, within: Preactivations, network: Network) -> Tensor:
    """Domains (domains,) that no point lies in: bounds that miss the assumed ones by more than rounding."""
    tolerance = 1e-9 if network.dtype == torch.float64 else 1e-3
    empty = torch.zeros(len(masks), dtype=torch.bool, device=network.device)
    for lower, upper, low, high in zip(masks.lower, masks.upper, within.lower, within.upper, strict=True):
        slack = tolerance * (1 + low.abs() + high.abs())
        empty |= ((lower < low - slack) | (upper > high + slack)).any(1)
    return empty

"""Branch and bound over gates and inputs: best first, a batch of domains at a time, until the gap is closed or time is over.

A domain is one row of the outputs, bounds of every gate's input (masks) and a box. It is split at the gate on which its bound hangs most
(``JacobianBounds.area``): at a kink into both sides, at a smooth gate in the middle of its interval. In few dimensions the box may be split
instead, whichever lowers the bound more. Each half clips its box with the half-spaces that its splits imply, tightens the gates' inputs
over that, and is dropped where they show it empty. Where few gates of a piecewise linear network are left, linear programs finish the
domain exactly (``lilliput.certify.exact``): masks alone never would, for they keep patterns that no point has.

From below, points are met by walking across gates (``lilliput.certify.walk``), in the middle of boxes, and by the linear programs. A row
whose bound is below what was found for another one is not split further: it cannot be the largest. Its own bound stays sound.

Source: Shi et al. 2022 (arXiv:2210.07394), section 4. Ours differs: all rows in one frontier; masks and boxes recomputed; empty domains
dropped; exact leaves; trained lines at the root (``lilliput.certify.alpha``); smooth gates; lower bounds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from lilliput.certify.checkpoint import filled, named_leaves
from lilliput.certify.domain import Domains, bounded, gate_halves, input_halves, root
from lilliput.certify.exact import Cell, Patterns
from lilliput.certify.frontier import CLOSED, Frontier, Tensors
from lilliput.certify.jacobian import JacobianBounds
from lilliput.certify.network import Network
from lilliput.certify.preactivation import Preactivations
from lilliput.certify.problem import Answer, Problem
from lilliput.certify.refining import refine
from lilliput.certify.region import Region
from lilliput.certify.walk import walk
from lilliput.certify.witness import Witness, norm_at

_BATCH = 64
_FEW_GATES = 8
"""Undecided gates at most, for a domain to be finished by linear programs."""
_FEW_INPUTS = 8
"""Inputs at most, for boxes to be split as well."""
_STEPS_PER_WALK = 16


def bab(problem: Problem) -> Answer:
    """Split until upper and lower bound of each centre's largest row meet, or ``time_limit`` is over."""

    def begin(region: Region, rows: Tensor, masks: Preactivations, bounds: JacobianBounds, best: Witness) -> _Search:
        return _Search(problem.network, region, rows, masks, bounds, best)

    return refine(problem, begin)


class _Search(Frontier[tuple[Domains, int]]):
    """The frontier of one centre; a part is a domain: one of several that were bounded together, and its place among them."""

    def __init__(
        self,
        network: Network,
        region: Region,
        rows: Tensor,
        masks: Preactivations,
        bounds: JacobianBounds,
        best: Witness,
    ) -> None:
        """Of the whole region (1, ...), bounds of the gates' inputs and of the rows; points that were met."""
        super().__init__(best)
        self.network, self.region, self.rows, self.masks = network, region, rows, masks
        self.splits_inputs = network.inputs <= _FEW_INPUTS and region.norm == "inf"
        self.root = root(network, region, masks, bounds)
        self._push(self.root)

    def is_open(self) -> bool:
        """Whether some domain exceeds what was found."""
        return bool(self.heap) and -self.heap[0][0] > self._goal()

    def upper(self) -> Tensor:
        """Upper bound of each row."""
        upper = self.done.tolist()
        for priority, _, (domains, index) in self.heap:
            row = int(domains.rows[index])
            upper[row] = max(upper[row], -priority)
        return self.done.new_tensor(upper)

    def _goal(self) -> float:
        return float(self.best.norm.max()) * (1 + CLOSED)

    def _push(self, domains: Domains) -> None:
        """Queue, or count as done where what was found is not exceeded."""
        goal = self._goal()
        for index, (bound, row) in enumerate(
            zip(domains.bounds.norm[:, 0].tolist(), domains.rows.tolist(), strict=True)
        ):
            if bound <= goal:
                self.done[row] = max(float(self.done[row]), bound)
            else:
                self.queue(-bound, (domains, index))

    def _pop(self) -> Domains:
        """Those with the largest bounds."""
        together: dict[int, tuple[Domains, list[int]]] = {}
        for _ in range(_BATCH):
            if not self.is_open():
                break
            domains, index = self.take()
            together.setdefault(id(domains), (domains, []))[1].append(index)
        return Domains.joined([domains.take(torch.tensor(indices)) for domains, indices in together.values()])

    def packed(self, parts: Sequence[tuple[Domains, int]]) -> Tensors:
        """Open domains, and which of them were bounded together: steps take those in one piece."""
        groups: dict[int, tuple[Domains, list[int]]] = {}
        for domains, index in parts:
            groups.setdefault(id(domains), (domains, []))[1].append(index)
        if not groups:
            return {}
        numbers = {key: number for number, key in enumerate(groups)}
        seen = dict.fromkeys(groups, 0)
        places = []
        for domains, _ in parts:
            places.append((numbers[id(domains)], seen[id(domains)]))
            seen[id(domains)] += 1
        whole = Domains.joined([domains.take(torch.tensor(indices)) for domains, indices in groups.values()])
        sizes = torch.tensor([len(indices) for _, indices in groups.values()])
        return {"group": torch.tensor(places), "sizes": sizes} | named_leaves("domains", whole)

    def unpacked(self, tensors: Tensors) -> list[tuple[Domains, int]]:
        """The same domains, bounded together as they were."""
        whole = filled(self.root, "domains", tensors, any_length=True)
        # Copies, so that each group is let go with its last domain.
        groups = [whole.take(some) for some in torch.arange(len(whole)).split(tensors["sizes"].tolist())]
        return [(groups[group], index) for group, index in tensors["group"].tolist()]

    def step(self, deadline: float) -> None:
        """Points in the domains with the largest bounds; the end of those with few gates left, and halves of the others."""
        batch = self._pop()
        self._meet(batch, deadline)
        slopes = batch.masks.slopes(self.network)
        undecided = sum((least < greatest).sum(1) for least, greatest in slopes)
        assert isinstance(undecided, Tensor)
        is_last = undecided <= (_FEW_GATES if self.network.is_piecewise_linear else 0)
        if bool(is_last.any()):
            self._finish(batch.take(is_last), deadline)
            batch = batch.take(~is_last)
        if len(batch):
            self._push(self._split(batch))

    def _meet(self, batch: Domains, deadline: float) -> None:
        """Norms in the middle of the boxes; now and then a walk from the best of them."""
        x = self.region.nearest(((batch.region.lower + batch.region.upper) / 2)[:, None])[:, 0]
        norm = norm_at(self.network, x, self.rows[0, batch.rows][:, None], self.region.norm)[:, 0]
        index = norm.argmax()
        row = slice(int(batch.rows[index]), int(batch.rows[index]) + 1)
        start = Witness(norm[index].reshape(1, 1), x[index].reshape(1, 1, -1))
        if self.steps % _STEPS_PER_WALK == 0:
            start = walk(self.network, self.region, self.rows[:, row], start, masks=self.masks, deadline=deadline)
        if float(start.norm) > float(self.best.norm[0, row]):
            best = Witness(self.best.norm.clone(), self.best.point.clone())
            best.norm[:, row], best.point[:, row] = start.norm, start.point
            self.best = best

    def _finish(self, batch: Domains, deadline: float) -> None:
        if not self.network.is_piecewise_linear:
            for row, bound in zip(batch.rows.tolist(), batch.bounds.norm[:, 0].tolist(), strict=True):
                self.done[row] = max(float(self.done[row]), bound)
            return
        cells = []
        for index in range(len(batch)):
            one = batch.take(slice(index, index + 1))
            cells.append(Cell(one.box, one.rows, one.masks, one.bounds, one.splits))
        patterns = Patterns(self.network, self.region, self.rows, cells, self.best, largest_only=True)
        most, self.best = patterns.refine(deadline)
        self.is_stopped |= patterns.is_stopped
        if patterns.is_open():
            # There was no time for all: the domains stay, and exceed nothing that was shown of their row.
            shown = torch.minimum(batch.bounds.norm, most[batch.rows][:, None])
            self._push(replace(batch, bounds=replace(batch.bounds, norm=shown)))
        else:
            self.done = torch.maximum(self.done, most)

    def _split(self, parents: Domains) -> Domains:
        """Both halves of each domain, bounded, without empty ones."""
        gates, units = _widest_gates(self.network, parents)
        halves = [gate_halves(self.network, parents, gates, units)]
        if self.splits_inputs:
            halves.append(input_halves(parents))
        children, left = bounded(self.network, Domains.joined(halves), self.rows[0])
        if len(halves) == 1:
            return children
        # Largest bound of each pair; empty halves count nothing.
        count = len(parents)
        bound = children.bounds.norm.new_zeros(2, 2, count)
        bound.view(-1)[left] = children.bounds.norm[:, 0]
        by_input = bound[1].amax(0) < bound[0].amax(0)
        return children.take((left >= 2 * count) == by_input[left % count])


def _widest_gates(network: Network, domains: Domains) -> tuple[Tensor, Tensor]:
    """The gate and the unit with the largest score in each domain."""
    slopes = domains.masks.slopes(network)
    scores = torch.cat(
        [
            torch.where(least < greatest, score[:, 0] * (greatest - least) + 1e-300, -1.0)
            for score, (least, greatest) in zip(domains.bounds.area(slopes), slopes, strict=True)
        ],
        1,
    )
    flat = scores.argmax(1)
    edges = torch.tensor([network.units(step.index) for step in network.gates], device=flat.device).cumsum(0)
    gates = torch.searchsorted(edges, flat, right=True)
    return gates, flat - torch.cat([edges.new_zeros(1), edges])[gates]

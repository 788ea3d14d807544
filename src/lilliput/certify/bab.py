"""Branch and bound over gates: best first, a batch of domains at a time, until the gap is closed or time is over.

A domain is one row of the outputs and bounds of every gate's input (masks). It is split at the gate on which its bound hangs most
(``JacobianBounds.area``): at a kink into both sides, at a smooth gate in the middle of its interval. Each half tightens the later gates'
inputs by CROWN and is dropped where those show it empty. Where few gates of a piecewise linear network are left, linear programs finish
the domain exactly (``lilliput.certify.exact``): masks alone never would, for they keep patterns that no point has.

A row whose bound is below what was found for another one is not split further: it cannot be the largest. Its own bound stays sound.

Source: Shi et al. 2022 (arXiv:2210.07394), section 4. Ours differs: all rows in one frontier; masks recomputed; empty domains dropped;
exact leaves; trained lines at the root (``lilliput.certify.alpha``); smooth gates.
"""

from __future__ import annotations

import heapq
import time
from dataclasses import dataclass

import torch
from torch import Tensor

from lilliput.certify.alpha import trained_preactivations
from lilliput.certify.exact import CLOSED, Cell, Patterns, fixed, is_empty
from lilliput.certify.jacobian import JacobianBounds, bound_jacobian
from lilliput.certify.network import Network
from lilliput.certify.preactivation import Preactivations, preactivations
from lilliput.certify.problem import Answer, Problem
from lilliput.certify.propagated import answer_from
from lilliput.certify.region import Region
from lilliput.certify.witness import Witness, search

_BATCH = 64
_FEW_GATES = 8
"""Undecided gates at most, for a domain to be finished by linear programs."""


def bab(problem: Problem) -> Answer:
    """Split until upper and lower bound of each centre's largest row meet, or ``time_limit`` is over."""
    network, region, rows = problem.network, problem.region, problem.rows
    started = time.perf_counter()
    start = preactivations(network, region)
    loose, bounds = answer_from(problem, start)
    if region.eps == 0 or not network.gates or not bool(loose.norm.isfinite().all()):
        return loose
    trained = trained_preactivations(network, region, start, problem.alpha_steps if problem.time_limit > 0 else 0)
    answer, bounds = answer_from(problem, trained, within=bounds)
    found = search(network, region, rows, seed=problem.seed)
    upper = torch.minimum(loose.norm, answer.norm)
    trace: list[tuple[float, float, float, int]] = []
    for domain in range(len(rows)):
        here = slice(domain, domain + 1)
        share = (problem.time_limit - (time.perf_counter() - started)) / (len(rows) - domain)
        one = _Search(
            network, region.take(here), rows[here], upper[domain].clone(), Witness(found.norm[here], found.point[here])
        )
        steps = one.run(trained.take(here), bounds.take(here), time.perf_counter() + share)
        upper[domain], found.norm[here], found.point[here] = one.upper, one.best.norm, one.best.point
        for clock, open_domains in steps:
            most, least = float(upper.amax(1).max()), float(found.norm.amax(1).max())
            if len(rows) == 1:
                most, least = one.history[len(trace)]
            trace.append((clock - started, most, least, open_domains))
    is_closed = bool((upper.amax(1) <= found.norm.amax(1) * (1 + 10 * CLOSED)).all())
    is_over = time.perf_counter() - started >= problem.time_limit
    return Answer(
        upper, answer.jacobian, "exact" if is_closed else "time_limit" if is_over else "bounded", found, trace
    )


@dataclass
class _Domain:
    """A part of the region for one row; ``bounds`` has that row alone."""

    row: int
    masks: Preactivations
    bounds: JacobianBounds
    splits: tuple[Tensor, ...]
    """For each gate, which units are fixed by a split, (1, units)."""


class _Search:
    """The frontier of one centre."""

    def __init__(self, network: Network, region: Region, rows: Tensor, upper: Tensor, best: Witness) -> None:
        self.network, self.region, self.rows = network, region, rows
        self.upper, self.best = upper, best
        self.done = torch.zeros_like(upper)
        self.heap: list[tuple[float, int, _Domain]] = []
        self.count = 0
        self.history: list[tuple[float, float]] = []

    def run(self, masks: Preactivations, bounds: JacobianBounds, deadline: float) -> list[tuple[float, int]]:
        """Work until done; (clock, open domains) after each step."""
        splits = tuple(torch.zeros_like(lower, dtype=torch.bool) for lower in masks.lower)
        for row in range(len(self.upper)):
            self._push(_Domain(row, masks, bounds.take_rows(slice(row, row + 1)), splits))
        steps = [self._note()]
        while self.heap and -self.heap[0][0] > self._goal() and time.perf_counter() < deadline:
            batch: list[_Domain] = []
            while self.heap and len(batch) < _BATCH and -self.heap[0][0] > self._goal():
                batch.append(heapq.heappop(self.heap)[2])
            self._step(batch, deadline)
            steps.append(self._note())
        return steps

    def _goal(self) -> float:
        return float(self.best.norm.max()) * (1 + CLOSED)

    def _push(self, domain: _Domain) -> None:
        self.count += 1
        heapq.heappush(self.heap, (-float(domain.bounds.norm[0, 0]), self.count, domain))

    def _note(self) -> tuple[float, int]:
        most = self.done.clone()
        for bound, _, domain in self.heap:
            most[domain.row] = torch.maximum(most[domain.row], most.new_tensor(-bound))
        self.upper = torch.minimum(self.upper, most)
        self.history.append((float(self.upper.max()), float(self.best.norm.max())))
        return time.perf_counter(), sum(-bound > self._goal() for bound, _, _ in self.heap)

    def _close(self, domain: _Domain, bound: Tensor) -> None:
        self.done[domain.row] = torch.maximum(self.done[domain.row], bound)

    def _step(self, batch: list[_Domain], deadline: float) -> None:
        halves: list[tuple[_Domain, Preactivations, tuple[Tensor, ...]]] = []
        for domain in batch:
            slopes = domain.masks.slopes(self.network)
            undecided = sum(int((least < greatest).sum()) for least, greatest in slopes)
            if undecided == 0 or (undecided <= _FEW_GATES and self.network.is_piecewise_linear):
                self._finish(domain, deadline)
                continue
            halves += [(domain, masks, splits) for masks, splits in self._halves(domain, slopes)]
        if not halves:
            return
        together = Preactivations(
            tuple(torch.cat(each) for each in zip(*(masks.lower for _, masks, _ in halves), strict=True)),
            tuple(torch.cat(each) for each in zip(*(masks.upper for _, masks, _ in halves), strict=True)),
        )
        found = preactivations(
            self.network, self.region.take(torch.zeros(len(halves), dtype=torch.long)), within=together
        )
        empty = is_empty(found, together, self.network)
        rows = torch.stack([self.rows[0, domain.row] for domain, _, _ in halves])[:, None]
        bounds = bound_jacobian(self.network, found.slopes(self.network), rows, self.region.norm)
        for index, (parent, _, splits) in enumerate(halves):
            if bool(empty[index]):
                continue
            here = slice(index, index + 1)
            part = bounds.take(here)
            part.norm.copy_(torch.minimum(part.norm, parent.bounds.norm))
            self._push(_Domain(parent.row, found.take(here), part, splits))

    def _finish(self, domain: _Domain, deadline: float) -> None:
        if not self.network.is_piecewise_linear:
            self._close(domain, domain.bounds.norm[0, 0])
            return
        cell = Cell(self.region, torch.tensor([domain.row]), domain.masks, domain.bounds, domain.splits)
        patterns = Patterns(self.network, self.region, self.rows)
        most, self.best = patterns.explore([cell], self.best, deadline, largest_only=True)
        self._close(domain, torch.minimum(most[domain.row], domain.bounds.norm[0, 0]))

    def _halves(
        self, domain: _Domain, slopes: list[tuple[Tensor, Tensor]]
    ) -> list[tuple[Preactivations, tuple[Tensor, ...]]]:
        """Both sides of the gate with the largest score."""
        scores = [
            torch.where(least[0] < greatest[0], score[0, 0] * (greatest - least)[0] + 1e-300, -1.0)
            for score, (least, greatest) in zip(domain.bounds.area(slopes), slopes, strict=True)
        ]
        gate = max(range(len(scores)), key=lambda index: float(scores[index].max()) if len(scores[index]) else -1.0)
        unit = scores[gate].argmax().reshape(1)
        lower, upper = float(domain.masks.lower[gate][0, unit]), float(domain.masks.upper[gate][0, unit])
        kind = self.network.gates[gate].gate
        middle = (lower + upper) / 2
        knots = [knot.at for knot in kind.knots if lower <= knot.at <= upper]
        at = min(knots, key=lambda knot: abs(knot - middle)) if kind.is_piecewise_linear else middle
        splits = list(domain.splits)
        splits[gate] = splits[gate].clone()
        splits[gate][0, unit] = True
        sides = [(float("-inf"), at), (at, float("inf"))]
        return [(fixed(domain.masks, gate, unit, low, high), tuple(splits)) for low, high in sides]

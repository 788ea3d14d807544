"""What the methods that refine until a time have in common: a share of the time for each centre, bounds from both sides, and a trace."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lilliput.certify.alpha import trained_preactivations
from lilliput.certify.interval import Interval
from lilliput.certify.jacobian import JacobianBounds
from lilliput.certify.preactivation import Preactivations, preactivations
from lilliput.certify.problem import Answer, Problem
from lilliput.certify.propagated import answer_from
from lilliput.certify.region import Region
from lilliput.certify.walk import walk
from lilliput.certify.witness import Witness, search

CLOSED = 1e-10
"""Relative difference below which a bound counts as reached."""
_WALKS = 0.25
"""Share of the time that the first walk for a lower bound may take."""


@dataclass(frozen=True)
class Centre:
    """One centre's turn."""

    index: int
    best: Witness
    deadline: float
    """On ``time.perf_counter``'s clock."""
    note: Callable[[Tensor, Witness, int], None]
    """Hears of each row's upper bound, (rows,), the best points and the number of open domains."""

    @property
    def here(self) -> slice:
        """Of a batch of centres, this one."""
        return slice(self.index, self.index + 1)


Turn = Callable[[Centre, Region, Tensor, Preactivations, JacobianBounds], tuple[Tensor, Witness, bool]]
"""One centre's refining: from its region, rows, masks and bounds to each row's upper bound, the best points, whether it was interrupted."""


def refine(problem: Problem, turn: Turn, *, every_row: bool = False) -> Answer:
    """Bounds by trained lines, points by search and walk, then each centre's turn.

    Args:
        every_row: the answer is exact where all rows are closed, not just the largest.
    """
    network, region, rows = problem.network, problem.region, problem.rows
    started = time.perf_counter()
    masks = preactivations(network, region)
    loose, bounds = answer_from(problem, masks)
    if region.eps == 0 or not network.gates or not bool(loose.norm.isfinite().all()):
        return loose
    masks = trained_preactivations(network, region, masks, problem.alpha_steps if problem.time_limit > 0 else 0)
    start, bounds = answer_from(problem, masks, within=bounds)
    found = search(network, region, rows, seed=problem.seed)
    if problem.time_limit > 0:
        found = walk(network, region, rows, found, masks=masks, deadline=started + _WALKS * problem.time_limit)
    work = _Refining(problem, started, torch.minimum(loose.norm, start.norm), found)
    for centre in work.centres():
        here = centre.here
        work.close(centre, *turn(centre, region.take(here), rows[here], masks.take(here), bounds.take(here)))
    return work.answer(start.jacobian, every_row)


@dataclass
class _Refining:
    """Bounds of all centres, which get better one centre after the other."""

    problem: Problem
    started: float
    upper: Tensor
    """(centres, rows)."""
    found: Witness
    trace: list[tuple[float, float, float, int]] = field(default_factory=list)
    is_stopped: bool = False

    def centres(self) -> Iterator[Centre]:
        """Each centre with its share of what is left of the time; none after an interrupt."""
        count = len(self.upper)
        for index in range(count):
            if self.is_stopped:
                return
            now = time.perf_counter()
            share = (self.problem.time_limit - (now - self.started)) / (count - index)
            here = slice(index, index + 1)

            def note(upper: Tensor, best: Witness, open_domains: int, index: int = index) -> None:
                self.note(index, upper, best, open_domains)

            best = Witness(self.found.norm[here].clone(), self.found.point[here].clone())
            yield Centre(index, best, now + share, note)

    def note(self, index: int, upper: Tensor, best: Witness, open_domains: int) -> None:
        """Take over a centre's bounds; the trace tells of the worst centre."""
        self.upper[index] = self.upper[index].minimum(upper)
        wins = best.norm[0] > self.found.norm[index]
        self.found.norm[index][wins], self.found.point[index][wins] = best.norm[0][wins], best.point[0][wins]
        entry = (
            time.perf_counter() - self.started, float(self.upper.max()), float(self.found.norm.max()), open_domains,
        )  # fmt: skip
        self.trace.append(entry)
        if self.problem.progress is not None:
            self.problem.progress(*entry)

    def close(self, centre: Centre, upper: Tensor, best: Witness, is_stopped: bool) -> None:
        """The end of a centre's turn."""
        if is_stopped and not self.problem.is_interruptible:
            raise KeyboardInterrupt
        self.is_stopped |= is_stopped
        self.note(centre.index, upper, best, 0)

    def answer(self, jacobian: Callable[[], Interval], every_row: bool) -> Answer:
        """What was reached."""
        upper, lower = self.upper, self.found.norm
        if not every_row:
            upper, lower = upper.amax(1), lower.amax(1)
        if bool((upper <= lower * (1 + 10 * CLOSED)).all()):
            status = "exact"
        elif self.is_stopped:
            status = "stopped"
        else:
            status = "time_limit" if time.perf_counter() - self.started >= self.problem.time_limit else "bounded"
        return Answer(self.upper, jacobian, status, self.found, self.trace)

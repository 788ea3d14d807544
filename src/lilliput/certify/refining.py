"""What the methods that refine until a time have in common: a share of the time for each centre, bounds from both sides, and a trace.

With a checkpoint, all of that and every frontier that is still open go into one file, every few seconds and at the end, and a later call
goes on from it. No random choice is left by then: those are made in the search for points, which is over before the first step.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lilliput.certify.alpha import trained_preactivations
from lilliput.certify.checkpoint import State, filled, named_leaves
from lilliput.certify.frontier import CLOSED, Frontier
from lilliput.certify.interval import Interval
from lilliput.certify.jacobian import JacobianBounds
from lilliput.certify.preactivation import Preactivations, preactivations
from lilliput.certify.problem import Answer, Problem
from lilliput.certify.propagated import answer_from, elements
from lilliput.certify.region import Region
from lilliput.certify.walk import walk
from lilliput.certify.witness import Witness, search

_WALKS = 0.25
"""Share of the time that the first walk for a lower bound may take."""
SECONDS_BETWEEN_SAVES = 10.0
_SAVING = 0.05
"""Share of the time that saving may take, where a frontier is large."""

Begin = Callable[[Region, Tensor, Preactivations, JacobianBounds, Witness], Frontier[Any]]
"""One centre's frontier, from its region, rows, masks, bounds and the best points so far."""


def refine(problem: Problem, begin: Begin, *, every_row: bool = False) -> Answer:
    """Bounds by trained lines, points by search and walk, then each centre's frontier; or on from where a checkpoint ends.

    Args:
        every_row: the answer is exact where all rows are closed, not just the largest.
    Raises:
        ConfigError, DataError: the checkpoint is of another question, or damaged.
    """
    started = time.perf_counter()
    if problem.checkpoint is not None:
        state = problem.checkpoint.load(problem.network.device)
        if state is not None:
            return _Refining.taken_up(problem, begin, started, state).answer(every_row)
    network, region, rows = problem.network, problem.region, problem.rows
    masks = preactivations(network, region)
    loose, bounds = answer_from(problem, masks)
    if region.eps == 0 or not network.gates or not bool(loose.norm.isfinite().all()):
        return loose
    masks = trained_preactivations(network, region, masks, problem.alpha_steps if problem.time_limit > 0 else 0)
    start, bounds = answer_from(problem, masks, within=bounds)
    found = search(network, region, rows, seed=problem.seed)
    if problem.time_limit > 0:
        found = walk(network, region, rows, found, masks=masks, deadline=started + _WALKS * problem.time_limit)
    upper = torch.minimum(loose.norm, start.norm)
    closed = torch.zeros(len(upper), dtype=torch.bool)
    return _Refining(problem, begin, started, masks, bounds, upper, found, closed).answer(every_row)


@dataclass
class _Refining:
    """Bounds of all centres, which get better one centre after the other."""

    problem: Problem
    begin: Begin
    started: float
    """On ``time.perf_counter``'s clock; seconds of earlier calls lie between then and now."""
    masks: Preactivations
    bounds: JacobianBounds
    """Of the whole regions."""
    upper: Tensor
    """(centres, rows)."""
    found: Witness
    closed: Tensor
    """Which centres have nothing open any more, (centres,)."""
    frontiers: dict[int, Frontier[Any]] = field(default_factory=dict)
    """Those that are open, by centre; kept after their turn only for the checkpoint."""
    trace: list[tuple[float, float, float, int]] = field(default_factory=list)
    is_stopped: bool = False

    def __post_init__(self) -> None:
        self.save_at = time.perf_counter() + SECONDS_BETWEEN_SAVES

    @classmethod
    def taken_up(cls, problem: Problem, begin: Begin, now: float, state: State) -> _Refining:
        """From a checkpoint."""
        assert problem.checkpoint is not None
        tensors = state.tensors
        try:
            masks, bounds, upper, found, closed = filled(_template(problem), "centres", tensors)
            work = cls(
                problem, begin, now - state.seconds, masks, bounds, upper, found, closed.cpu(), trace=state.trace
            )
            for index in tensors["open"].tolist():
                prefix = f"{index}."
                parts = {
                    name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)
                }
                work.frontiers[index] = work._begun(index)
                work.frontiers[index].restore(parts)
        except (KeyError, ValueError, IndexError, TypeError, RuntimeError) as fault:
            raise problem.checkpoint.damaged(fault) from fault
        return work

    def answer(self, every_row: bool) -> Answer:
        """Refine, and say what was reached."""
        waiting = (~self.closed).nonzero().squeeze(1).tolist()
        try:
            for place, index in enumerate(waiting):
                if not self.is_stopped:
                    self._turn(index, len(waiting) - place)
        except KeyboardInterrupt:
            self.is_stopped = True
        if waiting:
            self._save()
        if self.is_stopped and not self.problem.is_interruptible:
            raise KeyboardInterrupt
        if not bool(self.closed.all()):  # after it was saved, so that what goes on has no trace of an end
            self._tell(0)
        upper, lower = self.upper, self.found.norm
        if not every_row:
            upper, lower = upper.amax(1), lower.amax(1)
        if bool((upper <= lower * (1 + 10 * CLOSED)).all()):
            status = "exact"
        elif self.is_stopped:
            status = "stopped"
        else:
            status = "time_limit" if time.perf_counter() - self.started >= self.problem.time_limit else "bounded"

        def jacobian() -> Interval:
            return elements(self.problem, self.masks, self.bounds)

        return Answer(self.upper, jacobian, status, self.found, self.trace)

    def _turn(self, index: int, left: int) -> None:
        """Of one centre, with its share of what is left of the time for so many."""
        now = time.perf_counter()
        share = (self.problem.time_limit - (now - self.started)) / left
        if index not in self.frontiers:
            self.frontiers[index] = self._begun(index)
        frontier = self.frontiers[index]
        frontier.refine(now + share, partial(self._note, index))
        self.is_stopped |= frontier.is_stopped
        self._take_over(index, frontier)
        is_open = frontier.is_open()
        if not is_open or self.problem.checkpoint is None:
            del self.frontiers[index]
        if not is_open:
            self.closed[index] = True
            self._tell(0)

    def _begun(self, index: int) -> Frontier[Any]:
        here = slice(index, index + 1)
        best = Witness(self.found.norm[here].clone(), self.found.point[here].clone())
        problem = self.problem
        return self.begin(
            problem.region.take(here), problem.rows[here], self.masks.take(here), self.bounds.take(here), best
        )

    def _note(self, index: int, frontier: Frontier[Any]) -> None:
        """What a centre's frontier has to tell between two steps."""
        self._take_over(index, frontier)
        self._tell(len(frontier.heap))
        if time.perf_counter() >= self.save_at:
            self._save()

    def _take_over(self, index: int, frontier: Frontier[Any]) -> None:
        self.upper[index] = self.upper[index].minimum(frontier.upper())
        best = frontier.best
        wins = best.norm[0] > self.found.norm[index]
        self.found.norm[index][wins], self.found.point[index][wins] = best.norm[0][wins], best.point[0][wins]

    def _tell(self, open_parts: int) -> None:
        """One more entry of the trace, which is of the worst centre."""
        seconds = time.perf_counter() - self.started
        entry = (seconds, float(self.upper.max()), float(self.found.norm.max()), open_parts)
        self.trace.append(entry)
        if self.problem.progress is not None:
            self.problem.progress(*entry)

    def _save(self) -> None:
        """Keep everything, where that is asked for."""
        if self.problem.checkpoint is None:
            return
        before = time.perf_counter()
        centres = (self.masks, self.bounds, self.upper, self.found, self.closed)
        tensors = {"open": torch.tensor([*self.frontiers], dtype=torch.int64)} | named_leaves("centres", centres)
        for index, frontier in self.frontiers.items():
            tensors |= {f"{index}.{name}": tensor for name, tensor in frontier.state().items()}
        self.problem.checkpoint.save(State(before - self.started, self.trace, tensors))
        now = time.perf_counter()
        self.save_at = now + max(SECONDS_BETWEEN_SAVES, (now - before) / _SAVING)


def _template(problem: Problem) -> tuple[Preactivations, JacobianBounds, Tensor, Witness, Tensor]:
    """Of what is kept of all centres: its shapes and types."""
    network, (centres, rows, _) = problem.network, problem.rows.shape
    units = [network.units(index) for index in range(len(network.gates))]

    def like(*shape: int) -> Tensor:
        return problem.rows.new_zeros(()).expand(centres, *shape)

    masks = Preactivations(tuple(like(each) for each in units), tuple(like(each) for each in units))
    gradients = tuple(like(rows, each) for each in units)
    jacobian = like(rows, network.inputs)
    bounds = JacobianBounds(like(rows), (jacobian, jacobian), tuple((each, each) for each in gradients), gradients)
    closed = torch.zeros(centres, dtype=torch.bool, device=network.device)
    return masks, bounds, like(rows), Witness(like(rows), jacobian), closed

"""What the methods that refine until a time have in common: a share of the time for each centre, bounds from both sides, and a trace."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from torch import Tensor

from lilliput.certify.interval import Interval
from lilliput.certify.problem import Answer, Problem
from lilliput.certify.witness import Witness


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


@dataclass
class Refining:
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

    def answer(self, jacobian: Callable[[], Interval], closed: float, every_row: bool = False) -> Answer:
        """What was reached; ``closed`` is the relative gap below which a bound counts as met."""
        upper, lower = self.upper, self.found.norm
        if not every_row:
            upper, lower = upper.amax(1), lower.amax(1)
        if bool((upper <= lower * (1 + 10 * closed)).all()):
            status = "exact"
        elif self.is_stopped:
            status = "stopped"
        else:
            status = "time_limit" if time.perf_counter() - self.started >= self.problem.time_limit else "bounded"
        return Answer(self.upper, jacobian, status, self.found, self.trace)

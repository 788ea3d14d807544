"""What is still open of one centre: parts with bounds of their own, largest first, refined in steps that are whole or undone.

Branch and bound and the enumeration of patterns differ in what a part is and in what a step does with the largest ones. What they share is
here: the queue, what is done, the points that were met, an end by time or by an interrupt between two steps, and the whole as tensors.
"""

from __future__ import annotations

import heapq
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import torch
from torch import Tensor

from lilliput.certify.checkpoint import filled, named_leaves
from lilliput.certify.witness import Witness

CLOSED = 1e-10
"""Relative difference below which a bound counts as reached."""
SECONDS_BETWEEN_NOTES = 0.02
"""For a look at all parts takes a while."""

Part = TypeVar("Part")
Tensors = dict[str, Tensor]


class Frontier(ABC, Generic[Part]):
    """The open parts of one centre's region, for all rows."""

    def __init__(self, best: Witness) -> None:
        """Begins with points that were met, (1, rows)."""
        self.best = best
        self.done = torch.zeros_like(best.norm[0])
        """Upper bound of each row over the parts that are left alone."""
        self.heap: list[tuple[float, int, Part]] = []
        """(priority, number, part): the least priority first, and of the same the oldest."""
        self.count = 0
        """Parts queued so far."""
        self.steps = 0
        self.is_stopped = False
        """By an interrupt."""
        self._is_new = True
        self._taken: list[tuple[float, int, Part]] = []

    @abstractmethod
    def is_open(self) -> bool:
        """Whether a step could lower a bound that counts."""

    @abstractmethod
    def step(self, deadline: float) -> None:
        """Take some parts, and queue or close what becomes of them. ``best`` is replaced and never written to."""

    @abstractmethod
    def upper(self) -> Tensor:
        """Upper bound of each row over all parts, done or open, (rows,)."""

    @abstractmethod
    def packed(self, parts: Sequence[Part]) -> Tensors:
        """The parts as tensors."""

    @abstractmethod
    def unpacked(self, tensors: Tensors) -> list[Part]:
        """Parts that are equal to those packed, bit by bit.

        Raises:
            KeyError, ValueError: tensors that ``packed`` cannot have made.
        """

    def refine(
        self, deadline: float, note: Callable[[Frontier[Part]], None] = lambda frontier: None
    ) -> tuple[Tensor, Witness]:
        """Step after step until nothing is open, or time is over, or an interrupt comes.

        Args:
            deadline: on ``time.perf_counter``'s clock.
            note: hears of the beginning, and between steps now and then.
        Returns:
            Upper bound of each row, (rows,), and the best points.
        """
        mark = None
        try:
            if self._is_new:
                self._is_new = False
                note(self)
            noted = time.perf_counter()
            while self.is_open() and time.perf_counter() < deadline and not self.is_stopped:
                self._taken = []
                mark = (self.count, self.steps, self.done.clone(), self.best)
                self.step(deadline)
                mark = None
                self.steps += 1
                if time.perf_counter() >= noted + SECONDS_BETWEEN_NOTES:
                    note(self)
                    noted = time.perf_counter()
        except KeyboardInterrupt:
            if mark is not None:
                self._undo(*mark)
            self.is_stopped = True
        return self.upper(), self.best

    def queue(self, priority: float, part: Part) -> None:
        """Keep for later."""
        self.count += 1
        heapq.heappush(self.heap, (priority, self.count, part))

    def take(self) -> Part:
        """The first part, out of the queue."""
        # Noted before it leaves, so that an interrupt between the two lines does not lose it.
        self._taken.append(self.heap[0])
        return heapq.heappop(self.heap)[2]

    def _undo(self, count: int, steps: int, done: Tensor, best: Witness) -> None:
        """Back to where the step began."""
        entries = {entry[1]: entry for entry in (*self.heap, *self._taken) if entry[1] <= count}
        self.heap = list(entries.values())
        heapq.heapify(self.heap)
        self.count, self.steps, self.done, self.best = count, steps, done, best

    def state(self) -> Tensors:
        """Everything that steps depend on; to be asked for between two of them."""
        numbers = {"priority": torch.tensor([entry[0] for entry in self.heap], dtype=torch.float64)}
        numbers["number"] = torch.tensor([entry[1] for entry in self.heap], dtype=torch.int64)
        numbers["counts"] = torch.tensor([self.count, self.steps])
        points = named_leaves("reached", (self.done, self.best))
        parts = self.packed([entry[2] for entry in self.heap])
        return numbers | points | {f"part.{name}": tensor for name, tensor in parts.items()}

    def restore(self, state: Tensors) -> None:
        """Go on from a state of a frontier that was begun in the same way.

        Raises:
            KeyError, ValueError: it cannot be one.
        """
        prefix = "part."
        packed = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
        parts = self.unpacked(packed) if len(state["number"]) else []
        self.heap = list(zip(state["priority"].tolist(), state["number"].tolist(), parts, strict=True))
        self.count, self.steps = state["counts"].tolist()
        self.done, self.best = filled((self.done, self.best), "reached", state)
        self._is_new = False

"""In which order steps run, and which bytes are alive at each of them.

A :class:`Task` says what one step does to memory and nothing else: which buffers it reads, which it makes, and which of those it reads it
could write its result over. So this file serves any program of steps: layers, patches, rows, or a training graph.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import accumulate

from lilliput.mcu.arena import Block

_MOST_STATES = 10_000
"""Sets of finished tasks that the exact search may look at before the beam takes over."""
_BEAM_WIDTH = 64


@dataclass(frozen=True)
class Task:
    """What one step does to memory."""

    name: str
    reads: tuple[str, ...]
    writes: str | None
    """The buffer it makes; none where it only gives another name to one."""
    hosts: tuple[str, ...] = ()
    """Buffers among those read that the result may be written over, if nobody needs them afterwards; best first. One that is smaller
    than the result becomes its first bytes."""
    after: tuple[int, ...] = ()
    """Indices of the tasks that must have run before."""
    scratch_bytes: int = 0
    """Working memory while it runs."""


@dataclass(frozen=True)
class Timeline:
    """Lifetimes under one order. Step i is the i-th task; at step ``len(tasks)`` the caller reads the outputs."""

    blocks: tuple[Block, ...]
    tied: tuple[tuple[str, str], ...]
    """A buffer and the one that is written over it: both start at the same byte."""
    hosts: tuple[str | None, ...]
    """For each task the buffer its result is written over, if any."""
    live_bytes: tuple[int, ...]
    """At each step; one more than there are tasks."""

    @property
    def peak_bytes(self) -> int:
        """Most bytes alive at one step."""
        return max(self.live_bytes)


def timeline(
    tasks: Sequence[Task], sizes_bytes: Mapping[str, int], inputs: Collection[str], outputs: Collection[str]
) -> Timeline:
    """Lifetimes of all buffers when the tasks run as listed.

    Inputs are alive from step 0 until they are last read, outputs until the caller has read them. While a result is written over another
    buffer their bytes count once, as those of the longer: a buffer between two that cover it may be alive at no step.
    """
    end = len(tasks)
    last = dict.fromkeys(outputs, end)
    for step, task in reversed(list(enumerate(tasks))):
        for name in task.reads:
            last.setdefault(name, step)
    start = dict.fromkeys(inputs, 0)
    stop: dict[str, int] = {}
    hosts: list[str | None] = []
    tied: list[tuple[str, str]] = []
    for step, task in enumerate(tasks):
        host = next((name for name in task.hosts if last[name] == step), None) if task.writes is not None else None
        hosts.append(host)
        if task.writes is None:
            continue
        start[task.writes] = step
        if host is not None:
            tied.append((host, task.writes))
            if sizes_bytes[task.writes] > sizes_bytes[host]:
                stop[host] = step
            else:
                start[task.writes] = step + 1
    blocks = tuple(
        Block(name, sizes_bytes[name], begin, stop.get(name, max(last.get(name, begin), begin) + 1))
        for name, begin in start.items()
    )
    change = [0] * (end + 2)
    for block in blocks:
        change[block.start] += block.size_bytes
        change[min(block.stop, end + 1)] -= block.size_bytes
    live = list(accumulate(change[: end + 1]))
    return Timeline(blocks, tuple(tied), tuple(hosts), tuple(live))


def best_order(
    tasks: Sequence[Task], sizes_bytes: Mapping[str, int], inputs: Collection[str], outputs: Collection[str]
) -> tuple[int, ...]:
    """The order with the lowest peak, working memory included: exact while few sets of finished tasks are possible, else a beam search.

    The order given is kept where nothing found is strictly lower. The result depends on the arguments alone.
    """
    given = tuple(range(len(tasks)))
    program = _Program(tasks, sizes_bytes, inputs, outputs)
    peak = program.peak_bytes()
    if peak <= program.floor_bytes or program.has_one_order():
        return given
    is_proved, order = _exact(program, peak)
    if not is_proved:
        order = _beam(program, peak)
    return order or given


class _Program:
    """The tasks with what the searches ask of them; a set of finished tasks is a bit mask."""

    def __init__(
        self, tasks: Sequence[Task], sizes: Mapping[str, int], inputs: Collection[str], outputs: Collection[str]
    ) -> None:
        readers: dict[str, int] = {}
        for index, task in enumerate(tasks):
            for name in task.reads:
                readers[name] = readers.get(name, 0) | 1 << index
        self.count = len(tasks)
        self.start_bytes = sum(sizes[name] for name in inputs)
        self.waits_for = [sum(1 << index for index in set(task.after)) for task in tasks]
        self.out = [sizes[task.writes] if task.writes is not None else 0 for task in tasks]
        self.scratch = [task.scratch_bytes for task in tasks]
        self.is_unread = [
            task.writes is not None and task.writes not in readers and task.writes not in outputs for task in tasks
        ]
        ends = [[name for name in dict.fromkeys(task.reads) if name not in outputs] for task in tasks]
        self.ends = [[(sizes[name], readers[name]) for name in names] for names in ends]
        self.hosts = [
            [(readers[name], max(0, sizes[task.writes] - sizes[name])) for name in task.hosts if name not in outputs]
            if task.writes is not None
            else []
            for task in tasks
        ]  # who reads each, and the bytes by which the result is longer
        # what the hungriest task takes in any order
        self.floor_bytes = max((self._least_bytes(task, sizes) for task in tasks), default=0)

    @staticmethod
    def _least_bytes(task: Task, sizes: Mapping[str, int]) -> int:
        read = sum(sizes[name] for name in set(task.reads)) + task.scratch_bytes
        if task.writes is None:
            return read
        return read + min([sizes[task.writes], *(max(0, sizes[task.writes] - sizes[name]) for name in task.hosts)])

    def has_one_order(self) -> bool:
        """Each task waits for the one before it."""
        return all(self.waits_for[index] >> (index - 1) & 1 for index in range(1, self.count))

    def peak_bytes(self) -> int:
        """Most bytes alive in the order given."""
        done, live, peak = 0, self.start_bytes, self.start_bytes
        for task in range(self.count):
            during, live = next((during, after) for index, during, after in self.moves(done, live) if index == task)
            done |= 1 << task
            peak = max(peak, during)
        return peak

    def moves(self, done: int, live: int) -> list[tuple[int, int, int]]:
        """Tasks that may run next, with the bytes alive during each and after it."""
        found = []
        for task in range(self.count):
            bit = 1 << task
            if done & bit or self.waits_for[task] & ~done:
                continue
            missing = ~(done | bit)
            during, after = live + self.out[task], live + self.out[task]
            longer = next((longer for readers, longer in self.hosts[task] if not readers & missing), None)
            if longer is not None:
                during = live + longer
            for size, readers in self.ends[task]:
                if not readers & missing:
                    after -= size
            found.append((task, during + self.scratch[task], after - self.out[task] if self.is_unread[task] else after))
        return found


def _exact(program: _Program, peak: int) -> tuple[bool, tuple[int, ...]]:
    """The lowest peak below the one given, by always extending the set of finished tasks whose peak so far is lowest.

    Returns whether the search came to its end, and the order if one is lower.
    """
    done_all = (1 << program.count) - 1
    queue: list[tuple[int, int, tuple[int, ...], int, int]] = [
        (program.start_bytes, 0, (), 0, program.start_bytes)
    ]  # peak so far, less is further, order, done, live
    seen: set[int] = set()
    while queue:
        so_far, _, order, done, live = heappop(queue)
        if done == done_all:
            return True, order
        if done in seen:
            continue
        seen.add(done)
        if len(seen) > _MOST_STATES:
            return False, ()
        for task, during, after in program.moves(done, live):
            if max(so_far, during) < peak and done | 1 << task not in seen:
                heappush(queue, (max(so_far, during), -len(order) - 1, (*order, task), done | 1 << task, after))
    return True, ()


def _beam(program: _Program, peak: int) -> tuple[int, ...]:
    """A good order where there are too many: at each length keep the sets of finished tasks with the lowest peaks, then fewest bytes."""
    beam: list[tuple[int, int, tuple[int, ...], int]] = [(program.start_bytes, program.start_bytes, (), 0)]
    for _ in range(program.count):
        found: dict[int, tuple[int, int, tuple[int, ...], int]] = {}
        for so_far, live, order, done in beam:
            for task, during, after in program.moves(done, live):
                entry = (max(so_far, during), after, (*order, task), done | 1 << task)
                if entry[0] < peak and (entry[3] not in found or entry < found[entry[3]]):
                    found[entry[3]] = entry
        beam = sorted(found.values())[:_BEAM_WIDTH]
    return beam[0][2] if beam else ()

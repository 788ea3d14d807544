"""Which schedule to take: the whole network if it fits, else the one that costs least among those that do.

Rows cost no multiply-accumulates, patches cost their halos; more rows at once and coarser grids cost less than finer ones. A schedule is
first judged by the most bytes alive in its program, which no placing can beat, and placed only where that fits.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod

from lilliput.errors import ConfigError
from lilliput.mcu.fusion import Candidate, Program, least_bytes, place_tiles, smallest, tiled_programs
from lilliput.mcu.schedule import Timeline, timeline
from lilliput.mcu.tiling import Outlook, Patches, Rows, Schedule, Tiling, outlook, splits, tile
from lilliput.quantize.qgraph import Crop, QOp, QuantizedGraph

_HEIGHTS = (8, 4, 2, 1)
_NEVER = 2**62
_PATIENCE = 40
"""Schedules in a row, the most promising first, that may bring nothing before a search for the least memory ends."""
_MOST_MISSES = 4
"""Schedules of one split that could have been enough and could not be placed: what comes after the split is in the way."""
_MOST_TILES = 8
"""Along one side: a finer grid recomputes more than rows would move."""


@dataclass(frozen=True)
class Found:
    """A way to run a network, its buffers placed."""

    candidate: Candidate
    tiling: Tiling | None

    @property
    def total_bytes(self) -> int:
        """Arena and scratch apart from it."""
        return self.candidate.total_bytes


@dataclass(frozen=True)
class Search:
    """What all schedules have in common."""

    graph: QuantizedGraph
    in_place: bool
    fuse_add: bool
    alignment: int
    streams_input: bool

    @cached_property
    def whole(self) -> Found:
        """Every layer as a whole; a streamed image is then read in one piece."""
        graph = whole_image_read(self.graph) if self.streams_input else self.graph
        return Found(
            smallest(
                graph,
                in_place=self.in_place,
                fuse_add=self.fuse_add,
                alignment=self.alignment,
                streams_input=self.streams_input,
            ),
            None,
        )

    @cached_property
    def ordered(self) -> QuantizedGraph:
        """The network in the order in which it is best run whole: tiles keep it."""
        ops: list[QOp] = []
        for step in self.whole.candidate.program.fused:
            parts = (step.op, step.add, None if step.paste is step.op else step.paste)
            ops += [op for op in parts if op is not None]
        names = {op.name: op for op in self.graph.ops}
        return replace(self.graph, ops=tuple(names[op.name] for op in ops if op.name in names))

    def tiled(self, schedule: Schedule) -> Found:
        """One schedule, placed."""
        tiling = tile(self.ordered, schedule, streams_input=self.streams_input)
        return Found(place_tiles(tiling, self._programs(tiling), self.alignment), tiling)

    def _programs(self, tiling: Tiling) -> list[tuple[Program, Timeline]]:
        return tiled_programs(tiling, in_place=self.in_place, fuse_add=self.fuse_add, streams_input=self.streams_input)

    def least_bytes(self, schedule: Schedule) -> int:
        """No placing of this schedule takes less; a huge number where the network cannot run that way."""
        if schedule not in self._judged:
            try:
                tiling = tile(self.ordered, schedule, streams_input=self.streams_input)
                self._judged[schedule] = least_bytes(*self._programs(tiling)[0])
            except ConfigError:  # tiles of padding alone
                self._judged[schedule] = _NEVER
        return self._judged[schedule]

    def cheapest_within(self, most_bytes: int) -> Found | None:
        """The first schedule that fits, in order of what it costs; ``None`` where none does."""
        if self.whole.total_bytes <= most_bytes:
            return self.whole
        hopeful = [each for each in self._outlooks if each[1].least_bytes <= most_bytes]
        misses: dict[str, int] = {}
        for schedule, _ in sorted(hopeful, key=lambda each: _cost(*each)):
            if misses.get(schedule.split, 0) < _MOST_MISSES and self.least_bytes(schedule) <= most_bytes:
                found = self.tiled(schedule)
                if found.total_bytes <= most_bytes:
                    return found
                misses[schedule.split] = misses.get(schedule.split, 0) + 1
        return None

    def smallest(self) -> Found:
        """The least memory found by any schedule, never more than the whole network's."""
        best = self.whole
        patience = _PATIENCE
        misses: dict[str, int] = {}
        for schedule, seen in sorted(self._outlooks, key=lambda each: each[1].least_bytes):
            if seen.least_bytes >= best.total_bytes or patience == 0:
                break
            if (isinstance(schedule, Rows) and schedule.height > 1) or misses.get(schedule.split, 0) >= _MOST_MISSES:
                continue
            patience -= 1
            if self.least_bytes(schedule) < best.total_bytes:
                found = self.tiled(schedule)
                if found.total_bytes < best.total_bytes:
                    best, patience = found, _PATIENCE
                else:
                    misses[schedule.split] = misses.get(schedule.split, 0) + 1
        return self.cheapest_within(best.total_bytes) or best  # of those that take as little

    @cached_property
    def _judged(self) -> dict[Schedule, int]:
        return {}

    @cached_property
    def _outlooks(self) -> list[tuple[Schedule, Outlook]]:
        """Every schedule worth a look, with what can be said of it cheaply; nothing before a split changes what comes after it."""
        found = []
        for split, rest in self._rest_bytes.items():
            for schedule in self._of_split(split):
                seen = outlook(self.ordered, schedule, streams_input=self.streams_input)
                found.append((schedule, replace(seen, least_bytes=max(seen.least_bytes, rest))))
        return found

    @cached_property
    def _rest_bytes(self) -> dict[str, int]:
        """For each split the most bytes that are alive after it, which no schedule of what comes before changes."""
        program = self.whole.candidate.program
        steps = program.fused
        if self.in_place:  # which the whole network does without where that leaves its peak alone
            program = replace(program, in_place=frozenset(step.output for step in steps))
        live = timeline(*program.memory).live_bytes
        made = {step.output: index for index, step in enumerate(steps)}
        found = {}
        for split in splits(self.ordered):
            # a split that the whole network fuses away still makes its map
            own = prod(self.graph.tensors[split].shape)
            found[split] = max(own, *live[made[split] + 1 :]) if split in made else own
        return found

    def _of_split(self, split: str) -> Iterator[Schedule]:
        yield from (Rows(split, height) for height in _HEIGHTS if self._side(split, 0) > height)
        yield from self._grids(split)

    def _grids(self, split: str) -> Iterator[Patches]:
        """Grids of tiles that are about square and of two pixels a side or more; narrower ones are what rows are for."""
        seen: set[tuple[int, int]] = set()
        most = [max(1, self._side(split, axis) // 2) for axis in (0, 1)]
        for count in range(2, _MOST_TILES + 1):
            for down, across in ((count, count - 1), (count - 1, count), (count, count)):
                grid = (min(down, most[0]), min(across, most[1]))
                if grid not in seen and grid != (1, 1):
                    seen.add(grid)
                    yield Patches(split, grid)

    def _side(self, split: str, axis: int) -> int:
        return self.graph.tensors[split].shape[axis]


def _cost(schedule: Schedule, seen: Outlook) -> tuple[int, int]:
    """Halos, then calls: more rows at once are fewer of them."""
    return seen.halo_macs, -schedule.height if isinstance(schedule, Rows) else 0


def whole_image_read(graph: QuantizedGraph) -> QuantizedGraph:
    """The same network with its image read in one piece, so that it need not lie in memory before."""
    source = graph.tensors[graph.input]
    if len(source.shape) != 3:
        shape = "x".join(map(str, source.shape))
        raise ConfigError(
            f"input='stream': the input of '{graph.name}' is {shape}, no image of rows and columns; take 'resident'"
        )
    if graph.input in graph.outputs:
        raise ConfigError(
            f"input='stream': the input of '{graph.name}' is one of its outputs, so it has to be in memory; take 'resident'"
        )
    name = f"{graph.input}@"
    read = Crop(name=name, inputs=(graph.input,), top=0, left=0)
    ops = tuple(
        replace(op, inputs=tuple(name if each == graph.input else each for each in op.inputs)) for op in graph.ops
    )
    return replace(graph, tensors={**graph.tensors, name: replace(source, name=name)}, ops=(read, *ops))

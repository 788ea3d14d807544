"""Which operations become one step, and which steps may write over what they read: the programs among which planning chooses.

A residual addition can be done by the layer that makes one of its inputs, so that this input never exists; a result can be written over an
input that nobody needs any more, or straight into the map that it is a part of; a reshape, and whole rows of an image, are other names for
the same bytes. What the kernels allow is asked of ``lowering``.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from math import prod

from lilliput.mcu.arena import SEARCH_EFFORT, Block, Packing, free_offset, pack
from lilliput.mcu.lowering import can_fuse_add, can_run_in_place, scratch_bytes
from lilliput.mcu.schedule import Task, Timeline, best_order, timeline
from lilliput.mcu.tiling import Tiling
from lilliput.mcu.views import is_one_run, is_view, views
from lilliput.quantize.qgraph import Add, Crop, Paste, QOp, QuantizedGraph

_MOST_LIMITS = 6
SCRATCH_ALIGNMENT = 4
"""The kernels use their working memory as words."""


@dataclass(frozen=True)
class Fused:
    """Operations that one step does: any one, then perhaps the addition of a skip tensor, then perhaps a Paste of the result."""

    op: QOp
    add: Add | None
    paste: Paste | None
    """Into what it writes its result; of a step that does nothing else it is the operation."""
    inputs: tuple[str, ...]
    """The tensors it reads, in the kernel's order: the operation's own, then the skip tensor."""
    base: str | None
    """What a Paste puts its piece into: the output takes over these bytes."""
    output: str
    is_alias: bool
    """Nothing to compute: the output is the input's bytes under another shape."""
    hosts: tuple[str, ...]
    """The buffers it may write its result over, once nobody else needs them."""
    scratch_bytes: int


@dataclass(frozen=True, eq=False)
class Program:
    """Steps in an order in which they can run, before it is decided where their results lie."""

    graph: QuantizedGraph
    fused: tuple[Fused, ...]
    in_place: frozenset[str]
    """Outputs that may be written over an input."""
    streams_input: bool = False
    """The input is not in memory: a Crop of it reads it from elsewhere."""

    @cached_property
    def memory(self) -> tuple[tuple[Task, ...], Mapping[str, int], Collection[str], Collection[str]]:
        """What ``schedule`` asks for: what each step does to memory, bytes of each buffer, inputs, outputs."""
        place = views(self.graph, streams_input=self.streams_input)
        sizes = {name: prod(tensor.shape) for name, tensor in self.graph.tensors.items()}
        made_by = {step.output: index for index, step in enumerate(self.fused)}
        absent = {self.graph.input} if self.streams_input else set()
        tasks = []
        for step in self.fused:
            read = [name for name in (*step.inputs, step.base) if name is not None]
            tasks.append(
                Task(
                    name=step.output,
                    reads=tuple(dict.fromkeys(place[name].buffer for name in read if name not in absent)),
                    writes=None if step.is_alias else step.output,
                    hosts=step.hosts if step.base is not None or step.output in self.in_place else (),
                    after=tuple(made_by[name] for name in read if name in made_by),
                    scratch_bytes=step.scratch_bytes,
                )
            )
        outputs = {place[name].buffer for name in self.graph.outputs}
        return tuple(tasks), sizes, {self.graph.input} - absent, outputs

    def reordered(self, order: tuple[int, ...]) -> Program:
        """The same steps in another order."""
        return replace(self, fused=tuple(self.fused[index] for index in order))


@dataclass(frozen=True)
class Candidate:
    """A program with its buffers placed."""

    program: Program
    timeline: Timeline
    packing: Packing
    scratch_offsets: tuple[int | None, ...]
    """For each step where in the arena its working memory lies. ``None``: it needs none, or it goes to a buffer apart."""

    @cached_property
    def scratch_bytes(self) -> int:
        """Working memory apart from the arena, shared by the steps that have no place in it."""
        pairs = zip(self.program.fused, self.scratch_offsets, strict=True)
        return max((step.scratch_bytes for step, offset in pairs if offset is None), default=0)

    @property
    def total_bytes(self) -> int:
        """Arena and scratch apart from it."""
        return self.packing.arena_bytes + self.scratch_bytes


def least_bytes(program: Program, times: Timeline) -> int:
    """What a program takes at least, whatever lies where: at each step what is alive, and the step's working memory."""
    needed = (live + step.scratch_bytes for live, step in zip(times.live_bytes, program.fused, strict=False))
    return max(times.peak_bytes, max(needed, default=0))


def smallest(
    graph: QuantizedGraph, *, in_place: bool, fuse_add: bool, alignment: int = 1, streams_input: bool = False
) -> Candidate:
    """The program with the smallest arena and scratch: packed in order of their bounds until no bound is lower than what was reached.

    Between equals the bolder program wins, then the graph's own order.
    """
    ways = []
    for program in programs(graph, in_place=in_place, fuse_add=fuse_add, streams_input=streams_input):
        order = best_order(*program.memory)
        ways.append((program, timeline(*program.memory)))
        if order != tuple(range(len(order))):
            ways.append((reordered := program.reordered(order), timeline(*reordered.memory)))
    ways.sort(key=lambda way: least_bytes(*way))
    best: Candidate | None = None
    for program, times in ways:
        if best is not None and best.total_bytes <= least_bytes(program, times):
            break
        for candidate in _placed(program, times, alignment):
            if best is None or candidate.total_bytes < best.total_bytes:
                best = candidate
    assert best is not None
    return best


def tiled_programs(
    tiling: Tiling, *, in_place: bool, fuse_add: bool, streams_input: bool
) -> list[tuple[Program, Timeline]]:
    """Programs of a network that runs tile by tile, in the graph's own order; those that may take least first, bolder ones before.

    Each addition stands in many tiles, so only two are compared: every addition fused where that is possible, and none.
    """
    found: list[Program] = []
    for fuses in (True, False) if fuse_add else (False,):
        boldest = next(programs(tiling.graph, in_place=in_place, fuse_add=fuses, streams_input=streams_input))
        if not found or found[0].fused != boldest.fused:
            found.append(boldest)
    return sorted(((each, timeline(*each.memory)) for each in found), key=lambda way: least_bytes(*way))


def place_tiles(tiling: Tiling, ways: Sequence[tuple[Program, Timeline]], alignment: int = 1) -> Candidate:
    """The programs packed until none can take less, what is the same in every tile at the same place where that costs nothing."""
    best: Candidate | None = None
    for program, times in ways:
        least = least_bytes(program, times)
        if best is not None and best.total_bytes <= least:
            break
        for candidate in _placed_tiles(tiling, program, times, alignment):
            if best is None or candidate.total_bytes < best.total_bytes:
                best = candidate
            if best.total_bytes <= least:
                break
    assert best is not None
    return best


def _placed_tiles(tiling: Tiling, program: Program, times: Timeline, alignment: int) -> Iterator[Candidate]:
    for way, lived in _ways_in_place(program, times):
        for ties in (lived.tied + _role_ties(lived, tiling.roles), lived.tied):
            packing = pack(lived.blocks, tied=ties, alignment=alignment)
            yield from _with_scratch(way, lived, packing, alignment, ties)


def _role_ties(times: Timeline, roles: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """Blocks that play one role in different tiles, so far as none of those tied together are ever alive together."""
    group_of: dict[str, list[Block]] = {block.name: [block] for block in times.blocks}

    def join(first: str, second: str) -> bool:
        one, other = group_of[first], group_of[second]
        if one is other:
            return True
        both = sorted((*one, *other), key=lambda block: block.start)
        if any(after.start < before.stop for before, after in pairwise(both)):
            return False
        group_of.update(dict.fromkeys((block.name for block in both), both))
        return True

    for host, guest in times.tied:
        join(host, guest)
    first_of: dict[str, str] = {}
    found = []
    for block in times.blocks:
        role = roles.get(block.name)
        if role is not None:
            first = first_of.setdefault(role, block.name)
            if first != block.name and join(first, block.name):
                found.append((first, block.name))
    return tuple(found)


def _placed(program: Program, times: Timeline, alignment: int) -> Iterator[Candidate]:
    """The program packed; where that misses the bound, also with fewer results in place; searched only where no quick packing meets it."""
    ways = tuple(_ways_in_place(program, times))
    for effort in (0, SEARCH_EFFORT):
        for way, lived in ways:
            packing = pack(lived.blocks, tied=lived.tied, alignment=alignment, search_effort=effort)
            is_lowest = packing.arena_bytes <= packing.lower_bound_bytes
            if effort or is_lowest:
                yield from _with_scratch(way, lived, packing, alignment, lived.tied)
            if is_lowest:
                return


def _ways_in_place(program: Program, times: Timeline) -> Iterator[tuple[Program, Timeline]]:
    """The program, then with results in place only at the steps that need it.

    A result written over another buffer is pinned to its first byte, which can keep the others from fitting.
    """
    yield program, times
    tasks, sizes, _, _ = program.memory
    least = least_bytes(program, times)
    needed = set()
    for task, host, live in zip(tasks, times.hosts, times.live_bytes[:-1], strict=True):
        if host is not None:
            apart = live + min(sizes[host], sizes[task.name])  # what would be alive if they lay apart
            if apart > times.peak_bytes or apart + task.scratch_bytes > least:
                needed.add(task.name)
    freed = replace(program, in_place=program.in_place & needed)
    if freed.in_place != program.in_place:
        yield freed, timeline(*freed.memory)


def _with_scratch(
    program: Program, times: Timeline, packing: Packing, alignment: int, tied: tuple[tuple[str, str], ...]
) -> Iterator[Candidate]:
    """Working memory in the gaps that packed activations leave; then, if that is not the least, packed together with them."""
    offsets = tuple(
        free_offset(times.blocks, packing, index, step.scratch_bytes, SCRATCH_ALIGNMENT)
        for index, step in enumerate(program.fused)
    )
    yield (apart := Candidate(program, times, packing, offsets))
    if apart.total_bytes > least_bytes(program, times):
        slack = SCRATCH_ALIGNMENT - 1  # a block may begin anywhere, its words must not
        scratch = {
            index: Block(f"scratch {index}", step.scratch_bytes + slack, index, index + 1)
            for index, step in enumerate(program.fused)
            if step.scratch_bytes
        }
        together = pack((*times.blocks, *scratch.values()), tied=tied, alignment=alignment)
        places = {index: together.offsets[block.name] for index, block in scratch.items()}
        aligned = (
            places[i] + -places[i] % SCRATCH_ALIGNMENT if i in places else None for i in range(len(program.fused))
        )
        yield Candidate(program, times, together, tuple(aligned))


def programs(
    graph: QuantizedGraph, *, in_place: bool, fuse_add: bool, streams_input: bool = False
) -> Iterator[Program]:
    """Ways to fuse and to allow results in place that are worth comparing, the boldest first, the plain one last.

    Additions are fused or not by what that costs in scratch: all of them up to a limit, for each limit there is. Where both inputs of an
    addition could take it in, the later one does in one program and the earlier one in another.
    """
    steps = _Steps(graph, streams_input=streams_input)
    hosts = _fusable(graph) if fuse_add else {}
    costs = {add: {op.name: steps.scratch_bytes(op, add) for op in producers} for add, producers in hosts.items()}
    plain = steps.fuse({})
    free_bytes = max((step.scratch_bytes for step in plain), default=0)  # what some step needs anyway
    limits = sorted({max(cost, free_bytes) for each in costs.values() for cost in each.values()}, reverse=True)
    seen = []
    for limit in limits[:: -(-len(limits) // _MOST_LIMITS) or 1]:
        for preferred in (-1, 0):
            allowed = {add: [name for name, cost in each.items() if cost <= limit] for add, each in costs.items()}
            choice = {names[preferred]: steps.adds[add] for add, names in allowed.items() if names}
            if choice and choice not in seen:
                seen.append(choice)
                yield from _with_in_place(steps, steps.fuse(choice), in_place)
    yield from _with_in_place(steps, plain, in_place)


def _with_in_place(steps: _Steps, fused: tuple[Fused, ...], in_place: bool) -> Iterator[Program]:
    ways = [frozenset(step.output for step in fused)] if in_place else []
    # Writing the sum over the skip tensor is part of fusing, and stays.
    ways.append(frozenset(step.output for step in fused if step.add is not None))
    for way in ways:
        yield Program(steps.graph, fused, way, steps.streams_input)


def _fusable(graph: QuantizedGraph) -> dict[str, list[QOp]]:
    """For each addition the operations that could take it in, in running order: nobody else may need what they make."""
    readers: dict[str, list[str]] = {}
    position = {op.name: index for index, op in enumerate(graph.ops)}
    for op in graph.ops:
        for name in op.inputs:
            readers.setdefault(name, []).append(op.name)
    found = {}
    for add in graph.ops:
        if isinstance(add, Add):
            makers = sorted(position[name] for name in set(add.inputs) if name in position)
            able = [
                op
                for op in (graph.ops[index] for index in makers)
                if readers[op.name] == [add.name] and op.name not in graph.outputs and can_fuse_add(op, add)
            ]
            if able:
                found[add.name] = able
    return found


class _Steps:
    """Makes steps from operations, asking the kernels once for each."""

    def __init__(self, graph: QuantizedGraph, *, streams_input: bool = False) -> None:
        self.graph, self.streams_input = graph, streams_input
        self.adds = {op.name: op for op in graph.ops if isinstance(op, Add)}
        self.views = views(graph, streams_input=streams_input)
        self.pastes = self._pastes()
        self._made: dict[tuple[str, str | None], Fused] = {}
        self._scratch: dict[tuple[str, str | None], int] = {}
        self._hosts = {op.name: self._in_place_hosts(op) for op in graph.ops}

    def scratch_bytes(self, op: QOp, add: str | None) -> int:
        """Working memory of the operation, alone or with an addition."""
        key = (op.name, add)
        if key not in self._scratch and not self._is_view(op):
            fused_add = None if add is None else self.adds[add]
            self._scratch[key] = scratch_bytes(op, self.graph.tensors, fused_add=fused_add)
        return self._scratch.get(key, 0)

    def fuse(self, choice: Mapping[str, Add]) -> tuple[Fused, ...]:
        """All steps, with these additions taken in by the operations named; a step runs as soon as all it reads is there."""
        taken = {add.name for add in choice.values()} | {paste.name for paste in self.pastes.values()}
        waiting: list[Fused] = []
        steps: list[Fused] = []
        made = {self.graph.input}
        for op in self.graph.ops:
            if op.name in taken:
                continue
            add = choice.get(op.name)
            key = (op.name, None if add is None else add.name)
            waiting.append(self._made.setdefault(key, self._made.get(key) or self._step(op, add)))
            while ready := next((step for step in waiting if made.issuperset(_read_by(step))), None):
                waiting.remove(ready)
                steps.append(ready)
                made.add(ready.output)
        assert not waiting, "an operation that takes in an addition has no other reader, so nothing can wait for itself"
        return tuple(steps)

    def _is_view(self, op: QOp) -> bool:
        return is_view(op, self.graph, streams_input=self.streams_input)

    def _pastes(self) -> dict[str, Paste]:
        """For each piece the Paste that its maker can do as it writes: nobody else reads it, and it is one run of bytes in the whole."""
        readers: dict[str, int] = {}
        for op in self.graph.ops:
            for name in op.inputs:
                readers[name] = readers.get(name, 0) + 1
        made_here = {op.name for op in self.graph.ops if not self._is_view(op) and not isinstance(op, Paste)}
        tensors = self.graph.tensors
        return {
            op.inputs[0]: op
            for op in self.graph.ops
            if isinstance(op, Paste)
            and op.inputs[0] in made_here
            and readers[op.inputs[0]] == 1
            and op.inputs[0] not in self.graph.outputs
            and is_one_run(tensors[op.inputs[0]].shape, tensors[op.name].shape)
        }

    def _step(self, op: QOp, add: Add | None) -> Fused:
        piece = op.name if add is None else add.name
        paste = op if isinstance(op, Paste) else self.pastes.get(piece)
        base = None if paste is None or len(paste.inputs) == 1 else paste.inputs[1]
        inputs = op.inputs[:1] if isinstance(op, Paste) else op.inputs
        hosts = self._hosts[op.name]
        scratch = self.scratch_bytes(op, None if add is None else add.name)
        if add is not None:
            skip = next(name for name in add.inputs if name != op.name)
            inputs = (*inputs, skip)
            # The sum goes over the skip tensor pixel by pixel, unless the layer reads that very buffer around the pixel.
            is_apart = self.views[skip].buffer not in [self.views[name].buffer for name in op.inputs]
            hosts = (self.views[skip].buffer,) if is_apart and self._starts_buffer(skip, piece) else ()
        if base is not None:
            hosts = (base,)
        elif paste is not None and paste is not op:
            hosts = ()  # the whole is larger than the piece, so it cannot lie where an input does
        output = piece if paste is None else paste.name
        return Fused(op, add, paste, inputs, base, output, self._is_view(op), hosts, scratch)

    def _in_place_hosts(self, op: QOp) -> tuple[str, ...]:
        tensors = self.graph.tensors
        if self._is_view(op) or not can_run_in_place(op, tensors):
            return ()
        if isinstance(op, (Crop, Paste)):  # moves bytes towards the buffer's beginning, in order: from anywhere in it
            buffer = self.views[op.inputs[0]].buffer
            is_there = not (self.streams_input and buffer == self.graph.input)
            return (buffer,) if is_there and tensors[buffer].bytes >= tensors[op.name].bytes else ()
        names = op.inputs if isinstance(op, Add) else op.inputs[:1]
        if tensors[op.name].bytes > tensors[op.inputs[0]].bytes:  # a longer result, as the kernel allows
            return (self.views[names[0]].buffer,) if self.views[names[0]].offset_bytes == 0 else ()
        return tuple(dict.fromkeys(self.views[name].buffer for name in names if self._starts_buffer(name, op.name)))

    def _starts_buffer(self, name: str, output: str) -> bool:
        """Whether an output that is written over this input, from the buffer's first byte on, has room there."""
        tensors, view = self.graph.tensors, self.views[name]
        return view.offset_bytes == 0 and tensors[name].bytes >= tensors[output].bytes


def _read_by(step: Fused) -> tuple[str, ...]:
    return step.inputs if step.base is None else (*step.inputs, step.base)

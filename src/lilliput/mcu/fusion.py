"""Which operations become one step, and which steps may write over what they read: the programs among which planning chooses.

A residual addition can be done by the layer that makes one of its inputs, so that this input never exists; a result can be written over an
input that nobody needs any more; a reshape is another name for the same bytes. What the kernels allow is asked of ``lowering``.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod

from lilliput.mcu.arena import Block, Packing, free_offset, pack
from lilliput.mcu.lowering import can_fuse_add, can_run_in_place, scratch_bytes
from lilliput.mcu.schedule import Task, Timeline, best_order, timeline
from lilliput.quantize.qgraph import Add, QOp, QuantizedGraph, Reshape

_MOST_LIMITS = 6
SCRATCH_ALIGNMENT = 4
"""The kernels use their working memory as words."""


@dataclass(frozen=True)
class Fused:
    """Operations that one step does: any one, or one with the addition of a skip tensor to its output."""

    op: QOp
    add: Add | None
    inputs: tuple[str, ...]
    """The tensors it reads, in the kernel's order: the operation's own, then the skip tensor."""
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

    @cached_property
    def memory(self) -> tuple[tuple[Task, ...], Mapping[str, int], Collection[str], Collection[str]]:
        """What ``schedule`` asks for: what each step does to memory, bytes of each buffer, inputs, outputs."""
        holder = storage(self.graph)
        sizes = {name: prod(tensor.shape) for name, tensor in self.graph.tensors.items()}
        made_by = {step.output: index for index, step in enumerate(self.fused)}
        tasks = tuple(
            Task(
                name=step.output,
                reads=tuple(dict.fromkeys(holder[name] for name in step.inputs)),
                writes=None if step.is_alias else step.output,
                hosts=step.hosts if step.output in self.in_place else (),
                after=tuple(made_by[name] for name in step.inputs if name in made_by),
                scratch_bytes=step.scratch_bytes,
            )
            for step in self.fused
        )
        return tasks, sizes, {self.graph.input}, {holder[name] for name in self.graph.outputs}

    def reordered(self, order: tuple[int, ...]) -> Program:
        """The same steps in another order."""
        return Program(self.graph, tuple(self.fused[index] for index in order), self.in_place)


def storage(graph: QuantizedGraph) -> dict[str, str]:
    """For each tensor the one that holds its bytes: a reshape holds none of its own."""
    holder = {graph.input: graph.input}
    for op in graph.ops:
        holder[op.name] = holder[op.inputs[0]] if isinstance(op, Reshape) else op.name
    return holder


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


def _least_bytes(way: tuple[Program, Timeline]) -> int:
    """What a program takes at least, whatever lies where: at each step what is alive, and the step's working memory."""
    program, times = way
    needed = (live + step.scratch_bytes for live, step in zip(times.live_bytes, program.fused, strict=False))
    return max(times.peak_bytes, max(needed, default=0))


def smallest(graph: QuantizedGraph, *, in_place: bool, fuse_add: bool, alignment: int = 1) -> Candidate:
    """The program with the smallest arena and scratch: packed in order of their bounds until no bound is lower than what was reached.

    Between equals the bolder program wins, then the graph's own order.
    """
    ways = []
    for program in programs(graph, in_place=in_place, fuse_add=fuse_add):
        order = best_order(*program.memory)
        ways.append((program, timeline(*program.memory)))
        if order != tuple(range(len(order))):
            ways.append((reordered := program.reordered(order), timeline(*reordered.memory)))
    ways.sort(key=_least_bytes)
    best: Candidate | None = None
    for program, times in ways:
        if best is not None and best.total_bytes <= _least_bytes((program, times)):
            break
        for candidate in _placed(program, times, alignment):
            if best is None or candidate.total_bytes < best.total_bytes:
                best = candidate
    assert best is not None
    return best


def _placed(program: Program, times: Timeline, alignment: int) -> Iterator[Candidate]:
    """The program packed; where that misses the bound, also with results in place only at the steps that need it.

    A result written over a longer buffer is pinned to its first byte, which can keep the others from fitting.
    """
    packing = pack(times.blocks, tied=times.tied, alignment=alignment)
    yield from _with_scratch(program, times, packing, alignment)
    if packing.arena_bytes > packing.lower_bound_bytes:
        tasks, sizes, _, _ = program.memory
        needed = {
            task.name
            for task, live in zip(tasks, times.live_bytes[:-1], strict=True)
            if live + sizes[task.name] > times.peak_bytes
        }
        freed = Program(program.graph, program.fused, program.in_place & needed)
        if freed.in_place != program.in_place:
            times = timeline(*freed.memory)
            packing = pack(times.blocks, tied=times.tied, alignment=alignment)
            yield from _with_scratch(freed, times, packing, alignment)


def _with_scratch(program: Program, times: Timeline, packing: Packing, alignment: int) -> Iterator[Candidate]:
    """Working memory in the gaps that packed activations leave; then, if that is not the least, packed together with them."""
    offsets = tuple(
        free_offset(times.blocks, packing, index, step.scratch_bytes, SCRATCH_ALIGNMENT)
        for index, step in enumerate(program.fused)
    )
    yield (apart := Candidate(program, times, packing, offsets))
    if apart.total_bytes > _least_bytes((program, times)):
        slack = SCRATCH_ALIGNMENT - 1  # a block may begin anywhere, its words must not
        scratch = {
            index: Block(f"scratch {index}", step.scratch_bytes + slack, index, index + 1)
            for index, step in enumerate(program.fused)
            if step.scratch_bytes
        }
        together = pack((*times.blocks, *scratch.values()), tied=times.tied, alignment=alignment)
        places = {index: together.offsets[block.name] for index, block in scratch.items()}
        aligned = (
            places[i] + -places[i] % SCRATCH_ALIGNMENT if i in places else None for i in range(len(program.fused))
        )
        yield Candidate(program, times, together, tuple(aligned))


def programs(graph: QuantizedGraph, *, in_place: bool, fuse_add: bool) -> Iterator[Program]:
    """Ways to fuse and to allow results in place that are worth comparing, the boldest first, the plain one last.

    Additions are fused or not by what that costs in scratch: all of them up to a limit, for each limit there is. Where both inputs of an
    addition could take it in, the later one does in one program and the earlier one in another.
    """
    steps = _Steps(graph)
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
                yield from _with_in_place(graph, steps.fuse(choice), in_place)
    yield from _with_in_place(graph, plain, in_place)


def _with_in_place(graph: QuantizedGraph, fused: tuple[Fused, ...], in_place: bool) -> Iterator[Program]:
    if in_place:
        yield Program(graph, fused, frozenset(step.output for step in fused))
    # Writing the sum over the skip tensor is part of fusing, and stays.
    yield Program(graph, fused, frozenset(step.output for step in fused if step.add is not None))


def _fusable(graph: QuantizedGraph) -> dict[str, list[QOp]]:
    """For each addition the operations that could take it in, in running order: nobody else may need what they make."""
    readers: dict[str, list[str]] = {}
    for op in graph.ops:
        for name in op.inputs:
            readers.setdefault(name, []).append(op.name)
    found = {}
    for add in graph.ops:
        if isinstance(add, Add):
            able = [
                op
                for op in graph.ops
                if readers.get(op.name) == [add.name] and op.name not in graph.outputs and can_fuse_add(op, add)
            ]
            if able:
                found[add.name] = able
    return found


class _Steps:
    """Makes steps from operations, asking the kernels once for each."""

    def __init__(self, graph: QuantizedGraph) -> None:
        self.graph = graph
        self.adds = {op.name: op for op in graph.ops if isinstance(op, Add)}
        self.holder = storage(graph)
        self._made: dict[tuple[str, str | None], Fused] = {}
        self._scratch: dict[tuple[str, str | None], int] = {}
        self._hosts = {op.name: self._in_place_hosts(op) for op in graph.ops}

    def scratch_bytes(self, op: QOp, add: str | None) -> int:
        """Working memory of the operation, alone or with an addition."""
        key = (op.name, add)
        if key not in self._scratch and not isinstance(op, Reshape):
            fused_add = None if add is None else self.adds[add]
            self._scratch[key] = scratch_bytes(op, self.graph.tensors, fused_add=fused_add)
        return self._scratch.get(key, 0)

    def fuse(self, choice: Mapping[str, Add]) -> tuple[Fused, ...]:
        """All steps, with these additions taken in by the operations named; a step runs as soon as all it reads is there."""
        taken = {add.name for add in choice.values()}
        waiting: list[Fused] = []
        steps: list[Fused] = []
        made = {self.graph.input}
        for op in self.graph.ops:
            if op.name in taken:
                continue
            add = choice.get(op.name)
            key = (op.name, None if add is None else add.name)
            waiting.append(self._made.setdefault(key, self._made.get(key) or self._step(op, add)))
            while ready := next((step for step in waiting if made.issuperset(step.inputs)), None):
                waiting.remove(ready)
                steps.append(ready)
                made.add(ready.output)
        assert not waiting, "an operation that takes in an addition has no other reader, so nothing can wait for itself"
        return tuple(steps)

    def _step(self, op: QOp, add: Add | None) -> Fused:
        if add is None:
            hosts, scratch = self._hosts[op.name], self.scratch_bytes(op, None)
            return Fused(op, None, op.inputs, op.name, isinstance(op, Reshape), hosts, scratch)
        skip = next(name for name in add.inputs if name != op.name)
        # The sum goes over the skip tensor pixel by pixel, unless the layer reads that very buffer around the pixel.
        is_apart = self.holder[skip] not in [self.holder[name] for name in op.inputs]
        hosts = (self.holder[skip],) if is_apart else ()
        return Fused(op, add, (*op.inputs, skip), add.name, False, hosts, self.scratch_bytes(op, add.name))

    def _in_place_hosts(self, op: QOp) -> tuple[str, ...]:
        tensors = self.graph.tensors
        if isinstance(op, Reshape) or not can_run_in_place(op, tensors):
            return ()
        names = op.inputs if isinstance(op, Add) else op.inputs[:1]
        return tuple(
            dict.fromkeys(self.holder[name] for name in names if tensors[name].bytes >= tensors[op.name].bytes)
        )

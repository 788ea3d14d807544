"""Where every buffer of a training program lies: lifetimes from its order, offsets from the arena planner that inference uses.

Masks, kept channels and gradients are blocks like any other. Working memory of kernels is a block that lives for one step.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from lilliput.mcu.arena import Block, lower_bound, pack, verify_packing
from lilliput.mcu.schedule import Task, timeline
from lilliput.mcu.training import graph as t
from lilliput.mcu.training.in_place import hosts, is_alias
from lilliput.mcu.training.scratch import scratch_bytes

ALIGNMENT = 4
"""Buffers of 16- and 32-bit numbers lie among those of bytes."""


@dataclass(frozen=True, eq=False)
class Placement:
    """A program with every byte placed."""

    program: t.Program
    blocks: tuple[Block, ...]
    offsets: Mapping[str, int]
    """First byte in the arena of each buffer, those that are other names included, and of each operation's working memory."""
    storage: Mapping[str, str]
    """For each buffer the one that holds its bytes."""
    hosts: tuple[str | None, ...]
    """For each operation the buffer its result is written over."""
    arena_bytes: int
    lower_bound_bytes: int
    """Most bytes alive at one step: no arena for this order is smaller."""
    live_bytes: tuple[int, ...]
    """At each operation, working memory included."""

    @property
    def binding(self) -> t.Op:
        """The operation during which most bytes are alive."""
        return self.program.ops[max(range(len(self.live_bytes)), key=self.live_bytes.__getitem__)]

    def scratch_offset(self, op: t.Op) -> int | None:
        """Where an operation's working memory begins; ``None`` where it needs none."""
        return self.offsets.get(_scratch(op))

    def verify(self) -> None:
        """Prove that no two live buffers share a byte.

        Raises:
            PackingError: it is not so.
        """
        verify_packing(self.blocks, self.offsets, self.arena_bytes, alignment=ALIGNMENT)


def place(program: t.Program, *, in_place: bool = True) -> Placement:
    """Lifetimes in the program's own order, then offsets; verified."""
    storage = _storage(program)
    tasks = [_task(op, program, storage, in_place=in_place) for op in program.ops]
    sizes = {name: buffer.bytes for name, buffer in program.buffers.items()}
    times = timeline(tasks, sizes, {program.input}, ())
    blocks = (*times.blocks, *_masks(program), *_scratches(program))
    packing = pack(blocks, alignment=ALIGNMENT, tied=times.tied)
    offsets = dict(packing.offsets) | {name: packing.offsets[storage[name]] for name in program.buffers}
    live = [0] * len(tasks)
    for block in blocks:
        for index in range(block.start, min(block.stop, len(live))):
            live[index] += block.size_bytes
    placement = Placement(
        program=program,
        blocks=blocks,
        offsets=offsets,
        storage=storage,
        hosts=times.hosts,
        arena_bytes=packing.arena_bytes,
        lower_bound_bytes=lower_bound(blocks, alignment=ALIGNMENT),
        live_bytes=tuple(live),
    )
    placement.verify()
    return placement


def _task(op: t.Op, program: t.Program, storage: Mapping[str, str], *, in_place: bool) -> Task:
    over = tuple(dict.fromkeys(storage[name] for name in hosts(op, program))) if in_place else ()
    return Task(
        name=op.name,
        reads=tuple(dict.fromkeys(storage[name] for name in op.inputs)),
        writes=op.outputs[0] if op.outputs and not is_alias(op) else None,
        hosts=over,
    )


def _storage(program: t.Program) -> dict[str, str]:
    found = {program.input: program.input}
    for op in program.ops:
        for name in op.outputs:
            found[name] = found[op.inputs[0]] if is_alias(op) else name
    return found


def _masks(program: t.Program) -> list[Block]:
    """Second outputs: from the operation that makes them to the last that reads them."""
    last = {name: index for index, op in enumerate(program.ops) for name in op.inputs}
    return [
        Block(name, program.buffers[name].bytes, index, last.get(name, index) + 1)
        for index, op in enumerate(program.ops)
        for name in op.outputs[1:]
    ]


def _scratches(program: t.Program) -> list[Block]:
    sizes = [scratch_bytes(op, program) for op in program.ops]
    pairs = enumerate(zip(program.ops, sizes, strict=True))
    return [Block(_scratch(op), size, index, index + 1) for index, (op, size) in pairs if size]


def _scratch(op: t.Op) -> str:
    return f"{op.name}@scratch"

"""From an integer graph to a plan: what runs in which order, what is fused or done in place, and where every byte lies.

Three decisions lower the memory that a network needs: operations done in place, residual additions fused into the layer before them, and
the order of branches. :func:`plan` compares programs that differ in them (``fusion``), orders each (``schedule``), packs the best into an
arena (``arena``), and proves the result with two verifiers that share no code with what made it.

What is counted: activations, the network's input among them, and the kernels' working memory (scratch), which lies in gaps of the arena
where these are large enough and in a buffer apart where not. Stack is an allowance until it is measured.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int8

from lilliput.errors import BudgetError, ConfigError
from lilliput.evidence.budget import Budget
from lilliput.mcu.arena import Block, verify_packing
from lilliput.mcu.fusion import Candidate
from lilliput.mcu.simulate import simulate, verify_ownership
from lilliput.mcu.tile_search import Found, Search
from lilliput.mcu.tiling import Patches, Rows, Schedule, Tiling
from lilliput.mcu.views import views
from lilliput.quantize.qgraph import Add, Conv2d, Crop, Linear, Paste, QOp, QuantizedGraph

if TYPE_CHECKING:
    from lilliput.mcu.firmware import Firmware

_CODE_BYTES = 16 * 1024
"""Room for kernels and start-up code in the flash size that an error proposes."""
DEFAULT_STACK_BYTES = 1024
"""What a plan sets aside for the stack; the firmware's receipt says what was really used."""


@dataclass(frozen=True)
class Step:
    """One call of a kernel, or a reshape, which is none."""

    op: QOp
    fused_add: Add | None
    paste: Paste | None
    """Where the result goes in a larger map; of a step that does nothing else it is the operation."""
    in_place: bool
    """The output lies on the first input's bytes (of an Add: on one of its inputs; with a fused addition: on the skip tensor's)."""
    is_alias: bool
    """The output is another name for the input's bytes: nothing to do."""
    inputs: tuple[str, ...]
    """Tensors in the kernel's order, the skip tensor of a fused addition last."""
    base: str | None
    """The map that the result is pasted into; the output takes over its bytes."""
    output: str
    overwrites: str | None
    """The tensor whose buffer the output takes over."""
    scratch_bytes: int
    scratch_offset: int | None
    """Where in the arena its working memory lies; ``None``: it needs none, or it has the buffer apart."""
    macs: int
    live_bytes: int
    """Bytes of activations in the arena while it runs."""


@dataclass(frozen=True)
class Lifetime:
    """Where one buffer lies and when: a rectangle of the report's figure."""

    name: str
    source: str
    offset_bytes: int
    size_bytes: int
    start: int
    """Index of the first step at which it is alive."""
    stop: int
    """Half open; the step after the last one is the caller's, who reads the outputs."""


@dataclass(frozen=True, eq=False)
class Plan:
    """A network with its memory decided. Made by :func:`plan`."""

    qgraph: QuantizedGraph
    steps: tuple[Step, ...]
    offsets: Mapping[str, int]
    """First byte in the arena of every tensor that exists; one that was fused away has none."""
    blocks: tuple[Block, ...]
    arena_bytes: int
    lower_bound_bytes: int
    """Most bytes alive at one step under the plan's decisions."""
    scratch_bytes: int
    """Working memory of kernels that found no free place in the arena: a buffer apart."""
    stack_bytes: int
    alignment: int
    tiling: Tiling | None = None
    """How the first layers run tile by tile; ``None``: every layer runs as a whole."""
    streams_input: bool = False
    """The input is not in memory: the firmware asks for parts of it when it needs them."""
    sram_bytes_limit: int | None = None
    flash_bytes_limit: int | None = None

    @property
    def sram_bytes(self) -> int:
        """Arena, scratch and the stack set aside."""
        return self.arena_bytes + self.scratch_bytes + self.stack_bytes

    @property
    def input_bytes(self) -> int:
        """Size of the network's input, which is part of the arena unless it is streamed."""
        return self.qgraph.tensors[self.qgraph.input].bytes

    @property
    def halo_macs(self) -> int:
        """Multiply-accumulates done again because tiles overlap; part of ``macs``."""
        return 0 if self.tiling is None else self.tiling.halo_macs

    @property
    def whole(self) -> QuantizedGraph:
        """The network, not cut into tiles."""
        return self.qgraph if self.tiling is None else self.tiling.whole

    @property
    def output_bytes(self) -> int:
        """Size of all outputs, which are part of the arena."""
        return sum(self.qgraph.tensors[name].bytes for name in self.qgraph.outputs)

    @property
    def weight_bytes(self) -> int:
        """Bytes of int8 weights and int32 biases."""
        return self.qgraph.weight_bytes

    @property
    def constant_bytes(self) -> int:
        """All constants that go to flash, before the kernels' padding; code comes on top."""
        return self.qgraph.constant_bytes

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one inference."""
        return sum(step.macs for step in self.steps)

    @cached_property
    def binding(self) -> str:
        """The step during which most bytes are alive: what to shrink first."""
        return max(self.steps, key=lambda step: step.live_bytes).output if self.steps else self.qgraph.input

    @cached_property
    def storage(self) -> Mapping[str, str]:
        """For each tensor the one that holds its bytes."""
        return {name: view.buffer for name, view in views(self.qgraph, streams_input=self.streams_input).items()}

    def is_overwritten(self, step: Step, name: str) -> bool:
        """Whether the step's kernel may write over this input while it reads it: in place, from the very first byte.

        A part that is moved within its buffer may begin anywhere after the output.
        """
        first, start = self.offsets[name], self.offsets[step.output]
        is_there = first >= start if isinstance(step.op, (Crop, Paste)) else first == start
        return self.storage[name] == step.overwrites and is_there

    def is_read(self, step: Step) -> bool:
        """Whether the step brings a part of the streamed input into memory."""
        return self.streams_input and isinstance(step.op, Crop) and step.inputs[0] == self.qgraph.input

    def lifetimes(self) -> tuple[Lifetime, ...]:
        """Every buffer's bytes and steps, in order of their start."""
        rows = [
            Lifetime(
                b.name,
                self.qgraph.tensors[b.name].source,
                self.offsets[b.name],
                b.size_bytes,
                b.start,
                max(b.stop, b.start + 1),  # at no step alone: seen under the result that covers it
            )
            for b in self.blocks
        ]
        return tuple(sorted(rows, key=lambda row: (row.start, row.offset_bytes)))

    def verify(self) -> None:
        """Prove that no two live buffers share a byte and that each step finds its inputs as they were written.

        Raises:
            PackingError: it is not so.
        """
        verify_packing(self.blocks, self.offsets, self.arena_bytes, alignment=self.alignment)
        verify_ownership(self)

    def run(self, x: Any) -> Int8[np.ndarray, "batch ..."] | tuple[Int8[np.ndarray, "batch ..."], ...]:
        """Output codes of a batch, computed in an arena of ``arena_bytes`` at the planned offsets; equal to ``qgraph.run(x)``.

        Raises:
            DataError: wrong shape or dtype, NaN or infinite values.
        """
        return simulate(self, x)

    def emit_c(
        self,
        directory: str | os.PathLike[str],
        target: str = "cortex-m4",
        vectors: Int8[np.ndarray, "n ..."] | None = None,
    ) -> Firmware:
        """Write a self-contained C99 project; see :func:`lilliput.mcu.codegen.emit_c`."""
        from lilliput.mcu.codegen import emit_c

        return emit_c(self, directory, target, vectors)

    def table(self, op_instructions: Mapping[str, float] | None = None) -> str:
        """One line a step, and the totals: for people.

        Args:
            op_instructions: those of a :class:`Receipt`, to be shown beside each step's multiply-accumulates.
        """
        from lilliput.mcu.listing import table

        return table(self, op_instructions)


def plan(
    qgraph: QuantizedGraph,
    sram: str | int | None = None,
    flash: str | int | None = None,
    *,
    input: str = "resident",
    schedule: str | Schedule = "auto",
    in_place: bool = True,
    fuse_add: bool = True,
    alignment: int = 1,
    stack_bytes: int = DEFAULT_STACK_BYTES,
) -> Plan:
    """Decide order, fusion, places and, where memory is short, how the first layers run tile by tile.

    Switching a decision on never makes the result larger: programs without it are compared too.

    Args:
        sram: most bytes for arena, scratch and stack, as ``"16KB"`` or a number; no limit if None.
        flash: most bytes for the constants. The linker checks the whole image again, code included.
        input: ``"resident"``: the whole input lies in the arena when the network starts. ``"stream"``: the firmware asks for parts of the
            image when it needs them (``ll_model_read``), so that it never holds all of it.
        schedule: ``"auto"``: all layers as a whole if that is within ``sram``, else what costs least among the schedules that fit: first
            rows, which compute nothing twice, then patches with the fewest halos. ``"whole"``; ``"smallest"``: the least memory found;
            or one of :class:`~lilliput.mcu.tiling.Patches` and :class:`~lilliput.mcu.tiling.Rows`.
        in_place: let results be written over inputs that nobody needs any more.
        fuse_add: let a layer add the skip tensor to its result, and write it over the skip tensor.
        alignment: of every tensor, in bytes; our kernels need none.
        stack_bytes: to set aside for the stack.
    Raises:
        BudgetError: it does not fit; names the step that binds, what is needed, what is allowed, what would work.
        ConfigError: a size that cannot be read, an alignment below 1, a schedule that the network cannot run.
        UnsupportedOpError: no kernel for an operation.
    """
    sram_limit = None if sram is None else Budget.parse(sram)
    flash_limit = None if flash is None else Budget.parse(flash)
    if input not in ("resident", "stream"):
        raise ConfigError(f"input='{input}': must be 'resident' or 'stream'")
    if isinstance(schedule, str) and schedule not in ("auto", "whole", "smallest"):
        raise ConfigError(f"schedule='{schedule}': must be 'auto', 'whole', 'smallest', or Patches(...) or Rows(...)")
    if alignment < 1:
        raise ConfigError(f"alignment={alignment}: must be 1 or more bytes; try alignment=4")
    search = Search(qgraph, in_place, fuse_add, alignment, input == "stream")

    def made(found: Found) -> Plan:
        result = _plan(found.candidate, alignment, stack_bytes, found.tiling)
        result.verify()
        return result

    if isinstance(schedule, (Patches, Rows)):
        planned = made(search.tiled(schedule))
    elif schedule == "smallest":
        planned = made(search.smallest())
    elif schedule == "whole" or sram_limit is None:
        planned = made(search.whole)
    else:
        found = search.cheapest_within(sram_limit - stack_bytes)
        planned = made(search.smallest() if found is None else found)
    if sram_limit is not None and planned.sram_bytes > sram_limit:
        bold = replace(search, in_place=True, fuse_add=True)
        best = _plan(bold.whole.candidate, alignment, stack_bytes)
        raise BudgetError(_too_much_sram(planned, best, sram_limit, has_searched=schedule in ("auto", "smallest")))
    if flash_limit is not None and planned.constant_bytes > flash_limit:
        raise BudgetError(_too_much_flash(planned, flash_limit))
    return replace(planned, sram_bytes_limit=sram_limit, flash_bytes_limit=flash_limit)


def _plan(chosen: Candidate, alignment: int, stack_bytes: int, tiling: Tiling | None = None) -> Plan:
    graph, times, streams_input = chosen.program.graph, chosen.timeline, chosen.program.streams_input
    place = views(graph, streams_input=streams_input)
    steps = [
        Step(
            op=fused.op,
            fused_add=fused.add,
            paste=fused.paste,
            in_place=host is not None,
            is_alias=fused.is_alias,
            inputs=fused.inputs,
            base=fused.base,
            output=fused.output,
            overwrites=host,
            scratch_bytes=fused.scratch_bytes,
            scratch_offset=scratch_offset,
            macs=graph.op_macs.get(fused.op.name, 0),
            live_bytes=live,
        )
        for fused, host, live, scratch_offset in zip(
            chosen.program.fused, times.hosts, times.live_bytes[:-1], chosen.scratch_offsets, strict=True
        )
    ]
    there = [*([] if streams_input else [graph.input]), *(step.output for step in steps)]
    offsets = {name: chosen.packing.offsets[place[name].buffer] + place[name].offset_bytes for name in there}
    return Plan(
        qgraph=graph,
        steps=tuple(steps),
        offsets=offsets,
        blocks=times.blocks,
        arena_bytes=chosen.packing.arena_bytes,
        lower_bound_bytes=chosen.packing.lower_bound_bytes,
        scratch_bytes=chosen.scratch_bytes,
        stack_bytes=stack_bytes,
        alignment=alignment,
        tiling=tiling,
        streams_input=streams_input,
    )


def _too_much_sram(planned: Plan, bold: Plan, limit: int, *, has_searched: bool) -> str:
    graph = planned.qgraph
    step = next((step for step in planned.steps if step.output == planned.binding), None)
    shape = "x".join(map(str, graph.tensors[planned.binding].shape))
    kind, module = (type(step.op).__name__, step.op.source) if step is not None else ("input", "")
    fixes = [f"sram={planned.sram_bytes}"]
    if bold.sram_bytes < planned.sram_bytes:
        fixes.insert(0, f"in_place=True, fuse_add=True (needs {bold.sram_bytes:,})")
    if not has_searched and len(graph.tensors[graph.input].shape) == 3:
        fixes.append("schedule='auto'")
    elif not planned.streams_input and len(graph.tensors[graph.input].shape) == 3:
        fixes.append("input='stream'")
    image = graph.tensors[graph.input].shape
    factor = (max(0, limit - planned.scratch_bytes - planned.stack_bytes) / planned.arena_bytes) ** 0.5
    if len(image) == 3 and min(image[:2]) * factor >= 1:
        # Activations shrink with the image's area; channels and scratch stay.
        height, width = (int(size * factor) // 8 * 8 or int(size * factor) for size in image[:2])  # strides round up
        fixes.append(f"an image of {height}x{width}")
    else:
        fixes.append("narrower layers there")
    return (
        f"'{graph.name}' needs {planned.sram_bytes:,} bytes of SRAM{_how(planned)} "
        f"(arena {planned.arena_bytes:,} + scratch {planned.scratch_bytes:,} "
        f"+ stack {planned.stack_bytes:,}) > sram {limit:,}, at '{planned.binding}' ({kind}{f', module {module!r}' if module else ''}, "
        f"{shape} int8); try {' or '.join(fixes)}"
    )


def _how(planned: Plan) -> str:
    return "" if planned.tiling is None else f" at least, with {planned.tiling.schedule}"


def _too_much_flash(planned: Plan, limit: int) -> str:
    graph = planned.qgraph
    weights = {step.output: step.op.weight.nbytes for step in planned.steps if isinstance(step.op, (Conv2d, Linear))}
    largest = max(weights, key=weights.__getitem__, default="")
    where = f", most of them in '{largest}' ({weights[largest]:,})" if largest else ""
    return (
        f"'{graph.name}' has {planned.constant_bytes:,} bytes of constants > flash {limit:,}{where}; code comes on top; "
        f"try flash={planned.constant_bytes + _CODE_BYTES} or fewer channels there"
    )

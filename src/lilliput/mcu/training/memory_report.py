"""What a training step takes, before anything is flashed: totals, what binds, and a line for each operation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lilliput.mcu.listing import by_operation
from lilliput.mcu.training import graph as t
from lilliput.mcu.training.footprint import arena_bytes, flash_bytes, prefix_bytes, state_bytes

if TYPE_CHECKING:
    from lilliput.mcu.training.train_step import TrainStep


@dataclass(frozen=True)
class OperationMemory:
    """One operation of the prefix or of the training program."""

    part: str
    """"prefix" (frozen), "forward" or "backward"."""
    kind: str
    name: str
    source: str
    """Module of the model, where it belongs to one."""
    live_bytes: int
    """Bytes in the arena while it runs; of an operation done in tiles the most of any."""


@dataclass(frozen=True)
class MemoryReport:
    """SRAM and flash of a training step."""

    arena_bytes: int
    """The larger of the two parts' arenas, which share one place; working memory of kernels included."""
    prefix_arena_bytes: int
    suffix_arena_bytes: int
    trained_bytes: int
    """Masters of trained weights and biases, in memory throughout."""
    state_bytes: int
    """Header and checksum of the saved image, random stream, rate."""
    stack_bytes: int
    """An allowance until the firmware's receipt says what was used."""
    mask_bytes: int
    """All clamp masks, part of the arena."""
    kept_bytes: int
    """All activations that weight gradients wait for, part of the arena."""
    flash_bytes: int
    """Constants; code comes on top."""
    lower_bound_bytes: int
    """SRAM below which no placing of this order of operations goes."""
    binding: OperationMemory
    """What to shrink first."""
    operations: tuple[OperationMemory, ...]
    schedule: str
    """How the frozen prefix runs."""

    @property
    def sram_bytes(self) -> int:
        """Everything in memory."""
        return self.arena_bytes + self.trained_bytes + self.state_bytes + self.stack_bytes

    def __str__(self) -> str:
        return "\n".join([*_table(self.operations, self.binding), "", *_totals(self)])


def memory_report(step: TrainStep) -> MemoryReport:
    """Count a compiled step."""
    operations = (*_prefix(step), *_suffix(step))
    program, placement, prefix = step.program, step.placement, step.prefix
    least = max(placement.lower_bound_bytes, 0 if prefix is None else prefix.lower_bound_bytes)
    trained, state = program.parameter_bytes, state_bytes(program)
    is_prefix = prefix_bytes(step) > placement.arena_bytes
    of_part = [each for each in operations if (each.part == "prefix") == is_prefix]
    return MemoryReport(
        arena_bytes=arena_bytes(step),
        prefix_arena_bytes=prefix_bytes(step),
        suffix_arena_bytes=placement.arena_bytes,
        trained_bytes=trained,
        state_bytes=state,
        stack_bytes=step.stack_bytes,
        mask_bytes=sum(buffer.bytes for buffer in program.buffers.values() if buffer.role == "mask"),
        kept_bytes=sum(program.buffers[name].bytes for name in _kept(program)),
        flash_bytes=flash_bytes(program) + (0 if prefix is None else prefix.constant_bytes),
        lower_bound_bytes=least + trained + state + step.stack_bytes,
        binding=max(of_part, key=lambda each: each.live_bytes),
        operations=operations,
        schedule="nothing is frozen" if prefix is None else str(getattr(prefix.tiling, "schedule", "whole")),
    )


def _kept(program: t.Program) -> set[str]:
    """Activations that weight gradients read."""
    return {op.inputs[1] for op in program.ops if isinstance(op, (t.ConvWeightGradient, t.ConvWeightStep))}


def _prefix(step: TrainStep) -> Iterator[OperationMemory]:
    if step.prefix is not None:
        for row in by_operation(step.prefix):
            yield OperationMemory("prefix", row.kind, row.name, row.source, row.live_bytes + row.scratch_bytes)


def _suffix(step: TrainStep) -> Iterator[OperationMemory]:
    part = "forward"
    for op, live in zip(step.program.ops, step.placement.live_bytes, strict=True):
        layer = getattr(op, "layer", None)
        source = layer.source if layer is not None else getattr(getattr(op, "qop", None), "source", "")
        kind = f"infer {type(op.qop).__name__}" if isinstance(op, t.Infer) else op.kind
        yield OperationMemory(part, kind, op.name, source, live)
        if isinstance(op, t.Loss):
            part = "backward"


def _table(operations: tuple[OperationMemory, ...], binding: OperationMemory) -> Iterator[str]:
    rows = [("part", "operation", "name", "module", "live B", "")]
    rows += [
        (each.part, each.kind, each.name, each.source or "-", f"{each.live_bytes:,}", "binds" * (each is binding))
        for each in operations
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for index, row in enumerate(rows):
        cells = [
            text.rjust(width) if column == 4 else text.ljust(width)
            for column, (text, width) in enumerate(zip(row, widths, strict=True))
        ]
        yield "  ".join(cells).rstrip()
        if index == 0:
            yield "-" * (sum(widths) + 2 * len(widths) - 2)


def _totals(report: MemoryReport) -> Iterator[str]:
    ratio = report.sram_bytes / report.lower_bound_bytes
    yield (
        f"arena    {report.arena_bytes:>12,} B  (frozen prefix {report.prefix_arena_bytes:,} B, {report.schedule}; "
        f"training program {report.suffix_arena_bytes:,} B)"
    )
    yield f"           of it in all {report.mask_bytes:,} B of clamp masks, {report.kept_bytes:,} B of activations for weight gradients"
    yield f"trained  {report.trained_bytes:>12,} B  masters of weights and biases"
    yield f"state    {report.state_bytes:>12,} B  header of the saved image, random stream, rate"
    yield f"stack    {report.stack_bytes:>12,} B  set aside"
    yield f"SRAM     {report.sram_bytes:>12,} B  ({ratio:.3f} of the bound {report.lower_bound_bytes:,} B)"
    yield f"flash    {report.flash_bytes:>12,} B  constants alone"

"""A plan as text: a line a step with what was decided, then the totals.

Tiles make hundreds of steps of a dozen layers, so a plan by tiles has a line for each operation of the whole network instead, with what all
its tiles take.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lilliput.quantize.qgraph import Crop, Paste

if TYPE_CHECKING:
    from lilliput.mcu.plan import Plan, Step


@dataclass(frozen=True)
class OperationCost:
    """What an operation of the whole network takes, over all its tiles; or what bringing the image in takes."""

    name: str
    """The tensor it makes."""
    kind: str
    """Its class; ``Read`` where parts of the image are brought into memory."""
    source: str
    """Module of the model, or the tensor's name in the file."""
    shape: tuple[int, ...]
    """Of its output in the whole network."""
    tiles: int
    """How often it is computed, or how many parts of the image are read; 0 where another operation does it."""
    macs: int
    """Of all tiles, ``halo_macs`` among them."""
    halo_macs: int
    """Multiply-accumulates done again because tiles overlap."""
    instructions: float | None
    """Of all tiles, moving their rows and columns included; ``None`` where nothing was counted or there is nothing to do."""
    moving_instructions: float
    """Those of them that only move bytes: cut parts out, keep rows, put tiles together."""
    live_bytes: int
    """Most bytes of activations in the arena while one of its steps runs."""
    scratch_bytes: int
    decisions: tuple[str, ...]


def by_operation(plan: Plan, op_instructions: Mapping[str, float] | None = None) -> tuple[OperationCost, ...]:
    """One entry for each operation of the whole network, in running order; first what is read of the image, if anything is.

    Args:
        plan: what to list, tiled or not.
        op_instructions: of a receipt, by step.
    Returns:
        Entries whose multiply-accumulates, halos and instructions sum to the plan's.
    """
    parts = _parts(plan)
    steps: dict[str, list[Step]] = {}
    done_by: dict[str, str] = {}
    for step in plan.steps:
        name = parts.get(step.op.name, step.op.name)
        steps.setdefault(name, []).append(step)
        if step.fused_add is not None:
            done_by[parts.get(step.fused_add.name, step.fused_add.name)] = name
    whole = plan.whole
    kinds = {op.name: type(op).__name__ for op in whole.ops}
    reads = [step for step in steps.get(whole.input, ()) if not step.is_alias]
    rows = [_cost(plan, whole.input, "Read", reads, None, op_instructions)] if reads else []
    for name, kind in kinds.items():
        own = steps.get(name, [])
        word = "Read" if own and plan.is_read(own[0]) else kind
        rows.append(_cost(plan, name, word, own, done_by.get(name), op_instructions))
    return tuple(rows)


def _parts(plan: Plan) -> Mapping[str, str]:
    return {} if plan.tiling is None else plan.tiling.part_of


def _cost(
    plan: Plan,
    name: str,
    kind: str,
    steps: Sequence[Step],
    done_by: str | None,
    op_instructions: Mapping[str, float] | None,
) -> OperationCost:
    whole = plan.whole
    counts = op_instructions or {}
    counted = [counts[step.output] for step in steps if step.output in counts]
    moves = [step for step in steps if isinstance(step.op, (Crop, Paste))]
    macs = sum(step.macs for step in steps)
    return OperationCost(
        name=name,
        kind=kind,
        source=whole.tensors[name].source,
        shape=whole.tensors[name].shape,
        tiles=sum(step.inputs[0] == whole.input for step in steps) if kind == "Read" else len(steps) - len(moves),
        macs=macs,
        halo_macs=macs - whole.op_macs.get(name, 0),
        instructions=float(sum(counted)) if counted else None,
        moving_instructions=float(sum(counts.get(step.output, 0) for step in moves)),
        live_bytes=max((step.live_bytes for step in steps), default=0),
        scratch_bytes=max((step.scratch_bytes for step in steps), default=0),
        decisions=tuple(dict.fromkeys(_all_decisions(plan, name, steps, done_by))),
    )


def _all_decisions(plan: Plan, name: str, steps: Sequence[Step], done_by: str | None) -> Iterator[str]:
    parts, tensors = _parts(plan), plan.qgraph.tensors
    own = [step for step in steps if not isinstance(step.op, (Crop, Paste))]
    if not own and done_by is not None:
        yield f"done by {done_by}"
    if own and all(step.is_alias for step in own):
        yield "view"
    for step in own:
        if step.fused_add is not None:
            yield f"adds {parts.get(step.inputs[-1], step.inputs[-1])}"
        if step.overwrites is not None and step.base is None:
            yield f"over {parts.get(step.overwrites, step.overwrites)}"
    if plan.tiling is not None and name == plan.tiling.schedule.split:
        yield f"put together from {len(plan.tiling.output_boxes)} tiles"
    # what is pasted and is not the split is a window of rows that stay in memory
    windows = [tensors[step.paste.name].shape[0] for step in steps if step.paste is not None]
    if windows and (plan.tiling is None or not _is_split(plan, steps)):
        yield f"keeps {max(windows)} rows"
    if any(step.output == plan.binding for step in steps):
        yield "binds"


def _is_split(plan: Plan, steps: Sequence[Step]) -> bool:
    assert plan.tiling is not None
    pasted = {plan.tiling.part_of[step.paste.name] for step in steps if step.paste is not None}
    return plan.tiling.schedule.split in pasted


def table(plan: Plan, op_instructions: Mapping[str, float] | None = None) -> str:
    """One line a step, or with tiles one for each operation of the whole network; then the totals.

    Args:
        plan: what to list.
        op_instructions: of a receipt; two columns more, the instructions of each line and how many these are per multiply-accumulate.
    """
    rows = _steps(plan, op_instructions) if plan.tiling is None else _operations(plan, op_instructions)
    numbers = [index for index, title in enumerate(rows[0]) if title in _NUMBERS]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(
            text.rjust(width) if column in numbers else text.ljust(width)
            for column, (text, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    lines.insert(1, "-" * max(map(len, lines)))
    return "\n".join([*lines, "", *_totals(plan)])


_NUMBERS = {"tiles", "MACs", "halo MACs", "instructions", "per MAC", "live B", "offset", "scratch B"}


def _steps(plan: Plan, op_instructions: Mapping[str, float] | None) -> list[tuple[str, ...]]:
    counted = ("instructions", "per MAC") if op_instructions else ()
    rows: list[tuple[str, ...]] = [
        ("step", "module", "output", "MACs", *counted, "live B", "offset", "scratch B", "decisions")
    ]
    for step in plan.steps:
        tensor = plan.qgraph.tensors[step.output]
        instructions = op_instructions.get(step.output) if op_instructions else None
        rows.append(
            (
                f"{type(step.op).__name__} {step.output}",
                step.op.source or tensor.source or "-",
                "x".join(map(str, tensor.shape)),
                f"{step.macs:,}",
                *(_counted(instructions, step.macs) if op_instructions else ()),
                f"{step.live_bytes:,}",
                f"{plan.offsets[step.output]:,}",
                f"{step.scratch_bytes:,}",
                ", ".join(_decisions(plan, step)) or "-",
            )
        )
    return rows


def _operations(plan: Plan, op_instructions: Mapping[str, float] | None) -> list[tuple[str, ...]]:
    counted = ("instructions", "per MAC") if op_instructions else ()
    titles = ("operation", "module", "output", "tiles", "MACs", "halo MACs", *counted)
    rows: list[tuple[str, ...]] = [(*titles, "live B", "scratch B", "decisions")]
    for each in by_operation(plan, op_instructions):
        rows.append(
            (
                f"{each.kind} {each.name}",
                each.source or "-",
                "x".join(map(str, each.shape)),
                f"{each.tiles:,}",
                f"{each.macs:,}",
                f"{each.halo_macs:,}",
                *(_counted(each.instructions, each.macs) if op_instructions else ()),
                f"{each.live_bytes:,}",
                f"{each.scratch_bytes:,}",
                ", ".join(each.decisions) or "-",
            )
        )
    return rows


def _counted(instructions: float | None, macs: int) -> tuple[str, str]:
    if instructions is None:  # a view: nothing to do
        return "-", "-"
    return f"{instructions:,.0f}", f"{instructions / macs:.2f}" if macs else "-"


def _decisions(plan: Plan, step: Step) -> Iterator[str]:
    if step.is_alias:
        yield f"view of {step.inputs[0]}"
    if step.fused_add is not None:
        yield f"adds {step.inputs[-1]}"
    if step.overwrites is not None:
        yield f"over {step.overwrites}"
    if step.output == plan.binding:
        yield "binds"


def _totals(plan: Plan) -> Iterator[str]:
    if plan.tiling is not None:
        yield f"tiles    {len(plan.tiling.output_boxes):>12,}    {plan.tiling.schedule}, in {len(plan.steps):,} steps"
    ratio = plan.arena_bytes / plan.lower_bound_bytes if plan.lower_bound_bytes else 1.0
    image = f"input {plan.input_bytes:,} B " + (
        "streamed: never in memory as a whole" if plan.streams_input else "of it"
    )
    yield f"arena    {plan.arena_bytes:>12,} B  ({ratio:.3f} of the bound {plan.lower_bound_bytes:,} B; {image})"
    yield f"scratch  {plan.scratch_bytes:>12,} B  apart from the arena"
    yield f"stack    {plan.stack_bytes:>12,} B  set aside"
    limit = "" if plan.sram_bytes_limit is None else f"  of {plan.sram_bytes_limit:,} B"
    yield f"SRAM     {plan.sram_bytes:>12,} B{limit}"
    limit = "" if plan.flash_bytes_limit is None else f"  of {plan.flash_bytes_limit:,} B"
    yield f"flash    {plan.constant_bytes:>12,} B{limit}, constants alone ({plan.weight_bytes:,} B of weights and biases)"
    halos = "" if plan.tiling is None else f"    {plan.halo_macs:,} of them for halos of tiles"
    if plan.halo_macs < 0:
        halos = f"    {-plan.halo_macs:,} fewer than the whole network's: strides leave pixels out"
    yield f"MACs     {plan.macs:>12,}{halos}"

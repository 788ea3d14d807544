"""A plan as text: a line a step with what was decided, then the totals."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lilliput.mcu.plan import Plan, Step


def table(plan: Plan, op_instructions: Mapping[str, float] | None = None) -> str:
    """One line a step, then arena, scratch, stack, flash and multiply-accumulates.

    Args:
        plan: what to list.
        op_instructions: of a receipt; two columns more, the instructions of each step and how many these are per multiply-accumulate.
    """
    counted = ("instructions", "per MAC") if op_instructions else ()
    rows: list[tuple[str, ...]] = [
        ("step", "module", "output", "MACs", *counted, "live B", "offset", "scratch B", "decisions")
    ]
    for step in plan.steps:
        tensor = plan.qgraph.tensors[step.output]
        rows.append(
            (
                f"{type(step.op).__name__} {step.output}",
                step.op.source or tensor.source or "-",
                "x".join(map(str, tensor.shape)),
                f"{step.macs:,}",
                *(_counted(step, op_instructions) if op_instructions else ()),
                f"{step.live_bytes:,}",
                f"{plan.offsets[step.output]:,}",
                f"{step.scratch_bytes:,}",
                ", ".join(_decisions(plan, step)) or "-",
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(
            text.rjust(width) if 3 <= column < len(widths) - 1 else text.ljust(width)
            for column, (text, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    lines.insert(1, "-" * max(map(len, lines)))
    return "\n".join([*lines, "", *_totals(plan)])


def _counted(step: Step, op_instructions: Mapping[str, float]) -> tuple[str, str]:
    instructions = op_instructions.get(step.output)
    if instructions is None:  # a view: nothing to do
        return "-", "-"
    return f"{instructions:,.0f}", f"{instructions / step.macs:.2f}" if step.macs else "-"


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
    ratio = plan.arena_bytes / plan.lower_bound_bytes if plan.lower_bound_bytes else 1.0
    yield f"arena    {plan.arena_bytes:>12,} B  ({ratio:.3f} of the bound {plan.lower_bound_bytes:,} B; input {plan.input_bytes:,} B of it)"
    yield f"scratch  {plan.scratch_bytes:>12,} B  apart from the arena"
    yield f"stack    {plan.stack_bytes:>12,} B  set aside"
    limit = "" if plan.sram_bytes_limit is None else f"  of {plan.sram_bytes_limit:,} B"
    yield f"SRAM     {plan.sram_bytes:>12,} B{limit}"
    limit = "" if plan.flash_bytes_limit is None else f"  of {plan.flash_bytes_limit:,} B"
    yield f"flash    {plan.constant_bytes:>12,} B{limit}, constants alone ({plan.weight_bytes:,} B of weights and biases)"
    yield f"MACs     {plan.macs:>12,}"

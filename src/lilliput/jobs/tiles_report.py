"""What the reports of a network in tiles have in common: memory over time, the tiles on an image, a row for each operation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lilliput.evidence import Figure, Lifetime, Section, Table
from lilliput.evidence.schedules import Region, joined, memory_compared, tiles_on_image
from lilliput.jobs.memory_report import short_name

if TYPE_CHECKING:
    import numpy as np

    from lilliput.mcu import Plan
    from lilliput.mcu.tiling import Tiling

_MOST_BOXES_ACROSS = 60
"""Equal boxes of one layer nearer to each other than this share of the time are drawn as one."""


def lifetimes(plan: Plan, whole: Plan, sram: int) -> Figure:
    """Memory over time; of a plan in tiles beside the plan without."""
    if plan.tiling is None:
        drawing = memory_compared({"as run": _boxes(whole)}, sram)
        return Figure(
            drawing,
            "Memory over time",
            f"An arena of {plan.arena_bytes:,} bytes over {len(plan.steps)} steps; the most is alive at {plan.binding}",
            f"Each box is a tensor: as wide as it lives, as high as its bytes. The least any plan of these steps needs is "
            f"{plan.lower_bound_bytes:,} bytes.",
        )
    gap = max(1, len(plan.steps) // _MOST_BOXES_ACROSS)
    plans = {
        f"without tiles, {len(whole.steps)} steps": _boxes(whole),
        f"with tiles, {len(plan.steps)} steps": joined(_boxes(plan), gap),
    }
    return Figure(
        memory_compared(plans, sram),
        "Memory over time, without and with tiles",
        f"An arena of {whole.arena_bytes:,} bytes without tiles and of {plan.arena_bytes:,} bytes with them, on one scale; "
        f"with tiles the most is alive at {plan.binding}",
        f"Each box is a tensor, or the part of it that is in memory: as wide as it lives, as high as its bytes, in one colour on both "
        f"sides. Equal boxes of one layer at most {gap} steps apart are drawn as one.",
    )


def _boxes(plan: Plan) -> list[Lifetime]:
    parts = {step.output: plan.qgraph.input for step in plan.steps if plan.is_read(step)}
    parts |= {} if plan.tiling is None else plan.tiling.part_of
    return [
        Lifetime(
            short_name(parts.get(each.name, each.name)),
            each.start,
            each.stop - 1,
            each.offset_bytes,
            each.size_bytes,
        )
        for each in plan.lifetimes()
    ]


def tiles(plan: Plan, tiling: Tiling, picture: np.ndarray, ground: str) -> Section:
    """What each tile reads of an image and what it makes; ``ground`` says what the picture is."""
    from lilliput.mcu.tiling import Patches

    split = tiling.schedule.split
    height, width, _ = tiling.whole.tensors[split].shape
    reads = [Region(each.rows, each.columns) for each in tiling.image_boxes]
    makes = [Region(each.rows, each.columns) for each in tiling.output_boxes]
    drawing = tiles_on_image(picture, reads, makes, (height, width), short_name(split))
    is_patches = isinstance(tiling.schedule, Patches)
    why = "what neighbours share is computed again for each" if is_patches else "rows that are read again are kept"
    words = f"{len(reads)} tiles of `{split}`: {tiling.schedule}; {why}."
    brought = [step for step in plan.steps if plan.is_read(step)]
    if brought:
        total = sum(plan.qgraph.tensors[step.op.name].bytes for step in brought)
        words += f" The firmware asks for {len(brought)} parts of the image, {total:,} bytes in all; the image has {plan.input_bytes:,}."
    first = "overlaps are halos" if is_patches else "overlaps are rows that are kept"
    return Section(
        "tiles",
        "Tiles",
        words,
        [
            Figure(
                drawing,
                "Tiles",
                f"{len(reads)} tiles: left what each needs of the image, {_sides(reads)} pixels at most; right the part of the map of "
                f"{height}x{width} that it makes, {_sides(makes)} at most",
                f"Left {ground} with what each tile needs of it ({first}), right the map that the tiles are put together to. "
                "The middle tile stands out in both.",
            )
        ],
    )


def _sides(regions: list[Region]) -> str:
    high = max(each.rows[1] - each.rows[0] for each in regions)
    wide = max(each.columns[1] - each.columns[0] for each in regions)
    return f"{high}x{wide}"


def layers(plan: Plan, counts: Mapping[str, float]) -> Section:
    """A row for each operation of the whole network."""
    from lilliput.mcu.listing import by_operation

    rows: list[list[Any]] = []
    for each in by_operation(plan, counts):
        counted: list[Any] = []
        if counts:
            ratio = None if each.instructions is None or not each.macs else f"{each.instructions / each.macs:.2f}"
            counted = [None if each.instructions is None else round(each.instructions), ratio]
        notes = list(each.decisions)
        if each.moving_instructions and each.kind != "Read":
            notes.append(f"{each.moving_instructions:,.0f} instructions move rows")
        rows.append(
            [
                short_name(each.name),
                each.kind,
                "x".join(map(str, each.shape)),
                each.macs,
                each.halo_macs,
                each.tiles,
                *counted,
                each.live_bytes,
                ", ".join(notes),
            ]
        )
    columns = ["tensor", "operation", "output", "MACs", "halo MACs", "tiles"]
    columns += ["instructions", "per MAC"] if counts else []
    columns += ["bytes alive, most", "decisions"]
    intro = "One row for each operation of the whole network; figures are of all its tiles together, bytes alive the most of any."
    return Section("layers", "Layer by layer", intro, [Table("The plan, in running order", columns, rows)])

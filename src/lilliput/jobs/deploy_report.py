"""The report of a deployment, as sections of data: what fits, what tiles save, what they cost, and that every byte is right."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lilliput.evidence import Bar, Bars, Budget, EvidenceTable, Figure, Lifetime, Run, Section, Table, Text
from lilliput.evidence.schedules import Region, joined, memory_compared, tiles_on_image
from lilliput.jobs import memory_report
from lilliput.jobs.memory_report import short_name

if TYPE_CHECKING:
    import numpy as np

    from lilliput.jobs.deploy import DeployConfig, Deployed
    from lilliput.mcu import Plan
    from lilliput.mcu.tiling import Tiling

_MOST_BOXES_ACROSS = 60
"""Equal boxes of one layer nearer to each other than this share of the time are drawn as one."""


def write(run: Run, config: DeployConfig, made: Deployed) -> None:
    """Write the run's report."""
    sram, flash = Budget.parse(config.sram), Budget.parse(config.flash)
    verdict, holds = memory_report.verdict(made.receipt, sram, flash, sum(made.mismatching_bytes))
    names = ["sram.total", "flash.total"] if made.receipt else ["sram.planned"]
    names += ["sram.whole", "instructions.per_inference"] if made.receipt else ["sram.whole", "macs.total"]
    names += [name for name in ("accuracy.emulated", "accuracy.host") if name in run.evidence][:1]
    where = made.receipt.board if made.receipt else "this computer"
    sections = [
        _memory(run, made, sram, flash),
        *([_tiles(made, made.plan.tiling)] if made.plan.tiling is not None else []),
        _layers(made),
        _outputs(made),
    ]
    run.write_report(
        sections,
        title=f"{made.quantized.name} on {where}",
        verdict=verdict,
        holds=holds,
        highlights=[*names, "outputs.mismatching_bytes"],
    )


def _memory(run: Run, made: Deployed, sram: int, flash: int) -> Section:
    plan, whole, receipt = made.plan, made.whole, made.receipt
    blocks: list[Any] = []
    without = Bar("SRAM without tiles, as planned", whole.sram_bytes, sram, "bytes")
    if receipt is not None and receipt.sram_bytes is not None and receipt.flash_bytes is not None:
        bars = [
            Bar("SRAM, all of it", receipt.sram_bytes, sram, "bytes"),
            *([without] if plan.tiling is not None else []),
            Bar("flash, all of it", receipt.flash_bytes, flash, "bytes"),
        ]
        blocks.append(Bars("Cost against budget; the linker refuses an image over it", bars))
        blocks.append(Text(_saving(made)))
        blocks.append(memory_report.sram_table(plan, receipt))
    else:
        bars = [
            Bar("SRAM, as planned", plan.sram_bytes, sram, "bytes"),
            *([without] if plan.tiling is not None else []),
            Bar("constants in flash; code comes on top", plan.constant_bytes, flash, "bytes"),
        ]
        blocks += [memory_report.NOT_EMULATED, Bars("Plan against budget", bars), Text(_saving(made))]
    blocks.append(_lifetimes(made, sram))
    if receipt is not None and receipt.flash_parts:
        blocks.append(memory_report.flash_figure(receipt, flash))
    shown = ("sram.", "flash.", "instructions.", "macs.", "cost.")
    evidence = [name for name in run.evidence if name.startswith(shown)]
    blocks.append(EvidenceTable("Memory, multiply-accumulates and instructions", evidence))
    return Section("memory", "Memory and cost", memory_report.NOT_TIME, blocks)


def _saving(made: Deployed) -> str:
    """What was decided, and what that is worth."""
    plan, whole = made.plan, made.whole
    image = f"The image ({plan.input_bytes:,} bytes) is streamed: the firmware asks for parts of it and never holds all of it. "
    if plan.tiling is None:
        words = "Every layer runs as a whole."
        return (image if plan.streams_input else "") + words
    saved = 1 - plan.sram_bytes / whole.sram_bytes
    halos = f"{plan.halo_macs:,} multiply-accumulates ({plan.halo_macs / max(whole.macs, 1):.2%}) are done again because tiles overlap"
    nothing = "no multiply-accumulate is done twice"
    return (
        f"{image if plan.streams_input else ''}The first layers run tile by tile: {plan.tiling.schedule}. Planned, that is "
        f"{plan.sram_bytes:,} bytes of SRAM in place of {whole.sram_bytes:,} ({saved:.1%} less); {halos if plan.halo_macs else nothing}."
    )


def _lifetimes(made: Deployed, sram: int) -> Figure:
    plan, whole = made.plan, made.whole
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


def _tiles(made: Deployed, tiling: Tiling) -> Section:
    from lilliput.mcu.tiling import Patches

    plan, split = made.plan, tiling.schedule.split
    height, width, _ = tiling.whole.tensors[split].shape
    reads = [Region(each.rows, each.columns) for each in tiling.image_boxes]
    makes = [Region(each.rows, each.columns) for each in tiling.output_boxes]
    picture, ground = _picture(made)
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


def _picture(made: Deployed) -> tuple[np.ndarray, str]:
    """The first input where it was given and can be seen, else grey, and what to call it."""
    import numpy as np

    rows, columns, channels = made.codes.shape[1:]
    if made.is_given and channels in (1, 3):
        return (made.codes[0].astype(np.int16) + 128).astype(np.uint8), "the first input"
    return np.full((rows, columns, 1), 128, np.uint8), "the image"


def _layers(made: Deployed) -> Section:
    from lilliput.mcu.listing import by_operation

    counts = made.receipt.op_instructions if made.receipt is not None else {}
    rows: list[list[Any]] = []
    for each in by_operation(made.plan, counts):
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


def _outputs(made: Deployed) -> Section:
    receipt, accuracy = made.receipt, made.accuracy()
    natively, on_chip = made.mismatching_bytes
    computed: list[tuple[str, str, int, int | None, int | None]] = [
        ("integer interpreter", "int8", len(made.outputs), None, None),
        ("C code, this computer", "host", len(made.outputs), made.outputs.size, natively),
    ]
    if receipt is not None:
        computed.append((f"firmware, {receipt.board}", "emulated", receipt.inferences, receipt.output.size, on_chip))
    columns = ["computed by", "inputs", "bytes compared", "bytes that differ"]
    rows: list[list[Any]] = [[by, n, compared, differ] for by, _, n, compared, differ in computed]
    if accuracy:
        from lilliput.training import wilson_interval

        columns += ["accuracy", "95 % interval"]
        for row, (_, key, *_rest) in zip(rows, computed, strict=True):
            share, n = accuracy[key]
            low, high = wilson_interval(round(share * n), n)
            row += [f"{share:.2%}", f"{low:.2%} to {high:.2%}"]
    intro = (
        "Every output byte of the C code is compared with the integer interpreter's. "
        + (
            ""
            if made.is_given
            else "The inputs are random codes: they exercise the arithmetic and say nothing of accuracy. "
        )
        + (
            ""
            if receipt is None or receipt.inferences == len(made.codes)
            else "The chip ran a seeded sample of the inputs."
        )
    )
    return Section("outputs", "Outputs", intro.strip(), [Table("Who computed what", columns, rows)])

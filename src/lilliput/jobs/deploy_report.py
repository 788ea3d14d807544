"""The report of a deployment, as sections of data: what fits, what tiles save, what they cost, and that every byte is right."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lilliput.evidence import Bar, Bars, Budget, EvidenceTable, Run, Section, Table, Text
from lilliput.jobs import memory_report, tiles_report

if TYPE_CHECKING:
    import numpy as np

    from lilliput.jobs.deploy import DeployConfig, Deployed


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
        *([tiles_report.tiles(made.plan, made.plan.tiling, *_picture(made))] if made.plan.tiling is not None else []),
        tiles_report.layers(made.plan, made.receipt.op_instructions if made.receipt is not None else {}),
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
    blocks.append(tiles_report.lifetimes(made.plan, made.whole, sram))
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
    if plan.halo_macs < 0:
        halos = f"{-plan.halo_macs:,} multiply-accumulates fewer are done, of pixels that strides leave out"
    return (
        f"{image if plan.streams_input else ''}The first layers run tile by tile: {plan.tiling.schedule}. Planned, that is "
        f"{plan.sram_bytes:,} bytes of SRAM in place of {whole.sram_bytes:,} ({saved:.1%} less); {halos if plan.halo_macs else nothing}."
    )


def _picture(made: Deployed) -> tuple[np.ndarray, str]:
    """The first input where it was given and can be seen, else grey, and what to call it."""
    import numpy as np

    rows, columns, channels = made.codes.shape[1:]
    if made.is_given and channels in (1, 3):
        return (made.codes[0].astype(np.int16) + 128).astype(np.uint8), "the first input"
    return np.full((rows, columns, 1), 128, np.uint8), "the image"


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

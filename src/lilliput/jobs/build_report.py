"""The report of a build, as sections of data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from lilliput.evidence import (
    Bar,
    Bars,
    Budget,
    EvidenceTable,
    Figure,
    Images,
    Lifetime,
    Run,
    Section,
    Table,
    Text,
    figures,
)
from lilliput.jobs import memory_report, tiles_report
from lilliput.jobs.certified_section import certified_section
from lilliput.jobs.memory_report import short_name

if TYPE_CHECKING:
    from lilliput.data import ImageData
    from lilliput.jobs.build import BuildConfig
    from lilliput.jobs.deployment import Deployment
    from lilliput.jobs.network_choice import Chosen

_GALLERY = 24


def write(
    run: Run,
    config: BuildConfig,
    data: ImageData,
    choice: Chosen,
    history: dict[str, Any],
    made: Deployment,
    certified: dict[str, Any] | None,
) -> None:
    """Write the run's report."""
    sections = [
        _memory(run, config, made),
        _accuracy(data, made, history),
        *([] if certified is None else [certified_section(certified)]),
        _design(choice),
        _network(made),
        _layers(made),
        _images(data, made),
    ]
    sram, flash = Budget.parse(config.sram), Budget.parse(config.flash)
    verdict, holds = memory_report.verdict(made.receipt, sram, flash, made.mismatching_bytes)
    names = ["accuracy.emulated" if made.receipt else "accuracy.host", "sram.total" if made.receipt else "sram.arena"]
    names += ["flash.total", "instructions.per_inference"] if made.receipt else ["cost.macs"]
    where = made.receipt.board if made.receipt else "this computer"
    run.write_report(
        sections,
        title=f"{data.name} on {where}",
        verdict=verdict,
        holds=holds,
        highlights=[*names, "outputs.mismatching_bytes"],
    )


def _memory(run: Run, config: BuildConfig, made: Deployment) -> Section:
    plan, receipt = made.plan, made.receipt
    sram, flash = Budget.parse(config.sram), Budget.parse(config.flash)
    blocks: list[Any] = []
    if receipt is not None and receipt.sram_bytes is not None and receipt.flash_bytes is not None:
        bars = [
            Bar("SRAM, all of it", receipt.sram_bytes, sram, "bytes"),
            Bar("flash, all of it", receipt.flash_bytes, flash, "bytes"),
            Bar("multiply-accumulates", plan.macs, Budget.parse_count(config.macs), "MACs"),
        ]
        blocks.append(Bars("Cost against budget; the linker refuses an image over the first two", bars))
        blocks.append(memory_report.sram_table(plan, receipt))
    else:
        blocks.append(memory_report.NOT_EMULATED)
    blocks.append(_lifetimes(made, sram))
    if receipt is not None and receipt.flash_parts:
        blocks.append(memory_report.flash_figure(receipt, flash))
    evidence = [name for name in run.evidence if name.startswith(("sram.", "flash.", "instructions."))]
    blocks.append(EvidenceTable("Memory and instructions", evidence))
    return Section("memory", "Memory and cost", memory_report.NOT_TIME, blocks)


def _lifetimes(made: Deployment, sram: int) -> Figure:
    from lilliput.mcu import plan as plan_whole

    plan = made.plan
    if plan.tiling is not None:
        return tiles_report.lifetimes(plan, plan_whole(made.quantized, schedule="whole"), sram)
    lifetimes = [
        Lifetime(short_name(each.source or each.name), each.start, each.stop - 1, each.offset_bytes, each.size_bytes)
        for each in plan.lifetimes()
    ]
    names = [short_name(step.op.source or step.output) for step in plan.steps]
    names += ["read output"] * (max(each.last_step for each in lifetimes) + 1 - len(names))
    drawing = figures.memory_lifetimes(lifetimes, budget_bytes=sram, step_names=names)
    return Figure(
        drawing,
        "Memory over time",
        f"{len(lifetimes)} tensors in an arena of {plan.arena_bytes:,} bytes over {len(plan.steps)} steps; "
        f"the most is alive at {plan.binding}",
        f"Each box is a tensor: as wide as it lives, as high as its bytes. The least any plan of these steps needs is "
        f"{plan.lower_bound_bytes:,} bytes; this one takes {plan.arena_bytes:,}.",
    )


def _accuracy(data: ImageData, made: Deployment, history: dict[str, Any]) -> Section:
    from lilliput.training import confusion_matrix, wilson_interval

    test = len(data.test)
    rows: list[tuple[str, float, int]] = [
        ("float network", made.float_accuracy, test),
        ("integer interpreter", made.int8_accuracy, test),
    ]
    rows.append(("C code, this computer", made.host_accuracy, test))
    if made.receipt is not None:
        rows.append((f"firmware, {made.receipt.board}", made.emulated_accuracy, made.receipt.inferences))
    table = []
    for name, share, n in rows:
        low, high = wilson_interval(round(share * n), n)
        table.append([name, f"{share:.2%}", f"{low:.2%} to {high:.2%}", n])
    predictions = made.int8_outputs.argmax(1)
    counts = confusion_matrix(made.labels, predictions, len(data.class_names))
    wrong = int((predictions != made.labels).sum())
    epochs = history["epochs"]
    curves = figures.training_curves(
        {"training": [e["train_loss"] for e in epochs], "validation": [e["val_loss"] for e in epochs]},
        {"validation": [e["val_accuracy"] for e in epochs]},
        best_epoch=history["best_epoch"],
    )
    best = epochs[history["best_epoch"] - 1]
    return Section(
        "accuracy",
        "Accuracy",
        f"{len(data.train):,} training, {len(data.val):,} validation and {test:,} test images; neither the choice of the network "
        "nor training nor calibration sees the test images. " + " ".join(data.notes),
        [
            Table(
                "Test accuracy, with its 95 % Wilson interval",
                ["computed by", "accuracy", "95 % interval", "images"],
                table,
            ),
            Figure(
                figures.confusion_matrix(counts.tolist(), list(data.class_names)),
                "Confusion matrix of the int8 network",
                f"{wrong} of {test} test images are classified wrong; rows are the truth, columns the prediction",
            ),
            Figure(
                curves,
                "Training",
                f"Loss and accuracy over {len(epochs)} epochs; the best by validation is epoch {history['best_epoch']} "
                f"with {best['val_accuracy']:.2%}",
                f"{history['images_per_second']:,.0f} images a second on {history['device']}.",
            ),
        ],
    )


def _design(choice: Chosen) -> Section:
    from lilliput.jobs.design_report import design_section

    section = design_section(choice.found())
    rows = [
        [
            each["label"],
            each["result"],
            *(each.get(name) for name in ("objective", "macs", "sram_bytes", "flash_bytes")),
        ]
        for each in choice.candidates
    ]
    columns = ["asked for", "found", "objective", "MACs", "SRAM bytes", "flash bytes"]
    planned = choice.planned
    words = (
        f"Budgets here are what code, stack and variables leave to the model. Planned in full before training, with those: "
        f"{planned['sram_bytes']:,} bytes of SRAM and {planned['flash_bytes']:,} of flash."
    )
    blocks = [*section.blocks, Text(words)]
    if rows:
        blocks.append(Table("What was solved for", columns, rows))
    return Section(section.id, section.title, section.intro, blocks)


def _network(made: Deployment) -> Section:
    from lilliput.graph import Op, draw

    hide = {Op.BATCH_NORM, Op.RELU, Op.RELU6, Op.RESHAPE}
    return Section(
        "network",
        "The network",
        "",
        [
            Figure(
                draw(made.graph, hide=hide),
                "Layers",
                f"{len(made.graph.nodes)} nodes in running order; batch norm and activations are folded into the layers shown",
            ),
        ],
    )


def _layers(made: Deployment) -> Section:
    plan = made.plan
    counts = made.receipt.op_instructions if made.receipt is not None else {}
    if plan.tiling is not None:
        return tiles_report.layers(plan, counts)
    rows = []
    for step in plan.steps:
        shape = "x".join(map(str, plan.qgraph.tensors[step.output].shape))
        notes = [
            word
            for word, is_so in (("in place", step.in_place), ("adds the skip", step.fused_add is not None))
            if is_so
        ]
        kind = "view" if step.is_alias else type(step.op).__name__
        row = [
            step.op.source or step.output,
            kind,
            shape,
            step.macs,
            *([round(counts[step.output]) if step.output in counts else None] if counts else []),
            step.live_bytes,
            step.scratch_bytes,
            ", ".join(notes),
        ]
        rows.append(row)
    counted = ["instructions"] if counts else []
    columns = ["layer", "operation", "output", "MACs", *counted, "bytes alive", "scratch", "decisions"]
    return Section("layers", "Layer by layer", "", [Table("The plan, in running order", columns, rows)])


def _images(data: ImageData, made: Deployment) -> Section:
    predictions = made.int8_outputs.argmax(1)
    order = np.random.default_rng(0).permutation(len(predictions))  # test images may lie class by class
    is_right = predictions[order] == made.labels[order]
    wrong, right = order[~is_right], order[is_right]
    names = data.class_names
    blocks = []
    for caption, chosen in (
        (f"{min(len(wrong), _GALLERY)} of the {len(wrong)} that it gets wrong", wrong[:_GALLERY]),
        (f"{min(len(right), _GALLERY)} of the {len(right)} that it gets right", right[:_GALLERY]),
    ):
        if len(chosen):
            truth, said = ([names[each] for each in source[chosen]] for source in (made.labels, predictions))
            blocks.append(Images.of(caption, data.test.images[chosen], truth, said))
    return Section("images", "Test images", "What the int8 network says of images it has never seen.", blocks)

"""The report of an adaptation, as sections of data: what was learnt, what is trained and why, what it takes, and that all weights agree."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lilliput.evidence import Bar, Bars, Budget, EvidenceTable, Figure, Run, Section, Table, Text, charts, figures
from lilliput.jobs import memory_report
from lilliput.jobs.memory_report import short_name

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lilliput.jobs.adapt import AdaptConfig, Adapted

_LOSS_POINTS = 60
"""Of the loss curve: means over equal parts of the run."""
_NOT_EMULATED = Text(
    "No chip was emulated, so stack, flash and instructions are not known, and nothing is claimed of a chip's weights; the plan's own "
    "figures follow."
)


def write(run: Run, config: AdaptConfig, made: Adapted) -> None:
    """Write the run's report."""
    sections = [_learning(made), _choice(config, made), _memory(run, config, made), _pytorch(run, made), _weights(made)]
    verdict, holds = _verdict(config, made)
    on_chip = ["weights.digest_match", "sram.total", "flash.total", "instructions.per_step"]
    on_host = ["weights.digest_match_host", "sram.planned", "sram.full"]
    where = made.receipt.board if made.receipt else "this computer"
    run.write_report(
        sections,
        title=f"{made.task.qgraph.name} learns {made.task.data.name} on {where}",
        verdict=verdict,
        holds=holds,
        highlights=["accuracy.before", "accuracy.after", *(on_chip if made.receipt else on_host)],
    )


def _verdict(config: AdaptConfig, made: Adapted) -> tuple[str, bool]:
    """One line, and whether it is the good one: does it learn, does it fit, and do all learn the same?"""
    sram, flash = Budget.parse(config.sram), Budget.parse(config.flash)
    learnt = f"{made.before:.2%} to {made.after:.2%} right in {config.steps:,} steps"
    answers = "" if made.mismatching_answers == 0 else f"; {made.mismatching_answers:,} answers differ"
    good = made.after > made.before and made.mismatching_answers == 0
    if made.receipt is None:
        same = "Python and C learn the same" if made.same.host_matches else "Python and C DO NOT learn the same"
        return (
            f"ran on this computer only (board=host): {learnt}; {same}{answers}; no chip was emulated",
            good and made.same.host_matches,
        )
    assert made.sram_bytes is not None
    assert made.receipt.flash_bytes is not None
    fits = made.sram_bytes <= sram and made.receipt.flash_bytes <= flash
    same = "all learn the same" if made.same.matches else "they DO NOT learn the same"
    return (
        f"{'fits' if fits else 'does not fit'}: {made.sram_bytes:,} of {sram:,} bytes of SRAM, {made.receipt.flash_bytes:,} of {flash:,} "
        f"bytes of flash; {learnt}; Python, C and chip: {same}{answers}",
        fits and good and made.same.matches is True,
    )


def _learning(made: Adapted) -> Section:
    from lilliput.training import wilson_interval

    steps, losses = made.progress.step, made.progress.losses_q16
    width = max(1, -(-steps // _LOSS_POINTS))
    curve = [
        (min(start + width, steps), sum(part) / len(part) / 2**16)
        for start in range(0, steps, width)
        if (part := losses[start : start + width])
    ]
    validation = [(step, share) for step, share in made.progress.accuracy]
    n = len(made.task.test[1])
    rows: list[list[Any]] = []
    for when, share in (("before", made.before), ("after", made.after)):
        low, high = wilson_interval(round(share * n), n)
        rows.append([when, f"{share:.2%}", n, f"{low:.2%} to {high:.2%}"])
    intro = (
        "Every step sees one image, and its loss is that before the step. The class with the largest logit is the answer. "
        "Test images were neither trained on nor looked at for any choice."
    )
    if made.task.is_new_head:
        intro += " The last layer is new: before the first step its answers are chance."
    last = validation[-1][1]
    return Section(
        "learning",
        "What was learnt",
        intro,
        [
            Figure(
                charts.lines({"loss": curve}, "steps", "loss, nats"),
                "Loss",
                f"Mean loss falls from {curve[0][1]:.3f} to {curve[-1][1]:.3f} nats over {steps:,} steps",
                f"Cross-entropy in fixed point, as the device returns it; each point is a mean over {width} steps.",
            ),
            Figure(
                charts.lines({"validation": validation}, "steps", "share right"),
                "Accuracy on validation images",
                f"From {validation[0][1]:.2%} before the first step to {last:.2%} after the last",
                f"{len(made.task.val[1])} images that are not trained on.",
            ),
            Table("Test images", ["when", "right", "images", "95 % interval"], rows),
        ],
    )


def _choice(config: AdaptConfig, made: Adapted) -> Section:
    from lilliput.mcu.training.update_plan import input_channels, weighted_layers

    plan, updates = made.plan, made.plan.updates()
    layers = weighted_layers(made.task.qgraph)
    first = len(layers) - plan.bias_depth
    rows: list[list[Any]] = []
    names = _names([op.source or op.name for op in layers])
    for number, (op, name) in enumerate(zip(layers, names, strict=True)):
        channels = input_channels(op)
        chosen = len(updates.get(op.name, ()))
        rows.append([number, name, "yes" if number >= first else "no", chosen, channels, f"{chosen / channels:.1%}"])
    rows.append([len(layers), "head", "yes", "all", "all", "100.0%"])
    blocks: list[Any] = [
        Text(_why(config, made)),
        *_contributions(made, names),
        Table(
            "What is trained, from input to output",
            ["layer", "module", "bias", "input channels", "of", "share of the weights"],
            rows,
        ),
    ]
    intro = (
        "A bias needs no stored activation; a weight needs the input channels that it reads until its gradient is computed. So "
        "biases are trained down to a depth, and weights of some layers, of some of their input channels."
    )
    return Section("choice", "What is trained, and why", intro, blocks)


def _why(config: AdaptConfig, made: Adapted) -> str:
    contribution, plan = made.contribution, made.plan
    if contribution is None:
        return f"The choice was given: --scheme {config.scheme}."
    measured = {
        "fisher": "the mean squared gradient of each layer's real-valued parameters, at a head trained alone: to first order what one step "
        "of unit rate takes off the loss",
        "finetune": "the accuracy that short runs in floating point gain on the validation images",
    }[contribution.method]
    assert plan.objective is not None
    proof = "no choice of these layers and shares that fits has a larger sum"
    if plan.objective_bound is not None and plan.objective_bound > plan.objective:
        proof = f"no choice that fits has a sum above {plan.objective_bound:.4g}; the search stopped before it could tell more"
    return (
        f"Contributions are {measured}. Their sum was maximised within the budget, memory as planned and not estimated "
        f"({plan.method}): {plan.objective:.4g}, and {proof}."
    )


def _contributions(made: Adapted, names: Sequence[str]) -> list[Any]:
    found = made.contribution
    if found is None or not found.layers:
        return []
    taken = {update.op: len(update.channels) for update in made.plan.layers}
    offset = len(names) - len(found.layers)
    numbers = range(offset, len(names))
    by_share = {
        f"{ratio:g} of the channels": list(zip(numbers, [gains[index] for gains in found.weights], strict=True))
        for index, ratio in enumerate(found.ratios)
    }
    best = max(max(gains) for gains in found.weights)
    chosen = ", ".join(f"{number}" for number, layer in zip(numbers, found.layers, strict=True) if layer in taken)
    depth = [(k, gain) for k, gain in enumerate(found.bias)]
    return [
        Figure(
            charts.lines(by_share, "layer", "contribution of its weights"),
            "What the weights of each layer are worth",
            f"By layer and share of its input channels, at most {best:.4g}; chosen are layers {chosen or 'none'}",
            "A share takes the input channels with the largest weights.",
        ),
        Figure(
            charts.lines(
                {"biases": depth},
                "last so many layers",
                "contribution",
                mark=(made.plan.bias_depth, found.bias[made.plan.bias_depth]),
            ),
            "What biases are worth",
            f"By depth; the circle is the depth chosen, {made.plan.bias_depth}",
        ),
    ]


def _names(sources: Sequence[str]) -> list[str]:
    return [short_name(source) for source in sources]


def _memory(run: Run, config: AdaptConfig, made: Adapted) -> Section:
    sram, flash = Budget.parse(config.sram), Budget.parse(config.flash)
    report, receipt = made.step.memory_report(), made.receipt
    full = list(made.others.values())[2]
    blocks: list[Any] = []
    without = Bar("SRAM of training every layer, as planned", full.sram_bytes, sram, "bytes")
    if receipt is not None and made.sram_bytes is not None and receipt.flash_bytes is not None:
        bars = [
            Bar("SRAM, all of it", made.sram_bytes, sram, "bytes"),
            without,
            Bar("flash, all of it", receipt.flash_bytes, flash, "bytes"),
        ]
        blocks.append(Bars("Cost against budget; the linker refuses an image over it", bars))
    else:
        bars = [
            Bar("SRAM, as planned", report.sram_bytes, sram, "bytes"),
            without,
            Bar("constants in flash; code comes on top", report.flash_bytes, flash, "bytes"),
        ]
        blocks += [_NOT_EMULATED, Bars("Plan against budget", bars)]
    rows = [
        [name, each.sram_bytes, each.arena_bytes, each.trained_bytes, each.kept_bytes, each.mask_bytes]
        for name, each in {"this choice": report, **made.others}.items()
    ]
    columns = ["trained", "SRAM planned", "arena", "trained weights", "kept activations", "clamp masks"]
    blocks.append(Table("The same network with other choices, bytes", columns, rows))
    blocks.append(
        Text(
            f"The most is alive at {report.binding.kind} '{report.binding.name}'. The frozen part runs {report.schedule}."
        )
    )
    if receipt is not None and receipt.flash_parts:
        parts = ", ".join(f"{name} {size:,}" for name, size in receipt.flash_parts.items())
        blocks.append(
            Figure(
                figures.flash_breakdown(receipt.flash_parts, budget_bytes=flash),
                "Flash by origin",
                f"Bytes of flash: {parts}",
                "From the symbols of the linked image.",
            )
        )
    shown = [name for name in run.evidence if name.startswith(("sram.", "flash.", "instructions.", "params."))]
    blocks.append(EvidenceTable("Memory and instructions", shown))
    intro = (
        "Kept activations and clamp masks are part of the arena, summed over the whole step; few are alive at once. With steps after all "
        "gradients, every gradient is kept to the end. " + memory_report.NOT_TIME
    )
    return Section("memory", "Memory and cost", intro, blocks)


def _pytorch(run: Run, made: Adapted) -> Section:
    found = made.pytorch
    if isinstance(found, str):
        return Section("pytorch", "Beside PyTorch", "", [Text(found)])
    full = list(made.others.values())[2]
    ours = made.sram_bytes if made.sram_bytes is not None else made.step.sram_bytes
    how = "all of it, on the chip" if made.sram_bytes is not None else "as planned"
    rows: list[list[Any]] = [
        [f"ours: SRAM, {how}", ours, "1.0"],
        ["ours: every layer, as planned", full.sram_bytes, f"{full.sram_bytes / ours:,.1f}"],
        ["PyTorch: process, high water", found.high_water_bytes, f"{found.high_water_bytes / ours:,.1f}"],
        [
            "PyTorch: process above its import",
            found.high_water_bytes - found.after_import_bytes,
            f"{(found.high_water_bytes - found.after_import_bytes) / ours:,.1f}",
        ],
        ["PyTorch: tensors alone", found.tensor_bytes, f"{found.tensor_bytes / ours:,.1f}"],
    ]
    intro = (
        "PyTorch trains every layer of the float network, one image a step, plain SGD; ours trains what was chosen (first row), or "
        "every layer (second). A whole process and its tensors are different claims: the first is what a machine must have, most of it "
        "the library; the second is what the method needs. Neither alone is a fair ratio."
    )
    names = [name for name in run.evidence if name.startswith("pytorch.")]
    table = Table("Memory of training, bytes", ["what", "bytes", "times ours"], rows)
    return Section("pytorch", "Beside PyTorch", intro, [table, EvidenceTable("How they were measured", names)])


def _weights(made: Adapted) -> Section:
    same = made.same
    rows: list[list[Any]] = [
        ["before the first step", same.start, "-"],
        ["integer interpreter", same.python, "-"],
        ["C, this computer", same.host, _agrees(same.host == same.python)],
    ]
    if made.receipt is not None:
        rows.append(
            [f"firmware, {made.receipt.board}, restored half-way", same.chip, _agrees(same.chip == same.python)]
        )
    answers = [f"{made.compared_answers:,} answers compared, {made.mismatching_answers:,} differ."]
    answers.append(
        "Classes of all test images: C on this computer against the interpreter, both from the saved image alone."
    )
    if made.restored is not None:
        answers.append(
            f"Logits of {len(made.restored.predictions)} test images: the chip from the saved image against the interpreter."
        )
    if same.matches is None:
        answers.append("No chip was emulated: that one would learn the same is not claimed here.")
    image = (
        f"artifacts/params.bin ({len(made.progress.params):,} bytes: header, trained weights, checksum) is what the device writes to flash "
        f"and goes on from. The weights at the end, after {made.progress.step:,} steps, have SHA-256 {made.final_digest}."
    )
    return Section(
        "weights",
        "The same weights everywhere",
        f"The first {same.steps} steps of the run, the SHA-256 of all trained weights after them.",
        [Table("Who learnt what", ["by", "SHA-256", "as the interpreter"], rows), Text(" ".join(answers)), Text(image)],
    )


def _agrees(same: bool) -> str:
    return "the same" if same else "DIFFERS"

"""From a pretrained int8 network and images of its new surroundings to firmware that learns them on the chip, within its memory.

Measure what training each layer is worth, choose what to train within the budget, compile one training step, write C, take all steps on
this computer in that C, the first of them on an emulated chip too, compare every trained weight, and report.
"""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from tyro.conf import Positional

from lilliput.errors import BudgetError, ConfigError
from lilliput.evidence import Budget, Evidence, Run

if TYPE_CHECKING:
    from lilliput.jobs.adapt_subject import Task
    from lilliput.jobs.adapt_training import Course, Progress
    from lilliput.jobs.pytorch_memory import PytorchMemory
    from lilliput.mcu.training import MemoryReport, TrainStep, UpdatePlan
    from lilliput.mcu.training.contribution import Contribution
    from lilliput.mcu.training.firmware import TrainFirmware, TrainReceipt

CODE_FLASH_BYTES = 48 * 1024
"""Of start-up code, main program and kernels, rounded up from linked images; the linker has the last word."""
_RESTORED = 8
"""Test images that the chip tells apart from the final parameter image alone."""


@dataclass(frozen=True, kw_only=True)
class AdaptConfig:
    """Teach a pretrained network new images on the chip itself: choose what to train, emit C, train, compare, report.

    Examples:
        lilliput adapt runs/digits --shift rotate --sram 32KB --flash 256KB --out runs/rotated
        lilliput adapt vww_96_int8.tflite --data photos/ --sram 256KB --flash 1MB --steps 2000 --out runs/photos
        lilliput adapt network.pt2 --data faces.npz --scheme last:4 --rate 0.01 --out runs/faces
    """

    model: Positional[str]
    """A finished build or deploy, an int8 .tflite file, or a float network saved by torch.export.save."""
    out: str
    """Directory of the run; it must not exist yet (while the job works it is called OUT.partial)."""
    data: str | None = None
    """digits, or a path: a folder per class, NPZ, MNIST IDX, CIFAR batches; if left out, what the build was made with."""
    shift: Literal["none", "rotate", "invert"] = "none"
    """Change every image: a quarter turn, or the negative. A stand-in for new surroundings where there are no images of them."""
    head: Literal["auto", "own", "new"] = "auto"
    """own: go on with the network's last layer. new: start another. auto: own where it has as many classes as the data."""
    sram: str = "256KB"
    """Most working memory, linked: activations, gradients, trained weights, stack and variables; KB is 1024 bytes."""
    flash: str = "1MB"
    """Most flash, linked: code, weights and constants."""
    board: str = "mps2-an500"
    """mps2-an500 (Cortex-M7), mps2-an386 (M4), netduinoplus2 (a real 128 KB), or host (this computer only)."""
    toolchain: str = "auto"
    """auto, gcc-qemu, or zig-unicorn (no root needed); the receipt names what was used."""
    steps: int = 2000
    """Training steps, one image each."""
    rate: float = 0.02
    """Largest learning rate, of the real-valued weights; warmed up over a twentieth of the steps, then half a cosine to 0."""
    scheme: str = "auto"
    """auto: what a search finds best within the budget. full: everything. head: the last layer. last:K: the last K layers too."""
    contribution: Literal["fisher", "finetune"] = "fisher"
    """What auto goes by: squared gradients (seconds), or accuracies of short runs in floating point (as published; minutes to hours)."""
    master: Literal["int16", "int8"] = "int16"
    """What a trained weight is kept as: int16 with 8 fractional bits, or int8 with stochastic rounding (a byte less)."""
    emulate: int = 64
    """Most steps to take on the emulated chip, the first of the run; all of them are taken natively."""
    limit: int | None = None
    """Use at most this many images of the data."""
    checkpoint: int = 250
    """Steps after which what was learnt is saved, so that an interrupted run goes on from there."""
    pytorch: bool = True
    """Measure what PyTorch takes to train the same layers, in a process of its own."""
    seed: int = 0
    """Of the split (a build's own data keep theirs), a new head and the order of training."""
    resume: bool = False
    """Continue an interrupted run of the same config."""
    quiet: bool = False
    """Print nothing but the result."""

    def __post_init__(self) -> None:
        self.budget()  # refuses sizes that cannot be read
        for name, least in (("steps", 2), ("emulate", 2), ("checkpoint", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name}={getattr(self, name)}: must be {least} or more; try {name}={max(1, least)}")
        if self.seed >= 2**32:
            raise ConfigError(f"seed={self.seed}: must be below 2**32 (4,294,967,296); try seed=0")
        if not 0 < self.rate < float("inf"):
            raise ConfigError(f"rate={self.rate}: must be above 0 and finite; try rate=0.02")
        kind, _, count = self.scheme.partition(":")
        if self.scheme not in ("auto", "full", "head") and not (kind == "last" and count.isdecimal()):
            raise ConfigError(f"scheme='{self.scheme}': must be auto, full, head or last:K; try scheme='last:4'")
        if not self.out:
            raise ConfigError("out='': must name a directory; try out='runs/adapt'")

    def budget(self) -> Budget:
        """The two ceilings as numbers."""
        return Budget.of(sram=self.sram, flash=self.flash)


@dataclass(frozen=True, kw_only=True)
class SameWeights:
    """The first steps, taken by whoever can; digests are of all trained weights, SHA-256."""

    steps: int
    start: str
    python: str
    """Of the integer interpreter."""
    host: str
    """Of the C code on this computer."""
    receipts: tuple[TrainReceipt, ...]
    """Of the emulated chip: the first half, and the second begun from the first one's parameter image; empty where there is no chip."""

    @property
    def chip(self) -> str | None:
        """Of the emulated chip."""
        return self.receipts[-1].weights_digest if self.receipts else None

    @property
    def host_matches(self) -> bool:
        """Python and C agree on this computer, and there was something to agree on."""
        return self.python == self.host != self.start

    @property
    def matches(self) -> bool | None:
        """All three agree; ``None`` where no chip was emulated, so that nothing is claimed."""
        return None if self.chip is None else self.host_matches and self.chip == self.python


@dataclass(frozen=True, kw_only=True)
class Adapted:
    """Everything that was made and measured."""

    task: Task
    contribution: Contribution | None
    plan: UpdatePlan
    step: TrainStep
    others: dict[str, MemoryReport]
    """What other choices would take, by name."""
    same: SameWeights
    progress: Progress
    final_digest: str
    before: float
    after: float
    restored: TrainReceipt | None
    """The chip's answers to a few test images, from the final parameter image."""
    mismatching_answers: int
    """Of all test images: classes that Python and C disagree on, and logits of the chip that differ from Python's."""
    compared_answers: int
    pytorch: PytorchMemory | str
    """Why it was not measured, where it was not."""

    @property
    def receipt(self) -> TrainReceipt | None:
        """Of the chip's training steps."""
        return self.same.receipts[-1] if self.same.receipts else None

    @property
    def instructions(self) -> float | None:
        """Of one training step on the chip, mean over all that it took."""
        if not self.same.receipts:
            return None
        each = [receipt.instructions_each for receipt in self.same.receipts]
        return float(sum(part.sum() for part in each if part is not None) / self.same.steps)

    @property
    def sram_bytes(self) -> int | None:
        """All memory in use on the chip, the most of its runs."""
        found = [receipt.sram_bytes for receipt in self.same.receipts if receipt.sram_bytes is not None]
        return max(found) if found else None


def adapt(config: AdaptConfig) -> Run:
    """Do the whole job.

    Args:
        config: what to adapt, and to what.
    Returns:
        The finished run; ``run.path / "report.html"`` is the page to look at, ``artifacts/firmware`` the C project that learns, and
        ``artifacts/params.bin`` what it learnt, as it is written to flash.
    Raises:
        BudgetError: it does not fit (names the operation that binds and what would work), or the linked image does not.
        DataError: no such model or run; images that cannot be read or do not suit it.
        UnsupportedOpError: no linear layer at the end, or an operation without a gradient rule in what is trained.
        ToolchainError: no compiler or emulator for the board (with the lines that install them), or a fault on the chip.
        ConfigError: the output directory exists, an option is out of range, or no data are named and none known.
    """
    from lilliput.jobs import adapt_report
    from lilliput.jobs.adapt_subject import load_backbone, load_task
    from lilliput.jobs.adapt_training import Course
    from lilliput.jobs.deployment import require_toolchain

    require_toolchain(
        config.board,
        config.toolchain,
        "train in the same C on this computer alone, with --board host: nothing is then claimed of a chip",
    )
    backbone = load_backbone(config.model)
    with Run.create(config.out, job="adapt", config=config, seed=config.seed, resume=config.resume) as run:
        with run.step("load") as step:
            task = load_task(config, backbone)
            digest = f"{backbone.digest} {task.digest}"
            if step.done and step.result["digest"] != digest:
                raise ConfigError(
                    f"{run.path} cannot be resumed: '{config.model}' or its images have changed since it was begun; "
                    f"remove {run.path} to start anew"
                )
            step.save({"digest": digest, "data": str(task.data), "notes": list(task.data.notes)})
        _say(config, f"{task.data}; {'a new head' if task.is_new_head else 'the head it has'}")
        contribution = _contribution(config, task, run)
        with run.step("choose"):
            plan = _choose(config, task, contribution)
            compiled = _compile(config, task, plan)
        _say(config, _summary(task, plan, compiled))
        course = Course.of(len(task.train[1]), config.steps, config.seed)
        made = _train(config, run, task, contribution, plan, compiled, course)
        _record(run, config, made)
        adapt_report.write(run, config, made)
    return run


def show(config: AdaptConfig, run: Run) -> None:
    """Print the verdict, the figures under it, and where the report is."""
    from lilliput.jobs.verdict import print_verdict

    print_verdict(run)


def _say(config: AdaptConfig, line: str) -> None:
    if not config.quiet:
        print(line, flush=True)


def _contribution(config: AdaptConfig, task: Task, run: Run) -> Contribution | None:
    """What training each layer is worth; from the file if an earlier attempt measured it."""
    from lilliput.mcu.training.contribution import Contribution, contribution

    if config.scheme != "auto":
        return None
    with run.step("contribution") as step:
        kept = run.artifact("contribution.json")
        if step.done:
            return Contribution.load(kept)
        found = contribution(
            task.qgraph,
            task.train,
            task.val,
            config.contribution,
            num_classes=len(task.data.class_names),
            lr=config.rate,
            seeds=(config.seed,),
            cache=run.path / "contribution.cache" if config.contribution == "finetune" else None,
            progress=not config.quiet,
        )
        found.save(kept)
        (run.path / "contribution.cache").unlink(missing_ok=True)
        step.save(asdict(found))
    return found


def _options(config: AdaptConfig, task: Task) -> dict[str, Any]:
    """What choosing and compiling have in common; stack and flash that are linked beside the model are set aside."""
    from lilliput.mcu.boards import PORT_SRAM_BYTES
    from lilliput.mcu.plan import DEFAULT_STACK_BYTES
    from lilliput.mcu.training import SGD

    sram, flash = Budget.parse(config.sram), Budget.parse(config.flash)
    return {
        "num_classes": len(task.data.class_names) if task.is_new_head else None,
        "optimizer": SGD(config.rate, master=config.master),
        "sram": sram,
        "flash": max(1, flash - CODE_FLASH_BYTES),
        "stack_bytes": DEFAULT_STACK_BYTES + PORT_SRAM_BYTES,
    }


def _choose(config: AdaptConfig, task: Task, contribution: Contribution | None) -> UpdatePlan:
    from lilliput.mcu.training import UpdatePlan
    from lilliput.mcu.training.search import search_update

    if contribution is not None:
        return search_update(task.qgraph, contribution, **_options(config, task))
    if config.scheme == "full":
        return UpdatePlan.full(task.qgraph)
    kind, _, count = config.scheme.partition(":")
    return UpdatePlan.head_only(task.qgraph) if kind == "head" else UpdatePlan.last(task.qgraph, int(count))


def _compile(config: AdaptConfig, task: Task, plan: UpdatePlan) -> TrainStep:
    from lilliput.mcu.plan import DEFAULT_STACK_BYTES
    from lilliput.mcu.training import compile_training

    made = compile_training(task.qgraph, plan, **_options(config, task), seed=config.seed)
    # The linker's limits are the user's own.
    return replace(made, stack_bytes=DEFAULT_STACK_BYTES, flash_bytes_limit=Budget.parse(config.flash))


def _summary(task: Task, plan: UpdatePlan, step: TrainStep) -> str:
    weights = f"weights of {len(plan.layers)}" if plan.layers else "no weights"
    report = step.memory_report()
    return (
        f"{task.qgraph.name}: trains the head, {plan.bias_depth} biases and {weights} of the layers before it; "
        f"{report.sram_bytes:,} bytes of SRAM planned"
    )


def _train(
    config: AdaptConfig,
    run: Run,
    task: Task,
    contribution: Contribution | None,
    plan: UpdatePlan,
    step: TrainStep,
    course: Course,
) -> Adapted:
    """Emit the project, train with it, and keep what it learnt beside it."""
    import numpy as np

    from lilliput.evidence.atomic import write_bytes
    from lilliput.jobs.adapt_training import train
    from lilliput.mcu.training.host_library import HostModel

    directory, checkpoint = run.artifact("firmware"), run.path / "adapt.checkpoint"
    try:
        with run.step("emit C"):
            shutil.rmtree(directory, ignore_errors=True)  # of an interrupted attempt
            first = course.order[:4]
            firmware = step.emit_c(directory, target=_target(config), x=task.train[0][first], y=task.train[1][first])
        with run.step("take the first steps everywhere"):
            same = _same_weights(config, task, step, firmware, course)
    except BudgetError:  # the linker's: nothing here is of use, and the corrected command must find the name free
        shutil.rmtree(run.path / "artifacts", ignore_errors=True)
        (run.path / "artifacts").mkdir()
        raise
    codes, labels = task.test
    with run.step("test before"):
        before = float((step.predict(codes) == labels).mean())
    with run.step("train"):
        model = HostModel(firmware)
        progress = train(
            model,
            course,
            task.train,
            task.val,
            checkpoint=checkpoint,
            every=config.checkpoint,
            progress=not config.quiet,
        )
    write_bytes(run.artifact("params.bin"), progress.params)
    with run.step("test after"):
        state = firmware.layout.unpack(progress.params)
        found = step.predict(codes, state)
        restored_model = HostModel(firmware)  # another device, which knows nothing but the image
        restored_model.set_params(progress.params)
        mismatching = int(sum(restored_model.predict(each) != told for each, told in zip(codes, found, strict=True)))
        compared, restored = len(codes), None
        if config.board != "host":
            some = codes[:_RESTORED]
            restored = firmware.run(some, board=config.board, toolchain=config.toolchain, params=progress.params)
            logits = step.logits(some, state)
            mismatching += int((restored.logits != logits).sum())
            compared += logits.size
    with run.step("compare memory"):
        others = _others(config, task, plan)
        pytorch = _pytorch(config, task)
    shutil.rmtree(directory / "build", ignore_errors=True)  # objects and images: anyone can make them again
    checkpoint.unlink(missing_ok=True)
    return Adapted(
        task=task,
        contribution=contribution,
        plan=plan,
        step=step,
        others=others,
        same=same,
        progress=progress,
        final_digest=state.digest,
        before=before,
        after=float(np.mean(found == labels)),
        restored=restored,
        mismatching_answers=mismatching,
        compared_answers=compared,
        pytorch=pytorch,
    )


def _target(config: AdaptConfig) -> str:
    return "cortex-m7" if config.board == "host" else config.board


def _same_weights(
    config: AdaptConfig, task: Task, step: TrainStep, firmware: TrainFirmware, course: Course
) -> SameWeights:
    """The first steps by the interpreter, natively, and on the chip, which is switched off half-way and restored from its image."""
    from lilliput.mcu.training.host_library import HostModel

    count = min(config.emulate, len(course))
    order, rates = course.order[:count], course.rates[:count]
    x, y = task.train[0][order], task.train[1][order]
    simulated = step.simulate(x, y, rates=rates)
    model = HostModel(firmware)
    for codes, label, rate in zip(x, y, rates, strict=True):
        model.set_rate(int(rate))
        model.train_step(codes, int(label))
    receipts: list[TrainReceipt] = []
    if config.board != "host":
        image = None
        for part in (slice(0, count // 2), slice(count // 2, count)):
            receipts.append(
                firmware.run(
                    x[part],
                    y[part],
                    config.board,
                    config.toolchain,
                    rates=rates[part],
                    params=image,
                    timeout_seconds=1800.0,
                )
            )
            image = receipts[-1].params
    return SameWeights(
        steps=count,
        start=step.start().digest,
        python=simulated.weights_digest,
        host=model.state.digest,
        receipts=tuple(receipts),
    )


def _others(config: AdaptConfig, task: Task, plan: UpdatePlan) -> dict[str, MemoryReport]:
    """The same network with other choices, held to no budget."""
    from lilliput.mcu.training import UpdatePlan, compile_training
    from lilliput.mcu.training.float_mode import deepest

    reach = deepest(task.qgraph)
    every = UpdatePlan.last(task.qgraph, reach)
    options = _options(config, task) | {"sram": None, "flash": None, "schedule": "whole"}
    choices = {
        "this choice, steps after all gradients": (plan, False),
        "head alone": (UpdatePlan.head_only(task.qgraph), True),
        f"all {reach} layers that gradients reach": (every, True),
        f"all {reach} layers, steps after all gradients": (every, False),
    }
    return {
        name: compile_training(task.qgraph, choice, **options, reorder=reorder).memory_report()
        for name, (choice, reorder) in choices.items()
    }


def _pytorch(config: AdaptConfig, task: Task) -> PytorchMemory | str:
    from lilliput.errors import UnsupportedOpError
    from lilliput.jobs.pytorch_memory import measure

    if not config.pytorch:
        return "PyTorch was not measured (--no-pytorch)."
    try:
        return measure(task.qgraph, len(task.data.class_names))
    except UnsupportedOpError as error:
        return str(error)


def _record(run: Run, config: AdaptConfig, made: Adapted) -> None:
    """Everything the run claims, with how it is known."""
    step, same, test = made.step, made.same, len(made.task.test[1])
    report = step.memory_report()
    source = f"test split of {made.task.data.name}, {len(made.task.data.class_names)} classes"
    seen = (
        "as they are" if config.shift == "none" else {"rotate": "a quarter turn", "invert": "negatives"}[config.shift]
    )
    run.record(
        Evidence(
            "accuracy.before", made.before, "share", "measured", n=test, source=f"{source}, {seen}",
            detail="a new head that has learnt nothing" if made.task.is_new_head else "the network as it was given",
        ),
        Evidence(
            "accuracy.after", made.after, "share", "measured", n=test, source=f"{source}, {seen}",
            detail=f"{config.steps} steps of one image each",
        ),
        Evidence(
            "answers.mismatching", made.mismatching_answers, "answers", "measured", n=made.compared_answers,
            source="classes of all test images, C against Python, and logits of a few, chip against Python; from the saved image",
        ),
        Evidence(
            "weights.digest_match_host", int(same.host_matches), "", "measured", n=same.steps,
            source="SHA-256 of all trained weights after the first steps: integer interpreter, C on this computer",
        ),
        Evidence("weights.digest", made.final_digest, "", "measured", n=config.steps, source="SHA-256 of all trained weights at the end"),
        Evidence("sram.planned", report.sram_bytes, "bytes", "counted", source="arena, trained weights, state and the stack set aside"),
        Evidence("sram.arena", report.arena_bytes, "bytes", "counted", source="memory plan"),
        Evidence("sram.trained", report.trained_bytes, "bytes", "counted", source="masters of trained weights and biases"),
        Evidence("params.image", len(made.progress.params), "bytes", "counted", source="what is written to flash to keep what was learnt"),
    )  # fmt: skip
    for key, name in zip(("sram.unordered", "sram.head", "sram.full", "sram.full_unordered"), made.others, strict=True):
        run.record(
            Evidence(
                key, made.others[name].sram_bytes, "bytes", "counted", source=f"memory plan of {name}, without tiles"
            )
        )
    _record_pytorch(run, made)
    if made.receipt is None:
        return
    receipt = made.receipt
    linked = f"linked image for {receipt.board}, {receipt.toolchain}"
    run.record(
        Evidence(
            "weights.digest_match", int(same.matches is True), "", "emulated", n=same.steps,
            source=f"SHA-256 of all trained weights after {same.steps} steps: interpreter, C on this computer, and {receipt.board}, "
            f"which was restored from its saved image after {same.steps // 2}",
        ),
        Evidence(
            "sram.stack", max(each.stack_bytes or 0 for each in same.receipts), "bytes", "emulated", n=same.steps,
            source="painted stack, high water",
        ),
        Evidence("sram.static", receipt.bss_bytes, "bytes", "measured", source=linked, detail=".data and .bss, arena and weights in it"),
        Evidence("sram.total", made.sram_bytes, "bytes", "emulated", source=".data, .bss and painted stack"),
        Evidence("flash.total", receipt.flash_bytes, "bytes", "measured", source=linked),
        Evidence(
            "instructions.per_step", made.instructions, "instructions", "emulated", n=same.steps, source=receipt.counted_on,
        ),
    )  # fmt: skip


def _record_pytorch(run: Run, made: Adapted) -> None:
    found = made.pytorch
    if isinstance(found, str):
        return
    what = f"PyTorch {found.version}, float32, batch 1, plain SGD, one thread, every layer trained, batch norm folded"
    run.record(
        Evidence("pytorch.high_water", found.high_water_bytes, "bytes", "measured", source=f"most resident memory of the process; {what}"),
        Evidence(
            "pytorch.above_import", found.high_water_bytes - found.after_import_bytes, "bytes", "measured",
            source=f"the same, less what importing PyTorch takes; {what}",
        ),
        Evidence(
            "pytorch.tensors", found.tensor_bytes, "bytes", "measured",
            source=f"tensors saved for backward, parameters and gradients; {what}",
            detail={"saved": found.saved_bytes, "parameters": found.parameter_bytes, "gradients": found.gradient_bytes},
        ),
    )  # fmt: skip

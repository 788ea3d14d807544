"""From images and a chip's budget to firmware that ran.

Load images, design a network for what the chip leaves to it, train it, quantize it to int8, plan its memory, write and link a C project,
run it on this computer and on an emulated chip, compare every byte with the integer interpreter, and report.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from lilliput.errors import ConfigError
from lilliput.evidence import Budget, Evidence, Run

if TYPE_CHECKING:
    from lilliput.data import ImageData
    from lilliput.jobs.deployment import Deployment
    from lilliput.jobs.network_choice import Chooser, Chosen


@dataclass(frozen=True, kw_only=True)
class BuildConfig:
    """Fit an image classifier into a microcontroller: choose, train, quantize, emit C, run it, report.

    Examples:
        lilliput build --data digits --sram 16KB --flash 128KB --out runs/digits
        lilliput build --data photos/ --image-size 48 --channels 3 --sram 64KB --flash 512KB --out runs/photos
        lilliput build --data photos/ --image-size 64 --resolution auto --sram 64KB --flash 512KB --macs 5M --out runs/photos
    """

    out: str
    """Directory of the run; it must not exist yet (while the job works it is called OUT.partial)."""
    data: str = "digits"
    """digits, or a path: a folder per class, NPZ, MNIST IDX, CIFAR batches."""
    sram: str = "16KB"
    """Most working memory, linked: activations, scratch, stack and variables; KB is 1024 bytes."""
    flash: str = "128KB"
    """Most flash, linked: code, weights and constants."""
    macs: str = "1M"
    """Most multiply-accumulates per inference; bounds the energy of the chip and the time of training."""
    image_size: int | None = None
    """Side of the square input in pixels; if left out, the data's own, doubled until it is 16 or more."""
    resolution: Literal["given", "auto"] = "given"
    """auto: the design may choose a smaller input, three quarters or half of that side."""
    rho: float | None = None
    """Largest effectiveness (depth over mean width) of the network; if left out, 0.5, or the least that fits."""
    channels: Literal[1, 3] | None = None
    """1 makes grey, 3 makes colour; if left out, what the data has."""
    limit: int | None = None
    """Use at most this many images of the data."""
    epochs: int = 60
    """Most passes over the training images; the best by validation is kept."""
    batch_size: int = 64
    """Images per training step."""
    shift_pixels: int = 1
    """Augment training by shifts of up to this many pixels."""
    flip_horizontal: bool = False
    """Augment training by mirror images (not for digits or text)."""
    accelerator: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to train."""
    calibration: Literal["minmax", "percentile", "mse"] = "minmax"
    """How activation ranges are chosen from the training images."""
    board: str = "mps2-an386"
    """mps2-an386 (Cortex-M4), mps2-an500 (M7), netduinoplus2 (a real 128 KB), or host (this computer only)."""
    toolchain: str = "auto"
    """auto, gcc-qemu, or zig-unicorn (no root needed); the receipt names what was used."""
    emulate: int = 400
    """Most test images to run on the emulated chip; all of them run natively."""
    certify: int = 16
    """Most test images of which to certify a radius, in at most about 45 CPU-seconds; 0 for none."""
    seed: int = 0
    """Of the split, the weights and the training order."""
    resume: bool = False
    """Continue an interrupted run of the same config."""
    quiet: bool = False
    """No progress bars."""

    def __post_init__(self) -> None:
        self.budget()  # refuses sizes that cannot be read
        for name, least in (
            ("epochs", 1),
            ("batch_size", 1),
            ("emulate", 1),
            ("seed", 0),
            ("shift_pixels", 0),
            ("certify", 0),
        ):
            if getattr(self, name) < least:
                raise ConfigError(f"{name}={getattr(self, name)}: must be {least} or more; try {name}={max(1, least)}")
        if self.seed >= 2**32:
            raise ConfigError(f"seed={self.seed}: must be below 2**32 (4,294,967,296); try seed=0")
        if self.image_size is not None and not 8 <= self.image_size <= 256:
            raise ConfigError(f"image_size={self.image_size}: must be 8 to 256 pixels; try image_size=32")
        if self.rho is not None and not 0 < self.rho < float("inf"):
            raise ConfigError(f"rho={self.rho}: must be above 0; try rho=0.5")
        if not self.out:
            raise ConfigError("out='': must name a directory; try out='runs/digits'")

    def budget(self) -> Budget:
        """The three ceilings as numbers."""
        return Budget.of(sram=self.sram, flash=self.flash, macs=self.macs)


def build(config: BuildConfig, chooser: Chooser | None = None) -> Run:
    """Do the whole job.

    Args:
        config: what to build.
        chooser: designs the network for the images and the budget; the solver over inverted residuals by default.
    Returns:
        The finished run; ``run.path / "report.html"`` is the page to look at.
    Raises:
        BudgetError: no network fits (names the smallest that would do), or the linked image does not.
        DataError: the images cannot be used, with the file at fault.
        ToolchainError: no compiler or emulator for the board (with the lines that install them), or a fault on the chip.
        ConfigError: the output directory exists, or an option is out of range.
    """
    from lilliput.jobs import build_report
    from lilliput.jobs.deployment import deploy, require_toolchain
    from lilliput.jobs.network_choice import Chosen, choose_network

    require_toolchain(config.board, config.toolchain)  # before an hour of training, not after
    with Run.create(config.out, job="build", config=config, seed=config.seed, resume=config.resume) as run:
        with run.step("load data") as step:
            data = load_data(config, config.image_size)
            digest = data_digest(data)
            if step.done and step.result["digest"] != digest:
                raise ConfigError(
                    f"{run.path} cannot be resumed: the images of '{config.data}' are not those it was begun with, so training "
                    f"and test images could mix; remove {run.path} to start anew"
                )
            step.save({"data": str(data), "notes": list(data.notes), "digest": digest})
        _say(config, str(data))
        with run.step("choose network") as step:
            choice = Chosen(**step.result) if step.done else choose_network(config, data, chooser)
            step.save(asdict(choice))
        run.artifact("design.json").write_text(choice.design + "\n")
        if choice.image_size != data.input_shape[1]:
            data = load_data(config, choice.image_size)
        _say(config, f"{choice.found().structure}: {choice.macs:,} MACs, {choice.params:,} parameters")
        with run.step("train") as step:
            model, history = _train(config, data, choice, run)
            step.save(history)
        deployment = deploy(config, data, model, run)
        _record(run, data, deployment)
        certified = _certify(config, data, deployment, run)
        build_report.write(run, config, data, choice, history, deployment, certified)
    return run


def _say(config: BuildConfig, line: str) -> None:
    if not config.quiet:
        print(line, flush=True)


def load_data(config: BuildConfig, image_size: int | None) -> ImageData:
    """The images of a config, at its own size or another; ``None`` is the data's own, doubled until it is 16 or more."""
    from lilliput.data import load_images

    options: dict[str, Any] = {
        "channels": config.channels,
        "seed": config.seed,
        "limit": config.limit,
        "progress": not config.quiet,
    }
    if image_size is not None:
        return load_images(config.data, image_size=image_size, **options)
    data = load_images(config.data, **options)
    rows, columns, _ = data.image_shape
    side = max(rows, columns)
    while side < 16:
        side *= 2
    return data if rows == columns == side else load_images(config.data, image_size=side, **options)


def data_digest(data: ImageData) -> str:
    """Hash of all three splits, images and labels in their order."""
    import hashlib

    digest = hashlib.sha256()
    for split in (data.train, data.val, data.test):
        digest.update(str(split.images.shape).encode())
        digest.update(split.images.tobytes())
        digest.update(split.labels.tobytes())
    return digest.hexdigest()


def _train(config: BuildConfig, data: ImageData, choice: Chosen, run: Run) -> tuple[Any, dict[str, Any]]:
    """The trained module in evaluation mode, and its history; from the file if an earlier attempt finished it."""
    import torch
    from safetensors.torch import load_file, save_file

    from lilliput.training import FitConfig, fit

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = choice.found().build(len(data.class_names))
    weights = run.artifact("model.safetensors")
    step = run.steps["train"]
    if step.done and weights.is_file():
        model.load_state_dict(load_file(weights))
        return model.eval(), step.result
    fit_config = FitConfig(
        epochs=config.epochs,
        batch_size=config.batch_size,
        shift_pixels=config.shift_pixels,
        flip_horizontal=config.flip_horizontal,
        accelerator=config.accelerator,
        # Handing layers of microseconds to a second thread gains a fifth on a free machine and costs far more on a busy one.
        cpu_threads=1 if choice.macs * config.batch_size < 500e6 else 0,
        seed=config.seed,
    )
    checkpoint = run.path / "train.checkpoint"
    result = fit(
        model,
        data.train,
        data.val,
        fit_config,
        checkpoint=checkpoint,
        resume=config.resume,
        progress=not config.quiet,
    )
    partial = weights.with_suffix(".partial")
    save_file({name: tensor.contiguous() for name, tensor in model.cpu().state_dict().items()}, partial)
    partial.replace(weights)  # whole or not there at all
    checkpoint.unlink(missing_ok=True)
    history = {
        "epochs": [asdict(record) for record in result.history],
        "best_epoch": result.best_epoch,
        "seconds": result.seconds,
        "images_per_second": result.images_per_second,
        "device": result.device,
    }
    return model.eval(), history


def _certify(config: BuildConfig, data: ImageData, made: Deployment, run: Run) -> dict[str, Any] | None:
    """Certified radii of some test images; ``None`` where none were asked for."""
    from lilliput.jobs.certified_section import certify_sample, radius_evidence

    if not config.certify:
        return None
    with run.step("certify") as step:
        if not step.done:
            step.save(certify_sample(made.graph, data, config.certify, config.seed))
    run.record(*radius_evidence(step.result, data.name))
    found: dict[str, Any] = step.result
    return found


def _record(run: Run, data: ImageData, made: Deployment) -> None:
    """Everything the run claims, with how it is known."""
    test = len(data.test)
    source = f"test split of {data.name}, seed {run.seed}"
    plan, receipt = made.plan, made.receipt
    run.record(
        Evidence("accuracy.float", made.float_accuracy, "share", "measured", n=test, source=source),
        Evidence("accuracy.int8", made.int8_accuracy, "share", "measured", n=test, source=source, detail="integer interpreter"),
        Evidence("accuracy.host", made.host_accuracy, "share", "measured", n=test, source=source, detail=made.host_receipt.toolchain),
        Evidence(
            "outputs.mismatching_bytes",
            made.mismatching_bytes,
            "bytes",
            "measured",
            n=made.compared_bytes,
            source="every output byte of the C code, natively and on the chip, against the integer interpreter",
        ),
        Evidence("cost.macs", plan.macs, "MACs", "counted", source="graph"),
        Evidence("cost.params", made.params, "parameters", "counted", source="graph, batch norm included"),
        Evidence("sram.arena", plan.arena_bytes, "bytes", "counted", source="memory plan, input included"),
        Evidence("sram.scratch", plan.scratch_bytes, "bytes", "counted", source="memory plan"),
    )  # fmt: skip
    if receipt is None:
        return
    assert receipt.instructions is not None  # a board counts them; only the host does not
    image = f"linked image for {receipt.board}, {receipt.toolchain}"
    run.record(
        Evidence(
            "accuracy.emulated", made.emulated_accuracy, "share", "emulated", n=receipt.inferences, source=receipt.toolchain,
            detail="all test images" if receipt.inferences == test else f"a seeded sample of the {test} test images",
        ),
        Evidence("sram.stack", receipt.stack_bytes, "bytes", "emulated", n=receipt.inferences, source="painted stack, high water"),
        Evidence("sram.static", receipt.bss_bytes, "bytes", "measured", source=image, detail=".data and .bss, arena and scratch inside"),
        Evidence("sram.total", receipt.sram_bytes, "bytes", "emulated", source=".data, .bss and painted stack"),
        Evidence("flash.total", receipt.flash_bytes, "bytes", "measured", source=image),
        Evidence(
            "instructions.per_inference", receipt.instructions, "instructions", "emulated", n=receipt.inferences,
            source=receipt.counted_on,
        ),
        Evidence(
            "instructions.per_mac", receipt.instructions / plan.macs, "instructions per MAC", "emulated", n=receipt.inferences,
            source=receipt.counted_on,
        ),
    )  # fmt: skip


def show(config: BuildConfig, run: Run) -> None:
    """Print the verdict, the figures under it, and where the report is."""
    from lilliput.jobs.verdict import print_verdict

    print_verdict(run)

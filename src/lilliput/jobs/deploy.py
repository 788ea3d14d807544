"""From an int8 network to firmware within a chip's memory: plan, with tiles where memory is short, emit C, run it, compare, report.

The network is a TensorFlow Lite file or what a finished build left. The same C runs on this computer and on an emulated chip, and every
output byte is compared with the integer interpreter's.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tyro.conf import Positional

from lilliput.errors import BudgetError, ConfigError, DataError
from lilliput.evidence import Budget, Evidence, Run
from lilliput.jobs.int8_model import MODEL, find_model, load_model

if TYPE_CHECKING:
    import numpy as np

    from lilliput.mcu import Plan, Receipt
    from lilliput.quantize import QTensor, QuantizedGraph

_BATCH = 32
"""Inputs at a time through the integer interpreter, whose activations are all in memory."""
_VECTORS = 8
"""Inputs that go along with the firmware as its self-test."""


@dataclass(frozen=True, kw_only=True)
class DeployConfig:
    """Fit a trained int8 network into a chip's memory: plan tiles, emit C, run it, report.

    Examples:
        lilliput deploy vww_96_int8.tflite --sram 32KB --flash 1MB --input stream --out runs/vww
        lilliput deploy runs/digits --sram 8KB --flash 128KB --out runs/digits-8KB
        lilliput deploy kws.tflite --sram 16KB --flash 128KB --verify x.npy --labels y.npy --out runs/kws
    """

    model: Positional[str]
    """An int8 .tflite file, or the directory of a finished build or deploy."""
    out: str
    """Directory of the run; it must not exist yet (while the job works it is called OUT.partial)."""
    sram: str = "64KB"
    """Most working memory, linked: activations, scratch, stack and variables; KB is 1024 bytes."""
    flash: str = "1MB"
    """Most flash, linked: code, weights and constants."""
    input: Literal["resident", "stream"] = "resident"
    """resident: the whole input lies in SRAM. stream: the firmware asks for parts of the image, so that it never holds all of it."""
    schedule: Literal["auto", "whole", "smallest"] = "auto"
    """auto: tiles only if the whole does not fit, and then what costs least. whole: no tiles. smallest: the least SRAM found."""
    board: str = "mps2-an386"
    """mps2-an386 (Cortex-M4), mps2-an500 (M7), netduinoplus2 (a real 128 KB), or host (this computer only)."""
    toolchain: str = "auto"
    """auto, gcc-qemu, or zig-unicorn (no root needed); the receipt names what was used."""
    verify: str | None = None
    """Inputs to run, a .npy file of (n, ...), channels last: int8 codes, uint8 pixels, or floats; if left out, random codes."""
    labels: str | None = None
    """Classes of the inputs of --verify, a .npy file of n whole numbers: gives the accuracy."""
    inputs: int = 8
    """How many random inputs to run where --verify is left out."""
    emulate: int = 100
    """Most inputs to run on the emulated chip; all of them run natively."""
    seed: int = 0
    """Of the random inputs, and of the choice of those that run on the chip."""
    resume: bool = False
    """Continue an interrupted run of the same config."""
    quiet: bool = False
    """Print nothing but the result."""

    def __post_init__(self) -> None:
        self.budget()  # refuses sizes that cannot be read
        for name, least in (("inputs", 1), ("emulate", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name}={getattr(self, name)}: must be {least} or more; try {name}={max(1, least)}")
        if self.labels is not None and self.verify is None:
            raise ConfigError(
                f"labels='{self.labels}' without inputs: give the file that they belong to as well, as verify='x.npy'"
            )
        if not self.out:
            raise ConfigError("out='': must name a directory; try out='runs/deploy'")

    def budget(self) -> Budget:
        """The two ceilings as numbers."""
        return Budget.of(sram=self.sram, flash=self.flash)


@dataclass(frozen=True, kw_only=True)
class Deployed:
    """Everything that was made and measured."""

    quantized: QuantizedGraph
    plan: Plan
    whole: Plan
    """The same network without tiles, for comparison: it need not fit."""
    codes: np.ndarray
    """(inputs, ...) int8, channels last."""
    is_given: bool
    """Whether they are those of --verify and not random."""
    labels: np.ndarray | None
    outputs: np.ndarray
    """(inputs, ...) codes of the integer interpreter."""
    host_receipt: Receipt
    receipt: Receipt | None
    """On the emulated chip; ``None`` when the board is the host."""
    emulated: np.ndarray
    """Indices of the inputs that ran on the chip: all, or a seeded sample."""

    @cached_property
    def mismatching_bytes(self) -> tuple[int, int]:
        """Output bytes that differ from the integer interpreter's: on this computer, on the chip."""
        natively = int((self.host_receipt.output != self.outputs).sum())
        if self.receipt is None:
            return natively, 0
        return natively, int((self.receipt.output != self.outputs[self.emulated]).sum())

    @property
    def compared_bytes(self) -> int:
        """How many were compared."""
        return self.host_receipt.output.size + (0 if self.receipt is None else self.receipt.output.size)

    def accuracy(self) -> dict[str, tuple[float, int]]:
        """Share of right answers and of how many, by who computed them; empty without labels."""
        if self.labels is None:
            return {}
        found = {"int8": _accuracy(self.outputs, self.labels), "host": _accuracy(self.host_receipt.output, self.labels)}
        if self.receipt is not None:
            found["emulated"] = _accuracy(self.receipt.output, self.labels[self.emulated])
        return found


def _accuracy(outputs: np.ndarray, labels: np.ndarray) -> tuple[float, int]:
    return float((outputs.reshape(len(outputs), -1).argmax(1) == labels).mean()), len(labels)


def deploy(config: DeployConfig) -> Run:
    """Do the whole job.

    Args:
        config: what to deploy, and where to.
    Returns:
        The finished run; ``run.path / "report.html"`` is the page to look at, ``artifacts/firmware`` the C project.
    Raises:
        BudgetError: it does not fit (names the step that binds and what would work), or the linked image does not.
        DataError: no such model or run, or one that keeps no int8 model; inputs or labels that do not suit it.
        UnsupportedOpError: an operation without a rule or a kernel, or more than one output.
        ToolchainError: no compiler or emulator for the board (with the lines that install them), or a fault on the chip.
        ConfigError: the output directory exists, an option is out of range, or input 'stream' for what is no image.
    """
    from lilliput.jobs import deploy_report
    from lilliput.jobs.deployment import require_toolchain

    require_toolchain(
        config.board,
        config.toolchain,
        "run the same C on this computer alone, with --board host",
    )
    path, name = find_model(config.model)
    with Run.create(config.out, job="deploy", config=config, seed=config.seed, resume=config.resume) as run:
        with run.step("load model") as step:
            quantized = load_model(path, name)
            _same(run, step, _digest(path), f"'{config.model}'")
        with run.step("load inputs") as step:
            codes = _codes(config, quantized)
            labels = _labels(config, quantized, len(codes))
            _same(run, step, _digest_of(codes, labels), "what --verify and --labels hold")
        with run.step("plan"):
            plan, whole = _plan(config, quantized)
        _say(config, _summary(plan))
        made = _run(config, run, path, quantized, plan, whole, codes, labels)
        _record(run, config, made)
        deploy_report.write(run, config, made)
    return run


def show(config: DeployConfig, run: Run) -> None:
    """Print the verdict, the figures under it, and where the report is."""
    from lilliput.jobs.verdict import print_verdict

    print_verdict(run)


def _say(config: DeployConfig, line: str) -> None:
    if not config.quiet:
        print(line, flush=True)


def _summary(plan: Plan) -> str:
    how = "every layer as a whole" if plan.tiling is None else str(plan.tiling.schedule)
    image = ", the image streamed" if plan.streams_input else ""
    return f"{plan.whole.name}: {plan.macs:,} MACs, {how}{image}; {plan.sram_bytes:,} bytes of SRAM planned"


def _digest(path: Path) -> str:
    import hashlib

    return hashlib.sha256(path.read_bytes()).hexdigest()


def _digest_of(codes: np.ndarray, labels: np.ndarray | None) -> str:
    import hashlib

    digest = hashlib.sha256(codes.tobytes())
    if labels is not None:
        digest.update(labels.tobytes())
    return digest.hexdigest()


def _same(run: Run, step: Any, digest: str, what: str) -> None:
    """Keep what the step has read, or refuse to go on with something else."""
    if step.done and step.result["digest"] != digest:
        raise ConfigError(
            f"{run.path} cannot be resumed: {what} has changed since it was begun; remove {run.path} to start anew"
        )
    step.save({"digest": digest})


def _codes(config: DeployConfig, quantized: QuantizedGraph) -> np.ndarray:
    """Inputs as the firmware takes them: (n, ...) int8, channels last."""
    import numpy as np

    source = quantized.tensors[quantized.input]
    if config.verify is None:
        generator = np.random.default_rng(config.seed)
        return generator.integers(-128, 128, (config.inputs, *source.shape), dtype=np.int8)
    values = _array(config.verify, "verify")
    where = f"--verify {config.verify}: {values.dtype}{list(values.shape)}"
    wanted = f"(n, {', '.join(map(str, source.shape))}), channels last"
    if values.shape == source.shape:
        values = values[None]
    elif source.shape[-1] == 1 and values.shape[1:] == source.shape[:-1]:  # grey images without their one channel
        values = values[..., None]
    if values.shape[1:] != source.shape or len(values) == 0:
        raise DataError(f"{where} does not suit '{quantized.name}'; must be {wanted}")
    return _as_codes(values, source, f"{where}: ", wanted)


def _as_codes(values: np.ndarray, source: QTensor, where: str, wanted: str) -> np.ndarray:
    import numpy as np

    if values.dtype == np.int8:
        return np.ascontiguousarray(values)
    if values.dtype == np.uint8:
        if len(source.shape) != 3:
            raise DataError(f"{where}uint8 is for pixels of images, and this input is none; give int8 codes or floats")
        return (values.astype(np.int16) - 128).astype(np.int8)
    if values.dtype.kind != "f":
        raise DataError(f"{where}must be int8 codes, uint8 pixels or floats {wanted}")
    if not np.isfinite(values).all():
        raise DataError(f"{where}has NaN or infinite values; all must be finite")
    return source.quantize(values)


def _labels(config: DeployConfig, quantized: QuantizedGraph, count: int) -> np.ndarray | None:
    from math import prod

    if config.labels is None:
        return None
    labels = _array(config.labels, "labels")
    classes = prod(quantized.tensors[quantized.outputs[0]].shape)
    good = labels.dtype.kind in "iu" and labels.shape == (count,)
    if not good or labels.min() < 0 or labels.max() >= classes:
        found = f"{labels.dtype}{list(labels.shape)}" + (f" from {labels.min()} to {labels.max()}" if good else "")
        raise DataError(
            f"--labels {config.labels}: {found}; must be {count} whole numbers from 0 to {classes - 1}, one for each input"
        )
    return labels


def _array(path: str, option: str) -> np.ndarray:
    import numpy as np

    try:
        values = np.load(path, allow_pickle=False)
    except OSError as error:
        raise DataError(
            f"--{option} {path}: cannot be read ({error.strerror or 'no array file'}); give a .npy file"
        ) from None
    except (ValueError, EOFError):
        raise DataError(f"--{option} {path}: is no .npy file of numbers; write one with numpy.save") from None
    if not isinstance(values, np.ndarray):
        raise DataError(f"--{option} {path}: holds {len(values.files)} arrays; give a .npy file with one")
    return values


def _plan(config: DeployConfig, quantized: QuantizedGraph) -> tuple[Plan, Plan]:
    """Within the budget, and without tiles."""
    from lilliput.jobs.deployment import plan_to_link
    from lilliput.mcu import plan

    made = plan_to_link(quantized, sram=config.sram, flash=config.flash, input=config.input, schedule=config.schedule)
    return made, plan(quantized, input=config.input, schedule="whole")


def _run(
    config: DeployConfig,
    run: Run,
    path: Path,
    quantized: QuantizedGraph,
    plan: Plan,
    whole: Plan,
    codes: np.ndarray,
    labels: np.ndarray | None,
) -> Deployed:
    """Emit the project, run it, and keep the model beside it."""
    import numpy as np

    from lilliput.jobs.deployment import target_of

    # Inputs may lie class by class: a sample must be drawn, the first N would be the first class.
    sample = np.random.default_rng(config.seed).permutation(len(codes))
    emulated = np.sort(sample[: config.emulate])
    with run.step("integer interpreter"):
        batches = [np.asarray(quantized.run(codes[first : first + _BATCH])) for first in range(0, len(codes), _BATCH)]
        outputs = np.concatenate(batches)
    directory = run.artifact("firmware")
    try:
        with run.step("emit C"):
            shutil.rmtree(directory, ignore_errors=True)  # of an interrupted attempt
            firmware = plan.emit_c(directory, target=target_of(config.board), vectors=codes[sample[:_VECTORS]])
        with run.step("run on this computer"):
            host_receipt = firmware.run(codes, board="host")
        receipt = None
        if config.board != "host":
            with run.step("run on the emulated chip"):
                receipt = firmware.run(codes[emulated], board=config.board, toolchain=config.toolchain, profile=True)
    except BudgetError:  # the linker's: nothing here is of use, and the corrected command must find the name free
        shutil.rmtree(directory, ignore_errors=True)
        raise
    shutil.rmtree(directory / "build", ignore_errors=True)  # objects and images: anyone can make them again
    shutil.copyfile(path, run.artifact(MODEL))
    return Deployed(
        quantized=quantized,
        plan=plan,
        whole=whole,
        codes=codes,
        is_given=config.verify is not None,
        labels=labels,
        outputs=outputs,
        host_receipt=host_receipt,
        receipt=receipt,
        emulated=emulated,
    )


def _record(run: Run, config: DeployConfig, made: Deployed) -> None:
    """Everything the run claims, with how it is known."""
    plan, whole, receipt = made.plan, made.whole, made.receipt
    schedule = "no tiles" if plan.tiling is None else str(plan.tiling.schedule)
    image = "input streamed" if plan.streams_input else "input included"
    inputs = (
        Path(config.verify).name if config.verify is not None else f"{len(made.codes)} random inputs, seed {run.seed}"
    )
    run.record(
        Evidence(
            "outputs.mismatching_bytes", sum(made.mismatching_bytes), "bytes", "measured", n=made.compared_bytes,
            source="every output byte of the C code, natively and on the chip, against the integer interpreter", detail=inputs,
        ),
        Evidence("cost.macs", whole.macs, "MACs", "counted", source="graph, without tiles"),
        Evidence("macs.total", plan.macs, "MACs", "counted", source="memory plan, halos included", detail=schedule),
        Evidence("macs.halo", plan.halo_macs, "MACs", "counted", source="memory plan: done again in tiles, less what strides leave out"),
        Evidence("sram.arena", plan.arena_bytes, "bytes", "counted", source=f"memory plan, {image}", detail=schedule),
        Evidence("sram.scratch", plan.scratch_bytes, "bytes", "counted", source="memory plan"),
        Evidence(
            "sram.input", 0 if plan.streams_input else plan.input_bytes, "bytes", "counted",
            source="never in memory as a whole" if plan.streams_input else "part of the arena",
        ),
        Evidence("sram.planned", plan.sram_bytes, "bytes", "counted", source="arena, scratch and the stack set aside"),
        Evidence(
            "sram.whole", whole.sram_bytes, "bytes", "counted",
            source="arena, scratch and the stack set aside of the plan without tiles",
        ),
    )  # fmt: skip
    accuracy = made.accuracy()
    for name, (share, n) in accuracy.items():
        how = "emulated" if name == "emulated" else "measured"
        run.record(Evidence(f"accuracy.{name}", share, "share", how, n=n, source=inputs))
    if receipt is None:
        return
    assert receipt.instructions is not None  # a board counts them; only the host does not
    linked = f"linked image for {receipt.board}, {receipt.toolchain}"
    run.record(
        Evidence("sram.stack", receipt.stack_bytes, "bytes", "emulated", n=receipt.inferences, source="painted stack, high water"),
        Evidence("sram.static", receipt.bss_bytes, "bytes", "measured", source=linked, detail=".data and .bss, arena and scratch inside"),
        Evidence("sram.total", receipt.sram_bytes, "bytes", "emulated", source=".data, .bss and painted stack"),
        Evidence("flash.total", receipt.flash_bytes, "bytes", "measured", source=linked),
        Evidence(
            "instructions.per_inference", receipt.instructions, "instructions", "emulated", n=receipt.inferences,
            source=receipt.counted_on,
        ),
    )  # fmt: skip
    if plan.macs:
        ratio = receipt.instructions / plan.macs
        run.record(
            Evidence("instructions.per_mac", ratio, "instructions per MAC", "emulated", n=receipt.inferences, source=receipt.counted_on)
        )  # fmt: skip

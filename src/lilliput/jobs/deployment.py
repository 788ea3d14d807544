"""From a trained module to a receipt: quantize, plan, emit, link, run on this computer and on the chip, compare."""

from __future__ import annotations

import shutil
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lilliput.errors import ToolchainError, UnsupportedOpError
from lilliput.evidence import Budget, Cost

if TYPE_CHECKING:
    import numpy as np
    from torch import nn

    from lilliput.data import ImageData
    from lilliput.design import Design
    from lilliput.evidence import Run
    from lilliput.graph import Graph
    from lilliput.jobs.build import BuildConfig
    from lilliput.mcu import Firmware, Plan, Receipt
    from lilliput.quantize import QuantizedGraph
    from lilliput.training import Metrics

# What a linked image needs besides the model, rounded up from images measured with both compilers: start-up code, main program and all
# kernels; vectors and variables. The linker has the last word; a plan that these let through and it refuses is a BudgetError.
CODE_FLASH_BYTES = 20 * 1024
STATIC_SRAM_BYTES = 256
TILE_CALL_BYTES = 24
"""Of code and parameters for each call of a network that runs tile by tile, on average and rounded up."""

CALIBRATION_IMAGES = 512


@dataclass(frozen=True, kw_only=True)
class Deployment:
    """Everything that was made and measured after training."""

    graph: Graph
    quantized: QuantizedGraph
    plan: Plan
    firmware: Firmware
    params: int
    float_metrics: Metrics
    int8_outputs: np.ndarray
    """(test images, classes) codes of the integer interpreter."""
    labels: np.ndarray
    host_receipt: Receipt
    receipt: Receipt | None
    """On the emulated chip; ``None`` when the board is the host."""
    emulated: np.ndarray
    """Indices of the test images that ran on the chip: all, or a seeded sample."""

    @property
    def float_accuracy(self) -> float:
        """Share of test images, by the float network."""
        return self.float_metrics.accuracy

    @property
    def int8_accuracy(self) -> float:
        """Share of test images, by the integer interpreter."""
        return _accuracy(self.int8_outputs, self.labels)

    @property
    def host_accuracy(self) -> float:
        """Share of test images, by the C code on this computer."""
        return _accuracy(self.host_receipt.output, self.labels)

    @property
    def emulated_accuracy(self) -> float:
        """Share of the emulated test images, by the firmware on the chip."""
        assert self.receipt is not None
        return _accuracy(self.receipt.output, self.labels[self.emulated])

    @property
    def mismatching_bytes(self) -> int:
        """Output bytes of the C code that differ from the integer interpreter's."""
        natively = int((self.host_receipt.output != self.int8_outputs).sum())
        if self.receipt is None:
            return natively
        return natively + int((self.receipt.output != self.int8_outputs[self.emulated]).sum())

    @property
    def compared_bytes(self) -> int:
        """How many were compared."""
        return self.host_receipt.output.size + (0 if self.receipt is None else self.receipt.output.size)


def _accuracy(outputs: np.ndarray, labels: np.ndarray) -> float:
    return float((outputs.argmax(1) == labels).mean())


def require_toolchain(board: str, toolchain: str, otherwise: str | None = None) -> None:
    """Raise unless this computer can compile for the board and emulate it, and compile for itself.

    Args:
        otherwise: what could be done on this computer alone; said where the board's tools are missing and its own are not.
    Raises:
        ConfigError: no such board or toolchain.
        ToolchainError: not installed; holds the lines that install it.
    """
    from lilliput.mcu.boards import find_board
    from lilliput.mcu.toolchain import find_toolchain

    try:
        find_toolchain(find_board(board), toolchain)
    except ToolchainError as error:
        if otherwise is None or find_board(board).is_host:
            raise
        find_toolchain(find_board("host"))  # what is proposed must work
        raise ToolchainError(f"{error}; or {otherwise}") from None
    find_toolchain(find_board("host"))


def overhead() -> Cost:
    """What every deployed network needs besides its weights and activations."""
    from lilliput.mcu.plan import DEFAULT_STACK_BYTES

    return Cost(flash_bytes=CODE_FLASH_BYTES, sram_bytes=DEFAULT_STACK_BYTES + STATIC_SRAM_BYTES)


def plan_to_link(
    quantized: QuantizedGraph,
    *,
    sram: str | int | None,
    flash: str | int | None,
    input: str = "resident",
    schedule: str = "auto",
) -> Plan:
    """A plan whose image fits too: start-up's variables and the stack's guard, which are linked beside it, count as stack."""
    from dataclasses import replace

    from lilliput.mcu import plan
    from lilliput.mcu.boards import PORT_SRAM_BYTES
    from lilliput.mcu.plan import DEFAULT_STACK_BYTES

    beside = DEFAULT_STACK_BYTES + PORT_SRAM_BYTES
    made = plan(quantized, sram=sram, flash=flash, input=input, schedule=schedule, stack_bytes=beside)
    return replace(made, stack_bytes=DEFAULT_STACK_BYTES)


def deployed_cost(design: Design, budget: Budget | None = None) -> Cost:
    """What an untrained network would cost when deployed: its integer graph is planned as the trained one's will be.

    Args:
        budget: whose SRAM decides whether the first layers run tile by tile; ``None``: they do not.
    """
    import torch

    from lilliput.errors import BudgetError
    from lilliput.graph import trace
    from lilliput.mcu import plan
    from lilliput.quantize import quantize_int8

    side, channels = design.space.image_size, design.space.channels
    sample = torch.rand(2, channels, side, side, generator=torch.Generator().manual_seed(0))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        graph = trace(design.build().eval(), sample[:1])
    quantized = quantize_int8(graph, sample)
    try:
        made = plan_to_link(quantized, sram=None if budget is None else budget.sram_bytes, flash=None)
    except BudgetError:
        made = plan(quantized, schedule="smallest")  # by how much it does not fit
    extra = overhead()
    calls = sum(not step.is_alias for step in made.steps) if made.tiling is not None else 0
    return Cost(
        params=graph.cost().params,
        macs=made.macs,
        flash_bytes=made.constant_bytes + extra.flash_bytes + TILE_CALL_BYTES * calls,
        sram_bytes=made.arena_bytes + made.scratch_bytes + extra.sram_bytes,
    )


def deploy(config: BuildConfig, data: ImageData, model: nn.Module, run: Run) -> Deployment:
    """The steps after training, each timed in the run."""
    import numpy as np
    import torch

    from lilliput.graph import trace
    from lilliput.quantize import quantize_int8
    from lilliput.training import evaluate

    images, labels = data.test.tensors()
    with run.step("test in float"):
        float_metrics = evaluate(model, data.test)
    with run.step("quantize"):
        graph = trace(model, images[:1], name=data.name)
        chosen = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(config.seed))
        calibration = data.train.tensors()[0][chosen[:CALIBRATION_IMAGES]]
        quantized = quantize_int8(graph, calibration, method=config.calibration)
        codes = quantized.quantize_input(images)
        outputs = np.asarray(quantized.run(codes))
        _keep_model(quantized, run)
    # Test images lie class by class in some data sets: a sample must be drawn, the first N would be the first class.
    sample = np.random.default_rng(config.seed).permutation(len(codes))
    emulated = np.sort(sample[: config.emulate])
    with run.step("plan and emit C"):
        made = plan_to_link(quantized, sram=config.sram, flash=config.flash)
        directory = run.artifact("firmware")
        shutil.rmtree(directory, ignore_errors=True)  # of an interrupted attempt
        firmware = made.emit_c(directory, target=target_of(config.board), vectors=codes[sample[:8]])
    with run.step("run on this computer"):
        host_receipt = firmware.run(codes, board="host")
    receipt = None
    if config.board != "host":
        with run.step("run on the emulated chip"):
            receipt = firmware.run(codes[emulated], board=config.board, toolchain=config.toolchain, profile=True)
    shutil.rmtree(directory / "build", ignore_errors=True)  # objects and images: anyone can make them again
    return Deployment(
        graph=graph,
        quantized=quantized,
        plan=made,
        firmware=firmware,
        params=graph.cost().params,
        float_metrics=float_metrics,
        int8_outputs=outputs,
        labels=np.asarray(labels),
        host_receipt=host_receipt,
        receipt=receipt,
        emulated=emulated,
    )


def _keep_model(quantized: QuantizedGraph, run: Run) -> None:
    """What ``lilliput deploy`` reads."""
    path = run.artifact("model.tflite")
    path.unlink(missing_ok=True)  # of an interrupted attempt
    # An operation may have no equal in the format: the firmware is none the worse for it.
    with suppress(UnsupportedOpError):
        quantized.save_tflite(path)


def target_of(board: str) -> str:
    """What a project's own ``make`` builds for."""
    return "cortex-m4" if board == "host" else board

"""An emitted training project: run on a board or natively, with a receipt of what was learnt and what it took."""

from __future__ import annotations

import json
import os
import re
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from jaxtyping import Int8, Int64

from lilliput.errors import ConfigError, DataError, ToolchainError
from lilliput.mcu.boards import Board
from lilliput.mcu.elf import image_sizes
from lilliput.mcu.emulator import Emulation, emulate
from lilliput.mcu.firmware import input_shape, sanitizer_line, step_names, target_of
from lilliput.mcu.image import Image, build_image
from lilliput.mcu.toolchain import Toolchain
from lilliput.mcu.training.arithmetic import RATE_ONE
from lilliput.mcu.training.codegen import LAYOUT_FILE
from lilliput.mcu.training.interpreter import State
from lilliput.mcu.training.parameter_image import ImageLayout
from lilliput.mcu.training.samples import Results, read_results, samples

DEFAULT_BOARD = "mps2-an500"


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainReceipt:
    """What a run of the firmware answered, what it learnt, and what it took. Figures that a host cannot give are ``None``."""

    losses_q16: Int64[np.ndarray, " samples"]
    """Before each step, in nats times 2**16; -1 of a prediction."""
    predictions: Int64[np.ndarray, " samples"]
    """Before each step."""
    logits: Int64[np.ndarray, "samples classes"]
    """Of predictions; 0 of training steps."""
    params: bytes
    """The trained tensors at the end, as they are saved."""
    state: State
    """The same, to simulate on from."""
    board: str
    toolchain: str
    counted_on: str
    """How the instructions were counted, in words."""
    instructions_each: Int64[np.ndarray, " samples"] | None
    """Of the guest processor, for each sample. Not cycles, not milliseconds."""
    resolution_instructions: int | None
    op_instructions: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
    """Of each operation, in running order, mean over all samples; empty unless the run was asked for it."""
    arena_bytes: int | None = None
    params_bytes: int | None = None
    """Trained tensors with header and checksum, as they lie in memory."""
    stack_bytes: int | None = None
    """High-water mark of the painted stack: the model, the main program and start-up together."""
    data_bytes: int | None = None
    bss_bytes: int | None = None
    """``.data`` and ``.bss`` together; arena and trained tensors are inside."""
    sram_bytes: int | None = None
    """All memory in use: data, bss and the painted stack."""
    flash_bytes: int | None = None
    flash_parts: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def losses(self) -> np.ndarray:
        """In nats."""
        return self.losses_q16 / 2**16

    @property
    def weights_digest(self) -> str:
        """SHA-256 of all trained tensors; equal to the simulation's."""
        return self.state.digest

    @property
    def instructions(self) -> float | None:
        """For one sample, mean over all."""
        return None if self.instructions_each is None else float(self.instructions_each.mean())


@dataclass(frozen=True)
class TrainFirmware:
    """An emitted C project that learns. The directory is all there is."""

    directory: Path

    def __post_init__(self) -> None:
        object.__setattr__(self, "directory", Path(self.directory))
        if not (self.directory / LAYOUT_FILE).is_file():
            raise DataError(
                f"{self.directory} is no project that trains: it has no {LAYOUT_FILE}; write one with TrainStep.emit_c"
            )

    @property
    def name(self) -> str:
        """The directory's own name."""
        return self.directory.resolve().name

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Of one sample."""
        return input_shape(self.directory)

    @property
    def num_classes(self) -> int:
        """Of the head."""
        found = re.search(r"#define LL_MODEL_CLASSES (\d+)u", (self.directory / "model.h").read_text())
        if found is None:
            raise DataError(f"{self.directory / 'model.h'} does not define LL_MODEL_CLASSES; write the project again")
        return int(found[1])

    @property
    def layout(self) -> ImageLayout:
        """Of saved images."""
        return ImageLayout.from_json(json.loads((self.directory / LAYOUT_FILE).read_text()))

    def build(self, board: str = DEFAULT_BOARD, toolchain: str = "auto", *, sanitize: bool = False) -> Image:
        """Compile and link for a board without running; :meth:`run` does it when needed.

        Raises:
            BudgetError: the image does not fit the budget or the board.
        """
        target, tools = target_of(board, toolchain, sanitize)
        return build_image(self.directory, target, tools, sanitize=sanitize)

    def run(
        self,
        x: Any,
        y: Any = None,
        board: str = DEFAULT_BOARD,
        toolchain: str = "auto",
        *,
        rates: int | Sequence[int] | Int64[np.ndarray, " samples"] = RATE_ONE,
        params: bytes | None = None,
        sanitize: bool = False,
        profile: bool = False,
        timeout_seconds: float = 300.0,
    ) -> TrainReceipt:
        """One step of training on each sample, or a prediction of each.

        Args:
            x: int8 codes of shape (samples, *input shape).
            y: their labels; None only predicts.
            board: where to; ``host`` runs the same C natively.
            toolchain: ``auto``, or one by name, as ``gcc-qemu`` or ``zig-unicorn``.
            rates: factor of the learning rate, 0 to 2**15: one for all steps, or one for each.
            params: a saved image to go on from; the start if None.
            sanitize: host only; undefined behaviour in the C code ends the run with a ToolchainError.
            profile: boards only; a second image counts the instructions of each operation of a training step.
            timeout_seconds: for all samples together.
        Raises:
            DataError: samples, labels or a saved image that are not this model's.
            BudgetError: the image does not fit the budget or the board.
            ToolchainError: no toolchain, or the image did not run to its end.
        """
        codes, labels, factors = self._stream(x, y, rates)
        target, tools = target_of(board, toolchain, sanitize)
        if profile and (target.is_host or labels is None):
            raise ConfigError(
                "profile=True counts the operations of training steps on a board: give labels and a board"
            )
        if params is not None:
            self.layout.unpack(params)  # says what is wrong with it
        stream = samples(codes, labels, factors)
        image = build_image(self.directory, target, tools, sanitize=sanitize)
        if target.is_host:
            return self._run_on_host(stream, image, tools, params, timeout_seconds)
        done = self._emulate(stream, image, target, tools, len(codes), params, timeout_seconds)
        ops: dict[str, float] = {}
        if profile:
            ops = self._profile(stream, done, target, tools, len(codes), params, timeout_seconds)
        sizes = image_sizes(image.path, image.objects, target.flash_origin)
        exact = "exact, every block of the guest's code counted"
        by_timer = f"SysTick under -icount shift=0, to within {done.resolution_instructions} instructions"
        return self._receipt(
            done.output,
            done.files["params_out.bin"],
            len(codes),
            board=target.name,
            toolchain=str(tools),
            counted_on=f"{target.cpu} of {target.name} emulated by {tools.emulator}: "
            f"{by_timer if done.resolution_instructions else exact}",
            instructions_each=done.instructions_each,
            resolution_instructions=done.resolution_instructions,
            op_instructions=MappingProxyType(ops),
            arena_bytes=sizes.arena_bytes,
            params_bytes=self.layout.size_bytes,
            stack_bytes=done.stack_bytes,
            data_bytes=sizes.data_bytes,
            bss_bytes=sizes.bss_bytes,
            sram_bytes=sizes.bss_bytes + done.stack_bytes,
            flash_bytes=sizes.flash_bytes,
            flash_parts=MappingProxyType(dict(sizes.flash_parts)),
        )

    def _emulate(
        self,
        stream: bytes,
        image: Image,
        board: Board,
        tools: Toolchain,
        count: int,
        params: bytes | None,
        timeout_seconds: float,
        profiled_steps: int | None = None,
    ) -> Emulation:
        return emulate(
            image.path,
            board,
            tools.emulator,
            stream,
            inferences=count,
            timeout_seconds=timeout_seconds,
            profiled_steps=profiled_steps,
            files={} if params is None else {"params.bin": params},
            collect=("params_out.bin",),
        )

    def _profile(
        self,
        stream: bytes,
        done: Emulation,
        board: Board,
        tools: Toolchain,
        count: int,
        params: bytes | None,
        timeout_seconds: float,
    ) -> dict[str, float]:
        names = step_names(self.directory)
        image = build_image(self.directory, board, tools, profile=True)
        profiled = self._emulate(stream, image, board, tools, count, params, timeout_seconds, len(names))
        if (profiled.output, profiled.files) != (done.output, done.files):
            raise ToolchainError(
                f"firmware '{self.name}' learns otherwise in its profile build on board {board.name} ({tools}); "
                "its counts would be those of another program"
            )
        assert profiled.step_instructions is not None
        return dict(zip(names, profiled.step_instructions.mean(axis=0).tolist(), strict=True))

    def _run_on_host(
        self, stream: bytes, image: Image, tools: Toolchain, params: bytes | None, timeout_seconds: float
    ) -> TrainReceipt:
        where = f"firmware '{self.name}' on the host ({tools.compiler})"
        environment = {**os.environ, "UBSAN_OPTIONS": "print_stacktrace=1", "ASAN_OPTIONS": "detect_leaks=0"}
        with tempfile.TemporaryDirectory(prefix="lilliput-") as folder:
            before, after = Path(folder) / "params.bin", Path(folder) / "params_out.bin"
            if params is not None:
                before.write_bytes(params)
            command = [str(image.path.resolve()), "-" if params is None else str(before), str(after)]
            try:
                done = subprocess.run(
                    command, input=stream, capture_output=True, timeout=timeout_seconds, env=environment
                )
            except subprocess.TimeoutExpired as error:
                raise ToolchainError(
                    f"{where} did not end within {timeout_seconds:g} seconds; try fewer samples or a larger timeout_seconds"
                ) from error
            if done.returncode != 0:
                text = sanitizer_line(done.stderr.decode(errors="replace").strip())
                raise ToolchainError(f"{where} ended with status {done.returncode}: {text or 'no message'}")
            left = after.read_bytes()
        count = len(stream) // (8 + int(np.prod(self.input_shape)))
        return self._receipt(
            done.stdout,
            left,
            count,
            board="host",
            toolchain=str(tools).replace(", native)", ")"),
            counted_on="not counted: the host runs the code natively; run a board for instructions, stack and flash",
            instructions_each=None,
            resolution_instructions=None,
        )

    def _receipt(self, output: bytes, params: bytes, count: int, **figures: Any) -> TrainReceipt:
        expected = count * 4 * (2 + self.num_classes)
        if len(output) != expected:
            raise ToolchainError(
                f"firmware '{self.name}' ended as if all were well but wrote {len(output):,} bytes for {count} samples, "
                f"not {expected:,}; does its code leave the program?"
            )
        answers: Results = read_results(output, self.num_classes)
        return TrainReceipt(
            losses_q16=answers.losses_q16,
            predictions=answers.predictions,
            logits=answers.logits,
            params=params,
            state=self.layout.unpack(params),
            **figures,
        )

    def _stream(
        self, x: Any, y: Any, rates: Any
    ) -> tuple[Int8[np.ndarray, "samples ..."], Int64[np.ndarray, " samples"] | None, Int64[np.ndarray, " samples"]]:
        codes = np.asarray(x)
        shape = self.input_shape
        if codes.dtype != np.int8 or codes.shape[1:] != shape or len(codes) == 0:
            raise DataError(
                f"firmware '{self.name}' takes int8 codes of shape (n, {', '.join(map(str, shape))}), n >= 1; "
                f"got {codes.dtype}{list(codes.shape)}; quantize real values first (QuantizedGraph.quantize_input)"
            )
        factors = np.broadcast_to(np.asarray(rates), (len(codes),)).astype(np.int64)
        if factors.min() < 0 or factors.max() > RATE_ONE:
            raise ConfigError(
                f"rates from {factors.min()} to {factors.max()}: must be 0 to {RATE_ONE}, which is the whole learning rate"
            )
        if y is None:
            return codes, None, factors
        labels = np.asarray(y)
        if labels.shape != (len(codes),) or labels.dtype.kind not in "iu":
            raise DataError(
                f"{len(codes)} samples need {len(codes)} whole labels; got shape {list(labels.shape)}, {labels.dtype}"
            )
        if labels.min() < 0 or labels.max() >= self.num_classes:
            raise DataError(f"labels from {labels.min()} to {labels.max()}: must be 0 to {self.num_classes - 1}")
        return codes, labels.astype(np.int64), factors

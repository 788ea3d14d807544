"""An emitted project, and what a run of it gives: the output bytes and a receipt of what they took."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from jaxtyping import Int8, Int64

from lilliput.errors import ConfigError, DataError, ToolchainError
from lilliput.mcu.boards import Board, find_board
from lilliput.mcu.elf import image_sizes, variable_bytes
from lilliput.mcu.emulator import Emulation, emulate
from lilliput.mcu.image import Image, build_image
from lilliput.mcu.toolchain import Toolchain, find_toolchain


@dataclass(frozen=True, kw_only=True, eq=False)
class Receipt:
    """Output of a run and what it took, measured on the image that ran. Figures that a host cannot give are ``None``."""

    output: Int8[np.ndarray, "inferences ..."]
    board: str
    toolchain: str
    """Its name, and the compiler and emulator with their versions."""
    counted_on: str
    """How the instructions were counted, in words."""
    inferences: int
    instructions: float | None
    """Of the guest processor, for one inference, mean over all. Not cycles, not milliseconds."""
    instructions_each: Int64[np.ndarray, " inferences"] | None
    resolution_instructions: int | None
    """How far each count may be from the truth; 0 is exact."""
    op_instructions: Mapping[str, float]
    """Of each step of the model, by the tensor it makes, in running order; one inference, mean over all. Measured in a profile build that
    differs in nothing but a reading of the clock after each step; empty unless the run was asked for it."""
    op_resolution_instructions: int | None
    """How far each of these may be from the truth; 0 is exact."""
    arena_bytes: int | None
    scratch_bytes: int | None
    stack_bytes: int | None
    """High-water mark of the painted stack: the model, the main program and start-up together."""
    data_bytes: int | None
    bss_bytes: int | None
    """``.data`` and ``.bss`` together; arena and scratch are inside."""
    sram_bytes: int | None
    """All memory in use: data, bss and the painted stack."""
    flash_bytes: int | None
    """As linked: vectors, code, constants and the image of ``.data``."""
    flash_parts: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    """Flash by origin: weights, kernels, model, runtime, other. Sums to ``flash_bytes``."""
    flash_symbols: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    """Flash by function or constant, largest first."""


@dataclass(frozen=True)
class Firmware:
    """An emitted C project. The directory is all there is: sizes come from its ``model.h``, limits from its ``link/*.ld``."""

    directory: Path

    def __post_init__(self) -> None:
        object.__setattr__(self, "directory", Path(self.directory))
        for macro in ("INPUT", "OUTPUT"):
            _shape(self.directory, macro)

    @property
    def name(self) -> str:
        """The directory's own name."""
        return self.directory.resolve().name

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Of one input, without the batch."""
        return input_shape(self.directory)

    @property
    def output_shape(self) -> tuple[int, ...]:
        """Of one output, without the batch."""
        return _shape(self.directory, "OUTPUT")

    def build(self, board: str = "mps2-an386", toolchain: str = "auto", *, sanitize: bool = False) -> Image:
        """Compile and link for a board without running; :meth:`run` does it when needed.

        Raises:
            BudgetError: the image does not fit the budget or the board.
        """
        target, tools = target_of(board, toolchain, sanitize)
        return build_image(self.directory, target, tools, sanitize=sanitize)

    def run(
        self,
        x: Any,
        board: str = "mps2-an386",
        toolchain: str = "auto",
        *,
        sanitize: bool = False,
        profile: bool = False,
        timeout_seconds: float = 300.0,
    ) -> Receipt:
        """Run int8 inputs through the firmware.

        Args:
            x: int8 codes, of the input shape or (inferences, *input shape).
            board: where to; ``host`` runs the same C natively.
            toolchain: ``auto``, or one by name, as ``gcc-qemu`` or ``zig-unicorn``.
            sanitize: host only; undefined behaviour in the C code ends the run with a ToolchainError.
            profile: boards only; a second image counts the instructions of each step (:attr:`Receipt.op_instructions`). All other
                figures are those of the firmware itself.
            timeout_seconds: for all inputs together.
        Raises:
            DataError: x has another shape or dtype.
            BudgetError: the image does not fit the budget or the board.
            ToolchainError: no toolchain, or the image did not run to its end.
        """
        codes = self._codes(x)
        target, tools = target_of(board, toolchain, sanitize)
        if profile and target.is_host:
            raise ConfigError("profile=True for board 'host': the host counts no instructions; try board='mps2-an386'")
        image = build_image(self.directory, target, tools, sanitize=sanitize)
        if target.is_host:
            return self._run_on_host(codes, image, tools, timeout_seconds, sanitize)
        done = emulate(
            image.path, target, tools.emulator, codes.tobytes(), inferences=len(codes), timeout_seconds=timeout_seconds
        )
        ops, op_resolution = self._profile(codes, done, target, tools, timeout_seconds) if profile else ({}, None)
        sizes = image_sizes(image.path, image.objects, target.flash_origin)
        exact = "exact, every block of the guest's code counted"
        by_timer = f"SysTick under -icount shift=0, to within {done.resolution_instructions} instructions"
        return Receipt(
            output=self._outputs(done.output, len(codes)),
            board=target.name,
            toolchain=str(tools),
            counted_on=f"{target.cpu} of {target.name} emulated by {tools.emulator}: "
            f"{by_timer if done.resolution_instructions else exact}",
            inferences=len(codes),
            instructions=float(done.instructions_each.mean()),
            instructions_each=done.instructions_each,
            resolution_instructions=done.resolution_instructions,
            op_instructions=MappingProxyType(ops),
            op_resolution_instructions=op_resolution,
            arena_bytes=sizes.arena_bytes,
            scratch_bytes=sizes.scratch_bytes,
            stack_bytes=done.stack_bytes,
            data_bytes=sizes.data_bytes,
            bss_bytes=sizes.bss_bytes,
            sram_bytes=sizes.bss_bytes + done.stack_bytes,
            flash_bytes=sizes.flash_bytes,
            flash_parts=MappingProxyType(dict(sizes.flash_parts)),
            flash_symbols=MappingProxyType(dict(sizes.flash_symbols)),
        )

    def _profile(
        self, codes: np.ndarray, done: Emulation, board: Board, tools: Toolchain, timeout_seconds: float
    ) -> tuple[dict[str, float], int]:
        """Instructions of each step, by the tensor it makes, and their resolution."""
        names = step_names(self.directory)
        image = build_image(self.directory, board, tools, profile=True)
        profiled = emulate(
            image.path,
            board,
            tools.emulator,
            codes.tobytes(),
            inferences=len(codes),
            timeout_seconds=timeout_seconds,
            profiled_steps=len(names),
        )
        if profiled.output != done.output:
            raise ToolchainError(
                f"firmware '{self.name}' gives other outputs in its profile build on board {board.name} ({tools}); "
                "its counts would be those of another program"
            )
        assert profiled.step_instructions is not None
        means = profiled.step_instructions.mean(axis=0)
        return dict(zip(names, means.tolist(), strict=True)), profiled.step_resolution_instructions

    def _codes(self, x: Any) -> Int8[np.ndarray, "inferences ..."]:
        expected = (
            f"firmware '{self.name}' takes int8 codes of shape {self.input_shape} or (n, {str(self.input_shape)[1:]}"
        )
        codes = np.asarray(x)
        if codes.dtype != np.int8:
            raise DataError(
                f"{expected}; got {codes.dtype}; quantize real values with the input's scale and zero point first"
            )
        if codes.shape == self.input_shape:
            codes = codes[None]
        if codes.shape[1:] != self.input_shape or codes.ndim != len(self.input_shape) + 1:
            raise DataError(f"{expected}; got shape {codes.shape}")
        if len(codes) == 0:
            raise DataError(f"{expected}; got no input at all (n=0)")
        return np.ascontiguousarray(codes)

    def _outputs(self, output: bytes, inferences: int) -> Int8[np.ndarray, "inferences ..."]:
        expected = inferences * prod(self.output_shape)
        if len(output) != expected:
            raise ToolchainError(
                f"firmware '{self.name}' ended as if all were well but wrote {len(output):,} bytes of output for {inferences} "
                f"inferences, not {expected:,}; does its code leave the program?"
            )
        return np.frombuffer(output, np.int8).reshape(inferences, *self.output_shape)

    def _run_on_host(
        self, codes: np.ndarray, image: Image, toolchain: Toolchain, timeout_seconds: float, sanitize: bool
    ) -> Receipt:
        where = f"firmware '{self.name}' on the host ({toolchain.compiler})"
        environment = {**os.environ, "UBSAN_OPTIONS": "print_stacktrace=1", "ASAN_OPTIONS": "detect_leaks=0"}
        try:
            done = subprocess.run(
                [str(image.path.resolve())],
                input=codes.tobytes(),
                capture_output=True,
                timeout=timeout_seconds,
                env=environment,
            )
        except subprocess.TimeoutExpired as error:
            raise ToolchainError(
                f"{where} did not end within {timeout_seconds:g} seconds; "
                "the code may loop for ever, or try fewer inputs or a larger timeout_seconds"
            ) from error
        except OSError as error:
            raise ToolchainError(f"{where} could not be started: {error}") from error
        if done.returncode != 0:
            text = done.stderr.decode(errors="replace").strip()
            hint = "" if sanitize else "; try sanitize=True to find the line"
            raise ToolchainError(f"{where} {_ending(done.returncode)}: {sanitizer_line(text) or 'no message'}{hint}")
        variables = variable_bytes(image.path, ("ll_arena", "ll_scratch")) or {}
        return Receipt(
            output=self._outputs(done.stdout, len(codes)),
            board="host",
            toolchain=str(toolchain).replace(", native)", ")"),
            counted_on="not counted: the host runs the code natively; run a board for instructions, stack and flash",
            inferences=len(codes),
            instructions=None,
            instructions_each=None,
            resolution_instructions=None,
            op_instructions=MappingProxyType({}),
            op_resolution_instructions=None,
            arena_bytes=variables.get("ll_arena"),
            scratch_bytes=variables.get("ll_scratch"),
            stack_bytes=None,
            data_bytes=None,
            bss_bytes=None,
            sram_bytes=None,
            flash_bytes=None,
        )


def input_shape(directory: Path) -> tuple[int, ...]:
    """Of one input of an emitted project, without the batch."""
    return _shape(directory, "INPUT")


def _shape(directory: Path, macro: str) -> tuple[int, ...]:
    """Shape behind ``#define LL_MODEL_INPUT_BYTES 64u /* 8 x 8 x 1: ... */``; (64,) where no such comment follows."""
    header = directory / "model.h"
    if not header.is_file():
        raise DataError(f"{directory} is not an emitted project: it has no model.h; write one with Plan.emit_c")
    found = re.search(rf"#define LL_MODEL_{macro}_BYTES \(?(\d+)u?\)?(?: */\* *(\d+(?: x \d+)*))?", header.read_text())
    if found is None:
        raise DataError(
            f"{header} does not define LL_MODEL_{macro}_BYTES as a number; write the project again with Plan.emit_c"
        )
    total = int(found[1])
    shape = tuple(int(length) for length in found[2].split(" x ")) if found[2] else (total,)
    return shape if prod(shape) == total else (total,)


def step_names(directory: Path) -> list[str]:
    """The tensors that the model's steps make, in running order."""
    model = (directory / "model.c").read_text()
    names = [json.loads(name) for name in re.findall(r'LL_STEP\(("(?:[^"\\]|\\.)*")\);', model)]
    if not names:
        raise DataError(
            f"{directory / 'model.c'} names no steps (LL_STEP), so there is nothing to profile; write the project again with Plan.emit_c"
        )
    return names


def target_of(board: str, toolchain: str, sanitize: bool) -> tuple[Board, Toolchain]:
    """The board of that name, and what compiles and runs for it."""
    target = find_board(board)
    if sanitize and not target.is_host:
        raise ConfigError(f"sanitize=True for board {board!r}: only the host has a sanitizer; try board='host'")
    return target, find_toolchain(target, toolchain)


def _ending(status: int) -> str:
    return f"was ended by signal {-status}" if status < 0 else f"ended with status {status}"


def sanitizer_line(text: str) -> str:
    """The line that says what happened; sanitizers print pages around it."""
    lines = [line.strip() for line in text.splitlines()]
    marks = ("runtime error:", "ERROR: ", "panic: ")
    return next((line for line in lines if any(mark in line for mark in marks)), lines[-1] if lines else "")

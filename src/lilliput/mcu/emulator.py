"""Run a linked image on an emulated board and read back what it did.

The image talks to the host by semihosting: it reads ``input.bin``, writes ``output.bin`` and ``stats.bin`` in a directory of
its own, and ends with an exit status. QEMU counts by the board's timer (to within
:attr:`Board.resolution_instructions`), Unicorn block by block (exact).
"""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib.resources import files
from pathlib import Path
from types import MappingProxyType

import numpy as np
from jaxtyping import Int64

from lilliput.errors import ToolchainError
from lilliput.mcu.boards import Board
from lilliput.mcu.elf import function_at
from lilliput.mcu.toolchain import PIP_LINE, Tool, find_tool

UNICORN = files("lilliput.mcu") / "runtime" / "unicorn"
_STATS_MAGIC = 0x4C4C5354  # as in port.h, like the exit statuses below

_CALIBRATIONS = 2
"""Reports of a profile build before its steps: nothing lies between them."""
_TIMER_PERIOD = 2**24
_WRAP_INSTRUCTIONS = 12
"""The handler that counts a wrap of the timer, with the way there and back."""
_STEP_READING_INSTRUCTIONS = 4
"""A tick at each end, of the step and of the calibration."""

_STATUSES = {
    81: "HardFault",
    82: "MemManage fault",
    83: "BusFault",
    84: "UsageFault",
    85: "an interrupt nobody asked for",
    86: "stack overrun: the stack grew through its guard into the variables; raise the stack reserve or the SRAM limit",
    87: "input.bin is missing or no whole number of inputs",
    88: "output.bin or stats.bin could not be written",
    89: "params.bin is damaged, or of another model",
}
_CAUSES = {  # bits of the configurable fault status register
    0: "instruction fetch from memory that holds no code",
    1: "access below the SRAM",
    4: "access below the SRAM",
    8: "instruction fetch from an address without memory",
    9: "data access to an address without memory",
    10: "data access to an address without memory",
    12: "the stack pointer left the memory",
    16: "undefined instruction",
    17: "jump to an address that is not Thumb code",
    18: "illegal return from an exception",
    19: "floating-point instruction while the unit is off",
    24: "unaligned access",
    25: "division by zero",
}


@dataclass(frozen=True, eq=False)
class Emulation:
    """What a finished run left behind."""

    output: bytes
    instructions_each: Int64[np.ndarray, " inferences"]
    resolution_instructions: int
    """How far each count may be from the truth; 0 is exact."""
    stack_bytes: int
    """High-water mark of the painted stack: the model, main and start-up together."""
    stack_region_bytes: int
    """Room the stack had."""
    step_instructions: Int64[np.ndarray, "inferences steps"] | None
    """Of each step of the model, what the readings themselves take already off; ``None`` unless the image is a profile build."""
    step_resolution_instructions: int
    """How far each step's count may be from the truth."""
    files: Mapping[str, bytes] = field(default_factory=lambda: MappingProxyType({}))
    """What the image left, by name."""


def emulate(
    image: Path,
    board: Board,
    emulator: Tool,
    inputs: bytes,
    *,
    inferences: int,
    timeout_seconds: float = 300.0,
    profiled_steps: int | None = None,
    files: Mapping[str, bytes] = MappingProxyType({}),
    collect: tuple[str, ...] = (),
) -> Emulation:
    """Run all inputs through an image, once.

    Args:
        image: what to run.
        board: where.
        emulator: by what.
        inputs: all inputs, one after the other.
        inferences: how many inputs these are.
        timeout_seconds: for all of them together.
        profiled_steps: of a profile build, the number of steps that each inference reports.
        files: other files that the image finds beside its input, by name.
        collect: names of files that the image leaves, to be read back.
    Raises:
        ToolchainError: the image faulted, overran its stack, did not end in time, or did not report; the message names which and where.
    """
    with tempfile.TemporaryDirectory(prefix="lilliput-") as folder:
        directory = Path(folder)
        for name, content in {"input.bin": inputs, **files}.items():
            (directory / name).write_bytes(content)
        command = _command(image.resolve(), board, emulator, inferences, profiled_steps)
        where = f"{image} on board {board.name} ({emulator})"
        try:
            done = subprocess.run(
                command,
                cwd=directory,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=timeout_seconds,
            )
        except subprocess.TimeoutExpired as error:
            raise ToolchainError(
                f"{where} did not end within {timeout_seconds:g} seconds, after {_finished(directory)} of {inferences} inferences; "
                "the code may loop for ever, or try fewer inputs or a larger timeout_seconds"
            ) from error
        except OSError as error:
            raise ToolchainError(f"{where}: {command[0]} could not be started: {error}") from error
        if done.returncode != 0:
            raise ToolchainError(
                f"{where} stopped after {_finished(directory)} of {inferences} inferences: "
                f"{_cause(done.returncode, done.stderr, image)}; board='host' with sanitize=True may find the line"
            )
        left = {name: (directory / name).read_bytes() for name in collect}
        return replace(_read(directory, board, emulator, inferences, where, profiled_steps), files=left)


def _command(
    image: Path, board: Board, emulator: Tool, inferences: int, profiled_steps: int | None = None
) -> list[str]:
    if emulator.name == "qemu":
        shift = 0 if profiled_steps is None else board.profile_shift
        machine = ["-M", board.qemu_machine, "-nographic", "-monitor", "none", "-serial", "none"]
        semihosting = ["-semihosting-config", "enable=on,target=native", "-icount", f"shift={shift}"]
        return [*emulator.command, *machine, *semihosting, "-kernel", str(image)]
    memories = [
        f"--flash={board.flash_origin:#x}:{board.flash_bytes}",
        f"--sram={board.sram_origin:#x}:{board.sram_bytes}",
    ]
    counting = [f"--counter={_block_counter(image.parent)}", f"--calls={inferences}"]
    if profiled_steps is not None:
        counting.append(f"--steps={inferences * (profiled_steps + _CALIBRATIONS)}")
    return [*emulator.command, str(UNICORN / "machine.py"), str(image), f"--cpu={board.cpu}", *memories, *counting]


def _block_counter(directory: Path) -> Path:
    """The counting hook as a shared library beside the image, built at first use."""
    source = UNICORN / "block_counter.c"
    library = directory / f"block_counter-{hashlib.sha256(source.read_bytes()).hexdigest()[:12]}.so"
    if not library.exists():
        compiler = find_tool("cc") or find_tool("zig")
        if compiler is None:
            raise ToolchainError(
                f"counting instructions on unicorn needs a C compiler for this computer; `{PIP_LINE}` brings one"
            )
        command = list(compiler.c_command)
        partial = directory / f"block_counter.{os.getpid()}.so"
        command += ["-shared", "-fPIC", "-O2", "-nostdlib", str(source), "-o", str(partial)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            raise ToolchainError(f"`{' '.join(command)}` failed: {done.stderr.strip()}")
        partial.replace(library)
    return library


def _finished(directory: Path) -> int:
    stats = directory / "stats.bin"
    return stats.stat().st_size // 8 if stats.exists() else 0


def _cause(status: int, stderr: str, image: Path) -> str:
    text = _STATUSES.get(status)
    if text is None and "Lockup" in stderr:
        text = (
            "the processor locked up (a fault while it handled a fault, most often because the stack left the memory)"
        )
    if text is None:
        text = f"the emulator ended with status {status}: {stderr.strip()[-400:] or 'no message'}"
    fault = re.search(r"lilliput fault: (.*?) number=.*?pc=(\w+) lr=(\w+) sp=(\w+) cfsr=(\w+)", stderr)
    if fault is None:
        return text
    pc, lr, sp, cfsr = (int(fault[group], 16) for group in (2, 3, 4, 5))
    causes = dict.fromkeys(cause for bit, cause in _CAUSES.items() if cfsr >> bit & 1)
    if status == 86:
        text += f"; it came to light as {fault[1]}"
    if cfsr & (1 << 4 | 1 << 12):  # the processor could not save its registers: they say nothing
        return f"{text}{''.join(f', {cause}' for cause in causes)}, sp {sp:#x}"
    places = [
        f"{label} {value:#x} ({function_at(image, value) or 'no function'})"
        for label, value in (("pc", pc), ("lr", lr))
    ]
    return f"{text}{''.join(f', {cause}' for cause in causes)}, at {', '.join(places)}, sp {sp:#x}"


def _read(
    directory: Path, board: Board, emulator: Tool, inferences: int, where: str, profiled_steps: int | None
) -> Emulation:
    stats, output = directory / "stats.bin", directory / "output.bin"
    words = np.frombuffer(stats.read_bytes(), "<u4") if stats.exists() else np.zeros(0, "<u4")
    if len(words) != 2 * inferences + 4 or words[-4] != _STATS_MAGIC or words[-3] != inferences:
        raise ToolchainError(
            f"{where} ended as if all were well but left no whole stats.bin; is port/main.c its main program?"
        )
    if emulator.name == "qemu":
        ticks = words[:-4].reshape(-1, 2).astype(np.int64) @ np.array([1, 2**32], np.int64)
        rate = board.instructions_per_tick / (1 if profiled_steps is None else 2**board.profile_shift)
        each = np.array([round(int(tick) * rate) for tick in ticks], np.int64)
        resolution = board.resolution_instructions
    else:
        each = np.frombuffer((directory / "counts.bin").read_bytes(), "<u8").astype(np.int64)
        resolution = 0
    if len(each) != inferences:
        raise ToolchainError(
            f"{where} counted {len(each)} runs of ll_model_run for {inferences} inferences; it must run once for each"
        )
    steps, step_resolution = None, 0
    if profiled_steps is not None:
        steps, step_resolution = _read_profile(directory, board, emulator, inferences, profiled_steps, where)
    return Emulation(output.read_bytes(), each, resolution, int(words[-2]), int(words[-1]), steps, step_resolution)


def _read_profile(
    directory: Path, board: Board, emulator: Tool, inferences: int, steps: int, where: str
) -> tuple[Int64[np.ndarray, "inferences steps"], int]:
    """Counts of the steps of each inference, and how far each may be from the truth.

    Per inference the image makes ``steps + 2`` reports; between the first two lies nothing: their distance is what reporting adds.
    """
    reports = directory / "profile.bin"
    words = np.frombuffer(reports.read_bytes() if reports.exists() else b"", "<u8")
    if len(words) != 2 * inferences * (steps + _CALIBRATIONS):
        raise ToolchainError(
            f"{where} reported {len(words) // 2} steps for {inferences} inferences of {steps}; is model.c the code that was planned?"
        )
    rate = 1.0
    if emulator.name == "qemu":
        rate = float(board.instructions_per_tick) / 2**board.profile_shift
    else:
        words = np.frombuffer((directory / "steps.bin").read_bytes(), "<u8")
        words = np.concatenate(
            [words[:1], words[:-1]]
        )  # counted when a step ends and when one begins; the first has no beginning
    began, ended = words.reshape(inferences, -1, 2).astype(np.int64).transpose(2, 0, 1)
    spans = np.rint((ended - began)[:, 1:] * rate).astype(np.int64)
    counts = spans[:, 1:] - spans[:, :1]
    if emulator.name != "qemu":
        return counts, 0
    wraps = 1 + int(counts.max(initial=0) / rate) // _TIMER_PERIOD
    return counts, _STEP_READING_INSTRUCTIONS + wraps * _WRAP_INSTRUCTIONS

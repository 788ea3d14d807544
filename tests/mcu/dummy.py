"""A small hand-written project in the shape of an emitted one; its model misbehaves when an input asks for it."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from lilliput.errors import ToolchainError
from lilliput.mcu.boards import BOARDS, PORT, find_board, linker_script, makefile
from lilliput.mcu.firmware import Firmware
from lilliput.mcu.toolchain import find_toolchain

DUMMY = Path(__file__).parent / "data" / "dummy"
# As in model.c.
SCENARIOS = (
    *("undefined", "jump", "load", "loop", "spin", "recurse"),
    *("float", "overflow", "outside", "wide", "lockup", "leave"),
)


def needs(board: str, toolchain: str = "auto") -> None:
    """Skip, with the line that would help, where a toolchain is not installed."""
    try:
        find_toolchain(find_board(board), toolchain)
    except ToolchainError as error:
        pytest.skip(str(error))


def make_dummy(directory: Path, *, sram_bytes: int | None = None, flash_bytes: int | None = None) -> Firmware:
    """The project as code generation would write it."""
    shutil.copytree(DUMMY, directory, dirs_exist_ok=True)
    shutil.copytree(str(PORT), directory / "port", ignore=shutil.ignore_patterns("board.ld", "Makefile"))
    (directory / "link").mkdir()
    for board in BOARDS.values():
        if not board.is_host:
            script = linker_script(board, sram_bytes=sram_bytes, flash_bytes=flash_bytes)
            (directory / "link" / f"{board.name}.ld").write_text(script)
    (directory / "Makefile").write_text(makefile("mps2-an386"))
    return Firmware(directory)


def dummy_weights() -> np.ndarray:
    row, column = np.mgrid[:4, :16]
    return (37 * row + 11 * column - 60).astype(np.int8)


def dummy_expected(x: np.ndarray) -> np.ndarray:
    """What model.c computes, in numpy: dot products over 64, towards zero, clipped."""
    sums = x.reshape(-1, 16).astype(np.int32) @ dummy_weights().astype(np.int32).T
    return np.clip(np.trunc(sums / 64), -128, 127).astype(np.int8)


def misbehaving(scenario: str, amount: int = 0) -> np.ndarray:
    """An input that makes the dummy model do something on purpose."""
    head = bytes([SCENARIOS.index(scenario) + 1, 85, 0, 0]) + amount.to_bytes(4, "little") + bytes(8)
    return np.frombuffer(head, np.int8).reshape(4, 4, 1)

"""A small hand-written project in the shape of an emitted one, built once for all tests of boards, toolchains and emulators."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from lilliput.errors import ToolchainError
from lilliput.mcu.boards import find_board
from lilliput.mcu.firmware import Firmware, write_port
from lilliput.mcu.toolchain import find_toolchain

DUMMY = Path(__file__).parent / "data" / "dummy"
SCENARIOS = ("undefined", "jump", "load", "loop", "spin", "recurse", "float", "overflow", "outside", "wide")  # as in model.c


def needs(board: str, toolchain: str = "auto") -> None:
    """Skip, with the line that would help, where a toolchain is not installed."""
    try:
        find_toolchain(find_board(board), toolchain)
    except ToolchainError as error:
        pytest.skip(str(error))


def make_dummy(directory: Path, **limits: int | None) -> Firmware:
    shutil.copytree(DUMMY, directory, dirs_exist_ok=True)
    write_port(directory, name="dummy", **limits)
    return Firmware(directory=directory, name="dummy", input_shape=(4, 4, 1), output_shape=(4,), **limits)


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


@pytest.fixture(scope="session")
def dummy(tmp_path_factory: pytest.TempPathFactory) -> Firmware:
    """The dummy project, held to 16 KB of SRAM and 32 KB of flash; its builds are shared."""
    return make_dummy(tmp_path_factory.mktemp("dummy"), sram_bytes=16 * 1024, flash_bytes=32 * 1024)


@pytest.fixture(scope="session")
def dummy_inputs() -> np.ndarray:
    x = np.random.default_rng(0).integers(-128, 128, (5, 4, 4, 1), dtype=np.int8)
    x[:, 0, 1] = 0  # never the mark that asks for misbehaviour
    return x



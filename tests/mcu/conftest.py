"""Fixtures for the tests of boards, toolchains and emulators: one project, whose builds all tests share."""

import numpy as np
import pytest

from lilliput.mcu.firmware import Firmware
from mcu.dummy import make_dummy


@pytest.fixture(scope="session")
def dummy(tmp_path_factory: pytest.TempPathFactory) -> Firmware:
    """The dummy project, held to 16 KB of SRAM and 32 KB of flash; its builds are shared."""
    return make_dummy(tmp_path_factory.mktemp("dummy"), sram_bytes=16 * 1024, flash_bytes=32 * 1024)


@pytest.fixture(scope="session")
def dummy_inputs() -> np.ndarray:
    x = np.random.default_rng(0).integers(-128, 128, (5, 4, 4, 1), dtype=np.int8)
    x[:, 0, 1] = 0  # never the mark that asks for misbehaviour
    return x

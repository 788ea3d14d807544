"""The headline of the README, in full: digits into 16 KB of SRAM and 128 KB of flash on an emulated Cortex-M4."""

import json
import re
from pathlib import Path

import pytest

from lilliput.errors import ToolchainError
from lilliput.jobs.build import BuildConfig, build
from lilliput.mcu import find_toolchain
from lilliput.mcu.boards import find_board


@pytest.mark.slow
def test_digits_fit_run_and_stay_accurate(tmp_path):
    try:
        find_toolchain(find_board("mps2-an386"))
    except ToolchainError as error:
        pytest.skip(str(error))
    run = build(BuildConfig(out=str(tmp_path / "digits"), sram="16KB", flash="128KB", certify=2, quiet=True))
    figures = {
        name: each["value"]
        for name, each in json.loads((run.path / "evidence.json").read_text()).items()
        if name[0] != "$"
    }
    assert figures["accuracy.float"] >= 0.98
    assert figures["accuracy.int8"] >= figures["accuracy.float"] - 0.01
    assert figures["accuracy.emulated"] == figures["accuracy.int8"]  # every test image ran on the chip
    assert figures["outputs.mismatching_bytes"] == 0
    assert figures["sram.total"] <= 16_384
    assert figures["flash.total"] <= 131_072
    assert run.evidence["accuracy.emulated"].n >= 64
    # The README shows this run; another compiler or processor may move a figure a little, not tell another story.
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    sram, flash = (
        int(each.replace(",", ""))
        for each in re.search(r"fits: ([\d,]+) of 16,384 .*?, ([\d,]+) of 131,072", readme).groups()
    )
    assert figures["sram.total"] == pytest.approx(sram, rel=0.05)
    assert figures["flash.total"] == pytest.approx(flash, rel=0.05)
    shown = float(re.search(r"accuracy\.emulated +([\d.]+)%", readme)[1]) / 100
    assert figures["accuracy.emulated"] == pytest.approx(shown, abs=0.01)
    instructions = int(re.search(r"instructions\.per_inference +([\d,]+)", readme)[1].replace(",", ""))
    assert figures["instructions.per_inference"] == pytest.approx(instructions, rel=0.1)

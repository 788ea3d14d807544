import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from graph.cases import NETWORKS
from lilliput.errors import BudgetError, ConfigError, DataError, LilliputError, UnsupportedOpError
from lilliput.mcu import find_toolchain, plan
from lilliput.mcu.boards import find_board
from lilliput.mcu.plan import Plan
from lilliput.quantize import quantize_int8

FAMILIES = [case for case in NETWORKS if case.name != "transformer"]


def has(board: str, toolchain: str) -> bool:
    try:
        find_toolchain(find_board(board), toolchain)
    except LilliputError:
        return False
    return True


needs_gcc_qemu = pytest.mark.skipif(
    not has("mps2-an386", "gcc-qemu"), reason="arm-none-eabi-gcc or qemu-system-arm is missing"
)
needs_zig_unicorn = pytest.mark.skipif(not has("mps2-an386", "zig-unicorn"), reason="ziglang or unicorn is missing")
needs_cc = pytest.mark.skipif(not has("host", "host-cc"), reason="no C compiler on the host")


def planned(name: str, **options) -> tuple[Plan, np.ndarray]:
    """One of the network families, quantized on noise, and 6 inputs as codes."""
    case = next(case for case in FAMILIES if case.name == name)
    q = quantize_int8(case.graph(), torch.cat([case.example(8), 3 * case.example(4)]))
    return plan(q, **options), q.quantize_input(case.example(6))


@pytest.fixture(scope="module")
def small() -> tuple[Plan, np.ndarray]:
    return planned("mobilenet_v2", sram="16KB", flash="64KB")


@needs_cc
@pytest.mark.parametrize("case", FAMILIES, ids=lambda case: case.name)
@pytest.mark.parametrize("decisions", [True, False], ids=["fused", "plain"])
def test_emitted_c_gives_the_interpreters_bytes_without_undefined_behaviour(case, decisions, tmp_path):
    made, codes = planned(case.name, in_place=decisions, fuse_add=decisions)
    receipt = made.emit_c(tmp_path / "firmware").run(codes, board="host", sanitize=True)
    assert np.array_equal(receipt.output, made.qgraph.run(codes))


@needs_gcc_qemu
@pytest.mark.parametrize("case", FAMILIES, ids=lambda case: case.name)
def test_emulated_firmware_gives_the_interpreters_bytes_and_the_plans_sizes(case, tmp_path):
    made, codes = planned(case.name)
    receipt = made.emit_c(tmp_path / "firmware").run(codes[:3], board="mps2-an386", toolchain="gcc-qemu")
    assert np.array_equal(receipt.output, made.qgraph.run(codes[:3]))
    assert receipt.arena_bytes == made.arena_bytes
    assert (receipt.scratch_bytes or 0) == made.scratch_bytes
    assert receipt.stack_bytes <= made.stack_bytes


@needs_gcc_qemu
@needs_zig_unicorn
def test_both_toolchains_all_boards_and_two_runs_agree(small, tmp_path):
    made, codes = small
    firmware = made.emit_c(tmp_path / "firmware")
    expected = made.qgraph.run(codes)
    first = firmware.run(codes, board="mps2-an386", toolchain="gcc-qemu")
    again = firmware.run(codes, board="mps2-an386", toolchain="gcc-qemu")
    assert np.array_equal(first.instructions_each, again.instructions_each)
    assert first.output.tobytes() == again.output.tobytes() == expected.tobytes()
    other = firmware.run(codes, board="mps2-an386", toolchain="zig-unicorn")
    assert other.output.tobytes() == expected.tobytes()
    for board in ("mps2-an500", "netduinoplus2"):
        assert firmware.run(codes, board=board).output.tobytes() == expected.tobytes()


@needs_gcc_qemu
def test_the_linker_refuses_an_image_over_the_budget(small, tmp_path):
    made, codes = small
    tight = plan(made.qgraph, sram=made.sram_bytes, flash="64KB")
    with pytest.raises(BudgetError, match=r"RAM|SRAM"):
        tight.emit_c(tmp_path / "sram").run(codes, board="mps2-an386")
    tight = plan(made.qgraph, sram="16KB", flash=made.constant_bytes + 100)
    with pytest.raises(BudgetError, match="(?i)flash"):
        tight.emit_c(tmp_path / "flash").run(codes, board="mps2-an386")


@needs_cc
def test_the_project_builds_and_checks_itself_without_python(small, tmp_path):
    made, codes = small
    made.emit_c(tmp_path / "firmware", vectors=codes)
    for targets in [["host-run"], *([["run"]] if has("mps2-an386", "gcc-qemu") else [])]:
        done = subprocess.run(
            ["make", *targets], cwd=tmp_path / "firmware", capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert "PASS" in done.stdout
    # The self-test can fail: a wrong expectation is found.
    expected = tmp_path / "firmware" / "vectors" / "expected.bin"
    expected.write_bytes(bytes([expected.read_bytes()[0] ^ 1]) + expected.read_bytes()[1:])
    done = subprocess.run(["make", "host-run"], cwd=tmp_path / "firmware", capture_output=True, text=True, timeout=300)
    assert done.returncode != 0
    assert "FAIL" in done.stdout + done.stderr


def test_emitting_twice_gives_the_same_files(small, tmp_path):
    made, _ = small
    made.emit_c(tmp_path / "one")
    made.emit_c(tmp_path / "two")
    files = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*") if path.is_file())
    assert len(files) > 20
    for path in files:
        ours, theirs = (tmp_path / name / path for name in ("one", "two"))
        assert ours.read_bytes().replace(b"one", b"two") == theirs.read_bytes().replace(b"one", b"two"), path


def test_weights_and_tables_stay_in_flash(small, tmp_path):
    made, _ = small
    made.emit_c(tmp_path / "firmware")
    for name in ("model.c", "weights.c"):
        text = (tmp_path / "firmware" / name).read_text()
        arrays = re.findall(r"^(?:static )?(\w+) .*(?:\[.*\]|call\d+) = \{", text, re.MULTILINE)
        assert arrays
        assert set(arrays) == {"const"} or set(re.findall(r"^static (\w+)", text, re.MULTILINE)) == {"const"}


def test_a_folder_with_something_in_it_is_never_written_over(small, tmp_path):
    (tmp_path / "keep.txt").write_text("mine")
    with pytest.raises(ConfigError, match="not an empty folder"):
        small[0].emit_c(tmp_path)
    assert (tmp_path / "keep.txt").read_text() == "mine"


def test_a_failure_half_way_leaves_nothing(small, tmp_path, monkeypatch):
    monkeypatch.setattr("lilliput.mcu.codegen._readme", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        small[0].emit_c(tmp_path / "firmware")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"target": "cortex-m0"}, ConfigError, "must be one of cortex-m4, cortex-m7, mps2-an386"),
        ({"vectors": np.zeros((1, 3), np.int8)}, DataError, r"vectors are int8\[1, 3\]; must be int8\[n, 16, 16, 3\]"),
        ({"vectors": np.zeros((0, 16, 16, 3), np.int8)}, DataError, "n >= 1"),
    ],
)
def test_bad_requests_are_refused(small, tmp_path, options, error, words):
    with pytest.raises(error, match=words):
        small[0].emit_c(tmp_path / "firmware", **options)
    assert not (tmp_path / "firmware").exists()


def test_a_network_with_two_outputs_is_refused(tmp_path):
    class Two(nn.Module):
        def forward(self, x):
            return torch.relu(x), torch.sigmoid(x)

    made = plan(quantize_int8(Two().eval(), torch.randn(8, 4)))
    with pytest.raises(UnsupportedOpError, match="one output.* has 2"):
        made.emit_c(tmp_path / "firmware")


GOLDEN = Path(__file__).parent / "golden"


class Tiny(nn.Module):
    """A network with round weights, so that its C is the same on every machine."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)
        for index, parameter in enumerate(self.parameters()):
            values = (torch.arange(parameter.numel()) * 37 % 17 - 8 + index % 3) / 16
            parameter.data = values.reshape(parameter.shape).float()

    def forward(self, x):
        return self.layers(x)


GOLDEN_NETWORKS = {
    "linear": (lambda: Tiny(nn.Linear(4, 2)), (4,)),
    "conv": (lambda: Tiny(nn.Conv2d(1, 2, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()), (1, 6, 6)),
    "depthwise": (lambda: Tiny(nn.Conv2d(2, 2, 3, padding=1, groups=2), nn.ReLU6(), nn.Conv2d(2, 1, 1)), (2, 4, 4)),
}


@pytest.mark.parametrize("name", GOLDEN_NETWORKS)
def test_generated_c_of_three_tiny_networks_is_as_reviewed(name, tmp_path, request):
    build, shape = GOLDEN_NETWORKS[name]
    sample = (torch.arange(4 * int(np.prod(shape))) % 256).reshape(4, *shape) / 255
    made = plan(quantize_int8(build().eval(), sample), sram="8KB", flash="32KB")
    made.emit_c(tmp_path / "firmware")
    for file in ("model.h", "model.c", "weights.c"):
        path = GOLDEN / f"{name}.{file}"
        text = (tmp_path / "firmware" / file).read_text()
        if request.config.getoption("--regenerate"):
            GOLDEN.mkdir(exist_ok=True)
            path.write_text(text)
        assert text == path.read_text(), f"{path.name} differs; after review: pytest --regenerate"


def test_no_stray_build_products_in_the_package():
    root = Path(__file__).parents[2] / "src" / "lilliput" / "mcu" / "runtime"
    assert shutil.which("git") is None or not list(root.rglob("*.o"))


@needs_gcc_qemu
def test_a_profile_names_every_step_and_its_names_cost_the_firmware_nothing(small, tmp_path):
    made, codes = small
    firmware = made.emit_c(tmp_path / "firmware")
    receipt = firmware.run(codes[:2], toolchain="gcc-qemu", profile=True)
    assert list(receipt.op_instructions) == [step.output for step in made.steps if not step.is_alias]
    assert min(receipt.op_instructions.values()) > 0
    resolution = receipt.resolution_instructions + len(receipt.op_instructions) * receipt.op_resolution_instructions
    assert abs(sum(receipt.op_instructions.values()) - receipt.instructions) <= resolution
    listing = made.table(receipt.op_instructions)
    assert all(f" {count:,.0f} " in listing for count in receipt.op_instructions.values())

    bare = made.emit_c(tmp_path / "bare")
    model = tmp_path / "bare" / "model.c"
    model.write_text(re.sub(r"\n    LL_STEP\(.*\);", "", model.read_text()))
    images = [each.build("mps2-an386", "gcc-qemu").path.read_bytes() for each in (firmware, bare)]
    assert images[0] == images[1]

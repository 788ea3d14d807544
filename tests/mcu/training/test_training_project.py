"""The emitted project: what it takes, what it refuses, and that it stands alone."""

import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
from elftools.elf.elffile import ELFFile

from lilliput.errors import BudgetError, ConfigError, DataError, ToolchainError
from lilliput.mcu import find_toolchain
from lilliput.mcu.boards import find_board
from lilliput.mcu.emulator import emulate
from lilliput.mcu.training.firmware import TrainFirmware
from lilliput.mcu.training.host_library import HostModel
from lilliput.mcu.training.parameter_image import image_layout
from lilliput.mcu.training.samples import samples
from lilliput.mcu.training.train_step import compile_training
from mcu.training.digit_step import compiled, digits, needs_cc, needs_qemu, train


@pytest.fixture(scope="module")
def firmware(tmp_path_factory: pytest.TempPathFactory) -> TrainFirmware:
    return compiled().emit_c(tmp_path_factory.mktemp("digits") / "firmware")


@needs_qemu
def test_it_fits_256_kb_by_linker_and_painted_stack_and_calls_no_library(firmware: TrainFirmware) -> None:
    _, x, y = digits()
    receipt = firmware.run(x[:4], y[:4], toolchain="gcc-qemu")
    report = compiled().memory_report()
    script = (firmware.directory / "link" / "mps2-an500.ld").read_text()
    assert re.search(r"RAM .*LENGTH = 262144\b", script)
    assert re.search(r"FLASH .*LENGTH = 1048576\b", script)
    assert receipt.sram_bytes == receipt.bss_bytes + receipt.stack_bytes
    assert receipt.sram_bytes <= 262_144
    assert receipt.arena_bytes == report.arena_bytes
    assert receipt.stack_bytes <= compiled().stack_bytes
    assert receipt.bss_bytes <= report.sram_bytes - report.stack_bytes + 64, "what the report leaves out is the port's"
    assert report.flash_bytes < receipt.flash_bytes < 2**20
    image = firmware.build(toolchain="gcc-qemu")
    defined = symbols(image.path, undefined=False)
    assert not defined & {"malloc", "free", "calloc", "printf", "snprintf", "_sbrk", "expf", "exp", "logf", "log"}
    objects = [path for part in ("kernels", "model", "weights") for path in image.objects[part]]
    assert len(objects) > 15
    ours = set().union(*(symbols(path, undefined=False) for path in objects))
    outside = set().union(*(symbols(path, undefined=True) for path in objects)) - ours
    assert outside <= {"memcpy", "memmove", "memset"} | {name for name in outside if name.startswith("__aeabi_")}


def symbols(path: Path, *, undefined: bool) -> set[str]:
    with path.open("rb") as file:
        table = ELFFile(file).get_section_by_name(".symtab")
        return {each.name for each in table.iter_symbols() if (each["st_shndx"] == "SHN_UNDEF") == undefined} - {""}


@needs_qemu
def test_the_linker_refuses_what_does_not_fit(tmp_path: Path) -> None:
    step = compiled()
    tight = compile_training(
        step.qgraph, step.update, num_classes=10, optimizer=step.optimizer, sram=step.sram_bytes, flash="4KB"
    )
    with pytest.raises(BudgetError, match="flash is .* bytes short"):
        tight.emit_c(tmp_path / "firmware").build()


@needs_qemu
def test_instructions_of_each_operation_add_up_to_a_step(firmware: TrainFirmware) -> None:
    _, x, y = digits()
    receipt = firmware.run(x[:4], y[:4], profile=True, toolchain="gcc-qemu")
    assert {op.name for op in compiled().program.ops if op.updates} < set(receipt.op_instructions)
    total = sum(receipt.op_instructions.values())
    assert 0.9 * receipt.instructions < total < 1.1 * receipt.instructions


@needs_cc
def test_a_model_refuses_images_that_are_not_its_own_and_stays_as_it_was(firmware: TrainFirmware) -> None:
    _, x, y = digits()
    model = HostModel(firmware)
    train(model, x[:4], y[:4], np.full(4, 2**15))
    good = model.get_params()
    for byte in (0, 4, 8, 12, 20, len(good) // 2, len(good) - 1):
        damaged = bytearray(good)
        damaged[byte] ^= 1
        with pytest.raises(DataError, match="damaged"):
            model.set_params(bytes(damaged))
        # The C code itself, with the Python checks out of the way.
        assert model._c.ll_model_set_params(bytes(damaged)) == 0
    foreign = image_layout(compiled("int8").program, compiled("int8").prefix.whole)
    with pytest.raises(DataError, match="this network's have"):
        model.set_params(foreign.pack(compiled("int8").start()))
    assert model.get_params() == good
    model.reset()
    assert model.state.digest == compiled().start().digest
    model.set_params(good)
    assert model.get_params() == good


@needs_qemu
def test_the_example_main_refuses_a_damaged_image_too(firmware: TrainFirmware) -> None:
    _, x, _ = digits()
    image = firmware.build(toolchain="gcc-qemu")
    board = find_board("mps2-an500")
    damaged = bytearray(firmware.layout.pack(compiled().start()))
    damaged[40] ^= 4
    with pytest.raises(ToolchainError, match=r"params\.bin is damaged, or of another model"):
        emulate(
            image.path, board, find_toolchain(board, "gcc-qemu").emulator, samples(x[:1], None), inferences=1,
            files={"params.bin": bytes(damaged)},
        )  # fmt: skip


@needs_cc
def test_labels_and_rates_out_of_range_move_nothing(firmware: TrainFirmware) -> None:
    _, x, y = digits()
    model = HostModel(firmware)
    before = model.get_params()
    with pytest.raises(DataError, match="label 10: must be 0 to 9"):
        model.train_step(x[0], 10)
    model.set_rate(0)
    model.train_step(x[0], 3)
    assert model.get_params() == before
    with pytest.raises(DataError, match="labels from 0 to 10"):
        firmware.run(x[:2], np.array([0, 10]))
    with pytest.raises(ConfigError, match="rates from 0 to 40000"):
        firmware.run(x[:2], y[:2], rates=[0, 40000])
    with pytest.raises(DataError, match="int8 codes of shape"):
        firmware.run(x[:2].astype(np.float32), y[:2])
    with pytest.raises(ConfigError, match="give labels and a board"):
        firmware.run(x[:2], profile=True)


def assert_make_passes(target: str, firmware: TrainFirmware) -> None:
    done = subprocess.run(["make", target], cwd=firmware.directory, capture_output=True, text=True, timeout=300)
    assert "PASS" in done.stdout, done.stdout + done.stderr


@needs_cc
def test_the_project_builds_and_checks_itself_without_python(firmware: TrainFirmware) -> None:
    assert_make_passes("host-run", firmware)


@pytest.mark.slow
@needs_qemu
def test_so_it_does_for_the_board(firmware: TrainFirmware) -> None:
    assert_make_passes("run", firmware)


def test_emitting_twice_gives_the_same_files(firmware: TrainFirmware, tmp_path: Path) -> None:
    again = compiled().emit_c(tmp_path / "again")
    files = [path.relative_to(again.directory) for path in again.directory.rglob("*") if path.is_file()]
    assert len(files) > 30
    assert all((again.directory / name).read_bytes() == (firmware.directory / name).read_bytes() for name in files)
    with pytest.raises(ConfigError, match="not an empty folder"):
        compiled().emit_c(again.directory)
    with pytest.raises(DataError, match="no project that trains"):
        TrainFirmware(tmp_path)

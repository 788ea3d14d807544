import re
import shutil
import subprocess

import numpy as np
import pytest

from lilliput.errors import BudgetError, ConfigError, DataError, ToolchainError
from lilliput.mcu.boards import PORT_SRAM_BYTES
from lilliput.mcu.firmware import Firmware
from mcu.dummy import dummy_expected, make_dummy, misbehaving, needs

COMPILERS = pytest.mark.parametrize("toolchain", ["gcc-qemu", "zig-unicorn"])


@pytest.mark.parametrize(
    ("board", "toolchain"),
    [
        ("mps2-an386", "gcc-qemu"),
        ("mps2-an386", "zig-unicorn"),
        ("mps2-an386", "zig-qemu"),
        ("mps2-an500", "gcc-qemu"),
        ("mps2-an500", "zig-unicorn"),
        ("netduinoplus2", "gcc-qemu"),
        ("host", "host-cc"),
        pytest.param("host", "host-zig", marks=pytest.mark.slow),  # Zig builds its C library at first use
    ],
)
def test_every_board_and_toolchain_gives_the_bytes_that_numpy_gives(dummy, dummy_inputs, board, toolchain):
    needs(board, toolchain)
    receipt = dummy.run(dummy_inputs, board, toolchain)
    np.testing.assert_array_equal(receipt.output, dummy_expected(dummy_inputs))
    assert receipt.board == board
    assert receipt.toolchain.startswith(f"{toolchain} (")
    assert receipt.inferences == len(dummy_inputs)


def test_one_input_needs_no_batch_axis(dummy, dummy_inputs):
    needs("host")
    receipt = dummy.run(dummy_inputs[0], "host")
    np.testing.assert_array_equal(receipt.output, dummy_expected(dummy_inputs[:1]))


def test_shapes_come_from_the_header_that_is_compiled(dummy):
    assert (dummy.input_shape, dummy.output_shape) == ((4, 4, 1), (4,))


@COMPILERS
def test_the_receipt_agrees_with_the_image_as_binutils_see_it(dummy, dummy_inputs, toolchain, tmp_path):
    needs("netduinoplus2", toolchain)
    for tool in ("size", "nm", "objcopy"):
        if shutil.which(f"arm-none-eabi-{tool}") is None:
            pytest.skip(f"arm-none-eabi-{tool} is not installed: sudo apt-get install binutils-arm-none-eabi")
    receipt = dummy.run(dummy_inputs, "netduinoplus2", toolchain)
    image = str(dummy.build("netduinoplus2", toolchain).path)

    def call(*command: str) -> str:
        return subprocess.run(
            [f"arm-none-eabi-{command[0]}", *command[1:], image], capture_output=True, text=True, check=True
        ).stdout

    sections = {row.split()[0]: int(row.split()[1]) for row in call("size", "-A").splitlines() if row.startswith(".")}
    assert receipt.data_bytes == sections[".data"] > 0
    assert receipt.bss_bytes == sections[".data"] + sections[".bss"]
    symbols = {
        row.split()[3]: int(row.split()[1], 16) for row in call("nm", "-S").splitlines() if len(row.split()) == 4
    }
    assert receipt.arena_bytes == symbols["ll_arena"] == 48
    assert receipt.scratch_bytes == symbols["ll_scratch"] == 24
    assert receipt.flash_symbols["ll_weights"] == symbols["ll_weights"] == 64

    subprocess.run(["arm-none-eabi-objcopy", "-O", "binary", image, str(tmp_path / "flash.bin")], check=True)
    assert receipt.flash_bytes == (tmp_path / "flash.bin").stat().st_size
    assert sum(receipt.flash_parts.values()) == receipt.flash_bytes
    assert receipt.flash_parts["weights"] == 64
    assert receipt.flash_parts["kernels"] == symbols["ll_dot"]
    assert min(receipt.flash_parts.values()) >= 0
    assert receipt.sram_bytes == receipt.bss_bytes + receipt.stack_bytes


def test_the_painted_stack_sees_what_the_model_itself_uses(dummy):
    needs("mps2-an386", "gcc-qemu")
    shallow, deep = (dummy.run(misbehaving("recurse", depth), "mps2-an386", "gcc-qemu") for depth in (0, 100))
    # Each level holds at least its array of 8 words and a return address.
    assert deep.stack_bytes - shallow.stack_bytes >= 100 * 36
    assert deep.bss_bytes == shallow.bss_bytes


def test_a_host_counts_nothing_and_says_so(dummy, dummy_inputs):
    needs("host")
    receipt = dummy.run(dummy_inputs, "host")
    assert receipt.instructions is None
    assert receipt.instructions_each is None
    assert receipt.stack_bytes is None
    assert receipt.flash_bytes is None
    assert "not counted: the host runs the code natively" in receipt.counted_on


def test_a_receipt_says_how_it_counted(dummy, dummy_inputs):
    needs("mps2-an386", "gcc-qemu")
    needs("mps2-an386", "zig-unicorn")
    by_timer, exact = (
        dummy.run(dummy_inputs, "mps2-an386", toolchain).counted_on for toolchain in ("gcc-qemu", "zig-unicorn")
    )
    assert by_timer.startswith("cortex-m4 of mps2-an386 emulated by qemu ")
    assert by_timer.endswith("SysTick under -icount shift=0, to within 64 instructions")
    assert exact.startswith("cortex-m4 of mps2-an386 emulated by unicorn ")
    assert exact.endswith("exact, every block of the guest's code counted")


def test_an_image_is_built_once_and_again_when_a_source_changes(tmp_path, dummy_inputs):
    needs("host")
    firmware = make_dummy(tmp_path / "project")
    first = firmware.build("host").path.stat()
    assert firmware.build("host").path.stat() == first
    source = tmp_path / "project" / "nn" / "ll_dot.c"
    source.write_text(source.read_text().replace("sum /= 64", "sum /= 32"))
    changed = firmware.run(dummy_inputs, "host").output
    assert firmware.build("host").path.stat().st_ino != first.st_ino or firmware.build("host").path.stat() != first
    assert (changed != dummy_expected(dummy_inputs)).any()


def test_an_image_holds_no_path_of_this_computer(dummy, tmp_path):
    needs("mps2-an386", "gcc-qemu")
    elsewhere = make_dummy(tmp_path / "elsewhere", sram_bytes=16 * 1024, flash_bytes=32 * 1024)
    images = [firmware.build("mps2-an386", "gcc-qemu").path.read_bytes() for firmware in (dummy, elsewhere)]
    assert images[0] == images[1]
    assert str(tmp_path).encode() not in images[1]


@COMPILERS
def test_an_image_over_budget_does_not_link_and_the_message_says_by_how_much(dummy, tmp_path, dummy_inputs, toolchain):
    needs("mps2-an386", toolchain)
    sizes = dummy.run(dummy_inputs, "mps2-an386", toolchain)
    sram_bytes = sizes.bss_bytes + 512 + 32  # the stack reserve of model.h, and the guard
    flash_bytes = sizes.flash_bytes
    make_dummy(tmp_path / "fits", sram_bytes=sram_bytes, flash_bytes=flash_bytes).build("mps2-an386", toolchain)

    with pytest.raises(BudgetError) as error:
        make_dummy(tmp_path / "large", sram_bytes=sram_bytes - 8).run(dummy_inputs, "mps2-an386", toolchain)
    message = str(error.value)
    assert message.startswith("large does not fit board mps2-an386 (")
    assert f"sram is 8 bytes short: needs {sram_bytes:,} bytes, limit {sram_bytes - 8:,} (the budget;" in message
    assert "overflowed by 8 bytes" in message  # the linker's own words

    with pytest.raises(
        BudgetError, match=f"flash is 100 bytes short: needs {flash_bytes:,} bytes, limit {flash_bytes - 100:,} "
    ):
        make_dummy(tmp_path / "long", flash_bytes=flash_bytes - 100).run(dummy_inputs, "mps2-an386", toolchain)


@COMPILERS
def test_a_plan_that_leaves_room_for_the_port_links(tmp_path, toolchain):
    needs("mps2-an386", toolchain)
    model_bytes = 48 + 24 + 512 + 4  # arena, scratch, stack, and the variable that the dummy model has of its own
    make_dummy(tmp_path / "tight", sram_bytes=model_bytes + PORT_SRAM_BYTES).build("mps2-an386", toolchain)


@COMPILERS
def test_the_netduino_refuses_an_arena_that_a_larger_board_takes(tmp_path, dummy_inputs, toolchain):
    needs("netduinoplus2", toolchain)
    firmware = make_dummy(tmp_path / "large", sram_bytes=1 << 20)
    header = tmp_path / "large" / "model.h"
    header.write_text(header.read_text().replace("ARENA_BYTES 48", "ARENA_BYTES 131072"))
    receipt = firmware.run(dummy_inputs, "mps2-an386", toolchain)
    assert receipt.arena_bytes == 128 << 10
    with pytest.raises(
        BudgetError,
        match=r"sram is \d+ bytes short: needs 131,\d\d\d bytes, limit 131,072 \(all that netduinoplus2 has\)",
    ):
        firmware.run(dummy_inputs, "netduinoplus2", toolchain)


def test_the_stack_has_all_the_room_that_the_netduino_has(tmp_path, dummy_inputs):
    needs("netduinoplus2", "gcc-qemu")
    firmware = make_dummy(tmp_path / "whole")
    receipt = firmware.run(misbehaving("recurse", 3_000), "netduinoplus2", "gcc-qemu")
    assert 100_000 < receipt.stack_bytes < 128 << 10


@COMPILERS
def test_a_warning_in_the_code_stops_the_build_at_its_line(tmp_path, dummy_inputs, toolchain):
    needs("mps2-an386", toolchain)
    firmware = make_dummy(tmp_path / "broken")
    (tmp_path / "broken" / "nn" / "ll_dot.c").write_text("int f(void) { int unused; return 0; }\n")
    with pytest.raises(
        ToolchainError,
        match=r"ll_dot.c does not compile for board mps2-an386 \(.*ll_dot.c:1:19: error: unused variable",
    ):
        firmware.run(dummy_inputs, "mps2-an386", toolchain)


def test_a_missing_function_is_named_and_leaves_no_half_built_image(tmp_path, dummy_inputs):
    needs("mps2-an386", "gcc-qemu")
    firmware = make_dummy(tmp_path / "broken")
    (tmp_path / "broken" / "nn" / "ll_dot.c").write_text("typedef int nothing;\n")
    with pytest.raises(ToolchainError, match=r"does not link for board mps2-an386 .*undefined reference to `ll_dot'"):
        firmware.run(dummy_inputs, "mps2-an386", "gcc-qemu")
    assert list((tmp_path / "broken" / "build").iterdir()) == []


@pytest.mark.parametrize(
    ("x", "got"),
    [
        (np.zeros((4, 4, 1), np.uint8), "got uint8; quantize real values"),
        (np.zeros((4, 4, 1), np.float32), "got float32"),
        (np.zeros((4, 4), np.int8), r"got shape \(4, 4\)"),
        (np.zeros((2, 4, 4, 2), np.int8), r"got shape \(2, 4, 4, 2\)"),
        (np.zeros((1, 2, 4, 4, 1), np.int8), r"got shape \(1, 2, 4, 4, 1\)"),
        (np.zeros((0, 4, 4, 1), np.int8), "got no input at all"),
    ],
)
def test_a_wrong_input_is_answered_with_the_right_one(dummy, x, got):
    with pytest.raises(DataError, match=rf"takes int8 codes of shape \(4, 4, 1\) or \(n, 4, 4, 1\); {got}"):
        dummy.run(x, "host")


def test_a_directory_that_is_no_project_is_named(tmp_path):
    with pytest.raises(DataError, match="is not an emitted project: it has no model.h"):
        Firmware(tmp_path)
    firmware = make_dummy(tmp_path / "project")
    (tmp_path / "project" / "weights.c").unlink()
    needs("host")
    with pytest.raises(DataError, match="is not an emitted project: it has no weights.c"):
        firmware.run(np.zeros((4, 4, 1), np.int8), "host")
    header = tmp_path / "project" / "model.h"
    header.write_text(header.read_text().replace("LL_MODEL_OUTPUT_BYTES", "OUTPUT"))
    with pytest.raises(DataError, match="does not define LL_MODEL_OUTPUT_BYTES"):
        Firmware(tmp_path / "project")


def test_unknown_boards_and_a_sanitizer_on_a_chip_are_refused(dummy, dummy_inputs):
    with pytest.raises(ConfigError, match="board='uno': must be one of host, mps2-an386"):
        dummy.run(dummy_inputs, "uno")
    with pytest.raises(ConfigError, match="only the host has a sanitizer; try board='host'"):
        dummy.run(dummy_inputs, "mps2-an386", sanitize=True)


def test_the_sanitizers_find_undefined_behaviour_that_a_plain_run_lets_pass(dummy, dummy_inputs):
    needs("host", "host-cc")
    dummy.run(misbehaving("overflow", 1), "host", "host-cc")
    np.testing.assert_array_equal(
        dummy.run(dummy_inputs, "host", "host-cc", sanitize=True).output, dummy_expected(dummy_inputs)
    )
    with pytest.raises(ToolchainError, match=r"model.c:\d+:\d+: runtime error: signed integer overflow"):
        dummy.run(misbehaving("overflow", 1), "host", "host-cc", sanitize=True)
    with pytest.raises(ToolchainError, match=r"index 50 out of bounds|buffer-overflow"):
        dummy.run(misbehaving("outside", 50), "host", "host-cc", sanitize=True)


def test_a_crash_on_the_host_does_not_take_python_down(dummy):
    needs("host")
    with pytest.raises(
        ToolchainError, match=r"firmware '.*' on the host \(.*was ended by signal \d+.*try sanitize=True"
    ):
        dummy.run(misbehaving("outside", 1 << 30), "host")
    with pytest.raises(ToolchainError, match="did not end within 1 seconds"):
        dummy.run(misbehaving("loop"), "host", timeout_seconds=1.0)
    with pytest.raises(ToolchainError, match="wrote 0 bytes of output for 1 inferences, not 4"):
        dummy.run(misbehaving("leave", 0), "host")


def make(project: Firmware, *arguments: str) -> subprocess.CompletedProcess[str]:
    if shutil.which("make") is None:
        pytest.skip("make is not installed: sudo apt-get install make")
    return subprocess.run(["make", *arguments], cwd=project.directory, capture_output=True, text=True)


@pytest.fixture
def project_with_vectors(tmp_path, dummy_inputs) -> Firmware:
    firmware = make_dummy(tmp_path / "project", sram_bytes=16 * 1024)
    (tmp_path / "project" / "vectors").mkdir()
    (tmp_path / "project" / "vectors" / "input.bin").write_bytes(dummy_inputs.tobytes())
    (tmp_path / "project" / "vectors" / "expected.bin").write_bytes(dummy_expected(dummy_inputs).tobytes())
    return firmware


def test_make_run_needs_no_python_and_prints_what_the_receipt_says(dummy, project_with_vectors, dummy_inputs):
    needs("netduinoplus2", "gcc-qemu")  # its instructions a tick are a fraction
    done = make(project_with_vectors, "run", "BOARD=netduinoplus2")
    assert done.returncode == 0, done.stderr
    assert "PASS: all output bytes as expected" in done.stdout
    receipt = dummy.run(dummy_inputs, "netduinoplus2", "gcc-qemu")
    line = re.search(r"5 inferences, (\d+) instructions each \(mean\), (\d+) bytes of stack", done.stdout)
    assert line is not None
    assert abs(int(line[1]) - receipt.instructions) <= 1  # the receipt rounds each run, make their mean
    assert int(line[2]) == receipt.stack_bytes


def test_make_run_fails_when_a_byte_differs(project_with_vectors):
    needs("mps2-an386", "gcc-qemu")
    needs("host", "host-cc")
    expected = project_with_vectors.directory / "vectors" / "expected.bin"
    expected.write_bytes(bytes([expected.read_bytes()[0] ^ 1]) + expected.read_bytes()[1:])
    for goal in ("run", "host-run"):
        done = make(project_with_vectors, goal)
        assert done.returncode != 0
        assert "FAIL: output differs from vectors/expected.bin" in done.stdout


def test_make_host_run_passes_and_make_refuses_an_unknown_board(project_with_vectors):
    needs("host", "host-cc")
    done = make(project_with_vectors, "host-run")
    assert "PASS" in done.stdout, done.stderr
    refused = make(project_with_vectors, "BOARD=uno")
    assert refused.returncode != 0
    assert "BOARD=uno: must be one of mps2-an386 mps2-an500 netduinoplus2" in refused.stderr


PROFILED = pytest.mark.parametrize(
    ("board", "toolchain"),
    [
        ("mps2-an386", "gcc-qemu"),
        ("mps2-an386", "zig-qemu"),
        ("mps2-an386", "gcc-unicorn"),
        ("netduinoplus2", "gcc-qemu"),
        ("netduinoplus2", "zig-unicorn"),
    ],
)


@PROFILED
def test_a_profile_counts_a_known_loop_in_the_step_that_runs_it(dummy, board, toolchain):
    needs(board, toolchain)
    turns = (1, 2, 1000, 6_000_000)  # the last takes the timer through more than one wrap
    receipts = [dummy.run(misbehaving("spin", n), board, toolchain, profile=True) for n in turns]
    assert list(receipts[0].op_instructions) == ["misbehaviour", 'dot "products"']
    for n, receipt in zip(turns, receipts, strict=True):
        spins, dots = (
            receipt.op_instructions[name] - receipts[0].op_instructions[name] for name in receipt.op_instructions
        )
        assert abs(spins - 6 * (n - 1)) <= receipt.op_resolution_instructions
        assert abs(dots) <= receipt.op_resolution_instructions
    assert receipts[0].op_resolution_instructions == (0 if "unicorn" in toolchain else 16)


@PROFILED
def test_the_steps_of_a_profile_sum_to_the_firmwares_own_count(dummy, dummy_inputs, board, toolchain):
    needs(board, toolchain)
    receipt = dummy.run(dummy_inputs, board, toolchain, profile=True)
    # What lies outside every step: the return from the model, and what the compiler moves across a call.
    outside, resolution = 8, receipt.resolution_instructions + 2 * receipt.op_resolution_instructions
    assert abs(sum(receipt.op_instructions.values()) - receipt.instructions) <= outside + resolution


def test_a_profile_changes_no_other_figure(dummy, dummy_inputs):
    needs("mps2-an386", "gcc-qemu")
    plain, profiled = (dummy.run(dummy_inputs, toolchain="gcc-qemu", profile=each) for each in (False, True))
    for name in ("instructions", "stack_bytes", "bss_bytes", "sram_bytes", "flash_bytes", "flash_symbols"):
        assert getattr(plain, name) == getattr(profiled, name), name
    assert (plain.op_instructions, plain.op_resolution_instructions) == ({}, None)


def test_a_profile_whose_outputs_differ_is_not_believed(tmp_path, dummy_inputs):
    needs("mps2-an386", "gcc-qemu")
    firmware = make_dummy(tmp_path / "project")
    model = tmp_path / "project" / "model.c"
    model.write_text(model.read_text().replace("if (runs++ == 0)", "if (sizeof(LL_STEP_KIND) == 1)"))
    model.write_text(
        "#ifdef LL_PROFILE\n#define LL_STEP_KIND char\n#else\n#define LL_STEP_KIND int\n#endif\n" + model.read_text()
    )
    with pytest.raises(ToolchainError, match="gives other outputs in its profile build"):
        firmware.run(dummy_inputs, toolchain="gcc-qemu", profile=True)


def test_a_profile_needs_a_chip_and_named_steps(tmp_path, dummy, dummy_inputs):
    with pytest.raises(ConfigError, match="profile=True for board 'host': the host counts no instructions"):
        dummy.run(dummy_inputs, "host", profile=True)
    needs("mps2-an386", "gcc-qemu")
    firmware = make_dummy(tmp_path / "project")
    model = tmp_path / "project" / "model.c"
    model.write_text(re.sub(r"\n    LL_STEP\(.*\);", "", model.read_text()))
    with pytest.raises(DataError, match=r"names no steps \(LL_STEP\)"):
        firmware.run(dummy_inputs, toolchain="gcc-qemu", profile=True)

"""What a broken image, an endless one and a counted one look like from outside."""

import numpy as np
import pytest

from lilliput.errors import ToolchainError
from lilliput.mcu.boards import find_board
from lilliput.mcu.firmware import Firmware
from mcu.dummy import misbehaving, needs

QEMU = [("mps2-an386", "gcc-qemu"), ("netduinoplus2", "gcc-qemu")]
UNICORN = [("mps2-an386", "gcc-unicorn"), ("netduinoplus2", "zig-unicorn")]
EVERYWHERE = pytest.mark.parametrize(("board", "toolchain"), [*QEMU, UNICORN[-1]])
ON_QEMU = pytest.mark.parametrize(("board", "toolchain"), QEMU)


def failure(
    firmware: Firmware, board: str, toolchain: str, scenario: str, amount: int = 0, timeout_seconds: float = 60.0
) -> str:
    needs(board, toolchain)
    with pytest.raises(ToolchainError) as error:
        firmware.run(misbehaving(scenario, amount), board, toolchain, timeout_seconds=timeout_seconds)
    return str(error.value)


@EVERYWHERE
def test_an_undefined_instruction_is_named_with_its_function(dummy, board, toolchain):
    message = failure(dummy, board, toolchain, "undefined")
    assert f"on board {board} (" in message
    assert "stopped after 0 of 1 inferences: UsageFault, undefined instruction, at pc 0x" in message
    assert "(ll_model_run)" in message


@ON_QEMU
def test_a_jump_to_address_zero_is_a_fault(dummy, board, toolchain):
    message = failure(dummy, board, toolchain, "jump", 0)
    assert "UsageFault, jump to an address that is not Thumb code, at pc 0x0" in message


@EVERYWHERE
def test_a_jump_to_an_address_without_memory_is_a_fault(dummy, board, toolchain):
    message = failure(dummy, board, toolchain, "jump", 0x40000001)
    assert "Fault, instruction fetch from" in message or "MemManage fault, instruction fetch from" in message
    assert "at pc 0x40000000 (no function)" in message


@EVERYWHERE
def test_a_load_from_an_address_without_memory_is_a_bus_fault(dummy, board, toolchain):
    message = failure(dummy, board, toolchain, "load", 0x70000000)
    assert "BusFault, data access to an address without memory, at pc 0x" in message
    assert "(ll_model_run)" in message


@EVERYWHERE
def test_endless_recursion_is_named_a_stack_overrun(dummy, board, toolchain):
    message = failure(dummy, board, toolchain, "recurse", 10_000_000)
    assert ": stack overrun: the stack grew through its guard into the variables" in message


@EVERYWHERE
def test_a_stack_that_only_just_reaches_its_guard_is_named_too(dummy, board, toolchain):
    needs(board, toolchain)
    ten, hundred = (dummy.run(misbehaving("recurse", depth), board, toolchain) for depth in (10, 100))
    assert hundred.stack_bytes > ten.stack_bytes
    frame_bytes = (hundred.stack_bytes - ten.stack_bytes) // 90
    room_bytes = 16 * 1024 - ten.bss_bytes - 32  # the guard
    fits = 10 + (room_bytes - ten.stack_bytes) // frame_bytes
    assert dummy.run(misbehaving("recurse", fits - 1), board, toolchain).stack_bytes <= room_bytes
    assert "stack overrun" in failure(dummy, board, toolchain, "recurse", fits + 1)


@EVERYWHERE
def test_an_endless_loop_ends_by_the_clock(dummy, board, toolchain):
    message = failure(dummy, board, toolchain, "loop", timeout_seconds=1.0)
    assert "did not end within 1 seconds, after 0 of 1 inferences; the code may loop for ever" in message


@ON_QEMU
def test_a_fault_within_a_fault_is_a_lockup_and_says_so(dummy, board, toolchain):
    assert "the processor locked up (a fault while it handled a fault" in failure(dummy, board, toolchain, "lockup")


@EVERYWHERE
def test_an_image_that_leaves_early_is_not_taken_for_a_finished_one(dummy, board, toolchain):
    assert "ended as if all were well but left no whole stats.bin" in failure(dummy, board, toolchain, "leave", 0)
    assert "ended with status 7" in failure(dummy, board, toolchain, "leave", 7)


@EVERYWHERE
def test_the_message_says_how_far_a_run_came(dummy, dummy_inputs, board, toolchain):
    needs(board, toolchain)
    inputs = np.concatenate([dummy_inputs[:3], misbehaving("undefined")[None], dummy_inputs[3:]])
    with pytest.raises(ToolchainError, match="stopped after 3 of 6 inferences"):
        dummy.run(inputs, board, toolchain)


@EVERYWHERE
def test_floating_point_and_64_bit_division_work(dummy, board, toolchain):
    needs(board, toolchain)
    dummy.run(np.stack([misbehaving("float", 3), misbehaving("wide", 1000)]), board, toolchain)


@pytest.mark.parametrize(("board", "toolchain"), [*UNICORN, ("mps2-an500", "zig-unicorn")])
def test_unicorn_counts_every_instruction_of_a_known_loop(dummy, board, toolchain):
    needs(board, toolchain)
    turns = np.array([1, 2, 1000, 123_456, 1])
    receipt = dummy.run(np.stack([misbehaving("spin", int(n)) for n in turns]), board, toolchain)
    assert receipt.resolution_instructions == 0
    # A turn is six instructions of all lengths; all else in the five runs is the same.
    np.testing.assert_array_equal(receipt.instructions_each - receipt.instructions_each[0], 6 * (turns - 1))
    assert receipt.instructions == receipt.instructions_each.mean()


@pytest.mark.parametrize(("board", "toolchain"), [*QEMU, ("mps2-an500", "gcc-qemu")])
def test_qemu_counts_a_known_loop_to_within_its_resolution(dummy, board, toolchain):
    needs(board, toolchain)
    turns = np.array([1, 2, 1000, 123_456, 2_000_000])
    receipt = dummy.run(np.stack([misbehaving("spin", int(n)) for n in turns]), board, toolchain)
    error = receipt.instructions_each - receipt.instructions_each[0] - 6 * (turns - 1)
    assert receipt.resolution_instructions == {"mps2-an386": 64, "mps2-an500": 64, "netduinoplus2": 30}[board]
    assert np.abs(error).max() <= receipt.resolution_instructions


def test_qemu_counts_across_wraps_of_the_24_bit_timer(dummy):
    needs("netduinoplus2", "gcc-qemu")
    turns = 40_000_000  # 240 M instructions; the timer wraps every 99.9 M
    one, many = (dummy.run(misbehaving("spin", n), "netduinoplus2", "gcc-qemu") for n in (1, turns))
    assert 6 * turns / 2**24 / float(find_board("netduinoplus2").instructions_per_tick) > 2
    # Each wrap runs an interrupt handler of some instructions.
    assert abs(many.instructions - one.instructions - 6 * (turns - 1)) <= one.resolution_instructions + 2 * 20


@pytest.mark.parametrize("board", ["mps2-an386", "mps2-an500", "netduinoplus2"])
def test_both_emulators_count_the_same_image_alike(dummy, dummy_inputs, board):
    needs(board, "gcc-qemu")
    needs(board, "gcc-unicorn")
    by_timer, exact = (dummy.run(dummy_inputs, board, toolchain) for toolchain in ("gcc-qemu", "gcc-unicorn"))
    np.testing.assert_array_equal(by_timer.output, exact.output)
    assert np.abs(by_timer.instructions_each - exact.instructions_each).max() <= by_timer.resolution_instructions
    assert by_timer.stack_bytes == exact.stack_bytes


def test_two_runs_are_identical_to_the_instruction(dummy, dummy_inputs):
    needs("mps2-an386", "gcc-qemu")
    first, second = (dummy.run(dummy_inputs, "mps2-an386", "gcc-qemu") for _ in range(2))
    assert first.output.tobytes() == second.output.tobytes()
    np.testing.assert_array_equal(first.instructions_each, second.instructions_each)
    assert first.stack_bytes == second.stack_bytes

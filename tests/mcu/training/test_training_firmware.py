"""The emitted C learns as the integer simulation does: the same bytes on this computer and on the emulated Cortex-M7."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from lilliput.mcu import Patches
from lilliput.mcu.training.firmware import TrainFirmware
from lilliput.mcu.training.host_library import HostModel
from lilliput.mcu.training.optimizer import SGD
from lilliput.mcu.training.rate import warmup_cosine
from lilliput.mcu.training.train_step import TrainStep, compile_training
from lilliput.mcu.training.update_plan import UpdatePlan, weighted_layers
from mcu.training.cases import CASES, quantized
from mcu.training.digit_step import STEPS, compiled, digits, needs_cc, needs_qemu, needs_unicorn, simulated, train


@pytest.fixture(scope="module")
def firmware(tmp_path_factory: pytest.TempPathFactory) -> TrainFirmware:
    return compiled().emit_c(tmp_path_factory.mktemp("digits") / "firmware")


def random_case(name: str, master: str) -> tuple[TrainStep, np.ndarray, np.ndarray]:
    qgraph = quantized(name)
    layers = weighted_layers(qgraph)
    plan = UpdatePlan.from_ratios(qgraph, len(layers), {layers[-1].name: 1.0, layers[0].name: 0.4})
    step = compile_training(qgraph, plan, num_classes=3, optimizer=SGD(0.02, master=master))
    shape = qgraph.tensors[qgraph.input].shape
    return step, np.random.default_rng(3).integers(-128, 128, (4, *shape), dtype=np.int8), np.arange(4) % 3


@needs_cc
@needs_qemu
def test_64_steps_are_the_same_bytes_in_numpy_two_host_builds_and_on_the_cortex_m7(firmware: TrainFirmware) -> None:
    _, x, y = digits()
    rates = warmup_cosine(STEPS, 8)
    log = simulated()
    logits = compiled().logits(x[:8], log.state)
    assert log.weights_digest != compiled().start().digest
    for flags in (("-O0",), ("-O2",)):
        model = HostModel(firmware, flags=flags)
        losses, predictions = train(model, x, y, rates)
        assert losses == log.losses_q16.tolist()
        assert predictions == log.predictions.tolist()
        assert model.state.digest == log.weights_digest
        assert all(np.array_equal(model.logits(codes), wanted) for codes, wanted in zip(x, logits, strict=False))
    receipt = firmware.run(x, y, rates=rates, toolchain="gcc-qemu")
    assert receipt.losses_q16.tolist() == log.losses_q16.tolist()
    assert receipt.predictions.tolist() == log.predictions.tolist()
    assert receipt.weights_digest == log.weights_digest
    after = firmware.run(x[:8], params=receipt.params, toolchain="gcc-qemu")
    assert np.array_equal(after.logits, logits)
    assert after.params == receipt.params, "predicting moves nothing"


@needs_cc
@needs_qemu
def test_saved_at_step_32_and_restored_elsewhere_it_goes_on_as_if_never_stopped(firmware: TrainFirmware) -> None:
    _, x, y = digits()
    rates = warmup_cosine(STEPS, 8)
    board = firmware.run(x[:32], y[:32], rates=rates[:32], toolchain="gcc-qemu")
    model = HostModel(firmware)
    train(model, x[:32], y[:32], rates[:32])
    assert model.get_params() == board.params
    other = HostModel(firmware)
    other.set_params(board.params)
    train(other, x[32:], y[32:], rates[32:])
    on_board = firmware.run(x[32:], y[32:], rates=rates[32:], params=model.get_params(), toolchain="gcc-qemu")
    simulated_on = compiled().simulate(x[32:], y[32:], rates=rates[32:], state=board.state)
    wanted = simulated().weights_digest
    assert {other.state.digest, on_board.weights_digest, simulated_on.weights_digest} == {wanted}
    assert on_board.losses_q16.tolist() == simulated().losses_q16[32:].tolist()


MUTATIONS = {
    "a weight code rounded one place off": ("ll_train_arith.h", "+ 128) >> 8", "+ 127) >> 8"),
    "a step rounded towards zero": ("ll_train_step.h", "(UINT64_C(1) << (p.right - 1))", "0"),
    "a gradient rounded down": ("ll_train_arith.h", "(x + ((x >> 31) &", "(x + (0 &"),
    "a loss rounded down": ("ll_train_loss.c", "+ 512) >> 10", "+ 0) >> 10"),
}


@needs_cc
@pytest.mark.parametrize("name", MUTATIONS)
def test_one_rounding_constant_changed_is_seen(name: str, firmware: TrainFirmware, tmp_path: Path) -> None:
    file, original, patched = MUTATIONS[name]
    copy = tmp_path / "mutated"
    shutil.copytree(firmware.directory, copy, ignore=shutil.ignore_patterns("build"))
    text = (copy / "nn" / file).read_text()
    assert original in text
    (copy / "nn" / file).write_text(text.replace(original, patched))
    _, x, y = digits()
    model = HostModel(TrainFirmware(copy), flags=("-O0",))
    losses, _ = train(model, x, y, warmup_cosine(STEPS, 8))
    assert (losses, model.state.digest) != (simulated().losses_q16.tolist(), simulated().weights_digest)


@needs_qemu
def test_stochastic_rounding_draws_the_same_numbers_on_the_board(tmp_path: Path) -> None:
    _, x, y = digits()
    receipt = compiled("int8").emit_c(tmp_path / "firmware").run(x, y, rates=warmup_cosine(STEPS, 8))
    assert receipt.weights_digest == simulated("int8").weights_digest
    assert receipt.state.random == simulated("int8").state.random


@needs_cc
@pytest.mark.parametrize("master", ["int16", "int8", "nearest", "truncate"])
def test_no_undefined_behaviour_in_a_whole_run(master: str, tmp_path: Path) -> None:
    name = {"int16": "residual", "int8": "grouped", "nearest": "depthwise multiplied", "truncate": "average pool"}
    step, x, y = random_case(name[master], master)
    firmware = step.emit_c(tmp_path / "firmware")
    receipt = firmware.run(x, y, board="host", sanitize=True)
    assert receipt.weights_digest == step.simulate(x, y).weights_digest
    again = firmware.run(x, board="host", sanitize=True, params=receipt.params)
    assert np.array_equal(again.logits, step.logits(x, receipt.state))


@needs_qemu
@pytest.mark.parametrize("name", ["grouped", "depthwise 5x5 stride 2", "average pool, overlapping and padded"])
def test_the_dsp_kernels_give_the_portable_ones_bits(name: str, tmp_path: Path) -> None:
    step, x, y = random_case(name, "int16")
    assert step.emit_c(tmp_path / "firmware").run(x, y).weights_digest == step.simulate(x, y).weights_digest


@pytest.mark.slow
@needs_qemu
@pytest.mark.parametrize("name", CASES)
def test_the_dsp_kernels_give_the_portable_ones_bits_in_every_network(name: str, tmp_path: Path) -> None:
    step, x, y = random_case(name, "int8")
    assert step.emit_c(tmp_path / "firmware").run(x, y).weights_digest == step.simulate(x, y).weights_digest


@pytest.mark.slow
@needs_unicorn
def test_another_compiler_and_emulator_agree(firmware: TrainFirmware) -> None:
    _, x, y = digits()
    receipt = firmware.run(x, y, rates=warmup_cosine(STEPS, 8), toolchain="zig-unicorn")
    assert receipt.weights_digest == simulated().weights_digest
    assert receipt.resolution_instructions == 0


@needs_qemu
def test_a_frozen_prefix_in_patches_reads_the_image_in_parts(tmp_path: Path) -> None:
    step = compile_training(
        digits()[0], UpdatePlan.head_only(digits()[0]), num_classes=10, optimizer=SGD(0.05), input="stream",
        schedule=Patches(split="add_0", grid=(2, 2)),
    )  # fmt: skip
    _, x, y = digits()
    firmware = step.emit_c(tmp_path / "firmware")
    assert "ll_model_input" not in (firmware.directory / "model.h").read_text()
    wanted = step.simulate(x[:8], y[:8])
    receipt = firmware.run(x[:8], y[:8])
    assert receipt.weights_digest == wanted.weights_digest
    model = HostModel(firmware)
    train(model, x[:8], y[:8], np.full(8, 2**15))
    assert model.state.digest == wanted.weights_digest

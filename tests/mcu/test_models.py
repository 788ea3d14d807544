"""The MLPerf Tiny models, from their own files: memory, instructions and bytes, held to the published figures."""

import dataclasses
import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

from lilliput.mcu import load_tflite, plan
from mcu.dummy import needs
from quantize.tflite_runtimes import shared_model


def _benchmark():
    path = Path(__file__).parents[2] / "benchmarks" / "mcu_models.py"
    spec = importlib.util.spec_from_file_location("mcu_models", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["mcu_models"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


benchmark = _benchmark()
MODELS = pytest.mark.parametrize("model", benchmark.MODELS, ids=lambda model: model.file)


@pytest.fixture(scope="module")
def rows() -> dict:
    """Each model measured once."""
    return {}


def measured(model, rows):
    needs("mps2-an386", "gcc-qemu")
    if model.file not in rows:
        rows[model.file] = benchmark.measure(model, shared_model(model.file).parent, "gcc-qemu")
    return rows[model.file]


@MODELS
def test_a_model_takes_fewer_instructions_than_cmsis_nn_and_less_sram_than_tflm(model, rows):
    row = measured(model, rows)  # compares all output bytes with the integer interpreter's
    assert row.ratio < 0.75
    assert row.sram_bytes < model.tflm_arena_bytes
    assert row.arena_bytes == model.arena_bytes
    assert list(row.failures()) == []


@MODELS
def test_a_models_operations_sum_to_its_instructions(model, rows):
    row = measured(model, rows)
    total = sum(instructions for *_, instructions in row.ops.values())
    assert abs(total - row.instructions) <= row.resolution_instructions + 16 * len(row.ops)
    assert sum(macs for _, macs, _ in row.ops.values()) == row.macs
    assert f"| all operations | | {row.macs:,} |" in benchmark.op_table(row)


@MODELS
def test_a_model_without_fusion_and_in_place_operations_needs_what_lives_at_once(model):
    graph = load_tflite(shared_model(model.file))
    made = plan(graph, in_place=False, fuse_add=False)
    bound = {"vww_96_int8": 55_296, "pretrainedResnet_quant": 49_152, "kws_ref_model": 16_000, "ad01_int8": 768}
    assert made.arena_bytes == bound[model.file]


def test_a_row_over_a_bar_fails_by_name():
    model = benchmark.MODELS[2]
    row = benchmark.Row(model, 1, 1.2 * model.cmsis_nn_instructions, 64, 9_000, 0, 0, 30_000, 0, {}, "nothing")
    assert len(list(row.failures())) == 3
    assert "1.20 of CMSIS-NN's instructions; the bar is 1.1" in next(row.failures())
    within = dataclasses.replace(row, instructions=1.0, arena_bytes=8_490, sram_bytes=24_272)
    assert list(within.failures()) == []


def test_firmware_of_a_model_is_free_of_undefined_behaviour(tmp_path):
    needs("host")
    graph = load_tflite(shared_model("kws_ref_model"))
    x = np.random.default_rng(1).integers(-128, 128, (4, *graph.tensors[graph.input].shape), dtype=np.int8)
    receipt = plan(graph).emit_c(tmp_path / "firmware").run(x, board="host", sanitize=True)
    assert np.array_equal(receipt.output.reshape(-1), np.asarray(graph.run(x)).reshape(-1))

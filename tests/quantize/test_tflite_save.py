"""Integer graphs as TensorFlow Lite files: both runtimes' reference kernels give the graph's own bytes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from lilliput.errors import ConfigError, DataError, UnsupportedOpError
from lilliput.mcu import load_tflite
from lilliput.quantize import QTensor, QuantizedGraph, quantize_int8
from lilliput.quantize.arithmetic import mean_multiplier, quantize_multiplier
from lilliput.quantize.parameters import channel_multipliers
from lilliput.quantize.qgraph import Clamp, Conv2d, Crop, Linear, Lookup, Mean, Mul, QOp
from lilliput.quantize.tflite.model import read_model
from lilliput.quantize.tflite.tables import logistic_table
from mcu.networks import Network, random_network
from quantize.networks import FAMILIES, prepared
from quantize.tflite_runtimes import RUNTIMES, shared_model


def outputs(graph: QuantizedGraph, x: np.ndarray) -> list[np.ndarray]:
    made = graph.run(x)
    return list(made) if isinstance(made, tuple) else [made]


def random_codes(graph: QuantizedGraph, samples: int) -> np.ndarray:
    shape = graph.tensors[graph.input].shape
    return np.random.default_rng(0).integers(-128, 128, (samples, *shape), dtype=np.int8)


def assert_same_everywhere(graph: QuantizedGraph, folder: Path, samples: int = 4) -> None:
    """Written, read back, and run in both runtimes: one answer."""
    path = graph.save_tflite(folder / "model.tflite")
    content = path.read_bytes()
    x = random_codes(graph, samples)
    expected = outputs(graph, x)
    for mine, back in zip(expected, outputs(load_tflite(path), x), strict=True):
        np.testing.assert_array_equal(back, mine)
    for name, runtime in RUNTIMES.items():
        for mine, theirs in zip(expected, runtime(content, x), strict=True):
            np.testing.assert_array_equal(theirs.reshape(mine.shape), mine, err_msg=name)


def operators(path: Path) -> list[str]:
    return [operator.name for operator in read_model(path).operators]


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_each_family_runs_alike_in_both_runtimes_and_when_read_back(
    family: str, per_channel: bool, tmp_path: Path
) -> None:
    build, shape = FAMILIES[family]
    model, calibration, _ = prepared(build, shape)
    assert_same_everywhere(quantize_int8(model, calibration, per_channel=per_channel), tmp_path)


def coherent(graph: QuantizedGraph) -> QuantizedGraph:
    """The graph with multipliers that follow from scales, as any trained network has them, and clamps that are activations."""
    ops: list[QOp] = []
    for index, op in enumerate(graph.ops):
        x, y = graph.tensors[op.inputs[0]], graph.tensors[op.name]
        clamp = Clamp(lower=y.zero_point) if index % 2 else Clamp()
        if isinstance(op, (Conv2d, Linear)):
            real = op.multiplier / 2**31 * 2.0**op.shift
            scale = (real * y.scale / x.scale * np.linspace(0.5, 1.5, len(real))).astype(np.float32).astype(np.float64)
            multiplier, shift = channel_multipliers(x.scale, scale, y.scale)
            op = replace(op, weight_scale=scale, multiplier=multiplier, shift=shift, clamp=clamp)
        elif isinstance(op, Mul):
            q, exponent = quantize_multiplier(x.scale * graph.tensors[op.inputs[1]].scale / y.scale)
            op = replace(op, multiplier=q, shift=exponent, clamp=clamp)
        elif isinstance(op, Mean):
            q, exponent = mean_multiplier(x.scale, y.scale, x.shape[0] * x.shape[1])
            op = replace(op, multiplier=q, shift=exponent)
        ops.append(op)
    return replace(graph, ops=tuple(ops))


@pytest.mark.parametrize("seed", range(40))
def test_random_networks_run_alike_in_both_runtimes_and_when_read_back(seed: int, tmp_path: Path) -> None:
    assert_same_everywhere(coherent(random_network(seed)), tmp_path, samples=2)


@pytest.mark.parametrize("name", ["vww_96_int8", "pretrainedResnet_quant", "kws_ref_model", "ad01_int8"])
def test_a_trained_model_survives_being_read_and_written(name: str, tmp_path: Path) -> None:
    """Written anew, the anomaly detector is the same in both runtimes too: its layers are then convolutions."""
    assert_same_everywhere(load_tflite(shared_model(name)), tmp_path)


def test_a_lookup_of_any_function_becomes_a_gather(tmp_path: Path) -> None:
    table = np.random.default_rng(0).integers(-128, 128, 256).astype(np.int8)
    x, y = QTensor("x", (3, 5, 7), 0.5, 3), QTensor("y", (3, 5, 7), 0.25, -2)
    op = Lookup(name="y", inputs=("x",), table=table, function="any")
    graph = QuantizedGraph("table", "x", ("y",), {"x": x, "y": y}, (op,))
    assert_same_everywhere(graph, tmp_path, samples=8)
    assert operators(tmp_path / "model.tflite") == ["CAST", "ADD", "GATHER"]


# At this scale the sigmoid of code -127 is 73.499997 / 256: float32 makes 73.5 of it.
NEAR_A_TIE = (float(np.float32(0.012458422221243382)), -54)


@pytest.mark.parametrize(
    ("scale", "zero_point", "written"), [(0.0625, 3, ["LOGISTIC"]), (*NEAR_A_TIE, ["CAST", "ADD", "GATHER"])]
)
def test_a_sigmoid_is_written_so_that_both_runtimes_agree(
    scale: float, zero_point: int, written: list[str], tmp_path: Path
) -> None:
    x, y = QTensor("x", (256,), scale, zero_point), QTensor("y", (256,), 1 / 256, -128)
    op = Lookup(name="y", inputs=("x",), table=logistic_table(x, y), function="sigmoid")
    graph = QuantizedGraph("gate", "x", ("y",), {"x": x, "y": y}, (op,))
    path = graph.save_tflite(tmp_path / "gate.tflite")
    assert operators(path) == written
    codes = np.arange(-128, 128, dtype=np.int8)[None]
    for runtime in RUNTIMES.values():
        np.testing.assert_array_equal(runtime(path.read_bytes(), codes)[0], graph.run(codes))


def test_the_product_of_a_lowered_network_is_the_same_in_float32_and_in_double() -> None:
    """LiteRT multiplies the scales as float32, Micro in double; the output's scale is chosen so that both make one multiplier."""
    build, shape = FAMILIES["squeeze_excite_sigmoid"]
    model, calibration, _ = prepared(build, shape)
    graph = quantize_int8(model, calibration)
    (op,) = [op for op in graph.ops if isinstance(op, Mul)]
    a, b, y = (np.float32(graph.tensors[name].scale) for name in (*op.inputs, op.name))
    assert quantize_multiplier(float(a * b / y)) == (op.multiplier, op.shift)


def test_a_scale_of_its_own_for_a_reshape_comes_back(tmp_path: Path) -> None:
    table = np.arange(-128, 128).astype(np.int8)
    x, y = QTensor("x", (2, 3), 0.5, 3), QTensor("y", (2, 3), 0.25, -2)
    op = Lookup(name="y", inputs=("x",), table=table, function="same codes")
    graph = QuantizedGraph("named", "x", ("y",), {"x": x, "y": y}, (op,))
    assert_same_everywhere(graph, tmp_path)
    back = load_tflite(tmp_path / "model.tflite")
    assert back.tensors[back.outputs[0]].zero_point == -2


def test_tensors_keep_their_names(tmp_path: Path) -> None:
    build, shape = FAMILIES["unet"]
    model, calibration, _ = prepared(build, shape)
    graph = quantize_int8(model, calibration)
    back = load_tflite(graph.save_tflite(tmp_path / "unet.tflite"))
    assert set(graph.tensors) <= set(back.tensors)


def test_writing_twice_gives_the_same_file(tmp_path: Path) -> None:
    graph = coherent(random_network(3))
    first, second = (graph.save_tflite(tmp_path / name).read_bytes() for name in ("a.tflite", "b.tflite"))
    assert first == second


def test_weights_that_layers_share_are_stored_once(tmp_path: Path) -> None:
    layer = torch.nn.Linear(128, 128)
    model = torch.nn.Sequential(layer, layer, layer).eval()
    graph = quantize_int8(model, torch.randn(16, 128))
    assert graph.save_tflite(tmp_path / "shared.tflite").stat().st_size < 2 * 128 * 128


# what is refused


def test_an_existing_file_is_never_written_over(tmp_path: Path) -> None:
    path = tmp_path / "model.tflite"
    path.write_bytes(b"mine")
    with pytest.raises(ConfigError, match="exists already and is not written over"):
        coherent(random_network(0)).save_tflite(path)
    assert path.read_bytes() == b"mine"


def test_a_folder_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be written"):
        coherent(random_network(0)).save_tflite(tmp_path / "missing" / "model.tflite")


def test_a_refused_graph_leaves_no_file(tmp_path: Path) -> None:
    net = Network("crop", (6, 6, 2), seed=0)
    net._add_op(Crop(name="part", inputs=("x",), top=1, left=1), (3, 3, 2), like="x")
    with pytest.raises(UnsupportedOpError, match=r"'part' \(Crop, .*has no TensorFlow Lite operator"):
        net.graph().save_tflite(tmp_path / "model.tflite")
    assert not list(tmp_path.iterdir())


def test_multipliers_that_no_scale_gives_are_refused(tmp_path: Path) -> None:
    net = Network("odd", (6, 6, 2), seed=0)
    net.conv("x", 4, 3)
    graph = net.graph()
    (op,) = graph.ops
    odd = replace(op, multiplier=op.multiplier + 1, clamp=Clamp())
    with pytest.raises(UnsupportedOpError, match="the scales in the file would make it"):
        replace(graph, ops=(odd,)).save_tflite(tmp_path / "model.tflite")


def test_clamps_that_are_no_activation_are_refused(tmp_path: Path) -> None:
    net = Network("clamped", (6, 6, 2), seed=0)
    net.conv("x", 4, 3)
    with pytest.raises(UnsupportedOpError, match=r"clamps to \[-100, 100\]; the format has NONE, RELU"):
        net.graph().save_tflite(tmp_path / "model.tflite")


def test_average_pooling_with_odd_padding_is_refused(tmp_path: Path) -> None:
    model = torch.nn.AvgPool2d(3, 2, 1, count_include_pad=False).eval()
    graph = quantize_int8(torch.nn.Sequential(torch.nn.Conv2d(1, 2, 1), model).eval(), torch.randn(8, 1, 8, 8))
    with pytest.raises(UnsupportedOpError, match="neither SAME nor VALID"):
        graph.save_tflite(tmp_path / "model.tflite")

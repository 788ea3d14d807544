"""From float networks to integer graphs: what is fused, how close the answers are, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from networks import FAMILIES, Fn, Join, SqueezeExcite, Sum, conv_bn, mobilenet_v2, prepared, signal_to_noise_db
from torch import Tensor, nn

from lilliput.errors import ConfigError, DataError, GraphError, LilliputError, UnsupportedOpError
from lilliput.graph import Graph, trace
from lilliput.graph.interpreter import run
from lilliput.quantize import QuantizedGraph, fold_affine, quantize_int8
from lilliput.quantize.qgraph import Add, Clamp, Concat, Conv2d, Linear, Lookup, Mean, Mul


def kinds(q: QuantizedGraph) -> list[str]:
    return [type(op).__name__ for op in q.ops]


def noise_db(model: Callable[[Tensor], Tensor], q: QuantizedGraph, x: Tensor) -> float:
    return signal_to_noise_db(model, torch.from_numpy(q.dequantize(q.run(x))), x)


@cache
def family(name: str) -> tuple[Graph, QuantizedGraph, Tensor, Tensor]:
    """Traced once: that is most of the time these tests take."""
    model, data, test = prepared(*FAMILIES[name])
    graph = trace(model, data[:1])
    return graph, quantize_int8(graph, data), data, test


# whole networks


@pytest.mark.parametrize("name", FAMILIES)
def test_each_family_runs_close_to_its_float_network(name: str) -> None:
    graph, q, _, test = family(name)
    # Even a perfect network's output is rounded to its codes, an error of a twelfth of a squared step.
    best_db = float(10 * torch.log10(graph.run(test).var() / (q.tensors[q.outputs[0]].scale ** 2 / 12)))
    # Measured 28 to 40 dB (a softmax is at its best possible, 18); a wrong zero point, rounding or layout costs 10 dB and more.
    assert noise_db(graph.run, q, test) > min(26, best_db - 2)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_tensor_is_close_to_the_float_value_of_its_name(name: str) -> None:
    graph, q, _, test = family(name)
    floats: dict[str, np.ndarray] = {}
    run(fold_affine(graph), (test,), observe=lambda value, tensor: floats.__setitem__(value, tensor.numpy()))
    compared = 0
    for value, codes in q.activations(test).items():
        # A flattened image holds the same elements in another order; its reader is compared.
        if value in floats and not value.startswith("reshape"):
            got, truth = q.dequantize(codes, value).reshape(len(test), -1), floats[value].reshape(len(test), -1)
            assert np.square(got - truth).mean() <= 10**-2.2 * max(truth.var(), 1e-3), value
            compared += 1
    assert compared >= len(q.ops) - 3


def test_the_operations_of_each_family() -> None:
    mobile = ["Conv2d"] * 4 + ["Add"] + ["Conv2d"] * 6 + ["Add", "Conv2d", "Mean", "Reshape", "Linear"]
    assert kinds(family("mobilenet_v2")[1]) == mobile
    assert kinds(family("resnet")[1]) == [
        *["Conv2d", "MaxPool2d", "Conv2d", "Conv2d", "Add"],
        *["Conv2d", "Conv2d", "Conv2d", "Add", "Mean", "Linear"],
    ]
    assert kinds(family("ds_cnn")[1]) == ["Conv2d"] * 5 + ["Mean", "Reshape", "Linear", "Softmax"]
    assert kinds(family("mlp")[1]) == ["Linear", "Linear", "Lookup", "Linear"]
    squeeze = ["Conv2d", "Lookup", "Mean", "Conv2d", "Conv2d", "Lookup", "Mul", "Reshape", "Linear"]
    assert kinds(family("squeeze_excite")[1]) == squeeze
    assert kinds(family("unet")[1]) == [
        "Conv2d",
        "MaxPool2d",
        "Conv2d",
        "UpsampleNearest",
        "Lookup",
        "Concat",
        "Conv2d",
    ]
    assert kinds(family("conv_1d")[1]) == ["Conv2d", "MaxPool2d", "Conv2d", "Reshape", "Linear"]


def test_macs_are_those_of_the_float_graph() -> None:
    for name in FAMILIES:
        graph, q, _, _ = family(name)
        assert q.macs == graph.cost().macs


def test_quantizing_and_running_twice_gives_the_same_bytes() -> None:
    graph, q, data, test = family("mobilenet_v2")
    again = quantize_int8(graph, data)
    assert str(again) == str(q)
    for first, second in zip(q.ops, again.ops, strict=True):
        if isinstance(first, (Conv2d, Linear)) and isinstance(second, (Conv2d, Linear)):
            assert first.weight.tobytes() + first.bias.tobytes() == second.weight.tobytes() + second.bias.tobytes()
    assert (q.run(test) == again.run(test)).all()
    assert (q.run(test)[:7] == q.run(test[:7])).all()  # a sample's answer doesn't depend on its batch


def test_a_module_gives_what_its_graph_gives() -> None:
    _, q, data, test = family("resnet")
    model, _, _ = prepared(*FAMILIES["resnet"])
    assert (quantize_int8(model, data).run(test) == q.run(test)).all()


@pytest.mark.parametrize("method", ["minmax", "percentile", "mse"])
def test_every_method_of_calibration_serves(method: str) -> None:
    graph, _, data, test = family("resnet")
    assert noise_db(graph.run, quantize_int8(graph, data, method=method), test) > 26


def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    x, y = load_digits(return_X_y=True)
    x = np.round(x / 16 * 255).reshape(-1, 1, 8, 8) / 255
    split = train_test_split(x.astype(np.float32), y, test_size=360, stratify=y, random_state=0)
    first, second, third, fourth = (torch.as_tensor(each) for each in split)
    return first, second, third, fourth


def train(model: nn.Module, x: Tensor, y: Tensor, epochs: int) -> nn.Module:
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, epochs * -(-len(x) // 64))
    generator = torch.Generator().manual_seed(0)
    model.train()
    for _ in range(epochs):
        for index in torch.randperm(len(x), generator=generator).split(64):
            optimizer.zero_grad()
            F.cross_entropy(model(x[index]), y[index]).backward()
            optimizer.step()
            schedule.step()
    return model.eval()


@pytest.fixture(scope="module")
def trained() -> tuple[nn.Module, Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    x, test, y, labels = digits()
    model = nn.Sequential(
        conv_bn(1, 8), Sum(nn.Identity(), nn.Sequential(conv_bn(8, 24, 1), conv_bn(24, 24, 3, 1, 24), conv_bn(24, 8, 1, act=None))),
        conv_bn(8, 24, 1), conv_bn(24, 24, 3, 2, 24), conv_bn(24, 16, 1, act=None), conv_bn(16, 32, 1),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10),
    )  # fmt: skip
    return train(model, x, y, 9), x, test, labels


def test_a_trained_network_keeps_its_accuracy_to_a_point(trained: tuple[nn.Module, Tensor, Tensor, Tensor]) -> None:
    model, x, test, labels = trained
    q = quantize_int8(model, x[:256])
    with torch.no_grad():
        floats = model(test).argmax(1)
    codes = torch.from_numpy(q.run(test).argmax(1))
    accuracy, integer = (float((each == labels).float().mean()) for each in (floats, codes))
    assert accuracy > 0.95
    assert integer >= accuracy - 0.01
    assert float((codes == floats).float().mean()) >= 0.985


def test_pixels_keep_their_values_as_codes(trained: tuple[nn.Module, Tensor, Tensor, Tensor]) -> None:
    model, x, _, _ = trained
    q = quantize_int8(model, x[:64])
    assert q.tensors[q.input].zero_point == -128
    assert q.tensors[q.input].scale == pytest.approx(1 / 255, rel=1e-7)
    pixels = torch.arange(256).reshape(4, 1, 8, 8)
    assert (q.quantize_input(pixels / 255)[:, :, :, 0] == pixels[:, 0].numpy() - 128).all()


# weights


def test_per_channel_scales_beat_one_scale_where_channels_differ_a_hundredfold() -> None:
    """Channels average 1 to 100 pixels, so their weights differ a hundredfold and their outputs hardly."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(100, 16, bias=False), nn.ReLU(), nn.Linear(16, 4))
    taps = torch.logspace(0, 2, 16).round().int().tolist()
    with torch.no_grad():
        model[0].weight.zero_()
        for row, count in zip(model[0].weight, taps, strict=True):
            row[torch.randperm(100)[:count]] = (0.5 + torch.rand(count)) / count
    data = torch.rand(512, 1) * torch.rand(512, 100)  # a brightness for each sample
    graph = trace(model, data[:1])
    per_channel, per_tensor = (
        noise_db(graph.run, quantize_int8(graph, data[:256], per_channel=each), data[256:]) for each in (True, False)
    )
    assert per_channel > 35
    assert per_channel > per_tensor + 10


def test_weights_are_symmetric_and_biases_in_units_of_the_products() -> None:
    torch.manual_seed(0)
    model = nn.Conv2d(2, 3, 3)
    data = torch.randn(32, 2, 6, 6)
    q = quantize_int8(model, data)
    (op,) = q.ops
    assert isinstance(op, Conv2d)
    weight = model.weight.detach().double().numpy()
    scale = np.abs(weight).reshape(3, -1).max(axis=1) / 127
    np.testing.assert_allclose(op.weight_scale, scale, rtol=1e-6)
    np.testing.assert_array_equal(
        op.weight, np.moveaxis(np.round(weight / op.weight_scale[:, None, None, None]), 1, -1)
    )
    assert np.abs(op.weight).reshape(3, -1).max(axis=1).tolist() == [127] * 3
    unit = q.tensors["x"].scale * op.weight_scale
    np.testing.assert_array_equal(op.bias, np.round(model.bias.detach().double().numpy() / unit))
    factor = op.multiplier / 2.0**31 * 2.0**op.shift
    np.testing.assert_allclose(factor, unit / q.tensors[op.name].scale, rtol=2**-30)


def test_a_channel_without_weights_keeps_its_bias() -> None:
    torch.manual_seed(0)
    model = nn.Conv2d(2, 4, 1)
    with torch.no_grad():
        model.weight[1:3] = 0
        model.bias[:] = torch.tensor([0.1, 0.7, 0.0, -0.2])
    data = torch.randn(32, 2, 4, 4)
    q = quantize_int8(model, data)
    real = q.dequantize(q.run(data))
    step = q.tensors[q.outputs[0]].scale
    assert np.abs(real[:, 1] - 0.7).max() <= step / 2 + 1e-6
    assert np.abs(real[:, 2]).max() == 0


def test_a_bias_far_above_its_weights_stays_within_32_bits() -> None:
    model = nn.Linear(4, 1)
    with torch.no_grad():
        model.weight.fill_(1e-9)
        model.bias.fill_(3.0)
    q = quantize_int8(model, torch.randn(32, 4))
    assert np.abs(q.dequantize(q.run(torch.randn(5, 4))) - 3.0).max() < 0.01


def test_layers_that_share_a_weight_share_its_codes() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(4, 4, 3, padding=1, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(torch.relu(self.conv(x)))

    torch.manual_seed(0)
    model = Tied()
    data = torch.randn(32, 4, 5, 5)
    q = quantize_int8(model, data)
    first, second = (op for op in q.ops if isinstance(op, Conv2d))
    assert first.weight is second.weight
    assert q.weight_bytes == 4 * 4 * 9 + 2 * 4 * 4
    assert noise_db(model, q, data) > 30


# activations


def test_relu6_clamps_at_the_code_of_six() -> None:
    model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.ReLU6())
    nn.init.constant_(model[0].weight, 1.0)
    q = quantize_int8(model, torch.linspace(-3, 12, 100)[:, None])
    (op,) = q.ops
    assert isinstance(op, Linear)
    y = q.tensors[op.name]
    assert (y.scale, y.zero_point) == (pytest.approx(6 / 255), -128)
    assert op.clamp == Clamp(lower=-128, upper=127)
    assert q.dequantize(q.run(np.array([[127]], dtype=np.int8))).item() == pytest.approx(6, abs=y.scale)

    # In a wider scale the clamp is what stops at 6.
    class Wide(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([F.relu6(x + x), 2 * x], 1)

    q = quantize_int8(Wide(), torch.linspace(-3, 12, 100)[:, None])
    add = next(op for op in q.ops if isinstance(op, Add))
    y = q.tensors[add.name]
    assert y.scale == pytest.approx(30 / 255)
    assert add.clamp == Clamp(lower=y.zero_point, upper=y.zero_point + 51)  # 6 / (30 / 255)
    assert q.dequantize(q.run(torch.tensor([[12.0]])))[0] == pytest.approx([6, 24], abs=y.scale)


def test_a_relu_that_others_bypass_stays_a_table() -> None:
    model = nn.Sequential(nn.Conv2d(2, 3, 1), Sum(nn.Identity(), nn.ReLU()))
    q = quantize_int8(model, torch.randn(32, 2, 4, 4))
    assert kinds(q) == ["Conv2d", "Lookup", "Add"]


@pytest.mark.parametrize(
    "function",
    [
        F.relu,
        F.relu6,
        F.hardswish,
        F.hardsigmoid,
        torch.sigmoid,
        F.silu,
        torch.tanh,
        F.gelu,
        lambda x: 3 - x,
        lambda x: x / 6 + 1,
    ],
    ids=["relu", "relu6", "hard_swish", "hard_sigmoid", "sigmoid", "silu", "tanh", "gelu", "3-x", "x/6+1"],
)
def test_a_function_of_one_value_is_the_best_table_there_is(function: Callable[[Tensor], Tensor]) -> None:
    q = quantize_int8(Fn(function), torch.linspace(-8, 8, 4096).reshape(-1, 1))
    (op,) = q.ops
    assert isinstance(op, Lookup)
    x, y = q.tensors["x"], q.tensors[op.name]
    truth = function(torch.from_numpy(x.dequantize(np.arange(-128, 128).astype(np.int8))).double()).numpy()
    inside = np.clip(truth, y.scale * (-128 - y.zero_point), y.scale * (127 - y.zero_point))
    assert np.abs(y.dequantize(op.table) - inside).max() <= y.scale / 2 * (1 + 1e-4)
    # Both ranges move by up to half a step, so that zero has a code; no slope here is above 1.13.
    assert np.abs(inside - truth).max() <= 1.13 * x.scale / 2 + y.scale / 2


def test_sigmoid_and_tanh_have_the_specifications_scales() -> None:
    q = quantize_int8(nn.Sigmoid(), torch.randn(64, 3))
    assert (q.tensors[q.outputs[0]].scale, q.tensors[q.outputs[0]].zero_point) == (1 / 256, -128)
    q = quantize_int8(nn.Tanh(), torch.randn(64, 3))
    assert (q.tensors[q.outputs[0]].scale, q.tensors[q.outputs[0]].zero_point) == (1 / 128, 0)


def test_a_run_of_functions_is_one_table() -> None:
    q = quantize_int8(Fn(lambda x: x * (F.relu6(x + 3) / 6)), torch.randn(256, 4))
    assert kinds(q) == ["Lookup", "Mul"]
    assert isinstance(q.ops[0], Lookup)
    assert q.ops[0].function == "x + 3, relu6, x * 0.166667"


def test_subtraction_is_an_exact_negation_and_an_addition() -> None:
    class Difference(Sum):
        def forward(self, x: Tensor) -> Tensor:
            return self.first(x) - self.second(x)

    model, data, test = prepared(lambda: Difference(nn.Conv2d(2, 3, 1), nn.Conv2d(2, 3, 1)), (2, 5, 5))
    q = quantize_int8(model, data)
    assert kinds(q) == ["Conv2d", "Conv2d", "Lookup", "Add"]
    seen = q.activations(test)
    negated = next(op for op in q.ops if isinstance(op, Lookup))
    assert (
        q.dequantize(seen[negated.name], negated.name) == -q.dequantize(seen[negated.inputs[0]], negated.inputs[0])
    ).all()
    assert noise_db(model, q, test) > 32


def test_every_mean_over_the_image_rescales() -> None:
    for pool in (nn.AdaptiveAvgPool2d(1), nn.AvgPool2d(6), Fn(lambda x: x.mean((2, 3), keepdim=True))):
        model = nn.Sequential(pool, nn.Flatten())
        q = quantize_int8(model, torch.randn(64, 3, 6, 6))
        assert kinds(q) == ["Mean", "Reshape"]
        assert q.tensors[q.outputs[0]].scale < q.tensors["x"].scale / 2


def test_average_pooling_of_windows_keeps_the_scale() -> None:
    torch.manual_seed(0)
    data = torch.randn(64, 3, 7, 7)
    for pool in (nn.AvgPool2d(2), nn.AvgPool2d(3, 2, 1, count_include_pad=False), nn.AvgPool2d(2, ceil_mode=True)):
        q = quantize_int8(pool, data)
        assert kinds(q) == ["AvgPool2d"]
        with torch.no_grad():
            truth = pool(data).numpy()
        assert np.abs(q.dequantize(q.run(data)) - truth).max() <= q.tensors["x"].scale * 1.01


@pytest.mark.parametrize(
    "pool", [nn.MaxPool2d(3, 2, 1), nn.MaxPool2d(2, ceil_mode=True), nn.MaxPool2d(2, 1, dilation=2)]
)
def test_max_pooling_is_within_half_a_step(pool: nn.Module) -> None:
    data = torch.randn(32, 3, 7, 9)
    q = quantize_int8(pool, data)
    assert kinds(q) == ["MaxPool2d"]
    assert np.abs(q.dequantize(q.run(data)) - pool(data).numpy()).max() <= q.tensors["x"].scale * 0.51


# layout


def test_flattened_images_reach_the_linear_layer_in_its_own_order() -> None:
    torch.manual_seed(0)
    data = torch.randn(64, 3, 4, 5)
    linear = nn.Linear(60, 4)
    plain = nn.Sequential(nn.Flatten(), linear)
    through = nn.Sequential(nn.Flatten(), nn.ReLU(), Sum(nn.Identity(), nn.Tanh()), linear)
    for model in (plain, through):
        q = quantize_int8(model, data)
        assert noise_db(model, q, data) > 30
    op = quantize_int8(plain, data).ops[-1]
    assert isinstance(op, Linear)
    weight = linear.weight.detach().double().numpy().reshape(4, 3, 4, 5).transpose(0, 2, 3, 1).reshape(4, 60)
    np.testing.assert_array_equal(op.weight, np.round(weight / op.weight_scale[:, None]))


def test_two_flattened_images_may_be_joined_before_the_linear_layer() -> None:
    model, data, test = prepared(
        lambda: nn.Sequential(
            Join(nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten()), nn.Sequential(nn.MaxPool2d(2), nn.Flatten())),
            nn.Linear(3 * 9 + 2 * 4, 3),
        ),
        (2, 5, 5),
    )
    assert noise_db(model, quantize_int8(model, data), test) > 28


def test_padding_before_a_convolution_becomes_its_padding_on_each_side() -> None:
    model, data, test = prepared(lambda: nn.Sequential(nn.ZeroPad2d((0, 1, 2, 3)), nn.Conv2d(2, 3, 3, 2, 1)), (2, 8, 8))
    q = quantize_int8(model, data + 1)
    (op,) = q.ops
    assert isinstance(op, Conv2d)
    assert op.padding == (3, 1, 4, 2)  # top, left, bottom, right: the layer's own 1 and the pad's
    assert noise_db(model, q, test + 1) > 30


def test_padding_that_something_else_reads_stays() -> None:
    model, data, _ = prepared(lambda: nn.Sequential(nn.ZeroPad2d(1), nn.MaxPool2d(2)), (2, 8, 8))
    q = quantize_int8(model, data - 5)
    assert kinds(q) == ["Pad", "MaxPool2d"]
    assert np.abs(q.dequantize(q.run(data - 5)) - model(data - 5).numpy()).max() <= q.tensors["x"].scale * 0.51


def test_a_value_that_only_a_concatenation_reads_is_made_in_its_scale() -> None:
    model, data, test = prepared(lambda: Join(nn.Conv2d(2, 3, 1), nn.Conv2d(2, 3, 1)), (2, 5, 5))
    q = quantize_int8(model, data)
    assert kinds(q) == ["Conv2d", "Conv2d", "Concat"]
    assert noise_db(model, q, test) > 35


def test_rows_columns_and_channels_can_be_joined() -> None:
    for dim, axis in ((1, 2), (2, 0), (3, 1)):
        model = Fn(lambda x, dim=dim: torch.cat([x, torch.tanh(x)], dim))
        data = torch.randn(32, 2, 3, 4)
        q = quantize_int8(model, data)
        (concat,) = (op for op in q.ops if isinstance(op, Concat))
        assert concat.axis == axis
        assert noise_db(model, q, data) > 30


def test_names_and_module_paths_are_kept() -> None:
    graph, q, _, _ = family("mobilenet_v2")
    assert {op.name for op in q.ops} <= set(graph.values)
    assert q.ops[0].source == "0.0"
    assert q.tensors[q.ops[0].name].source == "0.2"  # the value is the ReLU6's, the work the convolution's


def test_the_text_of_a_graph() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(8, 2))
    for parameter in model.parameters():
        nn.init.constant_(parameter, 0.5)
    q = quantize_int8(model, torch.ones(4, 1, 4, 4))
    assert str(q).splitlines() == [
        "integer graph Sequential: 3 operations, 88 MACs, 50 bytes of weights and biases",
        "input x: int8[4, 4, 1] scale=0.00392157 zero_point=-128",
        "Conv2d(x, kernel=3x3, stride=2x2, padding=1x1x1x1) -> relu_0: int8[2, 2, 2] scale=0.0196078 zero_point=-128  # 0",
        "Reshape(relu_0) -> reshape_0: int8[8] scale=0.0196078 zero_point=-128  # 2",
        "Linear(reshape_0) -> linear_0: int8[2] scale=0.0588235 zero_point=-128  # 3",
        "output linear_0",
    ]


# degenerate values


def test_constant_and_dead_activations_do_no_harm() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.ReLU(), nn.Flatten(), nn.Linear(36, 3))
    with torch.no_grad():
        model[0].bias.fill_(-1e4)  # never above zero
    q = quantize_int8(model, torch.randn(32, 2, 5, 5))
    data = torch.randn(8, 2, 5, 5)
    with torch.no_grad():
        assert np.abs(q.dequantize(q.run(data)) - model(data).numpy()).max() <= q.tensors[q.outputs[0]].scale
    flat = quantize_int8(nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU()), torch.zeros(4, 2, 5, 5))
    assert flat.run(torch.zeros(1, 2, 5, 5)).shape == (1, 3, 3, 4)


@pytest.mark.parametrize("size", [1e-30, 1e-12, 1e-6, 1e6, 1e12])
def test_networks_of_any_magnitude_quantize(size: float) -> None:
    model, data, test = prepared(
        lambda: Sum(nn.Conv2d(2, 4, 3, padding=1), nn.Sequential(nn.Conv2d(2, 4, 1), nn.Tanh())), (2, 5, 5)
    )
    q = quantize_int8(model, data * size)
    assert q.run(test * size).shape == (64, 5, 5, 4)


def test_a_nearly_dead_layer_has_no_finer_codes_than_its_sums_can_carry() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 4), nn.ReLU())
    data = torch.randn(256, 64)
    with torch.no_grad():
        model[0].bias -= model[0](data).amax(0) - 3e-6
        assert 1e-6 < float(model(data).max()) < 1e-5
    q = quantize_int8(model, data)  # made at all: sums fit 32 bits after the left shift
    (op,) = q.ops
    assert isinstance(op, Linear)
    y = q.tensors[op.name]
    # Coarser than the range asks for, and still finer than the steps of the sums themselves.
    assert 3e-6 / 255 < y.scale < q.tensors["x"].scale * op.weight_scale.min()


# refusals


class MatMul(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x @ x


REFUSALS: list[tuple[str, Callable[[], nn.Module], tuple[int, ...], str]] = [
    ("matmul", lambda: nn.Sequential(nn.ReLU(), MatMul()), (3, 3),
     r"int8 quantization has no rule for 'matmul' \(value 'matmul_0', module '1'\); it has rules for add, avg_pool, batch_norm"),
    ("layer norm", lambda: nn.Sequential(nn.LayerNorm(5)), (5,), r"no rule for 'layer_norm' \(value 'layer_norm_0', module '0'\)"),
    ("slice", lambda: Fn(lambda x: x[:, :2]), (4, 3, 3), "no rule for 'slice'"),
    ("padded mean", lambda: nn.Sequential(nn.AvgPool2d(3, 1, 1)), (2, 5, 5),
     r"no rule for 'avg_pool' with padding \(1, 1\) that is counted in the mean \(value 'avg_pool_0', module '0'\); give "
     "count_include_pad=False or padding=0"),
    ("uneven windows", lambda: nn.AdaptiveAvgPool2d(3), (2, 5, 5), "no rule for 'adaptive_avg_pool'"),
    ("row mean", lambda: Fn(lambda x: x.mean(2)), (2, 5, 5), r"no rule for 'mean' over axes \(2,\) .*the whole image, axes \(2, 3\)"),
    ("channel mean", lambda: Fn(lambda x: x.mean(1)), (7,), r"'mean' of shape \[1, 7\].*it takes images"),
    ("broadcast sum", lambda: Fn(lambda x: x + x.mean((2, 3), keepdim=True)), (2, 5, 5),
     r"no rule for 'add' of shapes \[1, 2, 5, 5\] and \[1, 2, 1, 1\].*both must have one shape"),
    ("spatial gate", lambda: Fn(lambda x: x * torch.sigmoid(x.mean((2, 3), keepdim=True)).reshape(-1, 1, 2, 1)), (2, 2, 5),
     "no rule for 'mul' of shapes"),
    ("pad with ones", lambda: nn.ConstantPad2d(1, 1.0), (2, 5, 5), r"'pad' by \(1, 1, 1, 1\) with value 1\.0.*with zeros"),
    ("pad channels", lambda: Fn(lambda x: F.pad(x, (0, 0, 0, 0, 0, 2))), (2, 5, 5), "'pad' by .*height and width"),
    ("crop", lambda: nn.ZeroPad2d(-1), (2, 5, 5), "'pad' by .*by 0 or more"),
    ("softmax over width", lambda: nn.Softmax(-1), (2, 5, 5), r"'softmax' over axis 3 of \[1, 2, 5, 5\].*channels or features"),
    ("linear on width", lambda: nn.Linear(5, 3), (2, 4, 5), r"'linear' on the width axis of \[1, 2, 4, 5\].*flatten the image first"),
    ("flat output", lambda: nn.Sequential(nn.Conv2d(2, 3, 1), nn.Flatten()), (2, 4, 4),
     r"'reshape_0' \(module '1'\) holds a flattened image and is an output of the network; on the device its elements lie in "
     r"another order \(height, width, channel\)"),
    ("regrouped image", lambda: Fn(lambda x: x.reshape(-1, 4, 2, 4)), (2, 4, 4),
     r"'reshape' from \[1, 2, 4, 4\] to \[1, 4, 2, 4\], which moves data on the device"),
    ("batch in shape", lambda: Fn(lambda x: x.reshape(4, 3)), (12,), r"'reshape' \(value 'reshape_0', module ''\) uses axis 0 as more"),
]  # fmt: skip


@pytest.mark.parametrize(("build", "shape", "message"), [row[1:] for row in REFUSALS], ids=[row[0] for row in REFUSALS])
def test_what_has_no_integer_rule_is_refused_by_name(
    build: Callable[[], nn.Module], shape: tuple[int, ...], message: str
) -> None:
    with pytest.raises(UnsupportedOpError, match=message):
        quantize_int8(build().eval(), torch.randn(8, *shape))


def test_two_inputs_are_refused() -> None:
    class Two(nn.Module):
        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return a + b

    graph = trace(Two(), (torch.zeros(1, 2), torch.zeros(1, 2)))
    with pytest.raises(UnsupportedOpError, match="takes networks with one input; 'Two' has 2: a, b"):
        quantize_int8(graph, torch.zeros(4, 2))


def test_training_mode_is_refused() -> None:
    with pytest.raises(GraphError, match=r"call model\.eval\(\)"):
        quantize_int8(mobilenet_v2().train(), torch.randn(4, 3, 16, 16))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (
            {"calibration": torch.randn(4, 7)},
            DataError,
            r"batch 0 has shape \[4, 7\]; the network takes \(batch, 5\), with a batch axis",
        ),
        ({"calibration": []}, DataError, "calibration is empty"),
        ({"calibration": [torch.randn(2, 5), torch.full((1, 5), float("nan"))]}, DataError, "batch 1 has NaN"),
        ({"method": "magic"}, ConfigError, "calibration method 'magic': must be one of minmax, percentile, mse"),
        ({"input_scale": 0.1}, ConfigError, r"input_scale=0\.1, input_zero_point=None: give both or neither"),
        ({"input_scale": -1.0, "input_zero_point": 0}, ConfigError, r"input_scale=-1\.0: must be above 0 and finite"),
        ({"input_scale": 1.0, "input_zero_point": 200}, ConfigError, "input_zero_point=200: must be -128 to 127"),
    ],
)
def test_data_and_options_that_do_not_fit_are_refused(
    changes: dict[str, Any], error: type[LilliputError], message: str
) -> None:
    options = {"calibration": torch.randn(4, 5), **changes}
    graph = trace(nn.Linear(5, 2), torch.zeros(1, 5))
    with pytest.raises(error, match=message):
        quantize_int8(graph, options.pop("calibration"), **options)


def test_broken_weights_are_refused_by_name() -> None:
    model = nn.Sequential(nn.Linear(5, 2))
    with torch.no_grad():
        model[0].weight[0, 0] = float("nan")
    with pytest.raises(DataError, match=r"weight '0\.weight' has NaN or infinite values; train again"):
        quantize_int8(model, torch.randn(4, 5))


def test_integer_inputs_are_refused() -> None:
    graph = trace(Fn(lambda x: x + x), torch.zeros(1, 5, dtype=torch.float64))
    with pytest.raises(DataError, match="the network's input is float64; int8 quantization takes float32 inputs"):
        quantize_int8(graph, torch.randn(4, 5))


def test_a_layer_whose_sums_could_leave_32_bits_is_refused() -> None:
    model = nn.Linear(70_000, 1, bias=False)
    nn.init.ones_(model.weight)
    with pytest.raises(GraphError, match=r"'linear_0' \(Linear, module ''\): channel 0 can reach 2,\d{3},\d{3},\d{3}"):
        quantize_int8(model, torch.rand(2, 70_000))


def test_the_input_can_be_forced() -> None:
    q = quantize_int8(nn.Linear(5, 2), torch.randn(16, 5), input_scale=0.5, input_zero_point=-3)
    assert (q.tensors["x"].scale, q.tensors["x"].zero_point) == (0.5, -3)


def test_the_gate_of_a_squeeze_excite_block_is_a_product_over_the_image() -> None:
    model, data, test = prepared(lambda: SqueezeExcite(8, nn.Sigmoid()), (8, 6, 6))
    q = quantize_int8(model, data)
    assert [type(op) for op in q.ops] == [Mean, Conv2d, Conv2d, Lookup, Mul]
    assert q.tensors[q.ops[-1].inputs[1]].shape == (1, 1, 8)
    assert noise_db(model, q, test) > 30


def test_graphs_traced_with_a_larger_batch_serve_too() -> None:
    graph: Graph = trace(nn.Sequential(nn.Linear(5, 2), nn.ReLU()), torch.zeros(4, 5))
    assert quantize_int8(graph, torch.randn(16, 5)).run(torch.randn(3, 5)).shape == (3, 2)


def test_a_half_precision_network_is_refused_with_the_fix():
    model = nn.Sequential(nn.Linear(4, 2)).half().eval()
    with pytest.raises(DataError, match=r"weight '0.weight' is float16.*model\.float\(\)"):
        quantize_int8(model, torch.rand(8, 4))

"""The compiled step: what it trains, what it takes, and when it is refused."""

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

from lilliput.errors import ConfigError, DataError, GraphError, UnsupportedOpError
from lilliput.mcu.training import graph as t
from lilliput.mcu.training import interpreter
from lilliput.mcu.training.arithmetic import RATE_ONE
from lilliput.mcu.training.forward import head_with_one_scale, new_head
from lilliput.mcu.training.optimizer import SGD
from lilliput.mcu.training.rate import warmup_cosine
from lilliput.mcu.training.train_step import TrainingLog, TrainStep, compile_training
from lilliput.mcu.training.update_plan import UpdatePlan, weighted_layers
from lilliput.quantize import quantize_int8
from lilliput.quantize.qgraph import QuantizedGraph
from mcu.networks import Network, ds_cnn, mobilenet_v2
from mcu.training.cases import quantized, sparse


@pytest.fixture(scope="module")
def shifted() -> tuple[QuantizedGraph, np.ndarray, np.ndarray]:
    """A network trained on six digits, and the same digits turned by a right angle: what it knows has to be learnt anew."""
    torch.manual_seed(0)
    found = load_digits(n_class=6)
    x, y = (found.images[:, None] / 8 - 1).astype(np.float32), found.target.astype(np.int64)
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3, stride=2, padding=1), nn.ReLU6(), nn.Conv2d(8, 24, 1), nn.ReLU6(),
        nn.Conv2d(24, 24, 3, padding=1, groups=24), nn.ReLU6(), nn.Conv2d(24, 16, 1), nn.ReLU6(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 6),
    )  # fmt: skip
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(200):
        chosen = torch.randint(0, 600, (64,))
        loss = nn.functional.cross_entropy(model(torch.from_numpy(x)[chosen]), torch.from_numpy(y)[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    qgraph = quantize_int8(model.eval(), x[:300])
    return qgraph, np.ascontiguousarray(x.transpose(0, 1, 3, 2)[:, :, ::-1]), y


def test_training_in_integers_beats_the_head_alone(shifted: tuple[QuantizedGraph, np.ndarray, np.ndarray]) -> None:
    """Two epochs over 150 turned digits; the published no-scaling and truncating variants as negative controls."""
    qgraph, x, y = shifted
    rates = warmup_cosine(300, 40)

    def run(plan: UpdatePlan, epochs: int = 2, count: int = 150, **optimizer: Any) -> tuple[TrainStep, TrainingLog]:
        step = compile_training(qgraph, plan, num_classes=6, optimizer=SGD(0.1, **optimizer))
        return step, step.simulate(x[:count], y[:count], epochs=epochs, rates=rates[: epochs * count])

    def accuracy(step: TrainStep, log: TrainingLog) -> float:
        return float((step.predict(x[700:800], log.state) == y[700:800]).mean())

    step, log = run(UpdatePlan.full(qgraph))
    head_step, head_log = run(UpdatePlan.head_only(qgraph))
    assert log.losses[-100:].mean() < 0.9 * head_log.losses[-100:].mean()
    assert accuracy(step, log) >= accuracy(head_step, head_log) + 0.1

    # without scaling no integer weight changes: the very curve of the head alone
    step, log = run(UpdatePlan.full(qgraph), epochs=1, count=30, qas=False)
    assert np.array_equal(log.losses_q16, head_log.losses_q16[:30])
    # the published device rule: every small step towards zero costs a whole code, and weights decay
    step, log = run(UpdatePlan.full(qgraph), epochs=1, count=30, master="truncate")
    sizes = [
        sum(np.abs(interpreter.weights(layer, state).astype(int)).sum() for layer in step.program.layers.values())
        for state in (step.start(), log.state)
    ]
    assert sizes[1] < 0.95 * sizes[0]


def test_with_scaling_integer_weights_change_within_three_steps(
    shifted: tuple[QuantizedGraph, np.ndarray, np.ndarray],
) -> None:
    qgraph, x, y = shifted
    changed = {}
    for qas in (True, False):
        step = compile_training(qgraph, UpdatePlan.full(qgraph), num_classes=6, optimizer=SGD(0.1, qas=qas))
        state = step.simulate(x[:3], y[:3]).state
        changed[qas] = sum(
            int((interpreter.weights(layer, state) != interpreter.weights(layer, step.start())).sum())
            for layer in list(step.program.layers.values())[:-1]
        )
    assert changed[False] == 0
    assert changed[True] > 0


def test_unselected_weights_stay_and_selected_ones_move() -> None:
    qgraph = quantized("3x3")
    name = weighted_layers(qgraph)[1].name
    plan = UpdatePlan.from_ratios(qgraph, 2, {name: 0.34})
    step = compile_training(qgraph, plan, num_classes=3, optimizer=SGD(0.5))
    x = np.random.default_rng(0).integers(-128, 128, (6, 7, 7, 3), dtype=np.int8)
    state = step.simulate(x, np.arange(6) % 3).state
    layer = step.program.layers[name]
    before, after = (interpreter.weights(layer, each) for each in (step.start(), state))
    assert np.array_equal(before, next(op.weight for op in qgraph.ops if op.name == name))
    channels = list(plan.layers[0].channels)
    others = np.setdiff1d(np.arange(6), channels)
    assert np.array_equal(before[..., others], after[..., others])
    assert (before[..., channels] != after[..., channels]).any()
    assert step.program.parameters.keys() == {
        f"{name}.weight", f"{name}.bias", *(f"{weighted_layers(qgraph)[2].name}.bias",), "linear_0.weight", "linear_0.bias",
    }  # fmt: skip


def test_its_forward_pass_is_the_networks() -> None:
    """Untrained, the largest logit of the network's own head is where inference has it, and the activations are inference's."""
    qgraph = quantized("residual")
    step = compile_training(qgraph, UpdatePlan.full(qgraph), optimizer=SGD(0.01))
    x = np.random.default_rng(0).integers(-128, 128, (8, 7, 7, 3), dtype=np.int8)
    expected = qgraph.activations(x)
    for index, codes in enumerate(step.cut_codes(x)):
        run = interpreter.train_step(step.program, step.start(), codes, 0, 0)
        for name, values in run.values.items():
            if name in expected:
                assert np.array_equal(values, expected[name][index])
        real = run.values[step.program.logits].reshape(-1) * step.program.buffers[f"d.{step.program.logits}"].unit
        output = qgraph.tensors[qgraph.outputs[0]]
        codes_of = output.quantize(real.astype(np.float64))
        assert np.abs(codes_of - expected[output.name][index].astype(int)).max() <= 2  # weights brought to one scale


def test_simulation_is_resumable_and_leaves_its_start_alone() -> None:
    qgraph = quantized("depthwise 3x3")
    step = compile_training(qgraph, UpdatePlan.full(qgraph), num_classes=3, optimizer=SGD(0.1, master="int8"))
    x = np.random.default_rng(0).integers(-128, 128, (16, 7, 7, 3), dtype=np.int8)
    y = np.arange(16) % 3
    whole = step.simulate(x, y)
    half = step.simulate(x[:8], y[:8])
    digest = half.weights_digest
    rest = step.simulate(x[8:], y[8:], state=half.state)
    assert half.weights_digest == digest != rest.weights_digest
    assert rest.weights_digest == whole.weights_digest
    assert np.array_equal(np.concatenate([half.losses_q16, rest.losses_q16]), whole.losses_q16)


@pytest.mark.parametrize("master", ["int16", "nearest", "truncate"])
def test_a_rate_of_zero_moves_nothing(master: str) -> None:
    qgraph = quantized("pointwise")
    step = compile_training(qgraph, UpdatePlan.full(qgraph), num_classes=3, optimizer=SGD(0.02, master=master))
    x = np.random.default_rng(0).integers(-128, 128, (4, 7, 7, 3), dtype=np.int8)
    assert step.simulate(x, [0, 1, 2, 0], rates=0).weights_digest == step.start().digest


# --- heads, cuts, refusals


def test_a_new_head_has_room_to_grow_and_one_scale() -> None:
    qgraph = ds_cnn(0)
    head = new_head(qgraph, 5, seed=3)
    assert head.weight.shape == (5, 64)
    assert 12 <= np.abs(head.weight).max() <= 16  # an eighth of 127
    assert len(set(head.weight_scale)) == 1
    assert np.abs(head.weight * head.weight_scale[0]).max() == pytest.approx(64**-0.5, rel=0.1)
    assert np.array_equal(head.weight, new_head(qgraph, 5, seed=3).weight)
    assert not np.array_equal(head.weight, new_head(qgraph, 5, seed=4).weight)
    with pytest.raises(ConfigError, match="num_classes=1"):
        new_head(qgraph, 1)


def test_the_networks_own_head_is_brought_to_its_largest_scale() -> None:
    qgraph = quantized("residual")
    old = qgraph.ops[-1]
    head = head_with_one_scale(qgraph)
    real = old.weight * old.weight_scale[:, None]
    assert np.abs(head.weight * head.weight_scale[:, None] - real).max() <= head.weight_scale[0] / 2 * 1.001


def test_the_cut_lies_between_blocks() -> None:
    qgraph = quantized("residual")
    # the last layer of the inner branch: the skip tensor is alive there, so the cut is before the block
    step = compile_training(qgraph, UpdatePlan(1), num_classes=3, optimizer=SGD(0.01))
    assert step.program.input == weighted_layers(qgraph)[0].name
    assert [op.kind for op in step.program.ops[:2]] == ["infer", "conv"]
    head = compile_training(qgraph, UpdatePlan.head_only(qgraph), num_classes=3, optimizer=SGD(0.01))
    assert {op.kind for op in head.program.ops} == {"conv_sum", "loss", "bias_gradient_step", "conv_dw_step"}
    assert compile_training(qgraph, UpdatePlan.full(qgraph), num_classes=3, optimizer=SGD(0.01)).prefix is None


def test_what_is_given_wrong_is_named() -> None:
    qgraph = quantized("pointwise")
    step = compile_training(qgraph, UpdatePlan.head_only(qgraph), num_classes=3, optimizer=SGD(0.01))
    x = np.zeros((2, 7, 7, 3), dtype=np.int8)
    for wrong, message in (
        ((x, [0, 3]), "label 3: must be 0 to 2"),
        ((x, [0, -1]), "label -1: must be 0 to 2"),
        ((x, [0]), "2 samples need 2 whole labels"),
        ((x, [0.0, 1.0]), "whole labels"),
        ((x[:, :5], [0, 1]), r"int8 samples have shape \[2, 5, 7, 3\]; must be \(batch, 7, 7, 3\)"),
        ((np.full((2, 3, 7, 7), np.nan, dtype=np.float32), [0, 1]), "NaN"),
    ):
        with pytest.raises(DataError, match=message):
            step.simulate(*wrong)
    for rates, message in (([1], "one for each of 2 steps"), (RATE_ONE + 1, "rates from 32769"), (0.5, "one integer")):
        with pytest.raises(ConfigError, match=message):
            step.simulate(x, [0, 1], rates=rates)
    with pytest.raises(ConfigError, match="loss='mse': must be 'cross_entropy'"):
        compile_training(qgraph, UpdatePlan.head_only(qgraph), loss="mse", optimizer=SGD(0.01))


def test_networks_that_cannot_be_trained_are_refused() -> None:
    net = Network("headless", (8, 8, 3), 0)
    net.conv("x", 4)
    with pytest.raises(UnsupportedOpError, match="last layer must be linear"):
        compile_training(net.graph(), UpdatePlan(0), optimizer=SGD(0.01))
    net = Network("rows", (4, 6), 0)
    net.linear("x", 3)
    with pytest.raises(GraphError, match="reads 4 vectors"):
        compile_training(net.graph(), UpdatePlan(0), optimizer=SGD(0.01))


def test_a_layer_whose_sums_could_overflow_when_trained_is_refused() -> None:
    net = Network("wide", (70_000,), 0)
    net.linear(net.linear("x", 4), 3)
    graph = net.graph()
    op = graph.ops[0]
    op.weight[...] = 1  # harmless as it is
    with pytest.raises(GraphError, match="'t0' .* could reach 2,2.* once its weights have moved"):
        compile_training(graph, UpdatePlan.full(graph), optimizer=SGD(0.01))
    assert compile_training(graph, UpdatePlan(1), optimizer=SGD(0.01)).program.parameters


@pytest.mark.parametrize("steps", [1, 7, 100])
def test_rates_rise_to_one_and_fall_towards_zero(steps: int) -> None:
    rates = warmup_cosine(steps, steps // 4)
    assert len(rates) == steps
    assert rates.max() == RATE_ONE
    assert (np.diff(rates[: steps // 4]) > 0).all()
    assert (np.diff(rates[steps // 4 :]) <= 0).all()
    with pytest.raises(ConfigError, match="warmup_steps=9"):
        warmup_cosine(8, 9)


def test_steps_of_a_real_network_keep_every_number_in_its_range() -> None:
    qgraph = mobilenet_v2(96, 0.35, seed=0)
    step = compile_training(qgraph, sparse(qgraph), num_classes=10, optimizer=SGD(1e-4))
    rng = np.random.default_rng(0)
    x = rng.integers(-128, 128, (4, 96, 96, 3), dtype=np.int8)
    log = step.simulate(x, np.arange(4), epochs=4)
    assert len(log.losses_q16) == 16
    for name, master in log.state.masters.items():
        parameter = step.program.parameters[name]
        assert master.dtype == parameter.initial.dtype
        assert np.abs(master.astype(np.int64)).max() <= (127 * 256 if parameter.role == "weight" else 2**30 - 1)
    assert any(isinstance(op, t.Keep) for op in step.program.ops)


@pytest.mark.parametrize("name", ["residual", "grouped", "flattened"])
def test_logits_of_a_batch_are_the_programs_own(name: str) -> None:
    """Inference on many samples runs the updated network; it gives what the training program's forward half gives."""
    qgraph = quantized(name)
    step = compile_training(qgraph, UpdatePlan.full(qgraph), num_classes=3, optimizer=SGD(0.3))
    x = np.random.default_rng(0).integers(-128, 128, (6, 7, 7, 3), dtype=np.int8)
    state = step.simulate(x, np.arange(6) % 3).state
    expected = [interpreter.logits(step.program, state, codes) for codes in step.cut_codes(x)]
    assert np.array_equal(step.logits(x, state), expected)
    assert not np.array_equal(step.logits(x, state), step.logits(x))
    assert np.array_equal(step.predict(x, state), np.argmax(expected, axis=1))

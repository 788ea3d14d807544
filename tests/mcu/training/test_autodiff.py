"""Gradients: each rule by central differences on the program without roundings, and the integers against the rules."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch

from lilliput.errors import UnsupportedOpError
from lilliput.mcu.training import autodiff as autodiff_module
from lilliput.mcu.training import graph as t
from lilliput.mcu.training import interpreter
from lilliput.mcu.training.arithmetic import gradient_bits
from lilliput.mcu.training.autodiff import autodiff
from lilliput.mcu.training.cut import Cut, cut
from lilliput.mcu.training.dead_code import remove_dead_code
from lilliput.mcu.training.float_mode import FloatMode
from lilliput.mcu.training.forward import forward, head_with_one_scale, new_head
from lilliput.mcu.training.optimizer import SGD
from lilliput.mcu.training.update_plan import UpdatePlan, head_of, weighted_layers
from lilliput.quantize.qgraph import QOp, QuantizedGraph
from mcu.networks import Network
from mcu.training import relaxation
from mcu.training.cases import CASES, quantized

LR = 0.01
EPSILON = 1e-4
"""Of a central difference, in codes: small enough that hardly a clamp lies between, large enough for float64."""


def backward_ops(program: t.Program) -> tuple[t.Op, ...]:
    """Operations after the loss."""
    loss = next(index for index, op in enumerate(program.ops) if isinstance(op, t.Loss))
    return program.ops[loss + 1 :]


def spelled_out(qgraph: QuantizedGraph, plan: UpdatePlan, optimizer: SGD) -> t.Program:
    """All gradients and steps, nothing fused."""
    return remove_dead_code(
        autodiff(forward(qgraph, cut(qgraph, plan), plan, optimizer, new_head(qgraph, 3)), optimizer)
    )


def images(qgraph: QuantizedGraph, count: int, seed: int = 0) -> np.ndarray:
    shape = qgraph.tensors[qgraph.input].shape
    return np.random.default_rng(seed).normal(0, 40, (count, *shape)).clip(-128, 127).astype(np.int8)


def expected_scale(qgraph: QuantizedGraph, layer: t.Layer, role: str) -> np.ndarray:
    """lr / scale**2 of each output channel: what a real-valued step is in codes."""
    scale = layer.weight_scale * (layer.input_scale if role == "bias" else 1.0)
    return LR / scale**2


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("ratio", [1.0, 0.5])
def test_every_step_is_the_learning_rate_times_the_central_difference(name: str, ratio: float) -> None:
    qgraph = quantized(name)
    layers = weighted_layers(qgraph)
    plan = UpdatePlan.from_ratios(qgraph, len(layers), {op.name: ratio for op in layers})
    program = spelled_out(qgraph, plan, SGD(LR))
    rng = np.random.default_rng(1)
    parameters = relaxation.masters(program)
    x = images(qgraph, 1)[0]
    _, values = relaxation.forward(program, parameters, x, 1)
    _, moves = relaxation.backward(program, parameters, values, 1)
    assert moves.keys() == program.parameters.keys()
    masks = [name for name, buffer in program.buffers.items() if buffer.role == "mask"]
    for parameter, moved in moves.items():
        layer = program.layers[program.parameters[parameter].layer]
        scale = expected_scale(qgraph, layer, program.parameters[parameter].role)
        if parameter.endswith("weight"):
            scale = scale[layer.selection // layer.weight[0].size]
        # the derivative in a random direction, and of the five numbers that move most
        directions = [rng.normal(size=moved.shape), *np.eye(moved.size)[np.argsort(-np.abs(moved))[:5]]]
        kinks = 0
        for direction in directions:
            ends = [
                relaxation.forward(program, {**parameters, parameter: parameters[parameter] + sign * direction}, x, 1)
                for sign in (EPSILON, -EPSILON)
            ]
            if any(not np.array_equal(end[name], values[name]) for _, end in ends for name in masks):
                kinks += 1  # a clamp begins or ends between the two: there is no derivative to compare with
                continue
            difference = (ends[0][0] - ends[1][0]) / (2 * EPSILON)
            size = float(np.linalg.norm(moved / scale) * np.linalg.norm(direction))
            assert difference == pytest.approx(float(moved / scale @ direction), rel=1e-3, abs=1e-3 * size)
        assert kinks <= 1


@pytest.mark.parametrize("name", CASES)
def test_integer_gradients_point_where_the_rules_point(name: str) -> None:
    qgraph = quantized(name)
    program = spelled_out(qgraph, UpdatePlan.full(qgraph), SGD(LR))
    parameters = relaxation.masters(program)
    for label, x in enumerate(images(qgraph, 3)):
        run = interpreter.train_step(program, interpreter.State.start(program), x, label, 2**15)
        loss, _ = relaxation.forward(program, parameters, x, label)
        assert run.loss_q16 / 2**16 == pytest.approx(
            loss, rel=0.1, abs=0.02
        )  # codes are rounded, the relaxation is not
        # the rules, on the integers' own activations, masks and probabilities
        values = {name: value.astype(float) for name, value in run.values.items()}
        logits = run.values[program.logits].reshape(-1) * program.buffers[f"d.{program.logits}"].unit
        values["probabilities"] = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
        rules, _ = relaxation.backward(program, parameters, values, label)
        for buffer in program.buffers.values():
            if buffer.has_exponent:
                found = run.values[buffer.name].reshape(-1) * 2.0 ** run.exponents[buffer.name]
                expected = rules[buffer.name].reshape(-1)
                size = np.linalg.norm(found) * np.linalg.norm(expected)
                assert size > 0
                assert found @ expected / size >= 0.999
                assert np.linalg.norm(found) == pytest.approx(np.linalg.norm(expected), rel=0.01)


def step_of_the_first_layer(program: t.Program, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How far its weights move, and what central differences say; both as gradients of codes."""
    name = next(name for name, parameter in program.parameters.items() if parameter.role == "weight")
    parameters = relaxation.masters(program)
    _, values = relaxation.forward(program, parameters, x, 2)
    _, moves = relaxation.backward(program, parameters, values, 2)
    layer = program.layers[program.parameters[name].layer]
    scale = (LR / layer.weight_scale**2)[layer.selection // layer.weight[0].size]
    differences = []
    for direction in np.eye(len(parameters[name])):
        up, down = (
            relaxation.forward(program, {**parameters, name: parameters[name] + sign * direction}, x, 2)[0]
            for sign in (EPSILON, -EPSILON)
        )
        differences.append((up - down) / (2 * EPSILON))
    return moves[name] / scale, np.array(differences)


def test_a_skip_connections_gradient_is_summed_and_overwriting_it_would_be_noticed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    qgraph = quantized("residual")
    x = images(qgraph, 1)[0]
    ours, truth = step_of_the_first_layer(spelled_out(qgraph, UpdatePlan.full(qgraph), SGD(LR)), x)
    assert np.linalg.norm(ours - truth) <= 1e-3 * np.linalg.norm(truth)

    def keep_the_last(walk: Any, tensor: str, gradient: Any) -> None:
        walk.gradients[tensor] = gradient  # what the published device graph does

    monkeypatch.setattr(autodiff_module._Walk, "receive", keep_the_last)
    lost, _ = step_of_the_first_layer(spelled_out(qgraph, UpdatePlan.full(qgraph), SGD(LR)), x)
    assert np.linalg.norm(lost - truth) > 0.3 * np.linalg.norm(truth)


def test_quantization_aware_scaling_is_gradient_descent_on_the_real_weights() -> None:
    """A step on codes, times the scale, is lr times the gradient with respect to scale * code; without it the square is missing."""
    qgraph = quantized("3x3")
    x = images(qgraph, 1)[0]
    moved = {}
    for qas in (True, False):
        program = spelled_out(qgraph, UpdatePlan.full(qgraph), SGD(LR, qas=qas))
        parameters = relaxation.masters(program)
        _, values = relaxation.forward(program, parameters, x, 0)
        values, moves = relaxation.backward(program, parameters, values, 0)
        for name, parameter in program.parameters.items():
            layer, is_bias = program.layers[parameter.layer], parameter.role == "bias"
            scale = layer.weight_scale * (layer.input_scale if is_bias else 1.0)
            if not is_bias:
                scale = scale[layer.selection // layer.weight[0].size]
            is_head = layer.output_shape[2] == 3
            unit = program.buffers[f"d.{program.logits}"].unit if is_head else 1.0
            real_gradient = values[f"d.{name}"] * unit / scale  # d loss / d (scale * code)
            moved[qas, name] = moves[name]
            expected = LR * real_gradient if qas or is_head else LR * real_gradient * scale**2
            np.testing.assert_allclose(moves[name] * scale, expected, rtol=1e-5, atol=1e-12)
    assert any(not np.allclose(moved[True, name], moved[False, name]) for name in program.parameters)


def test_backward_operations_do_not_depend_on_what_lies_below_the_deepest_bias() -> None:
    counts = set()
    for below in (1, 3, 6):
        net = Network("deep", (8, 8, 3), 0)
        x = net.conv("x", 8, 3)
        for _ in range(below):
            x = net.add(x, net.conv(net.depthwise(x), 8))
        for _ in range(2):
            x = net.conv(net.depthwise(x), 8)
        net.linear(net.reshape(net.mean(x), 8), 4)
        qgraph = net.graph()
        whole = autodiff(forward(qgraph, _uncut(qgraph), UpdatePlan(3), SGD(LR), new_head(qgraph, 4)), SGD(LR))
        program = remove_dead_code(whole)
        assert len(list(backward_ops(program))) < len(list(backward_ops(whole)))
        counts.add(len(list(backward_ops(program))))
    assert len(counts) == 1


def test_no_activation_is_stored_without_a_weight_gradient() -> None:
    qgraph = quantized("fan-out of three")
    program = spelled_out(qgraph, UpdatePlan(3), SGD(LR))
    read = {name for op in backward_ops(program) for name in op.inputs if program.buffers[name].role == "activation"}
    head = next(op for op in program.ops if isinstance(op, t.ConvSum) and program.logits in op.outputs)
    assert read == set(head.inputs)  # the head's weights are always trained
    assert all(not isinstance(op, t.Keep) for op in program.ops)


def test_an_operation_without_a_rule_is_named_when_a_trained_layer_lies_below_it() -> None:
    net = Network("pooled", (8, 8, 3), 0)
    first = net.conv("x", 8, 3)
    pooled = net.pool(first, 2, largest=True)
    second = net.conv(pooled, 8, 3)
    net.linear(net.reshape(net.mean(second), 8), 4)
    qgraph = net.graph()
    with pytest.raises(
        UnsupportedOpError,
        match=r"no gradient rule for 't1' \(MaxPool2d, module ''\), through which 't0' \(module 'layers.0'\) would be trained",
    ):
        spelled_out(qgraph, UpdatePlan(2), SGD(LR))
    assert spelled_out(qgraph, UpdatePlan(1), SGD(LR)).parameters.keys() == {"t2.bias", "t5.weight", "t5.bias"}


def test_a_tensor_whose_gradient_is_known_only_in_part_is_not_trained_through() -> None:
    """One reader has a rule and the other has none: half a gradient would be a wrong one."""
    net = Network("half", (8, 8, 3), 0)
    first = net.conv("x", 8, 3)
    both = net.add(net.conv(first, 8), net.lookup(first))
    net.linear(net.reshape(net.mean(both), 8), 4)
    qgraph = net.graph()
    with pytest.raises(UnsupportedOpError, match="'t2' \\(Lookup"):
        spelled_out(qgraph, UpdatePlan(2), SGD(LR))


def _uncut(qgraph: QuantizedGraph) -> Cut:
    return Cut(None, qgraph.input, qgraph.ops[: qgraph.ops.index(head_of(qgraph)) + 1])


@pytest.mark.parametrize("name", ["3x3", "grouped", "depthwise 3x3", "residual", "fan-out of three", "flattened"])
def test_integer_gradients_are_those_of_the_published_simulation(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two implementations that share nothing: integers with shifts here, float64 autograd with rounded codes there.

    Their forward pass rounds halves to even, ours as TensorFlow Lite does, so images are taken on which every code is the same. A value
    that one rounds to the end of a clamp and the other beyond it still has one code and two masks: one image may be such.
    """
    qgraph = quantized(name)
    plan = UpdatePlan.full(qgraph)
    optimizer = SGD(LR)
    program = remove_dead_code(
        autodiff(forward(qgraph, cut(qgraph, plan), plan, optimizer, head_with_one_scale(qgraph)), optimizer)
    )
    simulation = FloatMode(qgraph, plan, head="integer", dtype=torch.float64)
    head = head_of(qgraph).name
    simulated: dict[str, np.ndarray] = {}
    evaluate = FloatMode._evaluate

    def recorded(
        self: FloatMode, op: QOp, live: Mapping[str, torch.Tensor], used: Mapping[str, torch.Tensor]
    ) -> torch.Tensor:
        simulated[op.name] = (result := evaluate(self, op, live, used)).detach().numpy()
        return result

    monkeypatch.setattr(FloatMode, "_evaluate", recorded)
    agreeing = []
    for index, x in enumerate(images(qgraph, 300)):
        run = interpreter.train_step(program, interpreter.State.start(program), x, index % 4, 2**15)
        loss, gradients = simulation.gradients(x[None], [index % 4])
        assert run.loss_q16 / 2**16 == pytest.approx(loss, abs=0.02)
        if all(np.array_equal(run.values[each].reshape(-1), codes.reshape(-1)) for each, codes in simulated.items()):
            pairs = []
            for parameter, expected in gradients.items():
                ours = parameter.replace("head", head)
                unit = program.buffers[f"d.{program.logits}"].unit if parameter.startswith("head") else 1.0
                found = run.values[f"d.{ours}"].reshape(-1) * 2.0 ** run.exponents[f"d.{ours}"] * unit
                theirs = expected.numpy()
                pairs.append(
                    (found, np.moveaxis(theirs, 1, -1).reshape(-1) if theirs.ndim == 4 else theirs.reshape(-1))
                )
            agreeing.append(all(np.linalg.norm(a - b) <= 2e-3 * np.linalg.norm(b) for a, b in pairs))
        if len(agreeing) == 4:
            break
    assert sum(agreeing) >= max(2, len(agreeing) - 1)


WINDOWS = [(1, 1, 1), (3, 1, 1), (3, 2, 1), (5, 2, 1), (3, 2, 2), (5, 4, 2), (4, 3, 2), (2, 3, 1)]


@pytest.mark.parametrize(("kernel", "stride", "dilation"), WINDOWS)
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_no_sum_of_an_input_gradient_leaves_32_bits(kernel: int, stride: int, dilation: int, groups: int) -> None:
    """With the largest weights and mantissas everywhere, the largest sum is what the compiler took it to be, and fits."""
    size, out = 20, 64
    span = (size - 1 - dilation * (kernel - 1)) // stride + 1
    layer = t.Layer(
        name="wide", source="", qop=weighted_layers(quantized("3x3"))[0], input_shape=(size, size, 4),
        output_shape=(span, span, out), weight=np.full((out, kernel, kernel, 4 // groups), 127, dtype=np.int8),
        bias=np.zeros(out, dtype=np.int32), input_zero_point=0, input_scale=1.0, weight_scale=np.ones(out),
        stride=(stride, stride), dilation=(dilation, dilation), groups=groups,
    )  # fmt: skip
    bits = gradient_bits(layer.products)
    largest = np.full(layer.output_shape, 2.0**bits - 1)
    total = interpreter.correlate_transposed(layer, largest, layer.weight).max()
    assert total == 127 * (2**bits - 1) * layer.products
    assert total < 2**31

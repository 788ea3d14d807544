"""Operations worked by hand: borders of masks, padding, and one whole step."""

from dataclasses import replace

import numpy as np
import pytest

from lilliput.errors import GraphError
from lilliput.mcu.training import graph as t
from lilliput.mcu.training import interpreter
from lilliput.mcu.training.optimizer import SGD
from lilliput.mcu.training.train_step import TrainStep, compile_training
from lilliput.mcu.training.update_plan import UpdatePlan
from lilliput.quantize.qgraph import Clamp, Linear, QTensor, QuantizedGraph
from mcu.networks import Network


def identity(clamp: Clamp) -> TrainStep:
    """One pointwise convolution that passes codes through, clamped; then a pooled head of two classes."""
    net = Network("identity", (16, 16, 1), 0)
    net.tensors["x"] = replace(net.tensors["x"], zero_point=0)
    net.linear(net.reshape(net.mean(net.conv("x", 1)), 1), 2)
    conv = replace(
        net.ops[0],
        weight=np.ones((1, 1, 1, 1), dtype=np.int8),
        bias=np.zeros(1, dtype=np.int32),
        multiplier=np.full(1, 2**30, dtype=np.int32),
        shift=np.ones(1, dtype=np.int32),  # 2**30 / 2**31 * 2: exactly one
        clamp=clamp,
    )
    net.tensors["t0"] = replace(net.tensors["t0"], zero_point=0)
    graph = QuantizedGraph("identity", "x", (net.ops[-1].name,), net.tensors, (conv, *net.ops[1:]))
    return compile_training(graph, UpdatePlan.full(graph), num_classes=2, optimizer=SGD(0.01))


def test_a_code_on_the_border_of_the_clamp_passes_its_gradient() -> None:
    step = identity(Clamp(lower=-100, upper=90))
    codes = np.arange(-128, 128, dtype=np.int8).reshape(16, 16, 1)
    run = interpreter.train_step(step.program, step.start(), codes, 0, 0)
    assert run.values["t0"].reshape(-1).tolist() == [*[-100] * 28, *range(-100, 90), *[90] * 38]
    inside = [*[False] * 28, *[True] * 191, *[False] * 37]  # -100 and 90 themselves among them
    assert run.values["t0.mask"].reshape(-1).tolist() == inside
    ga = run.values["d.t0.sum"].reshape(-1)
    assert (ga[inside] == ga[100]).all()
    assert ga[100] != 0
    assert (ga[~np.array(inside)] == 0).all()


def test_padding_is_the_zero_point_in_both_directions() -> None:
    """Outside the image a code is zx, so it adds nothing to a sum and nothing to a weight's gradient."""
    net = Network("padded", (1, 1, 1), 0)
    net.linear(net.reshape(net.mean(net.conv("x", 1, 3, padding=(1, 1, 1, 1))), 1), 2)
    graph = net.graph()
    zero = graph.tensors["x"].zero_point
    assert zero == 3
    step = compile_training(graph, UpdatePlan.full(graph), num_classes=2, optimizer=SGD(1.0))
    start, state = step.start(), step.start()
    interpreter.train_step(step.program, state, np.full((1, 1, 1), zero + 50, dtype=np.int8), 0, 2**15)
    moved = np.flatnonzero(state.masters["t0.weight"] != start.masters["t0.weight"])
    assert moved.tolist() == [4]  # the middle of the kernel: the only tap inside the image
    interpreter.train_step(step.program, start, np.full((1, 1, 1), zero, dtype=np.int8), 0, 2**15)
    assert np.array_equal(start.masters["t0.weight"], step.start().masters["t0.weight"])


def test_a_step_of_the_head_by_hand() -> None:
    """Equal logits: p - y = (-1/2, 1/2). Feature 32 codes of 1/16 above zero: 2. lr/sw**2 * p * x * sw = 0.25 * 64 * 0.5 * 2 = 16 codes."""
    net = Network("head", (1,), 0)
    net.linear("x", 2)
    zeros = np.zeros((2, 1), dtype=np.int8)
    head = replace(net.ops[0], weight=zeros, bias=np.zeros(2, dtype=np.int32), weight_scale=np.full(2, 1 / 64))
    net.tensors["x"] = QTensor("x", (1,), 1 / 16, -20)
    graph = QuantizedGraph("head", "x", ("t0",), net.tensors, (head,))
    step = compile_training(graph, UpdatePlan.head_only(graph), optimizer=SGD(0.25))
    state = step.start()
    run = interpreter.train_step(step.program, state, np.array([12], dtype=np.int8), 0, 2**15)
    assert run.values["d.t0.logits"].reshape(-1).tolist() == [-(2**14), 2**14]
    assert run.exponents["d.t0.logits"] == -15
    assert run.loss_q16 == 45426  # ln 2
    assert state.masters["t0.weight"].tolist() == [16 * 256, -16 * 256]
    # a bias counts 1/16 * 1/64 each: lr * 0.5 / (sx * sw) = 128 codes, with eight fraction bits
    assert state.masters["t0.bias"].tolist() == [128 * 256, -128 * 256]
    # at a quarter of the rate, a quarter of the way
    slow = step.start()
    interpreter.train_step(step.program, slow, np.array([12], dtype=np.int8), 0, 2**13)
    assert slow.masters["t0.weight"].tolist() == [4 * 256, -4 * 256]


def test_the_digest_is_of_all_trained_bytes_in_order() -> None:
    step = identity(Clamp())
    state = step.start()
    assert list(state.masters) == ["t0.weight", "t0.bias", "t3.weight", "t3.bias"]
    for name in state.masters:
        other = state.copy()
        other.masters[name].reshape(-1)[0] += 1
        assert other.digest != state.digest
    assert state.digest == step.start().digest


def test_an_operation_without_a_definition_is_refused() -> None:
    class Unknown(t.Op):
        kind = "unknown"

    step = identity(Clamp())
    run = interpreter.Run(step.program, step.start())
    with pytest.raises(GraphError, match="'odd' is a Unknown, which has no rule"):
        interpreter.evaluate(Unknown(name="odd", inputs=(), outputs=()), run)
    assert isinstance(step.program.head.qop, Linear)

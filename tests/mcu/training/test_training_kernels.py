"""Each C kernel of a training step against the interpreter's definition, number by number."""

import shutil
from functools import cache
from math import prod

import numpy as np
import pytest

from lilliput.mcu.training import graph as t
from lilliput.mcu.training.lowering import _RULES
from lilliput.mcu.training.optimizer import SGD
from lilliput.mcu.training.train_step import TrainStep, compile_training
from lilliput.mcu.training.update_plan import UpdatePlan, weighted_layers
from lilliput.quantize.qgraph import QuantizedGraph
from mcu.networks import Network
from mcu.training.cases import CASES, quantized
from mcu.training.op_library import Case, OpLibrary, cases_of, random_run

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler on the host")
MASTERS = ("int16", "int8", "nearest", "truncate")
REGIMES = ("zeros", "small", "large", "growing")


@cache
def network(name: str) -> QuantizedGraph:
    return OTHERS[name]() if name in OTHERS else quantized(name)


def compiled(name: str, master: str, **options) -> TrainStep:
    """All biases, some channels of every layer and all of the last."""
    qgraph = network(name)
    layers = weighted_layers(qgraph)
    ratios = {layer.name: 0.5 for layer in layers} | {layers[-1].name: 1.0}
    plan = UpdatePlan.from_ratios(qgraph, len(layers), ratios, criterion="random")
    return compile_training(qgraph, plan, num_classes=9, optimizer=SGD(0.02, master=master), **options)


def large_image() -> QuantizedGraph:
    """More pixels than products fit 32 bits for, so that sums are taken in parts and shifted."""
    net = Network("large", (30, 22, 3), 0)
    net.linear(net.reshape(net.mean(net.depthwise(net.conv("x", 5, 3))), 5), 4)
    return net.graph()


def many_channels() -> QuantizedGraph:
    """More output channels than a panel holds, over few pixels."""
    net = Network("wide", (3, 2, 6), 0)
    net.linear(net.reshape(net.mean(net.conv(net.conv(net.conv("x", 5), 90, 2), 131)), 131), 4)
    return net.graph()


OTHERS = {"large": large_image, "wide": many_channels}


@cache
def everything() -> tuple[Case, ...]:
    """Operations of all networks; masters and the order of steps take turns."""
    steps = [(f"{name}, {MASTERS[i % 4]}", compiled(name, MASTERS[i % 4])) for i, name in enumerate((*CASES, *OTHERS))]
    for master in MASTERS:
        steps.append((f"kept gradients, {master}", compiled("residual", master, reorder=False)))
    for master in ("int8", "int16"):
        steps.append((f"large, kept gradients, {master}", compiled("large", master, reorder=False)))
    return tuple(case for number, (label, step) in enumerate(steps) for case in cases_of(label, step.program, number))


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> OpLibrary:
    return OpLibrary(tmp_path_factory.mktemp("ops"), list(everything()))


def test_there_is_a_case_of_every_kernel() -> None:
    assert {type(case.op) for case in everything()} == set(_RULES)
    panels = [case for case in everything() if case.call.function == "ll_train_conv_dx"]
    assert {case.call.scratch_bytes < _whole_panel_bytes(case.op.layer) for case in panels} == {False, True}
    assert any(op.sum_shift for op in (case.op for case in everything()) if isinstance(op, t.ConvWeightStep))


def _whole_panel_bytes(layer: t.Layer) -> int:
    return 16 * prod(layer.kernel) * -(-(layer.output_shape[2] // layer.groups) // 2)


@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("kind", sorted(kind.__name__ for kind in _RULES))
def test_kernels_give_the_interpreters_bits(kind: str, regime: str, library: OpLibrary) -> None:
    rng = np.random.default_rng(len(kind))
    for case in everything():
        if type(case.op).__name__ == kind:
            run = random_run(case, rng, regime)
            library.check(case, run)
            if case.is_in_place():
                library.check(case, run, in_place=True)

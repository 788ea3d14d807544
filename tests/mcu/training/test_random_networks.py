"""Random networks with random plans: every pass and the arena give the interpreter's bytes, or a gradient rule is missing and named.

How deep rules reach is asked of the published simulation, which shares no code with ours: both train the same layers.
"""

from pathlib import Path

import numpy as np
import pytest

from lilliput.errors import UnsupportedOpError
from lilliput.mcu.training import interpreter
from lilliput.mcu.training.float_mode import deepest
from lilliput.mcu.training.host_library import HostModel
from lilliput.mcu.training.optimizer import SGD, Master
from lilliput.mcu.training.planning import place
from lilliput.mcu.training.train_step import compile_training
from lilliput.mcu.training.update_plan import UpdatePlan, weighted_layers
from lilliput.quantize.qgraph import QuantizedGraph
from mcu.networks import Network, random_network
from mcu.training import arena_run
from mcu.training.test_passes import after_each_pass


def with_head(seed: int) -> QuantizedGraph:
    """A random network of every kind of operation, its last image pooled and classified."""
    body = random_network(seed)
    net = Network(body.name, body.tensors[body.input].shape, seed)
    net.ops, net.tensors = list(body.ops), dict(body.tensors)
    x = next(op.name for op in reversed(body.ops) if len(body.tensors[op.name].shape) == 3)
    features = net.shape(x)[2]
    net.linear(net.reshape(net.mean(net.conv(x, features)), features), 3)
    needed = {net.ops[-1].name}
    for op in reversed(net.ops):  # no branch that leads elsewhere
        needed |= set(op.inputs) if op.name in needed else set()
    net.ops = [op for op in net.ops if op.name in needed]
    net.tensors = {name: tensor for name, tensor in net.tensors.items() if name in needed}
    return net.graph()


@pytest.mark.parametrize("seed", range(24))
def test_all_ways_to_run_a_step_agree(seed: int) -> None:
    qgraph = with_head(seed)
    rng = np.random.default_rng(seed)
    layers = weighted_layers(qgraph)
    depth = int(rng.integers(1, len(layers) + 1))
    possible = deepest(qgraph)
    optimizer = SGD(0.01, master=("int16", "int8")[seed % 2])
    if depth > possible:
        with pytest.raises(UnsupportedOpError, match="no gradient rule for"):
            after_each_pass(qgraph, UpdatePlan(depth), optimizer)
        depth = possible
    within = [op.name for op in layers[len(layers) - depth :]]
    chosen = rng.choice(within, int(rng.integers(0, depth + 1)), replace=False)
    plan = UpdatePlan.from_ratios(qgraph, depth, {name: float(rng.choice([0.3, 0.6, 1])) for name in chosen})
    programs = after_each_pass(qgraph, plan, optimizer)
    placement = place(programs["fusion"])
    states = {name: interpreter.State.start(program) for name, program in programs.items()}
    states["arena"] = interpreter.State.start(placement.program)
    for label in range(2):
        codes = rng.integers(-128, 128, placement.program.buffers[placement.program.input].shape, dtype=np.int8)
        for name, program in programs.items():
            interpreter.train_step(program, states[name], codes, label, 2**15)
        arena_run.train_step(placement, states["arena"], codes, label, 2**15)
    assert len({state.digest for state in states.values()}) == 1
    assert states["arena"].digest != interpreter.State.start(placement.program).digest


@pytest.mark.parametrize(("seed", "master"), [(3, "int16"), (9, "int8"), (14, "nearest"), (22, "truncate")])
def test_the_emitted_c_agrees_on_the_host(seed: int, master: Master, tmp_path: Path) -> None:
    qgraph = with_head(seed)
    rng = np.random.default_rng(seed)
    layers = weighted_layers(qgraph)
    depth = deepest(qgraph)
    ratios = {op.name: float(rng.choice([0.3, 0.6, 1])) for op in layers[len(layers) - depth :]}
    plan = UpdatePlan.from_ratios(qgraph, depth, ratios)
    step = compile_training(qgraph, plan, num_classes=3, optimizer=SGD(0.01, master=master))
    x = rng.integers(-128, 128, (10, *qgraph.tensors[qgraph.input].shape), dtype=np.int8)
    y = rng.integers(0, 3, 10)
    log = step.simulate(x, y)
    model = HostModel(step.emit_c(tmp_path / "project"))
    losses = [model.train_step(sample, int(label)) for sample, label in zip(x, y, strict=True)]
    assert losses == log.losses_q16.tolist()
    assert model.state.digest == log.weights_digest

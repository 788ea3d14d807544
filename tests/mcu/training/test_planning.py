"""Where buffers lie: proved apart, carried out on bytes, close to the bound, and what each pass saves."""

import statistics

import numpy as np
import pytest

from lilliput.mcu.arena import PackingError, verify_packing
from lilliput.mcu.training import graph as t
from lilliput.mcu.training import interpreter
from lilliput.mcu.training.cut import cut
from lilliput.mcu.training.forward import forward, new_head
from lilliput.mcu.training.optimizer import SGD
from lilliput.mcu.training.planning import ALIGNMENT, Placement, place
from lilliput.mcu.training.scratch import scratch_bytes
from lilliput.mcu.training.train_step import training_program
from lilliput.mcu.training.update_plan import UpdatePlan, weighted_layers
from lilliput.quantize.qgraph import QuantizedGraph
from mcu.networks import mobilenet_v2, resnet8, vww
from mcu.training import arena_run
from mcu.training.cases import CASES, quantized

OPTIMIZER = SGD(0.02)


def random_plan(qgraph: QuantizedGraph, rng: np.random.Generator) -> UpdatePlan:
    layers = weighted_layers(qgraph)
    depth = int(rng.integers(1, len(layers) + 1))
    names = [op.name for op in layers[len(layers) - depth :]]
    chosen = rng.choice(names, int(rng.integers(0, min(6, depth) + 1)), replace=False)
    return UpdatePlan.from_ratios(qgraph, depth, {name: float(rng.choice([0.125, 0.25, 0.5, 1])) for name in chosen})


def compiled(qgraph: QuantizedGraph, plan: UpdatePlan, *, reorder: bool = True) -> t.Program:
    spelled_out = forward(qgraph, cut(qgraph, plan), plan, OPTIMIZER, new_head(qgraph, 3))
    return training_program(spelled_out, OPTIMIZER, reorder=reorder)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("reorder", [True, False])
def test_a_step_on_the_arenas_bytes_is_the_interpreters(name: str, reorder: bool) -> None:
    qgraph = quantized(name)
    rng = np.random.default_rng(len(name))
    for plan in (UpdatePlan.full(qgraph), random_plan(qgraph, rng)):
        placement = place(compiled(qgraph, plan, reorder=reorder))
        program = placement.program
        states = [interpreter.State.start(program) for _ in range(2)]
        for label in range(3):
            codes = rng.integers(-128, 128, program.buffers[program.input].shape, dtype=np.int8)
            loss = arena_run.train_step(placement, states[0], codes, label, 2**15)
            assert loss == interpreter.train_step(program, states[1], codes, label, 2**15).loss_q16
        assert states[0].digest == states[1].digest


def test_a_buffer_moved_onto_another_is_noticed_both_ways() -> None:
    qgraph = quantized("residual")
    placement = place(compiled(qgraph, UpdatePlan.full(qgraph)))
    program = placement.program
    mask = next(name for name, buffer in program.buffers.items() if buffer.role == "mask")
    moved = dict(placement.offsets) | {mask: placement.offsets[program.input]}
    with pytest.raises(PackingError, match="share bytes"):
        verify_packing(placement.blocks, moved, placement.arena_bytes, alignment=ALIGNMENT)
    wrong = Placement(**{**vars(placement), "offsets": moved})
    codes = np.random.default_rng(0).integers(-128, 128, program.buffers[program.input].shape, dtype=np.int8)
    states = [interpreter.State.start(program) for _ in range(2)]
    arena_run.train_step(wrong, states[0], codes, 0, 2**15)
    interpreter.train_step(program, states[1], codes, 0, 2**15)
    assert states[0].digest != states[1].digest


def test_arenas_are_within_five_percent_of_the_bound() -> None:
    rng = np.random.default_rng(0)
    ratios = []
    for qgraph in (mobilenet_v2(96, 0.35), mobilenet_v2(64, 0.5), vww(), resnet8()):
        for _ in range(4):
            placement = place(compiled(qgraph, random_plan(qgraph, rng)))
            assert placement.arena_bytes >= placement.lower_bound_bytes == max(placement.live_bytes) or ALIGNMENT > 1
            ratios.append(placement.arena_bytes / placement.lower_bound_bytes)
    assert statistics.mean(ratios) <= 1.05
    assert max(ratios) <= 1.15


def test_bringing_steps_forward_saves_most_of_the_memory() -> None:
    qgraph = mobilenet_v2(96, 0.35)
    layers = weighted_layers(qgraph)
    plan = UpdatePlan.from_ratios(qgraph, 20, {op.name: 1.0 for op in layers[-12::2]})
    at_once, late = (place(compiled(qgraph, plan, reorder=reorder)).arena_bytes for reorder in (True, False))
    assert late >= 1.5 * at_once


def test_working_in_place_saves_a_quarter_of_a_backward_pass_over_all_biases() -> None:
    for qgraph in (mobilenet_v2(96, 0.35), vww()):
        program = compiled(qgraph, UpdatePlan(len(weighted_layers(qgraph))))
        assert place(program, in_place=False).arena_bytes >= 1.25 * place(program).arena_bytes


def test_an_operation_takes_what_it_reads_and_makes() -> None:
    """No placing could do with less than one operation's own buffers: the bound counts them."""
    qgraph = quantized("fan-out of three")
    placement = place(compiled(qgraph, UpdatePlan.full(qgraph)))
    for op, live, host in zip(placement.program.ops, placement.live_bytes, placement.hosts, strict=True):
        names = {placement.storage[name] for name in (*op.inputs, *op.outputs)} - {op.outputs[0] if host else ""}
        own = sum(placement.program.buffers[name].bytes for name in names)
        assert live >= own + scratch_bytes(op, placement.program)
        offset = placement.scratch_offset(op)
        assert scratch_bytes(op, placement.program) == 0 or (offset is not None and offset % ALIGNMENT == 0)


def test_only_kernels_that_allow_it_write_over_what_they_read() -> None:
    """Elementwise ones, and depthwise convolutions plane by plane; a pointwise or 3x3 one still needs the pixels it would cover."""
    qgraph = mobilenet_v2(64, 0.35)
    placement = place(compiled(qgraph, UpdatePlan(len(weighted_layers(qgraph)))))
    over = [op for op, host in zip(placement.program.ops, placement.hosts, strict=True) if host is not None]
    kinds = {op.kind for op in over}
    assert kinds == {"conv", "conv_dx", "add", "mean", "mask_gradient", "scale_gradient", "add_gradients"}
    for op in over:
        if isinstance(op, (t.Conv, t.ConvInputGradient)):
            assert op.layer.is_depthwise
        made, read = (placement.program.buffers[name] for name in (op.outputs[0], op.inputs[0]))
        assert made.bytes <= read.bytes

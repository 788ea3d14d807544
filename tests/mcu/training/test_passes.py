"""Every pass leaves the trained bytes as they were, and the program's text says what it did."""

import re
from dataclasses import replace

import numpy as np
import pytest

from lilliput.errors import GraphError
from lilliput.mcu.training import graph as t
from lilliput.mcu.training.autodiff import autodiff
from lilliput.mcu.training.cut import cut
from lilliput.mcu.training.dead_code import remove_dead_code, with_ops
from lilliput.mcu.training.forward import forward, new_head
from lilliput.mcu.training.fusion import fuse
from lilliput.mcu.training.interpreter import State, train_step
from lilliput.mcu.training.optimizer import SGD
from lilliput.mcu.training.reorder import reorder
from lilliput.mcu.training.update_plan import UpdatePlan, weighted_layers
from lilliput.mcu.training.verify import verify
from lilliput.quantize.qgraph import QuantizedGraph
from mcu.networks import Network
from mcu.training.cases import CASES, quantized


def after_each_pass(qgraph: QuantizedGraph, plan: UpdatePlan, optimizer: SGD) -> dict[str, t.Program]:
    part = cut(qgraph, plan)
    spelled_out = autodiff(forward(qgraph, part, plan, optimizer, new_head(qgraph, 3)), optimizer)
    needed = remove_dead_code(spelled_out)
    ordered = reorder(needed)
    return {
        "autodiff": spelled_out,
        "dead code": needed,
        "reorder": ordered,
        "fusion": fuse(ordered),
        "fusion alone": fuse(needed),
    }


def random_codes(program: t.Program, count: int) -> np.ndarray:
    shape = program.buffers[program.input].shape
    return np.random.default_rng(3).integers(-128, 128, (count, *shape), dtype=np.int8)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("master", ["int16", "int8"])
def test_every_pass_gives_the_same_trained_bytes(name: str, master: str) -> None:
    qgraph = quantized(name)
    layers = weighted_layers(qgraph)
    plan = UpdatePlan.from_ratios(qgraph, len(layers), {layers[-1].name: 1.0, layers[0].name: 0.4})
    digests = {}
    for done, program in after_each_pass(qgraph, plan, SGD(0.02, master=master)).items():
        verify(program)
        state = State.start(program)
        losses = [
            train_step(program, state, x, label % 3, 2**15).loss_q16 for label, x in enumerate(random_codes(program, 4))
        ]
        digests[done] = (state.digest, state.random, losses)
    assert len(set(map(str, digests.values()))) == 1
    assert state.digest != State.start(program).digest


def test_the_program_of_a_residual_block_after_all_passes() -> None:
    net = Network("block", (4, 4, 3), 0)
    x = net.conv("x", 8, 3)
    inner = net.conv(net.depthwise(net.conv(x, 16)), 8)
    net.linear(net.reshape(net.mean(net.add(x, inner)), 8), 4)
    qgraph = net.graph()
    plan = UpdatePlan.from_ratios(qgraph, 3, {"t1": 0.5, "t3": 1.0})
    programs = after_each_pass(qgraph, plan, SGD(0.001))
    assert re.sub(r" unit=\S+", "", str(programs["fusion"])) == (
        """\
training program block: 24 operations, 604 bytes trained
parameter t1.weight: int16[64]
parameter t1.bias: int32[16]
parameter t2.bias: int32[16]
parameter t3.weight: int16[128]
parameter t3.bias: int32[8]
parameter t7.weight: int16[24]
parameter t7.bias: int32[3]
input t0: int8[4, 4, 8]
keep(t0) -> t1.kept: int8[4, 4, 4]
conv(t0, t1.weight, t1.bias) -> t1: int8[4, 4, 16]; t1.mask: bit[4, 4, 16]
conv(t1, t2.bias) -> t2: int8[4, 4, 16]; t2.mask: bit[4, 4, 16]
conv(t2, t3.weight, t3.bias) -> t3: int8[4, 4, 8]; t3.mask: bit[4, 4, 8]
add(t0, t3) -> t4: int8[4, 4, 8]; t4.mask: bit[4, 4, 8]
mean(t4) -> t5: int8[1, 1, 8]; t5.mask: bit[1, 1, 8]
infer(t5) -> t6: int8[8]
conv_sum(t6, t7.weight, t7.bias) -> t7.logits: int32[1, 1, 3]
loss(t7.logits) -> d.t7.logits: int16[1, 1, 3]
bias_gradient_step(d.t7.logits) -> t7.bias moved
conv_dx(d.t7.logits, t7.weight) -> d.t6: int16[8]
conv_dw_step(d.t7.logits, t6) -> t7.weight moved
mask_gradient(d.t6, t5.mask) -> d.t5.masked: int16[1, 1, 8]
mask_gradient(d.t5.masked, t4.mask) -> d.t4.masked: int16[4, 4, 8]
scale_gradient(d.t4.masked, t3.mask, bits=15) -> d.t3.sum: int16[4, 4, 8]
bias_gradient_step(d.t3.sum) -> t3.bias moved
conv_dx(d.t3.sum, t3.weight) -> d.t2: int16[4, 4, 16]
conv_dw_step(d.t3.sum, t2) -> t3.weight moved
scale_gradient(d.t2, t2.mask, bits=15) -> d.t2.sum: int16[4, 4, 16]
bias_gradient_step(d.t2.sum) -> t2.bias moved
conv_dx(d.t2.sum) -> d.t1: int16[4, 4, 16]
scale_gradient(d.t1, t1.mask, bits=15) -> d.t1.sum: int16[4, 4, 16]
bias_gradient_step(d.t1.sum) -> t1.bias moved
conv_dw_step(d.t1.sum, t1.kept) -> t1.weight moved"""
    )
    kinds = {done: [op.kind for op in program.ops] for done, program in programs.items()}
    # dead: the gradient of the block's input, which no step asks for, and its sum with the skip connection's
    assert kinds["autodiff"].count("conv_dx") == 4
    assert kinds["dead code"].count("conv_dx") == 3
    assert "add_gradients" in kinds["autodiff"]
    assert "add_gradients" not in kinds["dead code"]
    # spelled out, steps come last
    assert set(kinds["dead code"][-7:]) == {"bias_step", "weight_step"}
    assert not {"bias_step", "weight_step"} & set(kinds["fusion"])
    assert kinds["fusion alone"].count("weight_step") == 3


def test_with_nothing_trained_above_the_head_all_runs_on_inferences_kernels() -> None:
    qgraph = quantized("residual")
    plan = UpdatePlan(1)  # the last layer of the inner branch: the skip connection crosses it
    program = after_each_pass(qgraph, plan, SGD(0.01))["fusion"]
    trained = [op.kind for op in program.ops if isinstance(op, t.Conv)]
    frozen = [type(op.qop).__name__ for op in program.ops if isinstance(op, t.Infer)]
    assert len(trained) == 1
    assert frozen[:1] == ["Conv2d"]


class TestVerifier:
    """Each rule, broken."""

    @pytest.fixture
    def program(self) -> t.Program:
        qgraph = quantized("pointwise")
        return after_each_pass(qgraph, UpdatePlan.full(qgraph), SGD(0.01))["fusion"]

    def test_reading_before_making(self, program: t.Program) -> None:
        with pytest.raises(GraphError, match="before it is made"):
            verify(with_ops(program, program.ops[1:]))

    def test_making_twice(self, program: t.Program) -> None:
        with pytest.raises(GraphError, match="twice"):
            verify(with_ops(program, (program.ops[0], *program.ops)))

    def test_moving_weights_before_their_last_reader(self, program: t.Program) -> None:
        ops = list(program.ops)
        step = next(i for i, op in enumerate(ops) if isinstance(op, t.ConvWeightStep))
        reader = next(
            i for i, op in enumerate(ops) if isinstance(op, t.ConvInputGradient) and op.uses == ops[step].updates
        )
        assert reader < step
        ops.insert(reader, ops.pop(step))
        with pytest.raises(GraphError, match="after .* has moved it"):
            verify(with_ops(program, tuple(ops)))

    def test_leaving_a_parameter_unmoved(self, program: t.Program) -> None:
        with pytest.raises(GraphError, match="never moves"):
            verify(with_ops(program, program.ops[:-1]))

    def test_two_losses(self, program: t.Program) -> None:
        loss = next(op for op in program.ops if isinstance(op, t.Loss))
        ops = tuple(op for op in program.ops if op is not loss)
        with pytest.raises(GraphError, match="before it is made|one loss"):
            verify(with_ops(program, ops))

    def test_wrong_roles_and_sizes(self, program: t.Program) -> None:
        swapped = [
            replace(op, inputs=op.inputs[::-1]) if isinstance(op, t.ConvWeightStep) else op for op in program.ops
        ]
        with pytest.raises(GraphError, match="takes"):
            verify(with_ops(program, tuple(swapped)))
        shrunk = {
            name: replace(buffer, shape=(1,)) if buffer.role == "gradient" else buffer
            for name, buffer in program.buffers.items()
        }
        with pytest.raises(GraphError, match="reads|adds|its layer|is \\["):
            verify(replace(program, buffers=shrunk))

"""Compile a training step: an integer network and a choice of what to train become a program with every byte placed.

The passes, in order: ``cut`` the frozen prefix off; spell the suffix out (``forward``); gradients of everything (``autodiff``); drop what
no step needs (``dead_code``); steps brought forward (``reorder``), which must come before ``fusion`` because a step fuses only with a
gradient it directly follows; then places (``in_place``, ``planning``). The prefix is planned as inference is, by rows or patches where
memory asks for it. After each pass the interpreter gives the same trained bytes.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int8, Int64

from lilliput.errors import BudgetError, ConfigError, DataError
from lilliput.evidence.budget import Budget
from lilliput.mcu.plan import DEFAULT_STACK_BYTES, Plan, plan
from lilliput.mcu.tiling import Schedule
from lilliput.mcu.training import graph as t
from lilliput.mcu.training import interpreter
from lilliput.mcu.training.arithmetic import RATE_ONE
from lilliput.mcu.training.autodiff import autodiff
from lilliput.mcu.training.cut import cut
from lilliput.mcu.training.dead_code import remove_dead_code
from lilliput.mcu.training.footprint import state_bytes
from lilliput.mcu.training.forward import forward, head_with_one_scale, new_head
from lilliput.mcu.training.fusion import fuse
from lilliput.mcu.training.interpreter import State
from lilliput.mcu.training.memory_report import MemoryReport, memory_report
from lilliput.mcu.training.optimizer import SGD
from lilliput.mcu.training.planning import Placement, place
from lilliput.mcu.training.refusal import too_much_flash, too_much_sram
from lilliput.mcu.training.reorder import reorder as bring_steps_forward
from lilliput.mcu.training.update_plan import UpdatePlan
from lilliput.mcu.training.verify import verify
from lilliput.quantize.qgraph import Conv2d, Linear, QOp, QuantizedGraph

if TYPE_CHECKING:
    from lilliput.mcu.training.firmware import TrainFirmware

LOSSES = ("cross_entropy",)


@dataclass(frozen=True, eq=False)
class TrainingLog:
    """What a simulation saw and where it ended."""

    losses_q16: Int64[np.ndarray, " steps"]
    """Of each sample before its step, in nats times 2**16: the integers that the device returns."""
    predictions: Int64[np.ndarray, " steps"]
    """The largest logit of each sample before its step."""
    state: State

    @property
    def losses(self) -> np.ndarray:
        """In nats."""
        return self.losses_q16 / 2**16

    @property
    def weights_digest(self) -> str:
        """SHA-256 of all trained tensors; the firmware's is the same."""
        return self.state.digest


@dataclass(frozen=True, eq=False)
class TrainStep:
    """A compiled training step. Made by :func:`compile_training`."""

    qgraph: QuantizedGraph
    update: UpdatePlan
    optimizer: SGD
    program: t.Program
    """What runs after the frozen prefix."""
    placement: Placement
    prefix: Plan | None
    """The frozen part, planned; ``None`` where training begins with the first layer."""
    stack_bytes: int
    sram_bytes_limit: int | None = None
    flash_bytes_limit: int | None = None

    @property
    def num_classes(self) -> int:
        """Of the head."""
        return self.program.buffers[self.program.logits].elements

    @property
    def sram_bytes(self) -> int:
        """Arena, trained parameters, state and the stack set aside."""
        return self.memory_report().sram_bytes

    def memory_report(self) -> MemoryReport:
        """Bytes of everything, and what binds."""
        return memory_report(self)

    def start(self) -> State:
        """The trained tensors as the firmware begins with them."""
        return State.start(self.program)

    def simulate(
        self,
        x: Any,
        y: Any,
        *,
        epochs: int = 1,
        rates: Any = RATE_ONE,
        state: State | None = None,
    ) -> TrainingLog:
        """Train on samples one after the other, in the integers of the device; the result is bit for bit the firmware's.

        Args:
            x: samples, as :meth:`QuantizedGraph.run` takes them: int8 codes channels last, or floats channels first.
            y: their labels, 0 to ``num_classes - 1``.
            epochs: how often to go through them, always in the order given.
            rates: factor of the learning rate, an integer 0 to 2**15: one for all steps, or one for each (``rate.warmup_cosine``).
            state: to go on from; left as it is. The start if None.
        Raises:
            DataError: wrong shape or dtype, NaN or infinite values, a label that is no class.
            ConfigError: a rate out of range, or not one for each step.
        """
        codes = self.cut_codes(x)
        labels = self._labels(y, len(codes))
        steps = epochs * len(codes)
        factors = _rates(rates, steps)
        state = self.start() if state is None else state.copy()
        losses, predictions = np.zeros(steps, dtype=np.int64), np.zeros(steps, dtype=np.int64)
        for step in range(steps):
            index = step % len(codes)
            run = interpreter.train_step(self.program, state, codes[index], int(labels[index]), int(factors[step]))
            losses[step] = run.loss_q16
            predictions[step] = int(run.values[self.program.logits].argmax())
        return TrainingLog(losses, predictions, state)

    def logits(self, x: Any, state: State | None = None) -> Int64[np.ndarray, "batch classes"]:
        """The head's sums, int32 on the device, for a batch; :meth:`simulate` says what ``x`` may be."""
        state = self.start() if state is None else state
        network, head = self.network(state), self.program.head
        features = network.run(self._codes(x))
        assert isinstance(features, np.ndarray)
        centred = features.reshape(len(features), -1).astype(np.int64) - head.input_zero_point
        weights = interpreter.weights(head, state).reshape(self.num_classes, -1).astype(np.int64)
        return centred @ weights.T + interpreter.biases(head, self.program, state)

    def predict(self, x: Any, state: State | None = None) -> Int64[np.ndarray, " batch"]:
        """The class with the largest logit, the first of equals."""
        return self.logits(x, state).argmax(axis=1)

    def network(self, state: State) -> QuantizedGraph:
        """The network as it is now, from the image to the features that the head reads: for inference on many samples at once."""
        head = self.program.head
        ops = self.qgraph.ops[: next(index for index, op in enumerate(self.qgraph.ops) if op.name == head.name)]
        now: list[QOp] = []
        for op in ops:
            layer = self.program.layers.get(op.name)
            if isinstance(op, (Conv2d, Linear)) and layer is not None:
                bias = interpreter.biases(layer, self.program, state)
                op = replace(op, weight=interpreter.weights(layer, state).reshape(op.weight.shape), bias=bias)
            now.append(op)
        names = {self.qgraph.input, *(op.name for op in now)}
        tensors = {name: tensor for name, tensor in self.qgraph.tensors.items() if name in names}
        return QuantizedGraph(self.qgraph.name, self.qgraph.input, head.qop.inputs, tensors, tuple(now))

    def cut_codes(self, x: Any) -> Int8[np.ndarray, "batch ..."]:
        """What the frozen prefix makes of a batch."""
        codes = self._codes(x)
        if self.prefix is None:
            return codes
        result = self.prefix.whole.run(codes)
        assert isinstance(result, np.ndarray)
        return result

    def _codes(self, x: Any) -> Int8[np.ndarray, "batch ..."]:
        values = np.asarray(x.detach().cpu() if hasattr(x, "detach") else x)
        codes = values if values.dtype == np.int8 else self.qgraph.quantize_input(values)
        shape = self.qgraph.tensors[self.qgraph.input].shape
        if codes.shape[1:] != shape or len(codes) == 0:
            raise DataError(
                f"training '{self.qgraph.name}': int8 samples have shape {list(codes.shape)}; must be "
                f"(batch, {', '.join(map(str, shape))}), channels last, at least one"
            )
        return codes

    def emit_c(
        self,
        directory: str | os.PathLike[str],
        target: str = "cortex-m7",
        x: Int8[np.ndarray, "n ..."] | None = None,
        y: Int64[np.ndarray, " n"] | None = None,
    ) -> TrainFirmware:
        """Write a self-contained C99 project; see :func:`lilliput.mcu.training.codegen.emit_c`."""
        from lilliput.mcu.training.codegen import emit_c

        return emit_c(self, directory, target, x, y)

    def _labels(self, y: Any, count: int) -> Int64[np.ndarray, " batch"]:
        labels = np.asarray(y.detach().cpu() if hasattr(y, "detach") else y)
        if labels.shape != (count,) or labels.dtype.kind not in "iu":
            raise DataError(
                f"{count} samples need {count} whole labels; got shape {list(labels.shape)}, {labels.dtype}"
            )
        outside = labels[(labels < 0) | (labels >= self.num_classes)]
        if len(outside):
            raise DataError(
                f"label {outside[0]}: must be 0 to {self.num_classes - 1}; compile with num_classes={labels.max() + 1}"
            )
        return labels.astype(np.int64)


def compile_training(
    qgraph: QuantizedGraph,
    update: UpdatePlan,
    *,
    loss: str = "cross_entropy",
    num_classes: int | None = None,
    optimizer: SGD,
    sram: str | int | None = None,
    flash: str | int | None = None,
    input: str = "resident",
    schedule: str | Schedule = "auto",
    in_place: bool = True,
    reorder: bool = True,
    stack_bytes: int = DEFAULT_STACK_BYTES,
    seed: int = 0,
) -> TrainStep:
    """Compile one step of training on one sample.

    Args:
        qgraph: an int8 network that ends in a linear layer.
        update: what is trained besides that layer.
        loss: ``"cross_entropy"``, of a softmax.
        num_classes: a new last layer for so many classes; None trains the network's own.
        optimizer: learning rate, scaling, and how masters are kept.
        sram: most bytes for arena, trained parameters, state and stack, as ``"256KB"`` or a number; no limit if None.
        flash: most bytes for constants.
        input: ``"resident"`` or ``"stream"``, of the frozen prefix; see :func:`lilliput.mcu.plan.plan`.
        schedule: of the frozen prefix: ``"auto"``, ``"whole"``, ``"smallest"``, or patches or rows.
        in_place: let results be written over operands that nobody needs any more.
        reorder: bring steps forward; without it all weight gradients are kept to the end, for measuring what that costs.
        stack_bytes: to set aside.
        seed: of a new last layer's weights.
    Raises:
        BudgetError: it does not fit; names the bound, the operation that binds, and what would fit.
        UnsupportedOpError: no linear layer at the end, or an operation without a gradient rule on the way to a trained layer.
        ConfigError: an option out of range, or a plan that is not one for this network.
        GraphError: a layer whose sums could leave 32 bits once its weights have moved.
    """
    if loss not in LOSSES:
        raise ConfigError(f"loss='{loss}': must be {' or '.join(map(repr, LOSSES))}")
    sram_limit = None if sram is None else Budget.parse(sram)
    flash_limit = None if flash is None else Budget.parse(flash)
    compilation = Compilation(optimizer, num_classes, input, in_place, reorder, stack_bytes, seed)
    try:
        step = compilation.step(qgraph, update, schedule, sram_limit)
    except BudgetError:  # no schedule of the prefix is within what the rest leaves: say what the smallest needs
        step = compilation.step(qgraph, update, "smallest", None)
    report = step.memory_report()
    if sram_limit is not None and report.sram_bytes > sram_limit:
        raise BudgetError(too_much_sram(step, report, sram_limit, schedule, compilation))
    if flash_limit is not None and report.flash_bytes > flash_limit:
        raise BudgetError(too_much_flash(step, report, flash_limit))
    return replace(step, sram_bytes_limit=sram_limit, flash_bytes_limit=flash_limit)


@dataclass(frozen=True)
class Compilation:
    """What all steps that are tried for one request have in common."""

    optimizer: SGD
    num_classes: int | None
    input: str
    in_place: bool
    reorder: bool
    stack_bytes: int
    seed: int

    def step(
        self, qgraph: QuantizedGraph, update: UpdatePlan, schedule: str | Schedule, sram_limit: int | None
    ) -> TrainStep:
        """A step for this network and plan.

        Raises:
            BudgetError: the schedule is ``"auto"`` and none of the prefix leaves enough of the limit for the rest. Other schedules are not
                held to it.
        """
        part = cut(qgraph, update)
        head = head_with_one_scale(qgraph)
        if self.num_classes is not None:
            head = new_head(qgraph, self.num_classes, self.seed)
        spelled_out = forward(qgraph, part, update, self.optimizer, head)
        program = training_program(spelled_out, self.optimizer, reorder=self.reorder)
        placement = place(program, in_place=self.in_place)
        prefix = None
        if part.prefix is not None:
            planned = partial(plan, part.prefix, input=self.input, in_place=self.in_place, stack_bytes=0)
            if sram_limit is None or schedule != "auto":
                prefix = planned(schedule=schedule)
            else:
                rest = program.parameter_bytes + state_bytes(program) + self.stack_bytes
                prefix = replace(planned(sram=max(1, sram_limit - rest)), sram_bytes_limit=None)
        return TrainStep(qgraph, update, self.optimizer, program, placement, prefix, self.stack_bytes)


def training_program(spelled_out: t.Program, optimizer: SGD, *, reorder: bool = True) -> t.Program:
    """All passes over a forward program, each result verified."""
    program = remove_dead_code(autodiff(spelled_out, optimizer))
    verify(program)
    if reorder:
        program = bring_steps_forward(program)
        verify(program)
    program = fuse(program)
    verify(program)
    return program


def _rates(rates: Any, steps: int) -> Int64[np.ndarray, " steps"]:
    factors = np.asarray(rates)
    if factors.dtype.kind not in "iu" or factors.shape not in ((), (steps,)):
        raise ConfigError(
            f"rates of shape {list(factors.shape)}, {factors.dtype}: must be one integer, or one for each of {steps} steps"
        )
    if factors.size and (factors.min() < 0 or factors.max() > RATE_ONE):
        raise ConfigError(
            f"rates from {factors.min()} to {factors.max()}: must be 0 to {RATE_ONE}, which is the whole learning rate"
        )
    return np.broadcast_to(factors, (steps,)).astype(np.int64)

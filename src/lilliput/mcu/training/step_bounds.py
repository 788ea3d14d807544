"""Lower bounds of a training step's memory that add up over the choice of what is trained: what the exact search stands on.

For a bias depth, the step without any trained weight is compiled and the bytes alive at each of its operations are read off. Training a
layer's weights adds, whatever the planner does:

- its master, everywhere: trained parameters are in memory throughout;
- what its weight gradient waits for, from the layer's forward pass to its input gradient: the selected input channels, or the whole input,
  which then lives on after its last reader of the forward pass (and counts once if another layer waits for it too);
- the gradient of the layer's sums beside that of its input, where one would have been written over the other, and what the weight
  gradient's kernel works in: where it runs right after the input gradient's it finds the same bytes alive.

A planner can need more (buffers that can no longer lie on others, gaps between them), never less. The tests hold this against the planner.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np
from jaxtyping import Int64

from lilliput.mcu.plan import DEFAULT_STACK_BYTES, Plan
from lilliput.mcu.plan import plan as plan_inference
from lilliput.mcu.training import graph as t
from lilliput.mcu.training.cut import Cut, cut
from lilliput.mcu.training.footprint import flash_bytes, state_bytes
from lilliput.mcu.training.forward import forward, head_with_one_scale, new_head
from lilliput.mcu.training.memory_report import MemoryReport, memory_report
from lilliput.mcu.training.optimizer import SGD
from lilliput.mcu.training.planning import Placement, place
from lilliput.mcu.training.scratch import scratch_bytes, weight_step_scratch_bytes
from lilliput.mcu.training.train_step import TrainStep, training_program
from lilliput.mcu.training.update_plan import UpdatePlan, input_channels, weights_per_channel
from lilliput.quantize.qgraph import Conv2d, Linear, QuantizedGraph

FLASH, PREFIX, FIRST_OPERATION = 0, 1, 2
"""Points of bounds: flash, SRAM while the frozen prefix runs, SRAM during each operation of the training program."""


@dataclass(frozen=True, eq=False)
class DepthBounds:
    """Bytes of steps of one bias depth, at each point."""

    bytes: Int64[np.ndarray, " point"]
    """At least so many without trained weights."""
    placement: Placement
    prefix_bytes: int
    """The part of the second point's bytes that is the frozen prefix."""
    master: str
    """How trained weights are kept; see ``SGD``."""

    @property
    def between(self) -> str:
        """The tensor at which the network is cut."""
        return self.placement.program.input

    def added(self, op: Conv2d | Linear, channels: tuple[int, ...]) -> Int64[np.ndarray, " point"]:
        """Bytes that training so many input channels of a layer adds at least at each point."""
        program = self.placement.program
        weights = len(channels) * weights_per_channel(op)
        is_partial = len(channels) < input_channels(op)
        added = np.full(len(self.bytes), weights * (2 if self.master == "int16" else 1), dtype=np.int64)
        # Frozen weights stay in flash with gaps, and the trained ones' start lies beside them; all of them are there only once.
        added[FLASH] = weights + 2 * len(channels) if is_partial else 0
        start, stop = self._waiting(op, is_partial)
        pixels = prod(program.buffers[op.inputs[0]].shape[:-1])
        added[FIRST_OPERATION + start : FIRST_OPERATION + stop] += pixels * len(channels)
        added[FIRST_OPERATION + self._last(op)] += self._stepping_bytes(op)
        return added

    def _stepping_bytes(self, op: Conv2d | Linear) -> int:
        """What the weight step adds to the operation it follows: the layer's input gradient, or its bias step where there is none."""
        index = self._last(op)
        before = self.placement.program.ops[index]
        apart = self.placement.hosts[index] is not None and isinstance(before, t.ConvInputGradient)
        made = self.placement.program.buffers[before.outputs[0]].bytes if apart else 0
        if any(isinstance(each, t.AddGradients) for each in self.placement.program.ops[index + 1 : index + 2]):
            return made  # the sum of a skip connection's gradients comes between, and frees one of them
        scratch = weight_step_scratch_bytes(self.placement.program.layers[op.name], self.master)
        return made + max(0, scratch - scratch_bytes(before, self.placement.program))

    def _last(self, op: Conv2d | Linear) -> int:
        """Index of the layer's last operation in a step that trains its bias alone."""
        kinds = (t.BiasGradientStep, t.ConvInputGradient)
        ops = self.placement.program.ops
        return max(i for i, each in enumerate(ops) if isinstance(each, kinds) and each.layer.name == op.name)

    def _waiting(self, op: Conv2d | Linear, is_partial: bool) -> tuple[int, int]:
        """First operation, and the one after the last, during which the kept input is surely alive beside what is anyway."""
        ops, storage = self.placement.program.ops, self.placement.storage
        loss = next(index for index, each in enumerate(ops) if isinstance(each, t.Loss))
        runs = next(index for index, each in enumerate(ops) if isinstance(each, t.Conv) and each.layer.name == op.name)
        stop = self._last(op) + 1
        if is_partial:
            return runs, stop
        readers = [i for i, each in enumerate(ops) if storage[op.inputs[0]] in [storage[name] for name in each.inputs]]
        layers = [i for i in readers if i < loss and isinstance(ops[i], (t.Conv, t.ConvSum))]
        if layers[0] != runs or any(isinstance(ops[i], t.ConvSum) for i in layers):
            return stop, stop  # another layer, or the head, may be what keeps it
        return max(i for i in readers if i < loss) + 1, stop


class Steps:
    """Steps of one network compiled one way, for a search that asks for many: options as those of ``compile_training``.

    The frozen part is planned once for each place where the network is cut.
    """

    def __init__(
        self,
        qgraph: QuantizedGraph,
        optimizer: SGD,
        *,
        num_classes: int | None = None,
        input: str = "resident",
        stack_bytes: int = DEFAULT_STACK_BYTES,
    ) -> None:
        self.qgraph, self.optimizer = qgraph, optimizer
        self.input, self.stack_bytes = input, stack_bytes
        self._head = head_with_one_scale(qgraph) if num_classes is None else new_head(qgraph, num_classes)
        self._prefixes: dict[tuple[str, str], Plan] = {}

    def report(self, update: UpdatePlan, schedule: str) -> MemoryReport:
        """What the planner makes of a plan, the frozen part "whole" or in the "smallest" tiles found."""
        part, program = self._program(update)
        prefix = self._prefix(part, schedule)
        step = TrainStep(self.qgraph, update, self.optimizer, program, place(program), prefix, self.stack_bytes)
        return memory_report(step)

    def bounds(self, depth: int, schedule: str) -> DepthBounds:
        """Of steps that train the last so many biases, the frozen part "whole" or, for any other schedule, in tiles of any kind."""
        part, program = self._program(UpdatePlan(depth))
        placement = place(program)
        beside = program.parameter_bytes + state_bytes(program) + self.stack_bytes
        flash = flash_bytes(program) + (0 if part.prefix is None else part.prefix.constant_bytes)
        prefix_bytes = self._prefix_bound(part, schedule)
        sram = [prefix_bytes, *placement.live_bytes]
        return DepthBounds(
            np.array([flash, *(each + beside for each in sram)]), placement, prefix_bytes, self.optimizer.master
        )

    def _program(self, update: UpdatePlan) -> tuple[Cut, t.Program]:
        part = cut(self.qgraph, update)
        spelled_out = forward(self.qgraph, part, update, self.optimizer, self._head)
        return part, training_program(spelled_out, self.optimizer)

    def _prefix_bound(self, part: Cut, schedule: str) -> int:
        """In tiles nothing is sure but the result, and an image that has to be there at once."""
        if part.prefix is None:
            return 0
        if schedule == "whole":
            planned = self._prefix(part, schedule)
            assert planned is not None
            return planned.arena_bytes + planned.scratch_bytes
        image = part.prefix.tensors[part.prefix.input].bytes if self.input == "resident" else 0
        return max(image, part.prefix.tensors[part.between].bytes)

    def _prefix(self, part: Cut, schedule: str) -> Plan | None:
        if part.prefix is None:
            return None
        key = (part.between, schedule)
        if key not in self._prefixes:
            self._prefixes[key] = plan_inference(part.prefix, input=self.input, schedule=schedule, stack_bytes=0)
        return self._prefixes[key]

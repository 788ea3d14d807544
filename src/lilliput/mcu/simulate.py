"""A plan carried out on real bytes: what an error in it would do on the device, it does here.

Every byte of the arena starts as 0xA5, and turns into it again when its lifetime ends and where a step is about to write. So a buffer that
is moved, shared or dropped too early gives other output codes than the integer interpreter.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int8

from lilliput.errors import DataError
from lilliput.mcu.arena import Block, PackingError
from lilliput.mcu.views import first_byte
from lilliput.quantize.qgraph import Crop, Paste

if TYPE_CHECKING:
    from lilliput.mcu.plan import Plan, Step

POISON = 0xA5


def simulate(plan: Plan, x: Any) -> Int8[np.ndarray, "batch ..."] | tuple[Int8[np.ndarray, "batch ..."], ...]:
    """Output codes of a batch, one item after the other through one arena; as ``QuantizedGraph.run`` gives them."""
    graph = plan.qgraph
    values = np.asarray(x.detach().cpu() if hasattr(x, "detach") else x)
    codes = values if values.dtype == np.int8 else graph.quantize_input(values)
    shape = graph.tensors[graph.input].shape
    if codes.shape[1:] != shape or codes.ndim == 0:
        raise DataError(
            f"plan of '{graph.name}': int8 input has shape {list(codes.shape)}; must be "
            f"(batch, {', '.join(map(str, shape))}), channels last"
        )
    results: list[list[np.ndarray]] = [[] for _ in graph.outputs]
    for item in codes:
        arena = np.full(plan.arena_bytes, POISON, dtype=np.uint8)
        if not plan.streams_input:
            _tensor(plan, arena, graph.input)[...] = item
        for index, step in enumerate(plan.steps):
            _carry_out(plan, arena, index, step, item)
        for result, name in zip(results, graph.outputs, strict=True):
            result.append(_tensor(plan, arena, name).copy())
    stacked = tuple(
        np.stack(result) if result else np.zeros((0, *graph.tensors[name].shape), dtype=np.int8)
        for result, name in zip(results, graph.outputs, strict=True)
    )
    return stacked[0] if len(stacked) == 1 else stacked


def _tensor(plan: Plan, arena: np.ndarray, name: str) -> np.ndarray:
    """The tensor's bytes in the arena, in its shape: a view."""
    tensor = plan.qgraph.tensors[name]
    first = plan.offsets[name]
    return arena[first : first + tensor.bytes].view(np.int8).reshape(tensor.shape)


def written(step: Step, plan: Plan, whole: np.ndarray) -> np.ndarray:
    """The part of an array of the output's shape that the step writes: a view."""
    if step.paste is None:
        return whole
    height, width, _ = plan.qgraph.tensors[step.paste.inputs[0]].shape
    return whole[step.paste.top : step.paste.top + height, step.paste.left : step.paste.left + width]


def _carry_out(plan: Plan, arena: np.ndarray, index: int, step: Step, item: np.ndarray) -> None:
    from lilliput.quantize.interpreter import evaluate

    graph = plan.qgraph
    if not step.is_alias:
        if step.scratch_offset is not None:
            arena[step.scratch_offset : step.scratch_offset + step.scratch_bytes] = POISON
        output = _tensor(plan, arena, step.output)
        # A kernel may write before it has read all: what it may not overwrite is read after its output's place is poisoned.
        # A map that nothing has been pasted into yet holds nothing.
        place = output if step.base is None else written(step, plan, output)
        in_memory = () if plan.is_read(step) else step.inputs
        kept = {name: _tensor(plan, arena, name).copy() for name in in_memory if plan.is_overwritten(step, name)}
        place[...] = np.uint8(POISON).view(np.int8)
        read = {name: kept[name] if name in kept else _tensor(plan, arena, name).copy() for name in in_memory}
        if plan.is_read(step):
            read = {graph.input: item}
        if isinstance(step.op, Paste):
            result = read[step.inputs[0]][None]
        else:
            result = evaluate(step.op, [read[name][None] for name in step.op.inputs], graph)
        if step.fused_add is not None:
            values = {**{name: codes[None] for name, codes in read.items()}, step.op.name: result}
            result = evaluate(step.fused_add, [values[name] for name in step.fused_add.inputs], graph)
        written(step, plan, output)[...] = result[0]
    over = np.zeros(plan.arena_bytes, dtype=bool)
    for block in plan.blocks:
        if block.stop == index + 1:
            over[_place(plan, block)] = True
    for (
        block
    ) in plan.blocks:  # what begins now may lie on what ends: it is written, or reads its input there, in the next step
        if block.start == index + 1:
            over[_place(plan, block)] = False
    arena[over] = POISON


def _place(plan: Plan, block: Block) -> slice:
    first = plan.offsets[block.name]
    return slice(first, first + block.size_bytes)


def verify_ownership(plan: Plan) -> None:
    """Prove, whatever the values, that each step finds what it reads as it was written, by following who owns each byte of the arena.

    Uses the steps and the offsets alone, not the lifetimes from which the offsets came.

    Raises:
        PackingError: names the step and the tensor whose bytes another has taken, or that lies outside the arena.
    """
    graph = plan.qgraph
    for name, first in plan.offsets.items():
        end = first + graph.tensors[name].bytes
        if first < 0 or end > plan.arena_bytes:
            raise PackingError(f"tensor '{name}' at bytes {first} to {end}; must lie in 0 to {plan.arena_bytes}")
    arena = _Owners(plan)
    if not plan.streams_input:
        arena.take(graph.input, 0)
    for number, step in enumerate(plan.steps, start=1):
        inputs = () if plan.is_read(step) else step.inputs
        based = inputs if step.base is None else (*inputs, step.base)
        arena.require(based, f"step '{step.output}'")
        if step.is_alias:
            arena.rename(step)  # which proves that the output lies where the input does
        else:
            scratch = arena.take_scratch(step, number)
            arena.require(based, f"step '{step.output}', which has begun to use its scratch,")
            arena.take(step.output, number, step)
            kept = tuple(name for name in inputs if not plan.is_overwritten(step, name))
            arena.require(kept, f"step '{step.output}', which has begun to write,")
            if (scratch != -number).any():
                raise PackingError(f"step '{step.output}' writes its output over its scratch")
    arena.require(graph.outputs, "the caller")


class _Owners:
    """For each byte of the arena, which step wrote it last."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.owner = np.full(plan.arena_bytes, -1, dtype=np.int32)
        self.made_as: dict[str, np.ndarray] = {}
        """For each tensor that exists, the owners of its bytes when it was made."""
        ends = {name: first + plan.qgraph.tensors[name].bytes for name, first in plan.offsets.items()}
        self.place = {name: self.owner[first : ends[name]] for name, first in plan.offsets.items()}

    def take(self, name: str, number: int, step: Step | None = None) -> None:
        """Written by a step: all of it, or the part that is pasted; then the rest must be what it was pasted into."""
        place = self.place[name]
        if step is None or step.base is None:
            place[...] = number
        else:
            base = self.place[step.base]
            if self.plan.offsets[step.base] != self.plan.offsets[name] or base.size != place.size:
                raise PackingError(f"step '{name}' pastes into '{step.base}', which lies elsewhere")
            written(step, self.plan, place.reshape(self.plan.qgraph.tensors[name].shape))[...] = number
        self.made_as[name] = place.copy()

    def take_scratch(self, step: Step, number: int) -> np.ndarray:
        """The bytes of the step's working memory in the arena, marked as nobody's tensor."""
        first = 0 if step.scratch_offset is None else step.scratch_offset
        place = self.owner[first : first + (0 if step.scratch_offset is None else step.scratch_bytes)]
        if step.scratch_offset is not None and len(place) != step.scratch_bytes:
            raise PackingError(f"step '{step.output}': scratch at {first} does not lie in the arena")
        place[...] = -number
        return place

    def rename(self, step: Step) -> None:
        """Another name for bytes of the input, where they are."""
        graph, offsets, name = self.plan.qgraph, self.plan.offsets, step.inputs[0]
        start = 0
        if isinstance(step.op, Crop):
            start = first_byte(step.op.top, step.op.left, graph.tensors[name].shape)
        if offsets[step.output] != offsets[name] + start:
            raise PackingError(f"step '{step.output}' is a view of '{name}', but does not lie in it")
        self.made_as[step.output] = self.made_as[name][start : start + graph.tensors[step.output].bytes]

    def require(self, names: tuple[str, ...], reader: str) -> None:
        for name in names:
            if name not in self.made_as:
                raise PackingError(f"{reader} reads '{name}' before it is made")
            if (self.place[name] != self.made_as[name]).any():
                raise PackingError(f"{reader} reads '{name}', but other bytes have been written over it")

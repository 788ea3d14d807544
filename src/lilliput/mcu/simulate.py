"""A plan carried out on real bytes: what an error in it would do on the device, it does here.

Every byte of the arena starts as 0xA5, and turns into it again when its lifetime ends and where a step is about to write. So a buffer that
is moved, shared or dropped too early gives other output codes than the integer interpreter.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int8

from lilliput.errors import DataError
from lilliput.mcu.arena import PackingError

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
        _tensor(plan, arena, graph.input)[...] = item
        for index, step in enumerate(plan.steps):
            _carry_out(plan, arena, index, step)
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


def _carry_out(plan: Plan, arena: np.ndarray, index: int, step: Step) -> None:
    from lilliput.quantize.interpreter import evaluate

    if not step.is_alias:
        if step.scratch_offset is not None:
            arena[step.scratch_offset : step.scratch_offset + step.scratch_bytes] = POISON
        output = _tensor(plan, arena, step.output)
        # A kernel may write before it has read all: what it may not overwrite is read after its output's place is poisoned.
        kept = {name: _tensor(plan, arena, name).copy() for name in step.inputs if plan.is_overwritten(step, name)}
        output.view(np.uint8)[...] = POISON
        read = {name: kept[name] if name in kept else _tensor(plan, arena, name).copy() for name in step.inputs}
        result = evaluate(step.op, [read[name][None] for name in step.op.inputs], plan.qgraph)
        if step.fused_add is not None:
            values = {**{name: codes[None] for name, codes in read.items()}, step.op.name: result}
            result = evaluate(step.fused_add, [values[name] for name in step.fused_add.inputs], plan.qgraph)
        output[...] = result[0]
    ending = [block for block in plan.blocks if block.stop == index + 1]
    following = {plan.offsets[block.name]: block.size_bytes for block in plan.blocks if block.start == index + 1}
    for block in ending:
        first = plan.offsets[block.name]
        arena[first + following.get(first, 0) : first + block.size_bytes] = POISON


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
    arena.take(graph.input, 0)
    for number, step in enumerate(plan.steps, start=1):
        arena.require(step.inputs, f"step '{step.output}'")
        if step.is_alias:
            arena.rename(step.inputs[0], step.output)
            arena.require((step.output,), f"step '{step.output}'")  # so the output must lie where the input does
        else:
            scratch = arena.take_scratch(step, number)
            arena.require(step.inputs, f"step '{step.output}', which has begun to use its scratch,")
            arena.take(step.output, number)
            kept = tuple(name for name in step.inputs if not plan.is_overwritten(step, name))
            arena.require(kept, f"step '{step.output}', which has begun to write,")
            if (scratch != -number).any():
                raise PackingError(f"step '{step.output}' writes its output over its scratch")
    arena.require(graph.outputs, "the caller")


class _Owners:
    """For each byte of the arena, which step wrote it last."""

    def __init__(self, plan: Plan) -> None:
        self.owner = np.full(plan.arena_bytes, -1, dtype=np.int32)
        self.made_as: dict[str, int] = {}
        ends = {name: first + plan.qgraph.tensors[name].bytes for name, first in plan.offsets.items()}
        self.place = {name: self.owner[first : ends[name]] for name, first in plan.offsets.items()}

    def take(self, name: str, number: int) -> None:
        self.made_as[name] = number
        self.place[name][...] = number

    def take_scratch(self, step: Step, number: int) -> np.ndarray:
        """The bytes of the step's working memory in the arena, marked as nobody's tensor."""
        first = 0 if step.scratch_offset is None else step.scratch_offset
        place = self.owner[first : first + (0 if step.scratch_offset is None else step.scratch_bytes)]
        if step.scratch_offset is not None and len(place) != step.scratch_bytes:
            raise PackingError(f"step '{step.output}': scratch at {first} does not lie in the arena")
        place[...] = -number
        return place

    def rename(self, name: str, other: str) -> None:
        self.made_as[other] = self.made_as[name]

    def require(self, names: tuple[str, ...], reader: str) -> None:
        for name in names:
            if name not in self.made_as:
                raise PackingError(f"{reader} reads '{name}' before it is made")
            if (self.place[name] != self.made_as[name]).any():
                raise PackingError(f"{reader} reads '{name}', but other bytes have been written over it")

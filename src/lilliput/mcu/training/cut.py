"""Where a network is cut: the frozen prefix before it runs as in inference, the suffix after it is what a training step knows.

The cut lies at the last place, before the first layer that is trained, where exactly one tensor is alive: between two blocks.
"""

from __future__ import annotations

from dataclasses import dataclass

from lilliput.mcu.training.update_plan import UpdatePlan, head_of, weighted_layers
from lilliput.quantize.qgraph import QOp, QuantizedGraph


@dataclass(frozen=True, eq=False)
class Cut:
    """A network in two parts, sharing one tensor."""

    prefix: QuantizedGraph | None
    """From the image to the tensor between; ``None`` where training begins with the first layer."""
    between: str
    """The only tensor alive at the cut."""
    suffix: tuple[QOp, ...]
    """Operations after it, up to and with the head."""


def cut(qgraph: QuantizedGraph, plan: UpdatePlan) -> Cut:
    """Cut before the deepest trained layer.

    Raises:
        ConfigError: the plan is not one for this network.
        UnsupportedOpError: the network does not end in a linear layer.
    """
    plan.check(qgraph)
    head = head_of(qgraph)
    layers = (*weighted_layers(qgraph), head)
    ops = qgraph.ops[: qgraph.ops.index(head) + 1]
    deepest = ops.index(layers[len(layers) - 1 - plan.bias_depth])
    place = next(index for index in range(deepest, -1, -1) if len(_alive(qgraph, ops, index)) == 1)
    (between,) = _alive(qgraph, ops, place)
    if place == 0:
        return Cut(None, between, ops)
    names = {qgraph.input, *(op.name for op in ops[:place])}
    tensors = {name: tensor for name, tensor in qgraph.tensors.items() if name in names}
    return Cut(QuantizedGraph(qgraph.name, qgraph.input, (between,), tensors, ops[:place]), between, ops[place:])


def _alive(qgraph: QuantizedGraph, ops: tuple[QOp, ...], place: int) -> set[str]:
    """Tensors made before an operation and read by it or later."""
    made = {qgraph.input, *(op.name for op in ops[:place])}
    return {name for op in ops[place:] for name in op.inputs if name in made}

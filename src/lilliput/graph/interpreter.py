"""Evaluate a graph with torch: the meaning that every other consumer is held to."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lilliput.errors import GraphError
from lilliput.graph.graph import Graph, Node
from lilliput.graph.ops import RULES


def run(
    graph: Graph, inputs: Sequence[Tensor], observe: Callable[[str, Tensor], None] | None = None
) -> tuple[Tensor, ...]:
    """Outputs of the graph. ``observe(name, tensor)`` sees each input and each node's output; a value nobody needs any more is freed.

    Raises:
        GraphError: the inputs don't fit, or the batch differs from the traced one where axis 0 is not just a batch.
    """
    batch = check_inputs(graph, inputs)
    live: dict[str, Tensor] = dict(zip(graph.inputs, inputs, strict=True))
    last_use = {name: index for index, node in enumerate(graph.nodes) for name in node.inputs}
    with torch.no_grad():
        if observe is not None:
            for name in graph.inputs:
                observe(name, live[name])
        for index, node in enumerate(graph.nodes):
            arguments = [live[name] if name in live else graph.weights[name] for name in node.inputs]
            live[node.name] = RULES[node.op].evaluate(node, *arguments)
            if batch is not None and live[node.name].shape[0] != batch:
                raise _uses_batch(graph, node)
            if observe is not None:
                observe(node.name, live[node.name])
            for name in set(node.inputs):
                if name in live and last_use[name] == index and name not in graph.outputs:
                    del live[name]
    return tuple(live[name] for name in graph.outputs)


def _uses_batch(graph: Graph, node: Node) -> GraphError:
    return GraphError(
        f"graph '{graph.name}': '{node.name}' (module '{node.source}') uses axis 0 as more than a batch, "
        f"so only the traced batch can run; trace with an example of the batch you need"
    )


def check_inputs(graph: Graph, inputs: Sequence[Tensor]) -> int | None:
    """The batch, where it is another than the traced one.

    Raises:
        GraphError: the inputs don't fit, or the batch differs where axis 0 is known to be more than a batch.
    """
    if len(inputs) != len(graph.inputs):
        raise GraphError(
            f"graph '{graph.name}' takes {len(graph.inputs)} inputs {list(graph.inputs)}, got {len(inputs)}"
        )
    other_batch = False
    for name, tensor in zip(graph.inputs, inputs, strict=True):
        value = graph.values[name]
        dtype = str(tensor.dtype).removeprefix("torch.")
        if tuple(tensor.shape[1:]) != value.shape[1:] or tensor.dim() != len(value.shape) or dtype != value.dtype:
            raise GraphError(
                f"graph '{graph.name}': input '{name}' is {dtype}{list(tensor.shape)}; "
                f"it was traced with {value.dtype}{list(value.shape)} (only the batch, axis 0, may differ)"
            )
        other_batch |= tuple(tensor.shape) != value.shape
    if not other_batch:
        return None
    traced = {graph.values[name].shape[:1] for name in graph.inputs}
    for node in graph.nodes:
        weights = [graph.weights[name].shape for name in node.inputs if name in graph.weights]
        rank = len(graph.shape(node.name))
        # A weight as long as the traced batch, aligned with it, was broadcast over nothing: it belongs to those examples.
        is_tied = RULES[node.op].is_elementwise and any(len(shape) == rank and shape[0] != 1 for shape in weights)
        if RULES[node.op].mixes_batch(node) or {graph.shape(node.name)[:1]} != traced or is_tied:
            raise _uses_batch(graph, node)
    (batch,) = {len(tensor) for tensor in inputs}
    return batch

"""How many bytes of activations are alive at once, and where.

A value is alive from the node that makes it to the last node that reads it; inputs from the start, outputs to the end. While a node
runs, its inputs and its output are alive together. A reshape moves no bytes: its output is its input's storage. A node computed in place
writes over its first input, if nobody reads that afterwards. Weights live elsewhere and are not counted.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from lilliput.errors import GraphError
from lilliput.graph.graph import Graph, Node, Op
from lilliput.graph.ops import RULES, is_depthwise


@dataclass(frozen=True)
class LiveMemory:
    """Live bytes along one execution order."""

    peak_bytes: int
    node: str
    """The binding node: the first at which the peak is reached."""
    bytes_at: Mapping[str, int]
    """Live bytes while each node runs, in running order."""
    lifetimes: Mapping[str, tuple[int, int, int]]
    """Each value's first step, last step and bytes; steps count nodes in running order, an output's last is one beyond."""


def live_memory(
    graph: Graph, order: Sequence[str] | None = None, inplace: Iterable[Op] | bool = False, bits: int = 8
) -> LiveMemory:
    """Peak of live activation bytes.

    Args:
        graph: any graph with at least one node.
        order: names of all nodes in the order to run them; the graph's own if None.
        inplace: kinds that may write over their first input; True for all that can: elementwise kinds and depthwise
            convolutions whose output is not larger than their input.
        bits: per element; sub-byte values are packed, each rounded up to whole bytes.
    Raises:
        GraphError: the order leaves out a node or runs one before its inputs exist.
    """
    nodes = _ordered(graph, order)
    allowed = set(Op) if inplace is True else set() if inplace is False else set(inplace)
    size = {name: -(-value.numel * bits // 8) for name, value in graph.values.items()}
    first: dict[str, int] = dict.fromkeys(graph.inputs, 0)
    last: dict[str, int] = dict.fromkeys(graph.inputs, 0)
    for step, node in enumerate(nodes):
        first[node.name] = last[node.name] = step
        for name in graph.activations(node):
            last[name] = step
    for name in graph.outputs:
        last[name] = len(nodes)  # outlives the last node, so nothing may be computed over it

    storage: dict[str, int] = {name: index for index, name in enumerate(graph.inputs)}
    ends: dict[int, int] = {storage[name]: last[name] for name in graph.inputs}  # last step that reads the storage
    for step, node in enumerate(nodes):
        dying = [name for name in _overwritable(graph, node, allowed) if ends[storage[name]] == step]
        shared = graph.activations(node)[:1] if node.op is Op.RESHAPE else tuple(dying[:1])
        index = storage[shared[0]] if shared else len(graph.inputs) + step
        storage[node.name] = index
        ends[index] = max(ends.get(index, step), last[node.name])

    bytes_at: dict[str, int] = {}
    for step, node in enumerate(nodes):
        held: dict[int, int] = {}
        for name, index in storage.items():
            if first[name] <= step <= last[name]:
                held[index] = max(held.get(index, 0), size[name])
        bytes_at[node.name] = sum(held.values())
    peak = max(bytes_at.values())
    return LiveMemory(
        peak_bytes=peak,
        node=next(name for name, count in bytes_at.items() if count == peak),
        bytes_at=bytes_at,
        lifetimes={name: (first[name], last[name], size[name]) for name in storage},
    )


def _overwritable(graph: Graph, node: Node, allowed: set[Op]) -> tuple[str, ...]:
    """The inputs whose storage the node's output may take, once nobody else reads them."""
    shapes = [graph.shape(name) for name in node.inputs]
    if node.op not in allowed or not (RULES[node.op].is_elementwise or is_depthwise(node, shapes)):
        return ()
    # Broadcasting makes the output larger than some input: only one at least as large can be written over.
    numel = graph.values[node.name].numel
    return tuple(name for name in graph.activations(node) if graph.values[name].numel >= numel)


def _ordered(graph: Graph, order: Sequence[str] | None) -> list[Node]:
    if not graph.nodes:
        raise GraphError(f"graph '{graph.name}' has no nodes, so no memory is live")
    if order is None:
        return list(graph.nodes)
    if sorted(order) != sorted(graph.producers):
        missing = sorted(set(graph.producers) - set(order))
        unknown = sorted(set(order) - set(graph.producers))
        raise GraphError(
            f"order must name each of the {len(graph.nodes)} nodes once; missing {missing}, unknown {unknown}"
        )
    made = set(graph.inputs)
    for name in order:
        needs = [value for value in graph.activations(graph.producers[name]) if value not in made]
        if needs:
            raise GraphError(f"order runs '{name}' before {needs}, which it reads")
        made.add(name)
    return [graph.producers[name] for name in order]

"""Count what a graph costs, exactly: parameters, multiply-accumulates, weight bytes, live activation bytes."""

from __future__ import annotations

from lilliput.evidence.budget import Cost
from lilliput.graph.graph import Graph
from lilliput.graph.ops import RULES


def cost(graph: Graph, bits: int = 8) -> Cost:
    """The cost of one run of the traced example.

    Args:
        graph: any graph; trace with batch 1 to count for one input.
        bits: per weight and activation, 1 to 32.
    Returns:
        ``params`` are trainable parameters, each held weight once; ``flash_bytes`` is ``params`` at ``bits`` each;
        ``sram_bytes`` is the peak of live activations with nothing computed in place.
    """
    per_node: dict[str, Cost] = {}
    charged: set[str] = set()
    for node in graph.nodes:
        mine = {name for name in node.inputs if name in graph.parameters} - charged
        charged |= mine
        params = sum(graph.weights[name].numel() for name in mine)
        shapes = [graph.shape(name) for name in node.inputs]
        macs = RULES[node.op].macs(node, shapes, graph.shape(node.name))
        per_node[node.name] = Cost(params=params, macs=macs, flash_bytes=-(-params * bits // 8), bits=bits)
    params = sum(each.params for each in per_node.values())
    return Cost(
        params=params,
        macs=sum(each.macs for each in per_node.values()),
        flash_bytes=-(-params * bits // 8),
        sram_bytes=graph.live_memory(bits=bits).peak_bytes if graph.nodes else _input_bytes(graph, bits),
        bits=bits,
        per_node=per_node,
    )


def _input_bytes(graph: Graph, bits: int) -> int:
    """All that a graph which does nothing holds."""
    return sum(-(-graph.values[name].numel * bits // 8) for name in graph.inputs)

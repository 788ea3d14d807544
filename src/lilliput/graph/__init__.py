"""One graph for every network: trace it, run it, count it, draw it."""

from lilliput.graph.graph import Graph, Node, Op, Value

__all__ = ["Graph", "Node", "Op", "Value"]

"""One graph for every network: trace it, run it, count it, draw it."""

from lilliput.graph.draw import draw
from lilliput.graph.graph import Graph, Node, Op, Value
from lilliput.graph.memory import LiveMemory
from lilliput.graph.network import GraphNetwork
from lilliput.graph.text import from_text, to_text
from lilliput.graph.trace import trace

__all__ = ["Graph", "GraphNetwork", "LiveMemory", "Node", "Op", "Value", "draw", "from_text", "to_text", "trace"]

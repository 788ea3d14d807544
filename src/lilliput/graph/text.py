"""The graph as text, one line a thing, and back. For golden tests and bug reports: structure without the weights' numbers."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping

import torch
from torch import Tensor

from lilliput.errors import GraphError
from lilliput.graph.graph import Attribute, Graph, Node, Op, Value

_TENSOR = r"(?P<dtype>\w+)\[(?P<shape>[\d, ]*)\]"
_HELD = re.compile(rf"(?P<word>input|parameter|constant) (?P<name>\S+): {_TENSOR}")
_NODE = re.compile(
    rf"(?P<name>\S+) = (?P<op>\w+)\((?P<inputs>[^)]*)\)(?P<attrs>.*?) -> {_TENSOR}(  # (?P<source>\S+))?"
)
_ATTR = re.compile(r" (\w+)=(\([^)]*\)|'[^']*'|\S+)")


def to_text(graph: Graph) -> str:
    """One line for each input, weight, node and the outputs; a node's module path stands behind ``#``."""
    lines = [f"graph {graph.name}"]
    lines += [f"input {name}: {_type(graph.values[name])}" for name in graph.inputs]
    for name, weight in sorted(graph.weights.items()):
        word = "parameter" if name in graph.parameters else "constant"
        lines.append(f"{word} {name}: {str(weight.dtype).removeprefix('torch.')}{list(weight.shape)}")
    for node in graph.nodes:
        attrs = "".join(f" {key}={value!r}" for key, value in sorted(node.attrs.items()))
        source = f"  # {node.source}" if node.source else ""
        lines.append(
            f"{node.name} = {node.op}({', '.join(node.inputs)}){attrs} -> {_type(graph.values[node.name])}{source}"
        )
    lines.append(f"output {', '.join(graph.outputs)}")
    return "\n".join(lines)


def from_text(text: str, weights: Mapping[str, Tensor] | None = None) -> Graph:
    """The graph that :func:`to_text` wrote.

    Args:
        text: as written; blank lines are ignored.
        weights: tensors by name; those not given have shape and dtype but no data (torch's ``meta`` device).
    Raises:
        GraphError: a line that is none of the forms, or a graph that breaks the rules.
    """
    name = ""
    inputs: list[str] = []
    outputs: tuple[str, ...] = ()
    values: dict[str, Value] = {}
    held: dict[str, Tensor] = {}
    parameters: set[str] = set()
    nodes: list[Node] = []
    for number, line in enumerate(text.strip().splitlines(), start=1):
        line = line.rstrip()
        if not line:
            continue
        if line.startswith("graph "):
            name = line.removeprefix("graph ")
        elif line.startswith("output "):
            outputs = tuple(line.removeprefix("output ").split(", "))
        elif match := _HELD.fullmatch(line):
            shape = _shape(match["shape"])
            if match["word"] == "input":
                inputs.append(match["name"])
                values[match["name"]] = Value(match["name"], shape, match["dtype"])
                continue
            dtype = getattr(torch, match["dtype"])
            given = (weights or {}).get(match["name"])
            held[match["name"]] = torch.empty(shape, dtype=dtype, device="meta") if given is None else given
            if match["word"] == "parameter":
                parameters.add(match["name"])
        elif (match := _NODE.fullmatch(line)) and match["op"] in set(Op):
            source = match["source"] or ""
            arguments = tuple(each for each in match["inputs"].split(", ") if each)
            attrs: dict[str, Attribute] = {key: ast.literal_eval(value) for key, value in _ATTR.findall(match["attrs"])}
            nodes.append(Node(Op(match["op"]), match["name"], arguments, attrs, source))
            values[match["name"]] = Value(match["name"], _shape(match["shape"]), match["dtype"], source)
        else:
            raise GraphError(f"line {number} of the graph's text is no input, weight, node or output: {line!r}")
    return Graph(name, tuple(inputs), outputs, values, tuple(nodes), held, frozenset(parameters))


def _type(value: Value) -> str:
    return f"{value.dtype}{list(value.shape)}"


def _shape(text: str) -> tuple[int, ...]:
    return tuple(int(each) for each in text.split(",") if each.strip())

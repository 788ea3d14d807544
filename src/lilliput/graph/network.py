"""A graph as a torch module again, its linear layers and convolutions as torch's own, for what finds and rewrites layers.

Weights that two nodes share are one parameter. Everything else runs as :func:`lilliput.graph.interpreter.run` does it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lilliput.graph.graph import Graph, Node, Op
from lilliput.graph.interpreter import check_inputs
from lilliput.graph.ops import RULES


class GraphNetwork(nn.Module):
    """The function of a graph of one input and one output; called with any batch that the graph itself takes."""

    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self.graph = graph
        self.layers = nn.ModuleDict()
        """Of each linear layer and convolution, by the node's name."""
        self._buffer_of: dict[str, str] = {}
        shared: dict[str, nn.Parameter] = {}
        for node in graph.nodes:
            if _is_layer(node, graph):
                weights = [
                    shared.setdefault(name, nn.Parameter(graph.weights[name].detach().clone(), requires_grad=False))
                    for name in node.inputs[1:]
                ]
                self.layers[_key(node)] = _layer(node, *weights)
            else:
                for name in node.inputs:
                    if name in graph.weights and name not in self._buffer_of:
                        self._buffer_of[name] = f"constant_{len(self._buffer_of)}"
                        self.register_buffer(self._buffer_of[name], graph.weights[name].detach().clone())
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        """The graph's output.

        Raises:
            GraphError: the input does not fit, or has another batch than the traced one where axis 0 is not just a batch.
        """
        check_inputs(self.graph, [x])
        live: dict[str, Tensor] = {self.graph.inputs[0]: x}
        last_use = {name: index for index, node in enumerate(self.graph.nodes) for name in node.inputs}
        for index, node in enumerate(self.graph.nodes):
            if _is_layer(node, self.graph):
                live[node.name] = self.layers[_key(node)](live[node.inputs[0]])
            else:
                given = [live[name] if name in live else getattr(self, self._buffer_of[name]) for name in node.inputs]
                live[node.name] = RULES[node.op].evaluate(node, *given)
            for name in set(node.inputs):
                if name in live and last_use[name] == index and name not in self.graph.outputs:
                    del live[name]
        return live[self.graph.outputs[0]]


def _is_layer(node: Node, graph: Graph) -> bool:
    """Whether all but its first input are weights, and all of them are its own kind of layer's."""
    return node.op in (Op.LINEAR, Op.CONV) and all(name in graph.weights for name in node.inputs[1:])


def _key(node: Node) -> str:
    return node.name.replace(".", "_")  # torch's module names have no dots


def _layer(node: Node, weight: nn.Parameter, bias: nn.Parameter | None = None) -> nn.Module:
    layer: nn.Linear | nn.Conv1d | nn.Conv2d
    has_bias = bias is not None
    with torch.device("meta"):
        if node.op is Op.LINEAR:
            layer = nn.Linear(weight.shape[1], weight.shape[0], has_bias)
        else:
            channels = weight.shape[1] * node["groups"], weight.shape[0]
            window = node["stride"], node["padding"], node["dilation"], node["groups"], has_bias
            if weight.dim() == 3:
                layer = nn.Conv1d(*channels, (weight.shape[2],), *window)
            else:
                layer = nn.Conv2d(*channels, (weight.shape[2], weight.shape[3]), *window)
    layer.weight = weight
    layer.bias = bias
    return layer

"""Fold affine maps of channels (batch norm, multiplying by or adding constants) into the layers beside them.

``y = a * x + b`` with one a and b per channel is nothing but more weights: a convolution or linear layer before it, read by nothing else,
takes it in (``w' = a w``, ``bias' = a bias + b``); so does a linear layer after it (``w' = w a``, ``bias' = bias + w b``). Where neither
is there, it becomes a 1x1 depthwise convolution. One number for all channels that cannot be folded stays as it is: as a function of one
value it costs a table at most.

Source: Jacob et al. 2018 (arXiv:1712.05877), section 3.2, eq. 14, for batch norm; the others are ours.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod

import torch
from torch import Tensor

from lilliput.errors import UnsupportedOpError
from lilliput.graph import Graph, Node, Op, Value
from lilliput.graph.graph import Attribute

_AFFINE = {Op.BATCH_NORM, Op.MUL, Op.ADD, Op.SUB}


def fold_affine(graph: Graph) -> Graph:
    """The same function without batch norms and without constants per channel.

    Raises:
        UnsupportedOpError: a constant that is neither one number nor one number per channel, by value and module.
    """
    return _Folding(graph).run()


def is_constant_pair(graph: Graph, node: Node) -> bool:
    """An addition, subtraction or product of a value and a weight or constant."""
    return node.op in (Op.ADD, Op.SUB, Op.MUL) and len(graph.activations(node)) == 1


@dataclass(frozen=True)
class _Affine:
    a: Tensor  # (channels,) or (1,), float64
    b: Tensor

    @property
    def is_scalar(self) -> bool:
        return self.a.numel() == 1


class _Folding:
    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.nodes: dict[str, Node] = {}
        self.values = dict(graph.values)
        self.weights = dict(graph.weights)
        self.pending: dict[
            str, tuple[str, _Affine]
        ] = {}  # affine value -> what it reads; the linear layer after takes it

    def run(self) -> Graph:
        for node in self.graph.nodes:
            affine = self._affine(node)
            if node.op is Op.LINEAR and node.inputs[0] in self.pending:
                self._fold_into_next(node, *self.pending.pop(node.inputs[0]))
            elif affine is None:
                self.nodes[node.name] = node
            else:
                self._place(node, self.graph.activations(node)[0], affine)
        names = {*self.graph.inputs, *self.nodes}
        return self.graph.replace(
            nodes=tuple(self.nodes.values()),
            values={name: value for name, value in self.values.items() if name in names},
            weights=self.weights,
        )

    def _place(self, node: Node, x: str, affine: _Affine) -> None:
        before = self.nodes.get(x)
        if before is not None and self._only_reader(x) and self._is_foldable(before, affine):
            self._fold_into_previous(node, before, affine)
            return
        readers = self.graph.consumers[node.name]
        if (
            len(readers) == 1
            and readers[0].op is Op.LINEAR
            and len(self.graph.shape(x)) == 2
            and node.name not in self.graph.outputs
        ):
            self.pending[node.name] = (x, affine)
        elif affine.is_scalar and node.op is not Op.BATCH_NORM:
            self.nodes[node.name] = node
        else:
            self._as_depthwise(node, x, affine)

    def _affine(self, node: Node) -> _Affine | None:
        """The map of a node per channel, if it is one."""
        if node.op is Op.BATCH_NORM:
            channels = self.graph.shape(node.inputs[0])[1]
            mean, var, *rest = (self.weights[name].double() for name in node.inputs[1:])
            weight, bias = rest if rest else (torch.ones(channels).double(), torch.zeros(channels).double())
            a = weight / torch.sqrt(var + node["eps"])
            return _Affine(a, bias - mean * a)
        if not is_constant_pair(self.graph, node):
            return None
        (x,) = self.graph.activations(node)
        constant_first = node.inputs[0] != x
        constant = self._per_channel(node, x, node.inputs[0] if constant_first else node.inputs[1])
        one, zero = torch.ones_like(constant), torch.zeros_like(constant)
        if node.op is Op.MUL:
            return _Affine(constant, zero)
        if node.op is Op.ADD:
            return _Affine(one, constant)
        return _Affine(-one, constant) if constant_first else _Affine(one, -constant)

    def _per_channel(self, node: Node, x: str, name: str) -> Tensor:
        constant, shape = self.weights[name].double(), self.graph.shape(x)
        if constant.numel() == 1:
            return constant.reshape(1)
        aligned = (1,) * (len(shape) - constant.dim()) + tuple(constant.shape)
        if aligned != (1, shape[1], *(1,) * (len(shape) - 2)):
            raise UnsupportedOpError(
                f"int8 quantization has no rule for '{node.op}' of {list(shape)} with a constant of shape "
                f"{list(constant.shape)} (value '{node.name}', module '{node.source}'); "
                "it takes one number, or one number per channel"
            )
        return constant.reshape(-1)

    def _is_foldable(self, before: Node, affine: _Affine) -> bool:
        # On (batch, steps, features) a linear layer's channels are the last axis, an affine map's the second.
        linear = before.op is Op.LINEAR and (affine.is_scalar or len(self.graph.shape(before.name)) == 2)
        return before.op is Op.CONV or linear

    def _only_reader(self, name: str) -> bool:
        return len(self.graph.consumers[name]) == 1 and name not in self.graph.outputs

    def _hold(self, node: Node, kind: str, tensor: Tensor) -> str:
        name = f"{node.name}.folded.{kind}"
        self.weights[name] = tensor.float()
        return name

    def _weight_and_bias(self, node: Node) -> tuple[Tensor, Tensor]:
        weight = self.weights[node.inputs[1]].double()
        bias = self.weights[node.inputs[2]].double() if len(node.inputs) > 2 else torch.zeros(len(weight)).double()
        return weight, bias

    def _fold_into_previous(self, node: Node, before: Node, affine: _Affine) -> None:
        weight, bias = self._weight_and_bias(before)
        weight = weight * affine.a.reshape(-1, *(1,) * (weight.dim() - 1))
        names = self._hold(node, "weight", weight), self._hold(node, "bias", bias * affine.a + affine.b)
        del self.nodes[before.name]
        self.nodes[node.name] = replace(before, name=node.name, inputs=(before.inputs[0], *names))

    def _fold_into_next(self, node: Node, x: str, affine: _Affine) -> None:
        weight, bias = self._weight_and_bias(node)
        bias = bias + weight @ affine.b.expand(weight.shape[1])
        names = self._hold(node, "weight", weight * affine.a), self._hold(node, "bias", bias)
        self.nodes[node.name] = replace(node, inputs=(x, *names))

    def _as_depthwise(self, node: Node, x: str, affine: _Affine) -> None:
        shape = self.graph.shape(x)
        channels, spatial = shape[1], max(len(shape) - 2, 2 if len(shape) == 2 else 0)
        names = (
            self._hold(node, "weight", affine.a.expand(channels).reshape(channels, *(1,) * (spatial + 1))),
            self._hold(node, "bias", affine.b.expand(channels).clone()),
        )
        attrs: dict[str, Attribute] = {
            "stride": (1,) * spatial,
            "padding": (0,) * spatial,
            "dilation": (1,) * spatial,
            "groups": channels,
        }
        conv = Node(Op.CONV, node.name, (x, *names), attrs, node.source)
        if len(shape) > 2:
            self.nodes[node.name] = conv
            return
        # A vector is a 1x1 image to a convolution.
        image, result = f"{node.name}.image", f"{node.name}.scaled"
        for name in (image, result):
            self.values[name] = Value(name, (*shape, 1, 1), self.values[x].dtype, node.source)
        self.nodes[image] = Node(Op.RESHAPE, image, (x,), {"shape": (0, channels, 1, 1)}, node.source)
        self.nodes[result] = replace(conv, name=result, inputs=(image, *names))
        self.nodes[node.name] = Node(Op.RESHAPE, node.name, (result,), {"shape": (0, prod(shape[1:]))}, node.source)

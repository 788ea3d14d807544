"""The one graph: values in single-assignment form, about thirty-five kinds of node, weights by reference.

A :class:`Graph` is plain data. It is static (every shape is known), it is in the order it runs in, and each node has exactly one
output, named like the node. A node's inputs are names: of values (activations) or of weights. A weight is held once, however many
modules share it. What each kind means, which inputs and attributes it has, is written in ``lilliput.graph.ops``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from math import prod
from typing import TYPE_CHECKING, Any

from lilliput.errors import GraphError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from lilliput.evidence.budget import Cost
    from lilliput.graph.memory import LiveMemory

Attribute = int | float | bool | str | None | tuple[int, ...]


class Op(StrEnum):
    """The kinds of node. Layouts are PyTorch's: images are (batch, channel, height, width)."""

    # layers with weights
    CONV = "conv"  # any stride, dilation, groups and padding; 1-d or 2-d by the weight's rank
    LINEAR = "linear"
    BATCH_NORM = "batch_norm"  # with stored statistics
    LAYER_NORM = "layer_norm"
    EMBEDDING = "embedding"
    # one value in, one value out, element by element
    RELU = "relu"
    RELU6 = "relu6"
    HARD_SWISH = "hard_swish"
    HARD_SIGMOID = "hard_sigmoid"
    SIGMOID = "sigmoid"
    SILU = "silu"
    TANH = "tanh"
    GELU = "gelu"
    LEAKY_RELU = "leaky_relu"
    PRELU = "prelu"  # with a stored slope, one or one a channel
    HARD_TANH = "hard_tanh"  # clamp between two finite numbers
    SOFTPLUS = "softplus"
    ELU = "elu"
    SOFTMAX = "softmax"  # along one axis, so not quite element by element
    # two values in, shapes broadcast
    ADD = "add"
    SUB = "sub"
    MUL = "mul"
    MATMUL = "matmul"
    # windows and reductions
    MAX_POOL = "max_pool"
    AVG_POOL = "avg_pool"
    ADAPTIVE_AVG_POOL = "adaptive_avg_pool"  # only where windows are uneven; even ones become avg_pool
    MEAN = "mean"
    # data movement
    CONCAT = "concat"
    PAD = "pad"
    RESHAPE = "reshape"  # also flatten, squeeze, unsqueeze
    PERMUTE = "permute"
    SLICE = "slice"
    UPSAMPLE_NEAREST = "upsample_nearest"


@dataclass(frozen=True)
class Value:
    """An activation: what flows between nodes."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    """As torch spells it, without the prefix: ``float32``, ``int64``."""
    source: str = ""
    """Path of the module it came from, as in ``named_modules``; empty for inputs and top-level functions."""

    @property
    def numel(self) -> int:
        """Number of elements."""
        return prod(self.shape)


@dataclass(frozen=True)
class Node:
    """One operation. Its output is a value of the same name."""

    op: Op
    name: str
    inputs: tuple[str, ...]
    attrs: Mapping[str, Attribute] = field(default_factory=dict)
    source: str = ""

    def __getitem__(self, attribute: str) -> Any:
        return self.attrs[attribute]


@dataclass(frozen=True)
class Graph:
    """A network as data. Built by :func:`lilliput.graph.trace`; read by every consumer."""

    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    values: Mapping[str, Value]
    nodes: tuple[Node, ...]
    weights: Mapping[str, Tensor]
    """Parameters, buffers and constants, by the first module path that holds them."""
    parameters: frozenset[str] = frozenset()
    """Which weights are trainable parameters; the others are buffers (statistics) or constants."""

    def __post_init__(self) -> None:
        from lilliput.graph.verify import verify

        verify(self)

    @cached_property
    def producers(self) -> Mapping[str, Node]:
        """The node that makes each value; graph inputs have none."""
        return {node.name: node for node in self.nodes}

    @cached_property
    def consumers(self) -> Mapping[str, tuple[Node, ...]]:
        """The nodes that read each value or weight, in running order, once each."""
        readers: dict[str, list[Node]] = {name: [] for name in (*self.values, *self.weights)}
        for node in self.nodes:
            for name in dict.fromkeys(node.inputs):
                readers[name].append(node)
        return {name: tuple(nodes) for name, nodes in readers.items()}

    def activations(self, node: Node) -> tuple[str, ...]:
        """The node's inputs that are values, not weights."""
        return tuple(name for name in node.inputs if name in self.values)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a value or a weight."""
        return self.values[name].shape if name in self.values else tuple(self.weights[name].shape)

    def run(self, *inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Evaluate on inputs of the traced shapes; the batch (axis 0) may differ where every value has one.

        Raises:
            GraphError: number, shape or dtype of the inputs does not fit.
        """
        from lilliput.graph.interpreter import run

        outputs = run(self, inputs)
        return outputs[0] if len(outputs) == 1 else outputs

    def cost(self, bits: int = 8) -> Cost:
        """Parameters, multiply-accumulates, weight bytes and live activation bytes, with ``bits`` for each weight and activation."""
        from lilliput.graph.cost import cost

        return cost(self, bits)

    def live_memory(
        self, order: Sequence[str] | None = None, inplace: Iterable[Op] | bool = False, bits: int = 8
    ) -> LiveMemory:
        """Peak bytes of activations alive at once, and the node at which they are; see ``lilliput.graph.memory``."""
        from lilliput.graph.memory import live_memory

        return live_memory(self, order=order, inplace=inplace, bits=bits)

    def device(self) -> torch.device:
        """Where the weights are; the CPU for a graph without weights."""
        import torch

        return next((weight.device for weight in self.weights.values()), torch.device("cpu"))

    def replace(self, **changes: Any) -> Graph:
        """A copy with some fields exchanged, verified anew; weights that no node reads any more are dropped."""
        from dataclasses import replace

        nodes = changes.get("nodes", self.nodes)
        used = {name for node in nodes for name in node.inputs}
        weights = changes.pop("weights", self.weights)
        weights = {name: tensor for name, tensor in weights.items() if name in used}
        parameters = frozenset(name for name in changes.pop("parameters", self.parameters) if name in weights)
        return replace(self, weights=weights, parameters=parameters, **changes)

    def __str__(self) -> str:
        from lilliput.graph.text import to_text

        return to_text(self)


def require(condition: bool, message: str) -> None:
    """Raise a :class:`GraphError` unless the condition holds."""
    if not condition:
        raise GraphError(message)

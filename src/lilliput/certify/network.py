"""A network as bound propagation sees it: affine steps and gates, in running order. Lowered from the one graph.

Each node of the graph becomes one step that adds linear maps of earlier values and a bias, or one gate on an earlier value; a max pool
becomes a small tree of both (``lilliput.certify.max_pool``). Everything after this file knows these two kinds only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod

import torch
from torch import Tensor

from lilliput.certify.gate import GATES, Gate
from lilliput.certify.linear_map import (
    Convolution,
    Identity,
    LinearMap,
    Matrix,
    Positive,
    Scale,
    Shape,
    SummedConvolution,
)
from lilliput.certify.rounding import check_arithmetic
from lilliput.errors import ConfigError, UnsupportedOpError
from lilliput.graph import Graph, Node, Op
from lilliput.graph.ops import RULES


@dataclass(frozen=True)
class Affine:
    """``value = sum of maps of earlier values + bias``."""

    name: str
    terms: tuple[tuple[str, LinearMap], ...]
    bias: Tensor | None
    """Broadcasts to (1, *shape)."""
    folded: Tensor | None = None
    """Sum of the absolute values that the bias was computed from, where it was; rounding is relative to them. As the bias."""


@dataclass(frozen=True)
class Activation:
    """``value = gate(source)``, element by element."""

    name: str
    source: str
    gate: Gate
    index: int
    """Place among the network's gates."""


@dataclass(frozen=True)
class Network:
    """Steps in running order, from ``input`` to ``output``; shapes are of one example."""

    input: str
    output: str
    steps: tuple[Affine | Activation, ...]
    shapes: dict[str, Shape]
    dtype: torch.dtype
    device: torch.device
    rigorous: bool = False
    """Whether bounds count the rounding of their own arithmetic."""

    @property
    def plain(self) -> Network:
        """The same without counting."""
        return replace(self, rigorous=False)

    @property
    def gates(self) -> tuple[Activation, ...]:
        """The gates in running order; ``gates[i].index == i``."""
        return tuple(step for step in self.steps if isinstance(step, Activation))

    @property
    def inputs(self) -> int:
        """Number of input elements, n."""
        return prod(self.shapes[self.input])

    @property
    def outputs(self) -> int:
        """Number of output elements, k."""
        return prod(self.shapes[self.output])

    @property
    def terms(self) -> int:
        """Number of linear maps and gates."""
        return sum(len(step.terms) if isinstance(step, Affine) else 1 for step in self.steps)

    @cached_property
    def last_reader(self) -> dict[str, int]:
        """Position of the last step that reads a value; of a value that none reads, beyond them all."""
        last = dict.fromkeys(self.shapes, len(self.steps))
        for index, step in enumerate(self.steps):
            for name in [step.source] if isinstance(step, Activation) else [name for name, _ in step.terms]:
                last[name] = index
        return last

    def units(self, gate: int) -> int:
        """Number of elements of a gate."""
        return prod(self.shapes[self.gates[gate].source])

    @property
    def is_piecewise_linear(self) -> bool:
        """Whether every gate is, so that the network is linear on each activation region."""
        return all(step.gate.is_piecewise_linear for step in self.gates)

    def run(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Outputs (N, k) and each gate's input (N, units), for points (N, *input shape)."""
        values, before = {self.input: x}, []
        for step in self.steps:
            if isinstance(step, Activation):
                z = values[step.source].flatten(1)
                before.append(z)
                values[step.name] = step.gate.value(z).reshape(values[step.source].shape)
            else:
                values[step.name] = affine_value(step, values)
        return values[self.output].flatten(1), before


def affine_value(step: Affine, values: dict[str, Tensor]) -> Tensor:
    """The step's value from those before it."""
    total = sum_of([linear.apply(values[name]) for name, linear in step.terms])
    return total if step.bias is None else total + step.bias


def sum_of(tensors: list[Tensor]) -> Tensor:
    """Their sum; the builtin would start from the number 0."""
    total = tensors[0]
    for each in tensors[1:]:
        total = total + each
    return total


def lower(graph: Graph, dtype: torch.dtype = torch.float64, *, rigorous: bool = False) -> Network:
    """The graph's affine steps and gates, with weights copied to ``dtype``.

    Args:
        rigorous: bounds of the network count the rounding of their own arithmetic.

    Raises:
        ConfigError: rigorous, and a gate or a setting of torch whose rounding is not known.
        UnsupportedOpError: a kind of node without a rule here, naming it and its module; more than one input or output.
    """
    if rigorous:
        check_arithmetic(graph.device())
    network = replace(Lowering(graph, dtype, rigorous).network(), rigorous=rigorous)
    if rigorous and not network.is_piecewise_linear:
        name = next(step.name for step in network.gates if not step.gate.is_piecewise_linear)
        raise ConfigError(
            f"rigorous=True needs piecewise linear gates, and '{name}' is smooth: nobody guarantees how far torch's exp, tanh and erf are "
            "off; use rigorous=False"
        )
    return network


class Lowering:
    """Walks the graph once. Rules read shapes and weights from it, and add steps."""

    def __init__(self, graph: Graph, dtype: torch.dtype, rigorous: bool = False) -> None:
        if len(graph.inputs) != 1 or len(graph.outputs) != 1:
            raise UnsupportedOpError(
                f"certify takes networks with 1 input and 1 output; '{graph.name}' has {len(graph.inputs)} and "
                f"{len(graph.outputs)}; wrap it in a module that returns one tensor"
            )
        self.graph, self.dtype = graph, dtype
        self.convolution = SummedConvolution if rigorous and dtype == torch.float32 else Convolution
        self.shapes: dict[str, Shape] = {graph.inputs[0]: graph.shape(graph.inputs[0])[1:]}
        self.steps: list[Affine | Activation] = []
        self.gate_count = 0

    def network(self) -> Network:
        """The finished network."""
        for node in self.graph.nodes:
            rule = _RULES.get(node.op)
            if rule is None:
                raise self.unsupported(node)
            if RULES[node.op].mixes_batch(node):
                raise self.unsupported(node, "uses axis 0 as more than a batch")
            rule(self, node)
        return Network(
            input=self.graph.inputs[0],
            output=self.graph.outputs[0],
            steps=tuple(self.steps),
            shapes=self.shapes,
            dtype=self.dtype,
            device=self.graph.device(),
        )

    def unsupported(self, node: Node, why: str = "") -> UnsupportedOpError:
        """The error for a node without a rule."""
        detail = f" ({why})" if why else ""
        return UnsupportedOpError(
            f"certify has no rule for '{node.op}'{detail} (module '{node.source}', value '{node.name}'); "
            f"it has rules for {len(_RULES)} kinds, listed in docs/ops.md; bound the network up to there instead"
        )

    def shape(self, name: str) -> Shape:
        """Shape of one example of a value of the graph."""
        return self.graph.shape(name)[1:]

    def weight(self, name: str) -> Tensor:
        """A stored tensor in our dtype."""
        return self.graph.weights[name].to(self.dtype)

    def constant(self, node: Node, name: str) -> Tensor:
        """A stored tensor that is broadcast to a node's output, without the batch axis."""
        tensor, shape = self.weight(name), self.graph.shape(node.name)
        if tensor.dim() == len(shape):
            if tensor.shape[0] != 1:
                raise self.unsupported(node, "a constant for each example of a batch")
            tensor = tensor[0]
        return tensor.reshape((1,) * (len(shape) - 1 - tensor.dim()) + tuple(tensor.shape))

    def affine(
        self,
        name: str,
        terms: list[tuple[str, LinearMap]],
        bias: Tensor | None = None,
        folded: Tensor | None = None,
    ) -> str:
        """Add a step."""
        self.shapes[name] = terms[0][1].outputs
        lead = (each if each is None else each.unsqueeze(0) for each in (bias, folded))
        self.steps.append(Affine(name, tuple(terms), *lead))
        return name

    def activation(self, name: str, source: str, gate: Gate) -> str:
        """Add a gate."""
        self.shapes[name] = self.shapes[source]
        self.steps.append(Activation(name, source, gate, self.gate_count))
        self.gate_count += 1
        return name


def _conv(low: Lowering, node: Node) -> None:
    weight = low.weight(node.inputs[1])
    bias = low.weight(node.inputs[2]).reshape(-1, *(1,) * (weight.dim() - 2)) if len(node.inputs) > 2 else None
    convolution = low.convolution(
        weight,
        low.shape(node.inputs[0]),
        low.shape(node.name),
        node["stride"],
        node["padding"],
        node["dilation"],
        node["groups"],
    )
    low.affine(node.name, [(node.inputs[0], convolution)], bias)


def _linear(low: Lowering, node: Node) -> None:
    bias = low.weight(node.inputs[2]) if len(node.inputs) > 2 else None
    matrix = Matrix(low.weight(node.inputs[1]), low.shape(node.inputs[0]))
    low.affine(node.name, [(node.inputs[0], matrix)], bias)


def _batch_norm(low: Lowering, node: Node) -> None:
    mean, var, *affine = (low.weight(name) for name in node.inputs[1:])
    factor = 1 / (var + node["eps"]).sqrt() * (affine[0] if affine else 1.0)
    shift = affine[1] if len(affine) > 1 else torch.zeros_like(mean)
    bias, folded = shift - mean * factor, shift.abs() + (mean * factor).abs()
    aligned = (-1, *(1,) * (len(low.shape(node.name)) - 1))
    before = low.steps[-1] if low.steps else None
    is_only_reader = sum(each.inputs.count(node.inputs[0]) for each in low.graph.nodes) == 1
    if isinstance(before, Affine) and before.name == node.inputs[0] and is_only_reader:
        source, linear = before.terms[0]
        # One step, and no pass over memory for the scale.
        scaled = linear.scaled(factor) if isinstance(linear, Convolution) else None
        if scaled is not None:
            bias, folded = bias.reshape(aligned), folded.reshape(aligned)
            if before.bias is not None:
                old = before.bias.squeeze(0) * factor.reshape(aligned)
                bias, folded = old + bias, old.abs() + folded
            low.steps.pop()
            low.affine(node.name, [(source, scaled)], bias, folded)
            return
    scale = Scale(factor.reshape(aligned), low.shape(node.inputs[0]))
    low.affine(node.name, [(node.inputs[0], scale)], bias.reshape(aligned), folded.reshape(aligned))


def _sum(low: Lowering, node: Node) -> None:
    """Add and sub, of two values or of a value and a constant."""
    terms: list[tuple[str, LinearMap]] = []
    bias, output = None, low.shape(node.name)
    for name, sign in zip(node.inputs, (1.0, -1.0 if node.op is Op.SUB else 1.0), strict=True):
        if name in low.graph.weights:
            bias = sign * low.constant(node, name)
            continue
        source = _broadcast(low, name, output, f"{node.name}.{len(terms)}")
        terms.append((source, Scale(torch.full((1,), sign, dtype=low.dtype, device=low.graph.device()), output)))
    low.affine(node.name, terms, bias)


def _broadcast(low: Lowering, name: str, output: Shape, broadcast_name: str) -> str:
    shape = low.shape(name)
    if shape == output:
        return name
    aligned = (1,) * (len(output) - len(shape)) + shape
    spread = Positive(lambda x: x.reshape(len(x), *aligned).expand(len(x), *output), shape, output)
    return low.affine(broadcast_name, [(name, spread)])


def _product(low: Lowering, node: Node) -> None:
    """Mul by a constant."""
    names = [name for name in node.inputs if name in low.graph.values]
    if len(names) != 1:
        raise low.unsupported(node, "of two activations; by a constant is known")
    constant = low.constant(node, next(name for name in node.inputs if name in low.graph.weights))
    source = _broadcast(low, names[0], low.shape(node.name), f"{node.name}.0")
    low.affine(node.name, [(source, Scale(constant, low.shape(node.name)))])


def _matmul(low: Lowering, node: Node) -> None:
    x, weight = node.inputs
    if weight not in low.graph.weights or low.graph.weights[weight].dim() != 2 or x in low.graph.weights:
        raise low.unsupported(node, "of two activations; by a stored matrix on the right is known")
    low.affine(node.name, [(x, Matrix(low.weight(weight).T.contiguous(), low.shape(x)))])


def _positive(low: Lowering, node: Node) -> None:
    """Kinds that move, repeat or average: their own meaning is the linear map."""
    x = node.inputs[0]
    low.affine(
        node.name, [(x, Positive(lambda t: RULES[node.op].evaluate(node, t), low.shape(x), low.shape(node.name)))]
    )


def _pad(low: Lowering, node: Node) -> None:
    if any(edge < 0 for edge in node["padding"]):
        raise low.unsupported(node, "with negative padding")
    x, output = node.inputs[0], low.shape(node.name)
    zeros = torch.zeros((1, *low.shape(x)), dtype=low.dtype, device=low.graph.device())
    bias = RULES[node.op].evaluate(node, zeros)[0] if node["value"] else None
    pad = Positive(lambda t: torch.nn.functional.pad(t, node["padding"]), low.shape(x), output)
    low.affine(node.name, [(x, pad)], bias)


def _reshape(low: Lowering, node: Node) -> None:
    x = node.inputs[0]
    low.affine(node.name, [(x, Identity(low.shape(x), low.shape(node.name)))])


def _concat(low: Lowering, node: Node) -> None:
    """A sum of the pieces, each with zeros around it."""
    output, axis = low.shape(node.name), node["dim"]
    terms: list[tuple[str, LinearMap]] = []
    bias, start = None, 0
    for name in node.inputs:
        size = low.graph.shape(name)[axis]
        rank = len(output) + 1
        edges = [0, 0] * (rank - 1 - axis) + [start, output[axis - 1] - start - size]
        start += size

        def place(t: Tensor, edges: list[int] = edges) -> Tensor:
            return torch.nn.functional.pad(t, edges)

        if name in low.graph.weights:
            piece = place(low.weight(name))[0]
            bias = piece if bias is None else bias + piece
        else:
            terms.append((name, Positive(place, low.shape(name), output)))
    low.affine(node.name, terms, bias)


def _gate(low: Lowering, node: Node) -> None:
    shape = low.shape(node.inputs[0])
    weight = None
    if len(node.inputs) > 1:  # PReLU: one slope, or one for each channel, the first axis
        stored = low.weight(node.inputs[1]).reshape(-1, *(1,) * max(len(shape) - 1, 0))
        weight = stored.expand(shape).flatten()
    low.activation(node.name, node.inputs[0], GATES[node.op](node, weight))


def _max_pool(low: Lowering, node: Node) -> None:
    from lilliput.certify.max_pool import lower_max_pool

    lower_max_pool(low, node)


_RULES: dict[Op, Callable[[Lowering, Node], None]] = {
    Op.CONV: _conv,
    Op.LINEAR: _linear,
    Op.BATCH_NORM: _batch_norm,
    Op.ADD: _sum,
    Op.SUB: _sum,
    Op.MUL: _product,
    Op.MATMUL: _matmul,
    Op.MAX_POOL: _max_pool,
    Op.AVG_POOL: _positive,
    Op.ADAPTIVE_AVG_POOL: _positive,
    Op.MEAN: _positive,
    Op.CONCAT: _concat,
    Op.PAD: _pad,
    Op.RESHAPE: _reshape,
    Op.PERMUTE: _positive,
    Op.SLICE: _positive,
    Op.UPSAMPLE_NEAREST: _positive,
    **dict.fromkeys(GATES, _gate),
}

SUPPORTED_OPS: frozenset[Op] = frozenset(_RULES)
"""Kinds of node that bound propagation knows."""

"""Lower a folded float graph, with its value ranges, to an integer graph: one rule a kind of node."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from lilliput.errors import UnsupportedOpError
from lilliput.graph import Graph, Node, Op
from lilliput.graph.ops import RULES as FLOAT_RULES
from lilliput.quantize import arithmetic, qgraph
from lilliput.quantize.fold import is_constant_pair
from lilliput.quantize.layout import device_axis, device_order, device_shape
from lilliput.quantize.parameters import (
    Parameters,
    activation_parameters,
    channel_multipliers,
    least_output_scale,
    product_output_scale,
    quantize_weights,
)
from lilliput.quantize.qgraph import Clamp, QOp, QTensor, QuantizedGraph
from lilliput.quantize.softmax import softmax_parameters

UNARY_OPS = frozenset(
    {Op.RELU, Op.RELU6, Op.HARD_SWISH, Op.HARD_SIGMOID, Op.SIGMOID, Op.SILU, Op.TANH, Op.GELU},
)
_CLAMPED = frozenset({Op.CONV, Op.LINEAR, Op.ADD, Op.SUB, Op.MUL, Op.MEAN, Op.AVG_POOL, Op.MAX_POOL})
_KNOWN_PARAMETERS = {Op.SIGMOID: Parameters(1 / 256, -128), Op.TANH: Parameters(1 / 128, 0)}
"""Outputs whose range is known beforehand; the specification fixes these."""
_CODES = torch.arange(-128, 128, dtype=torch.float64)


def lower(
    graph: Graph, ranges: Mapping[str, tuple[float, float]], input_parameters: Parameters, per_channel: bool = True
) -> QuantizedGraph:
    """The integer graph of a float graph without batch norms.

    Args:
        graph: as :func:`lilliput.quantize.fold.fold_affine` leaves it.
        ranges: lower and upper end of every value.
        input_parameters: scale and zero point of the input.
        per_channel: weight scales for each output channel, or one for the layer.
    Raises:
        UnsupportedOpError: a node, or a use of its attributes, that has no integer rule.
        GraphError: sums that could leave 32 bits.
    """
    return _Lowering(graph, ranges, per_channel).run(input_parameters)


class _Lowering:
    def __init__(self, graph: Graph, ranges: Mapping[str, tuple[float, float]], per_channel: bool) -> None:
        self.graph, self.ranges, self.per_channel = graph, ranges, per_channel
        self.rank3_is_image = any(_is_one_dimensional(node, graph) for node in graph.nodes)
        self.ops: list[QOp] = []
        self.tensors: dict[str, QTensor] = {}
        self.orders: dict[str, np.ndarray] = {}
        self.clamps: dict[str, Node] = {}  # node -> the ReLU that becomes its clamp
        self.chains: dict[str, list[Node]] = {}  # first node of a run of functions -> the run
        self.padded: dict[str, Node] = {}  # zero padding that its readers take in
        self.absorbed: set[str] = set()
        self.weight_cache: dict[Any, np.ndarray] = {}
        self._plan()

    def run(self, input_parameters: Parameters) -> QuantizedGraph:
        """Lower every node in order."""
        (x,) = self.graph.inputs
        self._tensor(x, input_parameters, self._standard_order(x))
        for node in self.graph.nodes:
            if node.name in self.chains:
                self._lookup(self.chains[node.name])
            elif node.name not in self.absorbed:
                _RULES[node.op](self, node)
        for name in self.graph.outputs:
            self._require_standard(self.graph.producers.get(name), name, "is an output of the network")
        return QuantizedGraph(self.graph.name, x, self.graph.outputs, self.tensors, tuple(self.ops))

    # which nodes become part of another

    def _plan(self) -> None:
        chain_of: dict[str, list[Node]] = {}
        for node in self.graph.nodes:
            if node.op is Op.PAD and self._is_folded_padding(node):
                self.padded[node.name] = node
                self.absorbed.add(node.name)
            if not self._is_unary(node):
                continue
            (x,) = self.graph.activations(node)
            before = self.graph.producers.get(x)
            if before is not None and self._only_reader(x):
                clampable = before.op in _CLAMPED and not self._is_unary(before)
                if clampable and node.op in (Op.RELU, Op.RELU6) and before.name not in self.clamps:
                    self.clamps[before.name] = node
                    self.absorbed.add(node.name)
                    continue
                if x in chain_of:
                    chain_of[x].append(node)
                    chain_of[node.name] = chain_of[x]
                    self.absorbed.add(node.name)
                    continue
            self.chains[node.name] = chain_of[node.name] = [node]

    def _is_unary(self, node: Node) -> bool:
        return node.op in UNARY_OPS or is_constant_pair(self.graph, node)

    def _is_folded_padding(self, node: Node) -> bool:
        readers = self.graph.consumers[node.name]
        fits = node.name not in self.graph.outputs and all(reader.op is Op.CONV for reader in readers)
        return fits and node["value"] == 0 and self._spatial_padding(node) is not None

    def _only_reader(self, name: str) -> bool:
        return len(self.graph.consumers[name]) == 1 and name not in self.graph.outputs

    # tensors

    def _tensor(self, name: str, parameters: Parameters, order: np.ndarray) -> QTensor:
        value = self.graph.values[name]
        shape = device_shape(value.shape, self.rank3_is_image)
        self.tensors[name] = QTensor(name, shape, parameters.scale, parameters.zero_point, value.source)
        self.orders[name] = order
        return self.tensors[name]

    def _final(self, node: Node) -> str:
        """The value that a node's operation makes: its clamp's, if it has one."""
        return self.clamps[node.name].name if node.name in self.clamps else node.name

    def _output(self, node: Node, least_scale: float, order: np.ndarray | None = None) -> QTensor:
        """The tensor of an operation that rescales, in the range that was seen."""
        name = self._final(node)
        parameters = activation_parameters(*self.ranges[self._covering(name)], least_scale)
        return self._tensor(name, parameters, self._standard_order(name) if order is None else order)

    def _covering(self, name: str) -> str:
        """The value whose range a tensor gets: its own, or that of the concatenation that alone reads it."""
        readers = self.graph.consumers[name]
        return readers[0].name if self._only_reader(name) and readers[0].op is Op.CONCAT else name

    def _same_codes(self, node: Node, order: np.ndarray | None = None) -> QTensor:
        """The tensor of an operation that passes codes through."""
        x, name = self.tensors[node.inputs[0]], self._final(node)
        return self._tensor(
            name, Parameters(x.scale, x.zero_point), self._standard_order(name) if order is None else order
        )

    def _clamp(self, node: Node, tensor: QTensor) -> Clamp:
        if node.name not in self.clamps:
            return Clamp()
        six = tensor.zero_point + int(arithmetic.round_half_away(float(np.float32(6) / np.float32(tensor.scale))))
        upper = 127 if self.clamps[node.name].op is Op.RELU else min(127, six)
        return Clamp(lower=tensor.zero_point, upper=upper)

    def _emit(self, kind: type[QOp], node: Node, tensor: QTensor, inputs: Sequence[str], **fields: Any) -> None:
        self.ops.append(kind(name=tensor.name, inputs=tuple(inputs), source=node.source, **fields))

    # order of elements

    def _standard_order(self, name: str) -> np.ndarray:
        return device_order(self.graph.values[name].shape, self.rank3_is_image)

    def _require_standard(self, node: Node | None, name: str, use: str) -> None:
        if not np.array_equal(self.orders[name], self._standard_order(name)):
            source = self.graph.values[name].source
            raise UnsupportedOpError(
                f"int8 quantization: '{name}' (module '{source}') holds a flattened image and {use}; on the device its elements "
                "lie in another order (height, width, channel). Linear layers, element-wise functions and concatenations may read "
                "it; pool to 1x1 before flattening, or put a linear layer next"
            )

    def _require_standard_inputs(self, node: Node) -> None:
        for name in self.graph.activations(node):
            self._require_standard(node, name, f"is read by '{node.op}' (value '{node.name}', module '{node.source}')")

    def _unsupported(self, node: Node, what: str, allowed: str) -> UnsupportedOpError:
        return UnsupportedOpError(
            f"int8 quantization has no rule for '{node.op}' {what} (value '{node.name}', module '{node.source}'); {allowed}"
        )

    def _require_image(self, node: Node) -> None:
        if len(device_shape(self.graph.shape(node.inputs[0]), self.rank3_is_image)) != 3:
            raise self._unsupported(
                node,
                f"of shape {list(self.graph.shape(node.inputs[0]))}",
                "it takes images (batch, channel, height, width)",
            )

    # layers with weights

    def _conv(self, node: Node) -> None:
        source, extra = node.inputs[0], (0, 0, 0, 0)
        if source in self.padded:
            pad = self.padded[source]
            source, extra = pad.inputs[0], self._spatial_padding(pad) or extra
        self._require_image(node)
        self._require_standard(node, source, f"is read by a convolution (module '{node.source}')")
        weight = self._real(node.inputs[1])
        weight = weight[:, :, None, :] if weight.ndim == 3 else weight
        down, right = _two(node["padding"], 0)
        fields = self._weights(node, self.tensors[source], np.ascontiguousarray(np.moveaxis(weight, 1, -1)))
        self._emit(
            qgraph.Conv2d,
            node,
            self.tensors[self._final(node)],
            [source],
            **fields,
            stride=_two(node["stride"], 1),
            dilation=_two(node["dilation"], 1),
            padding=(down + extra[0], right + extra[1], down + extra[2], right + extra[3]),
            groups=node["groups"],
        )

    def _linear(self, node: Node) -> None:
        x = node.inputs[0]
        rank = len(self.graph.shape(x))
        if rank == 4 or (rank == 3 and self.rank3_is_image):
            raise self._unsupported(
                node,
                f"on the width axis of {list(self.graph.shape(x))}",
                "flatten the image first, or use a 1x1 convolution",
            )
        weight = self._real(node.inputs[1])
        if rank == 2:
            weight = weight[:, self.orders[x]]
        else:
            self._require_standard_inputs(node)
        fields = self._weights(node, self.tensors[x], np.ascontiguousarray(weight))
        self._emit(qgraph.Linear, node, self.tensors[self._final(node)], [x], **fields)

    def _weights(self, node: Node, x: QTensor, weight: np.ndarray) -> dict[str, Any]:
        """Integer weights and scales of a layer; makes its output tensor."""
        bias = self._real(node.inputs[2]) if len(node.inputs) > 2 else np.zeros(len(weight))
        integers = quantize_weights(weight, bias, x.scale, self.per_channel)
        least_scale = least_output_scale(x.scale * integers.weight_scale, integers.bound)
        y = self._output(node, least_scale)
        multiplier, shift = channel_multipliers(x.scale, integers.weight_scale, y.scale)
        # Layers that share a weight share its codes, so that they are stored once.
        key = (node.inputs[1], integers.weight.shape, integers.weight.tobytes())
        return {
            "weight": self.weight_cache.setdefault(key, integers.weight),
            "bias": integers.bias,
            "weight_scale": integers.weight_scale,
            "multiplier": multiplier,
            "shift": shift,
            "clamp": self._clamp(node, y),
        }

    def _real(self, name: str) -> np.ndarray:
        return self.graph.weights[name].double().numpy()

    # two values

    def _add(self, node: Node) -> None:
        first, second = self._pair(node)
        if self.tensors[first].shape != self.tensors[second].shape:
            shapes = f"{list(self.graph.shape(first))} and {list(self.graph.shape(second))}"
            raise self._unsupported(node, f"of shapes {shapes}", "both must have one shape")
        if node.op is Op.SUB:
            second = self._negated(node, second)
        a, b = self.tensors[first], self.tensors[second]
        # Twice the scale at which the output would be finer than the inputs' 20 extra bits.
        y = self._output(node, 4 * max(a.scale, b.scale) / 2**arithmetic.ADD_LEFT_SHIFT, self.orders[first])
        multiplier, shift = arithmetic.add_multipliers(a.scale, b.scale, y.scale)
        self._emit(qgraph.Add, node, y, [first, second], multiplier=multiplier, shift=shift, clamp=self._clamp(node, y))

    def _negated(self, node: Node, name: str) -> str:
        """The value times -1, exactly: code -> -1 - code, zero point -> -1 - zero point."""
        x, negated = self.tensors[name], f"{node.name}.negated"
        self.tensors[negated] = QTensor(negated, x.shape, x.scale, -1 - x.zero_point, node.source)
        self.orders[negated] = self.orders[name]
        table = np.arange(127, -129, -1).astype(np.int8)
        self._emit(qgraph.Lookup, node, self.tensors[negated], [name], table=table, function="negate")
        return negated

    def _mul(self, node: Node) -> None:
        first, second = self._pair(node)
        if np.prod(self.tensors[first].shape) < np.prod(self.tensors[second].shape):
            first, second = second, first
        a, b = self.tensors[first], self.tensors[second]
        if b.shape not in (a.shape, (1, 1, a.shape[-1]), a.shape[-1:]):
            shapes = f"{list(self.graph.shape(first))} and {list(self.graph.shape(second))}"
            raise self._unsupported(
                node, f"of shapes {shapes}", "the second must have the first's shape, or one value a channel"
            )
        product_scale = a.scale * b.scale
        y = self._output(node, least_output_scale(product_scale, 255.0 * 255.0), self.orders[first])
        if self._covering(y.name) == y.name:  # else a concatenation sets the scale
            y = self.tensors[y.name] = replace(y, scale=product_output_scale(a.scale, b.scale, y.scale))
        multiplier, shift = arithmetic.quantize_multiplier(product_scale / y.scale)
        self._emit(qgraph.Mul, node, y, [first, second], multiplier=multiplier, shift=shift, clamp=self._clamp(node, y))

    def _pair(self, node: Node) -> tuple[str, str]:
        first, second = node.inputs
        if not np.array_equal(self.orders[first], self.orders[second]):
            self._require_standard_inputs(node)
        return first, second

    # windows and reductions

    def _max_pool(self, node: Node) -> None:
        self._require_image(node)
        self._pool(node, qgraph.MaxPool2d, dilation=_two(node["dilation"], 1))

    def _avg_pool(self, node: Node) -> None:
        self._require_image(node)
        if any(node["padding"]) and node["count_include_pad"]:
            raise self._unsupported(
                node,
                f"with padding {node['padding']} that is counted in the mean",
                "give count_include_pad=False or padding=0",
            )
        x, y = self.graph.shape(node.inputs[0]), self.graph.shape(node.name)
        covers = all(size == 1 for size in y[2:]) and tuple(node["kernel"]) == tuple(x[2:]) and not any(node["padding"])
        if covers:
            self._mean_of_image(node)
        else:
            self._pool(node, qgraph.AvgPool2d)

    def _pool(self, node: Node, kind: type[QOp], **fields: Any) -> None:
        kernel, stride, padding = _two(node["kernel"], 1), _two(node["stride"], 1), _two(node["padding"], 0)
        self._require_standard_inputs(node)
        x, y = self.tensors[node.inputs[0]], self._same_codes(node)
        dilation = fields.get("dilation", (1, 1))
        # With ceil_mode the last window may hang over: pad as far as it reaches.
        after = [
            max(before, (out - 1) * step + (size - 1) * spread + 1 - extent - before) if node["ceil_mode"] else before
            for before, out, step, size, spread, extent in zip(
                padding, y.shape, stride, kernel, dilation, x.shape, strict=False
            )
        ]
        self._emit(
            kind,
            node,
            y,
            node.inputs,
            kernel=kernel,
            stride=stride,
            padding=(*padding, *after),
            clamp=self._clamp(node, y),
            **fields,
        )

    def _mean(self, node: Node) -> None:
        self._require_image(node)
        rank = len(self.graph.shape(node.inputs[0]))
        axes = tuple(sorted(node["dim"])) if isinstance(node["dim"], tuple) else (node["dim"],)
        if axes != tuple(range(2, rank)):
            raise self._unsupported(
                node, f"over axes {axes}", f"it takes the mean over the whole image, axes {(2, 3)[: rank - 2]}"
            )
        self._mean_of_image(node)

    def _mean_of_image(self, node: Node) -> None:
        self._require_standard_inputs(node)
        x = self.tensors[node.inputs[0]]
        count = x.shape[0] * x.shape[1]
        # The multiplier may be half of the usual, so its shift one more.
        y = self._output(node, 2 * least_output_scale(x.scale / count, 255.0 * count))
        multiplier, shift = arithmetic.mean_multiplier(x.scale, y.scale, count)
        self._emit(qgraph.Mean, node, y, node.inputs, multiplier=multiplier, shift=shift, clamp=self._clamp(node, y))

    def _softmax(self, node: Node) -> None:
        shape = self.graph.shape(node.inputs[0])
        rank = len(shape)
        x = self.tensors[node.inputs[0]]
        if device_axis(node["dim"], rank, self.rank3_is_image) != len(x.shape) - 1:
            raise self._unsupported(
                node, f"over axis {node['dim']} of {list(shape)}", "it runs over the channels or features"
            )
        y = self._tensor(node.name, Parameters(1 / 256, -128), self.orders[x.name])
        multiplier, shift, diff_min = softmax_parameters(x.scale)
        self._emit(qgraph.Softmax, node, y, node.inputs, multiplier=multiplier, shift=shift, diff_min=diff_min)

    # functions of one value

    def _lookup(self, chain: Sequence[Node]) -> None:
        (source,) = self.graph.activations(chain[0])
        x, last = self.tensors[source], chain[-1]
        parameters = activation_parameters(*self.ranges[self._covering(last.name)])
        if self._covering(last.name) == last.name:
            parameters = _KNOWN_PARAMETERS.get(last.op, parameters)
        y = self._tensor(last.name, parameters, self.orders[source])
        values = (_CODES - x.zero_point) * x.scale
        for node in chain:
            arguments = [
                self.graph.weights[name].double() if name in self.graph.weights else values for name in node.inputs
            ]
            values = FLOAT_RULES[node.op].evaluate(node, *arguments).reshape(256)
        names = ", ".join(self._function_name(node) for node in chain)
        self._emit(qgraph.Lookup, last, y, [source], table=y.quantize(values.numpy()), function=names)

    def _function_name(self, node: Node) -> str:
        if node.op in UNARY_OPS:
            return str(node.op)
        symbol = {Op.ADD: "+", Op.SUB: "-", Op.MUL: "*"}[node.op]
        words = [f"{float(self.graph.weights[name]):g}" if name in self.graph.weights else "x" for name in node.inputs]
        return f" {symbol} ".join(words)

    def _requantized(self, node: Node, name: str, target: QTensor, index: int) -> str:
        x = self.tensors[name]
        if (x.scale, x.zero_point) == (target.scale, target.zero_point):
            return name
        changed = f"{node.name}.requantized_{index}"
        self.tensors[changed] = QTensor(changed, x.shape, target.scale, target.zero_point, node.source)
        self.orders[changed] = self.orders[name]
        table = target.quantize(((_CODES - x.zero_point) * x.scale).numpy())
        self._emit(qgraph.Lookup, node, self.tensors[changed], [name], table=table, function="requantize")
        return changed

    # data movement

    def _concat(self, node: Node) -> None:
        rank = len(self.graph.shape(node.name))
        if rank == 2:
            offsets = np.cumsum([0, *(len(self.orders[name]) for name in node.inputs)])
            pairs = zip(node.inputs, offsets, strict=False)
            order = np.concatenate([self.orders[name] + offset for name, offset in pairs])
        else:
            self._require_standard_inputs(node)
            order = None
        # The range goes unused where all inputs agree already, as pieces of one value do.
        same = {(self.tensors[name].scale, self.tensors[name].zero_point) for name in node.inputs}
        y = self._same_codes(node, order) if len(same) == 1 else self._output(node, 0.0, order)
        changed: dict[str, str] = {}
        for index, name in enumerate(node.inputs):
            changed.setdefault(name, "")
            changed[name] = changed[name] or self._requantized(node, name, y, index)
        axis = device_axis(node["dim"], rank, self.rank3_is_image)
        self._emit(qgraph.Concat, node, y, [changed[name] for name in node.inputs], axis=axis)

    def _pad(self, node: Node) -> None:
        self._require_image(node)
        self._require_standard_inputs(node)
        padding = self._spatial_padding(node)
        if padding is None or node["value"] != 0:
            raise self._unsupported(
                node,
                f"by {node['padding']} with value {node['value']}",
                "it pads height and width by 0 or more, with zeros",
            )
        self._emit(qgraph.Pad, node, self._same_codes(node), node.inputs, padding=padding)

    def _spatial_padding(self, node: Node) -> tuple[int, int, int, int] | None:
        """Top, left, bottom, right; None if other axes are padded too, or something is cut off."""
        rank = len(self.graph.shape(node.inputs[0]))
        spatial = 2 * (rank - 2)
        if len(device_shape(self.graph.shape(node.inputs[0]), self.rank3_is_image)) != 3:
            return None
        edges = [*node["padding"], *(0,) * (2 * rank - len(node["padding"]))]
        if min(edges) < 0 or any(edges[spatial:]):
            return None
        left, right = edges[:2]
        top, bottom = edges[2:4] if rank == 4 else (0, 0)
        return top, left, bottom, right

    def _reshape(self, node: Node) -> None:
        shape = self.graph.shape(node.name)
        order = self.orders[node.inputs[0]]
        if len(shape) != 2 and not np.array_equal(order, self._standard_order(node.name)):
            raise self._unsupported(
                node,
                f"from {list(self.graph.shape(node.inputs[0]))} to {list(shape)}, which moves data on the device",
                "flattening, and adding or dropping axes of size 1, are known",
            )
        self._emit(qgraph.Reshape, node, self._same_codes(node, order), node.inputs)

    def _upsample_nearest(self, node: Node) -> None:
        self._require_image(node)
        self._require_standard_inputs(node)
        self._emit(qgraph.UpsampleNearest, node, self._same_codes(node), node.inputs, factor=_two(node["factor"], 1))


_RULES: dict[Op, Callable[[_Lowering, Node], None]] = {
    Op.CONV: _Lowering._conv,
    Op.LINEAR: _Lowering._linear,
    Op.ADD: _Lowering._add,
    Op.SUB: _Lowering._add,
    Op.MUL: _Lowering._mul,
    Op.MAX_POOL: _Lowering._max_pool,
    Op.AVG_POOL: _Lowering._avg_pool,
    Op.MEAN: _Lowering._mean,
    Op.SOFTMAX: _Lowering._softmax,
    Op.CONCAT: _Lowering._concat,
    Op.PAD: _Lowering._pad,
    Op.RESHAPE: _Lowering._reshape,
    Op.UPSAMPLE_NEAREST: _Lowering._upsample_nearest,
}

SUPPORTED_OPS: frozenset[Op] = frozenset(_RULES) | UNARY_OPS | {Op.BATCH_NORM}
"""Kinds of node that can be quantized; batch norm is folded before lowering."""


def _is_one_dimensional(node: Node, graph: Graph) -> bool:
    if node.op is Op.CONV:
        return len(graph.shape(node.inputs[1])) == 3
    return node.op in (Op.MAX_POOL, Op.AVG_POOL) and len(node["kernel"]) == 1


def _two(sizes: tuple[int, ...], first: int) -> tuple[int, int]:
    """Sizes of two axes; a 1-d layer runs along the width of an image of height 1."""
    return (first, sizes[0]) if len(sizes) == 1 else (sizes[0], sizes[1])

"""From the suffix of an integer graph to the forward half of a training program, everything spelled out: sums, requantization, masks.

Masks and kept channels are made for every operation that could use them; those that no gradient asks for are removed as dead code, and
what then needs nothing for training goes back to inference's own kernels (``fusion``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from math import prod

import numpy as np
from jaxtyping import Int32

from lilliput.errors import ConfigError, GraphError
from lilliput.mcu.training import graph as t
from lilliput.mcu.training.arithmetic import (
    BIAS_FRACTION_BITS,
    LARGEST_MASTER,
    MASTER_FRACTION_BITS,
    bias_fraction_bits,
    gradient_bits,
)
from lilliput.mcu.training.cut import Cut
from lilliput.mcu.training.loss import logit_multiplier
from lilliput.mcu.training.optimizer import SGD
from lilliput.mcu.training.update_plan import UpdatePlan, head_of, weighted_layers
from lilliput.quantize import qgraph as q
from lilliput.quantize.arithmetic import round_half_away

HEAD_ROOM = 8.0
"""A new head's scale lets its weights grow to so many times their largest start."""


def forward(qgraph: q.QuantizedGraph, cut: Cut, plan: UpdatePlan, optimizer: SGD, head: q.Linear) -> t.Program:
    """The suffix as sums, requantizations, masks, kept channels and the loss.

    Args:
        qgraph: the whole network.
        cut: of it.
        plan: what is trained.
        optimizer: says how masters are kept.
        head: the last layer as it is to be trained, weights of one scale; see :func:`head_with_one_scale` and :func:`new_head`.
    Raises:
        GraphError: a layer whose sums could leave 32 bits once its weights have moved.
    """
    builder = _Builder(qgraph, cut, plan, optimizer)
    for op in cut.suffix[:-1]:
        builder.operation(op)
    builder.head(replace(head, inputs=cut.suffix[-1].inputs))
    return builder.program()


def new_head(qgraph: q.QuantizedGraph, num_classes: int, seed: int = 0) -> q.Linear:
    """A fresh last layer: small seeded weights, no bias, and a scale with room to grow.

    Weights are uniform within 1 / sqrt(features), as linear layers are commonly begun.
    """
    if num_classes < 2:
        raise ConfigError(f"num_classes={num_classes}: must be 2 or more")
    old = head_of(qgraph)
    features = old.weight.shape[1]
    bound = features**-0.5
    real = np.random.default_rng(seed).uniform(-bound, bound, (num_classes, features))
    scale = float(np.float32(HEAD_ROOM * bound / 127))
    return replace(
        old,
        weight=round_half_away(real / scale).astype(np.int8),
        bias=np.zeros(num_classes, dtype=np.int32),
        weight_scale=np.full(num_classes, scale),
        multiplier=np.full(num_classes, 2**30, dtype=np.int32),
        shift=np.zeros(num_classes, dtype=np.int32),
    )


def head_with_one_scale(qgraph: q.QuantizedGraph) -> q.Linear:
    """The network's own last layer, its weights and biases brought to the largest of its scales, so that logits can be compared as sums."""
    head = head_of(qgraph)
    scale = float(head.weight_scale.max())
    ratio = head.weight_scale / scale
    return replace(
        head,
        weight=round_half_away(head.weight * ratio[:, None]).astype(np.int8),
        bias=round_half_away(head.bias * ratio).astype(np.int32),
        weight_scale=np.full(len(ratio), scale),
    )


def logit_scale(layer: t.Layer) -> float:
    """Nats that one unit of the head's sums stands for."""
    return layer.input_scale * float(layer.weight_scale[0])


class _Builder:
    def __init__(self, qgraph: q.QuantizedGraph, cut: Cut, plan: UpdatePlan, optimizer: SGD) -> None:
        self.qgraph, self.cut, self.optimizer = qgraph, cut, optimizer
        layers = weighted_layers(qgraph)
        self.trained_biases = {op.name for op in layers[len(layers) - plan.bias_depth :]}
        self.channels: Mapping[str, tuple[int, ...]] = plan.updates()
        self.ops: list[t.Op] = []
        self.buffers: dict[str, t.Buffer] = {}
        self.parameters: dict[str, t.Parameter] = {}
        self.layers: dict[str, t.Layer] = {}
        self.logits = ""
        self.buffer(cut.between, "activation", qgraph.tensors[cut.between].shape)

    def program(self) -> t.Program:
        return t.Program(
            name=self.qgraph.name,
            input=self.cut.between,
            logits=self.logits,
            tensors=self.qgraph.tensors,
            buffers=self.buffers,
            parameters=self.parameters,
            ops=tuple(self.ops),
            layers=self.layers,
        )

    def buffer(self, name: str, role: t.Role, shape: tuple[int, ...], unit: float = 1.0) -> str:
        self.buffers[name] = t.Buffer(name, role, shape, unit)
        return name

    def operation(self, op: q.QOp) -> None:
        shape = self.qgraph.tensors[op.name].shape
        self.buffer(op.name, "activation", shape)
        if isinstance(op, (q.Conv2d, q.Linear)):
            self.layer_forward(op)
        elif isinstance(op, q.Add):
            self.add(op)
        elif isinstance(op, q.Mean):
            self.mean(op)
        else:
            self.ops.append(t.Infer(name=op.name, inputs=op.inputs, outputs=(op.name,), qop=op))

    def layer_forward(self, op: q.Conv2d | q.Linear) -> None:
        layer = self.layer(op, self.channels.get(op.name, ()), trains_bias=op.name in self.trained_biases)
        y = self.qgraph.tensors[op.name]
        total = self.buffer(f"{op.name}.sum", "sum", layer.output_shape)
        mask = self.buffer(f"{op.name}.mask", "mask", layer.output_shape)
        scaling = t.Scaling(multiplier=op.multiplier, shift=op.shift, zero_point=y.zero_point, clamp=op.clamp)
        self.ops += self.keep(layer, op.inputs[0])
        self.ops.append(t.ConvSum(name=total, inputs=op.inputs, outputs=(total,), layer=layer))
        self.ops.append(t.Requantize(name=op.name, inputs=(total,), outputs=(op.name, mask), scaling=scaling))

    def keep(self, layer: t.Layer, x: str) -> Iterator[t.Op]:
        if layer.channels and not layer.trains_all_channels:
            height, width, _ = layer.input_shape
            kept = self.buffer(f"{layer.name}.kept", "activation", (height, width, len(layer.channels)))
            yield t.Keep(
                name=kept, inputs=(x,), outputs=(kept,), input_shape=layer.input_shape, channels=layer.channels
            )

    def add(self, op: q.Add) -> None:
        first, second, y = (self.qgraph.tensors[name] for name in (*op.inputs, op.name))
        mask = self.buffer(f"{op.name}.mask", "mask", y.shape)
        self.ops.append(
            t.Add(
                name=op.name,
                inputs=op.inputs,
                outputs=(op.name, mask),
                qop=op,
                input_zero_points=(first.zero_point, second.zero_point),
                zero_point=y.zero_point,
            )
        )

    def mean(self, op: q.Mean) -> None:
        x, y = self.qgraph.tensors[op.inputs[0]], self.qgraph.tensors[op.name]
        mask = self.buffer(f"{op.name}.mask", "mask", y.shape)
        self.ops.append(
            t.Mean(
                name=op.name,
                inputs=op.inputs,
                outputs=(op.name, mask),
                qop=op,
                input_shape=_image(x.shape),
                input_zero_point=x.zero_point,
                zero_point=y.zero_point,
            )
        )

    def head(self, op: q.Linear) -> None:
        layer = self.layer(op, tuple(range(op.weight.shape[1])), trains_bias=True)
        if layer.pixels != 1:
            raise GraphError(
                f"head '{op.name}' (module '{op.source}') reads {layer.pixels} vectors; a classifier's last layer reads one; pool before it"
            )
        classes = len(op.weight)
        self.logits = self.buffer(f"{op.name}.logits", "sum", (1, 1, classes))
        self.ops.append(t.ConvSum(name=self.logits, inputs=op.inputs, outputs=(self.logits,), layer=layer))
        multiplier, shift = logit_multiplier(logit_scale(layer))
        gradient = self.buffer(f"d.{self.logits}", "gradient", (1, 1, classes), unit=logit_scale(layer))
        self.ops.append(
            t.Loss(
                name=gradient,
                inputs=(self.logits,),
                outputs=(gradient,),
                multiplier=multiplier,
                shift=shift,
                bits=gradient_bits(classes),
            )
        )

    def layer(self, op: q.Conv2d | q.Linear, channels: tuple[int, ...], *, trains_bias: bool) -> t.Layer:
        x = self.qgraph.tensors[op.inputs[0]]
        weight = op.weight if isinstance(op, q.Conv2d) else op.weight[:, None, None, :]
        is_image = isinstance(op, q.Conv2d)
        input_shape = _image(x.shape) if is_image else (prod(x.shape[:-1]), 1, x.shape[-1])
        output_shape = (
            _image(self.qgraph.tensors[op.name].shape) if is_image else (prod(x.shape[:-1]), 1, len(op.weight))
        )
        layer = t.Layer(
            name=op.name,
            source=op.source,
            qop=op,
            input_shape=input_shape,
            output_shape=output_shape,
            weight=weight,
            bias=op.bias,
            input_zero_point=x.zero_point,
            input_scale=x.scale,
            weight_scale=op.weight_scale,
            channels=channels,
            weight_parameter=f"{op.name}.weight" if channels else None,
            bias_parameter=f"{op.name}.bias" if trains_bias else None,
        )
        if isinstance(op, q.Conv2d):
            layer = replace(layer, stride=op.stride, dilation=op.dilation, padding=op.padding, groups=op.groups)
        if channels:
            layer = self.with_trained_weights(layer)
        if trains_bias:
            self.train_bias(layer)
        _verify_sums(layer, op.shift if op.name != self.cut.suffix[-1].name else np.zeros(1, dtype=np.int32))
        self.layers[layer.name] = layer
        return layer

    def with_trained_weights(self, layer: t.Layer) -> t.Layer:
        start = layer.weight.reshape(-1)[layer.selection]
        if start.min() < -127:
            raise GraphError(
                f"'{layer.name}' (module '{layer.source}') has a weight of -128; trained weights are -127 to 127: requantize the layer"
            )
        is_fine = self.optimizer.master == "int16"
        master = start.astype(np.int16) << MASTER_FRACTION_BITS if is_fine else start
        assert layer.weight_parameter is not None
        self.parameters[layer.weight_parameter] = t.Parameter(
            layer.weight_parameter, layer.name, "weight", master, MASTER_FRACTION_BITS if is_fine else 0
        )
        frozen = layer.weight.copy()
        frozen.reshape(-1)[layer.selection] = 0
        return replace(layer, weight=frozen)

    def train_bias(self, layer: t.Layer) -> None:
        assert layer.bias_parameter is not None
        bits = bias_fraction_bits(layer.bias)
        master = (layer.bias.astype(np.int64) << bits).astype(np.int32)
        self.parameters[layer.bias_parameter] = t.Parameter(layer.bias_parameter, layer.name, "bias", master, bits)


def _verify_sums(layer: t.Layer, shift: Int32[np.ndarray, " out"]) -> None:
    """No sum leaves int32, whatever the trained numbers become."""
    magnitude = np.abs(layer.weight.astype(np.float64))
    magnitude.reshape(-1)[layer.selection if layer.channels else []] = LARGEST_MASTER >> MASTER_FRACTION_BITS
    bias = np.abs(layer.bias.astype(np.float64))
    if layer.bias_parameter is not None:
        bias[:] = 2.0 ** (30 - min(BIAS_FRACTION_BITS, bias_fraction_bits(layer.bias)))
    bound = (256 * magnitude.reshape(len(bias), -1).sum(axis=1) + bias) * 2.0 ** np.maximum(shift, 0)
    if bound.max() >= 2**31:
        raise GraphError(
            f"'{layer.name}' (module '{layer.source}') could reach {int(bound.max()):,} in its 32-bit sums once its weights have moved "
            "(bound 2,147,483,647); train fewer of its input channels, or leave it out"
        )


def _image(shape: tuple[int, ...]) -> t.Image:
    height, width, channels = shape
    return height, width, channels

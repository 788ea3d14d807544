"""What each kind of node means: inputs, attributes, value and multiply-accumulates. One row a kind.

Every consumer that needs a shape gets it from the same evaluation, run on torch's ``meta`` device, so shape and value cannot disagree.
Padding, stride, kernel and dilation are tuples with one entry a spatial axis, the same on both sides of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor

from lilliput.graph.graph import Node, Op

Shape = tuple[int, ...]


def no_macs(node: Node, inputs: Sequence[Shape], output: Shape) -> int:
    """For kinds that multiply nothing by a weight or a second matrix."""
    return 0


@dataclass(frozen=True)
class OpRule:
    """Everything the foundation knows of one kind."""

    inputs: tuple[str, ...]
    """Names of the inputs in order; a trailing ``?`` marks one that may be left out."""
    attrs: tuple[str, ...]
    """Names of the attributes, all required."""
    evaluate: Callable[..., Tensor]
    """``evaluate(node, *tensors)``: the meaning."""
    macs: Callable[[Node, Sequence[Shape], Shape], int] = no_macs
    """``macs(node, input shapes, output shape)``: multiply-accumulates; additions of a bias are not counted."""
    is_elementwise: bool = False
    """Each output element depends on the inputs' elements at its own place only, so it may overwrite its first input."""
    mixes_batch: Callable[[Node], bool] = lambda node: False
    """Whether axis 0 is more than a batch to this node: then another batch size would change its meaning."""


def _axes(node: Node, name: str) -> Shape:
    """An attribute that is one axis or several, as a tuple."""
    value = node[name]
    return value if isinstance(value, tuple) else (value,)


def _conv(node: Node, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    convolve = F.conv1d if weight.dim() == 3 else F.conv2d
    return convolve(x, weight, bias, node["stride"], node["padding"], node["dilation"], node["groups"])


def _batch_norm(
    node: Node, x: Tensor, mean: Tensor, var: Tensor, weight: Tensor | None = None, bias: Tensor | None = None
) -> Tensor:
    return F.batch_norm(x, mean, var, weight, bias, training=False, eps=node["eps"])


def _layer_norm(node: Node, x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
    return F.layer_norm(x, node["normalized_shape"], weight, bias, node["eps"])


def _max_pool(node: Node, x: Tensor) -> Tensor:
    pool = F.max_pool1d if len(node["kernel"]) == 1 else F.max_pool2d
    return pool(x, node["kernel"], node["stride"], node["padding"], node["dilation"], node["ceil_mode"])


def _avg_pool(node: Node, x: Tensor) -> Tensor:
    pool = F.avg_pool1d if len(node["kernel"]) == 1 else F.avg_pool2d
    return pool(x, node["kernel"], node["stride"], node["padding"], node["ceil_mode"], node["count_include_pad"])


def _adaptive_avg_pool(node: Node, x: Tensor) -> Tensor:
    pool = F.adaptive_avg_pool1d if len(node["output"]) == 1 else F.adaptive_avg_pool2d
    return pool(x, node["output"])


def _reshape(node: Node, x: Tensor) -> Tensor:
    shape = node["shape"]
    return x.reshape((x.shape[0], *shape[1:]) if shape and shape[0] == 0 else shape)


def _slice(node: Node, x: Tensor) -> Tensor:
    take = [slice(None)] * x.dim()
    take[node["dim"]] = slice(node["start"], node["stop"], node["step"])
    return x[tuple(take)]


def _upsample_nearest(node: Node, x: Tensor) -> Tensor:
    for axis, factor in enumerate(node["factor"], start=2):
        x = x.repeat_interleave(factor, dim=axis)
    return x


def _conv_macs(node: Node, inputs: Sequence[Shape], output: Shape) -> int:
    return prod(output) * prod(inputs[1][1:])


def _linear_macs(node: Node, inputs: Sequence[Shape], output: Shape) -> int:
    return prod(output) * inputs[1][1]


def _matmul_macs(node: Node, inputs: Sequence[Shape], output: Shape) -> int:
    return prod(output) * inputs[0][-1]


def _elementwise(function: Callable[[Tensor], Tensor]) -> OpRule:
    return OpRule(("x",), (), lambda node, x: function(x), is_elementwise=True)


def _pair(function: Callable[[Tensor, Tensor], Tensor]) -> OpRule:
    return OpRule(("a", "b"), (), lambda node, a, b: function(a, b), is_elementwise=True)


RULES: dict[Op, OpRule] = {
    Op.CONV: OpRule(("x", "weight", "bias?"), ("stride", "padding", "dilation", "groups"), _conv, _conv_macs),
    Op.LINEAR: OpRule(("x", "weight", "bias?"), (), lambda node, x, w, b=None: F.linear(x, w, b), _linear_macs),
    Op.BATCH_NORM: OpRule(("x", "mean", "var", "weight?", "bias?"), ("eps",), _batch_norm, is_elementwise=True),
    Op.LAYER_NORM: OpRule(("x", "weight?", "bias?"), ("normalized_shape", "eps"), _layer_norm),
    Op.EMBEDDING: OpRule(("indices", "table"), (), lambda node, indices, table: F.embedding(indices, table)),
    Op.RELU: _elementwise(F.relu),
    Op.RELU6: _elementwise(F.relu6),
    Op.HARD_SWISH: _elementwise(F.hardswish),
    Op.HARD_SIGMOID: _elementwise(F.hardsigmoid),
    Op.SIGMOID: _elementwise(torch.sigmoid),
    Op.SILU: _elementwise(F.silu),
    Op.TANH: _elementwise(torch.tanh),
    Op.GELU: OpRule(
        ("x",), ("approximate",), lambda node, x: F.gelu(x, approximate=node["approximate"]), is_elementwise=True
    ),
    Op.LEAKY_RELU: OpRule(("x",), ("slope",), lambda node, x: F.leaky_relu(x, node["slope"]), is_elementwise=True),
    Op.PRELU: OpRule(("x", "weight"), (), lambda node, x, weight: F.prelu(x, weight), is_elementwise=True),
    Op.HARD_TANH: OpRule(
        ("x",), ("lower", "upper"), lambda node, x: F.hardtanh(x, node["lower"], node["upper"]), is_elementwise=True
    ),
    # beyond threshold / beta torch returns x itself
    Op.SOFTPLUS: OpRule(
        ("x",),
        ("beta", "threshold"),
        lambda node, x: F.softplus(x, node["beta"], node["threshold"]),
        is_elementwise=True,
    ),
    Op.ELU: OpRule(("x",), ("alpha",), lambda node, x: F.elu(x, node["alpha"]), is_elementwise=True),
    Op.SOFTMAX: OpRule(
        ("x",), ("dim",), lambda node, x: F.softmax(x, node["dim"]), mixes_batch=lambda node: node["dim"] == 0
    ),
    Op.ADD: _pair(torch.add),
    Op.SUB: _pair(torch.sub),
    Op.MUL: _pair(torch.mul),
    Op.MATMUL: OpRule(("a", "b"), (), lambda node, a, b: torch.matmul(a, b), _matmul_macs),
    Op.MAX_POOL: OpRule(("x",), ("kernel", "stride", "padding", "dilation", "ceil_mode"), _max_pool),
    Op.AVG_POOL: OpRule(("x",), ("kernel", "stride", "padding", "ceil_mode", "count_include_pad"), _avg_pool),
    Op.ADAPTIVE_AVG_POOL: OpRule(("x",), ("output",), _adaptive_avg_pool),
    Op.MEAN: OpRule(
        ("x",),
        ("dim", "keepdim"),
        lambda node, x: x.mean(node["dim"], keepdim=node["keepdim"]),
        mixes_batch=lambda node: 0 in _axes(node, "dim"),
    ),
    Op.CONCAT: OpRule(
        ("x", "..."), ("dim",), lambda node, *xs: torch.cat(xs, node["dim"]), mixes_batch=lambda node: node["dim"] == 0
    ),
    # padding in torch's order: last axis first, (before, after) for each
    Op.PAD: OpRule(("x",), ("padding", "value"), lambda node, x: F.pad(x, node["padding"], value=node["value"])),
    # a leading 0 in shape keeps axis 0, whatever the batch
    Op.RESHAPE: OpRule(
        ("x",), ("shape",), _reshape, mixes_batch=lambda node: not node["shape"] or node["shape"][0] != 0
    ),
    Op.PERMUTE: OpRule(
        ("x",), ("dims",), lambda node, x: x.permute(node["dims"]), mixes_batch=lambda node: node["dims"][0] != 0
    ),
    Op.SLICE: OpRule(("x",), ("dim", "start", "stop", "step"), _slice, mixes_batch=lambda node: node["dim"] == 0),
    Op.UPSAMPLE_NEAREST: OpRule(("x",), ("factor",), _upsample_nearest),
}


def output_meta(node: Node, inputs: Sequence[Tensor]) -> Tensor:
    """Shape and dtype of a node's output, from its meaning evaluated without data."""
    return RULES[node.op].evaluate(node, *(tensor.to("meta") for tensor in inputs))


def is_depthwise(node: Node, input_shapes: Sequence[Shape]) -> bool:
    """A convolution with one input channel a group."""
    return node.op is Op.CONV and node["groups"] > 1 and node["groups"] == input_shapes[0][1]

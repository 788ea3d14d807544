"""What a legal integer graph is, checked whenever one is made: order, shapes, code ranges, and no sum that leaves 32 bits.

The bounds are proofs, not samples. A weighted sum of codes less their zero point is at most ``255 * sum|w| + |bias|`` away from zero; we
ask that ``256 * sum|w| + |bias|`` stay below 2**31, which also covers kernels that sum the raw codes and fold the zero point into the
bias. Where the rescaling shifts left first, the shifted sum must fit too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from lilliput.errors import GraphError
from lilliput.quantize import qgraph as q

if TYPE_CHECKING:
    from lilliput.quantize.qgraph import QOp, QTensor, QuantizedGraph

Shape = tuple[int, ...]


def verify(graph: QuantizedGraph) -> None:
    """Check the whole graph.

    Raises:
        GraphError: the first broken rule, naming the operation and its module.
    """
    known = {graph.input}
    for name, tensor in graph.tensors.items():
        where = f"integer graph '{graph.name}': tensor '{name}'"
        _require(tensor.name == name, f"{where} calls itself '{tensor.name}'")
        _require(math.isfinite(tensor.scale) and tensor.scale > 0, f"{where} has scale {tensor.scale}; must be above 0")
        _require(-128 <= tensor.zero_point <= 127, f"{where} has zero point {tensor.zero_point}; must be -128 to 127")
        _require(all(size > 0 for size in tensor.shape), f"{where} has shape {list(tensor.shape)}; sizes are above 0")
    for op in graph.ops:
        where = f"integer graph '{graph.name}': '{op.name}' ({type(op).__name__}, module '{op.source}')"
        for name in op.inputs:
            _require(name in known and name in graph.tensors, f"{where} reads '{name}' before it is made")
        _require(op.name not in known and op.name in graph.tensors, f"{where} is made twice or has no tensor")
        known.add(op.name)
        verify_op(op, [graph.tensors[name] for name in op.inputs], graph.tensors[op.name], where)
    for name in (graph.input, *graph.outputs):
        _require(
            name in graph.tensors and name in known,
            f"integer graph '{graph.name}': '{name}' is named as input or output but is not made",
        )
    extra = set(graph.tensors) - known
    _require(not extra, f"integer graph '{graph.name}': tensors {sorted(extra)} are made by no operation")


def verify_op(op: QOp, inputs: Sequence[QTensor], output: QTensor, where: str) -> None:
    """Check one operation against its tensors; ``where`` begins the message."""
    least, most = _INPUTS.get(type(op), (1, 1))
    _require(least <= len(op.inputs) <= most, f"{where} has {len(op.inputs)} inputs; takes {least}")
    shape = output_shape(op, inputs, output.shape, where)
    _require(shape == output.shape, f"{where} makes {list(shape)}, but its tensor says {list(output.shape)}")
    clamp = getattr(op, "clamp", None)
    if clamp is not None:
        legal = -128 <= clamp.lower <= clamp.upper <= 127
        _require(legal, f"{where} clamps to [{clamp.lower}, {clamp.upper}]; must lie within [-128, 127]")
    if type(op) in _SAME_CODES:
        same = all((each.scale, each.zero_point) == (output.scale, output.zero_point) for each in inputs)
        _require(same, f"{where} passes codes through, so inputs and output must have one scale and zero point")
    if isinstance(op, (q.Conv2d, q.Linear)):
        _verify_weights(op, where)
    if isinstance(op, q.Mul):
        _verify_fits(np.array([255 * 255]), np.array([op.shift]), where)
    if isinstance(op, q.Mean):
        _verify_fits(np.array([255 * prod(inputs[0].shape[:2])]), np.array([op.shift]), where)


def output_shape(op: QOp, inputs: Sequence[QTensor], said: Shape, where: str = "") -> Shape:
    """The shape an operation gives its result; ``said`` decides what it leaves open (a reshape's, where a part ends).

    Raises:
        GraphError: it does not fit its inputs.
    """
    rule = _SHAPES.get(type(op))
    _require(rule is not None, f"{where} is of a kind without a rule")
    assert rule is not None
    return rule(op, [tensor.shape for tensor in inputs], said, where)


def _verify_weights(op: q.Conv2d | q.Linear, where: str) -> None:
    inside = (op.shift >= -31) & (op.shift <= 30) & (op.multiplier >= 0)
    _require(bool(inside.all()), f"{where} has a multiplier below 0 or a shift outside [-31, 30]")
    _verify_fits(accumulator_bound(op), op.shift, where)


def accumulator_bound(op: q.Conv2d | q.Linear) -> np.ndarray:
    """The largest magnitude each output channel's accumulator can reach, whatever the input codes and zero point."""
    weight = np.abs(op.weight.astype(np.int64)).reshape(len(op.weight), -1)
    return 256 * weight.sum(axis=1) + np.abs(op.bias.astype(np.int64))


def _verify_fits(bound: np.ndarray, shift: np.ndarray, where: str) -> None:
    # In floats, exactly, since a sum of this size shifted by 30 would leave int64 too.
    raised = np.asarray(bound, dtype=np.float64) * 2.0 ** np.maximum(np.asarray(shift, dtype=np.int64), 0)
    worst = int(np.argmax(raised))
    _require(
        int(raised[worst]) < 2**31,
        f"{where}: channel {worst} can reach {int(raised[worst]):,} in its 32-bit accumulator (bound 2,147,483,647); "
        "use fewer input channels, smaller weights or a larger output range",
    )


def _window(size: int, before: int, after: int, kernel: int, stride: int, dilation: int) -> int:
    return (size + before + after - (dilation * (kernel - 1) + 1)) // stride + 1


def _image(shape: Shape, where: str) -> tuple[int, int, int]:
    _require(len(shape) == 3, f"{where} reads shape {list(shape)}; takes an image (height, width, channel)")
    return shape[0], shape[1], shape[2]


def _windowed(op: Any, shape: Shape, kernel: Shape, dilation: Shape, where: str) -> Shape:
    height, width, _ = _image(shape, where)
    top, left, bottom, right = op.padding
    _require(min(op.padding) >= 0 and min(op.stride) >= 1, f"{where} has padding below 0 or stride below 1")
    return (
        _window(height, top, bottom, kernel[0], op.stride[0], dilation[0]),
        _window(width, left, right, kernel[1], op.stride[1], dilation[1]),
    )


def _conv2d(op: q.Conv2d, inputs: list[Shape], output: Shape, where: str) -> Shape:
    out, kernel_height, kernel_width, in_per_group = op.weight.shape
    channels = _image(inputs[0], where)[2]
    fits = channels == in_per_group * op.groups and out % op.groups == 0
    _require(fits, f"{where}: weight {list(op.weight.shape)} in {op.groups} groups does not fit {channels} channels")
    return (*_windowed(op, inputs[0], (kernel_height, kernel_width), op.dilation, where), out)


def _linear(op: q.Linear, inputs: list[Shape], output: Shape, where: str) -> Shape:
    fits = bool(inputs[0]) and inputs[0][-1] == op.weight.shape[1]
    _require(fits, f"{where}: weight {list(op.weight.shape)} does not fit input {list(inputs[0])}")
    return (*inputs[0][:-1], op.weight.shape[0])


def _mul(op: q.Mul, inputs: list[Shape], output: Shape, where: str) -> Shape:
    first, second = inputs
    allowed = (first, (1, 1, first[-1]), first[-1:])
    _require(
        second in allowed, f"{where}: second input {list(second)} is neither {list(first)} nor one value a channel"
    )
    return first


def _same(op: QOp, inputs: list[Shape], output: Shape, where: str) -> Shape:
    _require(len(set(inputs)) == 1, f"{where} reads shapes {[list(shape) for shape in inputs]}; must be one shape")
    return inputs[0]


def _mean(op: q.Mean, inputs: list[Shape], output: Shape, where: str) -> Shape:
    channels = _image(inputs[0], where)[2]
    return (channels,) if len(output) == 1 else (1, 1, channels)


def _concat(op: q.Concat, inputs: list[Shape], output: Shape, where: str) -> Shape:
    axis = op.axis
    rests = {(*shape[:axis], *shape[axis + 1 :]) for shape in inputs}
    _require(0 <= axis < len(inputs[0]) and len(rests) == 1, f"{where} cannot join {inputs} along axis {axis}")
    return (*inputs[0][:axis], sum(shape[axis] for shape in inputs), *inputs[0][axis + 1 :])


def _pad(op: q.Pad, inputs: list[Shape], output: Shape, where: str) -> Shape:
    height, width, channels = _image(inputs[0], where)
    top, left, bottom, right = op.padding
    _require(min(op.padding) >= 0, f"{where} has padding {op.padding}; must be 0 or more")
    return height + top + bottom, width + left + right, channels


def _reshape(op: q.Reshape, inputs: list[Shape], output: Shape, where: str) -> Shape:
    return output if prod(output) == prod(inputs[0]) else inputs[0]


def _upsample(op: q.UpsampleNearest, inputs: list[Shape], output: Shape, where: str) -> Shape:
    height, width, channels = _image(inputs[0], where)
    return height * op.factor[0], width * op.factor[1], channels


def _crop(op: q.Crop, inputs: list[Shape], output: Shape, where: str) -> Shape:
    height, width, channels = _image(inputs[0], where)
    fits = len(output) == 3 and op.top >= 0 and op.left >= 0
    fits = fits and op.top + output[0] <= height and op.left + output[1] <= width
    _require(fits, f"{where} takes {list(output)} at ({op.top}, {op.left}) of {list(inputs[0])}")
    return output[0], output[1], channels


def _paste(op: q.Paste, inputs: list[Shape], output: Shape, where: str) -> Shape:
    height, width, channels = _image(inputs[0], where)
    fits = len(output) == 3 and op.top >= 0 and op.left >= 0
    fits = fits and op.top + height <= output[0] and op.left + width <= output[1] and channels == output[2]
    _require(fits, f"{where} puts {list(inputs[0])} at ({op.top}, {op.left}) of {list(output)}")
    return inputs[1] if len(inputs) > 1 else output


def _pool(op: q.AvgPool2d | q.MaxPool2d, inputs: list[Shape], output: Shape, where: str) -> Shape:
    dilation = op.dilation if isinstance(op, q.MaxPool2d) else (1, 1)
    spatial = _windowed(op, inputs[0], op.kernel, dilation, where)
    top, left, bottom, right = op.padding
    effective = [(kernel - 1) * step + 1 for kernel, step in zip(op.kernel, dilation, strict=True)]
    inside = max(top, bottom) < effective[0] and max(left, right) < effective[1]
    _require(inside, f"{where}: padding {op.padding} leaves a window of {op.kernel} without a pixel")
    return (*spatial, inputs[0][2])


_SHAPES: dict[type[QOp], Callable[..., Shape]] = {
    q.Conv2d: _conv2d,
    q.Linear: _linear,
    q.Add: _same,
    q.Mul: _mul,
    q.AvgPool2d: _pool,
    q.MaxPool2d: _pool,
    q.Mean: _mean,
    q.Softmax: _same,
    q.Lookup: _same,
    q.Concat: _concat,
    q.Pad: _pad,
    q.Reshape: _reshape,
    q.UpsampleNearest: _upsample,
    q.Crop: _crop,
    q.Paste: _paste,
}
"""Output shape from input shapes: ``rule(op, input shapes, said output shape, where)``."""

_SAME_CODES = {q.AvgPool2d, q.MaxPool2d, q.Concat, q.Pad, q.Reshape, q.UpsampleNearest, q.Crop, q.Paste}
_INPUTS: dict[type[QOp], tuple[int, int]] = {q.Add: (2, 2), q.Mul: (2, 2), q.Concat: (1, 10**6), q.Paste: (1, 2)}
"""Least and most inputs, where it is not one."""


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise GraphError(message)

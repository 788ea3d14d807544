"""The integer graph: int8 activations in NHWC, int32 accumulators, and nothing else.

This is what runs on a microcontroller, what the integer interpreter evaluates, and what memory planning and C generation read. The
arithmetic is that of the TensorFlow Lite int8 specification, to the bit; it is written once in ``lilliput.quantize.arithmetic`` (Python) and
once in the C kernels, and the tests hold the two together.

Shapes leave out the batch: an image is (height, width, channel), a vector (features,). Real value = scale * (code - zero_point).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod

import numpy as np
from jaxtyping import Float64, Int8, Int32

from lilliput.errors import GraphError


@dataclass(frozen=True)
class QTensor:
    """An int8 activation."""

    name: str
    shape: tuple[int, ...]
    scale: float
    zero_point: int
    source: str = ""

    @property
    def bytes(self) -> int:
        """Size in memory: one byte an element."""
        return prod(self.shape)


@dataclass(frozen=True, kw_only=True)
class QOp:
    """One integer operation; ``name`` is also the name of its output tensor."""

    name: str
    inputs: tuple[str, ...]
    source: str = ""


@dataclass(frozen=True, kw_only=True)
class Clamp:
    """Range of the output codes: [-128, 127] narrowed by a fused activation (ReLU: lower = zero point)."""

    lower: int = -128
    upper: int = 127


@dataclass(frozen=True, kw_only=True, eq=False)
class Conv2d(QOp):
    """2-d convolution. out = clamp(requantize(sum((x - zx) * w) + bias) + zy); outside the image x = zx."""

    weight: Int8[np.ndarray, "out kh kw in_per_group"]
    bias: Int32[np.ndarray, " out"]
    weight_scale: Float64[np.ndarray, " out"]
    multiplier: Int32[np.ndarray, " out"]
    """Q31 mantissa of input_scale * weight_scale / output_scale, in [2**30, 2**31)."""
    shift: Int32[np.ndarray, " out"]
    """Its power of two: above 0 shifts left before, below 0 rounds right after."""
    stride: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    """Top, left, bottom, right; they may differ."""
    groups: int = 1
    clamp: Clamp = field(default_factory=Clamp)

    @property
    def is_depthwise(self) -> bool:
        """One input channel a group (the channel multiplier may be above 1)."""
        return self.weight.shape[3] == 1 and self.groups > 1


@dataclass(frozen=True, kw_only=True, eq=False)
class Linear(QOp):
    """Fully connected layer on a vector (features,), or on the last axis of more."""

    weight: Int8[np.ndarray, "out in"]
    bias: Int32[np.ndarray, " out"]
    weight_scale: Float64[np.ndarray, " out"]
    multiplier: Int32[np.ndarray, " out"]
    shift: Int32[np.ndarray, " out"]
    clamp: Clamp = field(default_factory=Clamp)


@dataclass(frozen=True, kw_only=True)
class Add(QOp):
    """Sum of two tensors of one shape. Each (x - zx) << 20 is rescaled by its multiplier, the sum by the output's."""

    multiplier: tuple[int, int, int]
    """First input, second input, output."""
    shift: tuple[int, int, int]
    clamp: Clamp = field(default_factory=Clamp)


@dataclass(frozen=True, kw_only=True)
class Mul(QOp):
    """Product; the second input may be (1, 1, channel) or (channel,) and is then repeated over the image."""

    multiplier: int
    shift: int
    clamp: Clamp = field(default_factory=Clamp)


@dataclass(frozen=True, kw_only=True)
class AvgPool2d(QOp):
    """Mean of the codes in a window, rounded half away from zero; padding is not counted. Scale and zero point pass through."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    clamp: Clamp = field(default_factory=Clamp)


@dataclass(frozen=True, kw_only=True)
class MaxPool2d(QOp):
    """Largest code in a window; padding never wins. Scale and zero point pass through."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilation: tuple[int, int] = (1, 1)
    clamp: Clamp = field(default_factory=Clamp)


@dataclass(frozen=True, kw_only=True)
class Mean(QOp):
    """Mean over height and width with a rescale: requantize(sum(x - zx)), multiplier = sx / (sy * height * width)."""

    multiplier: int
    shift: int
    clamp: Clamp = field(default_factory=Clamp)


@dataclass(frozen=True, kw_only=True)
class Softmax(QOp):
    """Over the last axis, in fixed point; the output has scale 1/256 and zero point -128."""

    multiplier: int
    shift: int
    diff_min: int
    """Codes further below the maximum than this give exactly 0."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Lookup(QOp):
    """Any function of one code: a table of 256 (sigmoid, tanh, hard-swish, gelu, a change of scale, ...)."""

    table: Int8[np.ndarray, "256"]
    """Indexed by code + 128."""
    function: str
    """What it tabulates, for people."""


@dataclass(frozen=True, kw_only=True)
class Concat(QOp):
    """Along one axis; all inputs have the output's scale and zero point (a Lookup before it sees to that)."""

    axis: int


@dataclass(frozen=True, kw_only=True)
class Pad(QOp):
    """Zero padding of an image by (top, left, bottom, right); the border holds the zero point."""

    padding: tuple[int, int, int, int]


@dataclass(frozen=True, kw_only=True)
class Reshape(QOp):
    """The same bytes under another shape."""


@dataclass(frozen=True, kw_only=True)
class UpsampleNearest(QOp):
    """Each pixel repeated by whole factors (height, width)."""

    factor: tuple[int, int]


@dataclass(frozen=True, eq=False)
class QuantizedGraph:
    """An int8 network: tensors, operations in running order, one input, one or more outputs."""

    name: str
    input: str
    outputs: tuple[str, ...]
    tensors: Mapping[str, QTensor]
    ops: tuple[QOp, ...]

    def __post_init__(self) -> None:
        known = {self.input}
        for op in self.ops:
            for name in op.inputs:
                if name not in known:
                    raise GraphError(f"integer graph '{self.name}': '{op.name}' reads '{name}' before it is made")
            if op.name in known or op.name not in self.tensors:
                raise GraphError(f"integer graph '{self.name}': '{op.name}' is made twice or has no tensor")
            known.add(op.name)
        for name in (self.input, *self.outputs):
            if name not in self.tensors or name not in known:
                raise GraphError(f"integer graph '{self.name}': '{name}' is named as input or output but is not made")

    def output_of(self, op: QOp) -> QTensor:
        """The tensor an operation makes."""
        return self.tensors[op.name]

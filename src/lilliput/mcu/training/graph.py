"""The typed program of a training step: operations over buffers, and the trained parameters that outlive it.

Everything a step does after the frozen prefix is a list of operations in running order. A buffer is made by exactly one operation (it may
be planned onto the bytes of another); a parameter is read by forward and input-gradient operations and moved in place by at most one. Each
kind of operation has one definition, in ``interpreter``, and those that remain after fusion one C kernel.

=====================  ============================  ================================================================================
kind                   reads -> makes                meaning
=====================  ============================  ================================================================================
infer                  int8.. -> int8                any operation of an integer graph, by the kernel that inference has
conv_sum               x -> sum                      sum((x - zx) * w) + bias, int32; of the head it is the logits
requantize             sum -> y, mask                rescaled, moved by the zero point, clamped; the mask says where it was not
conv                   x -> y[, mask]                conv_sum and requantize in one (fused)
add                    a, b -> y[, mask]             residual addition
mean                   x -> y[, mask]                mean over the image, rescaled
keep                   x -> kept                     the selected channels of an activation, for a weight gradient later
loss                   logits -> g                   softmax cross-entropy; the label comes from outside
mask_gradient          g, mask -> g                  0 where the forward pass clamped
scale_gradient         g[, mask] -> ga               times a factor per channel: from codes of y to accumulators; with a mask fused
conv_dx                ga -> gx                      transposed convolution with the old weights
conv_dw                ga, x -> gw                   weight gradient of the selected channels, int32
bias_gradient          ga -> gb                      sum over pixels, int32
weight_step            gw -> (weights)               gradient descent on a weight master
bias_step              gb -> (biases)                gradient descent on a bias master
conv_dw_step           ga, x -> (weights)            conv_dw and weight_step in one (fused): no gradient is ever stored
bias_gradient_step     ga -> (biases)                bias_gradient and bias_step in one (fused)
add_gradients          g1, g2 -> g                   fan-out: a tensor with several readers gets the sum
pool_dx                g -> gx                       average pooling backwards; a mean backwards where it has to be spelled out
=====================  ============================  ================================================================================

Linear layers are convolutions with a 1x1 window over an image of (positions, 1, features). Shapes have no batch axis: a step sees
one sample.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from math import gcd, prod
from typing import ClassVar, Literal

import numpy as np
from jaxtyping import Float64, Int8, Int32, Int64, Shaped

from lilliput.quantize import qgraph as q
from lilliput.quantize.qgraph import Clamp, QOp, QTensor

Image = tuple[int, int, int]
"""Height, width, channels."""
Role = Literal["activation", "mask", "gradient", "sum", "parameter gradient"]

_ELEMENT_BITS: Mapping[Role, int] = {
    "activation": 8,
    "mask": 1,
    "gradient": 16,
    "sum": 32,
    "parameter gradient": 32,
}


@dataclass(frozen=True)
class Buffer:
    """Bytes that one operation makes and later ones read."""

    name: str
    role: Role
    shape: tuple[int, ...]
    unit: float = 1.0
    """Of gradients: the real gradient is mantissa * 2**exponent * unit."""

    @property
    def elements(self) -> int:
        """How many numbers it holds."""
        return prod(self.shape)

    @property
    def bytes(self) -> int:
        """Size in memory: masks are packed, bit i of the flat order in byte i // 8 at place i % 8."""
        return -(-self.elements * _ELEMENT_BITS[self.role] // 8)

    @property
    def has_exponent(self) -> bool:
        """Whether a run-time exponent goes with it: a machine word beside the arena."""
        return self.role in ("gradient", "parameter gradient")


@dataclass(frozen=True, eq=False)
class Parameter:
    """A trained tensor: in memory from the first step to the last."""

    name: str
    layer: str
    role: Literal["weight", "bias"]
    initial: Shaped[np.ndarray, " ..."]
    """Masters at the start, flat: weights int16 (Q7.8) or int8 (codes) in the order of :meth:`Layer.selection`, biases int32."""
    fraction_bits: int
    """How many of its bits lie behind the point."""

    @property
    def bytes(self) -> int:
        """Size in memory."""
        return self.initial.nbytes


@dataclass(frozen=True, eq=False)
class Layer:
    """A convolution or linear layer of the suffix, shared by all operations on it.

    Weights lie in flash once, int8 in (out, kh, kw, in_per_group) order, with 0 where a weight is trained; trained weights are added from
    their master. Forward and input-gradient kernels read both.
    """

    name: str
    source: str
    qop: q.Conv2d | q.Linear
    """As it was before training."""
    input_shape: Image
    output_shape: Image
    weight: Int8[np.ndarray, "out kh kw in_per_group"]
    bias: Int32[np.ndarray, " out"]
    """Of a layer whose bias is not trained; else the codes at the start."""
    input_zero_point: int
    input_scale: float
    weight_scale: Float64[np.ndarray, " out"]
    stride: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    """Top, left, bottom, right."""
    groups: int = 1
    channels: tuple[int, ...] = ()
    """Selected input channels, ascending; empty: no weight is trained."""
    weight_parameter: str | None = None
    bias_parameter: str | None = None

    @property
    def kernel(self) -> tuple[int, int]:
        """Height and width of the window."""
        return self.weight.shape[1], self.weight.shape[2]

    @property
    def is_depthwise(self) -> bool:
        """One input channel a group."""
        return self.weight.shape[3] == 1 and self.groups > 1

    @property
    def trains_all_channels(self) -> bool:
        """Every weight is trained: nothing of it is left in flash but its start."""
        return len(self.channels) == self.input_shape[2]

    @cached_property
    def selection(self) -> Int64[np.ndarray, " trained"]:
        """Flat places in ``weight`` of the trained ones, in the master's order: (out, kh, kw, selected channel of the group).

        A selected input channel c belongs to group ``c // in_per_group``; an output channel has weights for the channels of its group.
        """
        out, kernel_height, kernel_width, per_group = self.weight.shape
        chosen = np.zeros(self.input_shape[2], dtype=bool)
        chosen[list(self.channels)] = True
        of_group = chosen.reshape(self.groups, per_group)
        group = np.arange(out) // (out // self.groups)
        is_trained = np.broadcast_to(of_group[group][:, None, None, :], (out, kernel_height, kernel_width, per_group))
        return np.flatnonzero(is_trained)

    @property
    def products(self) -> int:
        """Most products that meet in one element of the input's gradient: output channels of a group times taps on a pixel.

        Along an axis, tap i of a pixel's windows counts where pixel - i * dilation is a multiple of the stride: every
        stride / gcd(stride, dilation)-th of them.
        """
        every = [stride // gcd(stride, dilation) for stride, dilation in zip(self.stride, self.dilation, strict=True)]
        taps = [-(-kernel // each) for kernel, each in zip(self.kernel, every, strict=True)]
        return self.weight.shape[0] // self.groups * prod(taps)

    @property
    def largest_input(self) -> int:
        """Most that an input code is away from the zero point."""
        return max(127 - self.input_zero_point, self.input_zero_point + 128)

    @property
    def pixels(self) -> int:
        """Output positions: products summed into one weight's gradient, at most."""
        return self.output_shape[0] * self.output_shape[1]


@dataclass(frozen=True, eq=False)
class StepFactors:
    """What turns a gradient into a step, per output channel: learning rate, scaling, unit, fraction bits (``arithmetic.step``)."""

    mantissa: Int32[np.ndarray, " out"]
    exponent: Int32[np.ndarray, " out"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Op:
    """One operation. ``inputs`` and ``outputs`` name buffers, in the order of the table above."""

    kind: ClassVar[str]
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    @property
    def uses(self) -> tuple[str, ...]:
        """Parameters it reads."""
        return ()

    @property
    def updates(self) -> tuple[str, ...]:
        """Parameters it moves in place."""
        return ()


@dataclass(frozen=True, kw_only=True, eq=False)
class Infer(Op):
    """An operation of the integer graph that needs nothing for training."""

    kind: ClassVar[str] = "infer"
    qop: QOp


@dataclass(frozen=True, kw_only=True, eq=False)
class _OnLayer(Op):
    layer: Layer


@dataclass(frozen=True, kw_only=True, eq=False)
class _Products(_OnLayer):
    """Reads the layer's weights and biases."""

    @property
    def uses(self) -> tuple[str, ...]:
        return tuple(each for each in (self.layer.weight_parameter, self.layer.bias_parameter) if each is not None)


@dataclass(frozen=True, kw_only=True, eq=False)
class ConvSum(_Products):
    """int32 sums of products plus bias."""

    kind: ClassVar[str] = "conv_sum"


@dataclass(frozen=True, kw_only=True, eq=False)
class Scaling:
    """From a sum to an output code: ``arithmetic.requantize`` of lilliput.quantize."""

    multiplier: Int32[np.ndarray, " out"]
    shift: Int32[np.ndarray, " out"]
    zero_point: int
    clamp: Clamp


@dataclass(frozen=True, kw_only=True, eq=False)
class Requantize(Op):
    """Sums to codes. Mask bit: lower <= code before clamping <= upper."""

    kind: ClassVar[str] = "requantize"
    scaling: Scaling


@dataclass(frozen=True, kw_only=True, eq=False)
class Conv(_Products):
    """A layer forward; the mask, its second output, is made only where a gradient will pass."""

    kind: ClassVar[str] = "conv"
    scaling: Scaling


@dataclass(frozen=True, kw_only=True, eq=False)
class Add(Op):
    """Residual addition as in inference, and its mask where a gradient will pass."""

    kind: ClassVar[str] = "add"
    qop: q.Add
    input_zero_points: tuple[int, int]
    zero_point: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Mean(Op):
    """Mean over height and width as in inference, and its mask where a gradient will pass."""

    kind: ClassVar[str] = "mean"
    qop: q.Mean
    input_shape: Image
    input_zero_point: int
    zero_point: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Keep(Op):
    """The selected channels of each pixel: int8 (pixels, selected)."""

    kind: ClassVar[str] = "keep"
    input_shape: Image
    channels: tuple[int, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class Loss(Op):
    """Softmax cross-entropy of int32 logits and a label, in fixed point (see ``loss``)."""

    kind: ClassVar[str] = "loss"
    multiplier: int
    shift: int
    """Logits times ``multiplier * 2**(shift - 31)`` are Q5.26 nats."""
    bits: int
    """Magnitude bits of the gradient's mantissas."""


@dataclass(frozen=True, kw_only=True, eq=False)
class MaskGradient(Op):
    """Zero where clamped; a gradient of one pixel is repeated over the image."""

    kind: ClassVar[str] = "mask_gradient"


@dataclass(frozen=True, kw_only=True, eq=False)
class ScaleGradient(_OnLayer):
    """Gradient of a layer's output codes to one of its sums: ``arithmetic.scale_gradient``.

    The mask, its second input if it has one, is applied first. A gradient of one pixel is repeated over the image.
    """

    kind: ClassVar[str] = "scale_gradient"
    factor: Int32[np.ndarray, " out"]
    """``eff[c] = sx * sw[c] / sy`` times the unit of the gradient read."""
    factor_exponent: int
    bits: int
    """Magnitude bits that conv_dx can take."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ConvInputGradient(_OnLayer):
    """Transposed convolution with the weights as they were in the forward pass; int32 sums, normalised to 15 bits."""

    kind: ClassVar[str] = "conv_dx"

    @property
    def uses(self) -> tuple[str, ...]:
        """The weights alone."""
        return () if self.layer.weight_parameter is None else (self.layer.weight_parameter,)


@dataclass(frozen=True, kw_only=True, eq=False)
class ConvWeightGradient(_OnLayer):
    """Per trained weight: sum over pixels of ga * (x - zx), truncated by ``sum_shift`` bits, int32 in the master's order.

    The second input is the layer's input or, ``is_kept``, its selected channels alone.
    """

    kind: ClassVar[str] = "conv_dw"
    sum_shift: int
    is_kept: bool


@dataclass(frozen=True, kw_only=True, eq=False)
class BiasGradient(_OnLayer):
    """Per output channel: sum over pixels of ga, truncated by ``sum_shift`` bits."""

    kind: ClassVar[str] = "bias_gradient"
    sum_shift: int


@dataclass(frozen=True, kw_only=True, eq=False)
class _WeightMover(_OnLayer):
    factors: StepFactors
    rule: Literal["int16", "int8", "nearest", "truncate"]

    @property
    def updates(self) -> tuple[str, ...]:
        assert self.layer.weight_parameter is not None
        return (self.layer.weight_parameter,)


@dataclass(frozen=True, kw_only=True, eq=False)
class WeightStep(_WeightMover):
    """A stored weight gradient, applied."""

    kind: ClassVar[str] = "weight_step"


@dataclass(frozen=True, kw_only=True, eq=False)
class ConvWeightStep(_WeightMover):
    """conv_dw and weight_step in one: each gradient is used as soon as it is summed."""

    kind: ClassVar[str] = "conv_dw_step"
    sum_shift: int
    is_kept: bool


@dataclass(frozen=True, kw_only=True, eq=False)
class _BiasMover(_OnLayer):
    factors: StepFactors
    truncates: bool
    """Whole codes, truncated towards zero: the published device's rule. Else rounded half away at the master's last place."""

    @property
    def updates(self) -> tuple[str, ...]:
        assert self.layer.bias_parameter is not None
        return (self.layer.bias_parameter,)


@dataclass(frozen=True, kw_only=True, eq=False)
class BiasStep(_BiasMover):
    """A stored bias gradient, applied."""

    kind: ClassVar[str] = "bias_step"


@dataclass(frozen=True, kw_only=True, eq=False)
class BiasGradientStep(_BiasMover):
    """bias_gradient and bias_step in one."""

    kind: ClassVar[str] = "bias_gradient_step"
    sum_shift: int


@dataclass(frozen=True, kw_only=True, eq=False)
class AddGradients(Op):
    """Sum of two gradients of one tensor: ``arithmetic.add_gradients``."""

    kind: ClassVar[str] = "add_gradients"
    factors: tuple[int, int]
    """Of the two units, each in [2**14, 2**15)."""
    factor_exponents: tuple[int, int]


@dataclass(frozen=True, kw_only=True, eq=False)
class PoolGradient(Op):
    """Each input pixel gets the sum over the windows it lies in of g * row_weights[y] * column_weights[x], int32, normalised.

    Padding is not counted by the pooling, so windows at the border are means of fewer pixels: the weights are whole numbers proportional to
    1 / pixels, and their common divisor is in the gradient's unit.
    """

    kind: ClassVar[str] = "pool_dx"
    input_shape: Image
    output_shape: Image
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int, int, int]
    row_weights: tuple[int, ...]
    column_weights: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Program:
    """A training step after the frozen prefix, in running order."""

    name: str
    input: str
    """The prefix's result."""
    logits: str
    tensors: Mapping[str, QTensor]
    """Activations of the integer graph that ``infer`` operations refer to."""
    buffers: Mapping[str, Buffer]
    parameters: Mapping[str, Parameter]
    """In the order in which weights are hashed and saved: layers as they run, weights before biases, the head last."""
    ops: tuple[Op, ...]
    layers: Mapping[str, Layer] = field(default_factory=dict)

    @property
    def head(self) -> Layer:
        """The last layer: its sums are the logits."""
        return next(op.layer for op in self.ops if isinstance(op, ConvSum) and op.outputs == (self.logits,))

    @property
    def parameter_bytes(self) -> int:
        """Memory that trained parameters take."""
        return sum(parameter.bytes for parameter in self.parameters.values())

    def __str__(self) -> str:
        from lilliput.mcu.training.text import to_text

        return to_text(self)

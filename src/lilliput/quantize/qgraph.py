"""The integer graph: int8 activations in NHWC, int32 accumulators, and nothing else.

This is what runs on a microcontroller, what the integer interpreter evaluates, and what memory planning and C generation read. The
arithmetic is that of the TensorFlow Lite int8 specification, to the bit; it is written once in ``lilliput.quantize.arithmetic``
(Python) and once in the C kernels, and the tests hold the two together.

Shapes leave out the batch: an image is (height, width, channel), a vector (features,). Real value = scale * (code - zero_point).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Float64, Int8, Int32, Shaped

from lilliput.errors import DataError


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

    def quantize(self, values: Shaped[np.ndarray, "*shape"]) -> Int8[np.ndarray, "*shape"]:
        """Nearest codes of real values, ties away from zero; what lies outside the range gets the end codes."""
        from lilliput.quantize.arithmetic import round_half_away

        # Clipped before rounding, so that a huge value cannot leave int64.
        steps = np.clip(values.astype(np.float64) / self.scale, -256.0, 256.0)
        return np.clip(round_half_away(steps) + self.zero_point, -128, 127).astype(np.int8)

    def dequantize(self, codes: Shaped[np.ndarray, "*shape"]) -> Float32[np.ndarray, "*shape"]:
        """Real values of codes."""
        return ((codes.astype(np.float64) - self.zero_point) * self.scale).astype(np.float32)


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
    """Q31 mantissa of input_scale * weight_scale / output_scale, in [2**30, 2**31); 0 where that is below 2**-32."""
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
    """Mean over height and width with a rescale: requantize(sum(x - zx)), multiplier = sx / (sy * height * width).

    The output is (1, 1, channel) or (channel,); the multiplier may lie below 2**30 (see ``arithmetic.mean_multiplier``).
    """

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

    table: Int8[np.ndarray, " 256"]
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


@dataclass(frozen=True, kw_only=True)
class Crop(QOp):
    """A part of an image; scale and zero point pass through."""

    top: int
    left: int
    """First row and column; how many is said by the output tensor's shape."""


@dataclass(frozen=True, kw_only=True)
class Paste(QOp):
    """An image with a part of it replaced: inputs are the piece and, unless it is the first, what the others were pasted into.

    Where no piece has been pasted yet, codes are undefined: nothing may read them.
    """

    top: int
    left: int


@dataclass(frozen=True, eq=False)
class QuantizedGraph:
    """An int8 network: tensors, operations in running order, one input, one or more outputs."""

    name: str
    input: str
    outputs: tuple[str, ...]
    tensors: Mapping[str, QTensor]
    ops: tuple[QOp, ...]

    def __post_init__(self) -> None:
        from lilliput.quantize.verify import verify

        verify(self)

    def output_of(self, op: QOp) -> QTensor:
        """The tensor an operation makes."""
        return self.tensors[op.name]

    def run(self, x: Any) -> Int8[np.ndarray, "batch ..."] | tuple[Int8[np.ndarray, "batch ..."], ...]:
        """Output codes, by integer arithmetic alone.

        Args:
            x: a batch, as an array or tensor. int8: codes, channels last: (batch, height, width, channel) or (batch, features).
                Floats: what the float model takes, channels first; quantized with :meth:`quantize_input`.
        Returns:
            int8 codes, channels last; one array, or a tuple where the graph has several outputs.
        Raises:
            DataError: wrong shape or dtype, NaN or infinite values.
        """
        from lilliput.quantize.interpreter import run

        outputs = run(self, self._codes(x))
        return outputs[0] if len(outputs) == 1 else outputs

    def activations(self, x: Any) -> dict[str, Int8[np.ndarray, "batch ..."]]:
        """The codes of every tensor for a batch, by name: for finding the first operation where two runs differ."""
        from lilliput.quantize.interpreter import run

        seen: dict[str, np.ndarray] = {}
        run(self, self._codes(x), observe=seen.__setitem__)
        return seen

    def quantize_input(self, x: Any) -> Int8[np.ndarray, "batch ..."]:
        """Codes of a batch of floats in the float model's layout: (batch, channel, height, width) becomes channels last.

        Values outside the input's range get its end codes, as on the device.

        Raises:
            DataError: wrong shape or dtype, NaN or infinite values.
        """
        from lilliput.quantize.layout import channels_last

        tensor = self.tensors[self.input]
        values = np.asarray(x.detach().cpu() if hasattr(x, "detach") else x)
        if values.dtype.kind != "f":
            raise DataError(
                f"integer graph '{self.name}': input has dtype {values.dtype}; must be int8 codes, "
                "or floats scaled as the float model takes them"
            )
        if not np.isfinite(values).all():
            raise DataError(f"integer graph '{self.name}': input has NaN or infinite values; all must be finite")
        values = channels_last(values, tensor.shape, f"integer graph '{self.name}': input")
        return tensor.quantize(values)

    def dequantize(self, codes: Any, tensor: str | None = None) -> Float32[np.ndarray, "batch ..."]:
        """Real values of a tensor's codes (of the output, if no other is named), channels first again, as the float model gives them."""
        from lilliput.quantize.layout import channels_first

        if tensor is None and len(self.outputs) > 1:
            raise DataError(
                f"integer graph '{self.name}' has outputs {list(self.outputs)}; name the one these codes are of"
            )
        of = self.tensors[tensor if tensor is not None else self.outputs[0]]
        return channels_first(of.dequantize(np.asarray(codes)))

    def save_tflite(self, path: str | Path) -> Path:
        """Write a TensorFlow Lite file whose reference kernels, in TensorFlow Lite Micro and in LiteRT, give this graph's own bytes.

        One exception: LiteRT multiplies a product's scales as float32, so a :class:`Mul` whose multiplier float32 cannot make may be
        one code off there. ``quantize_int8`` chooses output scales that avoid it, nine times in ten.

        Args:
            path: of the new file, usually ``NAME.tflite``. It appears whole or not at all.
        Returns:
            The path.
        Raises:
            ConfigError: something is at the path already.
            DataError: the file cannot be written there.
            UnsupportedOpError: an operation for which the format has no equal, by name and module.
        """
        from lilliput.quantize.tflite.save import save_tflite

        return save_tflite(self, path)

    @cached_property
    def op_macs(self) -> Mapping[str, int]:
        """Multiply-accumulates by operation, for those that have any."""
        macs = {op.name: prod(self.tensors[op.name].shape) * prod(op.weight.shape[1:]) for op in self._weighted()}
        return {name: count for name, count in macs.items() if count}

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one inference."""
        return sum(self.op_macs.values())

    @property
    def weight_bytes(self) -> int:
        """Bytes of int8 weights and int32 biases; arrays that operations share count once."""
        return _bytes_once(array for op in self._weighted() for array in (op.weight, op.bias))

    @property
    def constant_bytes(self) -> int:
        """Bytes of all constants in flash: weights, biases, int32 multipliers and shifts, lookup tables."""
        scales = (array for op in self._weighted() for array in (op.multiplier, op.shift))
        tables = {op.table.tobytes() for op in self.ops if isinstance(op, Lookup)}
        return self.weight_bytes + _bytes_once(scales) + 256 * len(tables)

    def _weighted(self) -> list[Conv2d | Linear]:
        return [op for op in self.ops if isinstance(op, (Conv2d, Linear))]

    def _codes(self, x: Any) -> Int8[np.ndarray, "batch ..."]:
        values = np.asarray(x.detach().cpu() if hasattr(x, "detach") else x)
        if values.dtype != np.int8:
            return self.quantize_input(values)
        shape = self.tensors[self.input].shape
        if values.shape[1:] != shape:
            raise DataError(
                f"integer graph '{self.name}': int8 input has shape {list(values.shape)}; must be "
                f"(batch, {', '.join(map(str, shape))}), channels last"
            )
        return values

    def __str__(self) -> str:
        from lilliput.quantize.text import to_text

        return to_text(self)


def _bytes_once(arrays: Iterable[np.ndarray]) -> int:
    return sum(array.nbytes for array in {id(array): array for array in arrays}.values())

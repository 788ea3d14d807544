"""An int8 TensorFlow Lite file as an integer graph: one rule an operator.

What the graph computes is what TensorFlow Lite Micro's reference kernels compute, to the bit. So

- multipliers are made of the scales in double precision, and a fused activation's bounds are rounded in float32, as the kernels do;
- functions of one code (LOGISTIC, TANH, HARD_SWISH, RELU, RELU6, int8 QUANTIZE) become tables of what the kernel answers for each code;
- padding that a convolution alone reads becomes the convolution's; other padding stays an operation;
- where an operator passes codes through and the file gives its output another scale, a table that keeps every code changes the scale;
- CAST to int32, ADD 128 and GATHER from 256 codes are one table;
- QUANTIZE at the input and DEQUANTIZE at the outputs are left out: the graph's own input and outputs are then int8.

Two departures. CONCATENATION of int8 inputs with scales of their own is refused by those kernels; here the inputs are rescaled as QUANTIZE
would. RELU6 between two scales rescales, as TensorFlow Lite does on servers (Micro does not).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import isfinite, prod
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64, Shaped

from lilliput.errors import DataError, GraphError, UnsupportedOpError
from lilliput.quantize import qgraph
from lilliput.quantize.arithmetic import add_multipliers, mean_multiplier, quantize_multiplier
from lilliput.quantize.parameters import channel_multipliers
from lilliput.quantize.qgraph import Clamp, QOp, QTensor, QuantizedGraph
from lilliput.quantize.softmax import softmax_parameters
from lilliput.quantize.tflite import tables
from lilliput.quantize.tflite.flatbuffer import Table
from lilliput.quantize.tflite.model import MOST_ELEMENTS, FileModel, FileOperator, FileTensor, printable, read_model
from lilliput.quantize.tflite.schema import Activation, Padding, TensorType, builtin, type_name
from lilliput.quantize.tflite.windows import Edges, nearest_is_whole, same_padding
from lilliput.quantize.verify import verify_op

HOW_TO_CONVERT = "convert with full-integer quantization (TFLITE_BUILTINS_INT8)"


def load_tflite(path: str | Path) -> QuantizedGraph:
    """Read a TensorFlow Lite model with int8 weights and activations.

    Needs no TensorFlow. The file may come from anywhere: it is checked before anything in it is believed.

    Args:
        path: a ``.tflite`` file: one input, batch 1, fixed shapes; weights with one scale a layer or one a channel.
    Returns:
        A graph whose bytes are those of TensorFlow Lite Micro's reference kernels; images are (height, width, channel).
    Raises:
        DataError: no such file, a broken file, or one that contradicts itself.
        UnsupportedOpError: an operator without a rule, by name and place, or a use of one that has no integer rule.
        GraphError: sums that could leave 32 bits, or scales without a multiplier.
    Source: the TensorFlow Lite int8 quantization specification and its reference kernels.
    """
    model = read_model(path)
    return _Loading(model, printable(Path(path).stem) or "model").run()


@dataclass(frozen=True)
class _Padding:
    operator: FileOperator
    source: str
    edges: Edges
    code: int
    zero_point: int


class _Loading:
    def __init__(self, model: FileModel, name: str) -> None:
        self.model, self.name = model, name
        self.ops: list[QOp] = []
        self.tensors: dict[str, QTensor] = {}
        self.names: dict[int, str] = {}  # tensor of the file -> tensor of the graph
        self.pads: dict[int, _Padding] = {}  # tensor of the file -> padding that no operation makes yet
        self.indices: dict[
            int, tuple[str, int]
        ] = {}  # int32 tensor of the file -> the codes it holds, and what was added
        self.weights: dict[Any, np.ndarray] = {}
        self.input: str | None = None
        self.output_indices = frozenset(model.outputs)
        self.first_readers = {index: each for each in reversed(model.operators) for index in each.inputs}

    def run(self) -> QuantizedGraph:
        """Every operator in the file's order."""
        model = self.model
        if len(model.inputs) != 1:
            raise UnsupportedOpError(f"{model.what}: has {len(model.inputs)} inputs; must have one; split the model")
        if not model.outputs:
            raise DataError(f"{model.what}: has no outputs; convert the model again")
        source = model.tensors[model.inputs[0]]
        made = {source.index}
        if source.type == TensorType.INT8:
            self._begin(source)
        for operator in model.operators:
            rule = _RULES.get(operator.code)
            if rule is None:
                known = ", ".join(sorted(OPERATORS))
                raise UnsupportedOpError(f"{model.what}: {operator} has no integer rule; there are rules for {known}")
            for index in operator.outputs:
                if index in made or model.is_constant(model.tensors[index]):
                    raise DataError(f"{model.what}: {operator} makes {model.tensors[index]}, which is made already")
            if len(operator.outputs) != 1:
                raise DataError(f"{model.what}: {operator} has {len(operator.outputs)} outputs; must have one")
            try:
                rule(self, operator)
            except GraphError as error:
                if str(error).startswith(model.what):
                    raise
                raise type(error)(f"{model.what}: {operator}: {error}") from None
            made.update(operator.outputs)
        outputs = tuple(self._output_name(index) for index in model.outputs)
        if self.input is None:
            raise UnsupportedOpError(f"{model.what}: its input, {source}, is never made int8; {HOW_TO_CONVERT}")
        return self._graph(outputs)

    def _graph(self, outputs: tuple[str, ...]) -> QuantizedGraph:
        """The graph, without operations that no output needs."""
        assert self.input is not None
        needed, ops = {*outputs, self.input}, []
        for op in reversed(self.ops):
            if op.name in needed:
                needed.update(op.inputs)
                ops.append(op)
        kept = {name: tensor for name, tensor in self.tensors.items() if name in needed}
        return QuantizedGraph(self.name, self.input, outputs, kept, tuple(reversed(ops)))

    def _output_name(self, index: int) -> str:
        if index in self.pads:
            self._make_padding(index)
        if index not in self.names:
            tensor = self.model.tensors[index]
            raise DataError(f"{self.model.what}: its output, {tensor}, is made by no operator; convert the model again")
        return self.names[index]

    # errors

    def _unsupported(self, operator: FileOperator, what: str, allowed: str) -> UnsupportedOpError:
        return UnsupportedOpError(f"{self.model.what}: {operator} {what}; {allowed}")

    def _broken(self, operator: FileOperator, what: str) -> DataError:
        return DataError(f"{self.model.what}: {operator} {what}; convert the model again")

    # tensors

    def _begin(self, tensor: FileTensor) -> None:
        name = self._add_tensor(tensor, f"the input, {tensor},", "input")
        if self.input is not None:
            raise UnsupportedOpError(f"{self.model.what}: its input is made int8 twice; must be once")
        self.input = name

    def _add_tensor(self, tensor: FileTensor, who: str, source: str) -> str:
        """The graph's tensor for one of the file, checked."""
        scale, zero_point = self._one_scale(tensor, who)
        shape = self._shape(tensor, who)
        name = self._unused(printable(tensor.name.split(";")[0])[:60] or f"tensor_{tensor.index}", tensor.index)
        self.tensors[name] = QTensor(name, shape, scale, zero_point, source)
        self.names[tensor.index] = name
        return name

    def _unused(self, name: str, index: int) -> str:
        while name in self.tensors:
            name = f"{name}.{index}"
        return name

    def _shape(self, tensor: FileTensor, who: str) -> tuple[int, ...]:
        """Without the batch, which must be 1."""
        where = f"{self.model.what}: {who} has shape {list(tensor.shape)}"
        if tensor.type != TensorType.INT8:
            raise UnsupportedOpError(f"{where} of {type_name(tensor.type)}; activations must be int8; {HOW_TO_CONVERT}")
        if tensor.is_variable:
            raise UnsupportedOpError(f"{where} and keeps its value between runs; must be computed anew: no variables")
        if any(size < 0 for size in tensor.signature[1:]) or any(size < 0 for size in tensor.shape):
            raise UnsupportedOpError(
                f"{where}, signature {list(tensor.signature)}; only the batch may change: convert with a fixed input shape"
            )
        if len(tensor.shape) < 2 or tensor.shape[0] != 1:
            raise UnsupportedOpError(f"{where}; must be (1, ...), one sample at a time: convert with batch size 1")
        if len(tensor.shape) > 4 or not 0 < prod(tensor.shape) <= MOST_ELEMENTS:
            raise DataError(f"{where}; must have 2 to 4 axes and 1 to {MOST_ELEMENTS:,} elements")
        return tensor.shape[1:]

    def _one_scale(self, tensor: FileTensor, who: str) -> tuple[float, int]:
        where = f"{self.model.what}: {who}"
        if len(tensor.scale) != 1 or len(tensor.zero_point) != 1:
            raise DataError(
                f"{where} has {len(tensor.scale)} scales and {len(tensor.zero_point)} zero points; must have one of each; {HOW_TO_CONVERT}"
            )
        scale, zero_point = float(tensor.scale[0]), int(tensor.zero_point[0])
        if not (isfinite(scale) and scale > 0 and -128 <= zero_point <= 127):
            raise DataError(
                f"{where} has scale {scale:g} and zero point {zero_point}; the scale must be above 0, the zero point -128 to 127"
            )
        return scale, zero_point

    def _input_tensor(self, operator: FileOperator, position: int) -> FileTensor:
        if position >= len(operator.inputs) or operator.inputs[position] < 0:
            raise self._broken(operator, f"has no input {position}")
        return self.model.tensors[operator.inputs[position]]

    def _read(self, operator: FileOperator, position: int = 0) -> QTensor:
        """An activation that an operator reads."""
        tensor = self._input_tensor(operator, position)
        if tensor.index in self.pads:
            self._make_padding(tensor.index)
        if tensor.index in self.names:
            return self.tensors[self.names[tensor.index]]
        if self.model.is_constant(tensor):
            raise self._unsupported(
                operator, f"reads a constant, {tensor}, as input {position}", "that input must be computed"
            )
        if tensor.type != TensorType.INT8:
            raise self._unsupported(operator, f"reads {tensor}", f"activations must be int8; {HOW_TO_CONVERT}")
        raise self._broken(operator, f"reads {tensor} before it is made")

    def _constant(self, operator: FileOperator, position: int) -> Shaped[np.ndarray, "..."]:
        tensor = self._input_tensor(operator, position)
        if not self.model.is_constant(tensor):
            raise self._unsupported(
                operator, f"computes its input {position}, {tensor}", "that must be a constant of the file"
            )
        return self.model.constant(tensor, operator)

    def _output(self, operator: FileOperator) -> QTensor:
        tensor = self.model.tensors[operator.outputs[0]]
        return self.tensors[self._add_tensor(tensor, f"{operator} makes {tensor}, which", str(operator))]

    def _options(self, operator: FileOperator, kind: int) -> Table | None:
        """The options of this operator; left out, all have their defaults."""
        if operator.options is not None and operator.options_type != kind:
            raise self._broken(operator, f"has options of kind {operator.options_type}, not {kind}")
        return operator.options

    def _emit(self, operator: FileOperator, kind: type[QOp], y: QTensor, *inputs: str, **fields: Any) -> None:
        op = kind(name=y.name, inputs=inputs, source=str(operator), **fields)
        verify_op(op, [self.tensors[name] for name in inputs], y, f"{self.model.what}: {operator}")
        self.ops.append(op)

    def _lookup(self, operator: FileOperator, x: QTensor, y: QTensor, table: np.ndarray, function: str) -> None:
        self._emit(operator, qgraph.Lookup, y, x.name, table=table, function=function)

    def _in_scale_of(self, operator: FileOperator, x: QTensor, y: QTensor, rescale: bool = False) -> QTensor:
        """The same codes called by another tensor's scale; or, rescaled, the same real values."""
        if (x.scale, x.zero_point) == (y.scale, y.zero_point):
            return x
        name = self._unused(f"{x.name}.as.{y.name}"[:100], operator.index)
        changed = self.tensors[name] = replace(y, name=name, shape=x.shape)
        table = tables.requantize_table(x, changed) if rescale else tables.CODES.astype(np.int8)
        self._lookup(operator, x, changed, table, "requantize" if rescale else "same codes")
        return changed

    # layers with weights

    def _conv(self, operator: FileOperator) -> None:
        options = self._options(operator, 1)
        pad, stride, dilation = _window_options(options, dilation=(4, 5))
        weight = self._weights(operator, 4)
        x, extra = self._windowed(operator, weight.shape[1:3], dilation)
        in_per_group = weight.shape[3]
        if len(x.shape) != 3 or x.shape[2] % in_per_group or len(weight) % (x.shape[2] // in_per_group):
            raise self._broken(operator, f"has weights {list(weight.shape)} for an input of {list(x.shape)}")
        groups = x.shape[2] // in_per_group
        self._emit_conv(operator, x, weight, 0, stride, dilation, pad, extra, groups, _activation(options, 3))

    def _depthwise(self, operator: FileOperator) -> None:
        options = self._options(operator, 2)
        pad, stride, dilation = _window_options(options, dilation=(5, 6))
        weight = self._weights(operator, 4, depthwise=True)
        x, extra = self._windowed(operator, weight.shape[1:3], dilation)
        multiplier = options.integer(3, "i") if options is not None else 0
        if len(x.shape) != 3 or len(weight) != x.shape[2] * multiplier:
            raise self._broken(
                operator,
                f"has {len(weight)} channels of weights and multiplier {multiplier} for an input of {list(x.shape)}",
            )
        self._emit_conv(operator, x, weight, 3, stride, dilation, pad, extra, x.shape[2], _activation(options, 4))

    def _emit_conv(
        self,
        operator: FileOperator,
        x: QTensor,
        weight: np.ndarray,
        axis: int,
        stride: tuple[int, int],
        dilation: tuple[int, int],
        pad: int,
        extra: Edges,
        groups: int,
        activation: int,
    ) -> None:
        if min(*stride, *dilation) < 1 or max(*stride, *dilation) > 2**15:
            raise self._broken(operator, f"has stride {stride} and dilation {dilation}")
        padded = (x.shape[0] + extra[0] + extra[2], x.shape[1] + extra[1] + extra[3])
        edges = self._edges(operator, padded, weight.shape[1:3], stride, dilation, pad)
        y = self._output(operator)
        padding = tuple(a + b for a, b in zip(extra, edges, strict=True))
        fields = self._layer(operator, x, y, weight, axis, activation)
        self._emit(
            operator,
            qgraph.Conv2d,
            y,
            x.name,
            **fields,
            stride=stride,
            dilation=dilation,
            padding=padding,
            groups=groups,
        )

    def _windowed(
        self, operator: FileOperator, kernel: tuple[int, ...], dilation: tuple[int, int], code: int | None = None
    ) -> tuple[QTensor, Edges]:
        """A window's input, and the padding before it, of this code or of zeros, that the window takes in."""
        tensor = self._input_tensor(operator, 0)
        if tensor.index in self.pads:
            pad = self.pads[tensor.index]
            # A window that sees nothing but padding is left to an operation of its own.
            reach = [(size - 1) * step + 1 for size, step in zip(kernel, dilation, strict=True)]
            inside = max(pad.edges[0], pad.edges[2]) < reach[0] and max(pad.edges[1], pad.edges[3]) < reach[1]
            if inside and pad.code == (pad.zero_point if code is None else code):
                return self.tensors[pad.source], pad.edges
        return self._read(operator), (0, 0, 0, 0)

    def _fully_connected(self, operator: FileOperator) -> None:
        options = self._options(operator, 8)
        if options is not None and options.integer(1, "b") != 0:
            raise self._unsupported(operator, "has shuffled weights", "they must be in the default order")
        weight = self._weights(operator, 2)
        x = self._read(operator)
        keeps = options is not None and options.flag(2)
        features = weight.shape[1]
        if prod(x.shape) % features or (keeps and x.shape[-1] != features):
            raise self._broken(operator, f"has weights {list(weight.shape)} for an input of {list(x.shape)}")
        if not keeps and prod(x.shape) != features:
            raise self._unsupported(
                operator,
                f"applies weights {list(weight.shape)} to {prod(x.shape) // features} rows",
                "keep_num_dims must be set",
            )
        if not keeps and len(x.shape) > 1:
            name = self._unused(f"{x.name}.flat"[:100], operator.index)
            flat = self.tensors[name] = replace(x, name=name, shape=(features,))
            self._emit(operator, qgraph.Reshape, flat, x.name)
            x = flat
        y = self._output(operator)
        activation = _activation(options, 0)
        fields = self._layer(operator, x, y, weight, 0, activation)
        self._emit(operator, qgraph.Linear, y, x.name, **fields)

    def _weights(self, operator: FileOperator, rank: int, depthwise: bool = False) -> np.ndarray:
        """Weights as (out, ...); layers that share a buffer share the array."""
        tensor = self._input_tensor(operator, 1)
        if tensor.type != TensorType.INT8:
            raise self._unsupported(operator, f"reads weights from {tensor}", f"they must be int8; {HOW_TO_CONVERT}")
        values = self._constant(operator, 1)
        if values.ndim != rank:
            raise self._broken(operator, f"reads weights from {tensor}; they must have {rank} axes")
        if depthwise:
            if len(values) != 1:
                raise self._broken(operator, f"reads weights from {tensor}; the first axis must be 1")
            values = values[0].transpose(2, 0, 1)[..., None]
        key = (tensor.buffer, values.shape, depthwise)
        if key not in self.weights:
            self.weights[key] = np.array(values, dtype=np.int8, order="C")
        return self.weights[key]

    def _layer(
        self,
        operator: FileOperator,
        x: QTensor,
        y: QTensor,
        weight: np.ndarray,
        axis: int,
        activation: int,
    ) -> dict[str, Any]:
        """The fields that convolutions and linear layers have in common."""
        scales = self._weight_scales(operator, len(weight), axis)
        if (scales == scales[0]).all():
            one, at = channel_multipliers(x.scale, scales[:1], y.scale)
            multiplier, shift = np.repeat(one, len(weight)), np.repeat(at, len(weight))
        else:
            multiplier, shift = channel_multipliers(x.scale, scales, y.scale)
        return {
            "weight": weight,
            "bias": self._bias(operator, len(weight)),
            "weight_scale": scales,
            "multiplier": multiplier,
            "shift": shift,
            "clamp": self._clamp(operator, activation, y),
        }

    def _weight_scales(self, operator: FileOperator, channels: int, axis: int) -> Float64[np.ndarray, " out"]:
        tensor = self._input_tensor(operator, 1)
        count = len(tensor.scale)
        if count not in (1, channels) or (count > 1 and tensor.axis != axis):
            raise self._broken(
                operator,
                f"has {count} weight scales along axis {tensor.axis}; must be 1, or {channels} along axis {axis}",
            )
        if len(tensor.zero_point) not in (1, count) or tensor.zero_point.any():
            raise self._unsupported(operator, "has weights with a zero point other than 0", "weights must be symmetric")
        if not (np.isfinite(tensor.scale).all() and (tensor.scale > 0).all()):
            raise self._broken(operator, "has a weight scale that is not above 0 and finite")
        return np.full(channels, tensor.scale[0]) if count == 1 else tensor.scale

    def _bias(self, operator: FileOperator, channels: int) -> np.ndarray:
        if len(operator.inputs) < 3 or operator.inputs[2] < 0:
            return np.zeros(channels, dtype=np.int32)
        tensor = self._input_tensor(operator, 2)
        if tensor.type != TensorType.INT32:
            raise self._unsupported(operator, f"has a bias in {tensor}", "biases must be int32")
        values = self._constant(operator, 2)
        if values.size != channels:
            raise self._broken(operator, f"has {values.size} biases for {channels} channels")
        return np.array(values, dtype=np.int32).reshape(channels)

    def _clamp(self, operator: FileOperator, activation: int, y: QTensor) -> Clamp:
        bounds = {
            Activation.NONE: (None, None),
            Activation.RELU: (0.0, None),
            Activation.RELU6: (0.0, 6.0),
            Activation.RELU_N1_TO_1: (-1.0, 1.0),
        }
        if activation not in bounds:
            raise self._unsupported(
                operator, f"has fused activation {activation}", "NONE, RELU, RELU6 and RELU_N1_TO_1 are known"
            )
        lower, upper = bounds[Activation(activation)]
        return Clamp(
            lower=-128 if lower is None else max(-128, tables.code_of(lower, y)),
            upper=127 if upper is None else min(127, tables.code_of(upper, y)),
        )

    def _edges(
        self,
        operator: FileOperator,
        size: tuple[int, int],
        kernel: tuple[int, ...],
        stride: tuple[int, int],
        dilation: tuple[int, int],
        pad: int,
    ) -> Edges:
        """Padding of a window, explicit."""
        if pad == Padding.VALID:
            return 0, 0, 0, 0
        if pad != Padding.SAME:
            raise self._broken(operator, f"has padding {pad}; must be SAME (0) or VALID (1)")
        return same_padding(size, kernel, stride, dilation)

    # two values

    def _add(self, operator: FileOperator) -> None:
        if self._input_tensor(operator, 0).type == TensorType.INT32:
            self._move_index(operator)
            return
        options = self._options(operator, 11)
        a, b = self._read(operator, 0), self._read(operator, 1)
        if a.shape != b.shape:
            raise self._unsupported(operator, f"adds {list(a.shape)} and {list(b.shape)}", "both must have one shape")
        y = self._output(operator)
        multiplier, shift = add_multipliers(a.scale, b.scale, y.scale)
        clamp = self._clamp(operator, _activation(options, 0), y)
        self._emit(operator, qgraph.Add, y, a.name, b.name, multiplier=multiplier, shift=shift, clamp=clamp)

    def _mul(self, operator: FileOperator) -> None:
        options = self._options(operator, 21)
        a, b = self._read(operator, 0), self._read(operator, 1)
        if prod(a.shape) < prod(b.shape):
            a, b = b, a
        if b.shape not in (a.shape, (1, 1, a.shape[-1]), a.shape[-1:]):
            raise self._unsupported(
                operator,
                f"multiplies {list(a.shape)} by {list(b.shape)}",
                "the second must have the first's shape, or one value a channel",
            )
        y = self._output(operator)
        q, exponent = quantize_multiplier(a.scale * b.scale / y.scale)
        clamp = self._clamp(operator, _activation(options, 0), y)
        self._emit(operator, qgraph.Mul, y, a.name, b.name, multiplier=q, shift=exponent, clamp=clamp)

    def _concat(self, operator: FileOperator) -> None:
        options = self._options(operator, 10)
        if _activation(options, 1) != Activation.NONE:
            raise self._unsupported(operator, "has a fused activation", "the reference kernels take none either")
        inputs = [self._read(operator, position) for position in range(len(operator.inputs))]
        y = self._output(operator)
        axis = options.integer(0, "i") if options is not None else 0
        axis = axis + len(y.shape) + 1 if axis < 0 else axis
        if not inputs or not 1 <= axis <= len(y.shape) or any(len(x.shape) != len(y.shape) for x in inputs):
            raise self._unsupported(operator, f"joins {len(inputs)} inputs along axis {axis}", "axis 0 is the batch")
        changed = {
            name: self._in_scale_of(operator, self.tensors[name], y, rescale=True).name
            for name in dict.fromkeys(x.name for x in inputs)
        }
        self._emit(operator, qgraph.Concat, y, *(changed[x.name] for x in inputs), axis=axis - 1)

    # windows and reductions

    def _average_pool(self, operator: FileOperator) -> None:
        self._pool(operator, qgraph.AvgPool2d)

    def _max_pool(self, operator: FileOperator) -> None:
        self._pool(operator, qgraph.MaxPool2d)

    def _pool(self, operator: FileOperator, kind: type[QOp]) -> None:
        options = self._options(operator, 5)
        pad, stride, _ = _window_options(options, dilation=None)
        kernel = (0, 0) if options is None else (options.integer(4, "i"), options.integer(3, "i"))
        if min(*stride, *kernel) < 1 or max(*stride, *kernel) > 2**15:
            raise self._broken(operator, f"has window {kernel} and stride {stride}")
        extra: Edges = (0, 0, 0, 0)
        if kind is qgraph.MaxPool2d and pad == Padding.VALID:
            x, extra = self._windowed(operator, kernel, (1, 1), code=-128)  # padding of the least code never wins
        else:
            x = self._read(operator)
        if len(x.shape) != 3:
            raise self._broken(operator, f"has window {kernel} on an input of {list(x.shape)}")
        padding = extra if any(extra) else self._edges(operator, x.shape[:2], kernel, stride, (1, 1), pad)
        y = self._output(operator)
        if abs(x.scale - y.scale) > 1e-6 or x.zero_point != y.zero_point:
            raise self._unsupported(
                operator,
                f"goes from scale {x.scale:g} and zero point {x.zero_point} to {y.scale:g} and {y.zero_point}",
                "pooling passes codes through: both must be the same",
            )
        x = self._in_scale_of(operator, x, y)
        clamp = self._clamp(operator, _activation(options, 5), y)
        self._emit(operator, kind, y, x.name, kernel=kernel, stride=stride, padding=padding, clamp=clamp)

    def _mean(self, operator: FileOperator) -> None:
        self._options(operator, 27)
        x = self._read(operator)
        rank = len(x.shape) + 1
        axes = {int(axis) + rank if axis < 0 else int(axis) for axis in self._constant(operator, 1).ravel()[:8]}
        if rank != 4 or axes != {1, 2}:
            raise self._unsupported(
                operator, f"runs over axes {sorted(axes)} of {[1, *x.shape]}", "it must be height and width: 1, 2"
            )
        y = self._output(operator)
        if y.shape not in ((x.shape[2],), (1, 1, x.shape[2])):
            raise self._broken(operator, f"makes {list(y.shape)} of {list(x.shape)}")
        q, exponent = mean_multiplier(x.scale, y.scale, x.shape[0] * x.shape[1])
        self._emit(operator, qgraph.Mean, y, x.name, multiplier=q, shift=exponent)

    def _softmax(self, operator: FileOperator) -> None:
        options = self._options(operator, 9)
        beta = options.scalar(0) if options is not None else 0.0
        x, y = self._read(operator), self._output(operator)
        self._require_parameters(operator, y, 1 / 256, -128)
        if not (isfinite(beta) and beta > 0):
            raise self._broken(operator, f"has beta {beta:g}; must be above 0")
        q, exponent, diff_min = softmax_parameters(beta * x.scale)
        self._emit(operator, qgraph.Softmax, y, x.name, multiplier=q, shift=exponent, diff_min=diff_min)

    # functions of one code

    def _logistic(self, operator: FileOperator) -> None:
        x, y = self._read(operator), self._output(operator)
        self._require_parameters(operator, y, 1 / 256, -128)
        self._lookup(operator, x, y, tables.logistic_table(x, y), "logistic")

    def _tanh(self, operator: FileOperator) -> None:
        x, y = self._read(operator), self._output(operator)
        self._require_parameters(operator, y, 1 / 128, 0)
        self._lookup(operator, x, y, tables.tanh_table(x, y), "tanh")

    def _hard_swish(self, operator: FileOperator) -> None:
        x, y = self._read(operator), self._output(operator)
        self._lookup(operator, x, y, tables.hard_swish_table(x, y), "hard_swish")

    def _relu(self, operator: FileOperator) -> None:
        x, y = self._read(operator), self._output(operator)
        self._lookup(operator, x, y, tables.relu_table(x, y), "relu")

    def _relu6(self, operator: FileOperator) -> None:
        x, y = self._read(operator), self._output(operator)
        self._lookup(operator, x, y, tables.relu_table(x, y, upper=6.0), "relu6")

    def _cast(self, operator: FileOperator) -> None:
        target = self.model.tensors[operator.outputs[0]]
        x = self._read(operator)
        if target.type != TensorType.INT32:
            raise self._unsupported(operator, f"makes {target}", "it may make int32 of int8, as the index of a table")
        self.indices[target.index] = (x.name, 0)

    def _move_index(self, operator: FileOperator) -> None:
        """An int32 ADD of a constant, on the way to a table."""
        sides = [self._input_tensor(operator, position) for position in (0, 1)]
        moved = [side for side in sides if side.index in self.indices]
        constants = [position for position, side in enumerate(sides) if self.model.is_constant(side)]
        values = self._constant(operator, constants[0]) if constants else np.zeros(0)
        if len(moved) != 1 or values.size != 1 or _activation(self._options(operator, 11), 0) != Activation.NONE:
            raise self._unsupported(
                operator, f"adds {sides[0]} and {sides[1]}", "of int32 it may add one constant to an index"
            )
        name, before = self.indices[moved[0].index]
        self.indices[operator.outputs[0]] = (name, before + int(values.ravel()[0]))

    def _gather(self, operator: FileOperator) -> None:
        options = self._options(operator, 23)
        index = self._input_tensor(operator, 1)
        name, first = self.indices.get(index.index, ("", 0))
        table = self._constant(operator, 0)
        plain = options is None or (options.integer(0, "i") == 0 and options.integer(1, "i") == 0)
        if first != 128 or table.shape != (256,) or table.dtype != np.int8 or not plain:
            raise self._unsupported(
                operator, f"takes from {list(table.shape)}", "it may look int8 codes, plus 128, up in a table of 256"
            )
        x, y = self.tensors[name], self._output(operator)
        self._lookup(operator, x, y, np.array(table), "table")

    def _require_parameters(self, operator: FileOperator, y: QTensor, scale: float, zero_point: int) -> None:
        if (y.scale, y.zero_point) != (scale, zero_point):
            raise self._unsupported(
                operator,
                f"has an output of scale {y.scale:g} and zero point {y.zero_point}",
                f"they must be {scale:g} and {zero_point}",
            )

    def _quantize(self, operator: FileOperator) -> None:
        source = self._input_tensor(operator, 0)
        target = self.model.tensors[operator.outputs[0]]
        if source.type == TensorType.INT8 and target.type == TensorType.INT8:
            x, y = self._read(operator), self._output(operator)
            self._lookup(operator, x, y, tables.requantize_table(x, y), "requantize")
        elif source.type == TensorType.INT8 and target.type == TensorType.UINT8 and target.index in self.output_indices:
            x = self._read(operator)
            self._require_moved_by_128(operator, target, (x.scale, x.zero_point))
            self.names[target.index] = x.name
        elif source.index == self.model.inputs[0] and source.type in (TensorType.FLOAT32, TensorType.UINT8):
            self._begin(target)
            if source.type == TensorType.UINT8:
                self._require_moved_by_128(
                    operator, source, self._one_scale(target, f"{operator} makes {target}, which")
                )
        else:
            raise self._unsupported(
                operator,
                f"goes from {source} to {target}",
                "it may make the input int8, change an int8 scale, or make an output uint8",
            )

    def _require_moved_by_128(self, operator: FileOperator, tensor: FileTensor, parameters: tuple[float, int]) -> None:
        scale, zero_point = parameters
        moved = len(tensor.scale) == len(tensor.zero_point) == 1
        if not moved or (float(tensor.scale[0]), int(tensor.zero_point[0]) - 128) != (scale, zero_point):
            raise self._unsupported(
                operator,
                f"goes between uint8 and int8 with a change of scale, at {tensor}",
                "convert with int8 input and output",
            )

    def _dequantize(self, operator: FileOperator) -> None:
        target = self.model.tensors[operator.outputs[0]]
        if target.index not in self.output_indices or target.type != TensorType.FLOAT32:
            raise self._unsupported(operator, f"makes {target}", f"only outputs may be floats; {HOW_TO_CONVERT}")
        self.names[target.index] = self._read(operator).name
        reader = self.first_readers.get(target.index)
        if reader is not None:
            raise self._unsupported(reader, f"reads {target}", f"activations must be int8; {HOW_TO_CONVERT}")

    # data movement

    def _reshape(self, operator: FileOperator) -> None:
        x, y = self._read(operator), self._output(operator)
        if prod(x.shape) != prod(y.shape):
            raise self._broken(operator, f"makes {list(y.shape)} of {list(x.shape)}")
        self._emit(operator, qgraph.Reshape, y, self._in_scale_of(operator, x, y).name)

    def _pad(self, operator: FileOperator) -> None:
        x = self._read(operator)
        widths = self._constant(operator, 1)
        if widths.shape != (4, 2) or len(x.shape) != 3 or widths[[0, 3]].any() or widths.min() < 0:
            raise self._unsupported(
                operator, f"pads {[1, *x.shape]} by {widths.tolist()[:8]}", "it pads height and width, by 0 or more"
            )
        edges = (int(widths[1, 0]), int(widths[2, 0]), int(widths[1, 1]), int(widths[2, 1]))
        target = self.model.tensors[operator.outputs[0]]
        scale, zero_point = self._one_scale(target, f"{operator} makes {target}, which")
        code = zero_point
        if len(operator.inputs) > 2:
            value = self._constant(operator, 2)
            if value.size != 1:
                raise self._broken(operator, f"pads with {value.size} values; must be one")
            code = int(value.ravel()[0])
        shape = self._shape(target, f"{operator} makes {target}, which")
        if shape != (x.shape[0] + edges[0] + edges[2], x.shape[1] + edges[1] + edges[3], x.shape[2]):
            raise self._broken(operator, f"makes {list(shape)} of {list(x.shape)} padded by {edges}")
        x = self._in_scale_of(operator, x, QTensor("padded", shape, scale, zero_point))
        self.pads[target.index] = _Padding(operator, x.name, edges, code, zero_point)

    def _make_padding(self, index: int) -> None:
        pad = self.pads.pop(index)
        if pad.code != pad.zero_point:
            raise self._unsupported(
                pad.operator,
                f"pads with code {pad.code}",
                f"it must be zero, code {pad.zero_point}, or -128 before MAX_POOL_2D",
            )
        self._emit(pad.operator, qgraph.Pad, self._output(pad.operator), pad.source, padding=pad.edges)

    def _resize_nearest(self, operator: FileOperator) -> None:
        options = self._options(operator, 74)
        x, y = self._read(operator), self._output(operator)
        corners, half = (options.flag(0), options.flag(1)) if options is not None else (False, False)
        whole = len(x.shape) == len(y.shape) == 3 and x.shape[2] == y.shape[2]
        whole = whole and all(to % size == 0 for size, to in zip(x.shape[:2], y.shape[:2], strict=True))
        if not whole or corners or max(y.shape[:2]) > 2**15:
            raise self._unsupported(
                operator,
                f"goes from {list(x.shape)} to {list(y.shape)}" + (" with aligned corners" * corners),
                "it repeats each pixel a whole number of times",
            )
        for size, to in zip(x.shape[:2], y.shape[:2], strict=True):
            self.model.file.spend(to)
            if not nearest_is_whole(size, to, half):
                raise self._unsupported(
                    operator, f"goes from {size} to {to} pixels unevenly", "use half-pixel centres or another factor"
                )
        factor = (y.shape[0] // x.shape[0], y.shape[1] // x.shape[1])
        self._emit(operator, qgraph.UpsampleNearest, y, self._in_scale_of(operator, x, y).name, factor=factor)


OPERATORS: dict[str, Callable[[_Loading, FileOperator], None]] = {
    "ADD": _Loading._add,
    "AVERAGE_POOL_2D": _Loading._average_pool,
    "CAST": _Loading._cast,
    "CONCATENATION": _Loading._concat,
    "CONV_2D": _Loading._conv,
    "DEPTHWISE_CONV_2D": _Loading._depthwise,
    "DEQUANTIZE": _Loading._dequantize,
    "FULLY_CONNECTED": _Loading._fully_connected,
    "GATHER": _Loading._gather,
    "HARD_SWISH": _Loading._hard_swish,
    "LOGISTIC": _Loading._logistic,
    "MAX_POOL_2D": _Loading._max_pool,
    "MEAN": _Loading._mean,
    "MUL": _Loading._mul,
    "PAD": _Loading._pad,
    "PADV2": _Loading._pad,
    "QUANTIZE": _Loading._quantize,
    "RELU": _Loading._relu,
    "RELU6": _Loading._relu6,
    "RESHAPE": _Loading._reshape,
    "RESIZE_NEAREST_NEIGHBOR": _Loading._resize_nearest,
    "SOFTMAX": _Loading._softmax,
    "SQUEEZE": _Loading._reshape,
    "TANH": _Loading._tanh,
}
"""Rules by operator name."""

_RULES = {builtin(name): rule for name, rule in OPERATORS.items()}


def _activation(options: Table | None, field: int) -> int:
    return options.integer(field, "b") if options is not None else 0


def _window_options(
    options: Table | None, dilation: tuple[int, int] | None
) -> tuple[int, tuple[int, int], tuple[int, int]]:
    """Padding, stride and dilation, height first; the file has width first."""
    if options is None:
        return Padding.SAME, (0, 0), (1, 1)
    stride = (options.integer(2, "i"), options.integer(1, "i"))
    spread = (
        (1, 1) if dilation is None else (options.integer(dilation[1], "i", 1), options.integer(dilation[0], "i", 1))
    )
    return options.integer(0, "b"), stride, spread

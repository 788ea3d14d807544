"""An integer graph as a TensorFlow Lite file, such that the runtimes' reference kernels give the graph's own bytes.

The file has no multipliers, only scales: each kernel makes its multiplier from them. So every operation is written in a form whose kernel
arrives at exactly the graph's multiplier, shift, table or clamp, and refused where there is none. In particular

- a linear layer becomes a 1x1 CONV_2D between reshapes, because LiteRT's FULLY_CONNECTED rounds once where all other kernels round twice;
- padding that is neither SAME nor VALID becomes a PAD before a VALID window (PADV2 with the least code before a maximum);
- a table that is no kernel's own, or one that LiteRT's float sigmoid might miss by a code, becomes CAST to int32, ADD 128, GATHER.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Shaped

from lilliput.errors import ConfigError, DataError, GraphError, UnsupportedOpError
from lilliput.evidence.atomic import write_bytes
from lilliput.quantize import qgraph as q
from lilliput.quantize.arithmetic import add_multipliers, mean_multiplier, quantize_multiplier
from lilliput.quantize.parameters import channel_multipliers
from lilliput.quantize.qgraph import Clamp, QOp, QTensor, QuantizedGraph
from lilliput.quantize.softmax import softmax_parameters
from lilliput.quantize.tflite import tables
from lilliput.quantize.tflite.builder import Field, Fields, Numbers, Scalar, Tables, Text, flatbuffer
from lilliput.quantize.tflite.schema import IDENTIFIER, VERSION, Activation, Padding, TensorType, builtin
from lilliput.quantize.tflite.windows import Edges, nearest_is_whole, same_padding

MOST_CONCATENATED = 10
"""Inputs that TensorFlow Lite Micro's CONCATENATION takes."""

_TYPES = {np.dtype(np.int8): TensorType.INT8, np.dtype(np.int32): TensorType.INT32}


def save_tflite(graph: QuantizedGraph, path: str | Path) -> Path:
    """Write the file; see :meth:`lilliput.quantize.QuantizedGraph.save_tflite`."""
    path = Path(path)
    if path.exists():
        raise ConfigError(f"{path} exists already and is not written over; give another name, or remove it")
    content = to_bytes(graph)
    try:
        write_bytes(path, content)
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror}); give a path in a folder that exists") from None
    return path


def to_bytes(graph: QuantizedGraph) -> bytes:
    """The file's content."""
    return _Saving(graph).run()


@dataclass(frozen=True)
class _Operator:
    """What the file says of one."""

    name: str
    version: int
    inputs: tuple[int, ...]
    output: int
    options_kind: int
    options: Fields


class _Saving:
    def __init__(self, graph: QuantizedGraph) -> None:
        self.graph = graph
        self.buffers: list[Fields] = [{}]  # the first is empty, for all that is computed
        self.tensors: list[Fields] = []
        self.operators: list[_Operator] = []
        self.places: dict[str, int] = {}  # tensor of the graph -> tensor of the file
        self.stored: dict[tuple[Any, ...], int] = {}

    def run(self) -> bytes:
        """Every operation in the graph's order."""
        graph = self.graph
        self._place(graph.tensors[graph.input])
        for op in graph.ops:
            rule = _RULES.get(type(op))
            if rule is None:
                known = ", ".join(sorted(kind.__name__ for kind in _RULES))
                raise self._unsupported(op, f"has no TensorFlow Lite operator; there are forms for {known}")
            rule(self, op, [graph.tensors[name] for name in op.inputs], graph.tensors[op.name])
        kinds = sorted({(each.name, each.version) for each in self.operators})
        subgraph: Fields = {
            0: Tables(self.tensors),
            1: _int32([self.places[graph.input]]),
            2: _int32([self.places[name] for name in graph.outputs]),
            3: Tables([_operator(each, kinds.index((each.name, each.version))) for each in self.operators]),
            4: Text("main"),
        }
        model: Fields = {
            0: Scalar("I", VERSION),
            1: Tables([_operator_code(*kind) for kind in kinds]),
            2: Tables([subgraph]),
            3: Text(graph.name),
            4: Tables(self.buffers),
        }
        return flatbuffer(model, IDENTIFIER)

    # errors

    def _unsupported(self, op: QOp, what: str) -> UnsupportedOpError:
        return UnsupportedOpError(
            f"integer graph '{self.graph.name}': '{op.name}' ({type(op).__name__}, module '{op.source}') {what}"
        )

    def _require_same(self, op: QOp, made: Any, wanted: Any, what: str) -> None:
        if made != wanted:
            raise self._unsupported(
                op,
                f"has {what} {wanted}; the scales in the file would make it {made}; quantize the network with quantize_int8",
            )

    # parts of the file

    def _place(self, tensor: QTensor) -> int:
        """The file's tensor for one of the graph, made where it is new."""
        if tensor.name not in self.places:
            self.places[tensor.name] = self._activation(tensor)
        return self.places[tensor.name]

    def _activation(self, tensor: QTensor, kind: TensorType = TensorType.INT8) -> int:
        if float(np.float32(tensor.scale)) != tensor.scale:
            raise UnsupportedOpError(
                f"integer graph '{self.graph.name}': tensor '{tensor.name}' has scale {tensor.scale!r}; must be a float32 number"
            )
        parameters = _parameters([tensor.scale], [tensor.zero_point]) if kind == TensorType.INT8 else None
        return self._tensor((1, *tensor.shape), kind, 0, tensor.name, parameters)

    def _constant(
        self, values: Shaped[np.ndarray, "..."], name: str, parameters: Mapping[int, Field] | None = None
    ) -> int:
        """A tensor with values; equal bytes are stored once."""
        content = np.frombuffer(np.ascontiguousarray(values).tobytes(), dtype=np.uint8)
        key = (values.dtype.str, content.tobytes())
        if key not in self.stored:
            self.buffers.append({0: Numbers(content, alignment=16)})
            self.stored[key] = len(self.buffers) - 1
        return self._tensor(values.shape, _TYPES[values.dtype], self.stored[key], name, parameters)

    def _tensor(
        self, shape: tuple[int, ...], kind: TensorType, buffer: int, name: str, parameters: Mapping[int, Field] | None
    ) -> int:
        fields: dict[int, Field] = {
            0: _int32(shape),
            1: Scalar("b", kind),
            2: Scalar("I", buffer),
            3: Text(name),
        }
        if parameters is not None:
            fields[4] = parameters
        self.tensors.append(fields)
        return len(self.tensors) - 1

    def _emit(
        self, name: str, version: int, inputs: list[int], output: int, kind: int = 0, options: Fields | None = None
    ) -> None:
        self.operators.append(_Operator(name, version, tuple(inputs), output, kind, options or {}))

    def _reshape(self, source: int, target: int, shape: tuple[int, ...], name: str) -> None:
        size = self._constant(np.array((1, *shape), dtype=np.int32), f"{name}.shape")
        self._emit("RESHAPE", 1, [source, size], target, 17, {0: _int32((1, *shape))})

    def _fused(self, op: QOp, clamp: Clamp, y: QTensor) -> int:
        """The fused activation whose bounds are this clamp."""
        zero, six = max(-128, tables.code_of(0.0, y)), min(127, tables.code_of(6.0, y))
        ones = max(-128, tables.code_of(-1.0, y)), min(127, tables.code_of(1.0, y))
        bounds = {
            Activation.NONE: (-128, 127),
            Activation.RELU: (zero, 127),
            Activation.RELU6: (zero, six),
            Activation.RELU_N1_TO_1: ones,
        }
        for activation, pair in bounds.items():
            if pair == (clamp.lower, clamp.upper):
                return activation
        raise self._unsupported(
            op,
            f"clamps to [{clamp.lower}, {clamp.upper}]; the format has NONE, RELU, RELU6 and RELU_N1_TO_1: {list(bounds.values())}",
        )

    # layers with weights

    def _conv(self, op: q.Conv2d, x: list[QTensor], y: QTensor) -> None:
        fused = self._fused(op, op.clamp, y)
        scales = self._weight_scales(op, x[0], y)
        source, pad = self._window(op, x[0], y, op.weight.shape[1:3], op.stride, op.dilation, op.padding)
        (stride_h, stride_w), (spread_h, spread_w) = op.stride, op.dilation
        if op.is_depthwise:
            values, axis = op.weight[..., 0].transpose(1, 2, 0)[None], 3
            name, kind = "DEPTHWISE_CONV_2D", 2
            options = [pad, stride_w, stride_h, len(op.weight) // op.groups, fused, spread_w, spread_h]
        else:
            values, axis = op.weight, 0
            name, kind = "CONV_2D", 1
            options = [pad, stride_w, stride_h, fused, spread_w, spread_h]
        inputs = [source, *self._layer(op, x[0], values, scales, axis)]
        codes = "biiibii" if op.is_depthwise else "biibii"
        fields = {index: Scalar(code, value) for index, (code, value) in enumerate(zip(codes, options, strict=True))}
        self._emit(name, 3, inputs, self._place(y), kind, fields)

    def _linear(self, op: q.Linear, x: list[QTensor], y: QTensor) -> None:
        fused = self._fused(op, op.clamp, y)
        (source,), (units, features) = x, op.weight.shape
        scales = self._weight_scales(op, source, y)
        rows = prod(source.shape[:-1])
        before = replace(source, name=f"{op.name}.rows", shape=(rows, 1, features))
        after = replace(y, name=f"{op.name}.columns", shape=(rows, 1, units))
        image, made = self._activation(before), self._activation(after)
        self._reshape(self._place(source), image, before.shape, before.name)
        weight = op.weight[:, None, None, :]
        one, none = Scalar("i", 1), Scalar("b", fused)
        fields = {0: Scalar("b", Padding.VALID), 1: one, 2: one, 3: none, 4: one, 5: one}
        self._emit("CONV_2D", 3, [image, *self._layer(op, source, weight, scales, 0)], made, 1, fields)
        self._reshape(made, self._place(y), y.shape, op.name)

    def _weight_scales(self, op: q.Conv2d | q.Linear, x: QTensor, y: QTensor) -> Shaped[np.ndarray, " out"]:
        """Float32 weight scales from which a convolution makes the operation's multipliers."""
        scales = op.weight_scale.astype(np.float32)
        multiplier, shift = channel_multipliers(x.scale, scales.astype(np.float64), y.scale)
        wrong = np.flatnonzero((multiplier != op.multiplier) | (shift != op.shift))
        if len(wrong):
            channel = int(wrong[0])
            self._require_same(
                op,
                (int(multiplier[channel]), int(shift[channel])),
                (int(op.multiplier[channel]), int(op.shift[channel])),
                f"in channel {channel} multiplier and shift",
            )
        return scales

    def _layer(
        self, op: q.Conv2d | q.Linear, x: QTensor, values: np.ndarray, scales: np.ndarray, axis: int
    ) -> list[int]:
        """Weights and biases as tensors."""
        weight = self._constant(values, f"{op.name}.weight", _parameters(scales, np.zeros(len(scales)), axis))
        product = np.float32(x.scale) * scales.astype(np.float32)
        bias = self._constant(op.bias, f"{op.name}.bias", _parameters(product, np.zeros(len(scales))))
        return [weight, bias]

    # windows

    def _window(
        self,
        op: QOp,
        x: QTensor,
        y: QTensor,
        kernel: tuple[int, ...],
        stride: tuple[int, int],
        dilation: tuple[int, int],
        padding: Edges,
        value: int | None = None,
    ) -> tuple[int, int]:
        """The input of a windowed operator and its kind of padding; what neither kind gives is padded before."""
        if not any(padding):
            return self._place(x), Padding.VALID
        if padding == same_padding(x.shape[:2], kernel, stride, dilation):
            return self._place(x), Padding.SAME
        top, left, bottom, right = padding
        shape = (x.shape[0] + top + bottom, x.shape[1] + left + right, x.shape[2])
        padded = self._activation(replace(x, name=f"{op.name}.padded", shape=shape))
        self._pad_into(op, x, padded, padding, value)
        return padded, Padding.VALID

    def _pad_into(self, op: QOp, x: QTensor, target: int, padding: Edges, value: int | None = None) -> None:
        top, left, bottom, right = padding
        widths = np.array([(0, 0), (top, bottom), (left, right), (0, 0)], dtype=np.int32)
        inputs = [self._place(x), self._constant(widths, f"{op.name}.paddings")]
        if value is None:
            self._emit("PAD", 2, inputs, target, 22)
            return
        code = np.array([value], dtype=np.int8)
        inputs.append(self._constant(code, f"{op.name}.padding", _parameters([x.scale], [x.zero_point])))
        self._emit("PADV2", 2, inputs, target, 43)

    def _average_pool(self, op: q.AvgPool2d, x: list[QTensor], y: QTensor) -> None:
        if any(op.padding) and op.padding != same_padding(x[0].shape[:2], op.kernel, op.stride, (1, 1)):
            raise self._unsupported(
                op, f"averages with padding {op.padding}, which is neither SAME nor VALID; pool without padding"
            )
        self._pool("AVERAGE_POOL_2D", op, x[0], y)

    def _max_pool(self, op: q.MaxPool2d, x: list[QTensor], y: QTensor) -> None:
        if op.dilation != (1, 1):
            raise self._unsupported(op, f"has dilation {op.dilation}; the format's pooling has none")
        self._pool("MAX_POOL_2D", op, x[0], y)

    def _pool(self, name: str, op: q.AvgPool2d | q.MaxPool2d, x: QTensor, y: QTensor) -> None:
        fused = self._fused(op, op.clamp, y)
        source, pad = self._window(op, x, y, op.kernel, op.stride, (1, 1), op.padding, value=-128)
        sizes = [op.stride[1], op.stride[0], op.kernel[1], op.kernel[0]]
        fields = {0: Scalar("b", pad), 5: Scalar("b", fused)}
        fields |= {index: Scalar("i", size) for index, size in enumerate(sizes, start=1)}
        self._emit(name, 2, [source], self._place(y), 5, fields)

    def _mean(self, op: q.Mean, x: list[QTensor], y: QTensor) -> None:
        made = mean_multiplier(x[0].scale, y.scale, x[0].shape[0] * x[0].shape[1])
        self._require_same(op, made, (op.multiplier, op.shift), "multiplier and shift")
        target, clamped = self._clamped_after(op, y)
        axes = self._constant(np.array([1, 2], dtype=np.int32), f"{op.name}.axes")
        self._emit("MEAN", 2, [self._place(x[0]), axes], target, 27, {0: Scalar("B", len(y.shape) == 3)})
        clamped()

    def _clamped_after(self, op: q.Mean, y: QTensor) -> tuple[int, Callable[[], None]]:
        """Where an operator without a fused activation writes, and what makes its clamp after it."""
        fused = self._fused(op, op.clamp, y)
        if fused == Activation.NONE:
            return self._place(y), lambda: None
        names = {Activation.RELU: "RELU", Activation.RELU6: "RELU6"}
        if fused not in names:
            raise self._unsupported(
                op, f"clamps to [{op.clamp.lower}, {op.clamp.upper}]; RELU and RELU6 are known after it"
            )
        raw = self._activation(replace(y, name=f"{op.name}.raw"))
        return raw, lambda: self._emit(names[Activation(fused)], 2, [raw], self._place(y))

    # two values and more

    def _add(self, op: q.Add, x: list[QTensor], y: QTensor) -> None:
        made = add_multipliers(x[0].scale, x[1].scale, y.scale)
        self._require_same(op, made, (op.multiplier, op.shift), "multipliers and shifts")
        fields = {0: Scalar("b", self._fused(op, op.clamp, y))}
        self._emit("ADD", 2, [self._place(each) for each in x], self._place(y), 11, fields)

    def _mul(self, op: q.Mul, x: list[QTensor], y: QTensor) -> None:
        made = quantize_multiplier(x[0].scale * x[1].scale / y.scale)
        self._require_same(op, made, (op.multiplier, op.shift), "multiplier and shift")
        fields = {0: Scalar("b", self._fused(op, op.clamp, y))}
        self._emit("MUL", 2, [self._place(each) for each in x], self._place(y), 21, fields)

    def _concat(self, op: q.Concat, x: list[QTensor], y: QTensor) -> None:
        if len(x) > MOST_CONCATENATED:
            raise self._unsupported(op, f"joins {len(x)} inputs; at most {MOST_CONCATENATED}: join in two steps")
        fields = {0: Scalar("i", op.axis + 1)}
        self._emit("CONCATENATION", 2, [self._place(each) for each in x], self._place(y), 10, fields)

    def _softmax(self, op: q.Softmax, x: list[QTensor], y: QTensor) -> None:
        made = softmax_parameters(x[0].scale)
        self._require_same(op, made, (op.multiplier, op.shift, op.diff_min), "multiplier, shift and least difference")
        self._require_same(op, (1 / 256, -128), (y.scale, y.zero_point), "output scale and zero point")
        self._emit("SOFTMAX", 2, [self._place(x[0])], self._place(y), 9, {0: Scalar("f", 1.0)})

    # functions of one code

    def _lookup(self, op: q.Lookup, x: list[QTensor], y: QTensor) -> None:
        (source,) = x
        if np.array_equal(op.table, tables.CODES):
            self._reshape(self._place(source), self._place(y), y.shape, op.name)
            return
        for name, version, kind, table in _known_tables(source, y):
            if np.array_equal(op.table, table):
                self._emit(name, version, [self._place(source)], self._place(y), kind)
                return
        self._gather(op, source, y)

    def _gather(self, op: q.Lookup, x: QTensor, y: QTensor) -> None:
        wide, index = (
            self._activation(replace(x, name=f"{op.name}.{name}"), TensorType.INT32) for name in ("code", "index")
        )
        moved = self._constant(np.array([128], dtype=np.int32), f"{op.name}.first")
        table = self._constant(op.table, f"{op.name}.table", _parameters([y.scale], [y.zero_point]))
        types = {0: Scalar("b", TensorType.INT8), 1: Scalar("b", TensorType.INT32)}
        self._emit("CAST", 1, [self._place(x)], wide, 37, types)
        self._emit("ADD", 1, [wide, moved], index, 11, {0: Scalar("b", Activation.NONE)})
        self._emit("GATHER", 2, [table, index], self._place(y), 23, {0: Scalar("i", 0), 1: Scalar("i", 0)})

    # data movement

    def _pad(self, op: q.Pad, x: list[QTensor], y: QTensor) -> None:
        self._pad_into(op, x[0], self._place(y), op.padding)

    def _reshaped(self, op: q.Reshape, x: list[QTensor], y: QTensor) -> None:
        self._reshape(self._place(x[0]), self._place(y), y.shape, op.name)

    def _upsample(self, op: q.UpsampleNearest, x: list[QTensor], y: QTensor) -> None:
        sides = [(size, size * factor) for size, factor in zip(x[0].shape[:2], op.factor, strict=True)]
        halves = [half for half in (False, True) if all(nearest_is_whole(*side, half) for side in sides)]
        if not halves:
            raise self._unsupported(
                op, f"repeats pixels {op.factor} times, which the kernels' float32 index misses; use 2 or 4"
            )
        size = self._constant(np.array(y.shape[:2], dtype=np.int32), f"{op.name}.size")
        fields = {0: Scalar("B", False), 1: Scalar("B", halves[0])}
        self._emit("RESIZE_NEAREST_NEIGHBOR", 3, [self._place(x[0]), size], self._place(y), 74, fields)


_RULES: dict[type[QOp], Callable[..., None]] = {
    q.Conv2d: _Saving._conv,
    q.Linear: _Saving._linear,
    q.Add: _Saving._add,
    q.Mul: _Saving._mul,
    q.AvgPool2d: _Saving._average_pool,
    q.MaxPool2d: _Saving._max_pool,
    q.Mean: _Saving._mean,
    q.Softmax: _Saving._softmax,
    q.Lookup: _Saving._lookup,
    q.Concat: _Saving._concat,
    q.Pad: _Saving._pad,
    q.Reshape: _Saving._reshaped,
    q.UpsampleNearest: _Saving._upsample,
}


def _known_tables(x: QTensor, y: QTensor) -> list[tuple[str, int, int, np.ndarray]]:
    """Operators that are functions of one code: name, version, kind of options, and their tables where they have one here."""
    rows: list[tuple[str, int, int, Callable[[QTensor, QTensor], np.ndarray], bool]] = [
        ("RELU", 2, 0, tables.relu_table, True),
        # Micro's RELU6 takes both scales for one.
        ("RELU6", 2, 0, lambda x, y: tables.relu_table(x, y, 6.0), (x.scale, x.zero_point) == (y.scale, y.zero_point)),
        ("QUANTIZE", 2, 89, tables.requantize_table, True),
        ("LOGISTIC", 2, 0, tables.logistic_table, (y.scale, y.zero_point) == (1 / 256, -128) and _is_sure_sigmoid(x)),
        ("TANH", 2, 0, tables.tanh_table, (y.scale, y.zero_point) == (1 / 128, 0)),
        ("HARD_SWISH", 1, 91, tables.hard_swish_table, True),
    ]
    known = []
    for name, version, kind, table, allowed in rows:
        if allowed:
            try:
                known.append((name, version, kind, table(x, y)))
            except GraphError:
                continue
    return known


def _is_sure_sigmoid(x: QTensor) -> bool:
    """Whether no code's sigmoid lies so near a tie that float32, in which LiteRT computes it, could round it the other way."""
    steps = 256 / (1 + np.exp(np.clip(-x.scale * (tables.CODES - x.zero_point), -700, 700)))
    return bool((np.abs(steps % 1 - 0.5) > 5e-5).all())


def _operator_code(name: str, version: int) -> Fields:
    code = builtin(name)
    return {0: Scalar("b", min(code, 127)), 2: Scalar("i", version), 3: Scalar("i", code)}


def _operator(operator: _Operator, place: int) -> Fields:
    fields: dict[int, Field] = {
        0: Scalar("I", place),
        1: _int32(operator.inputs),
        2: _int32([operator.output]),
    }
    if operator.options_kind:
        fields[3] = Scalar("B", operator.options_kind)
        fields[4] = operator.options
    return fields


def _parameters(scales: Any, zero_points: Any, axis: int = 0) -> Mapping[int, Field]:
    return {
        2: Numbers(np.array(scales, dtype=np.float32)),
        3: Numbers(np.array(zero_points, dtype=np.int64)),
        6: Scalar("i", axis),
    }


def _int32(values: Any) -> Numbers:
    return Numbers(np.array(list(values), dtype=np.int32))

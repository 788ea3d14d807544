"""Integer networks made by hand: the published ones by which memory planning is judged, and small random ones."""

import math
import random
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from lilliput.quantize.qgraph import (
    Add,
    AvgPool2d,
    Clamp,
    Concat,
    Conv2d,
    Linear,
    Lookup,
    MaxPool2d,
    Mean,
    Mul,
    Pad,
    QOp,
    QTensor,
    QuantizedGraph,
    Reshape,
    UpsampleNearest,
)

SCALE = 1 / 16


class Network:
    """Layer after layer; each method returns the name of the tensor it made. Weights are zero unless a seed is given."""

    def __init__(self, name: str, input_shape: Sequence[int], seed: int | None = None) -> None:
        self.name = name
        self.rng = None if seed is None else np.random.default_rng(seed)
        self.ops: list[QOp] = []
        self.tensors = {"x": QTensor("x", tuple(input_shape), SCALE, 3 if seed is not None else 0)}

    def graph(self, *outputs: str) -> QuantizedGraph:
        return QuantizedGraph(self.name, "x", outputs or (self.ops[-1].name,), dict(self.tensors), tuple(self.ops))

    def shape(self, name: str) -> tuple[int, ...]:
        return self.tensors[name].shape

    def conv(
        self,
        x: str,
        out: int,
        kernel: int | tuple[int, int] = 1,
        stride: int | tuple[int, int] = 1,
        *,
        depthwise: bool = False,
        padding: tuple[int, int, int, int] | None = None,
    ) -> str:
        """SAME padding as TensorFlow has it, unless given."""
        kernel_h, kernel_w = kernel if isinstance(kernel, tuple) else (kernel, kernel)
        stride_h, stride_w = stride if isinstance(stride, tuple) else (stride, stride)
        height, width, channels = self.shape(x)
        if padding is None:
            total_h = max(0, (-(-height // stride_h) - 1) * stride_h + kernel_h - height)
            total_w = max(0, (-(-width // stride_w) - 1) * stride_w + kernel_w - width)
            padding = (total_h // 2, total_w // 2, total_h - total_h // 2, total_w - total_w // 2)
        out_h = (height + padding[0] + padding[2] - kernel_h) // stride_h + 1
        out_w = (width + padding[1] + padding[3] - kernel_w) // stride_w + 1
        per_group = 1 if depthwise else channels
        weights = self._weights((out, kernel_h, kernel_w, per_group))
        op = Conv2d(
            name=f"t{len(self.ops)}",
            inputs=(x,),
            source=f"layers.{len(self.ops)}",
            stride=(stride_h, stride_w),
            padding=padding,
            groups=channels if depthwise else 1,
            clamp=Clamp(lower=-100, upper=100),
            **weights,
        )
        return self._add_op(op, (out_h, out_w, out))

    def depthwise(self, x: str, kernel: int = 3, stride: int = 1) -> str:
        return self.conv(x, self.shape(x)[2], kernel, stride, depthwise=True)

    def linear(self, x: str, out: int) -> str:
        op = Linear(
            name=f"t{len(self.ops)}",
            inputs=(x,),
            source=f"layers.{len(self.ops)}",
            **self._weights((out, self.shape(x)[-1])),
        )
        return self._add_op(op, (*self.shape(x)[:-1], out))

    def add(self, a: str, b: str) -> str:
        # equal scales: each input times 1/2, the sum times 2**-19 (section a6 of the arithmetic)
        op = Add(
            name=f"t{len(self.ops)}",
            inputs=(a, b),
            source=f"layers.{len(self.ops)}",
            multiplier=(2**30, 2**30, 2**30),
            shift=(0, 0, -18),
        )
        return self._add_op(op, self.shape(a))

    def mul(self, a: str, b: str) -> str:
        return self._add_op(Mul(name=f"t{len(self.ops)}", inputs=(a, b), multiplier=2**30, shift=-5), self.shape(a))

    def mean(self, x: str) -> str:
        height, width, channels = self.shape(x)
        mantissa, exponent = math.frexp(1 / (height * width))
        op = Mean(name=f"t{len(self.ops)}", inputs=(x,), multiplier=round(mantissa * 2**31), shift=exponent)
        return self._add_op(op, (1, 1, channels))

    def lookup(self, x: str) -> str:
        table = np.arange(-128, 128)[:: -1 if self.rng is not None else 1].astype(np.int8)
        op = Lookup(name=f"t{len(self.ops)}", inputs=(x,), table=table, function="negate")
        return self._add_op(op, self.shape(x))

    def pool(self, x: str, kernel: int, *, largest: bool) -> str:
        height, width, channels = self.shape(x)
        kind = MaxPool2d if largest else AvgPool2d
        op = kind(name=f"t{len(self.ops)}", inputs=(x,), kernel=(kernel, kernel), stride=(kernel, kernel))
        return self._add_op(op, (height // kernel, width // kernel, channels), like=x)

    def pool_same(self, x: str, kernel: int) -> str:
        """Largest code, stride 1, padded to the same size."""
        op = MaxPool2d(
            name=f"t{len(self.ops)}", inputs=(x,), kernel=(kernel, kernel), stride=(1, 1), padding=(kernel // 2,) * 4
        )
        return self._add_op(op, self.shape(x), like=x)

    def pad(self, x: str) -> str:
        height, width, channels = self.shape(x)
        op = Pad(name=f"t{len(self.ops)}", inputs=(x,), padding=(0, 1, 1, 0))
        return self._add_op(op, (height + 1, width + 1, channels), like=x)

    def upsample(self, x: str) -> str:
        height, width, channels = self.shape(x)
        op = UpsampleNearest(name=f"t{len(self.ops)}", inputs=(x,), factor=(2, 1))
        return self._add_op(op, (2 * height, width, channels), like=x)

    def concat(self, *inputs: str) -> str:
        *front, _ = self.shape(inputs[0])
        op = Concat(name=f"t{len(self.ops)}", inputs=inputs, axis=len(front))
        return self._add_op(op, (*front, sum(self.shape(name)[-1] for name in inputs)), like=inputs[0])

    def reshape(self, x: str, *shape: int) -> str:
        return self._add_op(Reshape(name=f"t{len(self.ops)}", inputs=(x,)), shape, like=x)

    def _add_op(self, op: QOp, shape: Sequence[int], like: str | None = None) -> str:
        zero_point = 0
        if like is not None:
            zero_point = self.tensors[like].zero_point
        elif self.rng is not None and not isinstance(op, Add):
            zero_point = len(self.ops) % 7 - 3
        self.ops.append(op)
        self.tensors[op.name] = QTensor(op.name, tuple(shape), SCALE, zero_point, op.source)
        return op.name

    def _weights(self, shape: tuple[int, ...]) -> dict[str, np.ndarray]:
        out, window = shape[0], math.prod(shape[1:])
        weight, bias = np.zeros(shape, dtype=np.int8), np.zeros(out, dtype=np.int32)
        if self.rng is not None:
            weight = self.rng.integers(-127, 128, shape, dtype=np.int8)
            bias = self.rng.integers(-2000, 2000, out, dtype=np.int32)
        # so that sums of random codes and weights spread over the output's codes
        mantissa, exponent = math.frexp(1 / (60 * math.sqrt(window)))
        return {
            "weight": weight,
            "bias": bias,
            "weight_scale": np.full(out, 0.01),
            "multiplier": np.full(out, round(mantissa * 2**31), dtype=np.int32),
            "shift": np.full(out, exponent, dtype=np.int32),
        }


def mobilenet_v2(image: int = 224, width: float = 1.0, seed: int | None = None) -> QuantizedGraph:
    """MobileNetV2 for ImageNet (arXiv:1801.04381, table 2); channels in eights where it is narrower, the last convolution never."""

    def scaled(channels: int) -> int:
        eights = max(8, int(channels * width + 4) // 8 * 8)
        return eights + 8 if eights < 0.9 * channels * width else eights

    net = Network("mobilenet_v2", (image, image, 3), seed)
    x = net.conv("x", scaled(32), 3, 2)
    for expansion, channels, count, first_stride in (
        (1, 16, 1, 1),
        (6, 24, 2, 2),
        (6, 32, 3, 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 2),
        (6, 320, 1, 1),
    ):
        for index in range(count):
            skip, stride, inner = x, first_stride if index == 0 else 1, x
            if expansion > 1:
                inner = net.conv(x, net.shape(x)[2] * expansion)
            x = net.conv(net.depthwise(inner, 3, stride), scaled(channels))
            if index:
                x = net.add(skip, x)
    net.linear(net.reshape(net.mean(net.conv(x, 1280)), 1280), 1000)
    return net.graph()


def vww(seed: int | None = None) -> QuantizedGraph:
    """MLPerf Tiny visual wake words: MobileNetV1-0.25 at 96x96."""
    net = Network("vww_96", (96, 96, 3), seed)
    x = net.conv("x", 8, 3, 2)
    for channels, stride in (
        (16, 1), (32, 2), (32, 1), (64, 2), (64, 1), (128, 2), *[(128, 1)] * 5, (256, 2), (256, 1),
    ):  # fmt: skip
        x = net.conv(net.depthwise(x, 3, stride), channels)
    net.linear(net.reshape(net.pool(x, 3, largest=False), 256), 2)
    return net.graph()


def resnet8(seed: int | None = None) -> QuantizedGraph:
    """MLPerf Tiny image classification: three residual stages, the last two with a 1x1 shortcut."""
    net = Network("resnet8", (32, 32, 3), seed)
    x = net.conv("x", 16, 3)
    for channels, stride in ((16, 1), (32, 2), (64, 2)):
        inner = net.conv(net.conv(x, channels, 3, stride), channels, 3)
        skip = x if stride == 1 else net.conv(x, channels, 1, stride)
        x = net.add(skip, inner)
    net.linear(net.reshape(net.pool(x, 8, largest=False), 64), 10)
    return net.graph()


def ds_cnn(seed: int | None = None) -> QuantizedGraph:
    """MLPerf Tiny keyword spotting."""
    net = Network("kws", (49, 10, 1), seed)
    x = net.conv("x", 64, (10, 4), (2, 2))
    for _ in range(4):
        x = net.conv(net.depthwise(x), 64)
    net.linear(net.reshape(net.mean(x), 64), 12)
    return net.graph()


def autoencoder(seed: int | None = None) -> QuantizedGraph:
    """MLPerf Tiny anomaly detection."""
    net = Network("ad01", (640,), seed)
    x = "x"
    for width in (128, 128, 128, 128, 8, 128, 128, 128, 128, 640):
        x = net.linear(x, width)
    return net.graph()


def random_network(seed: int) -> QuantizedGraph:
    """5 to 14 layers of every kind on an image of at most 9x8, with residual additions, branches, joins and views."""
    rng = random.Random(seed)
    net = Network(f"random{seed}", (rng.randint(5, 9), rng.randint(5, 8), rng.choice([1, 3, 4])), seed)
    made = ["x", net.conv("x", rng.choice([4, 6, 8]), 3, rng.choice([1, 1, 2]))]
    for _ in range(rng.randint(4, 13)):
        x = rng.choice([made[-1], made[-1], made[-1], rng.choice(made)])
        height, width, channels = net.shape(x)
        alike = [name for name in made if net.shape(name) == net.shape(x) and name != x]
        kind = rng.choice(
            ["conv", "conv", "1x1", "1x1", "depthwise", "depthwise", "residual", "residual", "add", "other"]
        )
        if kind == "conv":
            made.append(net.conv(x, rng.choice([2, 4, 8]), rng.choice([2, 3]), rng.choice([1, 1, 2])))
        elif kind == "1x1":
            made.append(net.conv(x, rng.choice([channels, 3, 8, 16])))
        elif kind == "depthwise":
            made.append(net.depthwise(x, rng.choice([2, 3, 5]), rng.choice([1, 1, 2])))
        elif kind == "residual":
            inner = net.conv(net.conv(x, rng.choice([4, 12]), rng.choice([1, 3])), channels, rng.choice([1, 3]))
            made.append(net.add(*rng.sample([x, inner], 2)))
        elif kind == "add" and alike:
            made.append(net.add(x, rng.choice(alike)))
        elif kind == "other":
            same = [x, *(name for name in alike if net.tensors[name].zero_point == net.tensors[x].zero_point)]
            choices = ["lookup", "pad", "reshape", "mean"]
            choices += ["pool"] * (height > 2 and width > 2) + ["concat"] * (len(same) > 1)
            choices += ["upsample"] * (height < 6) + ["mul"] * bool(alike)
            other = rng.choice(choices)
            if other == "lookup":
                made.append(net.lookup(x))
            elif other == "pad":
                made.append(net.pad(x))
            elif other == "reshape":
                made.append(net.reshape(x, width, height, channels))
            elif other == "mean":
                made.append(net.mul(x, net.mean(x)))
            elif other == "pool":
                made.append(net.pool(x, 2, largest=rng.random() < 0.5))
            elif other == "concat":
                made.append(net.concat(*same[:3]))
            elif other == "upsample":
                made.append(net.upsample(x))
            else:
                made.append(net.mul(x, rng.choice(alike)))
    read = {name for op in net.ops for name in op.inputs}
    outputs = [op.name for op in net.ops if op.name not in read]
    if rng.random() < 0.3:
        outputs.append(next(op.name for op in net.ops))
    return net.graph(*dict.fromkeys(outputs))


def rewired(graph: QuantizedGraph, ops: Sequence[QOp]) -> QuantizedGraph:
    """The same tensors made in another order."""
    return replace(graph, ops=tuple(ops))

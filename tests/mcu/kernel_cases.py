"""Cases for the C kernels: one operation each with its tensors and inputs, drawn from a seed; and the C that runs them all."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import prod

import numpy as np

from lilliput.mcu.access import can_run_in_place
from lilliput.mcu.lowering import KernelCall, can_fuse_add, lower
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
    Reshape,
    Softmax,
    UpsampleNearest,
)
from mcu.kernel_reference import evaluate


@dataclass
class Case:
    """One call of a kernel."""

    label: str
    op: QOp
    tensors: dict[str, QTensor]
    inputs: list[np.ndarray]
    fused_add: Add | None = None
    overlay: int | None = None
    """Which input's memory is also the output's."""
    call: KernelCall = field(init=False)
    symbol: str = ""

    def lowered(self, symbol: str) -> Case:
        self.symbol = symbol
        in_place = self.overlay is not None
        self.call = lower(self.op, self.tensors, symbol=symbol, fused_add=self.fused_add, in_place=in_place)
        return self

    @property
    def output_name(self) -> str:
        return self.op.name if self.fused_add is None else self.fused_add.name

    def overlaid_bytes(self, index: int) -> int:
        """Of the output, where it lies over this input."""
        return self.tensors[self.output_name].bytes if index == self.overlay else 0

    def expected(self) -> np.ndarray:
        count = len(self.op.inputs)
        result = evaluate(self.op, self.tensors, self.inputs[:count])
        if self.fused_add is None:
            return result
        known = {
            self.op.name: result,
            self.fused_add.inputs[self.fused_add.inputs[0] == self.op.name]: self.inputs[count],
        }
        return evaluate(self.fused_add, self.tensors, [known[name] for name in self.fused_add.inputs])


def all_cases(seed: int, count: int) -> list[Case]:
    """``count`` draws of every family, each also in place and with a fused addition where that is allowed."""
    rng = np.random.default_rng(seed)
    plain = [case for family in FAMILIES for _ in range(count) for case in family(rng)]
    variants = [variant for case in plain for variant in _variants(rng, case)]
    return [case.lowered(f"case{index}") for index, case in enumerate([*plain, *variants])]


def _variants(rng: np.random.Generator, case: Case) -> Iterator[Case]:
    if can_run_in_place(case.op, case.tensors):
        yield Case(f"{case.label}, in place", case.op, case.tensors, case.inputs, overlay=0)
        if isinstance(case.op, Add):
            yield Case(f"{case.label}, in place of the second", case.op, case.tensors, case.inputs, overlay=1)
    add, tensors, skip = add_onto(rng, case)
    if can_fuse_add(case.op, add):
        for overlay, words in ((None, "fused add"), (1, "fused add over its skip")):
            yield Case(f"{case.label}, {words}", case.op, tensors, [*case.inputs, skip], add, overlay)


def add_onto(rng: np.random.Generator, case: Case) -> tuple[Add, dict[str, QTensor], np.ndarray]:
    shape = case.tensors[case.op.name].shape
    skip = QTensor("skip", shape, 1.0, _zero(rng))
    sum_ = QTensor("sum", shape, 1.0, _zero(rng))
    names = (case.op.name, "skip") if rng.random() < 0.5 else ("skip", case.op.name)
    add = Add(name="sum", inputs=names, clamp=_clamp(rng), **_add_scales(rng))
    return add, {**case.tensors, "skip": skip, "sum": sum_}, _codes(rng, shape)


# Draws. Zero points and clamps are often at the ends of their ranges; multipliers are often powers of two, where ties are.


def _zero(rng: np.random.Generator) -> int:
    return int(rng.choice([-128, -127, -1, 0, 3, 127, int(rng.integers(-128, 128))]))


def _clamp(rng: np.random.Generator) -> Clamp:
    lower, upper = sorted(int(each) for each in rng.choice(np.arange(-128, 128), 2, replace=False))
    return (Clamp(), Clamp(), Clamp(lower=lower), Clamp(lower=lower, upper=upper))[rng.integers(4)]


def _codes(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    kind = rng.integers(4)
    if kind == 0:
        return rng.choice(np.array([-128, 127], dtype=np.int8), shape)
    return rng.integers(-128, 128, shape, dtype=np.int8)


def split_factor(real: float) -> tuple[int, int]:
    mantissa, exponent = math.frexp(real)
    q = round(mantissa * 2**31)
    return (q // 2, exponent + 1) if q == 2**31 else (q, exponent)


def _add_scales(rng: np.random.Generator) -> dict[str, tuple[int, int, int]]:
    first, second, out = np.exp(rng.uniform(-2, 2, 3))
    kind = rng.integers(5)
    if kind == 0:
        second, out = first, 2 * first  # every odd sum is a tie
    elif kind == 1:
        second = 4 * first  # ties
    largest = 2 * max(first, second)
    factors = [first / largest, second / largest, largest / (2**20 * out)]
    if kind == 2:
        factors[int(rng.integers(2))] = 0.3  # neither is one half: another convention's, and still legal
        factors[0] = min(factors[0], 0.45)
        factors[1] = min(factors[1], 0.45)
    if kind == 3:
        factors[2] = 2.0 ** -int(rng.integers(24, 28))  # beyond the quick way
    pairs = [split_factor(float(factor)) for factor in factors]
    return {"multiplier": tuple(q for q, _ in pairs), "shift": tuple(e for _, e in pairs)}


def _layer(rng: np.random.Generator, shape: tuple[int, ...], window: int) -> dict[str, np.ndarray]:
    """Weights, bias and factors of a layer whose outputs spread over the codes."""
    out = shape[0]
    kind = rng.integers(6)
    weight = rng.integers(-127, 128, shape)
    if kind == 0:
        weight = rng.integers(-128, 128, shape)  # -128 now and then: pairs are not exact
    elif kind == 1:
        weight = rng.integers(-1, 2, shape)  # small sums, factors above 1
    elif kind == 2:
        weight[rng.integers(out)] = 0
    elif kind == 3:
        weight = rng.choice([-127, 127], shape)
    spread = 74.0 * max(1.0, float(np.abs(weight).mean())) * math.sqrt(window)
    factors = 60.0 / spread * np.exp(rng.uniform(-1.5, 1.5, out))
    if kind == 1:
        factors = np.exp2(rng.integers(-3, 4, out).astype(float))
    elif rng.random() < 0.3:
        factors = np.exp2(np.round(np.log2(factors)))
    elif rng.random() < 0.1:
        factors[rng.integers(out)] = 2.0**-26
    pairs = [split_factor(float(factor)) for factor in factors]
    bias = rng.normal(0, spread, out).astype(np.int64)
    if rng.random() < 0.1:
        bias[rng.integers(out)] = int(rng.choice([-1, 1])) * 2**30
    multiplier, shift = (np.array(column, dtype=np.int32) for column in zip(*pairs, strict=True))
    raised = (256 * np.abs(weight).reshape(out, -1).sum(axis=1) + np.abs(bias)) << np.maximum(shift, 0)
    shift = np.where(raised < 2**31, shift, -1).astype(np.int32)
    bias = np.clip(bias, -(2**30), 2**30)
    return {
        "weight": weight.astype(np.int8),
        "bias": bias.astype(np.int32),
        "weight_scale": np.ones(out),
        "multiplier": multiplier,
        "shift": shift,
    }


def conv(
    rng: np.random.Generator,
    in_shape: tuple[int, int, int],
    out_channels: int,
    kernel: tuple[int, int],
    stride: tuple[int, int] = (1, 1),
    dilation: tuple[int, int] = (1, 1),
    padding: tuple[int, int, int, int] = (0, 0, 0, 0),
    groups: int = 1,
    label: str = "conv",
) -> Case:
    """A convolution with weights, zero points and inputs drawn."""
    group_in = in_shape[2] // groups
    sizes = [
        (in_shape[i] + padding[i] + padding[i + 2] - (kernel[i] - 1) * dilation[i] - 1) // stride[i] + 1 for i in (0, 1)
    ]
    layer = _layer(rng, (out_channels, *kernel, group_in), prod(kernel) * group_in)
    op = Conv2d(
        name="y",
        inputs=("x",),
        stride=stride,
        dilation=dilation,
        padding=padding,
        groups=groups,
        clamp=_clamp(rng),
        **layer,
    )
    tensors = {
        "x": QTensor("x", in_shape, 1.0, _zero(rng)),
        "y": QTensor("y", (sizes[0], sizes[1], out_channels), 1.0, _zero(rng)),
    }
    words = f"{in_shape} -> {out_channels}, kernel {kernel}, stride {stride}, dilation {dilation}, padding {padding}, groups {groups}"
    return Case(f"{label} {words}", op, tensors, [_codes(rng, in_shape)])


def _geometry(rng: np.random.Generator) -> dict[str, tuple[int, ...]]:
    kernel = (int(rng.choice([1, 2, 3, 3, 5, 7])), int(rng.choice([1, 2, 3, 3, 5, 7])))
    if rng.random() < 0.6:
        kernel = (kernel[0], kernel[0])
    stride = (
        (int(rng.integers(1, 4)),) * 2 if rng.random() < 0.7 else (int(rng.integers(1, 4)), int(rng.integers(1, 4)))
    )
    dilation = (1, 1) if rng.random() < 0.7 else (int(rng.integers(1, 3)), int(rng.integers(1, 3)))
    span = [(kernel[i] - 1) * dilation[i] + 1 for i in (0, 1)]
    padding = tuple(int(rng.integers(0, span[i % 2])) for i in range(4)) if rng.random() < 0.7 else (0, 0, 0, 0)
    size = tuple(int(max(rng.integers(1, 12), span[i] - padding[i] - padding[i + 2])) for i in (0, 1))
    return {"size": size, "kernel": kernel, "stride": stride, "dilation": dilation, "padding": padding}


def _random_conv(rng: np.random.Generator) -> Iterator[Case]:
    g = _geometry(rng)
    yield conv(rng, (*g.pop("size"), int(rng.integers(1, 20))), int(rng.integers(1, 20)), **g)


def _random_grouped(rng: np.random.Generator) -> Iterator[Case]:
    g, groups = _geometry(rng), int(rng.integers(2, 4))
    yield conv(
        rng, (*g.pop("size"), groups * int(rng.integers(2, 7))), groups * int(rng.integers(1, 7)), groups=groups, **g
    )


def _random_1x1(rng: np.random.Generator) -> Iterator[Case]:
    size = (int(rng.integers(1, 7)), int(rng.integers(1, 7)))
    yield conv(rng, (*size, 4 * int(rng.integers(1, 12))), int(rng.integers(1, 24)), (1, 1), label="1x1")


def _random_depthwise(rng: np.random.Generator) -> Iterator[Case]:
    g, channels = _geometry(rng), int(rng.integers(2, 10))
    multiplier = int(rng.choice([1, 1, 1, 2, 3]))
    yield conv(rng, (*g.pop("size"), channels), channels * multiplier, groups=channels, label="depthwise", **g)
    kernel, stride = (3, 3), (int(rng.integers(1, 3)),) * 2
    size, padding = (
        (int(rng.integers(3, 12)), int(rng.integers(3, 12))),
        tuple(int(each) for each in rng.integers(0, 3, 4)),
    )
    yield conv(
        rng, (*size, channels), channels, kernel, stride, padding=padding, groups=channels, label="depthwise 3x3"
    )


def _random_square_depthwise(rng: np.random.Generator) -> Iterator[Case]:
    """Every length of the row's rest is as likely as any other."""
    for taps in (3, 5, 7):
        channels, stride = int(rng.integers(2, 6)), (int(rng.integers(1, 4)), int(rng.integers(1, 3)))
        size = (int(rng.integers(taps, taps + 9)), int(rng.integers(taps, taps + 16)))
        padding = tuple(int(each) for each in rng.integers(0, taps, 4))
        yield conv(
            rng,
            (*size, channels),
            channels,
            (taps,) * 2,
            stride,
            padding=padding,
            groups=channels,
            label="square depthwise",
        )


def _random_linear(rng: np.random.Generator) -> Iterator[Case]:
    for rows in (1, int(rng.integers(2, 6))):
        inner, out = int(rng.choice([1, 3, 4, 7, 16, 65, 300, int(rng.integers(1, 80))])), int(rng.integers(1, 20))
        shape = (inner,) if rows == 1 else (rows, inner)
        op = Linear(name="y", inputs=("x",), clamp=_clamp(rng), **_layer(rng, (out, inner), inner))
        tensors = {"x": QTensor("x", shape, 1.0, _zero(rng)), "y": QTensor("y", (*shape[:-1], out), 1.0, _zero(rng))}
        yield Case(f"linear {shape} -> {out}", op, tensors, [_codes(rng, shape)])


def _random_add(rng: np.random.Generator) -> Iterator[Case]:
    shape = (int(rng.integers(1, 6)), int(rng.integers(1, 6)), int(rng.integers(1, 9)))
    op = Add(name="y", inputs=("a", "b"), clamp=_clamp(rng), **_add_scales(rng))
    tensors = {name: QTensor(name, shape, 1.0, _zero(rng)) for name in "aby"}
    yield Case(f"add {shape}", op, tensors, [_codes(rng, shape), _codes(rng, shape)])


def _random_mul(rng: np.random.Generator) -> Iterator[Case]:
    shape = (int(rng.integers(1, 6)), int(rng.integers(1, 6)), int(rng.integers(1, 9)))
    for second in (shape, (1, 1, shape[2]), (shape[2],)):
        multiplier, shift = split_factor(float(np.exp(rng.uniform(-6, 1))))
        op = Mul(name="y", inputs=("a", "b"), multiplier=multiplier, shift=shift, clamp=_clamp(rng))
        tensors = {name: QTensor(name, second if name == "b" else shape, 1.0, _zero(rng)) for name in "aby"}
        yield Case(f"mul {shape} by {second}", op, tensors, [_codes(rng, shape), _codes(rng, second)])


def _random_pool(rng: np.random.Generator) -> Iterator[Case]:
    for kind in (AvgPool2d, MaxPool2d):
        g, channels = _geometry(rng), int(rng.integers(1, 7))
        size, kernel, dilation = g["size"], g["kernel"], g["dilation"]
        if kind is AvgPool2d:
            dilation = (1, 1)
        # Half a window of padding at most, so that every window holds a pixel.
        padding = tuple(min(each, (kernel[i % 2] - 1) // 2) for i, each in enumerate(g["padding"]))
        size = tuple(max(size[i], (kernel[i] - 1) * dilation[i] + 1) for i in (0, 1))
        out = [
            (size[i] + padding[i] + padding[i + 2] - (kernel[i] - 1) * dilation[i] - 1) // g["stride"][i] + 1
            for i in (0, 1)
        ]
        extra = {"dilation": dilation} if kind is MaxPool2d else {}
        op = kind(
            name="y", inputs=("x",), kernel=kernel, stride=g["stride"], padding=padding, clamp=_clamp(rng), **extra
        )
        zero = _zero(rng)
        tensors = {"x": QTensor("x", (*size, channels), 1.0, zero), "y": QTensor("y", (*out, channels), 1.0, zero)}
        label = f"{kind.__name__} {size} x {channels}, kernel {kernel}, stride {g['stride']}, dilation {dilation}, padding {padding}"
        yield Case(label, op, tensors, [_codes(rng, (*size, channels))])


def _large_pool(rng: np.random.Generator) -> Iterator[Case]:
    """As many pixels as sums in 16 bits can hold, and one more."""
    for size in ((16, 16), (1, 257)):
        for codes in (np.full((*size, 6), -128, np.int8), _codes(rng, (*size, 6))):
            tensors = {"x": QTensor("x", (*size, 6), 1.0, 0), "y": QTensor("y", (1, 1, 6), 1.0, 0)}
            op = AvgPool2d(name="y", inputs=("x",), kernel=size, stride=size)
            yield Case(f"average of {size}", op, tensors, [codes])


def _random_mean(rng: np.random.Generator) -> Iterator[Case]:
    shape = (int(rng.integers(1, 8)), int(rng.integers(1, 8)), int(rng.integers(1, 9)))
    multiplier, shift = split_factor(float(np.exp(rng.uniform(-1, 1))) / (shape[0] * shape[1]))
    op = Mean(name="y", inputs=("x",), multiplier=multiplier >> int(rng.integers(2)), shift=shift, clamp=_clamp(rng))
    out = shape[2:] if rng.random() < 0.5 else (1, 1, shape[2])
    tensors = {"x": QTensor("x", shape, 1.0, _zero(rng)), "y": QTensor("y", out, 1.0, _zero(rng))}
    yield Case(f"mean {shape}", op, tensors, [_codes(rng, shape)])


def _random_softmax(rng: np.random.Generator) -> Iterator[Case]:
    shape = [(int(rng.integers(1, 40)),), (int(rng.integers(1, 4)), int(rng.integers(1, 12)))][rng.integers(2)]
    scale = float(np.exp(rng.uniform(-5, 0)))
    multiplier, shift = split_factor(min(scale * 2**26, 2**31 - 1.0))
    diff_min = -math.floor(31 * 2.0 ** (26 - shift))
    op = Softmax(name="y", inputs=("x",), multiplier=multiplier, shift=shift, diff_min=diff_min)
    tensors = {"x": QTensor("x", shape, scale, _zero(rng)), "y": QTensor("y", shape, 1 / 256, -128)}
    yield Case(f"softmax {shape} scale {scale:.4f}", op, tensors, [_codes(rng, shape)])


def _random_movement(rng: np.random.Generator) -> Iterator[Case]:
    shape, zero = (int(rng.integers(1, 6)), int(rng.integers(1, 6)), int(rng.integers(1, 9))), _zero(rng)
    x, codes = QTensor("x", shape, 1.0, zero), _codes(rng, shape)
    table = rng.integers(-128, 128, 256, dtype=np.int8)
    yield Case(
        f"lookup {shape}",
        Lookup(name="y", inputs=("x",), table=table, function="random"),
        {"x": x, "y": QTensor("y", shape, 1.0, 0)},
        [codes],
    )
    flat = QTensor("y", (prod(shape),), 1.0, zero)
    yield Case(f"reshape {shape}", Reshape(name="y", inputs=("x",)), {"x": x, "y": flat}, [codes])
    factor = (int(rng.integers(1, 4)), int(rng.integers(1, 4)))
    out = QTensor("y", (shape[0] * factor[0], shape[1] * factor[1], shape[2]), 1.0, zero)
    yield Case(
        f"upsample {shape} by {factor}",
        UpsampleNearest(name="y", inputs=("x",), factor=factor),
        {"x": x, "y": out},
        [codes],
    )
    padding = tuple(int(each) for each in rng.integers(0, 4, 4))
    out = QTensor("y", (shape[0] + padding[0] + padding[2], shape[1] + padding[1] + padding[3], shape[2]), 1.0, zero)
    yield Case(f"pad {shape} by {padding}", Pad(name="y", inputs=("x",), padding=padding), {"x": x, "y": out}, [codes])
    count, axis = int(rng.integers(1, 9)), int(rng.integers(3))
    shapes = [(*shape[:axis], int(rng.integers(1, 6)), *shape[axis + 1 :]) for _ in range(count)]
    names = tuple(f"x{i}" for i in range(count))
    tensors = {name: QTensor(name, each, 1.0, zero) for name, each in zip(names, shapes, strict=True)}
    tensors["y"] = QTensor("y", (*shape[:axis], sum(each[axis] for each in shapes), *shape[axis + 1 :]), 1.0, zero)
    op = Concat(name="y", inputs=names, axis=axis)
    yield Case(f"concat {shapes} along {axis}", op, tensors, [_codes(rng, each) for each in shapes])


FAMILIES = (
    _random_conv,
    _random_grouped,
    _random_1x1,
    _random_depthwise,
    _random_linear,
    _random_add,
    _random_mul,
    _random_pool,
    _random_mean,
    _random_softmax,
    _random_movement,
    _random_square_depthwise,
    _large_pool,
)


# C


def constants_c(cases: list[Case]) -> str:
    """Constant tables, parameter structs and one function a case: ``void case7(int8_t *const *inputs, int8_t *output, void *scratch)``."""
    lines = ['#include "ll_nn.h"', ""]
    for case in cases:
        for table in case.call.constants:
            suffix = "u" if table.c_type.startswith("u") else ""
            numbers = ", ".join("INT32_MIN" if v == -(2**31) else f"{v}{suffix}" for v in table.values.ravel().tolist())
            lines.append(f"static const {table.c_type} {table.name}[] = {{{numbers}}};")
        lines.append(f"static const {case.call.params_type} {case.symbol}_params = {case.call.params};")
        arguments = "".join(f"inputs[{i}], " for i in range(len(case.inputs)))
        lines.append(f"void {case.symbol}(int8_t *const *inputs, int8_t *output, void *scratch);")
        lines.append(f"void {case.symbol}(int8_t *const *inputs, int8_t *output, void *scratch) {{")
        lines.append(f"    {case.call.function}(&{case.symbol}_params, {arguments}output, scratch);")
        lines.append("}")
    return "\n".join([*lines, ""])

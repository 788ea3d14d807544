"""What an integer graph refuses to be."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from lilliput.errors import GraphError
from lilliput.quantize import QTensor, QuantizedGraph
from lilliput.quantize.qgraph import (
    AvgPool2d,
    Clamp,
    Concat,
    Conv2d,
    Crop,
    Linear,
    Lookup,
    Mean,
    Mul,
    Paste,
    QOp,
    Reshape,
)
from lilliput.quantize.verify import accumulator_bound

TABLE = np.zeros(256, dtype=np.int8)


def conv(**changes: Any) -> Conv2d:
    fields: dict[str, Any] = {
        "name": "y",
        "inputs": ("x",),
        "source": "net.conv",
        "weight": np.ones((2, 3, 3, 4), dtype=np.int8),
        "bias": np.zeros(2, dtype=np.int32),
        "weight_scale": np.ones(2),
        "multiplier": np.full(2, 2**30, dtype=np.int32),
        "shift": np.full(2, -5, dtype=np.int32),
    }
    return Conv2d(**(fields | changes))


def graph(*ops: QOp, outputs: tuple[str, ...] = ("y",), **tensors: QTensor) -> QuantizedGraph:
    base = {"x": QTensor("x", (5, 6, 4), 0.1, 0), "y": QTensor("y", (3, 4, 2), 0.1, 0)}
    return QuantizedGraph("net", "x", outputs, base | tensors, ops)


def test_a_legal_graph_is_accepted() -> None:
    assert graph(conv()).macs == 3 * 4 * 2 * 9 * 4


@pytest.mark.parametrize(
    ("op", "y", "message"),
    [
        (conv(), (4, 4, 2), r"'y' \(Conv2d, module 'net.conv'\) makes \[3, 4, 2\], but its tensor says \[4, 4, 2\]"),
        (conv(groups=2), (3, 4, 2), r"weight \[2, 3, 3, 4\] in 2 groups does not fit 4 channels"),
        (conv(padding=(-1, 0, 0, 0)), (3, 4, 2), "has padding below 0 or stride below 1"),
        (conv(inputs=("z",)), (3, 4, 2), "reads 'z' before it is made"),
        (conv(clamp=Clamp(lower=5, upper=4)), (3, 4, 2), r"clamps to \[5, 4\]; must lie within \[-128, 127\]"),
        (conv(shift=np.full(2, 31, dtype=np.int32)), (3, 4, 2), r"a shift outside \[-31, 30\]"),
        (conv(name="x"), (3, 4, 2), "is made twice"),
        (Mean(name="y", inputs=("x",), multiplier=2**30, shift=0), (3,), r"makes \[4\]"),
        (Mul(name="y", inputs=("x", "x", "x"), multiplier=2**30, shift=0), (5, 6, 4), "has 3 inputs; takes 2"),
        (Lookup(name="y", inputs=("x",), table=TABLE, function="f"), (5, 6, 5), r"makes \[5, 6, 4\]"),
        (Concat(name="y", inputs=("x", "x"), axis=3), (5, 6, 8), "along axis 3"),
        (Reshape(name="y", inputs=("x",)), (5, 6, 5), r"makes \[5, 6, 4\]"),
        (
            AvgPool2d(name="y", inputs=("x",), kernel=(2, 2), stride=(1, 1), padding=(2, 0, 0, 0)),
            (6, 5, 4),
            "without a pixel",
        ),
    ],
)
def test_an_operation_that_does_not_fit_is_refused(op: QOp, y: tuple[int, ...], message: str) -> None:
    with pytest.raises(GraphError, match=message):
        graph(op, y=QTensor("y", y, 0.1, 0))


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (QTensor("y", (3, 4, 2), 0.0, 0), "has scale 0.0; must be above 0"),
        (QTensor("y", (3, 4, 2), math.nan, 0), "has scale nan; must be above 0"),
        (QTensor("y", (3, 4, 2), 0.1, 128), "has zero point 128; must be -128 to 127"),
        (QTensor("z", (3, 4, 2), 0.1, 0), "calls itself 'z'"),
        (QTensor("y", (3, 0, 2), 0.1, 0), r"has shape \[3, 0, 2\]; sizes are above 0"),
    ],
)
def test_a_tensor_that_is_none_is_refused(tensor: QTensor, message: str) -> None:
    with pytest.raises(GraphError, match=message):
        graph(conv(), y=tensor)


def test_passing_codes_through_needs_one_scale() -> None:
    op = Reshape(name="y", inputs=("x",))
    with pytest.raises(
        GraphError, match="passes codes through, so inputs and output must have one scale and zero point"
    ):
        graph(op, y=QTensor("y", (120,), 0.1, 1))


def test_unmade_outputs_and_unused_tensors_are_refused() -> None:
    with pytest.raises(GraphError, match="'z' is named as input or output but is not made"):
        graph(conv(), outputs=("z",))
    with pytest.raises(GraphError, match=r"tensors \['w'\] are made by no operation"):
        graph(conv(), w=QTensor("w", (1,), 0.1, 0))


def test_the_bound_of_an_accumulator_is_reached_by_no_codes_but_nearly() -> None:
    op = conv(bias=np.array([1000, -1000], dtype=np.int32))
    # 36 weights of 1: at most 255 * 36 + 1000 is reached; the bound asks for 256.
    assert accumulator_bound(op).tolist() == [256 * 36 + 1000] * 2


def linear(inputs: int, weight: int, bias: int, shift: int = -20) -> QuantizedGraph:
    op = Linear(
        name="y",
        inputs=("x",),
        weight=np.full((1, inputs), weight, dtype=np.int8),
        bias=np.array([bias], dtype=np.int32),
        weight_scale=np.ones(1),
        multiplier=np.array([2**30], dtype=np.int32),
        shift=np.array([shift], dtype=np.int32),
    )
    return graph(op, x=QTensor("x", (inputs,), 0.1, 0), y=QTensor("y", (1,), 0.1, 0))


def test_sums_that_leave_32_bits_are_refused_and_the_last_that_fits_is_not() -> None:
    fits = (2**31 - 1) // (256 * 127)  # 66,052 inputs
    assert linear(fits, 127, 0).macs == fits
    with pytest.raises(GraphError, match=r"channel 0 can reach 2,147,\d{3},\d{3} in its 32-bit accumulator"):
        linear(fits + 1, 127, 0)
    with pytest.raises(GraphError, match="use fewer input channels, smaller weights or a larger output range"):
        linear(10, 1, 2**31 - 1)


def test_a_left_shift_counts_towards_the_32_bits() -> None:
    assert linear(1, 1, 2**20, shift=10).macs == 1
    with pytest.raises(GraphError, match="32-bit accumulator"):
        linear(1, 1, 2**20, shift=11)


def test_shared_weights_count_once_in_bytes_and_twice_in_macs() -> None:
    first = conv(weight=np.ones((4, 1, 1, 4), dtype=np.int8), **four())
    second = replace(first, name="y", inputs=("h",), bias=first.bias.copy())
    first = replace(first, name="h")
    tensors = {name: QTensor(name, (5, 6, 4), 0.1, 0) for name in ("h", "y")}
    both = graph(first, second, **tensors)
    assert both.macs == 2 * 5 * 6 * 4 * 4
    # One weight of 16 bytes, two biases of 4 int32; then two shared arrays of 4 int32 (multiplier and shift).
    assert both.weight_bytes == 16 + 2 * 16
    assert both.constant_bytes == 16 + 2 * 16 + 2 * 16


def four() -> dict[str, Any]:
    return {
        "bias": np.zeros(4, dtype=np.int32),
        "weight_scale": np.ones(4),
        "multiplier": np.full(4, 2**30, dtype=np.int32),
        "shift": np.full(4, -5, dtype=np.int32),
    }


def test_parts_are_taken_and_put_where_they_say() -> None:
    net = QuantizedGraph(
        "net",
        "x",
        ("y",),
        {
            name: QTensor(name, shape, 0.1, 7)
            for name, shape in (
                ("x", (5, 6, 4)),
                ("a", (2, 3, 4)),
                ("b", (2, 3, 4)),
                ("c", (5, 6, 4)),
                ("y", (5, 6, 4)),
            )
        },
        (
            Crop(name="a", inputs=("x",), top=3, left=1),
            Crop(name="b", inputs=("x",), top=0, left=3),
            Paste(name="c", inputs=("a",), top=0, left=0),
            Paste(name="y", inputs=("b", "c"), top=1, left=2),
        ),
    )
    x = np.random.default_rng(0).integers(-128, 128, (2, 5, 6, 4), dtype=np.int8)
    y = net.run(x)
    assert np.array_equal(y[:, 1:3, 2:5], x[:, 0:2, 3:6])
    assert np.array_equal(y[:, 0, 0:3], x[:, 3, 1:4])  # of the first piece, where the second does not cover it


@pytest.mark.parametrize(
    ("op", "message"),
    [
        (Crop(name="a", inputs=("x",), top=4, left=1), r"takes \[2, 3, 4\] at \(4, 1\) of \[5, 6, 4\]"),
        (Crop(name="a", inputs=("x",), top=0, left=-1), r"at \(0, -1\)"),
    ],
)
def test_parts_outside_the_image_are_refused(op: QOp, message: str) -> None:
    tensors = {"x": QTensor("x", (5, 6, 4), 0.1, 0), "a": QTensor("a", (2, 3, 4), 0.1, 0)}
    with pytest.raises(GraphError, match=message):
        QuantizedGraph("net", "x", ("a",), tensors, (op,))
    whole = {"x": QTensor("x", (5, 6, 4), 0.1, 0), "y": QTensor("y", (3, 3, 4), 0.1, 0)}
    with pytest.raises(GraphError, match=r"puts \[5, 6, 4\] at \(0, 0\) of \[3, 3, 4\]"):
        QuantizedGraph("net", "x", ("y",), whole, (Paste(name="y", inputs=("x",), top=0, left=0),))

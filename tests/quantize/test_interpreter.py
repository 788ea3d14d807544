"""Each operation against loops that anyone can read, on small random tensors."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from test_arithmetic import exact_add, exact_multiply, half_away

from lilliput.errors import DataError, GraphError
from lilliput.quantize import QTensor, QuantizedGraph
from lilliput.quantize.arithmetic import add_multipliers, mean_multiplier, quantize_multiplier
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
    Reshape,
    UpsampleNearest,
)

RNG = np.random.default_rng(0)


def codes(*shape: int) -> np.ndarray:
    return RNG.integers(-128, 128, shape).astype(np.int8)


def graph_of(op: QOp, output: tuple[int, ...], *inputs: tuple[int, ...], same: bool = False) -> QuantizedGraph:
    """A graph around one operation; further inputs are made from the first by tables and reshapes that the test ignores."""
    x = QTensor("x", inputs[0], 0.05, -7)
    y = QTensor("y", output, 0.05 if same else 0.11, -7 if same else 13)
    return QuantizedGraph("one", "x", ("y",), {"x": x, "y": y}, (op,))


def layer(out: int, zero_weights: bool = False) -> dict[str, Any]:
    scales = np.linspace(0.001, 0.02, out)
    pairs = [quantize_multiplier(0.05 * float(scale) / 0.11) for scale in scales]
    return {
        "bias": RNG.integers(-3000, 3000, out).astype(np.int32),
        "weight_scale": scales,
        "multiplier": np.array([q for q, _ in pairs], dtype=np.int32),
        "shift": np.array([e for _, e in pairs], dtype=np.int32),
    }


def clamped(value: int, clamp: Clamp) -> int:
    return max(clamp.lower, min(clamp.upper, value))


CONVS = [
    # height, width, in, out, kernel, stride, dilation, padding (top, left, bottom, right), groups
    (5, 6, 3, 4, (3, 3), (1, 1), (1, 1), (1, 1, 1, 1), 1),
    (7, 7, 4, 6, (3, 3), (2, 2), (1, 1), (0, 0, 1, 1), 1),
    (6, 9, 4, 4, (5, 3), (1, 2), (1, 1), (2, 1, 2, 1), 4),
    (6, 6, 4, 8, (3, 3), (1, 1), (1, 1), (1, 1, 1, 1), 4),
    (8, 8, 6, 4, (3, 3), (1, 1), (2, 2), (2, 2, 2, 2), 2),
    (4, 4, 8, 5, (1, 1), (1, 1), (1, 1), (0, 0, 0, 0), 1),
    (1, 12, 2, 3, (1, 5), (1, 3), (1, 1), (0, 2, 0, 0), 1),
]


@pytest.mark.parametrize("case", CONVS, ids=str)
def test_convolution_equals_seven_loops(case: tuple[Any, ...]) -> None:
    height, width, into, out, (kh, kw), (sh, sw), (dh, dw), padding, groups = case
    top, left, bottom, right = padding
    rows = (height + top + bottom - dh * (kh - 1) - 1) // sh + 1
    columns = (width + left + right - dw * (kw - 1) - 1) // sw + 1
    clamp = Clamp(lower=-60, upper=90)
    weight = RNG.integers(-127, 128, (out, kh, kw, into // groups)).astype(np.int8)
    op = Conv2d(
        name="y",
        inputs=("x",),
        weight=weight,
        stride=(sh, sw),
        dilation=(dh, dw),
        padding=padding,
        groups=groups,
        clamp=clamp,
        **layer(out),
    )
    x = codes(2, height, width, into)
    got = graph_of(op, (rows, columns, out), (height, width, into)).run(x)
    per_group = into // groups
    for n in range(2):
        for row in range(rows):
            for column in range(columns):
                for o in range(out):
                    total = int(op.bias[o])
                    for i in range(kh):
                        for j in range(kw):
                            r, c = row * sh - top + i * dh, column * sw - left + j * dw
                            if 0 <= r < height and 0 <= c < width:
                                for k in range(per_group):
                                    channel = o // (out // groups) * per_group + k
                                    total += (int(x[n, r, c, channel]) + 7) * int(weight[o, i, j, k])
                    expected = exact_multiply(total, int(op.multiplier[o]), int(op.shift[o])) + 13
                    assert got[n, row, column, o] == clamped(expected, clamp)


@pytest.mark.parametrize("shape", [(9,), (4, 9)])
def test_linear_equals_loops(shape: tuple[int, ...]) -> None:
    weight = RNG.integers(-127, 128, (5, 9)).astype(np.int8)
    op = Linear(name="y", inputs=("x",), weight=weight, **layer(5))
    x = codes(3, *shape)
    got = graph_of(op, (*shape[:-1], 5), shape).run(x)
    for index in np.ndindex(3, *shape[:-1]):
        for o in range(5):
            total = int(op.bias[o]) + sum((int(x[(*index, k)]) + 7) * int(weight[o, k]) for k in range(9))
            expected = exact_multiply(total, int(op.multiplier[o]), int(op.shift[o])) + 13
            assert got[(*index, o)] == clamped(expected, Clamp())


def two_inputs(op: QOp, second: tuple[int, ...], clamp: Clamp) -> tuple[np.ndarray, QuantizedGraph]:
    """A graph that makes the second input ``b`` (other scale and zero point) from rows of x by pooling."""
    tensors = {
        "x": QTensor("x", (3, 4, 5), 0.05, -7),
        "m": QTensor("m", (1, 1, 5), 0.02, 9),
        "y": QTensor("y", (3, 4, 5), 0.11, 13),
    }
    q, e = mean_multiplier(0.05, 0.02, 12)
    table = np.arange(127, -129, -1).astype(np.int8)
    if second == (1, 1, 5):
        ops: tuple[QOp, ...] = (Mean(name="m", inputs=("x",), multiplier=q, shift=e), op)
    else:
        tensors["m"] = QTensor("m", (3, 4, 5), 0.02, 9)
        ops = (Lookup(name="m", inputs=("x",), table=table, function="flip"), op)
    graph = QuantizedGraph("two", "x", ("y",), tensors, ops)
    return codes(2, 3, 4, 5), graph


def test_addition_equals_loops() -> None:
    clamp = Clamp(lower=13, upper=67)
    multiplier, shift = add_multipliers(0.05, 0.02, 0.11)
    op = Add(name="y", inputs=("x", "m"), multiplier=multiplier, shift=shift, clamp=clamp)
    x, graph = two_inputs(op, (3, 4, 5), clamp)
    seen = graph.activations(x)
    for index in np.ndindex(*x.shape):
        a, b = int(seen["x"][index]) + 7, int(seen["m"][index]) - 9
        assert seen["y"][index] == clamped(exact_add(a, b, 0.05, 0.02, 0.11) + 13, clamp)


@pytest.mark.parametrize("second", [(3, 4, 5), (1, 1, 5)])
def test_product_equals_loops_and_repeats_a_channel_over_the_image(second: tuple[int, ...]) -> None:
    q, e = quantize_multiplier(0.05 * 0.02 / 0.11)
    op = Mul(name="y", inputs=("x", "m"), multiplier=q, shift=e)
    x, graph = two_inputs(op, second, Clamp())
    seen = graph.activations(x)
    for n, row, column, channel in np.ndindex(*x.shape):
        other = (n, row, column, channel) if second == (3, 4, 5) else (n, 0, 0, channel)
        product = (int(x[n, row, column, channel]) + 7) * (int(seen["m"][other]) - 9)
        assert seen["y"][n, row, column, channel] == clamped(exact_multiply(product, q, e) + 13, Clamp())


@pytest.mark.parametrize(
    ("kernel", "stride", "padding"),
    [((2, 2), (2, 2), (0, 0, 0, 0)), ((3, 2), (2, 1), (1, 0, 1, 1)), ((3, 3), (2, 2), (0, 0, 1, 1))],
)
def test_pooling_equals_loops(kernel: Any, stride: Any, padding: Any) -> None:
    height, width = 6, 5
    rows = (height + padding[0] + padding[2] - kernel[0]) // stride[0] + 1
    columns = (width + padding[1] + padding[3] - kernel[1]) // stride[1] + 1
    x = codes(2, height, width, 3)
    fields = {"name": "y", "inputs": ("x",), "kernel": kernel, "stride": stride, "padding": padding}
    means, maxima = (
        graph_of(kind(**fields), (rows, columns, 3), (height, width, 3), same=True).run(x)
        for kind in (AvgPool2d, MaxPool2d)
    )
    for n, row, column, channel in np.ndindex(2, rows, columns, 3):
        window = [
            int(x[n, r, c, channel])
            for r in range(row * stride[0] - padding[0], row * stride[0] - padding[0] + kernel[0])
            for c in range(column * stride[1] - padding[1], column * stride[1] - padding[1] + kernel[1])
            if 0 <= r < height and 0 <= c < width
        ]
        assert means[n, row, column, channel] == half_away(Fraction(sum(window), len(window)))
        assert maxima[n, row, column, channel] == max(window)


def test_dilated_max_pool_skips_pixels() -> None:
    op = MaxPool2d(name="y", inputs=("x",), kernel=(2, 2), stride=(1, 1), dilation=(2, 2))
    x = codes(1, 4, 4, 1)
    got = graph_of(op, (2, 2, 1), (4, 4, 1), same=True).run(x)
    for row, column in np.ndindex(2, 2):
        assert got[0, row, column, 0] == max(x[0, row + i, column + j, 0] for i in (0, 2) for j in (0, 2))


@pytest.mark.parametrize("output", [(3,), (1, 1, 3)])
def test_mean_equals_the_rescaled_sum(output: tuple[int, ...]) -> None:
    q, e = mean_multiplier(0.05, 0.11, 35)
    x = codes(4, 5, 7, 3)
    got = graph_of(Mean(name="y", inputs=("x",), multiplier=q, shift=e), output, (5, 7, 3)).run(x)
    assert got.shape == (4, *output)
    for n, channel in np.ndindex(4, 3):
        total = sum(int(each) + 7 for each in x[n, :, :, channel].ravel())
        assert got.reshape(4, 3)[n, channel] == clamped(exact_multiply(total, q, e) + 13, Clamp())
        assert abs(int(got.reshape(4, 3)[n, channel]) - 13 - total * 0.05 / 35 / 0.11) <= 0.5 + 1e-6


def test_lookup_takes_the_entry_of_each_code() -> None:
    table = RNG.permutation(np.arange(-128, 128)).astype(np.int8)
    x = np.arange(-128, 128).astype(np.int8)[None]
    got = graph_of(Lookup(name="y", inputs=("x",), table=table, function="any"), (256,), (256,)).run(x)
    assert got[0].tolist() == table.tolist()


def test_padding_holds_the_zero_point() -> None:
    x = codes(1, 2, 2, 1)
    got = graph_of(Pad(name="y", inputs=("x",), padding=(1, 0, 2, 1)), (5, 3, 1), (2, 2, 1), same=True).run(x)
    expected = np.full((5, 3), -7)
    expected[1:3, 0:2] = x[0, :, :, 0]
    assert got[0, :, :, 0].tolist() == expected.tolist()


def test_upsampling_concatenation_and_reshape_move_bytes_only() -> None:
    x = np.array([[[[1, 2]], [[3, 4]]]], dtype=np.int8)  # height 2, width 1, channels 2
    up = UpsampleNearest(name="y", inputs=("x",), factor=(1, 2))
    assert graph_of(up, (2, 2, 2), (2, 1, 2), same=True).run(x).ravel().tolist() == [1, 2, 1, 2, 3, 4, 3, 4]
    joined = Concat(name="y", inputs=("x", "x"), axis=2)
    assert graph_of(joined, (2, 1, 4), (2, 1, 2), same=True).run(x).ravel().tolist() == [1, 2, 1, 2, 3, 4, 3, 4]
    stacked = Concat(name="y", inputs=("x", "x"), axis=0)
    assert graph_of(stacked, (4, 1, 2), (2, 1, 2), same=True).run(x).ravel().tolist() == [1, 2, 3, 4, 1, 2, 3, 4]
    flat = Reshape(name="y", inputs=("x",))
    assert graph_of(flat, (4,), (2, 1, 2), same=True).run(x).tolist() == [[1, 2, 3, 4]]


def test_the_sum_of_a_convolution_is_exact_at_its_largest() -> None:
    # 3 x 3 x 1024 products of 255 and 127: 298 million, more than float32 counts one by one.
    weight = np.full((1, 3, 3, 1024), 127, dtype=np.int8)
    weight[0, 0, 0, 0] = 126
    q, e = quantize_multiplier(2.0**-22)
    op = Conv2d(
        name="y",
        inputs=("x",),
        weight=weight,
        bias=np.array([0], dtype=np.int32),
        weight_scale=np.ones(1),
        multiplier=np.array([q], dtype=np.int32),
        shift=np.array([e], dtype=np.int32),
    )
    tensors = {"x": QTensor("x", (3, 3, 1024), 1.0, -128), "y": QTensor("y", (1, 1, 1), 1.0, 0)}
    graph = QuantizedGraph("big", "x", ("y",), tensors, (op,))
    total = 255 * (127 * 9 * 1024 - 1)
    assert graph.run(np.full((1, 3, 3, 1024), 127, dtype=np.int8)).ravel().tolist() == [round(total / 2**22)]
    assert total > 2**24


def small() -> QuantizedGraph:
    weight = np.ones((2, 1, 1, 3), dtype=np.int8)
    return graph_of(Conv2d(name="y", inputs=("x",), weight=weight, **layer(2)), (4, 5, 2), (4, 5, 3))


def test_floats_are_quantized_first_and_come_channels_first() -> None:
    graph = small()
    x = RNG.normal(size=(2, 3, 4, 5)).astype(np.float32)
    expected = np.clip(np.floor(x.astype(np.float64) / 0.05 + 0.5) - 7, -128, 127)  # no exact ties in random floats
    assert (graph.quantize_input(x) == np.moveaxis(expected, 1, -1)).all()
    assert (graph.run(x) == graph.run(graph.quantize_input(x))).all()


def test_a_batch_that_is_cut_into_chunks_gives_the_same_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    graph, x = small(), codes(11, 4, 5, 3)
    whole = graph.run(x)
    monkeypatch.setattr("lilliput.quantize.interpreter.CHUNK_ELEMENTS", 130)  # two samples of 60 at once
    assert (graph.run(x) == whole).all()
    assert graph.run(x[:0]).shape == (0, 4, 5, 2)


def test_dequantizing_gives_the_float_models_layout_within_half_a_step() -> None:
    graph = small()
    x = RNG.uniform(-5, 5, size=(2, 3, 4, 5)).astype(np.float32)
    back = graph.dequantize(graph.quantize_input(x), "x")
    assert back.shape == x.shape
    assert np.abs(back - x).max() <= 0.025 + 1e-6


def test_huge_inputs_get_the_end_codes() -> None:
    assert small().quantize_input(np.full((1, 3, 4, 5), 3e38, dtype=np.float32)).max() == 127
    assert small().quantize_input(np.full((1, 3, 4, 5), -3e38, dtype=np.float32)).min() == -128


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (
            np.zeros((1, 3, 4, 5), dtype=np.int8),
            r"int8 input has shape \[1, 3, 4, 5\]; must be \(batch, 4, 5, 3\), channels last",
        ),
        (np.zeros((1, 4, 5, 3), dtype=np.float32), r"shape \[1, 4, 5, 3\]; must be \(batch, 3, 4, 5\), channels first"),
        (np.zeros((1, 3, 4, 5), dtype=np.uint8), "input has dtype uint8; must be int8 codes, or floats"),
        (np.full((1, 3, 4, 5), math.nan), "input has NaN or infinite values; all must be finite"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(x: np.ndarray, message: str) -> None:
    with pytest.raises(DataError, match=message):
        small().run(x)


def test_dequantizing_one_of_several_outputs_asks_which() -> None:
    tensors = {name: QTensor(name, (2,), 0.1, 0) for name in ("x", "a", "b")}
    table = np.zeros(256, dtype=np.int8)
    ops = tuple(Lookup(name=name, inputs=("x",), table=table, function="zero") for name in ("a", "b"))
    graph = QuantizedGraph("two", "x", ("a", "b"), tensors, ops)
    assert len(graph.run(np.zeros((1, 2), dtype=np.int8))) == 2
    with pytest.raises(DataError, match=r"outputs \['a', 'b'\]; name the one"):
        graph.dequantize(np.zeros((1, 2), dtype=np.int8))


def test_an_operation_without_a_rule_is_refused_when_the_graph_is_made() -> None:
    class Unknown(QOp):
        pass

    with pytest.raises(GraphError, match=r"'y' \(Unknown, module ''\) is of a kind without a rule"):
        graph_of(Unknown(name="y", inputs=("x",)), (1,), (1,))

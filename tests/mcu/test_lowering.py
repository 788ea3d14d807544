"""What lowering promises: layouts worked by hand, exact scratch, little flash on top, and errors that say what would work."""

from __future__ import annotations

import numpy as np
import pytest

from lilliput.errors import GraphError, UnsupportedOpError
from lilliput.mcu.access import can_run_in_place
from lilliput.mcu.lowering import can_fuse_add, lower, scratch_bytes
from lilliput.mcu.packing import fold_zero_point, pack_weights, scale_constants
from lilliput.quantize.qgraph import Concat, Conv2d, Mul, Pad, QOp, QTensor, Softmax
from mcu.kernel_cases import FAMILIES, add_onto, all_cases, conv


def test_paired_weights_lie_as_the_kernel_reads_them() -> None:
    """Four channels by four codes: halfwords 256 * A + B; word AB of codes 0 and 2, CD of 0 and 2, then of 1 and 3."""
    weight = np.array([[1, 2, 3, 4], [5, -6, 7, 8], [-9, 10, 11, 12], [13, 14, 15, -16]], dtype=np.int8)
    words, is_paired = pack_weights(weight)

    def word(low: int, high: int) -> int:
        return (low & 0xFFFF) | (high & 0xFFFF) << 16

    assert is_paired
    assert words.tolist() == [
        word(1 * 256 + 5, 3 * 256 + 7),
        word(-9 * 256 + 13, 11 * 256 + 15),
        word(2 * 256 - 6, 4 * 256 + 8),
        word(10 * 256 + 14, 12 * 256 - 16),
    ]


def test_a_weight_that_no_pair_holds_makes_the_layer_plain() -> None:
    """256 * -128 - 1 leaves 16 bits."""
    words, is_paired = pack_weights(np.array([[-128, 1, 2, 3], [-1, 4, 5, 6]], dtype=np.int8))
    assert not is_paired
    assert words.tolist() == [0x03020180, 0x060504FF]


@pytest.mark.parametrize(("out", "words"), [(1, 4), (2, 4), (3, 8), (4, 8), (5, 12), (7, 16), (10, 20), (64, 128)])
def test_weights_are_filled_up_by_one_channel_at_most(out: int, words: int) -> None:
    assert pack_weights(np.ones((out, 8), dtype=np.int8))[0].size == words


def test_the_folded_bias_gives_the_sums_of_codes_less_their_zero_point() -> None:
    rng = np.random.default_rng(0)
    weight, x = rng.integers(-127, 128, (5, 9), dtype=np.int8), rng.integers(-128, 128, 9)
    bias = rng.integers(-1000, 1000, 5).astype(np.int32)
    assert (weight.astype(int) @ x + fold_zero_point(weight, bias, -37) == weight.astype(int) @ (x + 37) + bias).all()


def test_one_channel_without_weights_or_next_to_none_does_not_slow_the_layer_down() -> None:
    weight = np.ones((3, 8), dtype=np.int8)
    weight[0] = 0
    bias = np.array([1000, 5, 5], dtype=np.int32)
    multiplier, shift = np.full(3, 2**30, dtype=np.int32), np.array([5, -27, -8], dtype=np.int32)
    values, is_plain = scale_constants(weight, bias, multiplier, shift)
    assert is_plain
    # Channel 0 always gives 1000 * 2**5 / 2, far above any code; channel 1 always 0; channel 2 is as it was, its bias doubled.
    assert values.reshape(3, 3).tolist() == [[2 * 4 * 512, 2**30, 1], [0, 0, 1], [10, 2**30, 8]]


def test_a_factor_of_one_half_or_more_keeps_the_general_scale() -> None:
    weight, ones = np.ones((2, 8), dtype=np.int8), np.full(2, 2**30, dtype=np.int32)
    values, is_plain = scale_constants(weight, np.array([3, 4], np.int32), ones, np.array([0, -3], np.int32))
    assert not is_plain
    assert values.tolist() == [3, 2**30, 0, 4, 2**30, -3]


def test_scratch_is_told_beforehand_exactly_as_the_call_says() -> None:
    for case in all_cases(seed=3, count=4):
        in_place = case.overlay is not None
        told = scratch_bytes(case.op, case.tensors, fused_add=case.fused_add, in_place=in_place)
        assert told == case.call.scratch_bytes, case.label


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda rng: conv(rng, (8, 8, 16), 8, (1, 1)), 2 * 16 * 2),  # two pixels in 16 bits
        (lambda rng: conv(rng, (8, 8, 16), 8, (3, 3)), 2 * 144 * 2),
        (lambda rng: conv(rng, (8, 8, 3), 8, (3, 3)), 2 * 28 * 2 + 28),  # and one in bytes, as 3 channels fill no word
        (lambda rng: conv(rng, (8, 8, 16), 16, (3, 3), padding=(1, 1, 1, 1), groups=16), 3 * 12 * 2 + 5 * 2 * 4),  # ring and filter
        (lambda rng: conv(rng, (8, 8, 16), 16, (5, 5), padding=(2, 2, 2, 2), groups=16), 5 * 14 * 2 + 9 * 4 * 4),
        (lambda rng: conv(rng, (8, 8, 16), 16, (7, 7), (2, 2), padding=(3, 3, 3, 3), groups=16), 7 * 14 * 2 + 13 * 4 * 4),
        (lambda rng: conv(rng, (8, 8, 16), 16, (5, 3), padding=(2, 1, 2, 1), groups=16), 5 * 12 * 2 + 5 * (2 + 1) * 4),  # general
        (lambda rng: conv(rng, (4, 4, 16), 10, (4, 4)), 0),  # covers the image: fully connected
    ],
)  # fmt: skip
def test_scratch_is_as_small_as_worked_out_by_hand(make: object, expected: int) -> None:
    case = make(np.random.default_rng(0))  # type: ignore[operator]
    assert scratch_bytes(case.op, case.tensors) == expected


def test_packed_constants_add_little_to_weights_and_three_words_a_channel() -> None:
    for case in (
        conv(np.random.default_rng(0), (4, 4, 32), 63, (3, 3)),
        conv(np.random.default_rng(0), (4, 4, 3), 16, (3, 3)),
    ):
        call = lower(case.op, case.tensors, symbol="c")
        tables = {table.name: table.bytes for table in call.constants}
        assert tables["c_channels"] == 12 * len(case.op.bias)
        assert case.op.weight.size <= tables["c_weights"] <= 1.04 * case.op.weight.size


def test_macs_are_those_of_the_dense_formula() -> None:
    case = conv(np.random.default_rng(0), (9, 7, 6), 10, (3, 5), (2, 1), padding=(1, 2, 1, 2), groups=2)
    assert case.tensors["y"].shape == (5, 7, 10)
    assert lower(case.op, case.tensors, symbol="c").macs == 5 * 7 * 10 * 3 * 5 * 3


IN_PLACE = [
    ("1x1, fewer channels", ((6, 6, 32), 16, (1, 1)), {}, True),
    ("1x1, as many", ((6, 6, 16), 16, (1, 1)), {}, True),
    ("1x1, more, from the last pixels to the first", ((6, 6, 16), 32, (1, 1)), {}, True),
    ("1x1, more, on one pixel", ((1, 1, 16), 32, (1, 1)), {}, False),
    ("1x1, more, in groups", ((6, 6, 16), 32, (1, 1)), {"groups": 2}, False),
    ("1x1, more, stride 2", ((6, 6, 4), 32, (1, 1)), {"stride": (2, 2)}, False),
    ("3x3, more", ((6, 6, 16), 64, (3, 3)), {"padding": (1, 1, 1, 1)}, False),
    ("3x3, as many", ((6, 6, 16), 16, (3, 3)), {"padding": (1, 1, 1, 1)}, False),
    ("2x2, stride 2", ((6, 6, 16), 16, (2, 2)), {"stride": (2, 2)}, True),
    ("depthwise 3x3", ((6, 6, 16), 16, (3, 3)), {"padding": (1, 1, 1, 1), "groups": 16}, True),
    ("depthwise 3x3, stride 2", ((6, 6, 16), 16, (3, 3)), {"stride": (2, 2), "padding": (1, 1, 1, 1), "groups": 16}, True),
    ("depthwise 5x5", ((6, 6, 16), 16, (5, 5)), {"padding": (2, 2, 2, 2), "groups": 16}, True),
    ("depthwise, padded before only", ((6, 6, 16), 16, (3, 3)), {"padding": (2, 1, 0, 1), "groups": 16}, True),
    ("depthwise, multiplier 2", ((6, 6, 8), 16, (3, 3)), {"padding": (1, 1, 1, 1), "groups": 8}, False),
]  # fmt: skip


@pytest.mark.parametrize(
    ("shape", "options", "allowed"), [row[1:] for row in IN_PLACE], ids=[row[0] for row in IN_PLACE]
)
def test_in_place_is_allowed_where_reading_stays_ahead_of_writing(shape: tuple, options: dict, allowed: bool) -> None:
    case = conv(np.random.default_rng(0), *shape, **options)
    assert can_run_in_place(case.op, case.tensors) is allowed
    if allowed:
        assert lower(case.op, case.tensors, symbol="c", in_place=True).scratch_bytes == scratch_bytes(
            case.op, case.tensors
        )
        return
    with pytest.raises(
        GraphError, match=r"'y' \(Conv2d, module ''\) would read codes it has overwritten: give it an output apart"
    ):
        lower(case.op, case.tensors, symbol="c", in_place=True)


def test_an_addition_is_fused_into_convolutions_and_linear_layers_only() -> None:
    rng = np.random.default_rng(0)
    kinds = {}
    for family in FAMILIES:
        for case in family(rng):
            add, tensors, _ = add_onto(rng, case)
            kinds[case.label.split()[0]] = can_fuse_add(case.op, add)
            if not can_fuse_add(case.op, add):
                with pytest.raises(UnsupportedOpError, match="'sum' cannot be fused into 'y'.*lower them one by one"):
                    lower(case.op, tensors, symbol="c", fused_add=add)
    assert {kind for kind, can in kinds.items() if can} == {"conv", "1x1", "linear"}


def test_an_operation_without_a_kernel_is_named_with_those_that_have_one() -> None:
    class Fft(QOp):
        pass

    tensors = {name: QTensor(name, (4,), 1.0, 0) for name in "xy"}
    with pytest.raises(
        UnsupportedOpError,
        match=r"no C kernel for 'y' \(Fft, module 'head.fft'\); there are kernels for Add, .*Softmax",
    ):
        lower(Fft(name="y", inputs=("x",), source="head.fft"), tensors, symbol="c")


def test_limits_of_the_kernels_are_told_with_what_would_work() -> None:
    names = tuple(f"x{i}" for i in range(9))
    tensors = {name: QTensor(name, (1, 1, 4), 1.0, 0) for name in (*names, "y")}
    with pytest.raises(UnsupportedOpError, match="joins 9 tensors; the kernels take up to 8; join some of them first"):
        lower(Concat(name="y", inputs=names, axis=2), tensors, symbol="c")

    tensors = {name: QTensor(name, (5000,), 1.0, 0) for name in "xy"}
    softmax = Softmax(name="y", inputs=("x",), multiplier=2**30, shift=20, diff_min=-100)
    with pytest.raises(
        UnsupportedOpError, match="over 5,000 classes; the kernel sums at most 4,095; leave the softmax out"
    ):
        lower(softmax, tensors, symbol="c")

    shapes = {"a": (1, 1, 4), "b": (3, 3, 4), "y": (3, 3, 4)}
    tensors = {name: QTensor(name, shape, 1.0, 0) for name, shape in shapes.items()}
    with pytest.raises(UnsupportedOpError, match=r"multiplies \[1, 1, 4\] by \[3, 3, 4\].*give the larger one first"):
        lower(Mul(name="y", inputs=("a", "b"), multiplier=2**30, shift=-5), tensors, symbol="c")

    tensors = {"x": QTensor("x", (40000, 1, 1), 1.0, 0), "y": QTensor("y", (40001, 1, 1), 1.0, 0)}
    with pytest.raises(
        UnsupportedOpError, match="has a size of 40,000; the kernels take up to 32,767; use smaller images"
    ):
        lower(Pad(name="y", inputs=("x",), padding=(1, 0, 0, 0)), tensors, symbol="c")


def test_constants_are_named_after_the_call_and_the_parameters_name_them() -> None:
    case = conv(np.random.default_rng(0), (6, 6, 4), 8, (3, 3))
    call = lower(case.op, case.tensors, symbol="op7")
    assert isinstance(case.op, Conv2d)
    assert [table.name for table in call.constants] == ["op7_weights", "op7_channels"]
    assert all(table.name in call.params for table in call.constants)
    assert (call.function, call.params_type) == ("ll_conv", "ll_conv_params")

"""Integer softmax against the real one, and against the fixed-point algorithm written again with Python's own integers."""

from __future__ import annotations

import math

import numpy as np
import pytest

from lilliput.quantize.softmax import exp_on_negative_values, reciprocal, softmax, softmax_parameters


def c_divide(a: int, b: int) -> int:
    """C's division: towards zero."""
    return abs(a) // b if a >= 0 else -(abs(a) // b)


def times(a: int, b: int) -> int:
    product = a * b
    return c_divide(product + (2**30 if product >= 0 else 1 - 2**30), 2**31)


def right(x: int, bits: int) -> int:
    return c_divide(2 * x + (2**bits if x >= 0 else -(2**bits)), 2 ** (bits + 1))


def left(x: int, bits: int) -> int:
    return max(-(2**31), min(2**31 - 1, x * 2**bits))


def plain_exp(a: int) -> int:
    """exp of a Q5.26 number <= 0 in Q0.31; constants derived from math.exp."""
    if a == 0:
        return 2**31 - 1
    within = a % 2**24 - 2**24
    x = left(within, 5) + 2**28
    x2 = times(x, x)
    x3, x4 = times(x2, x), times(x2, x2)
    constant = round(math.exp(-1 / 8) * 2**31)
    series = right(times(right(x4, 2) + x3, round(2**31 / 3)) + x2, 1)
    result = constant + times(constant, x + series)
    for power in range(-2, 5):
        if (within - a) >> (26 + power) & 1:
            result = times(result, round(math.exp(-(2.0**power)) * 2**31))
    return result


def plain_softmax(codes: list[int], scale: float) -> list[int]:
    """The reference kernel's steps, one integer at a time."""
    mantissa, shift = math.frexp(min(scale * 2**26, 2.0**31 - 1))
    multiplier = math.floor(mantissa * 2**31 + 0.5)
    diff_min = -math.floor(31 * 2**26 / 2**shift)
    top = max(codes)
    exps = [plain_exp(times((code - top) * 2**shift, multiplier)) if code - top >= diff_min else None for code in codes]
    total = sum(right(each, 12) for each in exps if each is not None)
    headroom = 32 - total.bit_length()
    half = (total * 2**headroom - 2**31 + 2**31) // 2
    x = round(48 / 17 * 2**29) + times(half, round(-32 / 17 * 2**29))
    for _ in range(3):
        x += left(times(x, 2**29 - times(half, x)), 2)
    scale_back = left(x, 1)
    bits = 12 - headroom + 31 - 8
    return [-128 if e is None else max(-128, min(127, right(times(scale_back, e), bits) - 128)) for e in exps]


def integer_softmax(codes: np.ndarray, scale: float) -> np.ndarray:
    return softmax(codes, *softmax_parameters(scale))


@pytest.mark.parametrize("scale", [0.004, 0.03, 0.1, 0.25, 1.0, 7.5, 40.0])
@pytest.mark.parametrize("width", [1, 2, 10, 37])
def test_equals_the_algorithm_in_plain_integers(scale: float, width: int) -> None:
    rng = np.random.default_rng(width)
    codes = rng.integers(-128, 128, (12, width)).astype(np.int8)
    scale = float(np.float32(scale))
    expected = [plain_softmax(row, scale) for row in codes.tolist()]
    assert integer_softmax(codes, scale).tolist() == expected


@pytest.mark.parametrize("scale", [0.01, 0.05, 0.1, 0.3, 1.0])
def test_is_within_one_step_of_the_real_softmax_for_every_pair_of_codes(scale: float) -> None:
    first, second = np.meshgrid(np.arange(-128, 128), np.arange(-128, 128))
    codes = np.stack([first, second], axis=-1).reshape(-1, 2).astype(np.int8)
    real = np.exp(codes * scale - (codes * scale).max(axis=1, keepdims=True))
    real /= real.sum(axis=1, keepdims=True)
    # 1.0 has no code: 255/256 is the largest.
    steps = np.minimum(real * 256, 255) - 128
    assert np.abs(integer_softmax(codes, scale) - steps).max() <= 1.0


def test_is_within_one_step_of_the_real_softmax_on_long_rows() -> None:
    codes = np.random.default_rng(0).integers(-128, 128, (500, 64)).astype(np.int8)
    logits = codes * 0.08
    real = np.exp(logits - logits.max(axis=1, keepdims=True))
    real /= real.sum(axis=1, keepdims=True)
    assert np.abs(integer_softmax(codes, 0.08) - (np.minimum(real * 256, 255) - 128)).max() <= 1.0


def test_every_exponential_is_right_to_the_remainder_of_its_series() -> None:
    a = np.linspace(-(2**31) + 1, 0, 20001).astype(np.int64)
    got = exp_on_negative_values(a) / 2**31
    # The series around -1/8 stops after the fourth power: (1/8)**5 / 5! = 2.54e-7 is left.
    np.testing.assert_allclose(got, np.exp(a / 2**26), rtol=0, atol=2.6e-7)


def test_reciprocal_of_every_count_of_ones_is_right() -> None:
    counts = np.arange(1, 4000, dtype=np.int64)
    mantissa, bits = reciprocal(counts << 19)
    np.testing.assert_allclose(mantissa / 2**31 / 2.0**bits, 1 / counts, rtol=2e-8)


def test_codes_far_below_the_maximum_give_exactly_zero() -> None:
    scale = 1.0
    _, _, diff_min = softmax_parameters(scale)
    codes = np.array([[127, 127 + diff_min, 127 + diff_min - 1]], dtype=np.int8)
    assert diff_min == -15  # floor(31 * 2**26 / 2**27): one code is 2**26 = 0.5 * 2**27
    assert integer_softmax(codes, scale).tolist() == [[127, -128, -128]]


def test_equal_logits_share_equally_whatever_the_scale() -> None:
    for scale in (1e-12, 1e-3, 0.1, 100.0):
        assert integer_softmax(np.zeros((1, 4), dtype=np.int8), scale).tolist() == [[-64, -64, -64, -64]]

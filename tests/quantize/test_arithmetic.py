"""Fixed-point arithmetic against exact fractions, worked by hand where a rounding rule is at stake."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lilliput.errors import GraphError
from lilliput.quantize import arithmetic
from lilliput.quantize.arithmetic import (
    add,
    add_multipliers,
    divide_rounding_half_away,
    mean_multiplier,
    multiply_by_quantized_multiplier,
    quantize_multiplier,
    requantize,
    round_half_away,
    rounding_divide_by_pot,
    saturating_rounding_doubling_high_mul,
)

INT32 = st.integers(-(2**31), 2**31 - 1)


def half_up(x: Fraction) -> int:
    """Nearest integer, ties towards plus infinity."""
    return math.floor(x + Fraction(1, 2))


def half_away(x: Fraction) -> int:
    """Nearest integer, ties away from zero."""
    return half_up(x) if x >= 0 else -half_up(-x)


def exact_multiply(x: int, q: int, exponent: int) -> int:
    """The specification's two roundings, in fractions."""
    high = half_up(Fraction(x * 2 ** max(exponent, 0) * q, 2**31))
    return half_away(Fraction(min(high, 2**31 - 1), 2 ** max(-exponent, 0)))


def array(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int64)


@given(INT32, INT32)
@settings(max_examples=500, deadline=None)
def test_high_mul_rounds_the_exact_product_half_up_and_saturates(a: int, b: int) -> None:
    expected = min(half_up(Fraction(a * b, 2**31)), 2**31 - 1)
    assert saturating_rounding_doubling_high_mul(array(a), array(b)).tolist() == [expected]


def test_high_mul_at_its_ties_and_its_only_overflow() -> None:
    half = 2**30
    # 1 * half / 2**31 = 0.5 and so on: positive ties go up in magnitude, negative ones down.
    assert saturating_rounding_doubling_high_mul(array(1, -1, 3, -3, 5, -5), half).tolist() == [1, 0, 2, -1, 3, -2]
    assert saturating_rounding_doubling_high_mul(array(-(2**31)), array(-(2**31))).tolist() == [2**31 - 1]


@given(INT32, st.integers(0, 31))
@settings(max_examples=500, deadline=None)
def test_divide_by_power_of_two_rounds_half_away_from_zero(x: int, exponent: int) -> None:
    assert rounding_divide_by_pot(array(x), exponent).tolist() == [half_away(Fraction(x, 2**exponent))]


def test_divide_by_power_of_two_at_its_ties() -> None:
    assert rounding_divide_by_pot(array(1, -1, 3, -3, 2, -2), 1).tolist() == [1, -1, 2, -2, 1, -1]
    assert rounding_divide_by_pot(array(6, -6, 5, -5, 7, -7), 2).tolist() == [2, -2, 1, -1, 2, -2]


def test_two_roundings_are_not_one() -> None:
    # 5 / 4 = 1.25, nearest 1. But 5 / 2 = 2.5 -> 3 (half up), then 3 / 2 = 1.5 -> 2 (half away).
    assert multiply_by_quantized_multiplier(array(5), 2**30, -1).tolist() == [2]
    # -5 / 2 = -2.5 -> -2 (half up), then -2 / 2 = -1.
    assert multiply_by_quantized_multiplier(array(-5), 2**30, -1).tolist() == [-1]


@pytest.mark.parametrize("real", [0.75, 0.5, 0.0123456789, 3e-5, 1.0, 1.7, 13.25, 2**-31, 0.9999999999])
def test_every_accumulator_of_a_range_is_rescaled_as_the_fractions_say(real: float) -> None:
    q, exponent = quantize_multiplier(real)
    x = np.arange(-4000, 4001, dtype=np.int64)
    expected = [exact_multiply(each, q, exponent) for each in range(-4000, 4001)]
    assert multiply_by_quantized_multiplier(x, q, exponent).tolist() == expected


@given(INT32, st.integers(2**30, 2**31 - 1), st.integers(-31, 0))
@settings(max_examples=500, deadline=None)
def test_any_accumulator_is_rescaled_as_the_fractions_say(x: int, q: int, exponent: int) -> None:
    assert multiply_by_quantized_multiplier(array(x), q, exponent).tolist() == [exact_multiply(x, q, exponent)]


def test_multipliers_differ_by_channel() -> None:
    x = np.array([[100, 100, 100]], dtype=np.int64)
    q, exponent = array(2**30, 2**30, 3 * 2**29), array(0, 1, -2)
    # 100 * 0.5; 100 * 0.5 * 2; 100 * 0.75 / 4 = 18.75
    assert multiply_by_quantized_multiplier(x, q, exponent).tolist() == [[50, 100, 19]]


@given(st.floats(min_value=2**-31, max_value=2**29, allow_nan=False))
@settings(max_examples=500, deadline=None)
def test_quantized_multiplier_is_the_nearest_of_31_bits(real: float) -> None:
    q, exponent = quantize_multiplier(real)
    assert 2**30 <= q < 2**31
    assert abs(Fraction(q, 2**31) * Fraction(2) ** exponent - Fraction(real)) <= Fraction(2) ** (exponent - 32)


def test_quantized_multiplier_at_its_edges() -> None:
    assert quantize_multiplier(0.5) == (2**30, 0)
    assert quantize_multiplier(1.0) == (2**30, 1)
    # The mantissa rounds up to 2**31, which is no int32: half of it and one more power of two.
    assert quantize_multiplier(math.nextafter(1.0, 0.0)) == (2**30, 1)
    assert quantize_multiplier(0.0) == (0, 0)
    assert quantize_multiplier(2.0**-40) == (0, 0)


@pytest.mark.parametrize("real", [-0.1, math.nan, math.inf])
def test_a_multiplier_that_is_no_positive_number_is_refused(real: float) -> None:
    with pytest.raises(GraphError, match=r"multiplier .*: must be finite and not negative"):
        quantize_multiplier(real)


def test_a_multiplier_too_large_to_shift_is_refused() -> None:
    with pytest.raises(
        GraphError, match=r"multiplier 1\.09951e\+12: must be below 2\*\*30; the output scale is too small"
    ):
        quantize_multiplier(2.0**40)


@given(st.integers(-(2**20), 2**20), st.integers(1, 5000))
@settings(max_examples=500, deadline=None)
def test_pooling_divides_half_away_from_zero(total: int, count: int) -> None:
    assert divide_rounding_half_away(array(total), count).tolist() == [half_away(Fraction(total, count))]


def test_requantize_adds_the_zero_point_and_clamps() -> None:
    x = array(-1000, -10, 0, 9, 10, 1000)
    assert requantize(x, 2**30, 0, 5, -128, 127).tolist() == [-128, 0, 5, 10, 10, 127]
    assert requantize(x, 2**30, 0, 5, 5, 9).tolist() == [5, 5, 5, 9, 9, 9]
    assert requantize(x, 2**30, 0, 5, -128, 127).dtype == np.int8


def exact_add(x1: int, x2: int, s1: float, s2: float, sy: float) -> int:
    """The specification's sum, each multiplier derived anew from frexp."""

    def multiplier(real: float) -> tuple[int, int]:
        mantissa, exponent = math.frexp(real)
        return half_away(Fraction(mantissa) * 2**31), exponent

    twice = 2 * max(s1, s2)
    raised = [exact_multiply(x * 2**20, *multiplier(s / twice)) for x, s in ((x1, s1), (x2, s2))]
    return exact_multiply(sum(raised), *multiplier(twice / (2**20 * sy)))


@given(st.integers(-255, 255), st.integers(-255, 255), *[st.floats(1e-3, 1e-1)] * 3)
@settings(max_examples=300, deadline=None)
def test_addition_follows_the_specification(x1: int, x2: int, s1: float, s2: float, sy: float) -> None:
    multiplier, shift = add_multipliers(s1, s2, sy)
    assert add(array(x1), array(x2), multiplier, shift).tolist() == [exact_add(x1, x2, s1, s2, sy)]


@given(st.integers(-255, 255), st.integers(-255, 255), *[st.floats(1e-2, 1e-1)] * 3)
@settings(max_examples=300, deadline=None)
def test_addition_is_within_a_step_of_the_real_sum(x1: int, x2: int, s1: float, s2: float, sy: float) -> None:
    multiplier, shift = add_multipliers(s1, s2, sy)
    (result,) = add(array(x1), array(x2), multiplier, shift).tolist()
    assert abs(result - (x1 * s1 + x2 * s2) / sy) <= 0.5 + 1e-3


def test_an_addition_with_too_fine_an_output_is_refused() -> None:
    with pytest.raises(GraphError, match=r"output scale 1e-09 must be above"):
        add_multipliers(0.1, 0.1, 1e-9)


@given(st.floats(1e-3, 1.0), st.floats(1e-3, 1.0), st.integers(1, 20000))
@settings(max_examples=300, deadline=None)
def test_mean_multiplier_is_close_to_scale_over_count(sx: float, sy: float, count: int) -> None:
    q, exponent = mean_multiplier(sx, sy, count)
    assert 2**29 <= q < 2**31
    real = Fraction(q, 2**31) * Fraction(2) ** exponent
    # One rounding of 31 bits and one truncation of at least 29 bits.
    assert abs(real / (Fraction(sx) / Fraction(sy) / count) - 1) < Fraction(1, 2**28)


def test_mean_multiplier_is_divided_as_an_integer_and_cut_off() -> None:
    # 1 is (2**30, 1); raised by the one bit that 3 leaves room for, 2**31 // 3 = 715,827,882.67 cut off.
    assert mean_multiplier(0.5, 0.5, 3) == (715_827_882, 0)
    # 49 leaves room for five bits: 2**35 // 49 = 701,219,709.06 cut off.
    assert mean_multiplier(0.5, 0.5, 49) == (2**35 // 49, -4)
    assert mean_multiplier(0.5, 0.5, 64) == (2**30, -5)


def test_round_half_away_is_not_pythons_round() -> None:
    assert round_half_away(np.array([0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 0.49999999999999994, 2.4])).tolist() == [
        *[1, 2, 3, -1, -2, -3],
        *[0, 2],
    ]


def test_constants_are_those_of_32_bits() -> None:
    assert (arithmetic.INT32_MIN, arithmetic.INT32_MAX) == (-2147483648, 2147483647)

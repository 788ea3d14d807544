"""Softmax of int8 codes in integers only: exponentials and one reciprocal in 32-bit fixed point.

``Qm.n`` is a 32-bit number with m integer and n fraction bits. The codes' differences to the row's maximum, times the input scale, are
made Q5.26; their exponentials are Q0.31; the sum is Q12.19; its reciprocal, by three Newton steps, is Q0.31.

Source: the int8 softmax of TensorFlow Lite's reference kernels, on gemmlowp's fixed-point functions.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Int8, Int64

from lilliput.quantize.arithmetic import (
    INT32_MAX,
    INT32_MIN,
    quantize_multiplier,
    rounding_divide_by_pot,
    saturating_rounding_doubling_high_mul,
)

Raw = Int64[np.ndarray, "*shape"]

DIFFERENCE_INTEGER_BITS = 5
SUM_INTEGER_BITS = 12
ONE = INT32_MAX
"""1.0 in Q0.31, as near as it gets."""
Q2_ONE = 1 << 29
"""1.0 in Q2.29."""
EXP_OF_MINUS_POWER = {
    -2: 1672461947,
    -1: 1302514674,
    0: 790015084,
    1: 290630308,
    2: 39332535,
    3: 720401,
    4: 242,
}
"""exp(-2**key) in Q0.31."""


def softmax(
    codes: Int8[np.ndarray, "*shape"], multiplier: int, shift: int, diff_min: int
) -> Int8[np.ndarray, "*shape"]:
    """Softmax over the last axis; the result has scale 1/256 and zero point -128."""
    x = codes.astype(np.int64)
    difference = x - x.max(axis=-1, keepdims=True)
    counts = difference >= diff_min
    difference = np.where(counts, difference, 0)
    exponential = exp_on_negative_values(saturating_rounding_doubling_high_mul(difference << shift, multiplier))
    terms = np.where(counts, rounding_divide_by_pot(exponential, SUM_INTEGER_BITS), 0)
    scale, bits_over_unit = reciprocal(terms.sum(axis=-1, keepdims=True))
    product = saturating_rounding_doubling_high_mul(scale, exponential)
    result = np.clip(rounding_divide_by_pot(product, bits_over_unit + 31 - 8) - 128, -128, 127)
    return np.where(counts, result, -128).astype(np.int8)


def softmax_parameters(input_scale: float) -> tuple[int, int, int]:
    """(multiplier, shift, diff_min) for logits of this scale.

    A scale below 2**-26 is taken as 2**-26: all logits then differ by less than 4e-6, which no output code can show.
    """
    real = min(max(input_scale * 2 ** (31 - DIFFERENCE_INTEGER_BITS), 1.0), 2.0**31 - 1)
    multiplier, shift = quantize_multiplier_wide(real)
    diff_min = -(((2**DIFFERENCE_INTEGER_BITS - 1) << (31 - DIFFERENCE_INTEGER_BITS)) >> shift)
    return multiplier, shift, diff_min


def quantize_multiplier_wide(real: float) -> tuple[int, int]:
    """As :func:`quantize_multiplier`, up to an exponent of 31: ``diff_min`` keeps the differences small enough for that."""
    multiplier, shift = quantize_multiplier(real / 4)
    return multiplier, shift + 2


def exp_on_negative_values(a: Raw, integer_bits: int = DIFFERENCE_INTEGER_BITS) -> Raw:
    """exp of Q5.26 numbers <= 0 (or of another split), in Q0.31: a polynomial on [-1/4, 0), times exp(-2**k) for each further bit set."""
    fraction_bits = 31 - integer_bits
    quarter = 1 << (fraction_bits - 2)
    within = (a & (quarter - 1)) - quarter
    result = _exp_between_minus_quarter_and_zero(_saturating_shift_left(within, integer_bits))
    remainder = within - a
    for power, factor in EXP_OF_MINUS_POWER.items():
        if power >= integer_bits:
            continue
        is_set = (remainder & (1 << (fraction_bits + power))) != 0
        result = np.where(is_set, saturating_rounding_doubling_high_mul(result, factor), result)
    return np.where(a == 0, ONE, result)


def reciprocal(total: Raw) -> tuple[Raw, Raw]:
    """1 / total for Q12.19 totals >= 1: a Q0.31 number in (1/2, 1] and by how many bits it is still to be divided."""
    leading_zeros = 31 - np.floor(np.log2(total.astype(np.float64))).astype(np.int64)
    above_one = (total << leading_zeros) - (1 << 31)
    return one_over_one_plus(above_one), SUM_INTEGER_BITS - leading_zeros


def _exp_between_minus_quarter_and_zero(a: Raw) -> Raw:
    """Taylor series around -1/8 to the fourth power, Q0.31."""
    times = saturating_rounding_doubling_high_mul
    exp_of_minus_eighth, third = 1895147668, 715827883
    x = a + (1 << 28)
    x2 = times(x, x)
    x3 = times(x2, x)
    x4 = times(x2, x2)
    series = rounding_divide_by_pot(times(rounding_divide_by_pot(x4, 2) + x3, third) + x2, 1)
    return exp_of_minus_eighth + times(x + series, exp_of_minus_eighth)


def one_over_one_plus(a: Raw) -> Raw:
    """1 / (1 + a) for a in [0, 1), Q0.31."""
    return _saturating_shift_left(_twice_one_over_one_plus(a), 1)


def one_minus_over_one_plus(a: Raw) -> Raw:
    """(1 - a) / (1 + a) for a in [0, 1), Q0.31: 2 / (1 + a) - 1."""
    return _saturating_shift_left(_twice_one_over_one_plus(a) - Q2_ONE, 2)


def _twice_one_over_one_plus(a: Raw) -> Raw:
    """2 / (1 + a), Q2.29, by Newton-Raphson from the line 48/17 - 32/17 d."""
    times = saturating_rounding_doubling_high_mul
    q2_48_over_17, q2_minus_32_over_17 = 1515870810, -1010580540
    half_denominator = (a + ONE + 1) >> 1
    x = q2_48_over_17 + times(half_denominator, q2_minus_32_over_17)
    for _ in range(3):
        error = Q2_ONE - times(half_denominator, x)
        x = x + _saturating_shift_left(times(x, error), 2)
    return x


def _saturating_shift_left(x: Raw, bits: int) -> Raw:
    return np.clip(x << bits, INT32_MIN, INT32_MAX)

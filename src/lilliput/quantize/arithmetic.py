"""Integer arithmetic of int8 networks, to the bit: what TensorFlow Lite's reference kernels compute, on whole arrays.

All functions work on int64 arrays that hold int32 values, so nothing here overflows; that the same values fit the int32 of a
microcontroller is checked when a graph is made (``lilliput.quantize.verify``). Three roundings occur and they differ at ties:

==============================================  =======================================
``saturating_rounding_doubling_high_mul``       half towards plus infinity
``rounding_divide_by_pot``                      half away from zero
``divide_rounding_half_away``                   half away from zero, any divisor
==============================================  =======================================

The first two follow one another in :func:`multiply_by_quantized_multiplier` ("double rounding"), so the pair is not the rounding of the
real product.

Source: TensorFlow Lite int8 quantization specification and its reference kernels (double rounding); gemmlowp fixed point.
"""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Int8, Int64

from lilliput.errors import GraphError

Integers = Int64[np.ndarray, "*#shape"] | np.int64 | int
"""One integer for all elements, or an array that broadcasts."""

INT32_MIN, INT32_MAX = -(2**31), 2**31 - 1
ADD_LEFT_SHIFT = 20
"""Bits by which both inputs of an addition are raised before they are rescaled."""


def quantize_multiplier(real: float) -> tuple[int, int]:
    """A real factor as (q, exponent): ``real = q / 2**31 * 2**exponent`` with q in [2**30, 2**31).

    Zero gives (0, 0), and so does a factor too small to move any int32 (exponent below -31).

    Raises:
        GraphError: negative, NaN or infinite, or too large to be an int32 shift (exponent above 30).

    >>> quantize_multiplier(0.75)
    (1610612736, 0)
    """
    if not (math.isfinite(real) and real >= 0):
        raise GraphError(f"multiplier {real}: must be finite and not negative; check the scales it is made of")
    if real == 0:
        return 0, 0
    mantissa, exponent = math.frexp(real)
    q = math.floor(mantissa * 2**31 + 0.5)  # exact: the mantissa has 53 bits, so nothing is lost by the product
    if q == 2**31:
        q, exponent = q // 2, exponent + 1
    if exponent < -31:
        return 0, 0
    if exponent > 30:
        raise GraphError(
            f"multiplier {real:g}: must be below 2**30; the output scale is too small for its inputs' scales"
        )
    return q, exponent


def saturating_rounding_doubling_high_mul(a: Int64[np.ndarray, "*#shape"], b: Integers) -> Int64[np.ndarray, "*shape"]:
    """The high half of 2ab for int32 a and b: ab / 2**31 with ties towards plus infinity; only INT32_MIN squared saturates."""
    # The kernels add 2**30, or 1 - 2**30 below zero, and divide towards zero; flooring makes that one rule for both signs.
    nudged: Int64[np.ndarray, "*shape"] = a * b + 2**30
    return np.minimum(nudged >> 31, INT32_MAX)


def rounding_divide_by_pot(x: Int64[np.ndarray, "*#shape"], exponent: Integers) -> Int64[np.ndarray, "*shape"]:
    """x / 2**exponent with ties away from zero."""
    mask = (np.int64(1) << np.asarray(exponent, dtype=np.int64)) - 1
    remainder = x & mask
    threshold = (mask >> 1) + (x < 0)
    return (x >> exponent) + (remainder > threshold)


def multiply_by_quantized_multiplier(
    x: Int64[np.ndarray, "*#shape"],
    multiplier: Integers,
    shift: Integers,
) -> Int64[np.ndarray, "*shape"]:
    """x times the real factor (multiplier, shift): shift left first where shift > 0, round right after where it is < 0."""
    shift = np.asarray(shift, dtype=np.int64)
    raised = x << np.maximum(shift, 0)
    return rounding_divide_by_pot(saturating_rounding_doubling_high_mul(raised, multiplier), np.maximum(-shift, 0))


def divide_rounding_half_away(total: Int64[np.ndarray, "*#shape"], count: Integers) -> Int64[np.ndarray, "*shape"]:
    """total / count with ties away from zero, for count > 0: average pooling's rounding."""
    magnitude = (np.abs(total) + np.asarray(count) // 2) // count
    return np.where(total > 0, magnitude, -magnitude)


def requantize(
    accumulator: Int64[np.ndarray, "*#shape"],
    multiplier: Integers,
    shift: Integers,
    zero_point: int,
    lower: int,
    upper: int,
) -> Int8[np.ndarray, "*shape"]:
    """An accumulator as an output code: rescaled, moved by the output's zero point, clamped."""
    scaled = multiply_by_quantized_multiplier(accumulator, multiplier, shift)
    return np.clip(scaled + zero_point, lower, upper).astype(np.int8)


def add(
    first: Int64[np.ndarray, "*#shape"],
    second: Int64[np.ndarray, "*#shape"],
    multiplier: tuple[int, int, int],
    shift: tuple[int, int, int],
) -> Int64[np.ndarray, "*shape"]:
    """Sum of two code differences (x - zx), each brought to a common scale at 20 extra bits, then to the output's."""
    raised = [
        multiply_by_quantized_multiplier(x << ADD_LEFT_SHIFT, q, exponent)
        for x, q, exponent in zip((first, second), multiplier[:2], shift[:2], strict=True)
    ]
    return multiply_by_quantized_multiplier(raised[0] + raised[1], multiplier[2], shift[2])


def add_multipliers(
    first_scale: float, second_scale: float, output_scale: float
) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """The three (multiplier, shift) of an addition: s1 / (2 max), s2 / (2 max), 2 max / (2**20 * sy).

    Raises:
        GraphError: the output scale is so small that the last factor is 1 or more.
    """
    twice_max = 2.0 * max(first_scale, second_scale)
    reals = (first_scale / twice_max, second_scale / twice_max, twice_max / (2**ADD_LEFT_SHIFT * output_scale))
    if reals[2] >= 1:
        raise GraphError(
            f"addition with input scales {first_scale:g} and {second_scale:g}: output scale {output_scale:g} "
            f"must be above {twice_max / 2**ADD_LEFT_SHIFT:g}"
        )
    pairs = [quantize_multiplier(real) for real in reals]
    return (pairs[0][0], pairs[1][0], pairs[2][0]), (pairs[0][1], pairs[1][1], pairs[2][1])


def mean_multiplier(input_scale: float, output_scale: float, count: int) -> tuple[int, int]:
    """(multiplier, shift) of a mean over ``count`` codes: sx / (sy * count), rounded as the specification's kernel rounds it.

    That kernel makes the multiplier of sx / sy first and divides it, as an integer and truncating, by the count; the result may
    lie below 2**30, down to 2**29.
    """
    q, exponent = quantize_multiplier(input_scale / output_scale)
    room = min(count.bit_length() - 1, 32, 31 + exponent)
    return (q << room) // count, exponent - room


def round_half_away(x: np.ndarray | float) -> np.ndarray:
    """Nearest integers as int64, ties away from zero: C's round(), not Python's."""
    x = np.asarray(x, dtype=np.float64)
    whole = np.trunc(x)
    return np.asarray(whole + np.where(np.abs(x - whole) >= 0.5, np.sign(x), 0.0), dtype=np.int64)

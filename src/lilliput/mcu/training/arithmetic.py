"""Integer arithmetic of a training step, to the bit: what numpy and the C kernels both compute.

A **gradient tensor** is int16 mantissas m and one exponent e: the loss changes by ``m * 2**e * unit`` nats when the integer *code* of that
activation changes by one. The exponent is known at run time; the real ``unit`` is known when the graph is compiled, and costs nothing: an
addition or a mean multiplies it, and the next per-channel factor takes it up.

Rules that hold for every kernel:

- Sums of products are exact (int32 where the compiler has proved that they fit, else int64), so their order is free.
- A result that must become narrower is shifted right and **truncated towards zero** (:func:`truncate`). Truncations compose,
  ``truncate(truncate(x, a), b) == truncate(x, a + b)``: C may write with the shift that fits so far and, when a larger value turns up,
  shift what it has written. One pass, the same bits as the two passes written here.
- The shift of a tensor is the **smallest s >= 0** with which every magnitude stays below 2**bits (:func:`normalise`); s is added to the
  exponent. Zeros keep the exponent they get.
- A step of a trained number is **rounded half away from zero** (:func:`step`), except where the master is rounded by chance.

Source: gradients with respect to codes and quantization-aware scaling are Lin et al. 2022 (arXiv:2206.15472), section 3.1; the number
format, the roundings and the masters are ours.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float64, Int8, Int16, Int32, Int64

from lilliput.errors import GraphError

Integers = Int64[np.ndarray, "..."]

GRADIENT_BITS = 15
"""Magnitude bits of a gradient's mantissa."""
FACTOR_SHIFT = 16
"""Bits dropped from a mantissa times a factor, so that the product fits int32."""
MASTER_FRACTION_BITS = 8
"""Of an int16 master, Q7.8."""
BIAS_FRACTION_BITS = 8
"""Of an int32 bias master, at most: see :func:`bias_fraction_bits`."""
CHANCE_BITS = 24
"""Fraction bits of the step of an int8 master, and bits of the random number that rounds it."""
RATE_ONE = 2**15
"""The run-time factor of the learning rate that leaves it as compiled."""
LARGEST_MASTER = 127 * 2**MASTER_FRACTION_BITS
LARGEST_STEP = 2**31 - 1
WEIGHT_MAX = 127


def truncate(x: Integers, shift: Integers | int) -> Integers:
    """x / 2**shift, truncated towards zero; shifts of 63 and more give 0."""
    shift = np.minimum(shift, 63)
    magnitude = np.where(shift >= 63, 0, np.abs(x) >> np.minimum(shift, 62))
    return np.where(x < 0, -magnitude, magnitude)


def normalise(x: Integers, bits: int = GRADIENT_BITS) -> tuple[Int16[np.ndarray, "..."], int]:
    """Mantissas with magnitudes below 2**bits, and the smallest shift >= 0 that makes them so; ``exponent += shift``."""
    largest = int(np.abs(x).max(initial=0))
    shift = max(0, largest.bit_length() - bits)
    return truncate(x, shift).astype(np.int16), shift


def gradient_bits(products: int) -> int:
    """Magnitude bits a gradient may have so that a sum of so many products with int8 weights (at most 127) stays within int32.

    ``min(15, 31 - ceil(log2(127 * products)))``: then ``products * 127 * (2**bits - 1) < 2**31``.

    Raises:
        GraphError: fewer than 8 bits would be left.
    """
    bits = min(GRADIENT_BITS, 31 - (127 * products - 1).bit_length())
    if bits < 8:
        raise GraphError(
            f"{products:,} products for one gradient leave {bits} bits for a mantissa; at least 8 are needed; use fewer channels"
        )
    return bits


# --- factors known when compiling


def channel_factors(real: Float64[np.ndarray, " channel"]) -> tuple[Int32[np.ndarray, " channel"], int]:
    """Factors >= 0 as mantissas with one common exponent: ``real = mantissa * 2**exponent``, the largest mantissa in [2**30, 2**31).

    Raises:
        GraphError: negative, NaN or infinite.
    """
    if not (np.isfinite(real).all() and (real >= 0).all()):
        raise GraphError(f"gradient factors {real}: must be finite and not negative; check the scales they are made of")
    largest = float(real.max(initial=0.0))
    if largest == 0:
        return np.zeros(len(real), dtype=np.int32), 0
    exponent = int(np.frexp(largest)[1]) - 31
    mantissa = np.minimum(np.floor(np.ldexp(real, -exponent) + 0.5), 2**31 - 1)
    return mantissa.astype(np.int32), exponent


def step_factors(
    real: Float64[np.ndarray, " channel"],
) -> tuple[Int32[np.ndarray, " channel"], Int32[np.ndarray, " channel"]]:
    """Factors > 0, each with an exponent of its own: ``real = mantissa * 2**exponent``, mantissas in [2**30, 2**31).

    Raises:
        GraphError: not above 0, NaN or infinite.
    """
    if not (np.isfinite(real).all() and (real > 0).all()):
        raise GraphError(f"step factors {real}: must be finite and above 0; check the learning rate and the scales")
    fraction, exponent = np.frexp(real)
    mantissa = np.minimum(np.floor(np.ldexp(fraction, 31) + 0.5), 2**31 - 1)
    return mantissa.astype(np.int32), (exponent - 31).astype(np.int32)


def bias_fraction_bits(bias: Int32[np.ndarray, " channel"]) -> int:
    """Fraction bits of a bias master: 8, or fewer where the largest bias would leave less than one bit of room in int32."""
    return max(0, min(BIAS_FRACTION_BITS, 30 - int(np.abs(bias.astype(np.int64)).max(initial=0)).bit_length()))


def sum_shift(terms: int, largest_mantissa: int, largest_code: int) -> int:
    """The fixed shift that brings a sum of so many products into 31 magnitude bits; 0 where it fits anyway, as it mostly does."""
    return max(0, (terms * largest_mantissa * largest_code).bit_length() - 31)


# --- gradients of activations


def mask_gradient(
    mantissa: Int16[np.ndarray, "*shape"], inside: Bool[np.ndarray, "*shape"]
) -> Int16[np.ndarray, "*shape"]:
    """Zero where the forward pass clamped; the exponent stays.

    ``inside`` is lower <= code before clamping <= upper: a code that happens to lie on the border passes its gradient.
    """
    return np.where(inside, mantissa, 0).astype(np.int16)


def scale_gradient(
    mantissa: Int16[np.ndarray, "*shape channel"], factor: Int32[np.ndarray, " channel"], bits: int
) -> tuple[Int16[np.ndarray, "*shape channel"], int]:
    """From a gradient of output codes to one of accumulators: times a factor per channel, ``truncate(m * factor, 16)``, normalised.

    The exponent grows by the factor's exponent + 16 + the shift returned.
    """
    product = truncate(mantissa.astype(np.int64) * factor.astype(np.int64), FACTOR_SHIFT)
    return normalise(product, bits)


def add_gradients(
    first: Int16[np.ndarray, "*shape"],
    first_factor: int,
    first_exponent: int,
    second: Int16[np.ndarray, "*shape"],
    second_factor: int,
    second_exponent: int,
) -> tuple[Int16[np.ndarray, "*shape"], int]:
    """The sum of two gradients of one tensor (fan-out), and its exponent; its unit is 1.

    Each mantissa times its factor (below 2**15) is truncated to the larger exponent, so that each term stays below 2**30 and the int32 sum
    cannot overflow; the sum is normalised to 15 bits.

    Args:
        first: mantissas.
        first_factor: of the gradient's unit, see :func:`unit_factor`.
        first_exponent: the gradient's own plus the factor's.
        second: mantissas.
        second_factor: as the first's.
        second_exponent: as the first's.
    """
    exponent = max(first_exponent, second_exponent)
    total = truncate(first.astype(np.int64) * first_factor, exponent - first_exponent)
    total = total + truncate(second.astype(np.int64) * second_factor, exponent - second_exponent)
    mantissa, shift = normalise(total)
    return mantissa, exponent + shift


def unit_factor(unit: float) -> tuple[int, int]:
    """A gradient's unit as a factor in [2**14, 2**15) and an exponent."""
    mantissa, exponent = step_factors(np.array([unit]))
    return min((int(mantissa[0]) + 2**15) >> 16, 2**15 - 1), int(exponent[0]) + 16


# --- steps of trained numbers


def step(
    gradient: Int64[np.ndarray, "channel *shape"],
    exponent: int,
    factor: Int32[np.ndarray, " channel"],
    factor_exponent: Int32[np.ndarray, " channel"],
    rate: int,
) -> Int64[np.ndarray, "channel *shape"]:
    """How far each number moves, in units of its master's last place: gradient * 2**exponent * factor * 2**factor_exponent * rate / 2**15.

    The factor is first multiplied by the rate, truncated, to 31 bits; its product with the gradient (31 bits) is exact in int64 and is
    rounded half away from zero at the place where the exponents put the point. Steps beyond 2**31 - 1 saturate.

    Args:
        gradient: magnitudes below 2**31.
        exponent: of the gradient.
        factor: of each output channel: learning rate, quantization-aware scaling, unit of the gradient and fraction bits of the master.
        factor_exponent: of each factor.
        rate: 0 to 2**15.
    """
    columns = (slice(None), *(None,) * (gradient.ndim - 1))
    now = (factor.astype(np.int64) * rate) >> 15
    product = gradient * now[columns]
    right = -(exponent + factor_exponent.astype(np.int64))[columns]
    magnitude = np.abs(product)
    rounding = np.clip(right, 1, 62)
    rounded = np.where(right >= 63, 0, (magnitude + (np.int64(1) << (rounding - 1))) >> rounding)
    left = np.clip(-right, 0, 31)
    raised = np.minimum(magnitude, LARGEST_STEP >> left) << left
    raised = np.where(magnitude > LARGEST_STEP >> left, LARGEST_STEP, raised)
    result = np.minimum(np.where(right > 0, rounded, raised), LARGEST_STEP)
    return np.where(product < 0, -result, result)


def weight_codes(master: Int16[np.ndarray, "*shape"]) -> Int8[np.ndarray, "*shape"]:
    """The int8 weights that an int16 master stands for: ``(m + 128) >> 8``, half up. Masters stay within +-127 * 256, so codes do too."""
    return ((master.astype(np.int32) + 2 ** (MASTER_FRACTION_BITS - 1)) >> MASTER_FRACTION_BITS).astype(np.int8)


def bias_codes(master: Int32[np.ndarray, " channel"], fraction_bits: int) -> Int32[np.ndarray, " channel"]:
    """The biases that an int32 master stands for, rounded half up."""
    half = (1 << fraction_bits) >> 1
    return ((master.astype(np.int64) + half) >> fraction_bits).astype(np.int32)


def update_q7_8(master: Int16[np.ndarray, "*shape"], delta: Integers) -> Int16[np.ndarray, "*shape"]:
    """master - delta, delta in 2**-8 of a code, saturating at +-127 codes."""
    return np.clip(master.astype(np.int64) - delta, -LARGEST_MASTER, LARGEST_MASTER).astype(np.int16)


def update_by_chance(
    weight: Int8[np.ndarray, "*shape"], delta: Integers, random: Int64[np.ndarray, "*shape"]
) -> Int8[np.ndarray, "*shape"]:
    """Stochastic rounding: floor(weight - delta + u), delta in 2**-24 of a code, u = (random >> 8) / 2**24 from 32 random bits.

    On average exact: the chance to round up is the fraction that is lost.
    """
    moved = (weight.astype(np.int64) << CHANCE_BITS) - delta + (random >> 8)
    return np.clip(moved >> CHANCE_BITS, -WEIGHT_MAX, WEIGHT_MAX).astype(np.int8)


def update_to_nearest(weight: Int8[np.ndarray, "*shape"], delta: Integers) -> Int8[np.ndarray, "*shape"]:
    """weight - delta (in 2**-24 of a code) to the nearest code, half away from zero: a baseline, small steps are lost."""
    moved = (weight.astype(np.int64) << CHANCE_BITS) - delta
    magnitude = (np.abs(moved) + 2 ** (CHANCE_BITS - 1)) >> CHANCE_BITS
    return np.clip(np.where(moved < 0, -magnitude, magnitude), -WEIGHT_MAX, WEIGHT_MAX).astype(np.int8)


def update_truncated(weight: Int8[np.ndarray, "*shape"], delta: Integers) -> Int8[np.ndarray, "*shape"]:
    """weight - delta (in 2**-24 of a code) truncated towards zero, as C's ``int8 -= float``: a baseline that makes weights decay.

    Source: the published device code; there overflow is undefined, here it saturates.
    """
    moved = truncate((weight.astype(np.int64) << CHANCE_BITS) - delta, CHANCE_BITS)
    return np.clip(moved, -WEIGHT_MAX, WEIGHT_MAX).astype(np.int8)


def update_bias(master: Int32[np.ndarray, " channel"], delta: Integers) -> Int32[np.ndarray, " channel"]:
    """master - delta, both in its last place, saturating at +-(2**30 - 1)."""
    return np.clip(master.astype(np.int64) - delta, 1 - 2**30, 2**30 - 1).astype(np.int32)

"""Functions of one int8 code as tables of 256: what the reference kernels of TensorFlow Lite make of each code, to the bit.

The kernels compute these in fixed point, code by code; here each runs once over all 256 codes, so a network pays one look-up. Numbers
called ``Qm.n`` have m integer and n fraction bits (see ``lilliput.quantize.softmax``).

Source: the int8 reference kernels of LOGISTIC, TANH, HARD_SWISH, RELU, RELU6 and QUANTIZE; gemmlowp's fixed-point functions.
"""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Int8, Int64

from lilliput.errors import GraphError
from lilliput.quantize.arithmetic import (
    INT32_MAX,
    multiply_by_quantized_multiplier,
    quantize_multiplier,
    round_half_away,
    rounding_divide_by_pot,
)
from lilliput.quantize.qgraph import QTensor
from lilliput.quantize.softmax import exp_on_negative_values, one_minus_over_one_plus, one_over_one_plus

Table = Int8[np.ndarray, " 256"]
Column = Int64[np.ndarray, " 256"]

CODES: Column = np.arange(-128, 128, dtype=np.int64)
INPUT_INTEGER_BITS = 4
"""Sigmoid and tanh take Q4.27: beyond 15 both are at their ends."""
MOST_LEFT_SHIFT = 22
"""A difference of two codes, shifted further, would leave int32."""


def requantize_table(x: QTensor, y: QTensor) -> Table:
    """QUANTIZE from int8 to int8, and RELU but for its clamp: the same real values under another scale and zero point."""
    return _clipped(_rescaled(x, y, x.scale / y.scale) + y.zero_point)


def relu_table(x: QTensor, y: QTensor, upper: float | None = None) -> Table:
    """RELU, or with ``upper=6.0`` RELU6."""
    # The kernel divides the scales as float32.
    codes = _rescaled(x, y, float(np.float32(x.scale) / np.float32(y.scale))) + y.zero_point
    highest = 127 if upper is None else code_of(upper, y)
    return _clipped(np.clip(codes, y.zero_point, min(127, highest)))


def code_of(real: float, y: QTensor) -> int:
    """The code of a fused activation's bound, not yet clipped to int8: the kernels divide by the scale as float32."""
    with np.errstate(over="ignore"):
        steps = float(np.float32(real) / np.float32(y.scale))
    return y.zero_point + int(round_half_away(min(max(steps, -1e6), 1e6)))


def logistic_table(x: QTensor, y: QTensor) -> Table:
    """LOGISTIC (sigmoid); the output has scale 1/256 and zero point -128."""
    difference, inside, q4 = _in_q4(x)
    positive = one_over_one_plus(exp_on_negative_values(-np.abs(q4), INPUT_INTEGER_BITS))
    result = np.where(q4 > 0, positive, INT32_MAX - positive)
    result = np.where(q4 == 0, 1 << 30, result)
    codes = rounding_divide_by_pot(result, 31 - 8) - 128
    return _clipped(np.where(inside, codes, np.where(difference < 0, -128, 127)))


def tanh_table(x: QTensor, y: QTensor) -> Table:
    """TANH; the output has scale 1/128 and zero point 0."""
    difference, inside, q4 = _in_q4(x)
    # tanh(x) = (1 - e) / (1 + e) with e = exp(-2x): the same bits read with one integer bit more are twice the number.
    magnitude = one_minus_over_one_plus(exp_on_negative_values(-np.abs(q4), INPUT_INTEGER_BITS + 1))
    codes = rounding_divide_by_pot(np.sign(q4) * magnitude, 31 - 7)
    return _clipped(np.where(inside, codes, np.where(difference < 0, -128, 127)))


def hard_swish_table(x: QTensor, y: QTensor) -> Table:
    """HARD_SWISH, x * relu6(x + 3) / 6, in 16-bit fixed point.

    Raises:
        GraphError: an output scale below 1/128 of the input's, which the kernels refuse too.
    """
    fine_scale = np.float32(1 / 128) * np.float32(x.scale)
    output_q, output_exponent = _int16_multiplier(float(fine_scale / np.float32(y.scale)))
    if output_exponent > 0:
        raise GraphError(
            f"hard-swish from scale {x.scale:g} to {y.scale:g}: the output's must be at least 1/128 of the input's"
        )
    relu_q, relu_exponent = _int16_multiplier(float(fine_scale / np.float32(3 / 32768)))
    fine = (CODES - x.zero_point) << 7
    gate = fine
    if relu_exponent > 0:
        # All but one bit before the product, the last one after it, so that only the last can saturate.
        gate = _clip16(gate << min(relu_exponent - 1, 31))
    gate = _high_mul16(gate, relu_q)
    if relu_exponent > 0:
        gate = _clip16(gate << 1)
    elif relu_exponent < 0:
        gate = rounding_divide_by_pot(gate, -relu_exponent)
    gate = (gate + 2**15) >> 1
    product = gate * _high_mul16(fine, output_q)
    halved = np.sign(product) * (np.abs(product) >> 15)  # divides towards zero
    return _clipped(rounding_divide_by_pot(halved, -output_exponent) + y.zero_point)


def _rescaled(x: QTensor, y: QTensor, real: float) -> Column:
    q, exponent = quantize_multiplier(real)
    if exponent > MOST_LEFT_SHIFT:
        raise GraphError(
            f"rescaling from scale {x.scale:g} to {y.scale:g}: the ratio must be below 2**{MOST_LEFT_SHIFT}"
        )
    return multiply_by_quantized_multiplier(CODES - x.zero_point, q, exponent)


def _in_q4(x: QTensor) -> tuple[Column, np.ndarray, Column]:
    """Codes less their zero point, which of them lie inside Q4.27, and their Q4.27 numbers."""
    fraction_bits = 31 - INPUT_INTEGER_BITS
    mantissa, shift = math.frexp(x.scale * 2**fraction_bits)
    if not 0 <= shift <= 30:
        raise GraphError(f"sigmoid or tanh of scale {x.scale:g}: must be 2**-28 to 8")
    radius = math.floor((2**INPUT_INTEGER_BITS - 1) * 2**fraction_bits / 2**shift)
    difference = CODES - x.zero_point
    inside = np.abs(difference) < radius
    q4 = multiply_by_quantized_multiplier(np.where(inside, difference, 0), int(mantissa * 2**31), shift)
    return difference, inside, q4


def _int16_multiplier(real: float) -> tuple[int, int]:
    q, exponent = quantize_multiplier(real)
    return min((q + 2**15) >> 16, 2**15 - 1), exponent


def _high_mul16(a: Column, b: int) -> Column:
    """The high half of 2ab for int16 numbers: ab / 2**15 with ties towards plus infinity."""
    return (a * b + 2**14) >> 15


def _clip16(a: Column) -> Column:
    return np.clip(a, -(2**15), 2**15 - 1)


def _clipped(codes: Column) -> Table:
    return np.clip(codes, -128, 127).astype(np.int8)

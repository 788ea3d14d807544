"""Softmax cross-entropy of int32 logits in fixed point: the loss, and its gradient with a mantissa and an exponent of its own.

Distances to the largest logit become Q5.26 nats, their exponentials Q0.31 (the polynomial that int8 softmax uses), probabilities one exact
integer division each. The gradient p - y is normalised like any other, so it keeps its precision when it becomes small.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Int16, Int64

from lilliput.errors import GraphError
from lilliput.mcu.training.arithmetic import normalise
from lilliput.quantize.arithmetic import INT32_MAX, quantize_multiplier
from lilliput.quantize.softmax import exp_on_negative_values

NATS_FRACTION_BITS = 26
"""Of distances and logarithms inside."""
LOSS_FRACTION_BITS = 16
"""Of the loss reported: Q16 nats."""
LN2_Q30 = 744261118
"""Natural logarithm of 2."""
LOG_BITS = 26


def logit_multiplier(scale: float) -> tuple[int, int]:
    """(multiplier, shift) that make distances of logits with this scale (nats a unit) Q5.26; see :func:`cross_entropy`.

    Raises:
        GraphError: the scale is so small or large that no shift of 64-bit numbers does it.
    """
    try:
        multiplier, shift = quantize_multiplier(scale * 2**NATS_FRACTION_BITS)
    except GraphError as error:
        raise GraphError(f"logits of {scale:g} nats a unit: {error}") from error
    if multiplier == 0 or shift > 30:
        raise GraphError(f"logits of {scale:g} nats a unit: must be 2**-57 to 16; check the scales of the last layer")
    return multiplier, shift


def cross_entropy(
    logits: Int64[np.ndarray, " classes"], label: int, multiplier: int, shift: int, bits: int
) -> tuple[Int16[np.ndarray, " classes"], int, int]:
    """Gradient with respect to the logits in nats (mantissas, exponent), and the loss in Q16 nats.

    1. ``d = min(max(logits) - logits, 2**31 - 1)``; ``t = (d * multiplier + half) >> (31 - shift)``, at most 2**31 - 1: Q5.26 nats.
    2. ``e = exp(-t)`` in Q0.31; ``S`` their sum, 64 bits; ``p = (e << 31) // S``.
    3. gradient: ``p - 2**31 [label]``, normalised to ``bits``; exponent -31 + shift.
    4. loss: ``t[label] + ln(S)``, rounded half up to Q16. Beyond 32 nats a distance counts as 32.

    Args:
        logits: int32 values.
        label: the class that is right.
        multiplier: of :func:`logit_multiplier`.
        shift: of the same.
        bits: magnitude bits of the mantissas.
    """
    distance = nats_below_largest(logits, multiplier, shift)
    exponential = exp_on_negative_values(-distance)
    total = int(exponential.sum())
    gradient = (exponential << 31) // total
    gradient[label] -= 2**31
    mantissa, dropped = normalise(gradient, bits)
    loss = int(distance[label]) + logarithm(total)
    half = 1 << (NATS_FRACTION_BITS - LOSS_FRACTION_BITS - 1)
    return mantissa, dropped - 31, (loss + half) >> (NATS_FRACTION_BITS - LOSS_FRACTION_BITS)


def nats_below_largest(
    logits: Int64[np.ndarray, " classes"], multiplier: int, shift: int
) -> Int64[np.ndarray, " classes"]:
    """How far each logit lies below the largest, Q5.26 nats."""
    difference = np.minimum(logits.max() - logits, INT32_MAX)
    right = 31 - shift
    return np.minimum((difference * multiplier + (1 << (right - 1))) >> right, INT32_MAX)


def logarithm(total: int) -> int:
    """ln(total / 2**31) in Q5.26, for totals of 2**31 - 1 (taken as 2**31) up to 2**43.

    The binary logarithm bit by bit: squaring a number in [1, 2) doubles its logarithm, and the bit is whether it passed 2.
    """
    if total < 2**31:
        return 0
    whole = total.bit_length() - 1
    mantissa = total >> (whole - 30)  # [1, 2) in Q30
    log2 = whole - 31
    for _ in range(LOG_BITS):
        mantissa = mantissa * mantissa >> 30
        log2 *= 2
        if mantissa >= 2**31:
            mantissa >>= 1
            log2 += 1
    return log2 * LN2_Q30 >> 30

"""Scales, zero points and integer weights: how real numbers become codes.

Activations: one scale and zero point a tensor, chosen so that zero is a code. Weights: symmetric, one scale an output channel. Biases:
int32 in units of input scale times weight scale. Scales are float32 numbers, as the file formats and C code of this field hold them.

Source: Jacob et al. 2018 (arXiv:1712.05877), sections 2.1 and 2.4, with the per-channel weights of Krishnamoorthi 2018 (arXiv:1806.08342).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int8, Int32

from lilliput.quantize.arithmetic import quantize_multiplier, round_half_away

WEIGHT_MAX = 127
BIAS_MAX = 2**30
"""Half of int32: the other half is for the sum of products."""


@dataclass(frozen=True)
class Parameters:
    """Real value = scale * (code - zero_point)."""

    scale: float
    zero_point: int


def activation_parameters(lower: float, upper: float, least_scale: float = 0.0) -> Parameters:
    """Scale and zero point that cover [lower, upper] and zero.

    Args:
        lower: of the values.
        upper: of the values.
        least_scale: the scale is never below this; a range that needs less uses part of the codes.
    """
    lower, upper = min(lower, 0.0), max(upper, 0.0)
    scale = max((upper - lower) / 255, least_scale)
    # A value that is always zero has no scale of its own; 1 keeps everything downstream finite.
    scale = _float32_at_least(scale) if scale > 1e-30 else 1.0
    zero_point = int(round_half_away(-128 - lower / scale))
    return Parameters(scale, min(max(zero_point, -128), 127))


@dataclass(frozen=True, eq=False)
class IntegerWeights:
    """A layer's constants as :class:`~lilliput.quantize.qgraph.Conv2d` and ``Linear`` hold them, but for the output's scale."""

    weight: Int8[np.ndarray, "out ..."]
    weight_scale: Float64[np.ndarray, " out"]
    bias: Int32[np.ndarray, " out"]

    @property
    def bound(self) -> Float64[np.ndarray, " out"]:
        """No accumulator of a channel gets further from zero, whatever the codes."""
        magnitude = np.abs(self.weight.astype(np.float64)).reshape(len(self.weight), -1).sum(axis=1)
        return 256 * magnitude + np.abs(self.bias.astype(np.float64))


def quantize_weights(
    weight: Float64[np.ndarray, "out ..."], bias: Float64[np.ndarray, " out"], input_scale: float, per_channel: bool
) -> IntegerWeights:
    """Integer weights and biases of a layer.

    A channel whose bias would not fit next to its weights gets a larger weight scale; one without weights gets its scale from
    the bias alone.
    """
    largest = np.abs(weight.reshape(len(weight), -1)).max(axis=1)
    scale = np.maximum(largest / WEIGHT_MAX, np.abs(bias) / (input_scale * BIAS_MAX))
    if not per_channel:
        scale = np.full_like(scale, scale.max())
    scale = np.array([_float32_at_least(each) if each > 1e-30 else 1.0 for each in scale])
    steps = weight / scale.reshape(-1, *(1,) * (weight.ndim - 1))
    codes = np.clip(round_half_away(steps), -WEIGHT_MAX, WEIGHT_MAX).astype(np.int8)
    return IntegerWeights(codes, scale, round_half_away(bias / (input_scale * scale)).astype(np.int32))


def channel_multipliers(
    input_scale: float, weight_scale: Float64[np.ndarray, " out"], output_scale: float
) -> tuple[Int32[np.ndarray, " out"], Int32[np.ndarray, " out"]]:
    """(multiplier, shift) of each output channel: sx * sw / sy."""
    pairs = [quantize_multiplier(input_scale * float(each) / output_scale) for each in weight_scale]
    return np.array([q for q, _ in pairs], dtype=np.int32), np.array([e for _, e in pairs], dtype=np.int32)


def least_output_scale(accumulator_scale: float | np.ndarray, bound: float | np.ndarray) -> float:
    """The finest output scale whose left shift keeps an accumulator of this bound within 32 bits.

    Below it the output's steps would be finer than the accumulator's own, so nothing is lost by staying above.
    """
    return float(np.max(np.asarray(accumulator_scale) * np.asarray(bound))) / 2**29


def product_output_scale(first_scale: float, second_scale: float, output_scale: float) -> float:
    """The output scale of a product, raised by at most a 4,096th so that every runtime makes the same multiplier of it.

    Runtimes of this field compute first * second / output as float32 or in double precision, which differ in the last of 31 bits;
    among the next few thousand output scales there is one where they agree, nine times in ten. Where there is none, the scale stays.
    """
    candidates = (np.float32(output_scale).view(np.int32) + np.arange(2**11, dtype=np.int32)).view(np.float32)
    single = (np.float32(first_scale) * np.float32(second_scale) / candidates).astype(np.float64)
    double = first_scale * second_scale / candidates.astype(np.float64)
    (mantissa, exponent), (other_mantissa, other_exponent) = np.frexp(single), np.frexp(double)
    q, other_q = (np.floor(each * 2.0**31 + 0.5) for each in (mantissa, other_mantissa))
    agree = np.isfinite(candidates) & (q == other_q) & (exponent == other_exponent)
    return float(candidates[np.argmax(agree)]) if agree.any() else output_scale


def _float32_at_least(scale: float) -> float:
    """The nearest float32 that is not smaller, so that the range's end still has a code."""
    nearest = np.float32(scale)
    return float(nearest if nearest >= scale else np.nextafter(nearest, np.float32(np.inf)))

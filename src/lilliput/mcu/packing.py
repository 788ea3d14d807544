"""Constants as the C kernels read them: weights in blocks of four output channels, and each channel's way from sum to code.

The layouts are described where they are read, in ``runtime/nn/ll_conv.c`` (weights) and ``ll_nn.h`` (``ll_scaling``).
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Int8, Int32, UInt32

from lilliput.quantize.arithmetic import multiply_by_quantized_multiplier

_LARGEST_PAIRED_SUM = 2**16
"""A paired sum must stay below 2**23 in magnitude; codes reach 128."""

_LARGEST_PLAIN_SUM = 2**30
_LARGEST_PLAIN_SHIFT = 22


def pack_weights(
    weight: Int8[np.ndarray, "out in"], *, allow_pairs: bool = True
) -> tuple[UInt32[np.ndarray, " words"], bool]:
    """Weights as words, and whether they are paired (two channels a halfword) or, where pairs would not be exact, plain bytes.

    The inner axis is filled up to whole fours with zeros, the outer one to an even number of channels, or to a whole block of four where
    three are left.
    """
    out, inner = weight.shape
    quads = -(-inner // 4)
    channels = out + out % 2 if out % 4 != 3 else out + 1
    padded = np.zeros((channels, quads, 4), dtype=np.int64)
    padded.reshape(channels, -1)[:out, :inner] = weight
    is_paired = allow_pairs and _pairs_are_exact(padded)
    pack = _pack_paired if is_paired else _pack_plain
    blocks = [pack(padded[first : first + 4]) for first in range(0, channels, 4)]
    return np.concatenate(blocks).astype(np.uint32), is_paired


def _pairs_are_exact(padded: np.ndarray) -> bool:
    high, low = padded[0::2], padded[1::2]
    return bool((256 * high + low >= -(2**15)).all() and (np.abs(high).sum(axis=(1, 2)) < _LARGEST_PAIRED_SUM).all())


def _pack_paired(block: np.ndarray) -> np.ndarray:
    halves = (256 * block[0::2] + block[1::2]) & 0xFFFF  # pair, quad, code
    evens, odds = (halves[..., i] | halves[..., i + 2] << 16 for i in (0, 1))
    return np.stack([evens, odds]).transpose(2, 0, 1).reshape(-1)  # quad, evens or odds, pair


def _pack_plain(block: np.ndarray) -> np.ndarray:
    return ((block & 0xFF) << np.array([0, 8, 16, 24])).sum(axis=-1).T.reshape(-1)  # quad, channel


def fold_zero_point(
    weight: Int8[np.ndarray, "out in"], bias: Int32[np.ndarray, " out"], zero_point: int
) -> Int32[np.ndarray, " out"]:
    """The bias for sums of raw codes: sum((x - z) w) + b = sum(x w) + (b - z sum(w))."""
    folded = bias.astype(np.int64) - zero_point * weight.astype(np.int64).sum(axis=1)
    return folded.astype(np.int32)  # a graph's verifier has bounded it


def scale_constants(
    weight: Int8[np.ndarray, "out in"],
    folded_bias: Int32[np.ndarray, " out"],
    multiplier: Int32[np.ndarray, " out"],
    shift: Int32[np.ndarray, " out"],
) -> tuple[Int32[np.ndarray, " words"], bool]:
    """(bias, multiplier, shift) of each channel in one flat table, and whether all channels have a plain scale (``ll_scaling``)."""
    bias, multiplier, shift = (each.astype(np.int64) for each in (folded_bias, multiplier, shift))
    magnitude = np.abs(weight.astype(np.int64)).sum(axis=1)

    # A channel that gives one code whatever comes in (zeros; or so small a factor that every sum rounds to 0) can have any scale: it gets
    # 1/4, and four times that value as its bias.
    bound = np.abs(bias) + 128 * magnitude
    vanishes = (multiplier == 0) | ((shift < 0) & (bound < 2 ** np.maximum(-shift - 1, 0)))
    constant = np.where(vanishes, 0, multiply_by_quantized_multiplier(bias, multiplier, shift))
    is_constant = vanishes | (magnitude == 0)
    plain_bias = np.where(is_constant, 4 * np.clip(constant, -512, 512), bias)
    plain_multiplier = np.where(vanishes, 0, np.where(is_constant, 2**30, multiplier))
    right = np.where(is_constant, 1, -shift)

    fits = np.abs(plain_bias) + 128 * magnitude < _LARGEST_PLAIN_SUM
    is_plain = bool((fits & (right >= 1) & (right <= _LARGEST_PLAIN_SHIFT)).all())
    columns = (2 * plain_bias, plain_multiplier, right) if is_plain else (bias, multiplier, shift)
    return np.stack(columns, axis=1).reshape(-1).astype(np.int32), is_plain

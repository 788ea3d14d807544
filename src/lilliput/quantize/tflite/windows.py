"""Where windows and pixels fall: what the format leaves to the kernels, which reader and writer both need."""

from __future__ import annotations

import numpy as np

Edges = tuple[int, int, int, int]
"""Top, left, bottom, right."""


def same_padding(
    size: tuple[int, ...], kernel: tuple[int, ...], stride: tuple[int, int], dilation: tuple[int, int]
) -> Edges:
    """SAME padding of a window: as many outputs as strides fit, the odd pixel at the bottom and right."""
    before, after = [], []
    for extent, taps, step, spread in zip(size, kernel, stride, dilation, strict=True):
        total = max(0, (-(-extent // step) - 1) * step + (taps - 1) * spread + 1 - extent)
        before.append(total // 2)
        after.append(total - total // 2)
    return before[0], before[1], after[0], after[1]


def nearest_is_whole(size: int, to: int, half_pixel: bool) -> bool:
    """Whether RESIZE_NEAREST_NEIGHBOR from ``size`` to ``to`` pixels repeats each as often.

    The kernel multiplies by size / to as float32, which may fall short of a whole number.
    """
    if to % size:
        return False
    at = (np.arange(to, dtype=np.float32) + np.float32(0.5 * half_pixel)) * (np.float32(size) / np.float32(to))
    return np.array_equal(np.minimum(np.floor(at), size - 1), np.arange(to) // (to // size))

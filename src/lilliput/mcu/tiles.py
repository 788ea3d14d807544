"""Which part of a map a part of a later map is computed from: intervals along one axis, clipped at the true border.

A tile is a product of two intervals, so a patch schedule is intervals of rows times intervals of columns.

Source: Lin et al. 2021, MCUNetV2 (arXiv:2110.15352), section 3.1, for patches; exact intervals, clipped where the map ends, are ours: the
published code pads every tile to one size and computes on the padding.
"""

from __future__ import annotations

Interval = tuple[int, int]
"""First index, and the first that is no longer in it."""


def tile_bounds(side: int, tiles: int) -> tuple[Interval, ...]:
    """A side in so many intervals, as equal as whole numbers allow.

    >>> tile_bounds(28, 4)
    ((0, 7), (7, 14), (14, 21), (21, 28))
    """
    return tuple((index * side // tiles, (index + 1) * side // tiles) for index in range(tiles))


def input_interval(output: Interval, kernel: int, stride: int, padding: int, side: int, dilation: int = 1) -> Interval:
    """What a sliding window reads of an input of this side to make an interval of its output.

    >>> input_interval((0, 7), kernel=3, stride=2, padding=1, side=56)
    (0, 14)
    """
    first = output[0] * stride - padding
    last = (output[1] - 1) * stride - padding + (kernel - 1) * dilation
    return max(0, first), min(side, last + 1)

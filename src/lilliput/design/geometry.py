"""How large every map of a network is: whole, or tile by tile where its first layers run patch by patch.

Two figures a map: the pixels computed (over all tiles together, halos counted as often as they are computed), which multiply-accumulates
are charged for, and the pixels of its largest piece that lies in memory at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from lilliput.design.block import BlockType
from lilliput.errors import ConfigError
from lilliput.mcu.tiles import Interval, input_interval, tile_bounds


@dataclass(frozen=True, kw_only=True)
class Patches:
    """The first layers run tile by tile: the stem, the super blocks before the n-th, and the first block of the n-th.

    Source: Lin et al. 2021, MCUNetV2 (arXiv:2110.15352), section 3.1.
    """

    grid: int
    """Tiles along each side; 2 or more."""
    blocks: int
    """n: the super block whose first block is the last to run tile by tile, from 1."""

    def __post_init__(self) -> None:
        if self.grid < 2:
            raise ConfigError(f"patches grid={self.grid}: must be at least 2 tiles a side; without patches give None")
        if self.blocks < 1:
            raise ConfigError(f"patches blocks={self.blocks}: must be at least 1")

    def __str__(self) -> str:
        return f"{self.grid}x{self.grid} patches to super block {self.blocks}"


@dataclass(frozen=True)
class Maps:
    """The maps of one super block's blocks by position: 0 is a block's input, i + 1 the output of its convolution i."""

    first_pixels: tuple[int, ...]
    """Computed for the first block."""
    other_pixels: tuple[int, ...]
    """Computed for all other blocks together."""
    first_sides: tuple[int, ...]
    """Side of the largest piece in memory, in the first block."""
    other_sides: tuple[int, ...]
    """The same in any of the others."""


@dataclass(frozen=True)
class Geometry:
    """All maps of a network at one image size."""

    stem_pixels: int
    stem_input_side: int
    """Of the largest piece of the image that is read at once."""
    stem_side: int
    maps: tuple[Maps, ...]
    """One for each super block."""
    end_side: int
    """Side of the last map, whole."""
    patched_side: int
    """Side of the whole map that the tiles are put together to; 0 without patches."""


def sides(image_size: int, strides: Sequence[int]) -> tuple[int, ...]:
    """Sides of the whole maps: the image's, then after each stride; convolutions pad by half their kernel, so odd sides round up."""
    found = [image_size]
    for stride in strides:
        found.append(-(-found[-1] // stride))
    return tuple(found)


@lru_cache(maxsize=100_000)
def geometry(
    blocks: tuple[BlockType, ...],
    image_size: int,
    strides: tuple[int, ...],
    stem_kernel: int,
    kernels: tuple[int, ...],
    layers: tuple[int, ...],
    patches: Patches | None = None,
) -> Geometry:
    """The maps of a network.

    Args:
        blocks: the kind of each super block's blocks.
        strides: of the stem and of each super block.
        kernels: of each super block; they matter only inside patches, as do ``layers``, except for counting.
    Raises:
        ConfigError: patches over more super blocks than there are, or more tiles a side than pixels.
    """
    whole = sides(image_size, strides)
    maps = [_whole_maps(block, whole[index + 1], whole[index + 2], layers[index]) for index, block in enumerate(blocks)]
    if patches is None:
        return Geometry(whole[1] ** 2, image_size, whole[1], tuple(maps), whole[-1], 0)
    side = patched_side(whole, patches)
    tiles = tile_bounds(side, patches.grid)
    for index in reversed(range(patches.blocks)):
        is_last = index == patches.blocks - 1
        count = 1 if is_last else layers[index]
        tiles, tiled = _tiled_maps(blocks[index], kernels[index], strides[index + 1], whole[index + 1], tiles, count)
        if is_last:  # its other blocks run on the whole map
            tiled = Maps(tiled.first_pixels, maps[index].other_pixels, tiled.first_sides, maps[index].other_sides)
        maps[index] = tiled
    read = [input_interval(tile, stem_kernel, strides[0], stem_kernel // 2, image_size) for tile in tiles]
    return Geometry(_total(tiles) ** 2, _largest(read), _largest(tiles), tuple(maps), whole[-1], side)


def patched_side(whole: Sequence[int], patches: Patches) -> int:
    """Side of the map that the tiles are put together to, from the sides of all whole maps.

    Raises:
        ConfigError: patches over more super blocks than there are, or more tiles a side than pixels.
    """
    blocks = len(whole) - 2
    if patches.blocks > blocks:
        raise ConfigError(f"patches blocks={patches.blocks}: there are {blocks} super blocks; try blocks={blocks}")
    side = whole[patches.blocks + 1]
    if patches.grid > side:
        raise ConfigError(f"patches grid={patches.grid}: the map they make has {side}x{side} pixels; try grid={side}")
    return side


def _whole_maps(block: BlockType, side_in: int, side_out: int, layers: int) -> Maps:
    strided = next(index for index, row in enumerate(block.convs) if row.has_stride)
    first = tuple(side_in if position <= strided else side_out for position in range(len(block.convs) + 1))
    others = (side_out,) * len(first)
    return Maps(
        tuple(side**2 for side in first), tuple((layers - 1) * side**2 for side in others), first, others
    )  # fmt: skip


def _tiled_maps(
    block: BlockType, kernel: int, stride: int, side_in: int, tiles: tuple[Interval, ...], layers: int
) -> tuple[tuple[Interval, ...], Maps]:
    """Backwards from the tiles of a super block's output to those of its input."""
    count = len(block.convs) + 1
    side_out = -(-side_in // stride)
    other_pixels, other_sides = [0] * count, [0] * count
    for _ in range(layers - 1):
        tiles, chain = _through_block(block, kernel, 1, side_out, tiles)
        for position, intervals in enumerate(chain):
            other_pixels[position] += _total(intervals) ** 2
            other_sides[position] = max(other_sides[position], _largest(intervals))
    tiles, chain = _through_block(block, kernel, stride, side_in, tiles)
    return tiles, Maps(
        tuple(_total(intervals) ** 2 for intervals in chain),
        tuple(other_pixels),
        tuple(_largest(intervals) for intervals in chain),
        tuple(other_sides),
    )


def _through_block(
    block: BlockType, kernel: int, stride: int, side: int, tiles: tuple[Interval, ...]
) -> tuple[tuple[Interval, ...], list[tuple[Interval, ...]]]:
    """Intervals at every position of one block, whose input has this side."""
    chain = [tiles]
    for index in reversed(range(len(block.convs))):
        window = block.kernel(index, kernel)
        step = stride if block.convs[index].has_stride else 1
        before_stride = any(row.has_stride for row in block.convs[index:])
        input_side = side if before_stride else -(-side // stride)
        tiles = tuple(input_interval(tile, window, step, window // 2, input_side) for tile in tiles)
        chain.append(tiles)
    if block.shortcut == "projection" and stride == 2:  # its pooling reads whole pairs
        pooled = [input_interval(tile, 2, 2, 0, side) for tile in chain[0]]
        tiles = tuple((min(a, c), max(b, d)) for (a, b), (c, d) in zip(tiles, pooled, strict=True))
        chain[-1] = tiles
    return tiles, chain[::-1]


def _total(intervals: Sequence[Interval]) -> int:
    return sum(stop - start for start, stop in intervals)


def _largest(intervals: Sequence[Interval]) -> int:
    return max(stop - start for start, stop in intervals)

"""Patches against brute force: which pixels a tile needs, found by spreading marks through real convolutions."""

import numpy as np
import pytest
import torch
from torch import nn

from lilliput.design import BLOCKS, Patches, Structure, SuperBlock, chip_cost
from lilliput.design.geometry import geometry
from lilliput.errors import ConfigError
from lilliput.mcu.tiles import tile_bounds


def structure(kind: str, seed: int) -> Structure:
    rng = np.random.default_rng(seed)
    blocks, out = [], 8
    for stride in (1, 2, 2, 1):
        out += 4 * int(rng.integers(0, 3))
        layers = int(rng.integers(1, 4))
        blocks.append(
            SuperBlock(out=out, mid=2 * out, kernel=int(rng.choice([3, 5])), stride=stride, layers=layers, kind=BLOCKS[kind])
        )  # fmt: skip
    return Structure(stem=8, blocks=tuple(blocks), stem_stride=int(rng.integers(1, 3)))


def convolutions(made: Structure, patches: Patches) -> list[tuple[int, int, int]]:
    """Kernel, stride and multiply-accumulates per output pixel of each convolution inside the patches, in order."""
    rows = [(3, made.stem_stride, made.stem * made.channels * 9)]
    channels = made.stem
    for block in made.blocks[: patches.blocks]:
        is_last = block is made.blocks[patches.blocks - 1]
        for index in range(1 if is_last else block.layers):
            stride = block.stride if index == 0 else 1
            spatial = block.kernel**2 * block.mid
            rows += [(1, 1, channels * block.mid), (block.kernel, stride, spatial), (1, 1, block.mid * block.out)]
            channels = block.out
    return rows


def needed(side_in: int, rows: list[tuple[int, int, int]], tile: tuple[slice, slice]) -> list[torch.Tensor]:
    """For each convolution the output pixels that the tile is made of: marks spread backwards by the gradient."""
    maps, x = [], torch.ones(1, 1, side_in, side_in, requires_grad=True)
    current = x
    for kernel, stride, _ in rows:
        conv = nn.Conv2d(1, 1, kernel, stride, kernel // 2, bias=False)
        nn.init.ones_(conv.weight)
        current = conv(current)
        maps.append(current)
    grads = torch.autograd.grad(current[0, 0][tile].sum(), [x, *maps])
    return [grad[0, 0] > 0 for grad in grads]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("size", "grid", "blocks"), [(32, 2, 2), (45, 3, 3), (40, 4, 1), (33, 3, 4)])
def test_patched_macs_are_those_of_the_pixels_that_tiles_need(seed, size, grid, blocks):
    made, patches = structure("K1DWK1", seed), Patches(grid=grid, blocks=blocks)
    rows = convolutions(made, patches)
    side = size
    for _, stride, _ in rows:
        side = -(-side // stride)
    macs, largest_image = 0, 0
    for top in tile_bounds(side, grid):
        for left in tile_bounds(side, grid):
            marks = needed(size, rows, (slice(*top), slice(*left)))
            macs += sum(int(mark.sum()) * each for mark, (_, _, each) in zip(marks[1:], rows, strict=True))
            largest_image = max(largest_image, int(marks[0].any(1).sum()), int(marks[0].any(0).sum()))
    whole = chip_cost(made, size, 10).macs
    tiled = chip_cost(made, size, 10, patches).macs
    sides, inside = size, 0
    for _, stride, each in rows:
        sides = -(-sides // stride)
        inside += sides**2 * each
    assert tiled - whole == macs - inside
    kinds, kernels = (tuple(getattr(block, name) for block in made.blocks) for name in ("kind", "kernel"))
    maps = geometry(kinds, size, made.strides, 3, kernels, tuple(block.layers for block in made.blocks), patches)
    assert maps.stem_input_side == largest_image
    assert maps.patched_side == side


def test_mobilenet_v2_at_224_has_the_published_patch_and_halo():
    """Four by four tiles through the first block of stride 8: 75x75 pixels of the image, 9.3 % more multiply-accumulates with clipping.

    MobileNetV2's first block has no expansion; here it has, of factor one, so only sides can be compared, not the total.
    """
    rows = ((16, 1, 1), (24, 2, 2), (32, 2, 3), (64, 2, 4), (96, 1, 3), (160, 2, 3), (320, 1, 1))
    blocks, channels = [], 32
    for out, stride, layers in rows:
        blocks.append(
            SuperBlock(out=out, mid=6 * channels, kernel=3, stride=stride, layers=layers, kind=BLOCKS["K1DWK1"])
        )
        channels = out
    made = Structure(stem=32, blocks=tuple(blocks))
    kinds, kernels = (tuple(getattr(block, name) for block in made.blocks) for name in ("kind", "kernel"))
    layers = tuple(block.layers for block in made.blocks)
    maps = geometry(kinds, 224, made.strides, 3, kernels, layers, Patches(grid=4, blocks=3))
    assert (maps.stem_input_side, maps.patched_side) == (75, 28)


def test_patches_lower_memory_and_charge_their_halos():
    made = structure("K1DWK1", 1)
    whole = chip_cost(made, 64, 10)
    patched = chip_cost(made, 64, 10, Patches(grid=3, blocks=3))
    streamed = chip_cost(made, 64, 10, Patches(grid=3, blocks=3), image="stream")
    assert streamed.sram_bytes == patched.sram_bytes - 64 * 64 * 3
    assert patched.sram_bytes < whole.sram_bytes
    assert patched.macs > whole.macs
    assert (patched.params, patched.flash_bytes) == (whole.params, whole.flash_bytes)


def test_patches_that_cannot_be_are_refused_in_words():
    with pytest.raises(ConfigError, match="patches grid=1: must be at least 2 tiles a side; without patches give None"):
        Patches(grid=1, blocks=1)
    with pytest.raises(ConfigError, match="patches blocks=0: must be at least 1"):
        Patches(grid=2, blocks=0)

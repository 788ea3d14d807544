from itertools import pairwise

import numpy as np
import pytest

from design.test_block import BASIC
from lilliput.design import SearchSpace, chip_spaces
from lilliput.design.block import K1DWK1
from lilliput.design.chip import chip_strides, resolutions
from lilliput.design.geometry import Patches, geometry
from lilliput.errors import ConfigError, DataError


def test_a_space_that_cannot_be_is_refused_in_words():
    for fields, message in (
        ({"strides": (2,)}, "must be 1 or 2 for the stem and each super block"),
        ({"strides": (2, 3)}, "must be 1 or 2 for the stem and each super block"),
        ({"kernels": (4,)}, "kernels=\\(4,\\): must be odd"),
        ({"image_size": 32}, "none fits super block 4, whose input is 2x2"),
        ({"stem_max": 4}, "stem_max=4: must be at least channel_step=8"),
        ({"stem_min": 40}, "stem_min=40, stem_max=32: no multiple of channel_step=8 between"),
        ({"channel_step": 0}, "channel_step=0: must be at least 1"),
        ({"mid_ratio": (0, 1)}, "mid_ratio=\\(0, 1\\): must be \\(least, most\\), above 0"),
        ({"counter": "thop"}, "counter='thop': must be one of reference, exact"),
        ({"num_classes": 0}, "num_classes=0: must be at least 1"),
    ):
        with pytest.raises(ConfigError, match=message):
            SearchSpace.bottleneck(**fields)
    with pytest.raises(ConfigError, match="head=-1: must be 0"):
        SearchSpace.inverted_residual(head=-1)
    with pytest.raises(ConfigError, match="search space options width: there are block, channel_step"):
        SearchSpace.custom(BASIC, 32, (1, 2, 2), width=3)


def test_a_space_holds_its_members_and_nothing_that_breaks_one_rule():
    space = SearchSpace.bottleneck(image_size=32, strides=(1, 2, 2), layers_max=4, out_max=128)
    # stem | widths | mids | kernels | layers
    member = np.array([16, 64, 128, 16, 16, 3, 5, 2, 4])
    wrong = {
        "stem above 32": (0, 40),
        "stem no multiple of 8": (0, 20),
        "first width above 4 stems": (1, 72),
        "widths fall": (2, 56),
        "width above out_max": (2, 136),
        "mid no multiple of 8": (3, 12),
        "mid above its width": (3, 72),
        "mid below a tenth": (4, 8),
        "mid of nothing": (3, 0),
        "kernel unknown": (5, 7),
        "first super block too deep": (7, 4),
        "no layers": (8, 0),
        "too deep": (8, 5),
    }
    assert space.contains(member[None]).all()
    for name, (index, value) in wrong.items():
        other = member.copy()
        other[index] = value
        assert not space.contains(other[None]).any(), name


def test_ties_of_the_least_mid_are_rounded_to_even_whatever_the_last_digit_of_a_product():
    space = SearchSpace.bottleneck()
    outs = np.arange(8, 2049, 8)
    assert space.mid_limits(outs)[0].tolist() == [8 * max(1, round(out / 80)) for out in outs.tolist()]
    assert space.mid_limits(outs)[1].tolist() == outs.tolist()


@pytest.mark.parametrize("seed", range(3))
def test_rounding_always_gives_a_member(seed):
    rng = np.random.default_rng(seed)
    for space in (
        SearchSpace.inverted_residual(64, (2, 1, 2, 2), channel_step=4, stem_min=4, growth_max=2.5),
        SearchSpace.plain(32, (1, 2, 2)),
        SearchSpace.custom(BASIC, 32, (1, 2, 2), mid_ratio=(0.3, 1.7)),
    ):
        m, count = space.depth, 300
        kernels = np.stack([rng.choice(allowed, count) for allowed in space.allowed_kernels], axis=1)
        numbers = [rng.uniform(-5, 700, (count, 1 + 2 * m)), kernels, rng.uniform(-2, 80, (count, m))]
        members = space.rounded(np.concatenate(numbers, axis=1))
        assert space.contains(members).all()
        assert all((space.member(space.structure(row)) == row).all() for row in members[:5])


def test_a_space_goes_to_json_and_back():
    for space in (SearchSpace.bottleneck(), SearchSpace.custom(BASIC, 32, (1, 2, 2)), SearchSpace.plain()):
        assert SearchSpace.from_plain(space.to_plain()) == space
    with pytest.raises(DataError, match="search space: not what to_plain"):
        SearchSpace.from_plain({"block": "KX"})


@pytest.mark.parametrize("image_size", [8, 12, 16, 28, 30, 32, 48, 64, 96, 100, 144, 224, 256])
def test_every_image_has_chip_spaces_that_keep_less_and_less_of_it(image_size):
    spaces = [chip_spaces([image_size], strides, 3, 10)[0] for strides in chip_strides(image_size)]
    assert len(spaces) >= 2
    assert 4 <= spaces[0].sides[-1] <= 8  # odd sides round up
    assert sum(stride == 1 for stride in spaces[0].strides[1:]) == 1
    for before, after in pairwise(spaces):
        assert (after.sides[1], after.sides[-1]) <= (before.sides[1], before.sides[-1])
    assert 2 <= spaces[-1].sides[-1] <= 4


def test_resolutions_are_the_whole_three_quarters_and_half():
    assert resolutions(96) == (96, 72, 48)
    assert resolutions(8) == (8,)
    with pytest.raises(ConfigError, match="image_size=4: must be at least 8 pixels"):
        chip_strides(4)


def test_redistribution_leaves_windows_before_an_eighth_only_where_strides_need_them() -> None:
    space = SearchSpace.inverted_residual(144, (2, 1, 2, 2, 1, 2), (3, 5), redistribute=True)
    assert space.allowed_kernels == ((1,), (3,), (3,), (3, 5), (3, 5))
    assert space.layer_limits == (3, 1, 1, 32, 32)
    usual = SearchSpace.inverted_residual(144, (2, 1, 2, 2, 1, 2), (3, 5))
    assert usual.allowed_kernels == ((3, 5),) * 5
    assert SearchSpace.from_plain(space.to_plain()) == space


def test_redistribution_shrinks_the_part_of_the_image_that_a_tile_depends_on() -> None:
    """The published figure for MobileNetV2 at 224 with 4x4 tiles of its first map at an eighth: 75 pixels a side, 63 redistributed."""

    def side(kernels: tuple[int, ...], layers: tuple[int, ...]) -> int:
        blocks = (K1DWK1,) * 3
        return geometry(blocks, 224, (2, 1, 2, 2), 3, kernels, layers, Patches(grid=4, blocks=3)).stem_input_side

    assert side((3, 3, 3), (1, 2, 1)) == 75
    space = SearchSpace.inverted_residual(224, (2, 1, 2, 2), redistribute=True)
    first = tuple(kernels[0] for kernels in space.allowed_kernels)
    assert side(first, space.layer_limits[:3]) == 63

from math import exp, log

import numpy as np
import pytest
import torch

from design.published import PUBLISHED
from lilliput.design import Structure, SuperBlock, depth_penalty, score
from lilliput.errors import ConfigError


def published(name: str) -> Structure:
    return Structure.from_reference(PUBLISHED[name].text())


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_networks_score_as_published(name):
    expected = PUBLISHED[name]
    result = score(published(name), expected.image_size, alpha=(1, 1, 1, 1, 8), as_published=True)
    assert result.entropy == pytest.approx(expected.entropy, rel=1e-6)
    assert result.stages[-1].layers == expected.layers


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_objectives_have_the_reference_depth_penalty(name):
    expected, structure = PUBLISHED[name], published(name)
    entropy = score(structure, expected.image_size, as_published=True).entropy
    assert entropy - 10 * depth_penalty(structure, "reference") == pytest.approx(expected.objective, rel=1e-6)


@pytest.mark.parametrize(
    ("name", "macs", "params", "rho"),
    [
        ("DeepMAD-R18", 1_837_323_208, 11_153_088, 0.2991),
        ("DeepMAD-R34", 3_675_274_792, 21_073_160, 0.3000),
        ("DeepMAD-R50", 4_087_263_656, 24_208_144, 0.2998),
    ],
)
def test_reference_counters_agree_to_the_unit(name, macs, params, rho):
    result = score(published(name), 224)
    assert (result.macs, result.params) == (macs, params)
    assert result.rho == pytest.approx(rho, abs=6e-5)  # given to four digits


def test_only_squeeze_and_excitation_networks_differ_between_published_and_true_map_sides():
    for name, expected in PUBLISHED.items():
        true = score(published(name), expected.image_size).entropy
        as_published = score(published(name), expected.image_size, as_published=True).entropy
        assert (true == as_published) == (expected.kind == "K1KXK1")


def test_a_small_network_worked_by_hand():
    blocks = (
        SuperBlock(out=16, mid=8, kernel=3, stride=1, layers=2),
        SuperBlock(out=24, mid=8, kernel=5, stride=2, layers=1),
    )
    result = score(Structure(stem=8, stem_stride=1, channels=1, blocks=blocks), 16, alpha=(2, 3))
    # widths: 9 | 8, 8*9, 8 | 16, 8*9, 8 | 16, 8*25, 8
    first = (log(9) + log(8 * 72 * 8) + log(16 * 72 * 8)) / 2
    last = first + log(16 * 200 * 8) / 2
    assert [stage.side for stage in result.stages] == [16, 8]
    assert [stage.layers for stage in result.stages] == [7, 10]
    assert result.stages[0].entropy == pytest.approx(log(16 * 256) * first)
    assert result.entropy == pytest.approx(2 * log(16 * 256) * first + 3 * log(24 * 64) * last)
    assert result.rho == pytest.approx(max(7 / exp(2 * first / 7), 10 / exp(2 * last / 10)))


def test_the_paper_penalty_is_exp_of_the_variance_from_the_second_super_block_on():
    # depths 1, 6, 9, 10, 12: the last four have variance 4.6875
    assert depth_penalty(published("DeepMAD-R18")) == pytest.approx(exp(4.6875))


def test_a_depth_variance_that_would_overflow_is_held():
    blocks = tuple(SuperBlock(out=8, mid=8, kernel=3, stride=1, layers=n) for n in (1, 1, 300))
    assert np.isfinite(depth_penalty(Structure(stem=8, blocks=blocks)))


def test_a_penalty_may_compare_all_depths():
    structure = published("DeepMAD-R18")
    assert depth_penalty(structure, "all") == pytest.approx(exp(np.var([1, 6, 9, 10, 12])))


def test_odd_sides_round_up_as_convolutions_do():
    blocks = (
        SuperBlock(out=16, mid=8, kernel=3, stride=2, layers=1),
        SuperBlock(out=16, mid=8, kernel=3, stride=2, layers=1),
    )
    result = score(Structure(stem=8, blocks=blocks), 45)
    network = Structure(stem=8, blocks=blocks).build(2).eval()
    with torch.no_grad():
        maps = network.blocks(network.stem(torch.zeros(1, 3, 45, 45)))
    assert [stage.side for stage in result.stages] == [23, 12, 6]
    assert maps.shape[-1] == 6


def test_what_cannot_be_scored_is_refused_in_words():
    structure = published("DeepMAD-R18")
    with pytest.raises(ConfigError, match="image_size=0: must be at least 1"):
        score(structure, 0)
    with pytest.raises(ConfigError, match="must be 5 numbers of at least 0, one per resolution stage"):
        score(structure, 224, alpha=(1, 8))
    with pytest.raises(ConfigError, match="depth_penalty='std': must be one of paper, reference"):
        depth_penalty(structure, "std")

from math import exp, log

import numpy as np
import pytest
import torch
from torch import nn

from design.published import PUBLISHED
from lilliput.design import SearchSpace, Structure, SuperBlock, depth_penalty, exact_cost, graph_cost, score
from lilliput.design.evaluate import Problem, evaluate
from lilliput.design.network import BottleneckNet
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
        SuperBlock(out=16, bottleneck=8, kernel=3, stride=1, layers=2),
        SuperBlock(out=24, bottleneck=8, kernel=5, stride=2, layers=1),
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
    blocks = tuple(SuperBlock(out=8, bottleneck=8, kernel=3, stride=1, layers=n) for n in (1, 1, 300))
    assert np.isfinite(depth_penalty(Structure(stem=8, blocks=blocks)))


@pytest.mark.parametrize("penalty", ["paper", "reference"])
def test_the_vectorised_evaluator_agrees_with_the_score_of_each_member(penalty):
    space = SearchSpace.bottleneck(image_size=96, strides=(2, 2, 1, 2, 2))
    rng = np.random.default_rng(0)
    raw = np.hstack(
        [
            rng.uniform(8, 40, (50, 1)),
            rng.uniform(8, 300, (50, 8)),
            rng.choice([3, 5], (50, 4)),
            rng.uniform(1, 9, (50, 4)),
        ]
    )
    raw[:, 12] = 3  # kernels of the last block, whose input is 12x12: both fit, one is enough
    members = space.rounded(raw)
    assert space.contains(members).all()
    problem = Problem(space, 1.0, 1.0, 1.0, (1.0, 2.0, 3.0, 4.0), penalty, 10.0)
    found = evaluate(problem, members)
    for row, objective, needs in zip(members, found.objective, found.needs, strict=True):
        structure = space.structure(row)
        expected = score(structure, 96, (1, 2, 3, 4))
        assert objective == pytest.approx(expected.entropy - 10 * depth_penalty(structure, penalty), rel=1e-12)
        assert tuple(needs[:2]) == (expected.macs, expected.params)
        assert needs[2:] == pytest.approx([stage.rho for stage in expected.stages], rel=1e-12)


@pytest.mark.parametrize("image_size", [32, 33, 47, 64])
def test_exact_cost_is_what_hooks_count_on_the_built_network(image_size):
    blocks = (
        SuperBlock(out=24, bottleneck=8, kernel=5, stride=2, layers=2),
        SuperBlock(out=24, bottleneck=16, kernel=3, stride=1, layers=1),
        SuperBlock(out=40, bottleneck=8, kernel=3, stride=2, layers=3),
    )
    structure = Structure(stem=16, blocks=blocks)
    network, macs = BottleneckNet(structure, 10).eval(), 0

    def count(module, args, output):
        nonlocal macs
        macs += output.numel() * module.weight[0].numel()

    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            module.register_forward_hook(count)
    with torch.no_grad():
        assert network(torch.zeros(1, 3, image_size, image_size)).shape == (1, 10)
    cost = exact_cost(structure, image_size, 10)
    assert cost.macs == macs
    assert cost.params == sum(parameter.numel() for parameter in network.parameters())


def test_exact_cost_is_what_the_traced_graph_counts():
    structure = Structure(stem=8, blocks=(SuperBlock(out=16, bottleneck=8, kernel=3, stride=2, layers=2),))
    traced = graph_cost(BottleneckNet(structure, 10), (3, 32, 32))
    expected = exact_cost(structure, 32, 10)
    assert (traced.macs, traced.params) == (expected.macs, expected.params)


def test_what_cannot_be_scored_or_built_is_refused_in_words():
    structure = published("DeepMAD-R18")
    with pytest.raises(
        ConfigError, match="image_size=230: must be a multiple of the total stride 32; try image_size=224"
    ):
        score(structure, 230)
    with pytest.raises(ConfigError, match="must be 5 numbers of at least 0, one per resolution stage"):
        score(structure, 224, alpha=(1, 8))
    with pytest.raises(ConfigError, match="depth_penalty='std': must be one of paper, reference"):
        depth_penalty(structure, "std")
    with pytest.raises(ConfigError, match="num_classes=0"):
        exact_cost(structure, 224, 0)
    with pytest.raises(ConfigError, match="K1DWSEK1: networks are built of K1KXK1 blocks"):
        exact_cost(published("DeepMAD-50M"), 224, 10)

"""Monotonicity: certified where weights make it so, refuted by points that the model evaluates, and unknown rather than wrong."""

import pytest
import torch
from torch import nn

from certify.certify_cases import mlp
from lilliput.certify import monotonicity
from lilliput.errors import ConfigError, DataError
from lilliput.graph import trace

METHODS = ["ibp", "recurjac", "crown"]


def non_negative(act=nn.ReLU, dtype=torch.float64) -> nn.Sequential:
    """5-12-12-2; rises in every feature because no weight is below 0."""
    model = mlp(5, 12, 12, 2, act=act, seed=1)
    for layer in model[::2]:
        layer.weight.data.abs_()
    return model.to(dtype)


def rows(count: int = 6) -> torch.Tensor:
    return torch.randn((count, 5), generator=torch.Generator().manual_seed(2), dtype=torch.float64)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("act", [nn.ReLU, nn.Tanh])
def test_non_negative_weights_are_certified_in_every_feature(method, act):
    found = monotonicity(non_negative(act), rows(), low=-2, high=2, method=method)
    assert found.verdicts == (("increasing",) * 5,) * 6
    assert found.violations == ()
    assert (found.lower >= 0).all()
    assert found.share("increasing") == dict.fromkeys(range(5), 1.0)


def test_weights_of_the_other_sign_fall():
    model = non_negative()
    model[-1].weight.data.neg_()
    assert monotonicity(model, rows(), low=-2, high=2).verdicts == (("decreasing",) * 5,) * 6


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_planted_sign_flip_is_violated_with_points_that_the_model_evaluates(dtype):
    model = non_negative(dtype=dtype)
    model[0].weight.data[:, 3] *= -1
    found = monotonicity(model, rows().to(dtype), low=-2, high=2, expect="increasing")
    assert [row[:3] + row[4:] for row in found.verdicts] == [("increasing",) * 4] * 6
    assert [row[3] for row in found.verdicts] == ["violated"] * 6
    for violation in found.violations:
        first, second = violation.points
        assert violation.feature == 3
        assert first[3] < second[3]
        assert ((first != second).nonzero().flatten() == 3).all()
        a, b = model(violation.points)[:, 0].detach()
        assert a > b
        assert violation.outputs.tolist() == pytest.approx([float(a), float(b)], rel=1e-5)
    assert len(found.violations) == 6


def test_rising_and_falling_is_shown_by_three_points():
    model = non_negative()
    model[0].weight.data[::2, 3] *= -1  # half of the first layer's units
    found = monotonicity(model, rows(), features=[0, 3], low=-3, high=3)
    assert {row[0] for row in found.verdicts} == {"increasing"}
    violated = [v for v in found.violations if v.feature == 3]
    assert violated
    for violation in violated:
        at, outputs = violation.points[:, 3], model(violation.points)[:, 0]
        assert (at.diff() > 0).all()
        assert outputs.diff()[0] * outputs.diff()[1] < 0
        assert found.verdicts[violation.row][1] == "violated"


def test_what_is_neither_certified_nor_refuted_is_unknown():
    """relu(x) - relu(x) + x/10, as two layers: bounds of independent gates cannot see that the first two cancel."""
    model = nn.Sequential(nn.Linear(1, 3), nn.ReLU(), nn.Linear(3, 1)).double()
    model[0].weight.data = torch.tensor([[1.0], [1.0], [0.1]], dtype=torch.float64)
    model[0].bias.data = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)
    model[2].weight.data = torch.tensor([[1.0, -1.0, 1.0]], dtype=torch.float64)
    found = monotonicity(model, torch.zeros(1, 1), low=-1, high=1)
    assert found.verdicts == (("unknown",),)
    assert found.lower.item() < 0.1 < found.upper.item()


def test_no_verdict_is_contradicted_by_samples():
    """Random networks, where certificates are hard to come by."""
    for seed in range(4):
        model = mlp(5, 8, 8, 2, seed=seed)
        found = monotonicity(model, rows(3), low=-0.3, high=0.3, output=1)
        at = torch.linspace(-0.3, 0.3, 201, dtype=torch.float64)
        for row, verdicts in zip(rows(3), found.verdicts, strict=True):
            for feature, verdict in enumerate(verdicts):
                points = row.repeat(201, 1)
                points[:, feature] = at
                steps = model(points)[:, 1].diff()
                assert verdict != "increasing" or (steps >= -1e-12).all()
                assert verdict != "decreasing" or (steps <= 1e-12).all()
                assert verdict != "violated" or (steps.min() < 0 < steps.max())


def test_ranges_are_those_of_the_data_if_left_out_and_a_graph_will_do():
    model = non_negative()
    model[0].weight.data[:, 3] *= -1
    graph = trace(model, rows(1))
    given = monotonicity(model, rows(), low=rows().amin(0), high=rows().amax(0), expect="increasing")
    found = monotonicity(graph, rows(), expect="increasing")
    assert found.verdicts == given.verdicts
    assert found.lower.tolist() == given.lower.tolist()


def test_a_constant_agrees_with_what_is_expected():
    model = nn.Sequential(nn.Linear(2, 1)).double()
    model[0].weight.data.zero_()
    for expect in ("increasing", "decreasing"):
        assert monotonicity(model, torch.zeros(1, 2), low=0, high=1, expect=expect).verdicts == ((expect,) * 2,)


def test_what_cannot_be_is_refused():
    model = non_negative()
    for options, error, words in (
        ({"features": [5]}, ConfigError, r"features=\[5\]: must be some of 0 to 4"),
        ({"output": 2}, ConfigError, "output=2: the network has 2"),
        ({"expect": "up"}, ConfigError, "expect='up': must be"),
        ({"low": 1, "high": 0}, DataError, "is above high"),
        ({"low": torch.zeros(3)}, DataError, "one for each of 5 features"),
        ({"high": float("inf")}, DataError, "high holds NaN or infinite"),
    ):
        with pytest.raises(error, match=words):
            monotonicity(model, rows(), **options)
    with pytest.raises(DataError, match="give rows"):
        monotonicity(model, rows()[0])

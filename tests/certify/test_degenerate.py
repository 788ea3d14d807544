"""Networks whose gates meet in points, copy each other, or never move: the constant is that of the regions with interior points."""

import numpy as np
import pytest
import torch
from torch import nn

from certify.certify_cases import mlp
from lilliput.certify import local_lipschitz


def network(*layers: tuple[list[list[float]], list[float]], act: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    modules: list[nn.Module] = []
    for weight, bias in layers:
        linear = nn.Linear(len(weight[0]), len(weight))
        linear.weight.data, linear.bias.data = (
            torch.tensor(weight, dtype=torch.float64),
            torch.tensor(bias, dtype=torch.float64),
        )
        modules += [linear, act()]
    return nn.Sequential(*modules[:-1]).double().eval()


def largest_sampled(model, centre, eps, count=20000):
    """Of each row: regions that are not slivers are all met by this many points in a few dimensions."""
    unit = 2 * torch.rand(count, len(centre), dtype=torch.float64, generator=torch.Generator().manual_seed(0)) - 1
    return torch.func.vmap(torch.func.jacrev(model))(centre + eps * unit).detach().abs().sum(-1).amax(0)


def assert_exact(model, centre, eps, methods=("exact", "bab")):
    expected = largest_sampled(model, centre, eps)
    for method in methods:
        result = local_lipschitz(model, centre, eps, method=method)
        assert result.status == "exact"
        assert result.upper == pytest.approx(float(expected.max()), rel=1e-9)
        if method == "exact":
            torch.testing.assert_close(result.per_output, expected, rtol=1e-9, atol=1e-12)
            torch.testing.assert_close(result.per_output_lower, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("widths", "act"), [((3, 8, 2), nn.ReLU), ((2, 5, 4, 2), nn.ReLU), ((3, 6, 2), nn.LeakyReLU)])
def test_all_gates_that_meet_in_the_centre(widths, act):
    model = mlp(*widths, act=act, seed=3, gain=2.0)
    for layer in model:
        if isinstance(layer, nn.Linear):
            layer.bias.data.zero_()
    assert_exact(model, torch.zeros(widths[0], dtype=torch.float64), 0.5)


def test_all_gates_that_meet_in_a_point_of_the_region_that_is_no_round_number():
    model = mlp(3, 7, 2, seed=5, gain=2.0)
    # Biases that are sums of products in float64 miss the common point by roundings, so the regions between are truly open, and tiny.
    point = torch.tensor([0.125, -0.25, 0.375], dtype=torch.float64)
    model[0].weight.data = (64 * model[0].weight.data).round() / 64
    model[0].bias.data = -model[0].weight.data @ point  # exact: few binary digits
    assert_exact(model, torch.tensor([0.1, 0.0, 0.2], dtype=torch.float64), 0.6)


def test_copies_opposites_and_multiples_of_units():
    model = mlp(3, 8, 4, 2, seed=1, gain=2.0)
    W, b = model[0].weight.data, model[0].bias.data
    W[1], b[1] = W[0], b[0]
    W[2], b[2] = -W[0], -b[0]
    W[3], b[3] = 4 * W[4], 4 * b[4]
    model[2].weight.data[1] = model[2].weight.data[0]
    model[2].bias.data[1] = model[2].bias.data[0]
    assert_exact(model, torch.full((3,), 0.1, dtype=torch.float64), 0.5)


def test_units_without_weights_and_units_that_only_dead_ones_feed():
    model = mlp(3, 6, 5, 2, seed=2, gain=2.0)
    W, b = model[0].weight.data, model[0].bias.data
    W[0], b[0] = 0, 0  # constant at its kink
    W[1], b[1] = 0, 0.5
    W[2], b[2] = W[3] / 2, b[3] / 2
    second = model[2].weight.data
    second[0], model[2].bias.data[0] = 0, 0
    second[0, 0] = 3.0  # reads the dead unit alone, so constant at its kink too
    second[1], model[2].bias.data[1] = 0, 0
    second[1, 2], second[1, 3] = 2.0, -1.0  # the difference of two units that cancel wherever they are on
    assert_exact(model, torch.zeros(3, dtype=torch.float64), 0.5)


def test_a_unit_that_is_constant_at_its_kink_in_one_half_of_the_region():
    # z = relu(x) - relu(y) with y = x: always 0. w = relu(x) alone: 0 in the half x < 0, where its reader stays at the kink.
    model = network(
        ([[1.0, 0.0], [1.0, 0.0]], [0.0, 0.0]),
        ([[1.0, -1.0], [1.0, 0.0], [0.5, 0.5]], [0.0, 0.0, 0.0]),
        ([[7.0, 1.0, 2.0]], [0.0]),
    )
    result = local_lipschitz(model, torch.zeros(2, dtype=torch.float64), 1.0, method="exact")
    assert (result.upper, result.lower, result.status) == (3.0, 3.0, "exact")


def test_planes_that_only_touch_the_region():
    # 3 relu(x + y - 2) is off in all of [-1, 1]^2 but for the corner; 5 relu(-x - 1) but for an edge.
    model = network(([[1.0, 1.0], [-1.0, 0.0], [0.25, 0.5]], [-2.0, -1.0, 0.0]), ([[3.0, 5.0, 1.0]], [0.0]))
    for method in ("exact", "bab"):
        result = local_lipschitz(model, torch.zeros(2, dtype=torch.float64), 1.0, method=method)
        assert (result.upper, result.lower, result.status) == (0.75, 0.75, "exact")
    assert local_lipschitz(model, torch.zeros(2, dtype=torch.float64), 1.0).upper > 1  # CROWN cannot tell


@pytest.mark.parametrize("act", [nn.Hardtanh, nn.ReLU6])
def test_gates_with_two_kinks_that_meet(act):
    model = network(
        ([[2.0, 1.0], [4.0, 2.0], [-2.0, -1.0], [1.0, -1.0]], [0.0, 1.0, 1.0, 0.0]),
        ([[1.0, -2.0, 3.0, 0.5]], [0.0]),
        act=act,
    )
    assert_exact(model, torch.zeros(2, dtype=torch.float64), 1.5)


@pytest.mark.parametrize("width", [1e-3, 1e-7, 1e-9, 1e-12, 1e-15, 2.0**-60])
def test_the_gradient_between_two_planes_counts_however_close_they_are(width):
    # 100 (relu(x) - relu(x - width)) + y: the slope is 101 in l_1 between the planes and 1 elsewhere.
    model = network(([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]], [0.0, -width, 4.0]), ([[100.0, -100.0, 1.0]], [0.0]))
    for method in ("exact", "bab"):
        result = local_lipschitz(model, torch.full((2,), 0.3, dtype=torch.float64), 1.0, method=method)
        assert result.upper == pytest.approx(101.0, rel=1e-12)
    same = network(([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]], [0.0, 0.0, 4.0]), ([[100.0, -100.0, 1.0]], [0.0]))
    result = local_lipschitz(same, torch.full((2,), 0.3, dtype=torch.float64), 1.0, method="exact")
    assert (result.upper, result.status) == (1.0, "exact")


@pytest.mark.parametrize("height", [1e-6, 1e-9, 1e-14])
def test_a_corner_cut_off_by_a_plane_counts_however_small_it_is(height):
    # relu(x + y - 2 + height) is on in a triangle at the corner (1, 1).
    model = network(([[1.0, 1.0], [0.25, 0.5]], [-2.0 + height, 0.0]), ([[3.0, 1.0]], [0.0]))
    result = local_lipschitz(model, torch.zeros(2, dtype=torch.float64), 1.0, method="exact")
    assert result.upper == pytest.approx(6.75, rel=1e-12)


@pytest.mark.parametrize("norm", ["1", "2"])
def test_gates_that_meet_in_the_centre_of_other_balls(norm):
    model = mlp(3, 6, 2, seed=3, gain=2.0)
    model[0].bias.data.zero_()
    centre = torch.zeros(3, dtype=torch.float64)
    result = local_lipschitz(model, centre, 0.5, norm, method="exact")
    unit = torch.randn(20000, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    jacobians = torch.func.vmap(torch.func.jacrev(model))(0.5 * unit / unit.norm(dim=1, keepdim=True) / 2)
    sizes = torch.linalg.vector_norm(jacobians, ord={"1": np.inf, "2": 2}[norm], dim=-1)
    torch.testing.assert_close(result.per_output, sizes.amax(0), rtol=1e-9, atol=0)
    assert result.status == "exact"

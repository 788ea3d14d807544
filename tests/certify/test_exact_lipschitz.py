"""Exact constants against an enumeration of its own, in numpy and without bounds."""

import numpy as np
import pytest
import torch
from scipy.optimize import linprog
from torch import nn

from certify.certify_cases import mlp
from lilliput.certify import local_lipschitz
from lilliput.errors import ConfigError


def every_region(model, centre, eps):
    """Jacobians of all full-dimensional regions of a ReLU multilayer perceptron in a box: one unit after the other, no pruning."""
    layers = [(m.weight.detach().numpy(), m.bias.detach().numpy()) for m in model if isinstance(m, nn.Linear)]
    n = len(centre)

    def is_open(A, b):
        objective = np.r_[np.zeros(n), -1.0]
        rows = np.c_[-np.array(A), np.linalg.norm(A, axis=1)]
        box = [(c - eps, c + eps) for c in centre] + [(None, 1.0)]
        return linprog(objective, rows, np.array(b), bounds=box, method="highs-ds").x[-1] > 1e-7

    def walk(layer, J, offset, signs, A, b):
        W, bias = layers[layer]
        Z, z0 = W @ J, W @ offset + bias
        if layer == len(layers) - 1:
            yield Z
        elif len(signs) == len(W):
            d = np.array(signs)
            yield from walk(layer + 1, d[:, None] * Z, d * z0, [], A, b)
        else:
            u = len(signs)
            for on, sign in ((1.0, 1.0), (0.0, -1.0)):
                more_A, more_b = [*A, sign * Z[u]], [*b, sign * z0[u]]
                if is_open(more_A, more_b):
                    yield from walk(layer, J, offset, [*signs, on], more_A, more_b)

    return np.stack([*walk(0, np.eye(n), np.zeros(n), [], [], [])])


@pytest.mark.parametrize(("widths", "seed"), [((3, 8, 2), 1), ((4, 6, 5, 3), 2), ((2, 6, 5, 4, 2), 9)])
def test_exact_is_the_largest_norm_of_all_regions(widths, seed):
    model = mlp(*widths, seed=seed, gain=1.5)
    centre = torch.randn(widths[0], dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) / 2
    jacobians = every_region(model, centre.numpy(), 0.6)
    assert len(jacobians) > 4
    result = local_lipschitz(model, centre, 0.6, method="exact")
    np.testing.assert_allclose(result.per_output, np.abs(jacobians).sum(-1).max(0), rtol=1e-9)
    assert result.status == "exact"
    torch.testing.assert_close(result.per_output, result.per_output_lower, rtol=1e-9, atol=0)


def test_each_witness_has_the_norm_that_is_certified():
    model = mlp(4, 12, 3, seed=4, gain=1.5)
    centre = torch.zeros(4, dtype=torch.float64)
    result = local_lipschitz(model, centre, 0.5, method="exact")
    crown = local_lipschitz(model, centre, 0.5)
    assert crown.gap > 0.01  # the question is one that CROWN leaves open
    gradients = torch.func.vmap(torch.func.jacrev(model))(result.witnesses)
    sizes = gradients.abs().sum(-1).diagonal()
    torch.testing.assert_close(sizes, result.per_output, rtol=1e-9, atol=0)
    assert ((result.witnesses - centre).abs() <= 0.5 + 1e-12).all()


@pytest.mark.parametrize(("norm", "order"), [("1", torch.inf), ("2", 2.0)])
def test_balls_of_the_other_norms_are_met_from_both_sides(norm, order):
    model = mlp(3, 8, 4, 2, seed=5, gain=1.5)
    centre = torch.full((3,), 0.2, dtype=torch.float64)
    result = local_lipschitz(model, centre, 0.7, norm, method="exact")
    assert result.status == "exact"
    steps = torch.randn(4000, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    length = torch.linalg.vector_norm(steps, ord=float(norm), dim=1, keepdim=True)
    points = centre + 0.7 * steps / length * torch.linspace(0, 1, 4000, dtype=torch.float64)[:, None]
    sampled = torch.linalg.vector_norm(torch.func.vmap(torch.func.jacrev(model))(points), ord=order, dim=-1)
    assert (sampled <= result.per_output * (1 + 1e-9)).all()
    assert (torch.linalg.vector_norm(result.witness - centre, ord=float(norm)) <= 0.7 + 1e-12).all()


@pytest.mark.parametrize("act", [nn.LeakyReLU, nn.Hardtanh, nn.ReLU6, nn.Hardsigmoid])
def test_gates_with_other_slopes_and_with_two_kinks_are_exact_too(act):
    model = mlp(2, 4, 3, 2, act=act, seed=6, gain=4.0)
    centre = torch.zeros(2, dtype=torch.float64)
    result = local_lipschitz(model, centre, 1.0, method="exact")
    grid = torch.linspace(-1, 1, 201, dtype=torch.float64) + 1e-5
    points = torch.cartesian_prod(grid, grid)
    sampled = torch.func.vmap(torch.func.jacrev(model))(points).abs().sum(-1).amax(0)
    assert result.status == "exact"
    assert (sampled <= result.per_output * (1 + 1e-6)).all()
    # A grid this fine has a point in every region that is not a sliver, and here none of the largest are.
    torch.testing.assert_close(sampled, result.per_output, rtol=1e-6, atol=0)


def test_pools_that_compare_the_same_two_values_are_exact():
    torch.manual_seed(1)
    model = nn.Sequential(nn.Conv2d(1, 2, 2), nn.MaxPool2d(2, 1), nn.Flatten(), nn.Linear(4, 2)).double().eval()
    generator = torch.Generator().manual_seed(2)
    centre = torch.rand(1, 3, 4, dtype=torch.float64, generator=generator)
    result = local_lipschitz(model, centre, 0.2, method="exact")
    unit = 2 * torch.rand(20000, 1, 3, 4, dtype=torch.float64, generator=generator) - 1
    points = (centre + 0.2 * unit).requires_grad_()
    outputs = model(points).sum(0)
    sampled = torch.stack(
        [torch.autograd.grad(o, points, retain_graph=True)[0].flatten(1).abs().sum(1) for o in outputs], 1
    )
    torch.testing.assert_close(sampled.amax(0), result.per_output, rtol=1e-9, atol=0)


def test_a_batch_and_the_worst_case_of_no_time_stay_sound():
    model = mlp(4, 12, 8, 3, seed=7, gain=1.5)
    centres = torch.zeros(2, 4, dtype=torch.float64)
    centres[1] += 0.3
    full, crown = local_lipschitz(model, centres, 0.3, method="exact"), local_lipschitz(model, centres, 0.3)
    hurried = local_lipschitz(model, centres, 0.3, method="exact", time_limit=0)
    assert full.status == "exact"
    assert hurried.status == "time_limit"
    assert (full.per_output <= hurried.per_output * (1 + 1e-9)).all()
    assert (hurried.per_output <= crown.per_output * (1 + 1e-12)).all()


def test_the_trace_tells_of_both_bounds_while_it_works():
    result = local_lipschitz(
        mlp(4, 12, 8, 3, seed=7, gain=1.5), torch.zeros(4, dtype=torch.float64), 0.5, method="exact"
    )
    seconds, uppers, lowers, cells = zip(*result.trace, strict=True)
    assert len(result.trace) > 1
    assert list(seconds) == sorted(seconds)
    assert list(uppers) == sorted(uppers, reverse=True)
    assert list(lowers) == sorted(lowers)
    assert all(upper >= lower for upper, lower in zip(uppers, lowers, strict=True))
    assert uppers[0] > uppers[-1] == pytest.approx(result.upper, rel=1e-12)
    assert cells[-1] == 0


def test_a_smooth_gate_is_refused_with_what_to_use_instead():
    with pytest.raises(ConfigError, match=r"piecewise linear.*method='crown'"):
        local_lipschitz(mlp(3, 4, 2, act=nn.Tanh), torch.zeros(3), 0.1, method="exact")

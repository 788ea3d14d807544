import numpy as np
import pytest
import torch
from scipy.optimize import linprog
from torch import nn

from certify.certify_cases import CASES, mlp
from lilliput.certify import Region, local_lipschitz, lower, preactivations
from lilliput.certify.alpha import trained_preactivations
from lilliput.graph import trace


@pytest.mark.parametrize("case", [CASES[i] for i in (0, 2, 5, 8, 11, 16, 21, 25)], ids=lambda case: case.name)
def test_trained_lines_are_sound_and_never_looser_than_crown(case):
    model = case.model()
    alpha = local_lipschitz(model, case.centre(), case.eps, method="alpha", alpha_steps=6)
    crown = local_lipschitz(model, case.centre(), case.eps)
    assert (alpha.per_output <= crown.per_output).all()
    unit = 2 * torch.rand((300, *case.shape), dtype=torch.float64, generator=torch.Generator().manual_seed(1)) - 1
    unit[::3] = unit[::3].sign()
    points = (case.centre() + case.eps * unit).requires_grad_()
    outputs = model(points).flatten(1).sum(0)
    rows = [torch.autograd.grad(output, points, retain_graph=True)[0].flatten(1) for output in outputs]
    sampled = torch.stack(rows, 1)
    low, high = alpha.jacobian_bounds()
    assert (sampled >= low - 1e-9).all()
    assert (sampled <= high + 1e-9).all()
    assert (sampled.abs().sum(-1) <= alpha.per_output + 1e-8).all()


def test_training_tightens_a_deep_network_and_more_steps_do_no_harm():
    model = mlp(16, 32, 32, 32, 32, 10, gain=2.0)
    centre = torch.full((16,), 0.5, dtype=torch.float64)
    crown = local_lipschitz(model, centre, 0.05)
    few, many = (local_lipschitz(model, centre, 0.05, method="alpha", alpha_steps=steps) for steps in (2, 20))
    assert many.upper < 0.97 * crown.upper
    assert (many.per_output <= few.per_output * (1 + 1e-9)).all()


def test_without_steps_it_is_crown():
    model, centre = mlp(6, 12, 12, 3), torch.zeros(6, dtype=torch.float64)
    crown, alpha = (local_lipschitz(model, centre, 0.3, method=m, alpha_steps=0) for m in ("crown", "alpha"))
    torch.testing.assert_close(alpha.per_output, crown.per_output, rtol=1e-12, atol=0)


def triangle_range(layers, bounds, unit, eps):
    """Least and greatest input of a unit of the layer behind the bounds, by the triangle relaxation's own linear program."""
    n = layers[0][0].shape[1]
    widths = [n, *(len(low) for low, _ in bounds)]
    start = np.cumsum([0, *widths])
    box, rows, limits = [(-eps, eps)] * n, [], []
    for t, (low, high) in enumerate(bounds):
        W, b = layers[t]
        for i in range(len(low)):
            z, a = np.zeros(start[-1]), np.zeros(start[-1])
            z[start[t] : start[t + 1]], a[start[t + 1] + i] = W[i], 1.0
            if low[i] >= 0:
                rows, limits = [*rows, a - z, z - a], [*limits, b[i], -b[i]]
            elif high[i] > 0:
                k = high[i] / (high[i] - low[i])
                rows, limits = [*rows, z - a, a - k * z], [*limits, -b[i], k * (b[i] - low[i])]
            box.append((0.0, max(high[i], 0.0)))
    W, b = layers[len(bounds)]
    objective = np.zeros(start[-1])
    objective[start[-2] :] = W[unit]
    least, most = (linprog(sign * objective, rows, limits, bounds=box, method="highs").fun for sign in (1, -1))
    return least + b[unit], -most + b[unit]


def test_what_is_approached_is_the_optimum_of_the_triangle_relaxation():
    model, eps = mlp(4, 10, 10, 10, 2, gain=2.0), 0.4
    centre = torch.zeros(1, 4, dtype=torch.float64)
    network, region = lower(trace(model, centre)), Region.ball(centre, eps, "inf")
    crown = preactivations(network, region)
    trained = trained_preactivations(network, region, crown, 60)
    layers = [(m.weight.detach().numpy(), m.bias.detach().numpy()) for m in model if isinstance(m, nn.Linear)]
    bounds = [(low[0].numpy(), high[0].numpy()) for low, high in zip(trained.lower, trained.upper, strict=True)]
    for gate in (1, 2):
        low, high = bounds[gate]
        ranges = np.array([triangle_range(layers, bounds[:gate], unit, eps) for unit in range(10)])
        is_open = (low < 0) & (high > 0)
        assert is_open.sum() > 3
        width, least = (high - low)[is_open], (ranges[:, 1] - ranges[:, 0])[is_open]
        # No relaxation by lines is tighter than its linear program, but for rounding and the cut with interval arithmetic.
        assert (low[is_open] <= ranges[is_open, 0] + 1e-7).all()
        assert (high[is_open] >= ranges[is_open, 1] - 1e-7).all()
        loose = (crown.upper[gate] - crown.lower[gate])[0].numpy()[is_open]
        assert width.sum() <= 1.01 * least.sum()
        assert loose.sum() >= 1.05 * least.sum()

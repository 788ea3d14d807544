"""No bound of a trained network is exceeded by 10,000 points of the ball and hill climbing from the best, by torch's own gradients."""

from functools import cache

import pytest
import torch
from torch import Tensor, nn

from certify.trained_networks import NETWORKS, trained
from lilliput.certify import local_lipschitz

METHODS = ["product", "ibp", "recurjac", "crown", "alpha", "bab"]
SLACK = 1e-9  # relative; rounding of float64 sums


def norms(model: nn.Module, points: Tensor, own: Tensor | None = None) -> Tensor:
    """l_1 norm of each output's gradient, (points, outputs); with ``own``, of one output for each point, (points,)."""
    points = points.detach().requires_grad_()
    outputs = model(points)
    if own is not None:
        outputs = outputs.gather(1, own[:, None])
    sums = outputs.sum(0)
    sizes = [torch.autograd.grad(each, points, retain_graph=True)[0].flatten(1).abs().sum(1) for each in sums]
    return sizes[0] if own is not None else torch.stack(sizes, 1)


@cache
def met(name: str) -> Tensor:
    """The largest norm found of each output, (outputs,)."""
    (model, centre), eps = trained(name), NETWORKS[name][2]
    generator = torch.Generator().manual_seed(0)

    def drawn(count: int) -> Tensor:
        unit = 2 * torch.rand((count, *centre.shape), generator=generator, dtype=torch.float64) - 1
        unit[::3] = unit[::3].sign()
        return centre + eps * unit

    batches = [drawn(2000) for _ in range(5)]
    best, which = torch.cat([norms(model, points) for points in batches]).max(0)
    point = torch.cat(batches)[which]
    outputs, tries = len(best), 8
    own = torch.arange(outputs)
    for step in range(40):
        corners = drawn(3 * tries * outputs)[::3]
        thrown = torch.rand(corners.shape, generator=generator, dtype=torch.float64) < 0.5 ** (1 + step / 5)
        there = torch.where(thrown, corners, point.repeat(tries, *(1,) * centre.dim()))
        top, which = norms(model, there, own.repeat(tries)).reshape(tries, outputs).max(0)
        chosen = there.reshape(tries, outputs, *centre.shape)[which, own]
        point = torch.where((top > best).reshape(-1, *(1,) * centre.dim()), chosen, point)
        best = torch.maximum(best, top)
    return best


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", list(NETWORKS))
def test_no_output_exceeds_its_bound(name, method):
    (model, centre), eps = trained(name), NETWORKS[name][2]
    result = local_lipschitz(model, centre, eps, method=method, alpha_steps=5, time_limit=0.15)
    assert (met(name) <= result.per_output * (1 + SLACK)).all()
    assert (result.per_output_lower <= result.per_output).all()


@pytest.mark.parametrize("name", list(NETWORKS))
def test_the_points_found_are_worth_comparing_with(name):
    """Half of what CROWN allows is met, or of piecewise linear networks with many undecided gates a tenth: nothing here is vacuous."""
    (model, centre), eps = trained(name), NETWORKS[name][2]
    crown = local_lipschitz(model, centre, eps)
    assert met(name).max() >= (0.1 if "x4" in name or name in ("tanh", "sigmoid") else 0.4) * crown.upper


@pytest.mark.parametrize("name", ["4-12-3", "16-16-16-10", "64-32-32-10"])
def test_exact_constants_are_not_exceeded_and_almost_met(name):
    (model, centre), eps = trained(name), NETWORKS[name][2]
    exact = local_lipschitz(model, centre, eps, method="exact")
    assert exact.status == "exact"
    assert (met(name) <= exact.per_output * (1 + SLACK)).all()
    assert met(name).max() >= 0.8 * exact.upper

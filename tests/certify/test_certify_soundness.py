"""The laws that hold for every network: bounds contain what is sampled, close at radius 0, and loosen in a known order."""

import pytest
import torch

from certify.certify_cases import CASES, NetCase, mlp
from lilliput.certify import Region, local_lipschitz, lower, preactivations
from lilliput.graph import trace

METHODS = ["product", "ibp", "recurjac", "crown"]
SLACK = 1e-9  # relative; rounding of float64 sums


def jacobians(model: torch.nn.Module, points: torch.Tensor) -> torch.Tensor:
    """(points, outputs, inputs), by torch itself."""
    points = points.clone().requires_grad_()
    outputs = model(points).flatten(1).sum(0)  # points don't mix, so each one's gradient is its own
    rows = [torch.autograd.grad(output, points, retain_graph=True)[0].flatten(1) for output in outputs]
    return torch.stack(rows, 1)


def samples(case: NetCase, eps: float, count: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(11)
    unit = torch.rand((count, *case.shape), generator=generator, dtype=torch.float64) * 2 - 1
    unit[::3] = unit[::3].sign()
    return case.centre() + eps * unit


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_bounds_contain_every_sampled_jacobian(case, method):
    model = case.model()
    sampled = jacobians(model, samples(case, case.eps, 200)).detach()
    result = local_lipschitz(model, case.centre(), case.eps, method=method)
    low, high = result.jacobian_bounds()
    slack = case.slack * sampled.abs().max()
    assert (sampled >= low - slack).all()
    assert (sampled <= high + slack).all()
    assert (sampled.abs().sum(-1) <= result.per_output + slack * sampled.shape[-1]).all()
    assert (result.per_output_lower <= result.per_output + slack).all()


@pytest.mark.parametrize("norm", ["1", "2"])
@pytest.mark.parametrize("case", [CASES[0], CASES[11], CASES[21]], ids=lambda case: case.name)
def test_bounds_hold_in_the_other_norms_too(case, norm):
    model, order = case.model(), {"1": float("inf"), "2": 2.0}[norm]
    generator = torch.Generator().manual_seed(5)
    step = torch.randn((200, *case.shape), generator=generator, dtype=torch.float64)
    length = torch.linalg.vector_norm(step.flatten(1), ord=float(norm), dim=1)
    points = case.centre() + 0.5 * step / length.reshape(-1, *(1,) * len(case.shape))
    sizes = torch.linalg.vector_norm(jacobians(model, points).detach(), ord=order, dim=-1)
    for method in METHODS:
        result = local_lipschitz(model, case.centre(), 0.5, norm=norm, method=method)
        assert (sizes <= result.per_output * (1 + SLACK)).all(), method


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_at_radius_zero_the_bounds_are_the_jacobian(case):
    model = case.model()
    (exact,) = jacobians(model, case.centre()[None]).detach()
    low, high = local_lipschitz(model, case.centre(), 0.0).jacobian_bounds()
    scale = exact.abs().max()
    assert ((low - exact).abs() <= max(1e-8, case.slack) * scale).all()
    assert ((high - exact).abs() <= max(1e-8, case.slack) * scale).all()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_bounds_of_every_gates_input_contain_what_is_sampled(case):
    network = lower(trace(case.model(), case.centre()[None]))
    region = Region.ball(case.centre().reshape(1, -1), case.eps, "inf")
    _, before = network.run(samples(case, case.eps, 200))
    crown, ibp = preactivations(network, region), preactivations(network, region, method="ibp")
    for z, low, high, loose_low, loose_high in zip(before, crown.lower, crown.upper, ibp.lower, ibp.upper, strict=True):
        assert (z >= low - 1e-9).all()
        assert (z <= high + 1e-9).all()
        assert (low >= loose_low - 1e-12).all()
        assert (high <= loose_high + 1e-12).all()


@pytest.mark.parametrize("norm", ["inf", "1", "2"])
@pytest.mark.parametrize("seed", range(5))
def test_each_method_is_at_least_as_tight_as_the_one_before(seed, norm):
    widths = [(4, 12, 3), (6, 10, 10, 4), (8, 16, 16, 16, 5), (5, 20, 8, 20, 3), (12, 8, 8, 8, 8, 2)][seed]
    model = mlp(*widths, seed=seed, gain=1.5)
    x = torch.randn(widths[0], generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    bounds = torch.stack([local_lipschitz(model, x, 0.2, norm, method=method).per_output for method in METHODS])
    assert (bounds[1:] <= bounds[:-1] * (1 + 1e-9)).all()


def test_a_larger_ball_has_no_smaller_bound():
    case = CASES[0]
    bounds = [local_lipschitz(case.model(), case.centre(), eps).upper for eps in (0, 0.01, 0.03, 0.1, 0.3, 1)]
    assert bounds == sorted(bounds)


def test_clipping_cuts_the_region_and_the_bound():
    case = NetCase("relu", CASES[0].build, (5,))
    centre = torch.tensor([0.0, 1.0, 0.5, 0.0, 1.0], dtype=torch.float64)
    free, cut = (local_lipschitz(case.model(), centre, 0.4, clip=clip) for clip in (None, (0, 1)))
    assert cut.upper < free.upper
    points = torch.rand((500, 5), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    points = torch.maximum(torch.minimum(points, centre + 0.4), centre - 0.4)
    assert (jacobians(case.model(), points).abs().sum(-1) <= cut.per_output * (1 + SLACK)).all()
    assert cut.witness.min() >= 0
    assert cut.witness.max() <= 1

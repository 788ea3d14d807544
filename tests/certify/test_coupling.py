"""Smooth gates whose derivative follows their input: sound, never looser, and off by the second order in the region's size only."""

import math

import pytest
import torch
from torch import nn

from certify.certify_cases import CASES, mlp
from lilliput.certify import Region, bound_jacobian, local_lipschitz, lower, preactivations
from lilliput.certify.coupling import Coupling
from lilliput.graph import Graph, trace

SMOOTH = [nn.Tanh, nn.Sigmoid, nn.SiLU, nn.GELU, lambda: nn.GELU("tanh"), nn.Softplus, nn.ELU, lambda: nn.ELU(2.0),
          nn.Hardswish]  # fmt: skip


def gradients(model: nn.Module, points: torch.Tensor) -> torch.Tensor:
    points = points.clone().requires_grad_()
    return torch.stack([torch.autograd.grad(f, points, retain_graph=True)[0] for f in model(points).sum(0)], 1)


def bounds(graph: Graph, centre: torch.Tensor, eps: float, norm: str = "inf"):
    """Of a batch of centres: without coupling, and with it."""
    network = lower(graph)
    region, rows = Region.ball(centre, eps, norm), torch.eye(network.outputs, dtype=centre.dtype)
    masks, rows = preactivations(network, region), rows.expand(len(centre), -1, -1)
    slopes, coupling = masks.slopes(network), Coupling.of(network, region, masks)
    return [
        bound_jacobian(network, slopes, rows, norm, tight_elements=True, coupling=each) for each in (None, coupling)
    ]


@pytest.mark.parametrize("act", SMOOTH, ids=lambda act: str(act()))
def test_deep_smooth_networks_hold_what_is_sampled_and_are_never_looser(act):
    model = mlp(4, 10, 10, 10, 3, act=act, gain=2.5)
    centre = torch.randn((2, 4), dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    generator, graph = torch.Generator().manual_seed(0), trace(model, centre[:1])
    for norm, eps in (("inf", 0.02), ("inf", 0.3), ("2", 2.0), ("1", 0.3)):
        free, tied = bounds(graph, centre, eps, norm)
        assert (tied.norm <= free.norm * (1 + 1e-12)).all()
        for domain, x in enumerate(centre):
            step = torch.randn((300, 4), dtype=torch.float64, generator=generator)
            step /= torch.linalg.vector_norm(step, ord=float(norm), dim=1, keepdim=True)
            share = torch.rand((300, 1), dtype=torch.float64, generator=generator).sqrt()
            found = gradients(model, x + eps * share * step)
            size = torch.linalg.vector_norm(found, ord={"inf": 1.0, "2": 2.0, "1": math.inf}[norm], dim=-1)
            assert (found >= tied.jacobian[0][domain] - 1e-9).all()
            assert (found <= tied.jacobian[1][domain] + 1e-9).all()
            assert (size <= tied.norm[domain] + 1e-9).all()


@pytest.mark.parametrize("act", [nn.Tanh, nn.Sigmoid, nn.SiLU, nn.GELU, nn.Softplus], ids=lambda act: act.__name__)
def test_halving_the_region_quarters_the_error(act):
    model = mlp(1, 6, 6, 1, act=act, seed=1, gain=2.0)
    centre = torch.tensor([[0.3]], dtype=torch.float64)
    errors, graph = [], trace(model, centre)
    for eps in (0.04, 0.02):
        grid = centre + eps * torch.linspace(-1, 1, 4001, dtype=torch.float64)[:, None]
        exact = gradients(model, grid).abs().max()
        errors.append([float(each.norm[0, 0] - exact) for each in bounds(graph, centre, eps)])
    (free, tied), (free_half, tied_half) = errors
    assert tied < free / 2
    assert free_half > 0.4 * free  # of the first order: a half
    assert tied_half < 0.3 * tied  # of the second: a quarter


def summed(*terms: tuple[float, float, float], act: nn.Module) -> Graph:
    """Sum of ``v s(w x + b)`` over terms (v, w, b), of one number x."""
    v, w, b = torch.tensor(terms, dtype=torch.float64).T
    model = nn.Sequential(nn.Linear(1, len(terms)), act, nn.Linear(len(terms), 1, bias=False)).double().eval()
    model[0].weight.data, model[0].bias.data, model[2].weight.data = w[:, None], b, v[None]
    return trace(model, torch.zeros(1, 1, dtype=torch.float64))


def test_a_parabola_is_exact_worked_by_hand():
    # Hard swish has s' = (2 z + 3) / 6 up to |z| = 3. So 4 s(x) - 2 s(2 x) has slope (4 x + 6) / 3 - (8 x + 6) / 3 = -4 x / 3: on
    # [0.5, 1] from -4/3 to -2/3. Without knowing that both read the same x it is in [8/3, 10/3] - [10/3, 14/3] = [-2, 0].
    graph = summed((4, 1, 0), (-2, 2, 0), act=nn.Hardswish())
    free, tied = bounds(graph, torch.tensor([[0.75]], dtype=torch.float64), 0.25)
    low, high = (float(each) for each in free.jacobian)
    assert (low, high) == (pytest.approx(-2), pytest.approx(0, abs=1e-12))
    low, high = (float(each) for each in tied.jacobian)
    assert (low, high) == (pytest.approx(-4 / 3), pytest.approx(-2 / 3))


def test_two_tanhs_that_cancel_leave_the_gap_between_the_lines_worked_by_hand():
    # s' = 1 - tanh^2 bends down on [0.2, 0.4]: the chord is below, and above the nearest line at the middle is the tangent there. In the
    # slope 0 of tanh(x) - tanh(x) the difference of both is left, greatest at an end.
    s1, s2 = lambda z: 1 - math.tanh(z) ** 2, lambda z: -2 * math.tanh(z) * (1 - math.tanh(z) ** 2)
    chord = (s1(0.4) - s1(0.2)) / 0.2
    above = [s1(0.3) + s2(0.3) * (z - 0.3) for z in (0.2, 0.4)]
    below = [s1(0.2) + chord * (z - 0.2) for z in (0.2, 0.4)]
    expected = max(high - low for high, low in zip(above, below, strict=True))
    graph = summed((1, 1, 0), (-1, 1, 0), act=nn.Tanh())
    free, tied = bounds(graph, torch.tensor([[0.3]], dtype=torch.float64), 0.1)
    assert float(free.norm) == pytest.approx(s1(0.2) - s1(0.4))
    assert float(tied.norm) == pytest.approx(expected, rel=1e-6)


def test_derivatives_that_only_jump_are_not_coupled():
    network = lower(trace(mlp(3, 5, 2), torch.zeros(1, 3, dtype=torch.float64)))
    region = Region.ball(torch.zeros(1, 3, dtype=torch.float64), 0.1, "inf")
    assert Coupling.of(network, region, preactivations(network, region)) is None


@pytest.mark.parametrize("case", [CASES[8], CASES[24]], ids=lambda case: case.name)
def test_domains_do_not_mix(case):
    model = case.model() if case.name == "tanh" else nn.Sequential(case.model(), nn.Tanh(), nn.Linear(3, 3).double())
    centres = case.centre(3)
    together = local_lipschitz(model.eval(), centres, 0.2).per_output
    alone = torch.stack([local_lipschitz(model, centre, 0.2).per_output for centre in centres])
    torch.testing.assert_close(together, alone, rtol=1e-10, atol=0)

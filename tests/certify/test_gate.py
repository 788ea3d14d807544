import pytest
import torch
from torch import nn

from certify.certify_cases import Fn
from lilliput.certify import lower
from lilliput.graph import trace

GATES = [nn.ReLU(), nn.LeakyReLU(0.2), nn.LeakyReLU(-0.5), nn.PReLU(), nn.ReLU6(), nn.Hardtanh(-0.5, 1), nn.Hardsigmoid(), nn.Hardswish(),
         nn.Tanh(), nn.Sigmoid(), nn.SiLU(), nn.GELU(), nn.GELU("tanh"), nn.Softplus(2), nn.ELU(), nn.ELU(2.0)]  # fmt: skip
TOLERANCE = 1e-8  # softplus jumps by 2e-9 where torch cuts it, and hard sigmoid's gradient is a float32 sixth


def intervals() -> tuple[torch.Tensor, torch.Tensor]:
    """A thousand of them, narrow and wide, on both sides of every knot."""
    generator = torch.Generator().manual_seed(0)
    centre = 12 * torch.rand(1000, generator=generator, dtype=torch.float64) - 6
    width = 10 ** (5 * torch.rand(1000, generator=generator, dtype=torch.float64) - 4)
    return centre - width / 2, centre + width / 2


def gate_of(module: nn.Module):
    (step,) = lower(trace(nn.Sequential(module.double()).eval(), torch.zeros(1, 1000, dtype=torch.float64))).gates
    return step.gate


@pytest.mark.parametrize("module", GATES, ids=str)
def test_lines_and_slopes_hold_on_a_fine_grid(module):
    gate, (low, high) = gate_of(module), intervals()
    z = (low + (high - low) * torch.linspace(0, 1, 401, dtype=torch.float64)[:, None]).requires_grad_()
    value = module(z)
    (slope,) = torch.autograd.grad(value.sum(), z)
    least, greatest = gate.slope_range(low, high)
    assert (slope >= least - TOLERANCE).all()
    assert (slope <= greatest + TOLERANCE).all()
    assert slope.abs().max() <= gate.steepest + TOLERANCE
    free = torch.linspace(-0.5, 1.5, 1000, dtype=torch.float64)
    for given in (None, free):
        below_k, below_b, above_k, above_b = gate.lines(low, high, given)
        assert (below_k * z + below_b <= value + TOLERANCE).all()
        assert (above_k * z + above_b >= value - TOLERANCE).all()
    bottom, top = gate.output_range(low, high)
    assert (value >= bottom - TOLERANCE).all()
    assert (value <= top + TOLERANCE).all()


@pytest.mark.parametrize("module", [each for each in GATES if gate_of(each).derivative], ids=str)
def test_lines_around_the_derivative_hold_on_a_fine_grid(module):
    (low, high), derivative = intervals(), gate_of(module).derivative
    z = (low + (high - low) * torch.linspace(0, 1, 401, dtype=torch.float64)[:, None]).requires_grad_()
    (slope,) = torch.autograd.grad(module(z).sum(), z)
    below_k, below_b, above_k, above_b = derivative.lines(low, high)
    assert (below_k * z + below_b <= slope + TOLERANCE).all()
    assert (above_k * z + above_b >= slope - TOLERANCE).all()


@pytest.mark.parametrize("module", GATES, ids=str)
def test_lines_touch_the_gate_and_meet_on_a_point(module):
    gate, (low, high) = gate_of(module), intervals()
    z = low + (high - low) * torch.linspace(0, 1, 2001, dtype=torch.float64)[:, None]
    below_k, below_b, above_k, above_b = gate.lines(low, high)
    grid = 2e-3 * (
        high - low
    )  # a kink lies up to half a step, 1/4000 of the width, from the grid; slopes differ by up to 2
    assert ((module(z) - below_k * z - below_b).amin(0) <= grid + TOLERANCE).all()
    assert ((above_k * z + above_b - module(z)).amin(0) <= grid + TOLERANCE).all()
    below_k, below_b, above_k, above_b = gate.lines(low, low)
    torch.testing.assert_close(below_k * low + below_b, module(low), rtol=0, atol=TOLERANCE)
    torch.testing.assert_close(above_k * low + above_b, module(low), rtol=0, atol=TOLERANCE)


def test_relu_has_crowns_slopes():
    low = torch.tensor([-1.0, -2.0, -1.0, 1.0, -3.0], dtype=torch.float64)
    high = torch.tensor([2.0, 1.0, 1.0, 2.0, -1.0], dtype=torch.float64)
    below_k, below_b, above_k, above_b = gate_of(nn.ReLU()).lines(low, high)
    assert below_k.tolist() == [1.0, 0.0, 0.0, 1.0, 0.0]  # 1 where u > -l, else 0
    assert below_b.tolist() == [0.0] * 5
    torch.testing.assert_close(above_k, torch.tensor([2 / 3, 1 / 3, 1 / 2, 1, 0], dtype=torch.float64))
    torch.testing.assert_close(above_b, torch.tensor([2 / 3, 2 / 3, 1 / 2, 0, 0], dtype=torch.float64))


def test_a_kink_counts_with_both_sides_and_only_there():
    gate = gate_of(nn.ReLU())
    least, greatest = gate.slope_range(torch.tensor([0.0, 1e-30, -1.0]), torch.tensor([0.0, 1.0, -1e-30]))
    assert least.tolist() == [0.0, 1.0, 0.0]
    assert greatest.tolist() == [1.0, 1.0, 0.0]


def test_one_relu_module_used_twice_is_two_gates():
    relu = nn.ReLU()
    network = lower(trace(nn.Sequential(nn.Linear(3, 3), relu, nn.Linear(3, 3), relu).eval(), torch.zeros(1, 3)))
    assert [step.index for step in network.gates] == [0, 1]


def test_a_networks_steps_compute_the_network():
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.MaxPool2d(3, 2, 1), Fn(torch.tanh), nn.Flatten()).double().eval()
    x = torch.randn(4, 2, 7, 6, dtype=torch.float64)
    torch.testing.assert_close(lower(trace(model, x[:1])).run(x)[0], model(x))


@pytest.mark.parametrize("module", GATES, ids=str)
def test_a_kink_is_where_the_derivative_has_two_limits(module):
    gate = gate_of(module)
    z = torch.cat([torch.tensor([knot.at for knot in gate.knots], dtype=torch.float64), intervals()[0]])[:1000]
    hair = 1e-12
    jumps = (gate.slope(z + hair) - gate.slope(z - hair)).abs() > 1e-10
    assert torch.equal(gate.is_at_kink(z), jumps)
    assert bool(jumps.any()) or not gate.is_piecewise_linear

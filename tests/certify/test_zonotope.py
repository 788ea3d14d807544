"""Zonotopes of values and of gradients: sound, and a filter that leaves CROWN's figures as they are while it pulls back far less."""

import pytest
import torch
from torch import nn

from certify.certify_cases import CASES, mlp
from lilliput.certify import Region, bound_jacobian, local_lipschitz, lower, preactivations
from lilliput.certify.linear_map import Convolution
from lilliput.certify.preactivation import upper_bound
from lilliput.graph import trace


def deep_convolution() -> nn.Module:
    """Depthwise and pointwise layers with a branch; interval arithmetic leaves the last gates all undecided."""
    torch.manual_seed(1)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(1, 8, 3, padding=1)
            self.deep = nn.ModuleList(
                nn.Sequential(nn.Conv2d(8, 16, 1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.BatchNorm2d(16),
                              nn.ReLU(), nn.Conv2d(16, 8, 1)) for _ in range(3)
            )  # fmt: skip
            self.head = nn.Linear(8 * 36, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.stem(x).relu()
            for block in self.deep:
                x = x + 2 * block(x)
            return self.head(x.flatten(1))

    return Net().double().eval()


@pytest.mark.parametrize("norm", ["inf", "1", "2"])
@pytest.mark.parametrize("case", [CASES[i] for i in (0, 2, 5, 8, 11, 17, 21, 26, 28)], ids=lambda case: case.name)
def test_it_contains_every_sampled_input_of_a_gate_and_every_jacobian(case, norm):
    model, graph = case.model(), trace(case.model(), case.centre()[None])
    network, region = lower(graph), Region.ball(case.centre(2).flatten(1), case.eps, norm)
    points = region.draw(150, torch.Generator().manual_seed(0))
    bounds = preactivations(network, region, method="zonotope")
    rows = torch.eye(network.outputs, dtype=torch.float64).expand(2, -1, -1)
    slopes = bound_jacobian(network, bounds.slopes(network), rows, norm, rule="zonotope", tight_elements=True)
    for domain in range(2):
        x = points[:, domain].reshape(-1, *case.shape).requires_grad_()
        for z, low, high in zip(network.run(x)[1], bounds.lower, bounds.upper, strict=True):
            assert (z >= low[domain] - 1e-9).all()
            assert (z <= high[domain] + 1e-9).all()
        found = [torch.autograd.grad(f, x, retain_graph=True)[0].flatten(1) for f in model(x).flatten(1).sum(0)]
        found = torch.stack(found, 1)
        assert (found >= slopes.jacobian[0][domain] - 1e-9).all()
        assert (found <= slopes.jacobian[1][domain] + 1e-9).all()
        size = torch.linalg.vector_norm(found, ord={"inf": 1.0, "1": torch.inf, "2": 2.0}[norm], dim=-1)
        assert (size <= slopes.norm[domain] * (1 + 1e-9) + 1e-9).all()


def test_two_relus_worked_by_hand():
    # a = relu(x), b = relu(x - 0.5) on [-1, 1], then z = a - b. The chords are a = x / 2 + 1/4 +- 1/4 and, with z_b in [-1.5, 0.5],
    # b = (x - 0.5) / 4 + 3/16 +- 3/16. So z = x / 4 + 3/16 +- 7/16: from -1/2 to 7/8. Intervals alone say from -1/2 to 1.
    model = nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 1), nn.ReLU()).double().eval()
    model[0].weight.data, model[0].bias.data = torch.ones(2, 1).double(), torch.tensor([0.0, -0.5]).double()
    model[2].weight.data, model[2].bias.data = torch.tensor([[1.0, -1.0]]).double(), torch.zeros(1).double()
    network = lower(trace(model, torch.zeros(1, 1, dtype=torch.float64)))
    bounds = preactivations(network, Region.ball(torch.zeros(1, 1, dtype=torch.float64), 1.0, "inf"), method="zonotope")
    assert (float(bounds.lower[1]), float(bounds.upper[1])) == (pytest.approx(-0.5), pytest.approx(0.875))


def test_crown_is_the_same_with_it_and_pulls_back_fewer_units(monkeypatch):
    model, centre = deep_convolution(), torch.rand(1, 1, 6, 6, dtype=torch.float64)
    graph = trace(model, centre[:1])
    network, region = lower(graph), Region.ball(centre.flatten(1), 0.01, "inf")
    pulled: list[int] = []

    def counted(network, region, rows, lines, **options):
        pulled.append(sum(each.shape[2] for each in rows.values()))
        return upper_bound(network, region, rows, lines, **options)

    monkeypatch.setattr("lilliput.certify.preactivation.upper_bound", counted)
    with_it = local_lipschitz(graph, centre, 0.01).per_output, preactivations(network, region), sum(pulled)
    pulled.clear()
    monkeypatch.setattr("lilliput.certify.zonotope.MOST_SYMBOL_BYTES", 0)
    monkeypatch.setattr("lilliput.certify.jacobian._LITTLE_BYTES", float("inf"))
    without = local_lipschitz(graph, centre, 0.01).per_output, preactivations(network, region), sum(pulled)
    assert with_it[2] < without[2] / 2
    torch.testing.assert_close(with_it[0], without[0], rtol=1e-3, atol=0)  # masks may differ in a unit or two
    for (a, b), (c, d) in zip(with_it[1].slopes(network), without[1].slopes(network), strict=True):
        assert ((a < b).sum() - (c < d).sum()).abs() <= 0.1 * (c < d).sum() + 2


def test_signs_from_the_gradients_zonotope_do_not_change_the_chords_bound(monkeypatch):
    model = mlp(8, 24, 24, 24, 4, gain=1.6)
    centre = torch.randn(8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = []
    for least in (0, float("inf")):
        monkeypatch.setattr("lilliput.certify.jacobian._LITTLE_BYTES", least)
        found.append(local_lipschitz(model, centre, 0.05).per_output)
    torch.testing.assert_close(*found, rtol=1e-9, atol=0)


@pytest.mark.parametrize(("groups", "channels", "stride", "padding"), [(8, 8, 1, 1), (8, 16, 2, 0), (12, 24, 2, 1)])
def test_groups_as_matrices_are_the_convolution(groups, channels, stride, padding):
    torch.manual_seed(0)
    layer = nn.Conv2d(2 * groups, channels, 3, stride, padding, groups=groups, bias=False).double()
    x = torch.randn(5, 2 * groups, 6, 7, dtype=torch.float64)
    y = layer(x).detach()
    linear = Convolution(
        layer.weight.detach(), (2 * groups, 6, 7), tuple(y.shape[1:]), (stride,) * 2, (padding,) * 2, (1, 1), groups
    )
    assert linear.matrices is not None
    torch.testing.assert_close(linear.apply(x), y)
    g, (back,) = torch.randn_like(y), torch.func.vjp(layer, x)[1](torch.ones_like(y))
    torch.testing.assert_close(linear.transpose(torch.ones_like(y)), back.detach())
    torch.testing.assert_close((linear.apply(x) * g).sum(), (x * linear.transpose(g)).sum())
    layer.weight.data.abs_()
    torch.testing.assert_close(linear.apply(x.abs(), absolute=True), layer(x.abs()).detach())

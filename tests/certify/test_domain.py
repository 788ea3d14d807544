"""Splits lose no point: whatever a point's signs say, it is inside the domain that they lead to."""

import pytest
import torch
from torch import nn

from certify.certify_cases import mlp
from lilliput.certify import Region, bound_jacobian, lower, preactivations
from lilliput.certify.domain import bounded, gate_halves, input_halves, root
from lilliput.graph import trace


def leaves(act, norm, splits_inputs, rounds=5, seed=0):
    model = mlp(4, 10, 8, 3, act=act, seed=seed, gain=2.0)
    centre = torch.full((1, 4), 0.2, dtype=torch.float64)
    network, region = lower(trace(model, centre)), Region.ball(centre, 0.6, norm)
    masks = preactivations(network, region)
    rows = torch.eye(3, dtype=torch.float64)
    start = bound_jacobian(network, masks.slopes(network), rows[None], norm)
    domains = root(network, region, masks, start).take(torch.tensor([1]))
    generator = torch.Generator().manual_seed(seed)
    for _ in range(rounds):
        is_open = [least < greatest for least, greatest in domains.masks.slopes(network)]
        flat = torch.cat(is_open, 1).double() + 1e-9
        chosen = torch.multinomial(flat, 1, generator=generator)[:, 0]
        gates, units = (chosen >= 10).long(), chosen % 10
        halves = input_halves(domains) if splits_inputs and _ % 2 else gate_halves(network, domains, gates, units)
        domains, _left = bounded(network, halves, rows)
    return model, network, region, domains


@pytest.mark.parametrize("act", [nn.ReLU, nn.Hardtanh, nn.GELU])
@pytest.mark.parametrize(("norm", "splits_inputs"), [("inf", False), ("inf", True), ("2", False), ("1", False)])
def test_every_point_is_in_a_domain_that_holds_for_it(act, norm, splits_inputs):
    model, network, region, domains = leaves(act, norm, splits_inputs)
    assert len(domains) > 8
    points = region.draw(3000, torch.Generator().manual_seed(1))[:, 0]
    _, z = network.run(points)
    gradient = torch.func.vmap(torch.func.jacrev(model))(points)[:, 1]
    size = torch.linalg.vector_norm(gradient, ord={"inf": 1, "1": torch.inf, "2": 2}[norm], dim=-1)
    inside = torch.ones(len(points), len(domains), dtype=torch.bool)
    for x, low, high in [(points, domains.region.lower, domains.region.upper),
                         *zip(z, domains.masks.lower, domains.masks.upper, strict=True)]:  # fmt: skip
        inside &= ((x[:, None] >= low - 1e-9) & (x[:, None] <= high + 1e-9)).all(-1)
    assert inside.any(1).all()
    bound = torch.where(inside, domains.bounds.norm[:, 0], 0.0).amax(1)
    assert (size <= bound * (1 + 1e-9)).all()


def test_half_spaces_clip_boxes_and_tighten_what_gates_alone_do_not():
    _, _, region, domains = leaves(nn.ReLU, "inf", False)
    volume = (domains.region.upper - domains.region.lower).prod(1)
    whole = (region.upper - region.lower).prod()
    assert float(volume.mean()) < 0.7 * float(whole)
    assert (volume > 0).all()


def test_halves_whose_signs_contradict_each_other_are_dropped():
    # Two units read x + y and x + y - 1: the second cannot be on where the first is off, which no interval of one unit tells.
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1)).double().eval()
    model[0].weight.data[:] = 1.0
    model[0].bias.data = torch.tensor([0.0, -1.0], dtype=torch.float64)
    centre = torch.zeros(1, 2, dtype=torch.float64)
    network, region = lower(trace(model, centre)), Region.ball(centre, 1.0, "inf")
    masks = preactivations(network, region)
    rows = torch.ones(1, 1, dtype=torch.float64)
    domains = root(network, region, masks, bound_jacobian(network, masks.slopes(network), rows[None], "inf"))
    for unit in range(2):
        gates = torch.zeros(len(domains), dtype=torch.long)
        domains, _ = bounded(network, gate_halves(network, domains, gates, torch.full_like(gates, unit)), rows)
    assert len(domains) == 3

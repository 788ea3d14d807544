"""Certified radii: exact where that can be worked out by hand, never broken by an attack, and much larger than the product bound's."""

import itertools
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import lilliput.certify.radius as radius_module
from certify.digit_networks import digits, trained_mlp
from lilliput.certify import METHODS, certified_radius
from lilliput.errors import ConfigError, DataError


def linear(*rows: list[float]) -> nn.Module:
    model = nn.Sequential(nn.Linear(len(rows[0]), len(rows), bias=False)).double()
    model[0].weight.data = torch.tensor(rows, dtype=torch.float64)
    return model


def attacked(model: nn.Module, x: torch.Tensor, y: torch.Tensor, eps: torch.Tensor) -> torch.Tensor:
    """Which centres projected gradient descent breaks: 100 steps, 10 restarts, the l_inf ball cut to 0..1; eps for each centre."""
    eps = eps.reshape(-1, 1)
    low, high = (x - eps).clamp(min=0), (x + eps).clamp(max=1)
    generator = torch.Generator().manual_seed(0)
    broken = torch.zeros(len(x), dtype=torch.bool)
    for restart in range(10):
        noise = torch.rand(x.shape, generator=generator, dtype=x.dtype) * 2 - 1
        point = (x + eps * (noise.sign() if restart % 2 else noise)).clamp(low, high)
        for step in range(100):
            point.requires_grad_()
            outputs = model(point)
            rival = outputs.scatter(1, y[:, None], -torch.inf).amax(1)
            loss = rival - outputs.gather(1, y[:, None]).squeeze(1)
            broken |= loss.detach() >= 0
            (slope,) = torch.autograd.grad(loss.sum(), point)
            rate = eps * (0.5 if step < 50 else 0.05)
            point = torch.minimum(torch.maximum(point.detach() + rate * slope.sign(), low), high)
    return broken


def test_of_a_linear_network_it_is_the_distance_to_the_boundary():
    model, x = linear([1.0, 2.0], [-1.0, 1.0]), torch.tensor([0.3, 0.1], dtype=torch.float64)
    # The margin is 2 x0 + x1 = 0.7; its gradient (2, 1) has l_1 norm 3, l_inf norm 2, l_2 norm sqrt 5.
    for norm, size in (("inf", 3), ("1", 2), ("2", 5**0.5)):
        radius = certified_radius(model, x, 0, norm, tolerance=1e-6)
        assert radius == pytest.approx(0.7 / size, rel=1e-5)
        assert radius < 0.7 / size


def test_it_is_0_for_the_wrong_class_and_for_a_tie_and_never_above_the_largest_asked_for():
    model, x = linear([1.0, 0.0], [0.0, 1.0]), torch.tensor([[0.6, 0.1], [0.1, 0.6], [0.5, 0.5]])
    radii = certified_radius(model, x.double(), torch.tensor([0, 0, 0]), max_eps=0.125)
    assert radii.tolist() == pytest.approx([0.125, 0, 0], rel=1e-6)
    assert radii.max() <= 0.125


def test_clipping_to_the_range_of_the_data_can_only_help():
    model, (x, y) = trained_mlp(), digits(16)
    cut, free = (certified_radius(model, x, y, clip=clip) for clip in ((0, 1), None))
    assert (cut >= free * 0.98).all()  # the search's tolerance
    assert cut.mean() > free.mean() * 1.02


def test_no_attack_succeeds_inside_and_one_does_a_little_outside():
    model, (x, y) = trained_mlp(), digits(100)
    radii = certified_radius(model, x, y, clip=(0, 1))
    assert (radii > 0).sum() >= 80
    assert not (attacked(model, x, y, radii) & (radii > 0)).any()
    assert attacked(model, x, y, 3 * radii.clamp(min=1e-3)).double().mean() > 0.5  # the attack is one


def test_it_is_at_least_five_times_the_product_bounds_on_the_median():
    model, (x, y) = trained_mlp(), digits(100)
    crown, product = (certified_radius(model, x, y, clip=(0, 1), method=method) for method in ("crown", "product"))
    right = product > 0
    assert right.sum() >= 80
    assert (crown[right] / product[right]).median() >= 5


def test_a_tighter_method_certifies_more():
    model, (x, y) = trained_mlp(), digits(16)
    means = [certified_radius(model, x, y, method=method).mean() for method in ("product", "ibp", "recurjac", "crown")]
    assert means == sorted(means)
    assert set(METHODS) >= {"product", "ibp", "recurjac", "crown"}


@pytest.mark.parametrize("norm", ["inf", "1", "2"])
def test_a_batch_gives_what_single_centres_give(norm):
    model, (x, y) = trained_mlp(), digits(4)
    together = certified_radius(model, x, y, norm)
    alone = [certified_radius(model, each, int(label), norm) for each, label in zip(x, y, strict=True)]
    assert together.tolist() == pytest.approx(alone, rel=1e-9)


@pytest.mark.parametrize("norm", ["1", "2"])
def test_random_points_of_other_balls_keep_their_class(norm):
    model, (x, y) = trained_mlp(), digits(12)
    radii = certified_radius(model, x, y, norm, max_eps=10)
    generator = torch.Generator().manual_seed(1)
    step = torch.randn((500, *x.shape), generator=generator, dtype=x.dtype)
    if norm == "1":  # corners of the ball are single pixels
        step = nn.functional.one_hot(step.abs().argmax(-1), x.shape[1]) * step
    step = step / torch.linalg.vector_norm(step, ord=float(norm), dim=-1, keepdim=True)
    classes = model(x + step * radii[:, None]).argmax(-1)
    assert (classes == y)[:, radii > 0].all()
    assert (radii > 0).any()


def clock(seconds_a_look: float = 1.0) -> SimpleNamespace:
    """A clock that goes on whenever it is looked at."""
    ticks = itertools.count()
    return SimpleNamespace(perf_counter=lambda: next(ticks) * seconds_a_look)


def test_when_time_is_over_the_radius_is_what_was_certified_until_then(monkeypatch):
    model, (x, y) = trained_mlp(), digits(8)
    free = certified_radius(model, x, y, clip=(0, 1))
    found = []
    for limit in (0, 4, 8, 16, 1000):
        monkeypatch.setattr(radius_module, "time", clock())
        found.append(certified_radius(model, x, y, clip=(0, 1), total_time_limit=limit))
    assert (found[0] == 0).all()
    assert all((more >= less).all() for less, more in itertools.pairwise(found))
    assert 0 < found[2].sum() < free.sum()
    assert found[-1].tolist() == free.tolist()


def test_time_is_shared_out_among_batches_of_centres_and_their_constants(monkeypatch):
    seen = []
    monkeypatch.setitem(METHODS, "bab", lambda problem: seen.append(problem.time_limit) or METHODS["ibp"](problem))
    monkeypatch.setattr(radius_module, "_CENTRES_AT_ONCE", 2)
    model, x = linear([1.0, 2.0], [-1.0, 1.0]), torch.tensor([[0.3, 0.1]], dtype=torch.float64).repeat(4, 1)
    certified_radius(model, x, 0, method="bab", time_limit=30, total_time_limit=4800)
    assert set(seen) == {30.0}  # never more than one constant may take
    seen.clear()
    monkeypatch.setattr(radius_module, "time", clock(1e-9))
    certified_radius(model, x, 0, method="bab", time_limit=30, total_time_limit=32)
    assert (seen[0], seen[-1]) == (pytest.approx(1.0), pytest.approx(2.0))  # what the first batch left, the second gets
    seen.clear()
    certified_radius(model, x, 0, method="bab", time_limit=30)
    assert set(seen) == {30.0}


def test_in_float32_its_rounding_is_allowed_for():
    model, x = linear([1.0, 2.0], [-1.0, 1.0]).float(), torch.tensor([0.3, 0.1])
    single, double = (certified_radius(model, x, 0, tolerance=1e-6, dtype=dtype) for dtype in ("float32", "float64"))
    assert double * (1 - 2e-3) < single < double * (1 - 1e-4)


def test_what_cannot_be_is_refused():
    model, x = linear([1.0], [2.0]), torch.ones(1, dtype=torch.float64)
    with pytest.raises(ConfigError, match="tolerance=0.0: must be between 0 and 1"):
        certified_radius(model, x, 0, tolerance=0.0)
    with pytest.raises(ConfigError, match="method='lp': must be one of 'product'"):
        certified_radius(model, x, 0, method="lp")
    with pytest.raises(DataError, match="from 0 to 1"):
        certified_radius(model, x, 2)
    with pytest.raises(ConfigError, match="total_time_limit=-1: must be seconds, 0 or more"):
        certified_radius(model, x, 0, total_time_limit=-1)

import heapq

import pytest
import torch
from torch import nn

from certify.certify_cases import mlp
from lilliput.certify import Preactivations, Region, bound_jacobian, local_lipschitz, lower, preactivations
from lilliput.graph import trace


@pytest.mark.parametrize(("widths", "seed"), [((4, 9, 3), 0), ((3, 8, 6, 2), 1), ((4, 6, 5, 3), 2)])
def test_branch_and_bound_ends_at_the_exact_constant(widths, seed):
    model, centre = mlp(*widths, seed=seed, gain=1.5), torch.zeros(widths[0], dtype=torch.float64)
    exact, bab = (local_lipschitz(model, centre, 0.5, method=method) for method in ("exact", "bab"))
    assert bab.status == "exact"
    assert bab.upper == pytest.approx(exact.upper, rel=1e-9)
    assert bab.lower == pytest.approx(exact.upper, rel=1e-9)
    assert (exact.per_output <= bab.per_output * (1 + 1e-9)).all()


def of_masks_alone(model, centre, eps):
    """Branch and bound as published: gates are fixed in the masks, nothing else is computed again, and no pattern is found empty."""
    network, region = lower(trace(model, centre[None])), Region.ball(centre[None], eps, "inf")
    masks = preactivations(network, region)
    heap, count, rows = [], 0, torch.eye(network.outputs, dtype=torch.float64)

    def push(row, masks, within):
        nonlocal count
        slopes = masks.slopes(network)
        bounds = bound_jacobian(network, slopes, rows[None, row : row + 1], "inf", within=within)
        score = torch.cat([s[0, 0] for s in bounds.area(slopes)])
        is_open = torch.cat([(least < greatest)[0] for least, greatest in slopes])
        heapq.heappush(heap, (-float(bounds.norm), count, row, masks, bounds, torch.where(is_open, score, -1.0)))
        count += 1

    for row in range(len(rows)):
        push(row, masks, None)
    while True:
        bound, _, row, masks, bounds, score = heapq.heappop(heap)
        if float(score.max()) < 0:
            return -bound
        unit = int(score.argmax())
        sizes = [t.shape[1] for t in masks.lower]
        for sign in (-1, 1):
            low, high = torch.cat(masks.lower, 1).clone(), torch.cat(masks.upper, 1).clone()
            (high if sign < 0 else low)[0, unit] = sign * 1e-9
            push(row, Preactivations(low.split(sizes, 1), high.split(sizes, 1)), bounds)


@pytest.mark.parametrize("seed", [1, 3])
def test_without_emptiness_every_gate_can_be_fixed_and_the_bound_still_be_loose(seed):
    model, centre = mlp(4, 12, 3, seed=seed, gain=1.5), torch.zeros(4, dtype=torch.float64)
    crown, complete = (local_lipschitz(model, centre, 0.5, method=method) for method in ("crown", "bab"))
    with torch.no_grad():
        published = of_masks_alone(model, centre, 0.5)
    assert complete.status == "exact"
    assert complete.upper * 1.08 < published <= crown.upper * (1 + 1e-9)


CASES = [(nn.ReLU, "inf"), (nn.Hardtanh, "inf"), (nn.Tanh, "inf"), (nn.GELU, "2"), (nn.ReLU, "2"), (nn.ReLU, "1")]


@pytest.mark.parametrize(("act", "norm"), CASES)
def test_it_is_anytime_and_sound(act, norm):
    model, centre = mlp(4, 24, 24, 3, act=act, gain=2.0), torch.zeros(4, dtype=torch.float64)
    crown = local_lipschitz(model, centre, 0.5, norm)
    hurried = local_lipschitz(model, centre, 0.5, norm, method="bab", time_limit=0)
    longer = local_lipschitz(
        model, centre, 0.5, norm, method="bab", time_limit=600, progress=_until(8, []), is_interruptible=True
    )
    assert (hurried.per_output <= crown.per_output).all()
    assert longer.upper < crown.upper
    steps = torch.randn(3000, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    points = 0.5 * steps / torch.linalg.vector_norm(steps, ord=float(norm), dim=1, keepdim=True)
    sizes = torch.linalg.vector_norm(
        torch.func.vmap(torch.func.jacrev(model))(points), ord={"inf": 1, "2": 2, "1": torch.inf}[norm], dim=-1
    )
    assert (sizes <= longer.per_output * (1 + 1e-9)).all()
    at_witness = torch.linalg.vector_norm(
        torch.func.jacrev(model)(longer.witness).detach(), ord={"inf": 1, "2": 2, "1": torch.inf}[norm], dim=-1
    )
    assert float(at_witness.max()) == pytest.approx(longer.lower, rel=1e-9)


@pytest.mark.parametrize("method", ["bab", "exact"])
def test_the_trace_of_several_centres_never_loses_what_was_reached(method):
    model = mlp(3, 8, 6, 2, seed=7, gain=1.5)
    centres = torch.tensor([[0.0] * 3, [0.3] * 3, [-0.5] * 3], dtype=torch.float64)
    heard = []
    result = local_lipschitz(
        model, centres, 0.4, method=method, progress=lambda *entry: heard.append(entry), time_limit=60
    )
    assert heard == result.trace
    seconds, uppers, lowers, _ = zip(*result.trace, strict=True)
    assert list(seconds) == sorted(seconds)
    assert list(uppers) == sorted(uppers, reverse=True)
    assert list(lowers) == sorted(lowers)
    assert all(upper >= low * (1 - 1e-9) for upper, low in zip(uppers, lowers, strict=True))
    assert (uppers[-1], lowers[-1]) == pytest.approx((float(result.upper.max()), float(result.lower.max())), rel=1e-9)
    singles = [local_lipschitz(model, centre, 0.4, method=method).upper for centre in centres]
    assert result.status == "exact"
    torch.testing.assert_close(result.upper, torch.tensor(singles, dtype=torch.float64), rtol=1e-9, atol=0)


@pytest.mark.parametrize("method", ["bab", "exact"])
def test_an_interrupt_ends_with_what_was_reached_where_that_is_wanted(method):
    model, centres = mlp(4, 24, 24, 3, gain=2.0), torch.zeros(2, 4, dtype=torch.float64)

    def interrupt(seconds, upper, low, open_domains):
        heard.append(upper)
        if len(heard) == 4:
            raise KeyboardInterrupt

    heard = []
    crown = local_lipschitz(model, centres, 0.5)
    full = local_lipschitz(model, centres[0], 0.5, method="bab", time_limit=2)
    stopped = local_lipschitz(model, centres, 0.5, method=method, progress=interrupt, is_interruptible=True)
    assert stopped.status == "stopped"
    assert (stopped.per_output <= crown.per_output * (1 + 1e-12)).all()
    assert (stopped.per_output >= full.per_output_lower * (1 - 1e-9)).all()
    assert stopped.upper.max() <= heard[0]
    heard = []
    with pytest.raises(KeyboardInterrupt):
        local_lipschitz(model, centres, 0.5, method=method, progress=interrupt)


def test_boxes_are_split_where_there_are_few_inputs_and_that_pays(monkeypatch):
    model, centre = mlp(2, 10, 10, 2, act=nn.Tanh, gain=2.5), torch.zeros(2, dtype=torch.float64)
    reached = {}
    for few in (8, 0):
        monkeypatch.setattr("lilliput.certify.bab._FEW_INPUTS", few)
        sizes = []
        local_lipschitz(
            model, centre, 0.5, method="bab", time_limit=30, progress=_until(16, sizes), is_interruptible=True
        )
        reached[few] = min(sizes)
    assert reached[8] < reached[0]


def _until(entries, uppers):
    def progress(seconds, upper, low, open_domains):
        uppers.append(upper)
        if len(uppers) == entries:
            raise KeyboardInterrupt

    return progress


def test_an_interrupt_of_the_linear_programs_loses_no_domain(tmp_path, monkeypatch):
    from lilliput.certify import exact

    model, centre = mlp(4, 9, 9, 3, seed=2, gain=1.5), torch.zeros(4, dtype=torch.float64)
    constants = local_lipschitz(model, centre, 0.5, method="exact").per_output
    solve, stops = exact.deepest, 0
    for last in (2, 5, 8):
        calls = []

        def impatient(region, planes, calls=calls, last=last):
            calls.append(1)
            if len(calls) == last:
                raise KeyboardInterrupt
            return solve(region, planes)

        monkeypatch.setattr(exact, "deepest", impatient)
        path = tmp_path / f"{last}"
        stopped = local_lipschitz(model, centre, 0.5, method="bab", is_interruptible=True, checkpoint=path)
        stops += stopped.status == "stopped"
        assert (stopped.per_output >= constants * (1 - 1e-12)).all()
        monkeypatch.setattr(exact, "deepest", solve)
        ended = local_lipschitz(model, centre, 0.5, method="bab", checkpoint=path)
        assert ended.upper == pytest.approx(float(constants.max()), rel=1e-9)
    assert stops == 3


def test_time_that_is_over_in_the_linear_programs_leaves_their_domains_open(tmp_path, monkeypatch):
    from lilliput.certify import exact

    model, centre = mlp(4, 9, 9, 3, seed=2, gain=1.5), torch.zeros(4, dtype=torch.float64)
    constants = local_lipschitz(model, centre, 0.5, method="exact").per_output
    solve, clock = exact.deepest, exact.Patterns.refine
    monkeypatch.setattr(exact.Patterns, "refine", lambda self, deadline, *note: clock(self, 0.0, *note))
    monkeypatch.setattr(exact, "deepest", lambda *_: pytest.fail("there is no time"))

    def progress(seconds, upper, low, open_domains):
        heard.append(upper)
        if len(heard) == 12:
            raise KeyboardInterrupt

    heard = []
    monkeypatch.setattr("lilliput.certify.frontier.SECONDS_BETWEEN_NOTES", 0.0)
    path = tmp_path / "kept"
    options = {"method": "bab", "checkpoint": path, "time_limit": 600}
    hurried = local_lipschitz(model, centre, 0.5, progress=progress, is_interruptible=True, **options)
    assert (hurried.per_output >= constants * (1 - 1e-12)).all()
    monkeypatch.setattr(exact, "deepest", solve)
    monkeypatch.setattr(exact.Patterns, "refine", clock)
    ended = local_lipschitz(model, centre, 0.5, **options)
    assert hurried.upper > ended.upper == pytest.approx(float(constants.max()), rel=1e-9)

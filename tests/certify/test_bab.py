import pytest
import torch
from torch import nn

from certify.certify_cases import mlp
from lilliput.certify import local_lipschitz


@pytest.mark.parametrize(("widths", "seed"), [((4, 12, 3), 0), ((3, 8, 6, 2), 1), ((4, 6, 5, 3), 2)])
def test_branch_and_bound_ends_at_the_exact_constant(widths, seed):
    model, centre = mlp(*widths, seed=seed, gain=1.5), torch.zeros(widths[0], dtype=torch.float64)
    exact, bab = (local_lipschitz(model, centre, 0.5, method=method) for method in ("exact", "bab"))
    assert bab.status == "exact"
    assert bab.upper == pytest.approx(exact.upper, rel=1e-9)
    assert bab.lower == pytest.approx(exact.upper, rel=1e-9)
    assert (exact.per_output <= bab.per_output * (1 + 1e-9)).all()


@pytest.mark.parametrize("act", [nn.ReLU, nn.Hardtanh, nn.Tanh, nn.GELU])
@pytest.mark.parametrize("norm", ["inf", "2"])
def test_it_is_anytime_and_sound(act, norm):
    model, centre = mlp(4, 24, 24, 3, act=act, gain=2.0), torch.zeros(4, dtype=torch.float64)
    crown = local_lipschitz(model, centre, 0.5, norm)
    hurried, longer = (local_lipschitz(model, centre, 0.5, norm, method="bab", time_limit=t) for t in (0, 3))
    assert (hurried.per_output <= crown.per_output).all()
    assert longer.upper < crown.upper
    uppers = [step[1] for step in longer.trace]
    assert uppers == sorted(uppers, reverse=True)
    assert all(step[1] >= step[2] for step in longer.trace)
    steps = torch.randn(3000, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    points = 0.5 * steps / torch.linalg.vector_norm(steps, ord=float(norm), dim=1, keepdim=True)
    sizes = torch.linalg.vector_norm(
        torch.func.vmap(torch.func.jacrev(model))(points), ord={"inf": 1, "2": 2}[norm], dim=-1
    )
    assert (sizes <= longer.per_output * (1 + 1e-9)).all()

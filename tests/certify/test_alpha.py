import pytest
import torch

from certify.certify_cases import CASES, mlp
from lilliput.certify import local_lipschitz


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

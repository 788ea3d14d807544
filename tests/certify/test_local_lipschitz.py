import math

import pytest
import torch
from torch import nn

from certify.certify_cases import CASES, Fn, mlp
from lilliput.certify import METHODS, Region, bound_jacobian, local_lipschitz, lower, preactivations
from lilliput.errors import ConfigError, DataError, GraphError, UnsupportedOpError
from lilliput.graph import trace


@pytest.mark.parametrize("method", ["ibp", "recurjac", "crown", "product"])
@pytest.mark.parametrize(("norm", "dual"), [("inf", 1.0), ("1", math.inf), ("2", 2.0)])
def test_a_linear_network_is_exact_in_every_norm(norm, dual, method):
    torch.manual_seed(0)
    model = nn.Linear(7, 4).double()
    result = local_lipschitz(model, torch.randn(7, dtype=torch.float64), 0.3, norm, method=method)
    expected = torch.linalg.vector_norm(model.weight.detach(), ord=dual, dim=1)
    torch.testing.assert_close(result.per_output, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(result.per_output_lower, expected, rtol=1e-12, atol=0)
    assert result.status == "exact"
    assert result.upper == pytest.approx(float(expected.max()), rel=1e-12)


def test_a_relu_of_one_number_worked_by_hand():
    # f(x) = 3 relu(x) - relu(-2 x + 1): slopes 2, 5 and 3, of which [-0.2, 0.3] meets 2 and 5. The gate of -2x + 1 is on throughout.
    model = nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 1)).double().eval()
    model[0].weight.data = torch.tensor([[1.0], [-2.0]]).double()
    model[0].bias.data = torch.tensor([0.0, 1.0]).double()
    model[2].weight.data = torch.tensor([[3.0, -1.0]]).double()
    result = local_lipschitz(model, torch.tensor([0.05]).double(), 0.25)
    assert result.upper == pytest.approx(5.0, rel=1e-12)
    assert result.lower == pytest.approx(5.0, rel=1e-12)
    low, high = result.jacobian_bounds()
    assert (low.item(), high.item()) == (pytest.approx(2.0), pytest.approx(5.0))
    assert result.witness.item() > 0


@pytest.mark.parametrize("norm", ["inf", "1", "2"])
def test_the_witness_lies_in_the_region_and_has_the_lower_bounds_gradient(norm):
    model = mlp(6, 16, 16, 3, gain=1.5)
    centre = torch.randn(6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    result = local_lipschitz(model, centre, 0.4, norm)
    assert float(torch.linalg.vector_norm(result.witness - centre, ord=float(norm))) <= 0.4 + 1e-12
    gradients = torch.func.jacrev(model)(result.witness)
    sizes = torch.linalg.vector_norm(gradients, ord={"inf": 1.0, "1": math.inf, "2": 2.0}[norm], dim=1)
    assert sizes.max().item() == pytest.approx(result.lower, rel=1e-9)
    assert 0 < result.lower <= result.upper
    assert result.gap == result.upper - result.lower


def test_a_batch_of_centres_is_the_same_as_one_by_one():
    model = mlp(64, 32, 32, 10)
    centres = torch.rand(32, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    graph = trace(model, centres[:1])
    batch = local_lipschitz(graph, centres, 0.03)
    singles = [local_lipschitz(graph, centre, 0.03) for centre in centres]
    torch.testing.assert_close(batch.per_output, torch.stack([r.per_output for r in singles]), rtol=1e-10, atol=0)
    for mine, theirs in zip(
        batch.jacobian_bounds(), zip(*(r.jacobian_bounds() for r in singles), strict=True), strict=True
    ):
        torch.testing.assert_close(mine, torch.stack(theirs), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("case", [CASES[11], CASES[16], CASES[21], CASES[26]], ids=lambda case: case.name)
def test_a_batch_is_the_same_as_one_by_one_for_other_operators(case):
    centres = case.centre(3)
    batch = local_lipschitz(case.model(), centres, case.eps)
    singles = [local_lipschitz(case.model(), centre, case.eps) for centre in centres]
    torch.testing.assert_close(batch.per_output, torch.stack([r.per_output for r in singles]), rtol=1e-10, atol=0)


@pytest.mark.parametrize("method", ["product", "ibp", "recurjac", "crown", "alpha"])
def test_a_row_does_not_depend_on_the_other_rows_or_on_earlier_calls(method):
    model, centre = mlp(6, 16, 16, 4, gain=1.5), torch.zeros(6, dtype=torch.float64)
    all_rows = local_lipschitz(model, centre, 0.3, method=method).per_output
    assert len(all_rows.unique()) == 4
    eye = torch.eye(4, dtype=torch.float64)
    for order in ([3, 1], [2], [0, 2, 3, 1]):
        some = local_lipschitz(model, centre, 0.3, outputs=eye[order], method=method).per_output
        torch.testing.assert_close(some, all_rows[order], rtol=1e-12, atol=0)


def test_margins_are_differences_of_outputs():
    model = mlp(6, 16, 4)
    centres = torch.randn(2, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    margins = local_lipschitz(model, centres, 0.1, outputs="margins", y=torch.tensor([1, 3]))
    eye = torch.eye(4, dtype=torch.float64)
    first = local_lipschitz(model, centres[0], 0.1, outputs=eye[1] - eye[[0, 2, 3]])
    second = local_lipschitz(model, centres[1], 0.1, outputs=eye[3] - eye[[0, 1, 2]])
    torch.testing.assert_close(
        margins.per_output, torch.stack([first.per_output, second.per_output]), rtol=1e-10, atol=0
    )


def test_a_dead_unit_and_a_kink_at_the_centre_do_no_harm():
    model = mlp(4, 6, 2)
    model[0].weight.data[0] = 0
    model[0].bias.data[:] = 0  # the centre 0 is a kink of every gate
    result = local_lipschitz(model, torch.zeros(4, dtype=torch.float64), 0.1)
    assert 0 < result.lower <= result.upper
    assert math.isfinite(result.upper)


def test_float32_differs_by_rounding_only():
    model, centre = mlp(16, 32, 32, 10).float(), torch.zeros(16)
    double, single = (local_lipschitz(model, centre, 0.1, dtype=dtype) for dtype in ("float64", "float32"))
    assert single.per_output.dtype == torch.float32
    assert single.upper == pytest.approx(double.upper, rel=1e-4)


def test_memory_is_bounded_by_taking_rows_in_chunks(monkeypatch):
    case = CASES[16]
    whole = local_lipschitz(case.model(), case.centre(2), case.eps).per_output
    monkeypatch.setattr("lilliput.certify.preactivation.MEMORY_BUDGET_BYTES", 1)
    torch.testing.assert_close(
        local_lipschitz(case.model(), case.centre(2), case.eps).per_output, whole, rtol=1e-12, atol=0
    )


def test_fixing_gates_tightens_and_the_two_halves_cover_the_whole():
    model, centre = mlp(4, 12, 3, gain=1.5), torch.zeros(1, 4, dtype=torch.float64)
    network, region = lower(trace(model, centre)), Region.ball(torch.zeros(2, 4, dtype=torch.float64), 0.5, "inf")
    rows = torch.eye(3, dtype=torch.float64).expand(2, 3, 3)
    root = preactivations(network, region)
    parent = bound_jacobian(network, root.slopes(network), rows, "inf")
    score = parent.area(root.slopes(network))[0][0].sum(0)
    unit = int(score.argmax())
    assert root.lower[0][0, unit] < 0 < root.upper[0][0, unit]
    lower_bounds, upper_bounds = root.lower[0].clone(), root.upper[0].clone()
    lower_bounds[0, unit], upper_bounds[1, unit] = 1e-9, -1e-9
    split = type(root)((lower_bounds,), (upper_bounds,))
    children = bound_jacobian(network, split.slopes(network), rows, "inf", within=parent)
    assert (children.norm <= parent.norm + 1e-12).all()
    assert (children.norm.sum() < parent.norm.sum()).item()
    points = region.draw(500, torch.Generator().manual_seed(0))[:, 0]
    gradients = torch.func.vmap(torch.func.jacrev(model))(points).abs().sum(-1)
    assert (gradients.amax(0) <= children.norm.amax(0) + 1e-9).all()


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"eps": -0.1}, ConfigError, "eps=-0.1.*0 or more"),
        ({"eps": math.nan}, ConfigError, "eps=nan"),
        ({"norm": "fro"}, ConfigError, "norm='fro'.*'inf', '1', '2'"),
        ({"method": "magic"}, ConfigError, "method='magic'.*'product'.*'crown'"),
        ({"dtype": "float16"}, ConfigError, "dtype='float16'"),
        ({"outputs": "columns"}, ConfigError, "outputs='columns'"),
        ({"outputs": "margins"}, ConfigError, "needs y"),
        ({"outputs": "margins", "y": 3}, DataError, "y has 1 classes from 3 to 3.*0 to 2"),
        ({"outputs": torch.ones(2, 5)}, DataError, r"outputs has shape \[2, 5\].*3 outputs"),
        ({"clip": (1, 0)}, ConfigError, r"clip=\(1, 0\)"),
        ({"clip": (0.1, 1)}, DataError, "outside clip"),
        ({"x0": torch.zeros(5)}, GraphError, "cannot be made a static graph"),
        ({"x0": torch.full((4,), math.nan)}, DataError, "x0 holds NaN"),
        ({"x0": torch.zeros(0, 4)}, DataError, r"x0 has shape \[0, 4\]"),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, dict) else "",
)
def test_bad_input_is_refused_with_the_fix(changes, error, words):
    arguments = {"model": mlp(4, 6, 3), "x0": torch.zeros(4), "eps": 0.1} | changes
    with pytest.raises(error, match=words):
        local_lipschitz(**arguments)


def test_nan_weights_never_give_a_certificate():
    model = mlp(4, 6, 3)
    model[0].weight.data[2, 1] = math.nan
    with pytest.raises(DataError, match=r"weight '0\.weight' holds NaN"):
        local_lipschitz(model, torch.zeros(4), 0.1)


@pytest.mark.parametrize("method", list(METHODS))
def test_an_overflowing_bound_is_an_error_not_a_figure(method):
    model = mlp(4, 6, 3)
    model[0].weight.data *= 1e200
    model[2].weight.data *= 1e200
    with pytest.raises(DataError, match="overflows"):
        local_lipschitz(model, torch.zeros(4), 0.1, method=method)


def test_training_mode_is_refused():
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 2)).train()
    with pytest.raises(GraphError, match=r"model\.eval\(\)"):
        local_lipschitz(model, torch.zeros(4), 0.1)


def test_an_operator_without_a_rule_is_named_with_its_module():
    model = nn.Sequential(nn.Linear(4, 6), nn.Sequential(nn.Softmax(-1))).eval()
    with pytest.raises(UnsupportedOpError, match=r"no rule for 'softmax' \(module '1\.0'"):
        local_lipschitz(model, torch.zeros(4), 0.1)
    with pytest.raises(UnsupportedOpError, match="of two activations"):
        local_lipschitz(Fn(lambda x: x * x.relu()).eval(), torch.zeros(4), 0.1)

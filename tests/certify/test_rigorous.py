"""The claim: bounds hold in real arithmetic. The other side of each comparison is computed in fractions, without any rounding."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import nn

from certify.certify_cases import CASES, mlp
from lilliput.certify import METHODS, Problem, Region, certified_radius, local_lipschitz, lower, preactivations
from lilliput.errors import ConfigError, DataError
from lilliput.graph import trace

COUNTED = ["product", "ibp", "recurjac", "crown", "alpha"]
PIECEWISE = "relu leaky_relu_negative prelu relu6 hard_tanh hard_sigmoid conv_strided conv_dilated_grouped conv_1d batch_norm residual"
PIECEWISE += " avg_pool mean max_pool arithmetic pad_upsample matmul_dropout"
exact = np.vectorize(Fraction, otypes=[object])


def to_fractions(tensor):
    return exact(tensor.detach().double().numpy())


def root(x: Fraction) -> Fraction:
    """Square root, to 2^-200."""
    return Fraction(math.isqrt(x.numerator * x.denominator << 400), x.denominator << 200)


def layers(model, shape):
    """Each module as an exact matrix and bias, or as a function from values to (values, slopes)."""
    x = torch.zeros(1, *shape, dtype=torch.float64)
    for module in model:
        if isinstance(module, (nn.ReLU, nn.LeakyReLU, nn.Hardtanh)):
            yield pieces(module)
        elif isinstance(module, nn.BatchNorm2d):
            each = [to_fractions(t) for t in (module.weight, module.bias, module.running_mean, module.running_var)]
            factor = each[0] / np.vectorize(root, otypes=[object])(each[3] + Fraction(module.eps))
            places = x[0, 0].numel()
            yield np.diag(np.repeat(factor, places)), np.repeat(each[1] - each[2] * factor, places)
        else:
            unit = torch.eye(x.numel(), dtype=x.dtype).reshape(-1, *x.shape[1:])
            bias = module(x)
            # A weight times one, plus zeros, is the weight itself; the bias comes apart.
            bare = type(module)(**options(module)).double() if hasattr(module, "weight") else module
            if hasattr(module, "weight"):
                bare.weight.data = module.weight.detach().double()
            yield to_fractions(bare(unit).flatten(1).T), to_fractions(bias.flatten())
        x = torch.zeros_like(module(x))


def options(module):
    if isinstance(module, nn.Linear):
        return {"in_features": module.in_features, "out_features": module.out_features, "bias": False}
    names = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups")
    return {name: getattr(module, name) for name in names} | {"bias": False}


def pieces(module):
    def function(z):
        if isinstance(module, nn.Hardtanh):
            low, high = Fraction(module.min_val), Fraction(module.max_val)
            return [min(max(v, low), high) for v in z], [Fraction(low < v < high) for v in z]
        slope = Fraction(module.negative_slope) if isinstance(module, nn.LeakyReLU) else Fraction(0)
        return [v if v > 0 else slope * v for v in z], [Fraction(1) if v > 0 else slope for v in z]

    return function


def gradient_norms(parts, x, order):
    """Dual norms of the outputs' gradients at a point, exact; and what enters each gate."""
    value, jacobian, before = to_fractions(x.flatten()), None, []
    for part in parts:
        if callable(part):
            before.append(value)
            value, slopes = (np.array(each, dtype=object) for each in part(value))
            jacobian = slopes[:, None] * jacobian
        else:
            matrix, bias = part
            value, jacobian = matrix @ value + bias, matrix if jacobian is None else matrix @ jacobian
    if order == "inf":
        return np.abs(jacobian).sum(1), before
    if order == "1":
        return np.abs(jacobian).max(1), before
    return np.array([root(square) for square in (jacobian**2).sum(1)]), before


def answer(graph, x0, eps, norm="inf", method="crown", *, rigorous, dtype="float64"):
    """Without the search for lower bounds, which takes most of the time."""
    network = lower(graph, getattr(torch, dtype), rigorous=rigorous)
    region = Region.ball(x0.reshape(1, -1).to(network.dtype), eps, norm, rigorous=rigorous)
    rows = torch.eye(network.outputs, dtype=network.dtype)[None]
    with torch.no_grad():
        return METHODS[method](Problem(network, region, rows, alpha_steps=2))


def convolutions():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 3, 3, 2, 1), nn.BatchNorm2d(3), nn.LeakyReLU(0.1), nn.Conv2d(3, 4, 2), nn.Hardtanh(-0.3, 0.7),
                          nn.Flatten(), nn.Linear(16, 3)).eval()  # fmt: skip
    for name in ("running_mean", "running_var", "weight", "bias"):
        getattr(model[1], name).data.uniform_(0.3, 2)
    return model, (2, 5, 5)


def perceptron():
    return mlp(6, 10, 8, 3, seed=1, gain=1.5).float(), (6,)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize(
    ("subject", "norm"), [(perceptron, "inf"), (perceptron, "2"), (perceptron, "1"), (convolutions, "inf")]
)
def test_no_point_exceeds_the_bound_in_exact_arithmetic(subject, norm, dtype):
    model, shape = subject()
    x0 = torch.randn(shape, generator=torch.Generator().manual_seed(2))
    parts, graph = list(layers(model.double(), shape)), trace(model, x0[None].double())
    for eps in (0.0, 0.1):
        found = {m: answer(graph, x0, eps, norm, m, rigorous=True, dtype=dtype).norm[0] for m in COUNTED}
        steps = (
            torch.rand((1 if eps else 0, *shape), dtype=torch.float64, generator=torch.Generator().manual_seed(3)) * 2
            - 1
        )
        steps /= torch.linalg.vector_norm(steps.flatten(1), ord=float(norm), dim=1).reshape(-1, *[1] * len(shape))
        witness = local_lipschitz(graph, x0, eps, norm, rigorous=True, dtype=dtype).witness
        points = [witness, *(x0 + eps * (1 - 1e-12) * steps)]
        network = lower(graph, getattr(torch, dtype), rigorous=True)
        region = Region.ball(x0.to(network.dtype).reshape(1, -1), eps, norm, rigorous=True)
        masks = preactivations(network, region)
        for point in points:
            sizes, before = gradient_norms(parts, point, norm)
            for method, each in found.items():
                assert (sizes <= to_fractions(each)).all(), method
            for z, least, most in zip(before, masks.lower, masks.upper, strict=True):
                assert (to_fractions(least[0]) <= z).all()
                assert (z <= to_fractions(most[0])).all()


def test_where_floats_lose_a_term_of_the_norm():
    # 1 + 2^-54 is 1 in float64, in whatever order.
    model = nn.Linear(2, 1).double()
    model.weight.data[:] = torch.tensor([1.0, 2.0**-54])
    for method in COUNTED:
        plain, counted = (
            local_lipschitz(model, torch.zeros(2), 0.1, method=method, rigorous=r).upper for r in (False, True)
        )
        assert Fraction(plain) < 1 + Fraction(1, 2**54) <= Fraction(counted)
        assert counted < 1 + 1e-12


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_where_floats_take_an_open_gate_for_a_shut_one(dtype):
    # z = (x1 + u x2) - (3/4) u x3 - 1 with u = 2^-53 (2^-24): u / 4 at (1, 1, 1). In floats the first sum is 1 and z is -u.
    u = torch.finfo(getattr(torch, dtype)).eps / 2
    model = nn.Sequential(nn.Linear(3, 2, bias=False), nn.Linear(2, 1), nn.ReLU(), nn.Linear(1, 1)).to(
        getattr(torch, dtype)
    )
    model[0].weight.data[:] = torch.tensor([[1.0, u, 0.0], [0.0, 0.0, 0.75 * u]])
    model[1].weight.data[:], model[1].bias.data[:] = torch.tensor([1.0, -1.0]), -1.0
    model[3].weight.data[:] = 1.0
    x0 = torch.ones(3, dtype=model[0].weight.dtype)
    (size,), _ = gradient_norms(list(layers(model.double(), (3,))), x0, "inf")
    assert size > 1
    for method in ("ibp", "recurjac", "crown", "alpha"):
        plain, counted = (
            local_lipschitz(model, x0, 0.0, method=method, dtype=dtype, rigorous=r).upper for r in (False, True)
        )
        assert plain == 0.0
        assert size <= Fraction(counted)


def test_float32_alone_falls_short_of_exact_norms_and_counted_never():
    short = 0
    for seed in range(10):
        model, x0 = mlp(12, 20, 3, seed=seed).float(), torch.randn(12, generator=torch.Generator().manual_seed(seed))
        sizes, _ = gradient_norms(list(layers(model.double(), (12,))), x0, "inf")
        graph = trace(model, x0[None].double())
        plain, counted = (answer(graph, x0, 0.0, rigorous=r, dtype="float32").norm[0] for r in (False, True))
        short += bool((to_fractions(plain) < sizes).any())
        assert (to_fractions(counted) >= sizes).all()
    assert short >= 3


@pytest.mark.parametrize("case", [case for case in CASES if case.name in PIECEWISE.split()], ids=lambda case: case.name)
def test_counting_costs_less_than_a_billionth_and_never_tightens(case):
    graph = trace(case.model(), case.centre()[None])
    for method, norm in (("product", "2"), ("ibp", "inf"), ("crown", "inf"), ("crown", "2"), ("alpha", "inf")):
        plain, counted = (answer(graph, case.centre(), case.eps, norm, method, rigorous=r) for r in (False, True))
        assert (counted.norm > plain.norm).all()
        assert (counted.norm <= plain.norm * (1 + 1e-9)).all()
    with torch.no_grad():
        (low, high), (least, most) = counted.jacobian(), plain.jacobian()
    assert (low <= least).all()
    assert (high >= most).all()


def cancelling(seed, *, gate):
    """2-13-1 with weights of about a thousand whose products cancel but for the last places; around 0 all gates that count are open."""
    generator = torch.Generator().manual_seed(seed)
    first, second = nn.Linear(2, 13).double(), nn.Linear(13, 1).double()
    W, v = (500 + 500 * torch.rand(shape, generator=generator, dtype=torch.float64) for shape in ((13, 2), (13,)))
    v[6:] *= -1
    v[12] = 0  # undecided, so that coefficients are carried at all
    for column in range(2):  # the product with each column comes out as what rounding leaves
        W[column, column] -= float((v @ W)[column] / v[column])
    bias = 20000 + 1000 * torch.rand(13, generator=generator, dtype=torch.float64)
    bias[12] = 0
    for parameter, value in ((first.weight, W), (first.bias, bias), (second.weight, v[None]), (second.bias, -v @ bias)):
        parameter.data.copy_(value)
    return nn.Sequential(first, nn.ReLU(), second) if gate else nn.Sequential(first, second)


@pytest.mark.parametrize("gate", [True, False])
def test_gradients_that_cancel_are_still_bounded(gate):
    short = 0
    for seed in range(8):
        model = cancelling(seed, gate=gate)
        (size,), _ = gradient_norms(list(layers(model, (2,))), torch.zeros(2), "inf")
        graph = trace(model, torch.zeros(1, 2, dtype=torch.float64))
        for method in ("product", "ibp", "crown"):
            plain, counted = (answer(graph, torch.zeros(2), 0.5, method=method, rigorous=r).norm for r in (False, True))
            short += Fraction(float(plain)) < size
            assert size <= Fraction(float(counted)), method
    assert short >= 3


def test_inputs_of_gates_that_cancel_are_still_bounded():
    # The second gate's input is affine on the box: its extremes are known. Intervals say nothing of it, and coefficients are all rounding.
    for seed in range(8):
        model = nn.Sequential(*cancelling(seed, gate=True), nn.ReLU())
        region = Region.ball(torch.zeros(1, 2, dtype=torch.float64), 0.5, "inf", rigorous=True)
        (W, b), _, (v, c), _ = layers(model, (2,))
        middle, reach = (v @ b + c)[0], abs(v @ W)[0].sum() / 2
        for is_counted in (True, False):
            masks = preactivations(
                lower(trace(model, torch.zeros(1, 2, dtype=torch.float64)), rigorous=is_counted), region
            )
            least, most = Fraction(float(masks.lower[1])), Fraction(float(masks.upper[1]))
            assert most - least < 1e-4
            if is_counted:
                assert least <= middle - reach
                assert middle + reach <= most


def test_a_batch_norms_bias_that_cancels_is_still_bounded():
    model = nn.Sequential(nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8, 1)).double().eval()
    generator = torch.Generator().manual_seed(0)
    norm = model[0]
    norm.running_mean[:] = 1e6 * torch.rand(8, generator=generator, dtype=torch.float64)
    norm.running_var[:] = 1 + torch.rand(8, generator=generator, dtype=torch.float64)
    norm.bias.data[:] = norm.running_mean / (norm.running_var + norm.eps).sqrt()
    x = torch.zeros(8, 1, 1)
    _, (z,) = gradient_norms(list(layers(model, (8, 1, 1))), x, "inf")
    network = lower(trace(model, x[None].double()), rigorous=True)
    masks = preactivations(network, Region.ball(x.double().reshape(1, -1), 0.0, "inf", rigorous=True))
    assert (to_fractions(masks.lower[0][0]) <= z).all()
    assert (z <= to_fractions(masks.upper[0][0])).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("clip", [None, (0.1, 0.9)])
def test_a_box_is_not_cut_short_of_its_ball(dtype, clip):
    centre = torch.rand((1, 200), generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)
    region = Region.ball(centre, 0.3, "inf", clip, rigorous=True)
    low, high = to_fractions(centre) - Fraction(0.3), to_fractions(centre) + Fraction(0.3)
    if clip is not None:
        low, high = np.maximum(low, Fraction(clip[0])), np.minimum(high, Fraction(clip[1]))
    assert (to_fractions(region.lower) <= low).all()
    assert (to_fractions(region.upper) >= high).all()
    assert (region.upper - region.lower < 0.6 + 4 * torch.finfo(dtype).eps).all()


@pytest.mark.parametrize("norm", ["inf", "2"])
def test_within_a_rigorous_radius_margins_are_positive_in_exact_arithmetic(norm):
    model, shape = perceptron()
    x0 = torch.randn((2, *shape), generator=torch.Generator().manual_seed(4))
    classes = model(x0).argmax(1)
    for dtype in ("float64", "float32"):
        plain, radii = (certified_radius(model, x0, classes, norm, dtype=dtype, rigorous=r) for r in (False, True))
        assert (radii > 0.9 * plain).all()
        parts = list(layers(model.double(), shape))
        for centre, y, radius in zip(x0.double(), classes, radii.double(), strict=True):
            for step in torch.randn((3, *shape), dtype=torch.float64, generator=torch.Generator().manual_seed(5)):
                unit = step.sign() if norm == "inf" else step / (step.norm() * (1 + 1e-12))
                value = to_fractions(centre + radius * unit)
                for part in parts:
                    value = np.array(part(value)[0], dtype=object) if callable(part) else part[0] @ value + part[1]
                assert all(value[int(y)] > other for index, other in enumerate(value) if index != int(y))


def test_a_tie_in_exact_arithmetic_has_no_radius():
    # The logits differ by 2^-54, which floats lose: class 1 is ahead, and 0 must not be certified.
    model = nn.Linear(2, 2, bias=False).double()
    model.weight.data[:] = torch.tensor([[1.0, 0.0], [1.0, 2.0**-54]])
    assert certified_radius(model, torch.ones(2), 0, rigorous=True) == 0


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"model": mlp(4, 6, 3, act=nn.Tanh)}, ConfigError, "piecewise linear gates, and 'tanh_0' is smooth"),
        ({"method": "exact"}, ConfigError, "linear programs.*use one of 'product'"),
        ({"dtype": "float32", "x0": torch.full((4,), 0.1, dtype=torch.float64)}, DataError, "changes when rounded"),
    ],
)
def test_what_cannot_be_counted_is_refused(changes, error, words):
    arguments = {"model": mlp(4, 6, 3), "x0": torch.zeros(4), "eps": 0.1, "rigorous": True} | changes
    with pytest.raises(error, match=words):
        local_lipschitz(**arguments)


def test_settings_that_change_torchs_arithmetic_are_refused():
    arguments = {"model": mlp(4, 6, 3), "x0": torch.zeros(4), "eps": 0.1, "rigorous": True}
    if torch.set_flush_denormal(True):
        try:
            with pytest.raises(ConfigError, match="set_flush_denormal"):
                local_lipschitz(**arguments)
        finally:
            torch.set_flush_denormal(False)
    with torch.autocast("cpu"), pytest.raises(ConfigError, match="autocast"):
        local_lipschitz(**arguments)


def test_every_method_either_counts_or_says_why_not():
    for method in set(METHODS) - set(COUNTED):
        with pytest.raises(ConfigError, match=f"method='{method}'"):
            local_lipschitz(mlp(4, 6, 3), torch.zeros(4), 0.1, method=method, rigorous=True)

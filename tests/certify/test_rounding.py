"""The parts that rigour is made of, each against fractions."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lilliput.certify.rounding import below, down, gamma, least_of, length, spectral_norm, tiny, up
from lilliput.errors import ConfigError

exact = np.vectorize(Fraction, otypes=[object])


def numbers(dtype, seed, *shape):
    """Of all sizes, so that sums lose terms; some of them 0 and some below the normal ones."""
    generator = torch.Generator().manual_seed(seed)
    sizes = 2.0 ** torch.randint(-30, 30, shape, generator=generator)
    values = (torch.randn(shape, generator=generator, dtype=torch.float64) * sizes).to(dtype)
    values[..., ::7] = 0
    values[..., 3::11] *= tiny(dtype)
    return values


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@given(seed=st.integers(0, 10**6), n=st.integers(1, 200))
def test_gamma_holds_for_computed_scalar_products(dtype, seed, n):
    a, b = numbers(dtype, seed, n), numbers(dtype, seed + 1, n)
    off = abs(Fraction(float(a @ b)) - exact(a.numpy()) @ exact(b.numpy()))
    assert off <= Fraction(gamma(n, dtype)) * (abs(exact(a.numpy())) @ abs(exact(b.numpy()))) + n * Fraction(
        tiny(dtype)
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@given(seed=st.integers(0, 10**6))
def test_up_and_down_are_beyond_the_next_numbers(dtype, seed):
    x = numbers(dtype, seed, 50)
    x = x[x.abs() >= tiny(dtype)]
    assert (up(x) >= torch.nextafter(x, torch.full_like(x, torch.inf))).all()
    assert (down(x) <= torch.nextafter(x, torch.full_like(x, -torch.inf))).all()
    assert up(torch.zeros(1)) == down(torch.zeros(1)) == 0


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_below_is_the_next_float32_at_most(x):
    wide = torch.tensor([x], dtype=torch.float64)
    cast = below(wide, torch.float32)
    assert cast.double() <= wide
    assert torch.nextafter(cast, torch.full_like(cast, torch.inf)).double() > wide


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@given(seed=st.integers(0, 10**6), n=st.integers(1, 60))
def test_length_is_no_less_than_the_norm(dtype, seed, n):
    values = numbers(dtype, seed, n).abs()
    fractions = exact(values.numpy())
    assert Fraction(float(length(values, "1"))) >= fractions.sum()
    assert Fraction(float(length(values, "2"))) ** 2 >= (fractions**2).sum()
    assert Fraction(float(length(values, "inf"))) == fractions.max()


@given(seed=st.integers(0, 10**6), n=st.integers(1, 40))
def test_the_least_scalar_product_is_no_more_than_any(seed, n):
    row, a, b = (numbers(torch.float64, seed + i, n) for i in range(3))
    least = least_of(row[None, None], (torch.minimum(a, b)[None], torch.maximum(a, b)[None]))
    ends = exact(row.numpy()) * exact(torch.stack([a, b]).numpy())
    assert Fraction(float(least)) <= ends.min(0).sum()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (3, 40), (40, 3), (30, 30)])
def test_a_spectral_norm_is_above_that_of_a_known_matrix(dtype, rows, columns):
    # a b^T has the norm |a| |b|; numbers of 8 bits make its elements exact.
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        a, b = (torch.randint(-128, 128, (size,), generator=generator) for size in (rows, columns))
        found = float(spectral_norm(torch.outer(a, b).to(dtype)))
        square = int((a * a).sum()) * int((b * b).sum())
        assert Fraction(found) ** 2 >= square
        assert found <= square**0.5 * (1 + 1e4 * torch.finfo(dtype).eps) + 1e-15


def test_sums_too_long_for_float32_are_refused():
    with pytest.raises(ConfigError, match="use dtype='float64'"):
        gamma(2_000_000, torch.float32)

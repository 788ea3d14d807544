import pytest
import torch
from scipy.optimize import linprog

from lilliput.certify.halfspace import HalfSpaces


def drawn(domains=3, planes=1, n=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    middle, radius = (torch.randn(domains, n, dtype=torch.float64, generator=generator) for _ in range(2))
    H = torch.randn(domains, planes, n, dtype=torch.float64, generator=generator)
    h = torch.randn(domains, planes, dtype=torch.float64, generator=generator)
    A = torch.randn(2, domains, 4, n, dtype=torch.float64, generator=generator)
    return A, middle, radius.abs(), H, h


def best(a, middle, radius, H, h):
    box = list(zip((middle - radius).tolist(), (middle + radius).tolist(), strict=True))
    return linprog(-a.numpy(), -H.numpy(), h.numpy(), bounds=box, method="highs")


@pytest.mark.parametrize("seed", range(6))
def test_with_one_half_space_the_bound_is_the_linear_programs_optimum(seed):
    A, middle, radius, H, h = drawn(seed=seed)
    H[0, 0, 2] = radius[1, 3] = A[0, 2, 1, 0] = 0  # coefficients and radii that are nothing
    cuts = HalfSpaces(H, h)
    most, misses = cuts.most(A, middle, radius), cuts.misses(middle, radius)
    for domain in range(3):
        found = best(A[0, domain, 0], middle[domain], radius[domain], H[domain], h[domain])
        assert (found.status == 2) == bool(misses[domain])
        for side in range(2):
            for row in range(4):
                found = best(A[side, domain, row], middle[domain], radius[domain], H[domain], h[domain])
                if found.status == 0:
                    assert float(most[side, domain, row]) == pytest.approx(-found.fun, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("seed", range(4))
def test_with_several_it_lies_between_the_optimum_and_the_boxs_bound(seed):
    A, middle, radius, H, _ = drawn(domains=6, planes=4, seed=seed)
    h = 0.2 - (H * middle[:, None]).sum(-1)  # the middle is in all of them
    most = HalfSpaces(H, h).most(A, middle, radius)
    of_box = (A * middle[:, None]).sum(-1) + (A.abs() * radius[:, None]).sum(-1)
    assert (most <= of_box + 1e-9).all()
    tightened = 0
    for domain in range(6):
        for row in range(4):
            found = best(A[1, domain, row], middle[domain], radius[domain], H[domain], h[domain])
            assert float(most[1, domain, row]) >= -found.fun - 1e-9
            tightened += bool(most[1, domain, row] < of_box[1, domain, row] - 1e-6)
    assert tightened > 12


def test_rows_of_zeros_change_nothing():
    A, middle, radius, _, _ = drawn()
    none = HalfSpaces.none(3, 2, middle)
    of_box = (A * middle[:, None]).sum(-1) + (A.abs() * radius[:, None]).sum(-1)
    torch.testing.assert_close(none.most(A, middle, radius), of_box, rtol=1e-12, atol=1e-12)
    assert not none.misses(middle, radius).any()

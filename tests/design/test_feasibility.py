import numpy as np
import pytest

from design.test_solve import CHIP, SERVER, TINY
from lilliput.design import chip_cost, score
from lilliput.design.evaluate import Problem, evaluate, excesses
from lilliput.design.feasibility import least_growth


def problem(space, macs, params, rho, sram=np.inf) -> Problem:
    return Problem(
        space, (macs, params, np.inf, sram), rho, (1.0,) * (len(space.stage_ends) - 1) + (8.0,), "paper", 10.0
    )


@pytest.mark.parametrize(
    ("macs", "params", "rho", "sram"),
    [(5e4, 1e9, 0.9, np.inf), (1e9, 600, 0.9, np.inf), (1e9, 1e9, 0.05, np.inf), (1e6, 1e5, 0.9, 1_500)],
)
def test_no_network_of_a_tiny_space_needs_less_growth_than_the_relaxation_says(macs, params, rho, sram):
    asked = problem(TINY, macs, params, rho, sram)
    nearest = least_growth(asked)
    rng = np.random.default_rng(0)
    m, count = TINY.depth, 20_000
    kernels = rng.choice([3, 5], (count, m))
    layers = np.stack([rng.integers(1, 3, count), rng.integers(1, 4, count)], axis=1)
    members = TINY.rounded(
        np.concatenate([rng.uniform(4, 20, (count, 1)), rng.uniform(4, 44, (count, 2 * m)), kernels, layers], axis=1)
    )
    found = evaluate(asked, members)
    least = excesses(asked, found).min()
    assert nearest.value > 0
    assert nearest.least <= least + 1e-6
    assert nearest.least >= 0.4 * least - 0.05  # and not far below: the steps of 8 channels are coarse here


def test_what_binds_is_named():
    assert least_growth(problem(SERVER, 1e6, 1.2e7, 0.3)).binding[0] == "macs"
    assert "params" in least_growth(problem(SERVER, 1.8e9, 2e3, 0.3)).binding
    assert least_growth(problem(SERVER, 1e9, 1e6, 0.03)).binding[-1] == "rho"
    assert "sram_bytes" in least_growth(problem(CHIP, 4e6, 1e6, 0.6, 5_000)).binding


def test_a_point_that_is_said_to_fit_does():
    nearest = least_growth(problem(SERVER, 1.8e9, 1.2e7, 0.3, 1.2e6))
    assert nearest.value < 0
    m = SERVER.depth
    kernels = np.array(nearest.kernels, dtype=float)
    row = np.concatenate([np.exp(nearest.x[: 1 + 2 * m]), kernels, np.exp(nearest.x[1 + 2 * m :])])
    structure = SERVER.structure(SERVER.rounded(row[None])[0])
    result = score(structure, 224)
    # rounding to steps of 8 channels moves needs by some per cent
    assert result.macs <= 1.1 * 1.8e9
    assert result.params <= 1.1 * 1.2e7
    assert result.rho <= 1.1 * 0.3
    assert chip_cost(structure, 224, 1000).sram_bytes <= 1.1 * 1.2e6

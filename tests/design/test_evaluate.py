"""The vectorised evaluator against what scores and counts one structure at a time."""

import numpy as np
import pytest

from design.test_count import SPACES
from lilliput.design import Patches, SearchSpace, chip_cost, depth_penalty, exact_cost, score
from lilliput.design.evaluate import Problem, evaluate, is_feasible, merit

STRIDES = (2, 2, 1, 2, 2)


def random_members(space: SearchSpace, count: int, seed: int) -> np.ndarray:
    rng, m = np.random.default_rng(seed), space.depth
    kernels = np.stack([rng.choice(allowed, count) for allowed in space.allowed_kernels], axis=1)
    numbers = [
        rng.uniform(8, 40, (count, 1)),
        rng.uniform(8, 200, (count, 2 * m)),
        kernels,
        rng.uniform(1, 5, (count, m)),
    ]
    members = space.rounded(np.concatenate(numbers, axis=1))
    assert space.contains(members).all()
    return members


@pytest.mark.parametrize("patches", [None, Patches(grid=2, blocks=2), Patches(grid=3, blocks=3)], ids=str)
@pytest.mark.parametrize("counter", ["exact", "reference"])
@pytest.mark.parametrize("name", SPACES)
def test_each_row_has_the_objective_and_costs_of_its_structure(name, counter, patches):
    base = SPACES[name](96, STRIDES)
    space = SearchSpace(**{**vars(base), "counter": counter})
    members = random_members(space, 40, seed=3)
    penalty = ("paper", "reference", "all")[len(name) % 3]
    resources = (1e12, 1e12, 1e12, 1e12)
    problem = Problem(space, resources, 1.0, (1.0, 2.0, 3.0, 4.0), penalty, 10.0, patches)
    found = evaluate(problem, members)
    for row, objective, needs in zip(members, found.objective, found.needs, strict=True):
        structure = space.structure(row)
        expected = score(structure, 96, (1, 2, 3, 4))
        chip = chip_cost(structure, 96, space.num_classes, patches)
        assert objective == pytest.approx(expected.entropy - 10 * depth_penalty(structure, penalty), rel=1e-12)
        if counter == "reference" and patches is None:
            assert tuple(needs[:2]) == (expected.macs, expected.params)
        if counter == "exact":
            exact = exact_cost(structure, 96, space.num_classes)
            assert tuple(needs[:2]) == (chip.macs, exact.params)
        assert tuple(needs[2:4]) == (chip.flash_bytes, chip.sram_bytes)
        assert needs[4:] == pytest.approx([stage.rho for stage in expected.stages], rel=1e-12)


def test_merit_orders_members_that_keep_to_budgets_before_those_that_do_not_and_these_before_strangers():
    space = SPACES["inverted"](96, STRIDES)
    members = random_members(space, 200, seed=1)
    chip = [chip_cost(space.structure(row), 96, space.num_classes) for row in members]
    limits = tuple(
        float(np.median([getattr(cost, n) for cost in chip])) for n in ("macs", "params", "flash_bytes", "sram_bytes")
    )
    problem = Problem(space, limits, 5.0, (1.0, 1.0, 1.0, 8.0), "paper", 10.0)
    stranger = members[0].copy()
    stranger[0] = 7  # no multiple of the step
    merits = merit(problem, np.concatenate([members, stranger[None]]))
    for row, cost, value in zip(members, chip, merits, strict=False):
        costs = (cost.macs, cost.params, cost.flash_bytes, cost.sram_bytes)
        keeps = all(need <= limit for need, limit in zip(costs, limits, strict=True))
        keeps &= score(space.structure(row), 96).rho <= 5.0
        assert is_feasible(float(value)) == keeps
    assert 20 < sum(is_feasible(float(value)) for value in merits) < 180
    assert merits[-1] == -np.inf

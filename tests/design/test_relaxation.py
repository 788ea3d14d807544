import numpy as np
import pytest

from design.test_count import SPACES
from lilliput.design import Patches
from lilliput.design.evaluate import Problem, evaluate
from lilliput.design.relaxation import Program

STRIDES = (2, 2, 1, 2, 2)
LIMITS = (2e7, 1e6, 1e6, 1e5)


@pytest.mark.parametrize("is_convex", [False, True])
@pytest.mark.parametrize("patches", [None, Patches(grid=2, blocks=3)], ids=str)
@pytest.mark.parametrize("name", SPACES)
def test_gradients_agree_with_differences(name, patches, is_convex):
    space = SPACES[name](96, STRIDES)
    rng = np.random.default_rng(len(name))
    for penalty in ("paper", "reference", "all"):
        problem = Problem(space, LIMITS, 0.4, (1.0, 1.0, 1.0, 8.0), penalty, 10.0, patches)
        kernels = tuple(int(rng.choice(allowed)) for allowed in space.allowed_kernels)
        start = np.log(np.concatenate([[16.0], np.linspace(20, 60, 4), np.linspace(30, 90, 4), [2.0, 1.0, 3.0, 2.0]]))
        program = Program(problem, kernels, start, is_convex=is_convex)
        x = program.start + 0.1 * rng.standard_normal(len(start))
        step = 1e-6 * np.eye(len(x))
        objective = np.array([(program.objective(x + d)[0] - program.objective(x - d)[0]) / 2e-6 for d in step])
        slacks = np.array([(program.slacks(x + d)[0] - program.slacks(x - d)[0]) / 2e-6 for d in step]).T
        assert program.objective(x)[1] == pytest.approx(objective, rel=1e-5, abs=1e-3)
        assert program.slacks(x)[1] == pytest.approx(slacks, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("patches", [None, Patches(grid=2, blocks=3)], ids=str)
@pytest.mark.parametrize(
    "name", [name for name in SPACES if name != "squeeze"]
)  # a quarter, there, is rounded to eights
def test_at_a_member_the_program_says_what_the_evaluator_says(name, patches):
    space = SPACES[name](96, STRIDES)
    rng, m = np.random.default_rng(5), space.depth
    for _ in range(10):
        kernels = tuple(int(rng.choice(allowed)) for allowed in space.allowed_kernels)
        numbers = [
            rng.uniform(8, 32, 1),
            np.sort(rng.uniform(8, 90, m)),
            rng.uniform(8, 200, m),
            kernels,
            rng.uniform(1, 4, m),
        ]
        member = space.rounded(np.concatenate(numbers)[None])
        problem = Problem(space, LIMITS, 0.4, (1.0, 1.0, 1.0, 8.0), "paper", 10.0, patches)
        found = evaluate(problem, member)
        x = np.log(np.delete(member[0], np.s_[1 + 2 * m : 1 + 3 * m]).astype(float))
        program = Program(problem, kernels, x)
        slacks = program.slacks(x)[0]
        assert program.objective(x)[0] == pytest.approx(found.objective[0], rel=1e-9)
        names = np.array([*program._budgets.names, *["rho"] * 4])
        budgets = slacks[: program.budget_count]
        for index, resource in enumerate(("macs", "params", "flash_bytes", "sram_bytes")):
            need = np.exp(-budgets[names == resource].min()) * LIMITS[index]
            # memory: no shortcut is assumed where two widths only happen to agree
            tolerance = 0.02 if resource == "sram_bytes" else 1e-9
            assert need == pytest.approx(found.needs[0, index], rel=tolerance), resource
        assert 0.4 * np.exp(-budgets[names == "rho"]) == pytest.approx(found.needs[0, 4:], rel=1e-9)
        assert slacks[program.budget_count :].min() >= -1e-9  # members keep to the space's own constraints


@pytest.mark.parametrize("name", ["inverted", "bottleneck"])
def test_at_held_depths_growth_is_convex_and_every_start_finds_one_value(name):
    space = SPACES[name](96, STRIDES)
    problem = Problem(space, (3e6, 5e4, 6e4, 2e4), 0.3, (1.0, 1.0, 1.0, 8.0), "paper", 10.0)
    rng, values = np.random.default_rng(0), []
    m = space.depth
    for _ in range(6):
        start = np.concatenate([rng.uniform(np.log(8), np.log(200), 1 + 2 * m), np.log([1.0, 2.0, 1.0, 1.0])])
        # which results go over their inputs is taken from the start: hold that to one choice
        start[1 + m : 1 + 2 * m] = np.maximum(start[1 + m : 1 + 2 * m], np.log(120))
        found = Program(problem, (3, 3, 3, 3), start, is_convex=True).least_growth(300, fixed_layers=True)
        if found.excess < 1e-5:
            values.append(found.value)
    assert len(values) >= 4
    assert np.ptp(values) < 0.02

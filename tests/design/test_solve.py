import subprocess
import sys
from itertools import product
from math import exp, log

import numpy as np
import pytest
import torch

from lilliput.design import SearchSpace, Structure, depth_penalty, score, solve
from lilliput.design.evaluate import Problem
from lilliput.design.relaxation import Program
from lilliput.errors import BudgetError, ConfigError
from lilliput.evidence import Budget

SERVER = SearchSpace.bottleneck(image_size=224, strides=(2, 2, 2, 2, 1, 2), kernels=(3, 5), channel_step=8)
SMALLER = SearchSpace.bottleneck(image_size=32, strides=(1, 2, 2), layers_max=12, out_max=256)
SMALL = SearchSpace.bottleneck(image_size=32, strides=(1, 2, 2, 2), layers_max=12, out_max=256)
R18, R34, R50 = (
    Budget(macs=1_820_000_000, params=11_690_000),
    Budget(macs=3_680_000_000, params=21_800_000),
    Budget(macs=4_130_000_000, params=25_550_000),
)


def violations(
    structure: Structure, image_size: int, budget: Budget, rho: float, layers_max: int, out_max: int
) -> list[str]:
    """Everything that a structure breaks, counted layer by layer and without the code under test."""
    found = []
    side, macs, params, log_widths, depth = image_size, 0, 0, 0.0, 0
    ends = []

    def conv(cin, cout, kernel, stride, relu, counts_as_layer=True):
        nonlocal macs, params, log_widths, depth
        out = (side // stride) ** 2
        macs += out * cout * (cin * kernel**2 + 2 + relu)
        params += cout * (cin * kernel**2 + 2)
        if counts_as_layer:
            log_widths += log(cin * kernel**2)
            depth += 1

    conv(3, structure.stem, 3, structure.stem_stride, 1)
    side //= structure.stem_stride
    channels = structure.stem
    for number, block in enumerate(structure.blocks):
        if block.stride == 2:
            ends.append((depth, log_widths))
        if 1.5 * block.kernel > side or block.kernel not in (3, 5):
            found.append(f"kernel {block.kernel} on {side}")
        for index in range(block.layers):
            stride = block.stride if index == 0 else 1
            conv(channels, block.bottleneck, 1, 1, 1)
            conv(block.bottleneck, block.bottleneck, block.kernel, stride, 1)
            macs += side**2 * channels if stride == 2 else 0
            side //= stride
            conv(block.bottleneck, block.out, 1, 1, 1)
            if index == 0:
                conv(channels, block.out, 1, 1, 1, counts_as_layer=False)
            elif channels != block.out:
                found.append("widths change inside a super block")
            channels = block.out
        before = structure.blocks[number - 1].out if number else structure.stem
        tenth = max(8, 8 * round(block.out / 80))
        rules = {
            "monotone": number == 0 or block.out >= before,
            "growth": block.out <= 4 * before,
            "steps": block.out % 8 == block.bottleneck % 8 == 0,
            "bottleneck": tenth <= block.bottleneck <= block.out,
            "layers": 1 <= block.layers <= (3 if number == 0 else layers_max),
            "width": block.out <= out_max,
        }
        found += [name for name, holds in rules.items() if not holds]
    ends.append((depth, log_widths))
    if structure.stem > 32 or structure.stem % 8:
        found.append("stem")
    worst = max(d / exp(total / d) for d, total in ends)
    for name, need, ceiling in (("macs", macs, budget.macs), ("params", params, budget.params), ("rho", worst, rho)):
        if ceiling is not None and need > ceiling * (1 + 1e-12):
            found.append(f"{name} {need} > {ceiling}")
    return found


# Published: 32,085 (over its budget by 1 %), 43,108 and 48,884. benchmarks/design_solver.py runs more seeds.
@pytest.mark.parametrize(("budget", "seed", "least"), [(R18, 2, 36_400), (R34, 0, 48_300), (R50, 0, 51_800)])
def test_server_budgets_are_met_with_a_gap_of_about_one_percent(budget, seed, least):
    design = solve(SERVER, budget, rho=0.3, depth_penalty="reference", seed=seed)
    assert least <= design.objective <= design.relaxation
    assert design.gap <= 0.0125  # 0.9 % or less at most seeds
    expected = score(design.structure, 224).entropy - 10 * depth_penalty(design.structure, "reference")
    assert design.objective == pytest.approx(expected, rel=1e-12)
    assert {"macs", "rho"} <= set(design.binding)
    assert violations(design.structure, 224, budget, 0.3, 64, 2048) == []


def test_random_budgets_are_never_broken():
    rng, solved, refused = np.random.default_rng(0), 0, 0
    for seed in range(80):
        budget = Budget(
            macs=int(10 ** rng.uniform(5.8, 8)) if seed % 5 else None,
            params=int(10 ** rng.uniform(3.8, 6)) if seed % 7 else None,
        )
        rho = float(rng.uniform(0.1, 1.0))
        penalty = ("paper", "reference")[seed % 2]
        try:
            design = solve(SMALLER, budget, rho=rho, depth_penalty=penalty, seed=seed, time_limit=0.05)
        except BudgetError:
            refused += 1
            continue
        solved += 1
        assert violations(design.structure, 32, budget, rho, 12, 256) == []
        assert design.objective <= design.relaxation
    assert solved >= 60, f"{solved} solved, {refused} refused"


def test_a_tiny_space_gives_what_brute_force_gives_at_one_of_two_seeds():
    space = SearchSpace.bottleneck(
        image_size=16, strides=(1, 2, 2), layers_max=3, first_layers_max=2, stem_max=16, out_max=40
    )
    widths = range(8, 41, 8)
    everything = []
    for stem, out1, out2, inner1, inner2, k1, k2, l1, l2 in product(
        (8, 16), widths, widths, widths, widths, (3, 5), (3, 5), (1, 2), (1, 2, 3)
    ):
        if inner1 <= out1 <= 4 * stem and inner2 <= out2 and out1 <= out2 <= 4 * out1:
            member = np.array([stem, out1, out2, inner1, inner2, k1, k2, l1, l2])
            structure = space.structure(member)
            result = score(structure, 16)
            everything.append((result.entropy - 10 * depth_penalty(structure), result.macs, result.params, result.rho))
    for macs, params, rho in ((600_000, 8_000, 0.5), (400_000, 15_000, 0.8)):
        best = max(row[0] for row in everything if row[1] <= macs and row[2] <= params and row[3] <= rho)
        found = [solve(space, Budget(macs=macs, params=params), rho=rho, seed=seed).objective for seed in (0, 1)]
        assert max(found) == pytest.approx(best, rel=1e-12)
        assert min(found) >= 0.999 * best  # a local search: one seed alone may stop a little below


def test_the_objective_does_not_fall_when_budgets_are_relaxed():
    last = -np.inf
    for factor in (1.0, 1.2, 1.5, 2.0):
        budget = Budget(macs=int(4e6 * factor), params=int(60e3 * factor))
        value = solve(SMALL, budget, rho=0.4).objective
        assert value >= last * 0.997  # local optima: the same tolerance for every pair
        last = value


def test_two_processes_with_one_seed_find_one_network():
    program = (
        "from lilliput.design import SearchSpace, solve; from lilliput.evidence import Budget;"
        "space = SearchSpace.bottleneck(image_size=16, strides=(1, 2, 2), layers_max=8);"
        "print(solve(space, Budget(macs=2_000_000, params=60_000), seed=3).structure.to_json())"
    )
    texts = [
        subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
        for _ in range(2)
    ]
    assert texts[0] == texts[1]
    assert Structure.from_json(texts[0]).blocks


@pytest.mark.parametrize(
    ("macs", "params", "rho", "binding"),
    [
        (1_000_000, 11_690_000, 0.3, "macs"),
        (1_820_000_000, 2_000, 0.3, "params"),
        (1_000_000_000, 1_000_000, 0.03, "rho"),
    ],
)
def test_an_infeasible_budget_is_refused_with_the_factor_that_would_do(macs, params, rho, binding):
    with pytest.raises(BudgetError, match=rf"binding (is|are) .*{binding} \(.* needed, .* allowed\)") as caught:
        solve(SERVER, Budget(macs=macs, params=params), rho=rho)
    factor = float(str(caught.value).split("by a factor of ")[1].split(";")[0])
    assert factor > 1
    factor *= 1.01  # at the very edge only the nearest network fits, and the search may miss it
    grown = Budget(macs=int(macs * factor), params=int(params * factor))
    design = solve(SERVER, grown, rho=rho * factor, time_limit=0.3)
    assert violations(design.structure, 224, grown, rho * factor, 64, 2048) == []


def test_gradients_of_the_program_agree_with_differences():
    rng = np.random.default_rng(1)
    for penalty in ("paper", "reference"):
        program = Program(Problem(SMALL, 4e6, 6e4, 0.4, (1.0, 1.0, 1.0, 8.0), penalty, 10.0), (5, 3, 5))
        x = rng.uniform(program.bounds[:, 0], 0.7 * program.bounds[:, 1] + 0.3 * program.bounds[:, 0])
        step = 1e-6 * np.eye(len(x))
        objective = np.array([(program.objective(x + d)[0] - program.objective(x - d)[0]) / 2e-6 for d in step])
        slacks = np.array([(program.slacks(x + d)[0] - program.slacks(x - d)[0]) / 2e-6 for d in step]).T
        assert program.objective(x)[1] == pytest.approx(objective, rel=1e-5, abs=1e-3)
        assert program.slacks(x)[1] == pytest.approx(slacks, rel=1e-5, abs=1e-6)


def test_the_network_of_a_design_runs_and_learns_from_every_parameter():
    design = solve(SMALL, Budget(macs=2_000_000, params=30_000), rho=0.5, time_limit=0.2)
    network = design.build(7)
    logits = network(torch.randn(2, 3, 32, 32))
    logits.square().sum().backward()
    assert logits.shape == (2, 7)
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_what_cannot_be_solved_is_refused_in_words():
    budget = Budget(macs=4_000_000)
    for fields, message in (
        ({"rho": 0}, "rho=0: must be above 0"),
        ({"alpha": (1, 8)}, "must be 4 numbers of at least 0"),
        ({"depth_penalty": "all"}, "must be one of paper, reference"),
        ({"penalty_weight": -1}, "penalty_weight=-1"),
        ({"time_limit": 0}, "time_limit=0: must be above 0 seconds"),
    ):
        with pytest.raises(ConfigError, match=message):
            solve(SMALL, budget, **fields)
    with pytest.raises(ConfigError, match="sram_bytes=1,024: solve takes macs and params"):
        solve(SMALL, Budget(sram_bytes=1024))


def test_a_space_that_cannot_be_is_refused_in_words():
    for fields, message in (
        ({"image_size": 100}, "multiple of the total stride 32; try image_size=96"),
        ({"strides": (2,)}, "must be 1 or 2 for the stem and each super block"),
        ({"strides": (2, 3)}, "must be 1 or 2 for the stem and each super block"),
        ({"kernels": (4,)}, "kernels=\\(4,\\): must be odd"),
        ({"image_size": 32}, "none fits super block 3, whose input is 4x4"),
        ({"stem_max": 4}, "stem_max=4: must be at least channel_step=8"),
        ({"channel_step": 0}, "channel_step=0: must be at least 1"),
    ):
        with pytest.raises(ConfigError, match=message):
            SearchSpace.bottleneck(**fields)


def test_a_space_holds_its_members_and_nothing_that_breaks_one_rule():
    space = SearchSpace.bottleneck(image_size=32, strides=(1, 2, 2), layers_max=4, out_max=128)
    # stem | widths | bottlenecks | kernels | layers
    member = np.array([16, 64, 128, 16, 16, 3, 5, 2, 4])
    wrong = {
        "stem above 32": (0, 40),
        "stem no multiple of 8": (0, 20),
        "first width above 4 stems": (1, 72),
        "widths fall": (2, 56),
        "width above out_max": (2, 136),
        "bottleneck no multiple of 8": (3, 12),
        "bottleneck above its width": (3, 72),
        "bottleneck below a tenth": (4, 8),
        "bottleneck of nothing": (3, 0),
        "kernel unknown": (5, 7),
        "first super block too deep": (7, 4),
        "no layers": (8, 0),
        "too deep": (8, 5),
    }
    assert space.contains(member[None]).all()
    for name, (index, value) in wrong.items():
        other = member.copy()
        other[index] = value
        assert not space.contains(other[None]).any(), name

import re
import subprocess
import sys
from itertools import product

import numpy as np
import pytest
import torch

from design.checker import violations
from design.test_block import BASIC
from lilliput.design import Patches, SearchSpace, Structure, chip_cost, depth_penalty, score, search, solve
from lilliput.design.exhaustive import MOST_ROWS
from lilliput.errors import BudgetError, ConfigError
from lilliput.evidence import Budget
from lilliput.mcu import plan
from lilliput.quantize import quantize_int8

SERVER = SearchSpace.bottleneck(image_size=224, strides=(2, 2, 2, 2, 1, 2), kernels=(3, 5), channel_step=8)
SMALL = SearchSpace.bottleneck(image_size=32, strides=(1, 2, 2, 2), layers_max=12, out_max=256)
SPACES = (
    SearchSpace.bottleneck(image_size=32, strides=(1, 2, 2), layers_max=12, out_max=256),
    SearchSpace.inverted_residual(32, (1, 2, 2), (3, 5), 4, stem_min=4, layers_max=8, num_classes=10),
    SearchSpace.plain(32, (1, 2, 2), layers_max=8),
)
CHIP = SearchSpace.inverted_residual(64, (2, 1, 2, 2), (3, 5), 4, stem_min=4, layers_max=6, out_max=256, num_classes=10)
R18, R34, R50 = (
    Budget(macs=1_820_000_000, params=11_690_000),
    Budget(macs=3_680_000_000, params=21_800_000),
    Budget(macs=4_130_000_000, params=25_550_000),
)


# Published: 32,085 (over its budget by 1 %), 43,108 and 48,884. benchmarks/design.py runs more seeds.
@pytest.mark.parametrize(("budget", "seed", "least"), [(R18, 2, 36_400), (R34, 0, 48_300), (R50, 0, 51_800)])
def test_server_budgets_are_met_with_a_gap_of_about_one_percent(budget, seed, least):
    design = solve(SERVER, budget, rho=0.3, depth_penalty="reference", seed=seed)
    assert least <= design.objective <= design.relaxation
    assert design.gap <= 0.01
    expected = score(design.structure, 224).entropy - 10 * depth_penalty(design.structure, "reference")
    assert design.objective == pytest.approx(expected, rel=1e-12)
    assert {"params", "rho"} <= set(design.binding)
    assert violations(design.structure, SERVER, budget, 0.3) == []


@pytest.mark.slow
@pytest.mark.parametrize("part", range(4))
def test_random_budgets_are_never_broken(part):
    """Over 200 designs in all, of three kinds of block, with budgets of every kind."""
    rng, solved, refused = np.random.default_rng(part), 0, 0
    for seed in range(75):
        space = SPACES[seed % 3]
        budget = Budget(
            macs=int(10 ** rng.uniform(5.8, 8)) if seed % 5 else None,
            params=int(10 ** rng.uniform(3.8, 6)) if seed % 7 else None,
            flash_bytes=int(10 ** rng.uniform(4, 6)) if seed % 2 else None,
            sram_bytes=int(10 ** rng.uniform(4.2, 5.5)) if seed % 4 else None,
        )
        rho = float(rng.uniform(0.2, 1.5))
        penalty = ("paper", "reference", "all")[int(rng.integers(3))]
        try:
            design = solve(space, budget, rho=rho, depth_penalty=penalty, patches=None, seed=seed, time_limit=0.05)
        except BudgetError:
            refused += 1
            continue
        solved += 1
        assert violations(design.structure, space, budget, rho) == []
        chip = chip_cost(design.structure, space.image_size, space.num_classes)
        assert chip.sram_bytes <= (budget.sram_bytes or chip.sram_bytes)
        assert design.objective <= design.relaxation
    assert solved >= 52, f"{solved} solved, {refused} refused"


TINY = SearchSpace.bottleneck(
    image_size=16, strides=(1, 2, 2), layers_max=3, first_layers_max=2, stem_max=16, out_max=40
)


def everything_in_tiny() -> list[tuple[float, int, int, float, int]]:
    """Objective, macs, params, rho and memory of every member, from definitions."""
    widths, rows = range(8, 41, 8), []
    for stem, out1, out2, mid1, mid2, k1, k2, l1, l2 in product(
        (8, 16), widths, widths, widths, widths, (3, 5), (3, 5), (1, 2), (1, 2, 3)
    ):
        if mid1 <= out1 <= 4 * stem and mid2 <= out2 and out1 <= out2 <= 4 * out1:
            structure = TINY.structure(np.array([stem, out1, out2, mid1, mid2, k1, k2, l1, l2]))
            result = score(structure, 16)
            memory = chip_cost(structure, 16, 1000).sram_bytes
            rows.append(
                (result.entropy - 10 * depth_penalty(structure), result.macs, result.params, result.rho, memory)
            )
    return rows


def test_a_tiny_space_gives_what_brute_force_gives():
    rows = everything_in_tiny()
    for macs, params, rho, memory in (
        (600_000, 8_000, 0.5, 10**9),
        (400_000, 15_000, 0.8, 10**9),
        (900_000, 15_000, 0.8, 4_500),
    ):
        fitting = [r[0] for r in rows if r[1] <= macs and r[2] <= params and r[3] <= rho and r[4] <= memory]
        budget = Budget(macs=macs, params=params, sram_bytes=memory)
        design = solve(TINY, budget, rho=rho, patches=None)
        assert design.is_exhaustive
        assert design.objective == pytest.approx(max(fitting), rel=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_without_looking_at_all_of_it_a_tiny_space_gives_the_same_or_nearly(monkeypatch, seed):
    monkeypatch.setattr(search, "MOST_ROWS", 0)
    for macs, params, rho in ((600_000, 8_000, 0.5), (400_000, 15_000, 0.8)):
        budget = Budget(macs=macs, params=params)
        found = solve(TINY, budget, rho=rho, seed=seed)
        monkeypatch.setattr(search, "MOST_ROWS", MOST_ROWS)
        best = solve(TINY, budget, rho=rho)
        monkeypatch.setattr(search, "MOST_ROWS", 0)
        assert not found.is_exhaustive
        assert best.is_exhaustive
        assert (
            0.999 * best.objective <= found.objective <= best.objective
        )  # a local search: one seed may stop a little below


@pytest.mark.slow
def test_the_objective_does_not_fall_when_budgets_are_relaxed():
    last = -np.inf
    for step in range(20):
        factor = 1.05**step
        budget = Budget(macs=int(4e6 * factor), params=int(60e3 * factor))
        value = solve(SPACES[0], budget, rho=0.4).objective
        assert value >= last * 0.997  # local optima: the same tolerance for every pair
        last = max(last, value)


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
    factor, relaxed = (float(each) for each in re.findall(r"factor of ([\d.]+)", str(caught.value)))
    assert 1 < relaxed <= factor
    factor *= 1.01  # at the very edge only the nearest network fits, and the search may miss it
    grown = Budget(macs=int(macs * factor), params=int(params * factor))
    design = solve(SERVER, grown, rho=rho * factor, time_limit=0.3)
    assert violations(design.structure, SERVER, grown, rho * factor) == []


# Chips


@pytest.mark.parametrize("sram", [24_000, None])
def test_a_design_for_a_chip_fits_as_the_planner_plans_it(sram):
    budget = Budget(macs=4_000_000, flash_bytes=60_000, sram_bytes=sram)
    design = solve(CHIP, budget, rho=0.6, patches=None, time_limit=1)
    assert violations(design.structure, CHIP, budget, 0.6) == []
    made = plan(quantize_int8(design.build().eval(), torch.rand(2, 3, 64, 64)))
    assert made.constant_bytes <= 60_000
    assert (
        made.arena_bytes + made.scratch_bytes <= (sram or 10**9) + 3
    )  # a block of words may begin up to 3 bytes later
    assert made.macs == design.needs["macs"][0] == design.chip_cost().macs


def test_below_the_least_memory_without_patches_a_patched_design_is_found():
    budget = Budget(macs=4_000_000, flash_bytes=60_000, sram_bytes=13_000)
    with pytest.raises(BudgetError, match="binding (is|are) .*sram_bytes"):
        solve(CHIP, budget, rho=0.6, patches=None)
    design = solve(CHIP, budget, rho=0.6, image="stream", time_limit=1)
    assert design.patches is not None
    chip = chip_cost(design.structure, 64, 10, design.patches, image="stream")
    assert chip.sram_bytes <= 13_000
    assert chip.macs <= 4_000_000  # halos included
    assert chip.macs > chip_cost(design.structure, 64, 10).macs
    assert violations(design.structure, CHIP, budget, 0.6) == []


def test_patches_are_left_alone_where_memory_does_not_bind():
    design = solve(CHIP, Budget(macs=4_000_000, flash_bytes=60_000, sram_bytes=200_000), rho=0.6, time_limit=0.3)
    assert design.patches is None


def test_a_schedule_may_be_given():
    schedule = Patches(grid=2, blocks=2)
    design = solve(CHIP, Budget(macs=4_000_000, sram_bytes=30_000), rho=0.6, patches=schedule, time_limit=0.3)
    assert design.patches == schedule
    assert chip_cost(design.structure, 64, 10, schedule).sram_bytes <= 30_000


def test_a_block_of_ones_own_is_solved_for():
    space = SearchSpace.custom(BASIC, 32, (1, 2, 2), mid_ratio=(0.5, 2), channel_step=4, num_classes=10)
    budget = Budget(macs=10_000_000, flash_bytes=60_000, sram_bytes=60_000)
    design = solve(space, budget, rho=0.3, patches=None, time_limit=0.5)
    made = plan(quantize_int8(design.build().eval(), torch.rand(2, 3, 32, 32)))
    assert made.macs <= 10_000_000
    assert made.constant_bytes <= 60_000
    assert made.arena_bytes + made.scratch_bytes <= 60_003


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
        ({"depth_penalty": "std"}, "must be one of paper, reference, all"),
        ({"penalty_weight": -1}, "penalty_weight=-1"),
        ({"time_limit": 0}, "time_limit=0: must be above 0 seconds"),
        ({"image": "disk"}, "image='disk': must be resident or stream"),
        ({"patches": "many"}, "patches='many': must be 'auto', None, or a Patches"),
        ({"patches": Patches(grid=2, blocks=9)}, "patches blocks=9: there are 3 super blocks"),
        ({"patches": Patches(grid=60, blocks=1)}, "patches grid=60: the map they make has 16x16 pixels"),
    ):
        with pytest.raises(ConfigError, match=message):
            solve(SMALL, budget, **fields)

"""Objective and CPU seconds of the design solver, beside the published DeepMAD networks and beside evolution by the published rules.

    OMP_NUM_THREADS=1 python benchmarks/design.py [--seeds 5] [--depth-penalty reference] [--json FILE]

Published: constants, the objective of the authors' own scorer on their structure files (github.com/alibaba/
lightweight-neural-architecture-search, configs/classification/models), with their depth penalty. The R18 network is 1 % over its own budget
of multiply-accumulates by the authors' counter.

Evolution: the rules of the authors' search, run here with the same evaluator (vectorised, many children at a time), the same budgets and
as many CPU seconds as the solver took. Repaired: the last super block may mutate too, one seed decides everything, and no network is built
to be counted. Population 256, two mutations a child: a width by 1.5, 1.25, 0.8, 0.6 or 0.5, a depth by 1 or 2 either way, another kernel.

The relaxation is the best of several starts, no proof.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np

from lilliput.design import SearchSpace, solve
from lilliput.design.evaluate import Problem, is_feasible, merit
from lilliput.evidence import Budget

NETWORKS = (
    ("R18", Budget(macs=1_820_000_000, params=11_690_000), {"reference": 32085.40}),
    ("R34", Budget(macs=3_680_000_000, params=21_800_000), {"reference": 43107.87}),
    ("R50", Budget(macs=4_130_000_000, params=25_550_000), {"reference": 48884.47}),
)
"""Name, budget, and the published network's objective by depth penalty."""

POPULATION = 256
WIDTH_FACTORS = np.array([1.5, 1.25, 0.8, 0.6, 0.5])
DEPTH_STEPS = np.array([-2, -1, 1, 2])


def evolve(problem: Problem, cpu_seconds: float, seed: int) -> tuple[float, int]:
    """The best objective that evolution finds in so much time, and how many networks it looked at."""
    started, rng, space = time.process_time(), np.random.default_rng(seed), problem.space
    m = space.depth
    widths = np.array([32, *(min(space.out_max, 64 * 2**index) for index in range(m))])
    first = np.concatenate([widths, widths[1:] // 4, [space.kernels[0]] * m, [1] * m]).astype(float)
    population = space.rounded(first[None])
    scores, seen = merit(problem, population), 1
    while time.process_time() - started < cpu_seconds:
        children = population[rng.integers(len(population), size=POPULATION)].astype(float)
        for _ in range(2):
            children = _mutated(space, children, rng)
        members = space.rounded(children)
        seen += len(members)
        found = merit(problem, members)
        # Children that break a budget are dropped, unless nothing keeps to it yet.
        keeps = found > -1e29 if is_feasible(float(scores.max())) else np.isfinite(found)
        population = np.concatenate([population, members[keeps]])
        scores = np.concatenate([scores, found[keeps]])
        _, distinct = np.unique(population, axis=0, return_index=True)
        best = distinct[np.argsort(-scores[distinct], kind="stable")[:POPULATION]]
        population, scores = population[best], scores[best]
    return float(scores.max()), seen


def _mutated(space: SearchSpace, members: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One property of one block of each: the stem is a block that has a width alone."""
    m, count = space.depth, len(members)
    result = members.copy()
    block, kind = rng.integers(-1, m, count), rng.integers(4, size=count)
    rows, inner = np.arange(count), np.maximum(block, 0)
    factor = rng.choice(WIDTH_FACTORS, count)
    is_stem = block < 0
    changes = (
        (is_stem, np.zeros(count, dtype=int), members[:, 0] * factor),
        (~is_stem & (kind == 0), 1 + inner, members[rows, 1 + inner] * factor),
        (~is_stem & (kind == 1), 1 + m + inner, members[rows, 1 + m + inner] * factor),
        (~is_stem & (kind == 2), 1 + 2 * m + inner, rng.choice(space.kernels, count)),
        (~is_stem & (kind == 3), 1 + 3 * m + inner, members[rows, 1 + 3 * m + inner] + rng.choice(DEPTH_STEPS, count)),
    )
    for which, column, value in changes:
        result[rows[which], column[which]] = value[which]
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--depth-penalty", choices=("reference", "paper"), default="reference")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    space, rows = SearchSpace.bottleneck(), []
    print(
        "budget  seed  published       ours  ratio  evolution  ratio  networks seen  relaxation    gap  CPU s  binding"
    )
    for name, budget, objectives in NETWORKS:
        published = objectives.get(args.depth_penalty)
        for seed in range(args.seeds):
            design = solve(space, budget, rho=0.3, depth_penalty=args.depth_penalty, seed=seed)
            evolved, seen = evolve(design.problem, design.cpu_seconds, seed)
            ratio = f"{design.objective / published:.3f}" if published else "-"
            print(
                f"{name:6}  {seed:4}  {published or '-':>9}  {design.objective:9.1f}  {ratio:>5}  {evolved:9.1f}"
                f"  {design.objective / evolved:5.3f}  {seen:13,}  {design.relaxation:10.1f}  {design.gap:5.2%}"
                f"  {design.cpu_seconds:5.2f}  {', '.join(design.binding)}",
                flush=True,
            )
            rows.append(
                {"budget": name, "seed": seed, "published": published, "objective": design.objective, "evolution": evolved, "seen": seen,
                 "relaxation": design.relaxation, "gap": design.gap, "cpu_seconds": design.cpu_seconds}
            )  # fmt: skip
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()

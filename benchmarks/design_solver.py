"""Objective and CPU seconds of the design solver at the budgets of the published DeepMAD networks, beside those networks.

    OMP_NUM_THREADS=1 python benchmarks/design_solver.py [--seeds 5] [--depth-penalty reference] [--json FILE]

The published side is a constant: the objective of the authors' own scorer on their structure files (github.com/alibaba/
lightweight-neural-architecture-search, configs/classification/models), with their depth penalty; their search ran 500,000 evaluations.
The published R18 network is 1 % over its own MAC budget by the authors' counter. The relaxation is the best of several starts, no proof.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from lilliput.design import SearchSpace, solve
from lilliput.evidence import Budget

NETWORKS = (
    ("R18", Budget(macs=1_820_000_000, params=11_690_000), {"reference": 32085.40}),
    ("R34", Budget(macs=3_680_000_000, params=21_800_000), {"reference": 43107.87}),
    ("R50", Budget(macs=4_130_000_000, params=25_550_000), {"reference": 48884.47}),
)
"""Name, budget, and the published network's objective by depth penalty."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--depth-penalty", choices=("reference", "paper"), default="reference")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    space, rows = SearchSpace.bottleneck(), []
    print("budget  seed   published        ours  ratio   relaxation    gap  CPU s  binding")
    for name, budget, objectives in NETWORKS:
        published = objectives.get(args.depth_penalty)
        for seed in range(args.seeds):
            design = solve(space, budget, rho=0.3, depth_penalty=args.depth_penalty, seed=seed)
            ratio = f"{design.objective / published:.3f}" if published else "-"
            print(
                f"{name:6}  {seed:4}  {published or '-':>10}  {design.objective:10.1f}  {ratio:>5}  {design.relaxation:11.1f}"
                f"  {design.gap:5.2%}  {design.cpu_seconds:5.2f}  {', '.join(design.binding)}",
                flush=True,
            )
            rows.append(
                {"budget": name, "seed": seed, "published": published, "objective": design.objective,
                 "relaxation": design.relaxation, "gap": design.gap, "cpu_seconds": design.cpu_seconds}
            )  # fmt: skip
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()

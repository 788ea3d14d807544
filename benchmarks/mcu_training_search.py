"""What to train within a budget: the exact search beside the published one, on the same contributions and the same memory planner.

    python benchmarks/mcu_training_search.py [--backbone mbv2-w0.35.pkl] [--budgets 256KB,192KB,100KB] [--samples 5000] [--json FILE]

Contributions are measured as published, by fine-tuning: the accuracy that biases up to each depth gain over the head alone, and that each
layer's weights at each share gain over biases alone, on the digits of ``mcu_training_task.py`` at 48x48. That takes minutes; --contribution
keeps them in a file, and reads them from it where it is there. The search is then over bias depth, layers and shares at --image pixels.
Both searches take gains from the same table and ask the same planner; a plan counts if ``compile_training`` holds it to the budget.

The backbone is the published int8 MobileNetV2-0.35 (see ``mcu_training_task.py``). Without one the network has its shape and seeded
weights: then contributions say nothing about learning, and the searches still compare.

Source of the rival: Lin et al. 2022 (arXiv:2206.15472), section 3.2, whose constants are not published; see ``evolution.py`` for ours.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from lilliput.errors import BudgetError
from lilliput.mcu.training import SGD, Contribution, UpdatePlan, compile_training, contribution, search_update
from lilliput.quantize import QuantizedGraph
from mcu_training import network
from mcu_training_task import CLASSES, data_folder, digits
from published_backbone import load_backbone

LEARNT_AT = 48
"""Pixels of the images by which contributions are measured."""


@dataclass(frozen=True)
class Row:
    """One search under one budget."""

    budget: str
    method: str
    objective: float | None
    """Sum of contributions, points of accuracy; ``None`` where not even the head fits."""
    bound: float | None
    """No choice exceeds it, proved; evolution has none."""
    sram_bytes: int | None
    plan: str
    cpu_seconds: float

    def __str__(self) -> str:
        if self.objective is None:
            return f"{self.budget:<8} {self.method:<20} nothing fits"
        bound = "" if self.bound is None else f"{self.bound:8.2f}"
        return (
            f"{self.budget:<8} {self.method:<20} {self.objective:8.2f} {bound:>8} {self.sram_bytes:>9,}  {self.plan:<24} "
            f"{self.cpu_seconds:7.1f} s"
        )


def searched(graph: QuantizedGraph, gains: Contribution, budget: str, method: str, samples: int, seed: int) -> Row:
    """Search once, and count the plan's memory anew."""
    name = method if method == "knapsack" else f"{method}, seed {seed}"
    optimizer, start = SGD(0.01), time.process_time()
    try:
        plan: UpdatePlan = search_update(
            graph,
            gains,
            sram=budget,
            method=method,
            num_classes=CLASSES,
            optimizer=optimizer,
            samples=samples,
            seed=seed,
        )
    except BudgetError:
        return Row(budget, name, None, None, None, "", time.process_time() - start)
    seconds = time.process_time() - start
    step = compile_training(graph, plan, num_classes=CLASSES, optimizer=optimizer, sram=budget)
    assert plan.objective is not None
    bound = None if plan.objective_bound is None else 100 * plan.objective_bound
    what = f"{plan.bias_depth} biases, {len(plan.layers)} layers"
    return Row(budget, name, 100 * plan.objective, bound, step.sram_bytes, what, seconds)


def measured(options: argparse.Namespace, small: QuantizedGraph) -> Contribution:
    """From the file, or by fine-tuning."""
    if options.contribution is not None and options.contribution.exists():
        return Contribution.load(options.contribution)
    train, train_labels, val, val_labels = digits(options.data, LEARNT_AT, 0)
    gains = contribution(
        small,
        (train, train_labels),
        (val, val_labels),
        num_classes=CLASSES,
        epochs=options.epochs,
        lr=0.003,
        progress=True,
    )
    if options.contribution is not None:
        gains.save(options.contribution)
    return gains


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", type=Path, help="a published MobileNetV2-0.35 .pkl; seeded weights if left out")
    parser.add_argument("--data", type=Path, default=data_folder(), help="folder with mnist-t10k")
    parser.add_argument("--contribution", type=Path, help="file to keep contributions in, or to read them from")
    parser.add_argument("--epochs", type=int, default=1, help="of each fine-tuning run")
    parser.add_argument("--image", type=int, default=96)
    parser.add_argument("--budgets", default="256KB,192KB,100KB", help="of SRAM, with commas")
    parser.add_argument("--samples", type=int, default=5000, help="that evolution looks at")
    parser.add_argument("--seeds", type=int, default=3, help="of evolution")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    small, graph = (
        network(side) if options.backbone is None else load_backbone(options.backbone, side)
        for side in (LEARNT_AT, options.image)
    )
    gains = measured(options, small)
    print(f"{graph.name} at {options.image}x{options.image}, {len(gains.layers)} layers at {len(gains.ratios)} shares")
    print(f"{'budget':<8} {'search':<20} {'gains':>8} {'bound':>8} {'SRAM':>9}")
    rows = []
    for budget in options.budgets.split(","):
        choices = [("knapsack", 0), *(("evolution", seed) for seed in range(options.seeds))]
        for method, seed in choices:
            rows.append(searched(graph, gains, budget, method, options.samples, seed))
            print(rows[-1], flush=True)
    if options.json is not None:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")


if __name__ == "__main__":
    main()

"""Is a design worth it on data? Designs against a hand-made network of uniform width, and against each other as rho grows.

    python benchmarks/design_value.py [--data DIR] [--epochs 15] [--seeds 3] [--threads 1] [--json FILE]

Every network has the same kind of block (1x1, kxk, 1x1 bottlenecks), the same strides, the same budget of multiply-accumulates and
parameters (those of the hand-made one; the table says how near each comes), the same data, epochs and training recipe. Data: 10,000
training and 2,000 test images of CIFAR-10 (--data is the folder with cifar10_12k.npz); a part of the training images validates. Accuracies
are of the epoch that was best in validation, mean and standard deviation over seeds. Rows that lose stay in.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch

from lilliput.data import ImageData, load_images
from lilliput.design import BLOCKS, SearchSpace, Structure, SuperBlock, depth_penalty, exact_cost, score, solve
from lilliput.errors import BudgetError
from lilliput.evidence import Budget
from lilliput.training import FitConfig, evaluate, fit

STRIDES = (1, 2, 2, 2)
RHOS = (0.1, 0.3, 0.5, 1.0, 3.0)


def hand_made() -> Structure:
    """Three stages of two bottlenecks, one width throughout; at 83 channels designs of whole channels come within 2 % of its cost."""
    block = {"out": 83, "mid": 36, "kernel": 3, "layers": 2, "kind": BLOCKS["K1KXK1"]}
    return Structure(stem=16, stem_stride=1, blocks=tuple(SuperBlock(stride=stride, **block) for stride in STRIDES[1:]))


def networks() -> dict[str, Structure]:
    """The hand-made one, and for each rho the best of twelve solves that comes within 2 % of its cost."""
    hand = hand_made()
    cost = exact_cost(hand, 32, 10)
    space = SearchSpace.bottleneck(
        32, STRIDES, (3, 5), 4, stem_max=32, out_max=512, first_layers_max=64, counter="exact", num_classes=10
    )
    found = {"hand-made, uniform width": hand}
    for rho in RHOS:
        designs = []
        for seed in range(12):
            try:
                designs.append(solve(space, Budget(macs=cost.macs, params=cost.params), rho=rho, seed=seed))
            except BudgetError as error:
                print(f"rho {rho:g}: {error}", file=sys.stderr)
                break
        equal = [
            each
            for each in designs
            if each.cost().macs >= 0.98 * cost.macs and each.cost().params >= 0.98 * cost.params
        ]
        if designs:
            found[f"design, rho {rho:g}"] = max(equal or designs, key=lambda each: each.objective).structure
    return found


def accuracy(structure: Structure, data: ImageData, seed: int, epochs: int, threads: int) -> float:
    torch.manual_seed(seed)
    model = structure.build(len(data.class_names))
    config = FitConfig(
        epochs=epochs, batch_size=64, lr=4e-3, shift_pixels=2, flip_horizontal=True, seed=seed, cpu_threads=threads, accelerator="cpu"
    )  # fmt: skip
    fit(model, data.train, data.val, config, progress=False)
    return evaluate(model, data.test).accuracy


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/cifar10"))
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    file = args.data / "cifar10_12k.npz"
    if not file.is_file():
        sys.exit(f"{file} is not there: give the folder of cifar10_12k.npz as --data")
    data = load_images(str(file), seed=0)
    found = networks()
    base = exact_cost(next(iter(found.values())), 32, 10)
    rows: list[dict[str, Any]] = []
    print(
        "| network | structure | layers | rho | objective | MACs | parameters | accuracy, mean ± std | each | CPU s |"
    )
    print("|---|---|---:|---:|---:|---:|---:|---:|---|---:|")
    for name, structure in found.items():
        cost, result = exact_cost(structure, 32, 10), score(structure, 32)
        objective = result.entropy - 10 * depth_penalty(structure)
        started = time.process_time()
        each = [accuracy(structure, data, seed, args.epochs, args.threads) for seed in range(args.seeds)]
        seconds = (time.process_time() - started) / args.seeds
        mean, spread = statistics.mean(each), statistics.stdev(each) if len(each) > 1 else 0.0
        said = ", ".join(f"{100 * value:.1f}" for value in each)
        print(
            f"| {name} | `{structure}` | {structure.layers} | {result.rho:.3f} | {objective:,.0f} "
            f"| {cost.macs:,} ({cost.macs / base.macs - 1:+.1%}) | {cost.params:,} ({cost.params / base.params - 1:+.1%}) "
            f"| {100 * mean:.2f} ± {100 * spread:.2f} | {said} | {seconds:.0f} |",
            flush=True,
        )
        rows.append({"name": name, "structure": str(structure), "objective": objective, "macs": cost.macs, "params": cost.params,
                     "rho": result.rho, "accuracies": each, "cpu_seconds": seconds})  # fmt: skip
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()

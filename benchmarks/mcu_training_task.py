"""What the update rule is worth: handwritten digits learned on top of a backbone trained for something else, by one scheme in many ways.

    python benchmarks/mcu_training_task.py [--backbone mbv2-w0.35.pkl] [--seeds 3] [--image 48] [--json FILE]

Rows: the head alone; biases and some input channels of weights without quantization-aware scaling; and with it, the trained weights kept as
float shadows (the published simulation), as Q7.8 in int16, as int8 with stochastic rounding, rounded to nearest, and truncated as the
published device code does. All in the published simulation with a float head, so that only the storage differs. Then ours: an integer head
too; and, with --device, the device's own integers, one sample a step.

The backbone is either the published int8 MobileNetV2-0.35, trained on ImageNet (MIT licence; fetch github.com/mit-han-lab/tiny-training and
give the file's path), or, by default, a small one of our own, trained on CIFAR-10 here. Digits are those of the MNIST test set, 600 to
learn from and 400 to test, drawn anew for each seed.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from lilliput.data import load_images
from lilliput.mcu.training import SGD, FloatMode, TrainStep, UpdatePlan, compile_training, extra_memory, warmup_cosine
from lilliput.mcu.training.interpreter import State
from lilliput.mcu.training.update_plan import head_of, weighted_layers
from lilliput.quantize import QuantizedGraph, quantize_int8
from lilliput.training import FitConfig, fit
from published_backbone import load_backbone

TRAIN, TEST, CLASSES = 600, 400, 10
MOBILENET_SCHEME = (16, {36: 1, 39: 1, 41: 1 / 4, 42: 1 / 8, 45: 1 / 8, 48: 1 / 8, 49: 1 / 8})
"""The published scheme of 49 KB for MobileNetV2-0.35: bias depth, and shares of input channels by layer number."""
OWN_DEPTH = 8
"""Of our own backbone: biases of the last eight layers, and all of the pointwise weights among them."""


@dataclass(frozen=True)
class Row:
    """One way to train, over the seeds."""

    name: str
    accuracies: tuple[float, ...]
    losses: tuple[float, ...]
    """Mean of the last epoch."""
    changed: float
    """Share of the trained convolution weights whose integer is another afterwards."""
    cpu_seconds: float

    def __str__(self) -> str:
        mean = statistics.mean(self.accuracies)
        spread = statistics.stdev(self.accuracies) if len(self.accuracies) > 1 else 0.0
        loss = statistics.mean(self.losses)
        return f"{self.name:56s} {mean:7.1%} ± {spread:5.1%}  loss {loss:6.3f}  changed {self.changed:6.1%}  {self.cpu_seconds:6.1f} s"


def data_folder() -> Path:
    return Path(os.environ.get("LILLIPUT_SHARED_DATA", "../shared/data"))


def digits(folder: Path, image: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Codes (pixel - 128), three equal channels, and labels: to learn from, and to test."""
    data = load_images(folder / "mnist-t10k" / "t10k-images-idx3-ubyte.gz", seed=0)
    pixels, labels = data.train.byte_tensors()
    chosen = np.random.default_rng(seed).permutation(len(labels))[: TRAIN + TEST]
    large = F.interpolate(pixels[chosen].float(), (image, image), mode="bilinear", align_corners=False)
    codes = (large.round().clamp(0, 255) - 128).to(torch.int8).expand(-1, 3, -1, -1).permute(0, 2, 3, 1).numpy()
    targets = labels[chosen].numpy()
    return np.ascontiguousarray(codes[:TRAIN]), targets[:TRAIN], np.ascontiguousarray(codes[TRAIN:]), targets[TRAIN:]


class Backbone(nn.Sequential):
    """Depthwise separable layers for 32x32 images, 60 thousand weights."""

    def __init__(self) -> None:
        layers: list[nn.Module] = [nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU6()]
        before = 16
        for channels, stride in ((32, 1), (32, 1), (64, 2), (64, 1), (64, 1), (128, 2), (128, 1)):
            layers += [
                nn.Conv2d(before, before, 3, stride, 1, groups=before, bias=False),
                nn.BatchNorm2d(before),
                nn.ReLU6(),
            ]
            layers += [nn.Conv2d(before, channels, 1, bias=False), nn.BatchNorm2d(channels), nn.ReLU6()]
            before = channels
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, 10))


def own_backbone(folder: Path, epochs: int) -> QuantizedGraph:
    """Trained on CIFAR-10, quantized; its input code is pixel - 128."""
    data = load_images(folder / "cifar10" / "cifar10_12k.npz", seed=0)
    torch.manual_seed(0)
    model = Backbone()
    result = fit(model, data.train, data.val, FitConfig(epochs=epochs, seed=0))
    print(f"own backbone: CIFAR-10 validation accuracy {result.history[-1].val_accuracy:.1%}")
    calibration = data.train.byte_tensors()[0][:256].float() / 255
    return quantize_int8(model.eval(), calibration, input_scale=1 / 255, input_zero_point=-128)


def scheme(graph: QuantizedGraph, is_published: bool) -> UpdatePlan:
    layers = weighted_layers(graph)
    if is_published:
        depth, shares = MOBILENET_SCHEME
        return UpdatePlan.from_ratios(graph, depth, {layers[number].name: share for number, share in shares.items()})
    last = layers[len(layers) - OWN_DEPTH :]
    return UpdatePlan.from_ratios(graph, OWN_DEPTH, {op.name: 1 for op in last if op.weight.shape[1:3] == (1, 1)})


def imbalance(graph: QuantizedGraph) -> tuple[float, float]:
    """log10 of a weight's norm over its gradient's, mean over convolutions, one random image: of the integers as they are, and scaled."""
    rng = np.random.default_rng(0)
    x, label = (
        rng.integers(-128, 128, (1, *graph.tensors[graph.input].shape), dtype=np.int8),
        rng.integers(CLASSES, size=1),
    )
    mode = FloatMode(graph, UpdatePlan.full(graph), num_classes=CLASSES)
    _, gradients = mode.gradients(x, label)
    raw, scaled = [], []
    for op in weighted_layers(graph):
        parameter, gradient = mode.parameters[f"{op.name}.weight"], gradients[f"{op.name}.weight"].double()
        raw.append(float(torch.log10(parameter.kept.norm() / gradient.norm())))
        scaled.append(float(torch.log10(parameter.kept.norm() / (gradient / parameter.scale.square()).norm())))
    return statistics.mean(raw), statistics.mean(scaled)


def changed_share(mode: FloatMode, before: dict[str, torch.Tensor]) -> float:
    moved = total = 0
    for name, old in before.items():
        now = mode.parameters[name].used()
        is_trained = mode.parameters[name].masked(torch.ones_like(old)) > 0
        moved += int(((now.round() != old.round()) & is_trained).sum())
        total += int(is_trained.sum())
    return moved / total if total else 0.0


def simulated(name: str, graph: QuantizedGraph, plan: UpdatePlan, args: argparse.Namespace, **options: Any) -> Row:
    """The published simulation, a batch a step."""
    accuracies, losses, changed, start = [], [], [], time.process_time()
    for seed in range(args.seeds):
        train, train_labels, test, test_labels = digits(args.data, args.image, seed)
        mode = FloatMode(graph, plan, num_classes=CLASSES, lr=args.lr, seed=seed, **options)
        before = {
            key: parameter.used()
            for key, parameter in mode.parameters.items()
            if key.endswith("weight") and "head" not in key
        }
        losses.append(mode.fit(train, train_labels, epochs=args.epochs, batch=args.batch, seed=seed)[-1])
        accuracies.append(mode.accuracy(test, test_labels))
        changed.append(changed_share(mode, before))
    seconds = (time.process_time() - start) / args.seeds
    return Row(name, tuple(accuracies), tuple(losses), statistics.mean(changed), seconds)


def on_device(name: str, graph: QuantizedGraph, plan: UpdatePlan, args: argparse.Namespace, master: str) -> Row:
    """The device's integers, one sample a step; the learning rate is that of one sample."""
    accuracies, losses, changed, start = [], [], [], time.process_time()
    for seed in range(args.seeds):
        train, train_labels, test, test_labels = digits(args.data, args.image, seed)
        optimizer = SGD(args.lr / args.batch, master=master)
        step = compile_training(graph, plan, num_classes=CLASSES, optimizer=optimizer, seed=seed)
        order = np.concatenate([np.random.default_rng([seed, e]).permutation(TRAIN) for e in range(args.epochs)])
        log = step.simulate(train[order], train_labels[order], rates=warmup_cosine(len(order)))
        accuracies.append(float((step.predict(test, log.state) == test_labels).mean()))
        losses.append(float(log.losses[-TRAIN:].mean()))
        changed.append(changed_on_device(step, log.state).share)
    seconds = (time.process_time() - start) / args.seeds
    return Row(name, tuple(accuracies), tuple(losses), statistics.mean(changed), seconds)


@dataclass(frozen=True)
class Changed:
    """Integers of convolutions that differ from the pretrained ones."""

    share: float
    """Of the trained weights."""
    layers: int
    """Convolutions with at least one."""


def changed_on_device(step: TrainStep, state: State) -> Changed:
    """Compare the weights that the device uses now with those that it began with; the head is left out."""
    moved, total = [], 0
    for key, parameter in step.program.parameters.items():
        if parameter.role == "weight" and key != f"{head_of(step.qgraph).name}.weight":
            now, old = (_codes(each, step.optimizer.master) for each in (state.masters[key], parameter.initial))
            moved.append(int((now != old).sum()))
            total += len(now)
    return Changed(sum(moved) / total if total else 0.0, sum(count > 0 for count in moved))


def _codes(masters: np.ndarray, master: str) -> np.ndarray:
    return (masters.astype(np.int64) + 128) >> 8 if master == "int16" else masters


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", type=Path, help="a published MobileNetV2-0.35 .pkl; our own backbone if left out")
    parser.add_argument("--data", type=Path, default=data_folder(), help="folder with mnist-t10k and cifar10")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--image", type=int, default=48, help="pixels; our own backbone takes 32")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument(
        "--lr", type=float, help="0.003 for the published backbone, 0.1 for our own, whose features are smaller"
    )
    parser.add_argument("--backbone-epochs", type=int, default=8)
    parser.add_argument("--device", action="store_true", help="also train in the device's integers")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.backbone is None:
        args.image = 32
    if args.lr is None:
        args.lr = 0.1 if args.backbone is None else 0.003
    graph = (
        own_backbone(args.data, args.backbone_epochs)
        if args.backbone is None
        else load_backbone(args.backbone, args.image)
    )
    sparse, head = scheme(graph, args.backbone is not None), UpdatePlan.head_only(graph)
    print(
        f"{graph.name} at {args.image}x{args.image}, {args.seeds} seeds, {args.epochs} epochs, batch {args.batch}, lr {args.lr}"
    )
    print(
        f"scheme: {sparse.bias_depth} biases, weights of {len(sparse.layers)} layers, {extra_memory(graph, sparse).kib:.1f} KiB extra"
    )
    raw, scaled = imbalance(graph)
    print(f"weights over gradients of a random image, log10: {raw:.2f} as integers, {scaled:.2f} scaled")
    rows = []

    def add(row: Row) -> None:
        rows.append(row)
        print(row, flush=True)

    add(simulated("head alone", graph, head, args))
    add(simulated("sparse, no scaling, float shadow", graph, sparse, args, qas=False))
    for storage, words in (
        ("float", "float shadow (published simulation)"),
        ("int16", "int16 master, Q7.8"),
        ("int8", "int8, stochastic rounding"),
        ("nearest", "int8, nearest"),
        ("truncate", "int8, truncated (published device code)"),
    ):
        add(simulated(f"sparse, scaled, {words}", graph, sparse, args, storage=storage))
    add(simulated("sparse, scaled, int16 master, integer head", graph, sparse, args, storage="int16", head="integer"))
    add(simulated("full, scaled, float shadow", graph, UpdatePlan.full(graph), args))
    if args.device:
        add(on_device("device integers, head alone", graph, head, args, "int16"))
        for master in ("int16", "int8"):
            add(on_device(f"device integers, sparse, {master} master", graph, sparse, args, master))
    if args.json is not None:
        args.json.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n")


if __name__ == "__main__":
    main()

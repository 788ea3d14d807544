"""Learning on the device itself: 100 images, faces and none, on top of a backbone trained for something else, within 256 KB.

    pip install scikit-image                                             # its wheel holds the images
    python benchmarks/mcu_training_faces.py [--backbone FILE] [--image 64] [--seeds 3] [--steps 32] [--json FILE]

The task is ``skimage.data.lfw_subset``: 200 grey images of 25x25, 100 of them faces; half of each kind to learn from and half to test,
drawn anew for each seed. The backbone is an int8 .tflite file, by default the visual wake words model of MLPerf Tiny (96x96), or a
published MobileNetV2-0.35 .pkl (see ``mcu_training_task.py``). Its last layer is replaced by a new one of two classes; what else is
trained is found by ``search_update`` within the budget, by Fisher scores of the first seed's images to learn from. Beside it stand the
head alone, the same choice without quantization-aware scaling, and the published scheme where there is one.

One sample a step, in the C that the device runs, built for this computer; the rate falls to 0 as half a cosine. The first of these steps
are also taken by the emulated chip and by the interpreter in Python, and all trained weights must have one digest before a row is
believed. The loss is the mean over an epoch, each sample's before its step.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from lilliput.errors import LilliputError
from lilliput.mcu import load_tflite
from lilliput.mcu.training import (
    SGD,
    HostModel,
    TrainFirmware,
    TrainStep,
    UpdatePlan,
    compile_training,
    contribution,
    search_update,
    warmup_cosine,
)
from lilliput.quantize import QuantizedGraph
from mcu_training_task import changed_on_device, data_folder, scheme
from published_backbone import load_backbone

CLASSES = 2
SRAM, FLASH = "256KB", "1MB"


@dataclass(frozen=True)
class Samples:
    """Codes (pixel - 128, channels equal) and labels; 1 is a face."""

    train: np.ndarray
    train_labels: np.ndarray
    test: np.ndarray
    test_labels: np.ndarray


def faces(shape: tuple[int, ...], seed: int) -> Samples:
    """Half of each kind to learn from, as large as the network takes them.

    Raises:
        SystemExit: scikit-image is not installed.
    """
    try:
        from skimage.data import lfw_subset
    except ImportError as missing:
        raise SystemExit(
            f"{missing}: the images of faces are in the wheel of scikit-image; pip install scikit-image"
        ) from missing
    height, width, channels = shape
    pixels = torch.from_numpy(255 * lfw_subset())[:, None]
    large = F.interpolate(pixels, (height, width), mode="bilinear", align_corners=False).round().clamp(0, 255) - 128
    codes = large.to(torch.int8).expand(-1, channels, -1, -1).permute(0, 2, 3, 1).contiguous().numpy()
    labels = np.repeat([1, 0], 100)
    rng = np.random.default_rng(seed)
    order = np.stack([rng.permutation(100), 100 + rng.permutation(100)])
    train, test = order[:, :50].reshape(-1), order[:, 50:].reshape(-1)
    return Samples(codes[train], labels[train], codes[test], labels[test])


@dataclass(frozen=True)
class Learnt:
    """One choice of what is trained, learnt from one half of the images."""

    accuracy_before: float
    accuracy: float
    """Of the test images, before the first step and after the last."""
    first_loss: float
    last_loss: float
    """Means of the first and of the last epoch, in nats."""
    changed: float
    """Share of the trained convolution weights whose integer is another afterwards."""
    layers_changed: int
    """Convolutions with at least one such weight."""
    sram_bytes: int
    """Planned, stack set aside."""
    same_steps: int
    """First steps whose trained weights have one digest in C here, in Python and on the emulated chip."""
    sram_ran_bytes: int | None
    """On the chip: data, variables and painted stack; ``None`` where none was emulated."""


def learn(step: TrainStep, samples: Samples, options: argparse.Namespace, seed: int) -> Learnt:
    """All epochs by the C of the device."""
    count = len(samples.train)
    order = np.concatenate([np.random.default_rng([seed, epoch]).permutation(count) for epoch in range(options.epochs)])
    x, y, rates = samples.train[order], samples.train_labels[order], warmup_cosine(len(order))
    with tempfile.TemporaryDirectory(prefix="lilliput-") as folder:
        firmware = step.emit_c(Path(folder) / "firmware", target=options.board, x=x[:1], y=y[:1])
        model = HostModel(firmware)
        before = accuracy(model, samples)
        losses = np.empty(len(x))
        for index, (sample, label, rate) in enumerate(zip(x, y, rates, strict=True)):
            model.set_rate(int(rate))
            losses[index] = model.train_step(sample, int(label)) / 2**16
            if index + 1 == options.steps:
                sram = same(step, firmware, model, (x, y, rates), options)
        changed = changed_on_device(step, model.state)
        return Learnt(
            before,
            accuracy(model, samples),
            losses[:count].mean(),
            losses[-count:].mean(),
            changed.share,
            changed.layers,
            step.sram_bytes,
            options.steps,
            sram,
        )


def accuracy(model: HostModel, samples: Samples) -> float:
    return float(np.mean([model.predict(x) == y for x, y in zip(samples.test, samples.test_labels, strict=True)]))


def same(
    step: TrainStep,
    firmware: TrainFirmware,
    model: HostModel,
    stream: tuple[np.ndarray, np.ndarray, np.ndarray],
    options: argparse.Namespace,
) -> int | None:
    """SRAM that the chip took for the first steps, after which its weights are those of C here and of Python."""
    x, y, rates = (each[: options.steps] for each in stream)
    digests = {"C on this computer": model.state.digest, "Python": step.simulate(x, y, rates=rates).weights_digest}
    receipt = firmware.run(x, y, options.board, rates=rates, timeout_seconds=1800.0)
    digests[receipt.board] = receipt.weights_digest
    if len(set(digests.values())) > 1:
        raise SystemExit(f"trained weights differ after {options.steps} steps: {digests}")
    return receipt.sram_bytes


def backbone(options: argparse.Namespace) -> QuantizedGraph:
    if options.backbone.suffix == ".pkl":
        return load_backbone(options.backbone, options.image)
    return load_tflite(options.backbone)


@dataclass(frozen=True)
class Row:
    """One choice of what is trained, over the seeds."""

    name: str
    what: str
    runs: tuple[Learnt, ...]
    cpu_seconds: float

    def __str__(self) -> str:
        mean = {key: statistics.mean(float(asdict(run)[key] or 0) for run in self.runs) for key in asdict(self.runs[0])}
        each = ", ".join(f"{run.accuracy:.0%}" for run in self.runs)
        fall = statistics.mean(run.first_loss / run.last_loss for run in self.runs)
        return (
            f"{self.name:<34} {self.what:<26} {mean['accuracy_before']:6.1%} {mean['accuracy']:6.1%} ({each})  "
            f"loss {mean['first_loss']:.3f} -> {mean['last_loss']:.4f}, {fall:.1f} times  changed {mean['changed']:.1%} "
            f"of {mean['layers_changed']:.0f} layers  SRAM {mean['sram_bytes']:,.0f} planned, {mean['sram_ran_bytes']:,.0f} ran  "
            f"{self.cpu_seconds:.1f} s"
        )


def measured(
    name: str,
    graph: QuantizedGraph,
    plan: UpdatePlan,
    data: list[Samples],
    options: argparse.Namespace,
    *,
    qas: bool = True,
) -> Row:
    """Compile, learn and compare."""
    start, runs = time.process_time(), []
    for seed, samples in enumerate(data):
        optimizer = SGD(options.lr, qas=qas)
        step = compile_training(
            graph, plan, num_classes=CLASSES, optimizer=optimizer, sram=SRAM, flash=FLASH, seed=seed
        )
        runs.append(learn(step, samples, options, seed))
    what = f"{plan.bias_depth} biases, {len(plan.layers)} layers"
    return Row(name, what, tuple(runs), (time.process_time() - start) / len(runs))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", type=Path, default=data_folder() / "mlperf-tiny" / "vww_96_int8.tflite")
    parser.add_argument(
        "--image", type=int, default=64, help="pixels, for a published .pkl; a .tflite file has its own"
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument(
        "--lr", type=float, help="one sample a step; 0.01 for a .tflite file, 0.0004 for a published .pkl"
    )
    parser.add_argument(
        "--depth", type=int, help="the search may train so many layers from the end; all that gradients reach"
    )
    parser.add_argument("--steps", type=int, default=32, help="of them, so many on the emulated chip and in Python too")
    parser.add_argument("--board", default="mps2-an500")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    is_published = options.backbone.suffix == ".pkl"
    if options.lr is None:
        options.lr = 0.0004 if is_published else 0.01
    try:
        graph = backbone(options)
    except (LilliputError, OSError) as fault:
        raise SystemExit(f"{fault}; --backbone takes an int8 .tflite file or a published .pkl") from fault
    data = [faces(graph.tensors[graph.input].shape, seed) for seed in range(options.seeds)]
    known = (data[0].train, data[0].train_labels)
    batch = {"batch": 8, "lr": 8 * options.lr}
    scores = contribution(graph, known, known, "fisher", num_classes=CLASSES, max_depth=options.depth, **batch)
    found = search_update(graph, scores, sram=SRAM, flash=FLASH, num_classes=CLASSES, optimizer=SGD(options.lr))
    height, width, _ = graph.tensors[graph.input].shape
    print(
        f"{graph.name} at {height}x{width}, {options.seeds} seeds, {options.epochs} epochs of 100, lr {options.lr}, {options.board}"
    )
    choices = [("head alone", UpdatePlan.head_only(graph), True), ("found for 256 KB", found, True)]
    choices.append(("the same, without scaling", found, False))
    if is_published:
        choices.append(("published scheme of 49 KB", scheme(graph, True), True))
    rows = []
    for name, plan, qas in choices:
        rows.append(measured(name, graph, plan, data, options, qas=qas))
        print(rows[-1], flush=True)
    if options.json is not None:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")


if __name__ == "__main__":
    main()

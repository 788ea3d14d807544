"""A made-up but plausible run of ``build``, for the tests of the page."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from lilliput.evidence import (
    Bar,
    Bars,
    Evidence,
    EvidenceTable,
    Figure,
    Images,
    Lifetime,
    Run,
    Section,
    Table,
    Text,
    figures,
)

CONFIG = {"data": "digits", "sram": "16KB", "flash": "128KB", "bits": 8, "training": {"epochs": 60, "batch_images": 64}}
EVIDENCE = (
    Evidence("accuracy.float", 0.9888888, "share", "measured", n=360, spread=0.0021, source="test split, 3 seeds"),
    Evidence("accuracy.int8", 0.9861111, "share", "measured", n=360, source="test split, host build"),
    Evidence("accuracy.emulated", 0.984375, "share", "emulated", n=64, source="mps2-an386, gcc 12.2, QEMU 7.2"),
    Evidence(
        "outputs.mismatching_bytes", 0, "bytes", "emulated", n=640, source="firmware against the integer interpreter"
    ),
    Evidence("sram.arena", 8712, "bytes", "counted", source="memory plan", detail="the liveness bound is 8,712"),
    Evidence("sram.total", 11204, "bytes", "emulated", source="arena + scratch + painted stack + .data + .bss"),
    Evidence("flash.total", 61112, "bytes", "measured", source="linked image"),
    Evidence("instructions.per_inference", 1843201, "instructions", "emulated", n=64, spread=0.0, source="mps2-an386"),
    Evidence("cost.macs", 512344, "MACs", "counted", source="graph"),
    Evidence("cost.params", 41234, "parameters", "counted", source="graph"),
    Evidence("arena.is_overlap_free", True, "", "proved", source="independent verifier", detail={"pairs": 171}),
)
LIFETIMES = (
    Lifetime("input", 0, 0, 0, 64),
    Lifetime("stem", 0, 1, 64, 2048),
    Lifetime("block1.expand", 1, 2, 2112, 6144),
    Lifetime("block1.depthwise", 2, 3, 0, 1536),
    Lifetime("block1.project", 3, 6, 8200, 512),
    Lifetime("block2.expand", 4, 5, 0, 3072),
    Lifetime("block2.depthwise", 5, 6, 3072, 3072),
    Lifetime("pool", 7, 8, 0, 256),
    Lifetime("logits", 8, 8, 256, 10),
)
STEPS = ("load", "choose", "train", "quantize", "emit", "run on the emulated chip")


def example_run(path: Path, classes: list[str] | None = None, budget_bytes: int = 16384, job: str = "build") -> Run:
    """Write a finished run with one block of every kind."""
    names = classes or [str(digit) for digit in range(10)]
    random = np.random.default_rng(0)
    with Run.create(path, job=job, config=CONFIG, seed=7) as run:
        for number, name in enumerate(STEPS):
            with run.step(name) as step:
                step.save({"number": number})
            run.steps[name].seconds = (0.31, 2.2, 83.24, 3.3, 0.02, 21.2)[number]
        run.record(*EVIDENCE)
        run.artifact("firmware/model.c").write_text("/* generated */\n")
        holds = budget_bytes >= 11204
        run.write_report(
            _sections(names, budget_bytes, random),
            title="Digits on a Cortex-M4",
            verdict=f"{'fits' if holds else 'does not fit'}: 11,204 of {budget_bytes:,} bytes SRAM, 61,112 of 131,072 bytes flash",
            holds=holds,
            highlights=["accuracy.int8", "sram.total", "flash.total", "instructions.per_inference"],
        )
    return run


def _sections(names: list[str], budget_bytes: int, random: np.random.Generator) -> list[Section]:
    counts = np.diag([36] * len(names))
    counts[-1, -1], counts[-1, 1], counts[-2, -2], counts[-2, 0] = 34, 2, 33, 3
    epochs = np.arange(60)
    loss = {
        "train": (2.3 * np.exp(-epochs / 8) + 0.1).tolist(),
        "validation": (2.3 * np.exp(-epochs / 7) + 0.14).tolist(),
    }
    accuracy = {
        "train": (1 - 0.9 * np.exp(-epochs / 6)).tolist(),
        "validation": [0.985 - 0.9 * math.exp(-epoch / 5) for epoch in epochs],
    }
    images = random.integers(0, 256, (12, 8, 8), dtype=np.uint8)
    truth = [names[index % len(names)] for index in range(12)]
    prediction = [names[0] if index == 8 else name for index, name in enumerate(truth)]
    layers = [
        [
            each.name,
            "conv 3x3" if "depthwise" in each.name else "conv 1x1",
            1000 * index + 64,
            each.bytes,
            each.offset_bytes,
        ]
        for index, each in enumerate(LIFETIMES)
    ]
    return [
        Section(
            "budget",
            "Budget against cost",
            "What the chip offers, and what the linked firmware takes. The linker refuses an image that is larger.",
            [
                Bars(
                    "The line at the end of each bar is the ceiling.",
                    [
                        Bar("SRAM", 11204, budget_bytes, "bytes"),
                        Bar("Flash", 61112, 131072, "bytes"),
                        Bar("Multiply-accumulates", 512344),
                    ],
                ),
                Figure(
                    figures.flash_breakdown(
                        {"weights": 41234, "biases and scales": 3100, "kernels": 14166, "startup": 2612}, 131072
                    ),
                    "Flash by content",
                    "Weights take two thirds of the 61,112 bytes used; more than half of the 131,072 bytes is free.",
                ),
                Figure(
                    figures.cost_against_budget(
                        [Bar("SRAM", 11204, budget_bytes, "bytes"), Bar("Flash", 61112, 131072, "bytes")]
                    ),
                    "Both ceilings at once",
                    "SRAM and flash as bars beside their ceilings.",
                ),
            ],
        ),
        Section(
            "accuracy",
            "Accuracy",
            "On the test split, which nothing else has touched.",
            [
                EvidenceTable("Accuracy at each stage", ["accuracy.float", "accuracy.int8", "accuracy.emulated"]),
                Figure(
                    figures.confusion_matrix(counts, names),
                    "Confusion matrix",
                    f"Of {int(counts.sum())} images, 5 are off the diagonal.",
                    "Rows are the truth; colour is the share of the row.",
                ),
                Figure(
                    figures.training_curves(loss, accuracy, best_epoch=48),
                    "Training",
                    "Loss falls and accuracy rises until about epoch 40; training and validation stay together.",
                ),
            ],
        ),
        Section(
            "images",
            "What it saw",
            blocks=[Images.of("Twelve test images; `✗` marks a mistake.", images, truth, prediction)],
        ),
        Section(
            "memory-map",
            "Memory over time",
            "Each box is a tensor: as wide as it is needed, as high as its bytes.",
            [
                Figure(
                    figures.memory_lifetimes(LIFETIMES, budget_bytes, [f"step{index}.conv" for index in range(9)]),
                    "Arena",
                    "Nine tensors share 8,712 bytes; block1.expand is the largest.",
                ),
                Table("Layers", ["layer", "kind", "MACs", "output bytes", "arena offset"], layers),
                Text(
                    "The plan is checked by a verifier that shares no code with the planner.\n\nIt found `0` overlaps."
                ),
            ],
        ),
    ]

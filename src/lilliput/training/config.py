"""What a training run is asked for, and what it gives back. Plain data: importing this loads no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lilliput.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class FitConfig:
    """How to train a classifier."""

    epochs: int = 60
    """Most passes over the training images."""
    batch_size: int = 64
    """Most images per step, over all devices together; an epoch is cut into batches as equal as can be."""
    lr: float = 4e-3
    """Peak learning rate, reached after the warm-up; it then falls to 0 along half a cosine."""
    weight_decay: float = 0.02
    """Decay of weight matrices and kernels; biases and batch-norm scales are left alone."""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    """AdamW, or SGD with Nesterov momentum 0.9."""
    warmup_fraction: float = 0.05
    """Share of all steps over which the learning rate rises linearly, 0 to less than 1."""
    label_smoothing: float = 0.0
    """Share of the target spread evenly over all classes, 0 to less than 1."""
    ema: float = 0.0
    """Decay per step of a running average of the weights, which is then what is validated and kept; 0 is off, 0.99 is usual."""
    patience: int = 0
    """Stop after this many epochs without a better validation result; 0 is off."""
    shift_pixels: int = 0
    """Augment: move each training image up to this many pixels each way, filling with black; 0 is off."""
    flip_horizontal: bool = False
    """Augment: mirror half of the training images left to right (not for digits or text)."""
    seed: int = 0
    """Order of the images, augmentation, dropout. The first weights are the model's own."""
    accelerator: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to train; auto takes a GPU where there is one."""
    cpu_threads: int = 0
    """CPU threads per process; 0 leaves torch's setting. Tiny networks gain little from more than 1, and lose much on a busy machine."""
    devices: int = 1
    """How many devices to train on; each has its own process and its share of every batch."""
    num_nodes: int = 1
    """How many machines; more than 1 needs a launcher such as torchrun to start the processes."""
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
    """Number format of the forward and backward pass; weights are always 32-bit."""

    def __post_init__(self) -> None:
        counts_from_1 = ("epochs", "batch_size", "devices", "num_nodes")
        counts_from_0 = ("patience", "shift_pixels", "seed", "cpu_threads")
        for name, least in (*((name, 1) for name in counts_from_1), *((name, 0) for name in counts_from_0)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name}={getattr(self, name)}: must be {least} or more; try {name}={max(least, 1)}")
        # Written so that NaN fails too.
        if not 0 < self.lr < float("inf"):
            raise ConfigError(f"lr={self.lr}: must be more than 0 and finite; try lr=0.004")
        if not 0 <= self.weight_decay < float("inf"):
            raise ConfigError(f"weight_decay={self.weight_decay}: must be 0 or more and finite; try weight_decay=0.02")
        for name, usual in (("warmup_fraction", 0.05), ("label_smoothing", 0.1), ("ema", 0.99)):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)}: must be 0 to less than 1; try {name}={usual}")
        for name, allowed in (
            ("optimizer", ("adamw", "sgd")),
            ("accelerator", ("auto", "cpu", "cuda", "mps")),
            ("precision", ("32-true", "bf16-mixed", "16-mixed")),
        ):
            if getattr(self, name) not in allowed:
                raise ConfigError(f"{name}={getattr(self, name)!r}: must be one of {', '.join(allowed)}")


@dataclass(frozen=True)
class EpochRecord:
    """One line of a training's history."""

    epoch: int
    """Counts from 1."""
    train_loss: float
    """Mean over the epoch's training images, each at the step that used it."""
    val_loss: float
    val_accuracy: float
    lr: float
    """Learning rate of the epoch's last step."""
    seconds: float
    """Training and validation together."""
    is_best: bool
    """Better than every epoch before: higher validation accuracy, or as high with a lower loss."""


@dataclass(frozen=True)
class FitResult:
    """What a training did. The model itself holds the best epoch's weights."""

    history: tuple[EpochRecord, ...]
    best_epoch: int
    """Counts from 1."""
    val_accuracy: float
    """Of the best epoch."""
    val_loss: float
    """Of the best epoch."""
    stopped_early: bool
    seconds: float
    """Of all epochs in the history, before and after a resume."""
    images_per_second: float
    """Training images per second of the epochs run by this call, validation included; 0.0 where it had none left to run."""
    resumed_after: int
    """Epochs that were already in the checkpoint; 0 for a fresh start."""
    device: str
    """Such as ``cpu`` or ``cuda:0``."""

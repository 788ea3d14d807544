"""What a training borrows from the process and gives back: random number generators and thread count."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def own_random_state(device: torch.device) -> Iterator[None]:
    """Let the training seed what it likes and give the caller's random state back, whatever happens."""
    python_state, numpy_state = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)


@contextmanager
def cpu_threads(count: int) -> Iterator[None]:
    """Torch on this many CPU threads; 0 leaves it alone."""
    before = torch.get_num_threads()
    if count:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def seed_everything(seed: int, epoch: int, rank: int, device: torch.device) -> None:
    """Torch, NumPy and Python from (seed, epoch, process), for dropout and whatever else a model draws."""
    torch_seed, numpy_seed, python_seed = np.random.SeedSequence([seed, epoch, 2, rank]).generate_state(3)
    # Not torch.manual_seed: that also seeds GPUs that this training does not use, and they would stay so.
    torch.default_generator.manual_seed(int(torch_seed))
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(int(torch_seed))
    elif device.type == "mps":
        torch.mps.manual_seed(int(torch_seed))
    np.random.seed(int(numpy_seed))
    random.seed(int(python_seed))

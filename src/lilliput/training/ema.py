"""A running average of the weights, which often validates better than the weights of any one step.

Source: Polyak and Juditsky 1992 for averaging; the warm-up of the decay, min(decay, (1 + t) / (10 + t)), as TensorFlow's
ExponentialMovingAverage has it, so that the average forgets the first weights.
"""

from __future__ import annotations

import copy

import torch
from torch import nn


class WeightAverage:
    """A copy of a model whose weights and batch-norm statistics follow the original's as an exponential average."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay = decay

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Move towards the model's state after one step; steps count from 0."""
        decay = min(self.decay, (1 + step) / (10 + step))
        mine, theirs = [], []
        pairs = [
            *zip(self.model.parameters(), model.parameters(), strict=True),
            *zip(self.model.buffers(), model.buffers(), strict=True),
        ]
        for average, current in pairs:
            if average.is_floating_point():
                mine.append(average)
                theirs.append(current)
            else:
                average.copy_(current)  # counters, such as batch norm's number of batches
        torch._foreach_lerp_(mine, theirs, 1 - decay)

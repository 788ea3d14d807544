"""The learning rate of each step: a linear warm-up, then half a cosine.

Source: Loshchilov and Hutter 2017 (arXiv:1608.03983), eq. 5, one cycle down to 0; warm-up by Goyal et al. 2017 (arXiv:1706.02677).
"""

from __future__ import annotations

from math import cos, pi


def learning_rate(step: int, total_steps: int, peak_lr: float, warmup_fraction: float) -> float:
    """Learning rate of one step.

    Args:
        step: counts from 0 to total_steps - 1.
        total_steps: of the whole training.
        peak_lr: reached at the last step of the warm-up.
        warmup_fraction: share of the steps that rise; at least one step is left to fall.
    """
    warmup_steps = min(round(warmup_fraction * total_steps), total_steps - 1)
    if step < warmup_steps:
        return peak_lr * (step + 1) / warmup_steps
    return peak_lr * 0.5 * (1 + cos(pi * (step - warmup_steps) / (total_steps - warmup_steps)))

"""The factor of the learning rate over a run: linear warm-up, then half a cosine to zero, as Q15 integers for the device."""

from __future__ import annotations

import numpy as np
from jaxtyping import Int64

from lilliput.errors import ConfigError
from lilliput.mcu.training.arithmetic import RATE_ONE


def warmup_cosine(steps: int, warmup_steps: int = 0) -> Int64[np.ndarray, " steps"]:
    """A factor for each step, 0 to 2**15.

    Args:
        steps: of the whole run.
        warmup_steps: at its beginning, from 1 / warmup_steps up to 1.
    Source: Lin et al. 2022 (arXiv:2206.15472), appendix; the published code steps the schedule once a batch.

    >>> warmup_cosine(6, 2).tolist()
    [16384, 32768, 32768, 27969, 16384, 4799]
    """
    if not 0 <= warmup_steps <= steps:
        raise ConfigError(f"warmup_steps={warmup_steps}: must be 0 to the number of steps, {steps}")
    rising = np.arange(1, warmup_steps + 1) / max(warmup_steps, 1)
    rest = steps - warmup_steps
    falling = (1 + np.cos(np.pi * np.arange(rest) / max(rest, 1))) / 2
    return np.floor(np.concatenate([rising, falling]) * RATE_ONE + 0.5).astype(np.int64)

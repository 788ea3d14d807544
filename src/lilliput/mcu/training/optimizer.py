"""How trained weights move, and in which numbers they are kept."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from lilliput.errors import ConfigError

Master = Literal["int16", "int8", "nearest", "truncate"]


@dataclass(frozen=True)
class SGD:
    """Plain stochastic gradient descent: no momentum, which would cost another copy of what is trained.

    Source: Lin et al. 2022 (arXiv:2206.15472), section 3.1 for the scaling; masters and roundings are ours.
    """

    lr: float | int
    """Rate for the real-valued parameters (scale times code) where ``qas`` is on."""
    qas: bool = True
    """Quantization-aware scaling: gradients with respect to codes are divided by the square of the scale."""
    master: Master = "int16"
    """What a trained weight is kept as: Q7.8 in int16; int8 with stochastic rounding; int8 rounded to nearest; int8 truncated towards
    zero, as the published device code does (a baseline that decays weights)."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.lr) and self.lr > 0):
            raise ConfigError(f"lr={self.lr}: must be finite and above 0; try lr=0.003")
        if self.master not in get_args(Master):
            raise ConfigError(f"master='{self.master}': must be one of {', '.join(get_args(Master))}")

"""What a trained parameter is kept as between steps, and what that does to steps smaller than one code.

==========  ============================================  =====================================================
storage     weight                                        a step of 0.3 codes
==========  ============================================  =====================================================
float       float, rounded half to even where it is used  adds up (the published simulation)
int16       Q7.8: 1/256 codes, saturating                 adds up to within 1/512 code
int8        stochastically rounded                        is one code with probability 0.3
nearest     rounded half away from zero                   is lost
truncate    truncated towards zero, wrapping              is lost if it grows the weight, one code if it shrinks it
==========  ============================================  =====================================================

Biases: int32 with 8 fractional bits for int16 and int8, float for float, whole codes for the other two ("truncate" truncates the step, as
the published device code does). All values here are tensors of float64, which holds each of these integers
and float32 numbers exactly.

Source: Lin et al. 2022 (arXiv:2206.15472), published simulation and device code; int16 and stochastic masters are ours.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float64, Shaped
from torch import Tensor

FRACTION = 256.0
"""A master's step: 8 fractional bits."""
Values = Float64[Tensor, "*shape"]


@dataclass(frozen=True)
class Rule:
    """How one kind of parameter is kept."""

    keep: Callable[[Tensor], Tensor]
    """Codes -> what is kept."""
    used: Callable[[Tensor], Tensor]
    """What is kept -> codes the network runs with."""
    moved: Callable[[Tensor, Tensor, torch.Generator], Tensor]
    """What is kept, a decrease in codes, randomness -> what is kept afterwards."""


class Parameter:
    """Codes that are trained, all of them or those selected.

    Args:
        codes: initial values.
        rule: how they are kept.
        scale: what one code stands for, broadcasting against the codes; gradients are divided by its square. 1 leaves them.
        selected: which of them are trained.
    """

    def __init__(
        self,
        codes: Shaped[Tensor, "*shape"],
        rule: Rule,
        scale: Float64[Tensor, "*#shape"],
        selected: Shaped[Tensor, "*#shape"] | None = None,
    ) -> None:
        self.scale = scale
        self._rule, self._selected = rule, selected
        self.kept = rule.keep(codes.double())
        self._velocity: Tensor | None = None

    def used(self) -> Values:
        """The codes that the network runs with."""
        return self._rule.used(self.kept)

    def masked(self, gradient: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "*shape"]:
        """A gradient that is 0 where nothing is trained."""
        return gradient if self._selected is None else gradient * self._selected

    def step(self, gradient: Shaped[Tensor, "*shape"], lr: float, momentum: float, generator: torch.Generator) -> None:
        """Move against a masked gradient with respect to the codes: scaling first, then momentum, then the storage's rounding."""
        velocity = gradient.double() / self.scale.square()
        if momentum:
            velocity = velocity if self._velocity is None else momentum * self._velocity + velocity
            self._velocity = velocity
        self.kept = self._rule.moved(self.kept, lr * velocity, generator)


def _same(x: Tensor) -> Tensor:
    return x


def _subtracted(kept: Tensor, decrease: Tensor, _: torch.Generator) -> Tensor:
    return kept - decrease


def _subtracted_in_float32(kept: Tensor, decrease: Tensor, _: torch.Generator) -> Tensor:
    """As published: which weights lie close enough to a tie to be rounded otherwise depends on it."""
    return (kept.float() - decrease.float()).double()


def _half_away(x: Tensor) -> Tensor:
    return torch.trunc(x + torch.sign(x) * 0.5)


def _nearest_code(master: Tensor) -> Tensor:
    """What the device does: (m + 128) >> 8."""
    return torch.floor((master + FRACTION / 2) / FRACTION)


def _master_moved(bits: int) -> Callable[[Tensor, Tensor, torch.Generator], Tensor]:
    least, most = -(2.0 ** (bits - 1)), 2.0 ** (bits - 1) - 1

    def moved(kept: Tensor, decrease: Tensor, _: torch.Generator) -> Tensor:
        return (kept - _half_away(decrease * FRACTION)).clamp(least, most)

    return moved


def _stochastically_moved(kept: Tensor, decrease: Tensor, generator: torch.Generator) -> Tensor:
    draws = torch.rand(kept.shape, generator=generator, dtype=kept.dtype)
    return torch.floor(kept - decrease + draws).clamp(-127, 127)


def _truncated_and_wrapped(kept: Tensor, decrease: Tensor, _: torch.Generator) -> Tensor:
    return (torch.trunc(kept - decrease) + 128).remainder(256) - 128


REAL = Rule(_same, _same, _subtracted)
"""Not rounded at all: a float head, and everything where rounding is off."""
_WEIGHT_MASTER = Rule(lambda x: x * FRACTION, lambda m: _nearest_code(m).clamp(-127, 127), _master_moved(16))
_BIAS_MASTER = Rule(lambda x: x * FRACTION, _nearest_code, _master_moved(32))

WEIGHTS = {
    "float": Rule(_same, torch.round, _subtracted_in_float32),
    "int16": _WEIGHT_MASTER,
    "int8": Rule(_same, _same, _stochastically_moved),
    "nearest": Rule(_same, _same, lambda kept, decrease, _: _half_away(kept - decrease).clamp(-127, 127)),
    "truncate": Rule(_same, _same, _truncated_and_wrapped),
}
"""Rules for weights, by the name of the storage."""
BIASES = {
    "float": Rule(_same, _same, _subtracted_in_float32),
    "int16": _BIAS_MASTER,
    "int8": _BIAS_MASTER,
    "nearest": Rule(_same, _same, lambda kept, decrease, _: _half_away(kept - decrease)),
    "truncate": Rule(_same, _same, lambda kept, decrease, _: kept - torch.trunc(decrease)),
}

"""HQQ: the zero point of each group from a robust fit, without data.

Minimises a sum of |error|**p with p < 1, which forgives the few large errors of outliers, by half-quadratic splitting: the error is
split off by shrinkage, then the zero point that fits what is left is a mean. The step stays that of the range.

Source: Badri and Shaji 2023, "Half-Quadratic Quantization of Large Machine Learning Models" (mobiusml.github.io/hqq_blog), eqs. 1-5, with
its constants p = 0.7, beta = 10, kappa = 1.01, 20 iterations. Ours: each group keeps its own best iterate by mean absolute error, where
theirs stops the whole tensor.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from lilliput.quantize.lowbit.affine import as_stored, nearest_symbols, start_ladders
from lilliput.quantize.lowbit.config import Granularity, Method, check_bits, refuse_dense
from lilliput.quantize.lowbit.granularity import columns_per_set, per_set
from lilliput.quantize.lowbit.ladders import Encoded

_P, _BETA, _KAPPA, _ITERATIONS = 0.7, 10.0, 1.01, 20


@dataclass(frozen=True, kw_only=True)
class HalfQuadratic(Method):
    """Half-quadratic zero points (HQQ)."""

    bits: int = 4
    """Bits of a weight, 1 to 8."""
    granularity: Granularity = "group"
    """As published: groups of 64 weights."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_bits(self.bits)
        refuse_dense(self)

    @property
    def name(self) -> str:
        """``hqq-4 g64``."""
        return f"hqq-{self.bits} {self.where}"

    def encode(self, weight: Tensor, gain: float) -> Encoded:
        """Symbols and ladders of a matrix."""
        lower = per_set(weight, self.granularity, self.group_size, lambda sets: sets.amin(dim=1, keepdim=True))
        upper = per_set(weight, self.granularity, self.group_size, lambda sets: sets.amax(dim=1, keepdim=True))
        ladders = start_ladders(lower, upper, self.bits, self.torch_scale_dtype)

        def fitted(sets: Tensor) -> Tensor:
            return half_quadratic_start(sets * gain, self.bits)[:, None] / gain

        start = per_set(weight, self.granularity, self.group_size, fitted)
        ladders = replace(ladders, start=as_stored(start, self.torch_scale_dtype))
        width = columns_per_set(self.granularity, self.group_size, weight.shape[1])
        alone = torch.zeros(weight.shape, dtype=torch.uint8, device=weight.device)
        return Encoded(nearest_symbols(weight, ladders, alone, width), ladders, width)


def half_quadratic_start(sets: Float[Tensor, "sets n"], bits: int) -> Float[Tensor, " sets"]:
    """The value of code 0 of each set, for the step (max - min) / (2**bits - 1).

    What is forgiven depends on the scale of the weights, as published: errors below about 0.17 are not.
    """
    top = 2**bits - 1
    lower, upper = sets.amin(dim=1, keepdim=True), sets.amax(dim=1, keepdim=True)
    step = (upper - lower) / top
    step = torch.where(step > 0, step, 1.0)
    zero, beta = -lower / step, _BETA
    best_zero, least = zero, torch.full_like(zero, torch.inf)
    for _ in range(_ITERATIONS):
        codes = (sets / step + zero).round_().clamp_(0, top)
        error = sets - (codes - zero) * step
        loss = error.abs().mean(dim=1, keepdim=True)
        best_zero, least = torch.where(loss < least, zero, best_zero), torch.minimum(loss, least)
        zero = (codes - (sets - _shrink(error, beta)) / step).mean(dim=1, keepdim=True)
        beta *= _KAPPA
    return (-best_zero * step).squeeze(1)


def _shrink(error: Tensor, beta: float) -> Tensor:
    """Generalised soft threshold of the p-norm (eq. 4 of the source)."""
    size = error.abs()
    return error.sign() * (size - size.clamp(min=1e-8).pow(_P - 1) / beta).clamp_(min=0)

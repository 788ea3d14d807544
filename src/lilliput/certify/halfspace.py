"""Half-spaces of the input that a domain's splits imply, and the least upper bounds of linear functions over a box that they cut.

A split says ``z >= 0`` of a gate's input, and z lies below a linear function of x; so that function is ``>= 0`` all over the domain. With
a multiplier ``beta >= 0`` it may be added to any function that is bounded from above there:

    max over the domain of a . x  <=  max over the box of (a + beta H) . x + beta h        (H . x + h >= 0 in the domain)

The right side is convex and piecewise linear in beta, with a kink where a coefficient changes its sign, so the best beta is found by
sorting. Half-spaces are taken one after the other.

Source: the multipliers are those of Wang et al. 2021 (beta-CROWN, arXiv:2103.06624), who train them; to keep splits as half-spaces of the
input and to clip the box with them is Zhou et al. 2025 (Clip-and-Verify).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class HalfSpaces:
    """``H x + h >= 0``; a row of zeros says nothing."""

    H: Float[Tensor, "domains planes inputs"]
    h: Float[Tensor, "domains planes"]

    @staticmethod
    def none(domains: int, planes: int, like: Tensor) -> HalfSpaces:
        """Rows of zeros."""
        return HalfSpaces(like.new_zeros(domains, planes, like.shape[-1]), like.new_zeros(domains, planes))

    def take(self, domains: Tensor | slice) -> HalfSpaces:
        """Some of the domains."""
        return HalfSpaces(self.H[domains], self.h[domains])

    def most(
        self, A: Float[Tensor, "sides domains rows inputs"], middle: Tensor, radius: Tensor
    ) -> Float[Tensor, "sides domains rows"]:
        """Upper bound of ``a . x`` over the part of each box (domains, inputs) that lies in the half-spaces."""
        added = A.new_zeros(A.shape[:3])
        A = A.clone()
        for plane in range(self.H.shape[1]):
            H, h = self.H[:, plane, None], self.h[:, plane, None]
            weight = H.abs() * radius[:, None]
            # The right derivative at beta = 0; where it is not negative, 0 is best.
            slope = torch.where(A * H < 0, -weight, weight).sum(-1) + (H * middle[:, None]).sum(-1) + h
            side, domain, row = (slope < 0).nonzero(as_tuple=True)
            beta = _multiplier(A[side, domain, row], H[domain, 0], slope[side, domain, row], weight[domain, 0])
            A[side, domain, row] += beta[:, None] * H[domain, 0]
            added[side, domain, row] += beta * h[domain, 0]
        return (A * middle[:, None] + A.abs() * radius[:, None]).sum(-1) + added

    def misses(self, middle: Tensor, radius: Tensor) -> Tensor:
        """Domains whose box lies outside of a half-space by more than rounding, (domains,)."""
        inside = (self.H * middle[:, None]).sum(-1) + self.h
        reach = (self.H.abs() * radius[:, None]).sum(-1)
        size = (self.H.abs() * middle.abs()[:, None]).sum(-1) + self.h.abs() + reach
        tolerance = 1e-9 if middle.dtype == torch.float64 else 1e-3
        return (inside + reach < -tolerance * size).any(1)


def _multiplier(A: Tensor, H: Tensor, slope: Tensor, weight: Tensor) -> Tensor:
    """The beta that minimises ``|A + beta H| . radius + beta value``, (cases,), where that falls at 0 with the given slope."""
    flips = (A * H < 0) & (weight > 0)
    at, order = torch.where(flips, -A / torch.where(flips, H, 1.0), torch.inf).sort(-1)
    # Each coefficient that changes its sign on the way adds twice its weight.
    rise = 2 * torch.where(flips, weight, 0.0).gather(-1, order).cumsum(-1)
    # Where even the last kink leaves it falling, the box lies outside: any beta is sound, and ``misses`` tells.
    turn = torch.minimum((slope[:, None] + rise < 0).sum(-1), (flips.sum(-1) - 1).clamp(min=0))
    beta = at.gather(-1, turn[:, None])[:, 0]
    return torch.where(beta.isfinite(), beta, 0.0)

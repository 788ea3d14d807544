"""Where the input may be: a ball in l_1, l_2 or l_inf around each centre, cut to the range of the data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from lilliput.certify.halfspace import HalfSpaces
from lilliput.certify.rounding import ball_box

Norm = Literal["inf", "1", "2"]
DUAL: dict[Norm, Norm] = {"inf": "1", "1": "inf", "2": "2"}
"""The norm of a Jacobian row that bounds how much the output moves for a unit step of the input."""


@dataclass(frozen=True)
class Region:
    """One ball for each of D domains; tensors are flat: (D, n)."""

    centre: Float[Tensor, "domains inputs"]
    eps: float
    norm: Norm
    lower: Float[Tensor, "domains inputs"]
    """The smallest box around the ball, cut to the data's range."""
    upper: Float[Tensor, "domains inputs"]
    cuts: HalfSpaces | None = None
    """Half-spaces that the region is cut to as well; ``most`` alone knows of them."""

    @staticmethod
    def ball(
        centre: Tensor,
        eps: float,
        norm: Norm,
        clip: tuple[float | int, float | int] | None = None,
        *,
        rigorous: bool = False,
    ) -> Region:
        """The ball around each row of ``centre``; with rounding counted, its box surely holds it, and at most a rounding more."""
        if rigorous:
            lower, upper = ball_box(centre, eps, clip)
            return Region(centre, eps, norm, lower, upper)
        lower, upper = centre - eps, centre + eps
        if clip is not None:
            lower, upper = lower.clamp(min=clip[0]), upper.clamp(max=clip[1])
        return Region(centre, eps, norm, lower, upper)

    def take(self, domains: Tensor | slice) -> Region:
        """Some of the domains."""
        cuts = None if self.cuts is None else self.cuts.take(domains)
        return Region(self.centre[domains], self.eps, self.norm, self.lower[domains], self.upper[domains], cuts)

    def most(self, A: Tensor) -> Tensor:
        """Greatest ``a . x`` over each domain's region, for rows A (sides, domains, rows, inputs): (sides, domains, rows)."""
        most = self.range(A)[1]
        if self.cuts is None:
            return most
        middle, radius = (self.upper + self.lower) / 2, (self.upper - self.lower) / 2
        return torch.minimum(most, self.cuts.most(A, middle, radius))

    def range(self, A: Tensor) -> tuple[Tensor, Tensor]:
        """Least and greatest, without regard to half-spaces."""
        middle, radius = (self.upper + self.lower) / 2, (self.upper - self.lower) / 2
        size = A.abs()
        at, by = (A @ middle[:, :, None]).squeeze(-1), (size @ radius[:, :, None]).squeeze(-1)
        if self.norm == "inf":
            return at - by, at + by
        dual = size.amax(-1) if self.norm == "1" else torch.linalg.vector_norm(A, dim=-1)
        centre, far = (A @ self.centre[:, :, None]).squeeze(-1), self.eps * dual
        return torch.maximum(at - by, centre - far), torch.minimum(at + by, centre + far)

    def draw(self, points: int, generator: torch.Generator) -> Float[Tensor, "points domains inputs"]:
        """Points of each region, a third of them at corners of the box or the ball; always inside.

        Drawn in the box that is left of the ball: cutting points of the whole ball would give half of the pixels of a black background the
        one value 0, and every max pool over them a tie, where no gradient is known.
        """
        shape = (points, *self.centre.shape)
        unit = torch.rand(shape, generator=generator, dtype=torch.float64).to(self.centre) * 2 - 1
        corner = torch.arange(points, device=unit.device) % 3 == 0
        unit = torch.where(corner[:, None, None], unit.sign(), unit)
        return self._at(unit)

    def corners(self, points: int, generator: torch.Generator) -> Float[Tensor, "points domains inputs"]:
        """Corners of each region's box, pulled into its ball."""
        unit = torch.rand((points, *self.centre.shape), generator=generator, dtype=torch.float64) - 0.5
        return self._at(unit.to(self.centre).sign())

    def _at(self, unit: Tensor) -> Tensor:
        """Points of the box by coordinates of -1 to 1, pulled into the ball."""
        return self.nearest((self.upper + self.lower) / 2 + (self.upper - self.lower) / 2 * unit)

    def nearest(self, x: Tensor) -> Tensor:
        """Points (..., domains, inputs) pulled into the region: scaled into the ball, then cut to the box (which holds the centre)."""
        if self.norm != "inf":
            step = x - self.centre
            length = torch.linalg.vector_norm(step, ord=float(self.norm), dim=-1, keepdim=True)
            # A hair short of the sphere, so that rounding does not put the point outside.
            x = self.centre + step * (self.eps * (1 - 1e-12) / length.clamp(min=torch.finfo(x.dtype).tiny)).clamp(max=1)
        return torch.maximum(torch.minimum(x, self.upper), self.lower)


def joined_regions(regions: list[Region]) -> Region:
    """The domains of all, in order; radius and norm are the same, and all or none have half-spaces."""
    first = regions[0]
    cuts = None
    if first.cuts is not None:
        parts = [region.cuts for region in regions if region.cuts is not None]
        cuts = HalfSpaces(torch.cat([part.H for part in parts]), torch.cat([part.h for part in parts]))
    centre, lower, upper = (
        torch.cat([getattr(region, name) for region in regions]) for name in ("centre", "lower", "upper")
    )
    return Region(centre, first.eps, first.norm, lower, upper, cuts)

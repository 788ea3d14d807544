"""What rounding can add to a bound by linear propagation, charged step by step.

A row of coefficients A on a value v is carried to an earlier value y by ``A W``, and a computer finds another row, off by at most
``gamma(k) |A| |W|``. The computed row is taken as it is, and what it misses is closed at once with the largest ``|y|``: the bound grows by

    gamma(k) |A| (|W| |y|)

in which ``|W| |y|``, the step's *rate*, is one vector for all rows. So rigour costs a scalar product for each row and step, and no second
product with the weights. Slopes of lines may be any numbers; what their intercepts are off by is charged in the same way. The same holds
for coefficients on gradients, with the transposed maps and the largest gradient.

Source: the running error analysis of Higham 2002, section 3.3; closing each step with intervals is ours.
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lilliput.certify.rounding import gamma, outward, tiny, up

if TYPE_CHECKING:
    from lilliput.certify.linear_map import LinearMap
    from lilliput.certify.network import Activation, Affine, Network
    from lilliput.certify.preactivation import Lines
    from lilliput.certify.region import Region

Interval = tuple[Tensor, Tensor]

ROWS = ("rows",)
"""Key of the last step of gradients, to the rows themselves."""


def largest(interval: Interval) -> Tensor:
    """Greatest absolute value in it."""
    return torch.maximum(interval[0].abs(), interval[1].abs())


class Charges:
    """Rates of the steps passed so far, (domains, elements) or (domains, rows, elements)."""

    def __init__(self, network: Network) -> None:
        self.network, self.dtype = network, network.dtype
        # Every sum over steps and readers has fewer terms than this, and no elementwise step has 16 roundings.
        self.extra = 16 + network.terms
        self.rates: dict[Hashable, Tensor] = {}
        self.underflow: Tensor | float = 0.0
        """Charged once to each row, whatever its coefficients: products of them too small for the format."""

    def gamma(self, roundings: int) -> float:
        """``gamma`` of some roundings and of those that every sum passes."""
        return gamma(roundings + self.extra, self.dtype)

    def _add(self, key: Hashable, rate: Tensor, roundings: int, met: Tensor) -> None:
        """Add a step whose coefficients, each off by that many underflows, meet values of at most those sizes (*lead, elements)."""
        self.rates[key] = rate
        terms = roundings + self.extra + rate.shape[-1]
        self.underflow = self.underflow + 8 * terms * tiny(self.dtype) * (1 + met.sum(-1))


class ValueCharges(Charges):
    """For coefficients on values, which go from the outputs to the input over a region."""

    def __init__(self, network: Network, region: Region) -> None:
        super().__init__(network)
        most = largest((region.lower, region.upper)) + region.centre.abs() + region.eps
        n = most.shape[-1]
        self._add(network.input, self.gamma(2 * n) * most, n, most)
        self.underflow = self.underflow + 2 * region.eps * n * tiny(self.dtype) ** 0.5  # squares of an l_2 norm

    def affine(self, step: Affine, values: dict[str, Interval], computed: Interval) -> Interval:
        """Add an affine step, and make its computed interval one that surely holds the value."""
        roundings = max(linear.roundings for _, linear in step.terms)
        floor = 8 * (roundings + self.extra) * tiny(self.dtype)
        total = torch.full_like(computed[0], floor)
        met: list[Tensor] = []
        for name, linear in step.terms:
            most = largest(values[name])
            total = total + self.gamma(linear.roundings) * linear.apply(most, absolute=True)
            met.append(most.flatten(1))
        if step.bias is not None:
            total = total + self.gamma(16) * (step.bias.abs() if step.folded is None else step.folded)
        interval = outward(computed, total)
        if step.bias is not None:
            total = total + self.gamma(total[0].numel()) * step.bias.abs()
        self._add(step.name, total.flatten(1), roundings, torch.cat(met, 1))
        return interval

    def gate_range(self, step: Activation, computed: Interval) -> Interval:
        """The computed range of a gate's value, made one that surely holds it."""
        # A knot is off by its own rounding; where it is 0, as a ReLU's, it is not.
        knots = step.gate.steepest * max(
            (abs(knot.at) for knot in step.gate.knots if math.isfinite(knot.at)), default=0
        )
        off = gamma(16, self.dtype) * (largest(computed) + knots) + 8 * tiny(self.dtype) * (1 + step.gate.steepest)
        return outward(computed, off)

    def gate(self, step: Activation, z: Interval, lines: Lines, computed: Interval) -> None:
        """Add a gate, whose lines and range were computed from z; all (domains, units), or lines of each row and side."""
        most, value = largest(z), largest(computed)
        slope = torch.maximum(lines.below_k.abs(), lines.above_k.abs())
        intercept = torch.maximum(lines.below_b.abs(), lines.above_b.abs())
        if slope.dim() > 2:
            most, value = most[:, None], value[:, None]
        rate = self.gamma(16) * (value + (slope + step.gate.steepest) * most)
        floor = 8 * tiny(self.dtype) * (1 + slope + step.gate.steepest) * (1 + most)
        rate = rate + self.gamma(2 * most.shape[-1]) * 2 * intercept + floor
        self._add(step.name, rate, 16, largest(z))

    def of(self, key: Hashable, A: Tensor) -> Tensor:
        """Charge of rows of coefficients (sides, domains or 1, rows, elements): (sides, domains, rows)."""
        rate = self.rates[key]
        size = A.abs()
        return (size @ rate[:, :, None]).squeeze(-1) if rate.dim() == 2 else (size * rate).sum(-1)

    def closed(self, bound: Tensor, slack: Tensor | float) -> Tensor:
        """The computed bounds (sides, domains, rows) with all that was charged to them."""
        return up(bound + up(slack + torch.as_tensor(self.underflow)[..., None]))


class GradientCharges(Charges):
    """For coefficients on gradients, which go from the input to the given rows of the outputs (domains, rows, outputs)."""

    def __init__(self, network: Network, rows: Tensor) -> None:
        super().__init__(network)
        self.lead = rows.shape[:2]
        self._add(ROWS, self.gamma(rows.shape[-1]) * rows.abs(), rows.shape[-1], rows.abs())

    def affine(self, step: Affine, place: int, linear: LinearMap, g: Interval, computed: Interval) -> Interval:
        """Add a term of an affine step, and make the computed interval of its gradient one that surely holds it: (N, *shape)."""
        most = largest(g)
        floor = 8 * (linear.roundings + self.extra) * tiny(self.dtype)
        rate = self.gamma(linear.roundings) * linear.transpose(most, absolute=True) + floor
        self._add((step.name, place), rate.reshape(*self.lead, -1), linear.roundings, most.reshape(*self.lead, -1))
        return outward(computed, rate)

    def gate(self, step: Activation, slope: Interval, g: Interval, computed: Interval) -> Interval:
        """Add a gate with slopes (domains, units), and widen the computed range of slope times gradient, (domains, rows, units)."""
        most, steepest = largest(g), largest(slope)[:, None]
        product = steepest * most
        # A line through a gradient of both signs has an intercept of at most twice the product.
        is_mixed = (g[0] < 0) & (g[1] > 0)
        lift = torch.where(is_mixed, self.gamma(2 * most.shape[-1]) * 2 * product, 0.0)
        floor = 8 * tiny(self.dtype) * (1 + steepest) * (1 + most)
        self._add(step.name, self.gamma(16) * product + lift + floor, 16, most)
        is_zero = (steepest == 0) | (most == 0)
        return outward(computed, torch.where(is_zero, 0.0, gamma(16, self.dtype) * product + tiny(self.dtype)))

    def of(self, key: Hashable, B: Tensor) -> Tensor:
        """Charge of rows of coefficients (sides, domains or 1, rows or 1, specs, elements): (sides, domains, rows, specs)."""
        return dot(B.abs(), self.rates[key][None, :, :, None])

    def closed(self, bound: Tensor, slack: Tensor | float) -> Tensor:
        """The computed bounds (sides, domains, rows, specs) with all that was charged to them."""
        return up(bound + up(slack + torch.as_tensor(self.underflow)[..., None]))

    def with_sum(self, bound: Tensor, terms: Tensor) -> Tensor:
        """The computed sum (domains, rows) of a bound and of numbers no larger than these (domains, rows, n), with its rounding."""
        n = terms.shape[-1]
        return up(bound + up(self.gamma(2 * n) * terms.sum(-1) + 8 * n * tiny(self.dtype)))


def dot(B: Tensor, v: Tensor) -> Tensor:
    """Sum over the last axis of (sides, domains, rows, specs, units) times (1, domains, rows, 1, units)."""
    if B.shape[1] == B.shape[2] == 1 and v.shape[1] * v.shape[2] > 1:
        product = B[:, 0, 0] @ v.reshape(-1, v.shape[-1]).T  # one matrix product instead of an expanded tensor
        return product.reshape(len(B), -1, *v.shape[1:3]).permute(0, 2, 3, 1)
    return (B @ v.squeeze(3).unsqueeze(-1)).squeeze(-1)

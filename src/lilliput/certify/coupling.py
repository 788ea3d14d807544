"""Smooth gates told where their input is: the derivative ``d = s'(z)`` follows z instead of being anywhere in its range.

A gate that hands ``d g`` on costs, with d anywhere in [d_l, d_u], an error of the first order in the region's size. Lines above and below
s' make d a linear function of z up to an error of the second order. The coefficients that gather on the gates' inputs are then pulled back
to the network's input like any row (``upper_bound``), and the Jacobian's bound is off by the second order only. A derivative that jumps and
does nothing else, such as ReLU's, has no such lines.

Source: ours; bounding s'(z) by lines, and the product by McCormick's planes, is auto_LiRPA's treatment of Jacobians (Shi et al. 2022,
arXiv:2210.07394, section 3.1) for general activations.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from lilliput.certify.network import Network
from lilliput.certify.preactivation import Lines, Preactivations, relax, upper_bound
from lilliput.certify.region import Region


@dataclass(frozen=True)
class Coupling:
    """What ties the gates' derivatives to the network's input, in each domain."""

    network: Network
    region: Region
    values: Mapping[int, Lines]
    """Lines around every gate, (domains, units)."""
    derivatives: Mapping[int, Lines]
    """Lines around the derivative less the middle of its range, for the gates that have them."""

    @staticmethod
    def of(network: Network, region: Region, masks: Preactivations) -> Coupling | None:
        """The lines that these bounds of the gates' inputs allow; none where no gate is smooth."""
        values, derivatives = {}, {}
        for step, lower, upper in zip(network.gates, masks.lower, masks.upper, strict=True):
            values[step.index] = Lines(*step.gate.lines(lower, upper))
            if step.gate.derivative is not None:
                least, greatest = step.gate.slope_range(lower, upper)
                below_k, below_b, above_k, above_b = step.gate.derivative.lines(lower, upper)
                middle = (least + greatest) / 2
                derivatives[step.index] = Lines(below_k, below_b - middle, above_k, above_b - middle)
        return Coupling(network, region, values, derivatives) if derivatives else None

    def take(self, domains: slice) -> Coupling:
        """Some of the domains."""

        def some(lines: Mapping[int, Lines]) -> dict[int, Lines]:
            return {index: line.take(domains) for index, line in lines.items()}

        return replace(
            self, region=self.region.take(domains), values=some(self.values), derivatives=some(self.derivatives)
        )

    def on_input(self, gate: int, coefficients: Tensor) -> tuple[Tensor, Tensor]:
        """Coefficients on the gate's input and a constant, above those on ``d - middle``: (sides, domains, rows, specs, units)."""
        line = self.derivatives[gate]
        below, above = (line.below_k, line.below_b), (line.above_k, line.above_b)
        return relax(coefficients, *(each[None, :, None, None] for each in (*below, *above)))

    def most(self, rows: Mapping[int, Tensor]) -> Tensor:
        """Greatest value, over each domain's region, of coefficients on gates' inputs: to (sides, domains, rows, specs)."""
        some = next(iter(rows.values()))
        sides, lead = len(some), some.shape[1:4]
        flat: dict[str, Tensor] = {}
        for gate, each in rows.items():
            source = self.network.gates[gate].source
            each = each.flatten(2, 3)
            flat[source] = each if source not in flat else flat[source] + each
        return upper_bound(self.network, self.region, flat, self.values)[:sides].reshape(sides, *lead)

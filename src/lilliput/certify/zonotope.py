"""Zonotopes: values and gradients as affine functions of shared symbols, carried through the network once for all units.

CROWN pulls every unit back by itself, so it costs a pass for each unit in question: thousands in a convolutional network. A zonotope costs
a pass for each *symbol*: the input's elements, and one for each undecided unit on the way, which in small regions are few. Its lines above
and below a gate are parallel, so it is a little looser than CROWN; it says cheaply which units are worth CROWN's pass.

Forward, ``z = A x + c + sum of radius_s e_s`` with a symbol e_s in [-1, 1] for each undecided unit. Backward, the gradient of row r is
``m_r + sum of radius_rs e_s p_s``: behind a gate ``d g`` is within ``d_mid g +- (d_u - d_l) / 2 max |g|``, so the directions p_s are the
same for all rows, and only the radii are each row's own.

Source: Singh et al. 2018, "Fast and effective robustness certification" (DeepZ), section 4, for the values; the gradients' side is ours.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod

import torch
from torch import Tensor

from lilliput.certify.interval import Interval
from lilliput.certify.network import Activation, Affine, Network, sum_of
from lilliput.certify.region import Region

MOST_SYMBOL_BYTES = 256 * 1024**2
"""Of one domain's symbols at the widest value; where they would take more, there is no zonotope, and intervals have to do."""
_FEW_SYMBOL_BYTES = 16 * 1024**2
"""Domains are taken together only while the input's symbols are below this, so that they stay in the caches."""


def symbol_bytes(network: Network, symbols: int) -> int:
    """Of one domain, at the widest value."""
    return symbols * max(prod(shape) for shape in network.shapes.values()) * network.dtype.itemsize


def is_affordable(network: Network, symbols: int) -> bool:
    """Whether so many symbols may be carried."""
    return symbol_bytes(network, symbols) <= MOST_SYMBOL_BYTES


class Zonotopes:
    """One for every few domains."""

    def __init__(self, network: Network, region: Region) -> None:
        at_once = max(1, _FEW_SYMBOL_BYTES // symbol_bytes(network, network.inputs))
        starts = range(0, len(region.centre), at_once)
        self.parts = [slice(start, start + at_once) for start in starts]
        self.zonotopes = [Zonotope(network, region.take(part)) for part in self.parts]

    def interval(self, gate: Activation, lower: Sequence[Tensor], upper: Sequence[Tensor]) -> Interval:
        """As of one zonotope."""
        with torch.no_grad():
            found = [
                each.interval(gate, [t[part] for t in lower], [t[part] for t in upper])
                for each, part in zip(self.zonotopes, self.parts, strict=True)
            ]
        return torch.cat([low for low, _ in found]), torch.cat([high for _, high in found])


class Zonotope:
    """The values, as far as they have been asked for."""

    def __init__(self, network: Network, region: Region) -> None:
        domains, inputs = region.centre.shape
        shape = network.shapes[network.input]
        eye = torch.eye(inputs, dtype=network.dtype, device=network.device)
        self.network, self.region, self.position = network, region, 0
        self.constants = {network.input: region.centre.new_zeros((domains, *shape))}
        self.symbols = {network.input: eye.reshape(inputs, *shape).expand(domains, inputs, *shape)}
        """Coefficients of the input's elements, then of the gates' symbols: (domains, symbols, *shape)."""

    def interval(self, gate: Activation, lower: Sequence[Tensor], upper: Sequence[Tensor]) -> Interval:
        """Of the gate's input, (domains, units); from bounds of the inputs of all gates before it, which need not come from here."""
        while (step := self.network.steps[self.position]) is not gate:
            if isinstance(step, Affine):
                self._affine(step)
            else:
                self._gate(step, lower[step.index], upper[step.index])
            for name in [name for name in self.constants if self.network.last_reader[name] <= self.position]:
                del self.constants[name], self.symbols[name]
            self.position += 1
        constant, symbols = self.constants[gate.source].flatten(1), self.symbols[gate.source].flatten(2)
        coefficients = symbols[:, : self.network.inputs].transpose(1, 2)[None]
        rest = symbols[:, self.network.inputs :].abs().sum(1)
        least, most = self.region.range(coefficients)
        return constant + least[0] - rest, constant + most[0] + rest

    def _affine(self, step: Affine) -> None:
        constant = sum_of([linear.apply(self.constants[name]) for name, linear in step.terms])
        self.constants[step.name] = constant if step.bias is None else constant + step.bias
        self.symbols[step.name] = _sum([_each(linear.apply, self.symbols[name]) for name, linear in step.terms])

    def _gate(self, step: Activation, lower: Tensor, upper: Tensor) -> None:
        """``s(z)`` is within ``k z + b +- radius`` with the chord's slope k."""
        constant, symbols = self.constants[step.source].flatten(1), self.symbols[step.source].flatten(2)
        least, greatest = step.gate.slope_range(lower, upper)
        chord = (step.gate.value(upper) - step.gate.value(lower)) / (upper - lower).clamp(
            min=torch.finfo(lower.dtype).tiny
        )
        k = torch.maximum(torch.minimum(chord, greatest), least)
        low, high = step.gate.extremes(k, lower, upper)
        before = max(each.shape[1] for each in self.symbols.values())
        radius = torch.where(least < greatest, (high - low) / 2, 0.0)
        symbols = _passed(symbols, k, before, _places(least < greatest), radius)
        shape = self.network.shapes[step.name]
        self.constants[step.name] = (constant * k + (low + high) / 2).unflatten(1, shape)
        self.symbols[step.name] = symbols.unflatten(2, shape)


class GradientZonotope:
    """The gradients of rows of outputs, as far back as they have been asked for."""

    def __init__(self, network: Network, slopes: list[Interval], rows: Tensor) -> None:
        self.network, self.slopes, self.position = network, slopes, len(network.steps) - 1
        self.middles = {network.output: rows.unflatten(2, network.shapes[network.output])}
        """Without symbols, (domains, rows, *shape)."""
        self.directions: dict[str, Tensor] = {}
        """Of each symbol, (domains, symbols, *shape)."""
        self.radii = rows.new_zeros((*rows.shape[:2], 0))
        """Of each symbol, (domains, rows, symbols)."""

    def interval(self, name: str, elements: Tensor, behind: Sequence[Interval | None]) -> Interval:
        """Of some elements of a value's gradient, (domains, rows, elements), from bounds of it behind all later gates."""
        while self.position >= 0 and (step := self.network.steps[self.position]).name != name:
            middle, directions = self.middles.pop(step.name, None), self.directions.pop(step.name, None)
            self.position -= 1
            if middle is None:
                continue
            if isinstance(step, Affine):
                for source, linear in step.terms:
                    self._add(
                        source,
                        _each(linear.transpose, middle),
                        None if directions is None else _each(linear.transpose, directions),
                    )
            else:
                g = behind[step.index]
                assert g is not None
                self._gate(step, middle.flatten(2), directions, torch.maximum(g[0].abs(), g[1].abs()))
        if name not in self.middles:  # nothing reads it on the way to the output
            return (self.radii.new_zeros((*self.radii.shape[:2], len(elements))),) * 2
        middle = self.middles[name].flatten(2)[..., elements]
        if name not in self.directions:
            return middle, middle
        directions = self.directions[name].flatten(2)[..., elements]
        radius = self.radii[..., : directions.shape[1]] @ directions.abs()
        return middle - radius, middle + radius

    def _gate(self, step: Activation, middle: Tensor, directions: Tensor | None, size: Tensor) -> None:
        least, greatest = self.slopes[step.index]
        mean, half, before = (greatest + least) / 2, (greatest - least) / 2, self.radii.shape[2]
        places = _places(least < greatest)
        own = size.gather(2, places[:, None].expand(-1, size.shape[1], -1))
        self.radii = torch.cat([self.radii, own], 2)
        old = middle.new_zeros((len(middle), 0, middle.shape[2])) if directions is None else directions.flatten(2)
        shape = self.network.shapes[step.source]
        directions = _passed(old, mean, before, places, half).unflatten(2, shape)
        self._add(step.source, (middle * mean[:, None]).unflatten(2, shape), directions)

    def _add(self, name: str, middle: Tensor, directions: Tensor | None) -> None:
        self.middles[name] = self.middles[name] + middle if name in self.middles else middle
        if directions is not None:
            self.directions[name] = _sum([self.directions[name], directions]) if name in self.directions else directions


def _each(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """A linear map of (domains, symbols, *shape)."""
    return function(x.flatten(0, 1)).unflatten(0, x.shape[:2])


def _sum(terms: list[Tensor]) -> Tensor:
    """Values that branched off earlier lack the later symbols."""
    most = max(each.shape[1] for each in terms)
    return sum_of([_padded(each, most) for each in terms])


def _padded(symbols: Tensor, count: int) -> Tensor:
    missing = count - symbols.shape[1]
    return (
        torch.cat([symbols, symbols.new_zeros((len(symbols), missing, *symbols.shape[2:]))], 1) if missing else symbols
    )


def _places(is_open: Tensor) -> Tensor:
    """Where each domain's open units are, (domains, symbols); a domain with fewer than another names decided ones too."""
    return is_open.to(torch.uint8).topk(int(is_open.sum(1).max()), dim=1).indices


def _passed(symbols: Tensor, k: Tensor, before: int, places: Tensor, radius: Tensor) -> Tensor:
    """Symbols (domains, symbols, units) behind a gate: those there were, times k, and one for each place; radii of decided units are 0."""
    result = symbols.new_empty((len(symbols), before + places.shape[1], symbols.shape[2]))
    torch.mul(symbols, k[:, None], out=result[:, : symbols.shape[1]])
    result[:, symbols.shape[1] :] = 0.0
    result[:, before:].scatter_(2, places[..., None], radius.gather(1, places)[..., None])
    return result

"""Bounds of every gate's input by backward linear propagation (CROWN), cut with interval arithmetic.

A row ``a . z`` is pulled back step by step; at a gate, a positive coefficient takes the line above it and a negative one the line below,
until only the input is left, where the greatest value is known in closed form. Lower bounds are upper bounds of ``-a . z``: coefficients
carry a leading axis of two *sides*, the row and its negative, once they differ. Where interval arithmetic leaves more units undecided than
a zonotope has symbols, the zonotope decides most of them first (``lilliput.certify.zonotope``).

Source: Zhang et al. 2018 (arXiv:1811.00866), section 3. Ours differs: rows, domains and centres in one batch; only units that are still
undecided are pulled back; lines for any gate (see ``lilliput.certify.gate``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from lilliput.certify.charges import ValueCharges
from lilliput.certify.interval import Interval, affine_interval, intersect
from lilliput.certify.network import Activation, Network
from lilliput.certify.region import Region
from lilliput.certify.zonotope import Zonotopes, is_affordable

MEMORY_BUDGET_BYTES = 32 * 1024**2
"""Coefficients are propagated in chunks of rows so that the temporaries of one chunk stay about below this.

Small chunks stay in the caches: on a 28x28 network of two convolutions 256 MB take 1.5 s and 32 MB 0.8 s, on one core.
"""


@dataclass(frozen=True)
class Preactivations:
    """Bounds of each gate's input, in the order of ``network.gates``; each tensor is (domains, units).

    They are the *masks* of branch and bound as well: a domain that fixes a ReLU on has lower > 0 there, one that fixes it off upper < 0.
    """

    lower: tuple[Tensor, ...]
    upper: tuple[Tensor, ...]

    def __len__(self) -> int:
        """Number of domains."""
        return len(self.lower[0]) if self.lower else 0

    def take(self, domains: Tensor | slice) -> Preactivations:
        """Some of the domains."""
        return Preactivations(tuple(t[domains] for t in self.lower), tuple(t[domains] for t in self.upper))

    def slopes(self, network: Network) -> list[Interval]:
        """Range of each gate's derivative."""
        bounds = zip(network.gates, self.lower, self.upper, strict=True)
        return [step.gate.slope_range(lower, upper) for step, lower, upper in bounds]


def stacked(parts: list[Preactivations]) -> Preactivations:
    """The domains of all, in order."""
    return Preactivations(
        tuple(torch.cat(each) for each in zip(*(part.lower for part in parts), strict=True)),
        tuple(torch.cat(each) for each in zip(*(part.upper for part in parts), strict=True)),
    )


@dataclass(frozen=True)
class Lines:
    """``below_k z + below_b <= s(z) <= above_k z + above_b`` for one gate's units.

    (domains, units), (domains, rows, units), or (sides, domains, rows, units).
    """

    below_k: Tensor
    below_b: Tensor
    above_k: Tensor
    above_b: Tensor

    def take(self, domains: Tensor | slice) -> Lines:
        """Some of the domains."""
        return Lines(self.below_k[domains], self.below_b[domains], self.above_k[domains], self.above_b[domains])


def rows_per_chunk(network: Network, copies: int, budget_bytes: int | None = None) -> int:
    """How many rows fit the budget, each held ``copies`` times at the widest value, with four temporaries."""
    widest = max(torch.Size(shape).numel() for shape in network.shapes.values())
    return max(1, (budget_bytes or MEMORY_BUDGET_BYTES) // (4 * copies * widest * network.dtype.itemsize))


def preactivations(
    network: Network,
    region: Region,
    *,
    within: Preactivations | None = None,
    method: str = "crown",
    lower_slopes: Mapping[int, Tensor] | None = None,
) -> Preactivations:
    """Bounds of every gate's input over each domain's region, first gate first.

    Args:
        within: bounds that are known to hold already (for a split domain, its signs); the result is inside them, and they
            tighten what comes after.
        method: "crown"; "zonotope", or "ibp" for interval arithmetic, alone.
        lower_slopes: for some gates, slopes of the line below, (domains, units); any value is sound.
    """
    shape = network.shapes[network.input]
    domains = len(region.centre)
    values: dict[str, Interval] = {network.input: (region.lower.reshape(-1, *shape), region.upper.reshape(-1, *shape))}
    lower: list[Tensor] = []
    upper: list[Tensor] = []
    lines: dict[int, Lines] = {}
    charges = ValueCharges(network, region) if network.rigorous else None
    zonotopes, symbols = Zonotopes(network, region), network.inputs
    for step in network.steps:
        if not isinstance(step, Activation):
            values[step.name] = affine_interval(step, values, charges)
            continue
        z = (values[step.source][0].reshape(domains, -1), values[step.source][1].reshape(domains, -1))
        if within is not None:
            z = intersect(z, (within.lower[step.index], within.upper[step.index]))
        if method != "ibp" and lines and charges is None and is_affordable(network, symbols):
            undecided = int(_is_undecided(step, z).any(0).sum())
            if method == "zonotope" or undecided > symbols:
                z = intersect(z, zonotopes.interval(step, lower, upper))
        # Before the first gate intervals are as good, unless half-spaces cut the box.
        if method == "crown" and (lines or region.cuts is not None):
            z = _pulled_back(network, region, step, z, lines, charges)
        symbols += int(_is_undecided(step, z).sum(1).max())
        lower.append(z[0])
        upper.append(z[1])
        chosen = lower_slopes.get(step.index) if lower_slopes is not None else None
        lines[step.index] = Lines(*step.gate.lines(*z, chosen))
        out = step.gate.output_range(*z)
        if charges is not None:
            charges.gate(step, z, lines[step.index], out)
            out = charges.gate_range(step, out)
        at = (domains, *network.shapes[step.source])
        values[step.name] = (out[0].reshape(at), out[1].reshape(at))
    return Preactivations(tuple(lower), tuple(upper))


def _is_undecided(step: Activation, z: Interval) -> Tensor:
    least, greatest = step.gate.slope_range(*z)
    return least < greatest


def _pulled_back(
    network: Network,
    region: Region,
    step: Activation,
    z: Interval,
    lines: Mapping[int, Lines],
    charges: ValueCharges | None,
) -> Interval:
    """The interval cut by CROWN at the units whose gate it leaves undecided in some domain."""
    undecided = _is_undecided(step, z)
    if not bool(undecided.any()):
        return z
    lower, upper = z[0].clone(), z[1].clone()
    for units in marked(undecided).split(rows_per_chunk(network, 2 * len(z[0])), 1):
        rows = z[0].new_zeros((1, *units.shape, z[0].shape[1])).scatter_(3, units[None, :, :, None], 1.0)
        most = upper_bound(network, region, {step.source: rows}, lines, charges=charges)
        at = units.expand(len(z[0]), -1)
        cut = intersect((z[0].gather(1, at), z[1].gather(1, at)), (-most[1], most[0]))
        wanted = undecided.gather(1, at)
        lower.scatter_(1, at, torch.where(wanted, cut[0], z[0].gather(1, at)))
        upper.scatter_(1, at, torch.where(wanted, cut[1], z[1].gather(1, at)))
    return lower, upper


def marked(mask: Bool[Tensor, "domains elements"]) -> Int64[Tensor, "lists places"]:
    """Where to look to see every marked element: one list for all domains or, if those are much shorter, one for each.

    Lists of domains with fewer marks are filled up with other elements.
    """
    for_all = mask.any(0).nonzero().T
    longest = int(mask.sum(1).max()) if mask.numel() else 0
    if 2 * longest > for_all.shape[1]:
        return for_all
    return mask.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :longest]


def upper_bound(
    network: Network,
    region: Region,
    rows: Mapping[str, Tensor],
    lines: Mapping[int, Lines],
    multipliers: Mapping[int, Tensor] | None = None,
    *,
    charges: ValueCharges | None = None,
) -> Tensor:
    """Greatest value of ``sum over values v of rows[v] . v`` and of its negative, by backward linear propagation; differentiable.

    Args:
        rows: value name to coefficients (sides 1 or 2, domains 1 or D, rows, elements); with one side, the second is its negative.
        lines: for every gate in front of those values.
        multipliers: gate to what is added to the coefficients on its input, (1 or 2, domains, 1 or rows, units). Sound where it is
            ``beta * sign`` with ``beta >= 0`` and the domain says ``sign * z >= 0``, for then it adds nothing negative.
        charges: for rounding, of all steps in front of those values; needed where the network is rigorous.
    Returns:
        (2, domains, rows): upper bounds of the rows, and of their negatives.
    """
    assert (charges is not None) == network.rigorous, "a rigorous network's bounds need charges, others have none"
    assert charges is None or (multipliers is None and region.cuts is None), "rounding of those is not charged"
    slack: list[Tensor] = []
    charge = None if charges is None else lambda name, A: slack.append(charges.of(name, A))
    A, bias = upper_line(network, rows, lines, multipliers, charge)
    A = A.expand(2, len(region.centre), *A.shape[2:])
    most = region.most(A) + bias
    return most if charges is None else charges.closed(most, sum(slack, charges.of(network.input, A)))


def upper_line(
    network: Network,
    rows: Mapping[str, Tensor],
    lines: Mapping[int, Lines],
    multipliers: Mapping[int, Tensor] | None = None,
    charge: Callable[[str, Tensor], None] | None = None,
) -> tuple[Tensor, Tensor]:
    """The linear function of the input that ``upper_bound`` takes the greatest value of: ``A . x + bias``.

    Args:
        charge: hears of each step's name and the coefficients that are carried through it.
    Returns:
        A (sides, domains or 1, rows, n) and bias, which broadcasts to (sides, domains, rows).
    """
    coefficients = {name: _sided(A) for name, A in rows.items()}
    bias: Tensor | float = 0.0
    for step in reversed(network.steps):
        A = coefficients.pop(step.name, None)
        if A is None:
            continue
        lead = A.shape[:3]
        if charge is not None:
            charge(step.name, A)
        if isinstance(step, Activation):
            line = lines[step.index]
            A, more = relax(A, _rows(line.below_k), _rows(line.below_b), _rows(line.above_k), _rows(line.above_b))
            bias = bias + more
            if multipliers is not None and step.index in multipliers:
                A = A + multipliers[step.index]
            coefficients[step.source] = A if step.source not in coefficients else coefficients[step.source] + A
            continue
        flat = A.reshape(-1, *network.shapes[step.name])
        if step.bias is not None:
            bias = bias + (flat * step.bias).flatten(1).sum(1).reshape(lead)
        for name, linear in step.terms:
            more = linear.transpose(flat).reshape(*lead, -1)
            coefficients[name] = more if name not in coefficients else coefficients[name] + more
    A = coefficients.get(network.input)
    if A is None:  # nothing depends on the input
        A = next(iter(rows.values())).new_zeros((2, 1, 1, network.inputs))
    return A, torch.as_tensor(bias, dtype=A.dtype, device=A.device)


def _sided(A: Tensor) -> Tensor:
    return torch.cat([A, -A]) if len(A) == 1 else A


def _rows(line: Tensor) -> Tensor:
    """(domains, units) or (domains, rows, units), made to meet (sides, domains, rows, units); one that does already stays."""
    return line[None, :, None] if line.dim() == 2 else line[None] if line.dim() == 3 else line


def relax(A: Tensor, below_k: Tensor, below_b: Tensor, above_k: Tensor, above_b: Tensor) -> tuple[Tensor, Tensor]:
    """Coefficients and constant of the line that is above ``A . s(z)``: above where A > 0, below where A < 0.

    Written with half sums and half differences, ``A k_mid + |A| k_half``, which is fewer passes over memory than two clamps.
    """
    size = A.abs()
    B = torch.addcmul(A * ((above_k + below_k) / 2), size, (above_k - below_k) / 2)
    middle, half = (above_b + below_b) / 2, (above_b - below_b) / 2
    return B, (A * middle).sum(-1) + (size * half).sum(-1)

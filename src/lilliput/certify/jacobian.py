"""Bounds of the Jacobian's rows and of their norms: linear propagation along the chain of gradients.

Behind a gate ``a = s(z)`` the gradient is ``g_z = d g_a`` with ``d = s'(z)`` somewhere in [d_l, d_u] and ``g_a`` in [l, u]. The greatest
and the least ``d g`` over d are convex and concave in g, so their chords over [l, u] are the tightest lines that hold for all d:

    d g <= above g + lift,  above = (d_u u - d_l l) / (u - l),  lift = -l u (d_u - d_l) / (u - l)      (l < 0 < u)
    d g >= below g - lift,  below = (d_l u - d_u l) / (u - l)

and where g has one sign they are ``d_u g`` and ``d_l g`` themselves. For ReLU, d_l = 0 and d_u = 1 where the gate is unstable. A row of
coefficients on some gradient is carried *forward* through the network, from the input's side to the outputs', where the gradient is the
given row of outputs; the intervals [l, u] are found so themselves, last gate first.

Of a smooth gate d is known to follow z, up to little (``lilliput.certify.coupling``). Two of McCormick's planes lie above d g on the
rectangle of d and g, and two below; the mean of each two leaves

    d g = d_mid g + g_mid (d - d_mid) +- (d_u - d_l) (u - l) / 4.

Every bound is then the lesser of both: the lines for any d are the better ones where d's own lines are loose.

Source: Shi et al. 2022 (arXiv:2210.07394), section 3: the closed form for clipped ReLU gradients. Ours differs: the same form for any gate
with d in an interval; all rows and domains in one batch; intervals only where a gate is undecided and the gradient's sign too, or the gate
is smooth. ``rule="constant"`` is RecurJac (Zhang et al. 2019, arXiv:1810.11783): no line where the sign is open, but constants.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from lilliput.certify.charges import ROWS, GradientCharges, dot
from lilliput.certify.coupling import Coupling
from lilliput.certify.interval import Interval, dual_norm, gradient_intervals, intersect, scaled
from lilliput.certify.network import Activation, Affine, Network
from lilliput.certify.preactivation import marked, rows_per_chunk
from lilliput.certify.region import DUAL, Norm
from lilliput.certify.rounding import up
from lilliput.certify.zonotope import GradientZonotope, is_affordable, symbol_bytes

Rule = Literal["chord", "constant", "zonotope"]
_HAIR = 4096
"""Of the last place: a gradient whose rarer sign is less than that is of one sign but for rounding, and keeps RecurJac's line."""
_LEAST_ROWS = 16
"""Domains are taken few enough that at least this many rows of coefficients fit one chunk."""
_LITTLE_BYTES = 1024**2
"""Of the coefficients of all rows to be pulled back: below it they are pulled back at once."""


@dataclass(frozen=True)
class JacobianBounds:
    """What is known of each (domain, row)."""

    norm: Float[Tensor, "domains rows"]
    """At most this is the dual norm of the row, anywhere in the domain."""
    jacobian: Interval
    """Interval of the row's elements, (domains, rows, n)."""
    behind: tuple[Interval, ...]
    """For each gate, interval of the gradient with respect to its value, (domains, rows, units)."""
    weights: tuple[Tensor, ...]
    """For each gate, |coefficient| on the gradient in front of it in the bound of the norm, (domains, rows, units): how much that
    bound hangs on the gate. Zeros where the norm needed no propagation."""

    def take(self, domains: Tensor | slice) -> JacobianBounds:
        """Some of the domains."""
        return JacobianBounds(
            self.norm[domains],
            (self.jacobian[0][domains], self.jacobian[1][domains]),
            tuple((lower[domains], upper[domains]) for lower, upper in self.behind),
            tuple(each[domains] for each in self.weights),
        )

    def take_rows(self, rows: Tensor | slice) -> JacobianBounds:
        """Some of the rows, the same in all domains."""
        return JacobianBounds(
            self.norm[:, rows],
            (self.jacobian[0][:, rows], self.jacobian[1][:, rows]),
            tuple((lower[:, rows], upper[:, rows]) for lower, upper in self.behind),
            tuple(each[:, rows] for each in self.weights),
        )

    def by_row(self) -> JacobianBounds:
        """Rows as domains of one row each, and domains as rows: the bounds of one domain, as a batch of its rows."""
        return JacobianBounds(
            self.norm.transpose(0, 1),
            (self.jacobian[0].transpose(0, 1), self.jacobian[1].transpose(0, 1)),
            tuple((lower.transpose(0, 1), upper.transpose(0, 1)) for lower, upper in self.behind),
            tuple(each.transpose(0, 1) for each in self.weights),
        )

    def area(self, slopes: list[Interval]) -> tuple[Tensor, ...]:
        """How much each gate's relaxation may cost, (domains, rows, units): the score that branching takes the largest of.

        ``(l^2 + u^2) |A|`` where the gate is undecided and the gradient behind it may have both signs; where it has one sign,
        ``|u^2 - l^2| |A|``; 0 where the gate is decided. Source: Shi et al. 2022, section 4 and the authors' code, heuristic "area".
        """
        scores = []
        for (lower, upper), weight, (least, greatest) in zip(self.behind, self.weights, slopes, strict=True):
            score = (upper * upper.abs() - lower * lower.abs()) * weight
            scores.append(torch.where((least < greatest)[:, None], score, 0.0))
        return tuple(scores)


def bound_jacobian(
    network: Network,
    slopes: list[Interval],
    rows: Float[Tensor, "domains rows outputs"],
    norm: Norm,
    *,
    rule: Rule = "chord",
    within: JacobianBounds | None = None,
    tight_elements: bool = False,
    coupling: Coupling | None = None,
) -> JacobianBounds:
    """Bounds of the rows and of their dual norm in each domain.

    Args:
        slopes: range of each gate's derivative, (domains, units) each; from ``Preactivations.slopes``, fixed gates included.
        rows: combinations of the outputs whose gradient is bounded; each domain has its own.
        norm: of the input's perturbation; its dual bounds the row.
        rule: "chord"; "constant" for RecurJac; or "zonotope" for chords over intervals from a zonotope, without pulling back.
        within: bounds that hold already (of the domain this one was split from); the result is inside them.
        tight_elements: pull back every element of the Jacobian, not just those that the norm's bound needs.
        coupling: what smooth gates' derivatives are tied to, from ``Coupling.of``; without it they are anywhere in their range.
    """
    at_once = max(1, rows_per_chunk(network, 2 * rows.shape[1] * _LEAST_ROWS))
    parts = []
    for start in range(0, len(rows), at_once):
        some = slice(start, start + at_once)
        of_some = [(lower[some], upper[some]) for lower, upper in slopes]
        part = _Chain(network, of_some, rows[some], rule, None if coupling is None else coupling.take(some))
        parts.append(part.bounds(norm, None if within is None else within.take(some), tight_elements))
    return parts[0] if len(parts) == 1 else joined(parts)


def joined(parts: list[JacobianBounds]) -> JacobianBounds:
    """The domains of all parts, in order."""

    def cat(pairs: list[Interval]) -> Interval:
        return torch.cat([pair[0] for pair in pairs]), torch.cat([pair[1] for pair in pairs])

    gates = range(len(parts[0].behind))
    return JacobianBounds(
        torch.cat([part.norm for part in parts]),
        cat([part.jacobian for part in parts]),
        tuple(cat([part.behind[gate] for part in parts]) for gate in gates),
        tuple(torch.cat([part.weights[gate] for part in parts]) for gate in gates),
    )


@dataclass(frozen=True)
class _Line:
    """``d g`` lies within ``k_mid g + b_mid +- (k_half g_side + b_half)``, plus ``pull (d - d_mid)``; all (1, domains, rows, 1, units)."""

    k_mid: Tensor
    k_half: Tensor | None
    b_mid: Tensor | None
    b_half: Tensor
    pull: Tensor | None = None

    @staticmethod
    def of(slope: Interval, g: Interval, rule: Rule) -> _Line:
        least, greatest = slope[0][:, None], slope[1][:, None]
        lower, upper = g
        beyond = torch.minimum(-lower, upper)  # how far g may have its rarer sign
        is_mixed = beyond > (0 if rule != "constant" else _HAIR * torch.finfo(lower.dtype).eps * (upper - lower))
        width = torch.where(is_mixed, upper - lower, 1.0)
        if rule != "constant":
            above = (greatest * upper - least * lower) / width
            below = (least * upper - greatest * lower) / width
            lift = torch.where(is_mixed, -lower * (upper / width) * (greatest - least), 0.0)
            b_mid = None
        else:
            above = below = torch.zeros_like(lower)
            low, high = scaled((least, greatest), g)
            b_mid = torch.where(is_mixed, (high + low) / 2, 0.0)[None, :, :, None]
            lift = torch.where(is_mixed, (high - low) / 2, beyond.clamp(min=0) * (greatest - least))
        is_negative = -lower > upper
        above = torch.where(is_mixed, above, torch.where(is_negative, least, greatest))
        below = torch.where(is_mixed, below, torch.where(is_negative, greatest, least))
        middle, half = (above + below) / 2, (above - below) / 2
        return _Line(middle[None, :, :, None], half[None, :, :, None], b_mid, lift[None, :, :, None])

    @staticmethod
    def coupled(slope: Interval, g: Interval) -> _Line:
        """The mean of McCormick's planes."""
        least, greatest = slope[0][:, None], slope[1][:, None]
        lower, upper = g
        middle, lift = (greatest + least) / 2, (greatest - least) * (upper - lower) / 4
        pull = (upper + lower) / 2
        return _Line(middle[None, :, :, None], None, None, lift[None, :, :, None], pull[None, :, :, None])


class _Chain:
    """One pass over a batch of domains; ``lines`` fills up from the last gate to the first."""

    def __init__(
        self, network: Network, slopes: list[Interval], rows: Tensor, rule: Rule, coupling: Coupling | None
    ) -> None:
        self.network, self.slopes, self.rows, self.rule, self.coupling = network, slopes, rows, rule, coupling
        self.lines: dict[int, _Line | None] = {}
        self.coupled: dict[int, _Line] = {}
        self.weights: dict[int, Tensor] = {}
        self.charges = GradientCharges(network, rows) if network.rigorous else None
        self.behind: list[Interval | None] = [None] * len(network.gates)
        self.zonotope = GradientZonotope(network, slopes, rows)

    def bounds(self, norm: Norm, within: JacobianBounds | None, tight_elements: bool) -> JacobianBounds:
        """Everything, in the order that each part needs the one before."""

        def cut(step: Activation, g: Interval) -> Interval:
            if within is not None:
                g = intersect(g, within.behind[step.index])
            least, greatest = self.slopes[step.index]
            is_open = ((least != 0) | (greatest != 0)) if self.rule == "constant" else (least < greatest)
            is_coupled = self.coupling is not None and step.index in self.coupling.derivatives
            g = self._tightened(step.name, g, is_open[:, None].expand_as(g[0]), even_of_one_sign=is_coupled)
            self.behind[step.index] = g
            if is_coupled:
                self.coupled[step.index] = _Line.coupled((least, greatest), g)
            is_decided = self.rule != "constant" and not bool((least < greatest).any())
            self.lines[step.index] = None if is_decided else _Line.of((least, greatest), g, self.rule)
            return g

        behind, x = gradient_intervals(self.network, self.slopes, self.rows, cut, self.charges)
        if within is not None:
            x = intersect(x, within.jacobian)
        if any(bool((least < greatest).any()) for least, greatest in self.slopes):
            everything = torch.full_like(x[0], True, dtype=torch.bool)
            # Elements of one sign enter the sum of l_1 as they are.
            x = self._tightened(self.network.input, x, everything, even_of_one_sign=norm != "inf" or tight_elements)
        bound = self._norm(norm, x)
        if within is not None:
            bound = torch.minimum(bound, within.norm)
        weights = tuple(self.weights.get(i, torch.zeros_like(behind[i][0])) for i in range(len(behind)))
        return JacobianBounds(bound, x, behind, weights)

    def _norm(self, norm: Norm, x: Interval) -> Tensor:
        lower, upper = x
        most = torch.maximum(lower.abs(), upper.abs())
        elementwise = dual_norm(most, norm, self.network.rigorous)
        if DUAL[norm] == "inf":
            return elementwise
        if DUAL[norm] == "1":
            is_mixed = (lower < 0) & (upper > 0)
            width = torch.where(is_mixed, upper - lower, 1.0)
            sign = torch.where(lower < 0, -1.0, 1.0)
            slope = torch.where(is_mixed, (upper + lower) / width, sign)
            intercept = torch.where(is_mixed, -2 * lower * (upper / width), 0.0)
            return torch.minimum(self._carried(slope, intercept, most), elementwise)
        square = self._carried(lower + upper, -(lower * upper), most * most)
        root = square.clamp(min=0).sqrt()
        return torch.minimum(root if self.charges is None else up(root), elementwise)

    def _carried(self, coefficients: Tensor, intercept: Tensor, most: Tensor) -> Tensor:
        """Upper bound of one row of coefficients on the Jacobian for each (domain, row), and of the sum of intercepts up to ``most``."""
        start = coefficients[None, :, :, None]
        value = self._most(self.network.input, start, both_sides=False, keep_weights=True)[0, :, :, 0]
        value = value + intercept.sum(-1)
        return value if self.charges is None else self.charges.with_sum(value, most)

    def _tightened(self, name: str, g: Interval, matters: Tensor, even_of_one_sign: bool) -> Interval:
        """The interval of a value's gradient, cut at those elements that matter, and only if their sign is open unless told."""

        def wanted(g: Interval) -> Tensor:
            return matters & (g[0] < g[1]) if even_of_one_sign else matters & (g[0] < 0) & (g[1] > 0)

        if self.rule == "zonotope" or (self.rule == "chord" and not even_of_one_sign and self.charges is None):
            g = self._cut_by_zonotope(name, g, matters if self.rule == "zonotope" else wanted(g))
        return g if self.rule == "zonotope" else self._pulled_back(name, g, wanted(g))

    def _cut_by_zonotope(self, name: str, g: Interval, asked: Tensor) -> Interval:
        """Signs at a pass for each undecided gate. Never tighter than chords, so for those it is only a way to have less to pull back."""
        elements = asked.any(1).any(0).nonzero().squeeze(1)
        symbols = sum(int((least < greatest).sum(1).max()) for least, greatest in self.slopes)
        rows = 2 * asked.shape[1] * len(elements)
        is_little = symbol_bytes(self.network, rows) * len(asked) < _LITTLE_BYTES or rows <= symbols
        if not is_affordable(self.network, symbols) or (self.rule == "chord" and is_little):
            return g
        found = intersect(
            (g[0][..., elements], g[1][..., elements]), self.zonotope.interval(name, elements, self.behind)
        )
        return g[0].index_copy(2, elements, found[0]), g[1].index_copy(2, elements, found[1])

    def _pulled_back(self, name: str, g: Interval, wanted: Tensor) -> Interval:
        """The interval cut at the wanted elements by carrying each of them forward."""
        if not bool(wanted.any()):
            return g
        lower, upper = g[0].clone(), g[1].clone()
        for some in marked(wanted.any(1)).split(rows_per_chunk(self.network, 2 * wanted.shape[0] * wanted.shape[1]), 1):
            unit = g[0].new_zeros((1, len(some), 1, some.shape[1], g[0].shape[2]))
            most = self._most(name, unit.scatter_(4, some[None, :, None, :, None], 1.0), both_sides=True)
            at = some[:, None].expand(*wanted.shape[:2], -1)
            cut = intersect((g[0].gather(2, at), g[1].gather(2, at)), (-most[1], most[0]))
            is_wanted = wanted.gather(2, at)
            lower.scatter_(2, at, torch.where(is_wanted, cut[0], g[0].gather(2, at)))
            upper.scatter_(2, at, torch.where(is_wanted, cut[1], g[1].gather(2, at)))
        return lower, upper

    def _most(self, name: str, start: Tensor, both_sides: bool, keep_weights: bool = False) -> Tensor:
        """Upper bounds of rows of coefficients on a value's gradient, and of their negatives: (sides, domains, rows, specs).

        Args:
            start: (1, domains or 1, rows or 1, specs, elements); axes of 1 stay so until a gate tells domains or rows apart.
        """
        most = self._carry(name, start, {}, both_sides, keep_weights)
        if self.coupled:
            most = torch.minimum(most, self._carry(name, start, self.coupled, both_sides))
        return most

    def _carry(
        self, name: str, start: Tensor, coupled: dict[int, _Line], both_sides: bool, keep_weights: bool = False
    ) -> Tensor:
        coefficients = {name: start}
        bias: Tensor | float = 0.0
        slack: Tensor | float = 0.0
        on_inputs: dict[int, Tensor] = {}
        for index, step in enumerate(self.network.steps):
            if isinstance(step, Activation):
                B = (
                    coefficients.pop(step.source, None)
                    if self.network.last_reader[step.source] == index
                    else coefficients.get(step.source)
                )
                if B is None:
                    continue
                if keep_weights:
                    self.weights[step.index] = B[0, :, :, 0].abs()
                slack = slack + self._charge(step.name, B)
                line = coupled.get(step.index, self.lines[step.index])
                if line is None:
                    B = B * self.slopes[step.index][0][None, :, None, None]
                else:
                    B = torch.cat([B, -B]) if both_sides and len(B) == 1 else B
                    if line.pull is not None:
                        assert self.coupling is not None
                        on_inputs[step.index], more = self.coupling.on_input(step.index, B * line.pull)
                        bias = bias + more
                    B, more = _relaxed(B, line)
                    bias = bias + more
                coefficients[step.name] = B
            else:
                slack = slack + self._affine(step, index, coefficients)
        B = coefficients.get(self.network.output)
        if B is None:
            return self.rows.new_zeros((1 + both_sides, *self.rows.shape[:2], start.shape[3]))
        if on_inputs:
            assert self.coupling is not None
            bias = bias + self.coupling.most(on_inputs)
        value = dot(B, self.rows[None, :, :, None])
        if both_sides and len(value) == 1:
            value = torch.cat([value, -value])
        value = value + bias
        if self.charges is not None:
            value = self.charges.closed(value, slack + self._charge(ROWS, B))
        return value.expand(-1, *self.rows.shape[:2], -1)

    def _charge(self, key: Hashable, B: Tensor) -> Tensor | float:
        """What rounding can cost the coefficients in a step, where that is counted."""
        return 0.0 if self.charges is None else self.charges.of(key, B)

    def _affine(self, step: Affine, index: int, coefficients: dict[str, Tensor]) -> Tensor | float:
        """Carry them through a step; what that costs."""
        total: Tensor | None = None
        slack: Tensor | float = 0.0
        for place, (name, linear) in enumerate(step.terms):
            B = coefficients.get(name)
            if B is None:
                continue
            slack = slack + self._charge((step.name, place), B)
            moved = linear.apply(B.reshape(-1, *self.network.shapes[name])).reshape(*B.shape[:4], -1)
            if total is not None and len(total) != len(moved):  # one of two branches met a gate first
                total, moved = _two_sided(total), _two_sided(moved)
            total = moved if total is None else total + moved
        for name, _ in step.terms:
            if self.network.last_reader[name] == index:
                coefficients.pop(name, None)
        if total is not None:
            coefficients[step.name] = total
        return slack


def _two_sided(B: Tensor) -> Tensor:
    return torch.cat([B, -B]) if len(B) == 1 else B


def _relaxed(B: Tensor, line: _Line) -> tuple[Tensor, Tensor]:
    size = B.abs()
    bias = dot(size, line.b_half)
    if line.b_mid is not None:
        bias = bias + dot(B, line.b_mid)
    relaxed = B * line.k_mid
    return (relaxed if line.k_half is None else relaxed.addcmul_(size, line.k_half)), bias

"""Proofs that a polyhedron has no interior, in whole numbers: what a linear program in floating point can only suggest.

Planes that meet in a point or on a face leave patterns with a largest slack of exactly 0: no point of them is interior, so a neighbour with
the same or a larger region has every gradient that counts. A solver says 1e-17 there, as it does for a sliver that is truly open. By
Farkas' lemma there is no interior if and only if some ``weights >= 0``, not all 0, make ``sum of weights * (a_i . x + c_i)`` at most 0 all
over the box. The solver's dual values say which planes and which coordinates take part; the weights are then solved for, and the sum
checked, without any rounding: a float64 is a whole number times a power of two.

Source: ours; exact checks of a floating-point basis are Dhiflaoui et al. 2003 and QSopt_ex (Applegate et al. 2007).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import gcd
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lilliput.certify.linear_map import LinearMap
from lilliput.certify.network import Activation, Affine, Network
from lilliput.certify.preactivation import Preactivations
from lilliput.certify.region import Region

Whole = NDArray[Any]
"""Python's whole numbers, in an array of objects."""
_LARGEST_MATRIX = 2**18
"""Elements of a linear map, for its network to be taken in whole numbers: a row then costs below a tenth of a second."""
_MOST_PLANES = 64


@dataclass(frozen=True)
class Side:
    """One side of a gate's plane: ``sign * (z - at) >= 0`` for the input z of one unit."""

    gate: int
    unit: int
    at: float
    sign: int


@dataclass(frozen=True)
class _Row:
    """``coefficients . x + constant``, times some power of two, which no side of a plane depends on."""

    coefficients: Whole
    constant: int


class WholeNetwork:
    """A piecewise linear network whose weights are whole numbers times powers of two."""

    def __init__(self, network: Network) -> None:
        self.network = network
        maps = [linear for step in network.steps if isinstance(step, Affine) for _, linear in step.terms]
        sizes = [np.prod(linear.inputs, dtype=float) * np.prod(linear.outputs, dtype=float) for linear in maps]
        self.is_small = max(sizes, default=0.0) <= _LARGEST_MATRIX
        self._matrices: dict[int, tuple[Whole, int]] = {}

    def is_constant(self, masks: Preactivations, side: Side) -> bool:
        """Whether the unit's input is the same number all over the pattern, and that is where its plane lies."""
        row = self._row(side, masks)
        return row.constant == 0 and not row.coefficients.any()

    def is_flat(
        self, region: Region, masks: Preactivations, sides: Sequence[Side], weights: NDArray[np.float64], free: Tensor
    ) -> bool:
        """Whether the sides have no common interior point in the region's box; False where that is not shown.

        Args:
            region: one domain.
            masks: of one domain; gates in front of the sides are fixed.
            weights: approximate dual values of the sides; only which of them are above 0 is used.
            free: coordinates (n,) in which the weighted sum may be other than 0, for x lies on an edge of the box there.
        """
        some = np.flatnonzero(weights > 1e-9 * max(weights.max(initial=0.0), 1e-300)).tolist()
        if not self.is_small or not 0 < len(some) <= _MOST_PLANES:
            return False
        rows = [self._row(sides[index], masks) for index in some]
        if any(row.constant == 0 and not row.coefficients.any() for row in rows):
            return False  # 0 >= 0 holds inside as well
        is_free = free.numpy()
        exact = _weights([row.coefficients[~is_free] for row in rows])
        if exact is None or min(exact) < 0:
            return False
        total, sums = Fraction(0), [Fraction(0)] * int(is_free.sum())
        for weight, row in zip(exact, rows, strict=True):
            total += weight * row.constant
            sums = [old + weight * int(more) for old, more in zip(sums, row.coefficients[is_free], strict=True)]
        low, high = region.lower[0][free].tolist(), region.upper[0][free].tolist()
        for c, least, most in zip(sums, low, high, strict=True):
            total += max(c * Fraction(least), c * Fraction(most))
        return total <= 0

    def _row(self, side: Side, masks: Preactivations) -> _Row:
        network = self.network
        source = network.gates[side.gate].source
        start = np.zeros(network.units(side.gate), dtype=object)
        start[side.unit] = side.sign
        coefficients: dict[str, tuple[Whole, int]] = {source: (start, 0)}
        (at,), exponent = _whole(np.array([side.at]))
        constant = (np.array([-side.sign * at], dtype=object), exponent)
        for step in reversed(network.steps):
            A = coefficients.pop(step.name, None)
            if A is None:
                continue
            if isinstance(step, Activation):
                k, b = self._piece(step, masks)
                constant = _sum(constant, _times(A, b))
                _add(coefficients, step.source, (A[0] * k[0], A[1] + k[1]))
                continue
            if step.bias is not None:
                bias = step.bias.expand(1, *network.shapes[step.name]).flatten().double().numpy()
                constant = _sum(constant, _times(A, _whole(bias)))
            for name, linear in step.terms:
                W, exponent = self._matrix(linear)
                _add(coefficients, name, (A[0] @ W, A[1] + exponent))
        A = coefficients.get(network.input, (np.zeros(network.inputs, dtype=object), 0))
        exponent = min(A[1], constant[1])
        return _Row(A[0] * 2 ** (A[1] - exponent), int(constant[0][0]) * 2 ** (constant[1] - exponent))

    def _piece(self, step: Activation, masks: Preactivations) -> tuple[tuple[Whole, int], tuple[Whole, int]]:
        """Slope and intercept of the piece that each unit is on."""
        lower, upper = masks.lower[step.index][0], masks.upper[step.index][0]
        k = step.gate.slope_range(lower, upper)[0]
        knots = torch.tensor([knot.at for knot in step.gate.knots], dtype=k.dtype)
        # A piece touches the knot nearest to any point of it.
        at = knots[((lower + upper) / 2)[:, None].sub(knots).abs().argmin(1)]
        slope, place = _whole(k.double().numpy()), _whole(at.double().numpy())
        value = _whole(step.gate.value(at).double().numpy())
        return slope, _sum(value, (-slope[0] * place[0], slope[1] + place[1]))

    def _matrix(self, linear: LinearMap) -> tuple[Whole, int]:
        """(outputs, inputs). A map of unit vectors adds nothing but zeros to each weight, so it is without rounding."""
        known = self._matrices.get(id(linear))
        if known is None:
            size = int(np.prod(linear.inputs))
            eye = torch.eye(size, dtype=self.network.dtype).reshape(size, *linear.inputs)
            known = self._matrices[id(linear)] = _whole(linear.apply(eye).flatten(1).T.double().numpy())
        return known


def _whole(x: NDArray[np.float64]) -> tuple[Whole, int]:
    """Whole numbers m and one exponent with ``x = m * 2**exponent``, exactly."""
    mantissa, exponent = np.frexp(x)
    whole = (mantissa * 2.0**53).astype(np.int64).astype(object)
    used = exponent[mantissa != 0]
    least = int(used.min()) if used.size else 0
    shift = np.where(mantissa != 0, exponent - least, 0).astype(object)
    return whole * 2**shift, least - 53


def _sum(a: tuple[Whole, int], b: tuple[Whole, int]) -> tuple[Whole, int]:
    exponent = min(a[1], b[1])
    return a[0] * 2 ** (a[1] - exponent) + b[0] * 2 ** (b[1] - exponent), exponent


def _times(a: tuple[Whole, int], b: tuple[Whole, int]) -> tuple[Whole, int]:
    return np.array([a[0] @ b[0]], dtype=object), a[1] + b[1]


def _add(values: dict[str, tuple[Whole, int]], name: str, more: tuple[Whole, int]) -> None:
    values[name] = more if name not in values else _sum(values[name], more)


def _weights(columns: list[Whole]) -> list[Fraction] | None:
    """The one combination, up to a factor, that makes the columns vanish; None where there is none, or more than one."""
    count = len(columns)
    basis: dict[int, list[int]] = {}
    for equation in zip(*columns, strict=True):
        left = [int(value) for value in equation]
        for pivot, known in basis.items():
            if left[pivot]:
                left = _reduced([known[pivot] * a - left[pivot] * b for a, b in zip(left, known, strict=True)])
        pivot = next((index for index, value in enumerate(left) if value), -1)
        if pivot < 0:
            continue
        if len(basis) == count - 1:
            return None
        for other, known in basis.items():
            if known[pivot]:
                basis[other] = _reduced([left[pivot] * a - known[pivot] * b for a, b in zip(known, left, strict=True)])
        basis[pivot] = left
    if len(basis) != count - 1:
        return None
    (last,) = set(range(count)) - set(basis)
    result = [Fraction(1)] * count
    for pivot, known in basis.items():
        result[pivot] = Fraction(-known[last], known[pivot])
    return result


def _reduced(row: list[int]) -> list[int]:
    divisor = gcd(*row)
    return [value // divisor for value in row] if divisor > 1 else row

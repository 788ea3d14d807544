"""Where gates lie on given pieces: planes in the input's space, and linear programs about them.

Planes are in radii from the region's centre, ``A y + b >= 0``, each scaled so that it says something beyond rounding: a row of length 1
where the row is larger than 1e8 times its own rounding error, and a shorter one where it is not. A point that misses such a plane by
``margin_of`` then misses the true one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linprog
from torch import Tensor

from lilliput.certify.flatness import Side
from lilliput.certify.network import Activation, Network
from lilliput.certify.preactivation import Preactivations
from lilliput.certify.region import Region

Array = NDArray[np.float64]
_CUTS = 40
"""Planes that may be laid around an l_2 ball, for one linear program."""
_LARGEST_OFFSET = 1e6


def margin_of(network: Network) -> float:
    """How far from feasible, in scaled radii, a linear program must be before its pattern is left out: 100 times the solver's tolerance."""
    return 1e-8 if network.dtype == torch.float64 else 1e-4


@dataclass(frozen=True)
class Planes:
    """``A y + b >= 0``, and which side of which unit's plane each row is."""

    A: Array
    b: Array
    sides: tuple[Side, ...]

    @staticmethod
    def none(n: int) -> Planes:
        """The whole region."""
        return Planes(np.zeros((0, n)), np.zeros(0), ())

    def __len__(self) -> int:
        """Number of planes."""
        return len(self.b)

    def and_also(self, other: Planes) -> Planes:
        """Both."""
        return Planes(np.concatenate([self.A, other.A]), np.concatenate([self.b, other.b]), self.sides + other.sides)

    def slack(self, y: Array) -> float:
        """Of a point: the least of all rows, at most 1."""
        return float(min(1.0, (self.A @ y + self.b).min())) if len(self) else 1.0


@dataclass(frozen=True)
class Affines:
    """Inputs of some units as ``A y + b``, one unit in each of several patterns; ``noise`` is above the rounding error of each."""

    A: Array
    b: Array
    noise: Array

    def is_noise(self, index: int, at: float) -> bool:
        """Whether the unit may be constant, at ``at``."""
        noise = float(self.noise[index])
        return float(np.linalg.norm(self.A[index])) <= noise and abs(float(self.b[index]) - at) <= noise

    def planes(self, index: int, gate: int, unit: int, low: float, high: float) -> Planes:
        """The planes that keep the unit between two of its knots."""
        a, value = self.A[index], self.b[index]
        length = max(float(np.linalg.norm(a)), 1e8 * float(self.noise[index]), 1e-300)
        sides = [Side(gate, unit, at, sign) for at, sign in ((low, 1), (high, -1)) if math.isfinite(at)]
        offsets = [side.sign * (value - side.at) / length for side in sides]
        A = np.array([side.sign * a / length for side in sides]).reshape(len(sides), -1)
        return Planes(A, np.clip(np.array(offsets), -_LARGEST_OFFSET, _LARGEST_OFFSET), tuple(sides))


def affine_inputs(
    network: Network,
    region: Region,
    gate: int,
    units: Tensor,
    slopes: list[tuple[Tensor, Tensor]],
    masks: Preactivations,
) -> Affines:
    """One unit of a gate in each domain as an affine function of the step from the centre; earlier gates are on one piece there."""
    source = network.gates[gate].source
    start = region.centre.new_zeros(len(units), network.units(gate))
    start[torch.arange(len(units)), units] = 1.0
    coefficients, sizes = {source: start}, {source: start}
    value, size, terms = start.new_zeros(len(units)), start.new_zeros(len(units)), 1
    for step in reversed(network.steps):
        A, S = coefficients.pop(step.name, None), sizes.pop(step.name, None)
        if A is None or S is None:
            continue
        if isinstance(step, Activation):
            k = slopes[step.index][0]
            middle = (masks.lower[step.index] + masks.upper[step.index]) / 2
            intercept = step.gate.value(middle) - k * middle
            value, size = value + (A * intercept).sum(1), size + (S * (intercept.abs() + (k * middle).abs())).sum(1)
            _add(coefficients, step.source, A * k)
            _add(sizes, step.source, S * k.abs())
            continue
        shaped, absolute = A.reshape(-1, *network.shapes[step.name]), S.reshape(-1, *network.shapes[step.name])
        terms += A.shape[1]
        if step.bias is not None:
            value = value + (shaped * step.bias).flatten(1).sum(1)
            size = size + (absolute * step.bias.abs()).flatten(1).sum(1)
        for name, linear in step.terms:
            _add(coefficients, name, linear.transpose(shaped).flatten(1))
            _add(sizes, name, linear.transpose(absolute, absolute=True).flatten(1))
    A = coefficients.get(network.input, start.new_zeros(len(units), network.inputs))
    S = sizes.get(network.input, torch.zeros_like(A))
    value = value + (A * region.centre).sum(1)
    size = size + (S * (region.centre.abs() + region.eps)).sum(1)
    rounding = torch.finfo(network.dtype).eps * (terms + network.inputs)

    def array(t: Tensor) -> Array:
        return t.double().cpu().numpy()

    return Affines(array(A * region.eps), array(value), array(size * rounding))


def _add(values: dict[str, Tensor], name: str, more: Tensor) -> None:
    values[name] = more if name not in values else values[name] + more


@dataclass(frozen=True)
class Deepest:
    """The largest slack that a point of the region has, the point, and the linear program's dual values."""

    slack: float
    """Infinite where the solver failed: nothing is known."""
    point: Array | None
    weights: Array
    """Of the planes, 0 or more."""
    edges: NDArray[np.bool_]
    """Coordinates whose bound in the box holds the slack down."""


def deepest(region: Region, planes: Planes) -> Deepest:
    """Largest s with ``A y + b >= s`` at a y of the region (one domain), at most 1.

    An l_2 ball is approached from outside, plane by plane; a slack without a point means that the ball may not be reached.
    """
    A, b = planes.A, planes.b
    n = A.shape[1]
    low, high = box(region)
    extra = n if region.norm == "1" else 0
    cost = np.zeros(n + extra + 1)
    cost[-1] = -1.0
    rows = [np.hstack([-A, np.zeros((len(A), extra)), np.ones((len(A), 1))])]
    limits = [b]
    bounds = [*zip(low, high, strict=True), *[(0.0, 1.0)] * extra, (None, 1.0)]
    if extra:
        eye = np.eye(n)
        rows += [np.hstack([sign * eye, -eye, np.zeros((n, 1))]) for sign in (1, -1)]
        rows.append(np.hstack([np.zeros(n), np.ones(n), [0.0]])[None])
        limits += [np.zeros(2 * n), np.ones(1)]
    options = {"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10}
    slack, weights, edges = math.inf, np.zeros(len(A)), np.zeros(n, dtype=bool)
    for _ in range(_CUTS if region.norm == "2" else 1):
        result = linprog(
            cost, A_ub=np.vstack(rows), b_ub=np.concatenate(limits), bounds=bounds, method="highs-ds", options=options
        )
        if result.status != 0 or result.x is None or not np.isfinite(result.x).all():
            return Deepest(math.inf, None, weights, edges)
        slack, y = float(result.x[-1]), result.x[:n]
        weights = -np.asarray(result.ineqlin.marginals[: len(A)])
        held = np.abs(result.lower.marginals[:n]) + np.abs(result.upper.marginals[:n])
        edges = held > 1e-9 * max(float(held.max(initial=0.0)), 1e-300)
        length = float(np.linalg.norm(y))
        if region.norm != "2" or length <= 1:
            return Deepest(slack, y, weights, edges)
        # The point pulled onto the ball may be good enough already.
        pulled = planes.slack(y / length)
        if pulled > max(0.25 * slack, 1e-6):
            return Deepest(pulled, y / length, weights, edges)
        if slack < 0:
            return Deepest(slack, None, weights, edges)
        rows.append(np.hstack([y / length, [0.0]])[None])
        limits.append(np.ones(1))
    return Deepest(slack, None, weights, edges)


def box(region: Region) -> tuple[Array, Array]:
    """Least and greatest y of each coordinate (one domain)."""
    centre = region.centre[0].double().cpu().numpy()
    low = (region.lower[0].double().cpu().numpy() - centre) / region.eps
    high = (region.upper[0].double().cpu().numpy() - centre) / region.eps
    return low, high


def crossed(region: Region, planes: Planes, point: Array, row: int) -> Array | None:
    """A point on the right side of one plane that another point misses, along its normal; None where that leaves the region or the rest.

    Cheaper than a linear program, and enough wherever the plane cuts through the middle of the pattern.
    """
    a, miss = planes.A[row], float(planes.A[row] @ point + planes.b[row])
    length = float(a @ a)
    if length == 0.0 or region.norm != "inf":
        return None
    low, high = box(region)
    for beyond in (0.05, 0.005, 0.0005):
        there = np.clip(point + a * ((beyond - miss) / length), low, high)
        if planes.slack(there) > 1e-5:
            return there
    return None

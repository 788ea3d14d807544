"""Scalar nonlinearities: their value, the range of their slope over an interval, and lines above and below them.

A gate is described by its value, its derivative and its *knots*: the points where the derivative jumps, turns or stays. Between two
knots the derivative is monotone, so its range over an interval is taken at the ends and at the knots inside, and the one place where
``s(z) - k z`` can be extreme inside a piece is found by bisection. That is all that any gate needs, and it is sound for every slope ``k``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from lilliput.graph import Node, Op

Number = float | Tensor
_BISECTIONS = 30
"""An error e in the place of an extreme is an error of about e^2 in its value: (2^-30)^2 is below float64's own."""


@dataclass(frozen=True)
class Knot:
    """A point and the derivative's limits from its left and from its right (numbers, or one for each unit)."""

    at: float
    left: Number
    right: Number


@dataclass(frozen=True)
class Gate:
    """A nonlinearity of one variable; tensors are (..., units)."""

    value: Callable[[Tensor], Tensor]
    slope: Callable[[Tensor], Tensor]
    """The derivative; at a knot where it jumps, either limit."""
    knots: tuple[Knot, ...]
    steepest: float
    """The largest |s'| anywhere."""
    is_piecewise_linear: bool = False
    derivative: Gate | None = None
    """The derivative as a function to draw lines around; none where it only jumps, for then it is no better than its range."""
    jumps: tuple[Knot, ...] = ()
    """Where the value itself jumps, with its limits: only derivatives do."""

    def slope_range(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        """Least and greatest Clarke derivative over [lower, upper]; at a kink both sides count."""
        at_lower, at_upper = self.slope(lower), self.slope(upper)
        least, greatest = torch.minimum(at_lower, at_upper), torch.maximum(at_lower, at_upper)
        for knot in self.knots:
            inside = (lower <= knot.at) & (knot.at <= upper)
            for limit in (knot.left, knot.right):
                each = torch.as_tensor(limit, dtype=lower.dtype, device=lower.device)
                least = torch.where(inside, torch.minimum(least, each), least)
                greatest = torch.where(inside, torch.maximum(greatest, each), greatest)
        return least, greatest

    def is_at_kink(self, z: Tensor) -> Tensor:
        """Where the derivative jumps."""
        is_at_kink = torch.zeros_like(z, dtype=torch.bool)
        for knot in self.knots:
            jumps = torch.as_tensor(knot.left != knot.right, device=z.device)
            if bool(jumps.any()):
                is_at_kink |= (z == knot.at) & jumps
        return is_at_kink

    def extremes(self, k: Tensor, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        """Least and greatest ``s(z) - k z`` over [lower, upper]; ``k`` may have more leading axes than the interval."""
        points = [lower, upper, *(self._clamp(knot.at, lower, upper) for knot in self.knots)]
        if not self.is_piecewise_linear:
            ends = [lower, *points[2:], upper]
            points += [self._turn(k, a, b) for a, b in pairwise(ends)]
        values = [self.value(z) - k * z for z in points]
        for jump in self.jumps:
            inside, z = (lower <= jump.at) & (jump.at <= upper), self._clamp(jump.at, lower, upper)
            for limit in (jump.left, jump.right):
                each = torch.as_tensor(limit, dtype=lower.dtype, device=lower.device)
                values.append(torch.where(inside, each, self.value(z)) - k * z)
        least = greatest = values[0]
        for each in values[1:]:
            least, greatest = torch.minimum(least, each), torch.maximum(greatest, each)
        return least, greatest

    def output_range(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        """Least and greatest value over [lower, upper]."""
        return self.extremes(torch.zeros_like(lower), lower, upper)

    def lines(
        self, lower: Tensor, upper: Tensor, lower_slope: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Slope and intercept of a line below, then of a line above, the gate on [lower, upper].

        The slopes are chosen among the derivative at both ends and in the middle, and the chord: the one whose line is nearest at the
        middle. For ReLU that is the chord above, and below 1 where ``upper > -lower``, else 0 (CROWN).

        Args:
            lower_slope: taken for the line below instead of the choice; any value is sound. May have more leading axes.
        """
        middle, width = (lower + upper) / 2, upper - lower
        tiny = torch.finfo(lower.dtype).tiny
        chord = (self.value(upper) - self.value(lower)) / width.clamp(min=tiny)
        chord = torch.where(width > 0, chord, self.slope(middle))
        k = torch.stack([self.slope(lower), self.slope(upper), self.slope(middle), chord])
        least, greatest = self.extremes(k, lower, upper)
        below, above = (k * middle + least).argmax(0, keepdim=True), (k * middle + greatest).argmin(0, keepdim=True)
        k_above, b_above = k.gather(0, above)[0], greatest.gather(0, above)[0]
        if lower_slope is None:
            return k.gather(0, below)[0], least.gather(0, below)[0], k_above, b_above
        return lower_slope, self.extremes(lower_slope, lower, upper)[0], k_above, b_above

    @staticmethod
    def _clamp(point: float, lower: Tensor, upper: Tensor) -> Tensor:
        return torch.minimum(torch.maximum(torch.full_like(lower, point), lower), upper)

    def _turn(self, k: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """Where the derivative equals k between a and b, where it is monotone; some point of [a, b] if nowhere."""
        with torch.no_grad():
            # The derivative just inside the ends decides its direction; at a kink the ends themselves would lie.
            rises = self.slope(a + 0.75 * (b - a)) > self.slope(a + 0.25 * (b - a))
            low, high = a.expand_as(k).clone(), b.expand_as(k).clone()
            for _ in range(_BISECTIONS):
                middle = (low + high) / 2
                is_left = (self.slope(middle) < k) == rises
                low, high = torch.where(is_left, middle, low), torch.where(is_left, high, middle)
        return (low + high) / 2


def _piecewise_linear(value: Callable[[Tensor], Tensor], knots: tuple[Knot, ...], steepest: float) -> Gate:
    def slope(z: Tensor) -> Tensor:
        result = torch.as_tensor(knots[0].left, dtype=z.dtype, device=z.device).expand_as(z)
        for knot in knots:
            result = torch.where(z > knot.at, torch.as_tensor(knot.right, dtype=z.dtype, device=z.device), result)
        return result

    return Gate(value, slope, knots, steepest, is_piecewise_linear=True)


def relu() -> Gate:
    """max(z, 0)."""
    return _piecewise_linear(F.relu, (Knot(0.0, 0.0, 1.0),), 1.0)


def leaky_relu(slope: Tensor) -> Gate:
    """Z where positive, slope * z elsewhere; one slope, or one for each unit."""
    steepest = max(1.0, float(slope.abs().max()))
    return _piecewise_linear(lambda z: torch.where(z > 0, z, slope * z), (Knot(0.0, slope, 1.0),), steepest)


def hard_tanh(lower: float, upper: float) -> Gate:
    """Z clamped to [lower, upper]."""
    knots = (Knot(lower, 0.0, 1.0), Knot(upper, 1.0, 0.0))
    return _piecewise_linear(lambda z: z.clamp(lower, upper), knots, 1.0)


def hard_sigmoid() -> Gate:
    """(z + 3) / 6 clamped to [0, 1]."""
    return _piecewise_linear(F.hardsigmoid, (Knot(-3.0, 0.0, 1 / 6), Knot(3.0, 1 / 6, 0.0)), 1 / 6)


def _smooth(
    value: Callable[[Tensor], Tensor],
    slope: Callable[[Tensor], Tensor],
    knots: tuple[Knot, ...],
    steepest: float,
    curvature: Callable[[Tensor], Tensor],
    bends: tuple[float | Knot, ...],
) -> Gate:
    """A gate whose derivative moves; ``bends`` are the derivative's own knots, where the second derivative jumps or turns."""
    of_slope = tuple(each if isinstance(each, Knot) else _turning(curvature, each) for each in bends)
    greatest = max(abs(float(limit)) for knot in of_slope for limit in (knot.left, knot.right))
    jumps = tuple(knot for knot in knots if knot.left != knot.right)
    return Gate(value, slope, knots, steepest, derivative=Gate(slope, curvature, of_slope, greatest, jumps=jumps))


def _turning(derivative: Callable[[Tensor], Tensor], at: float) -> Knot:
    limit = float(derivative(torch.tensor(at, dtype=torch.float64)))
    return Knot(at, limit, limit)


def hard_swish() -> Gate:
    """Z * hard_sigmoid(z): a parabola between -3 and 3."""

    def slope(z: Tensor) -> Tensor:
        return torch.where(z <= -3, 0.0, torch.where(z >= 3, 1.0, (2 * z + 3) / 6))

    def curvature(z: Tensor) -> Tensor:
        return torch.where(z.abs() < 3, 1 / 3, 0.0).to(z)

    bends = (Knot(-3.0, 0.0, 1 / 3), Knot(3.0, 1 / 3, 0.0))
    return _smooth(F.hardswish, slope, (Knot(-3.0, 0.0, -0.5), Knot(3.0, 1.5, 1.0)), 1.5, curvature, bends)


def tanh() -> Gate:
    """Hyperbolic tangent."""

    def slope(z: Tensor) -> Tensor:
        return 1 - torch.tanh(z) ** 2

    turn = math.atanh(1 / math.sqrt(3))
    return _smooth(
        torch.tanh, slope, (Knot(0.0, 1.0, 1.0),), 1.0, lambda z: -2 * torch.tanh(z) * slope(z), (-turn, turn)
    )


def sigmoid() -> Gate:
    """1 / (1 + exp(-z))."""
    turn = math.log(2 + math.sqrt(3))
    return _smooth(torch.sigmoid, _bell, (Knot(0.0, 0.25, 0.25),), 0.25, _bell_slope, (-turn, turn))


def _bell(z: Tensor) -> Tensor:
    """Derivative of the sigmoid."""
    return torch.sigmoid(z) * torch.sigmoid(-z)


def _bell_slope(z: Tensor) -> Tensor:
    return -_bell(z) * torch.tanh(z / 2)


def softplus(beta: float, threshold: float) -> Gate:
    """log(1 + exp(beta z)) / beta; as torch does, z itself where beta z is beyond the threshold."""

    def slope(z: Tensor) -> Tensor:
        return torch.where(beta * z > threshold, 1.0, torch.sigmoid(beta * z))

    def curvature(z: Tensor) -> Tensor:
        return torch.where(beta * z > threshold, 0.0, beta * _bell(beta * z))

    end = torch.tensor(threshold, dtype=torch.float64)
    knots = (Knot(threshold / beta, float(torch.sigmoid(end)), 1.0),)
    last = Knot(threshold / beta, beta * float(_bell(end)), 0.0)
    bends = (0.0, last) if threshold > 0 else (last,)
    return _smooth(lambda z: F.softplus(z, beta, threshold), slope, knots, 1.0, curvature, bends)


def elu(alpha: float) -> Gate:
    """Z where positive, alpha (exp(z) - 1) elsewhere."""

    def slope(z: Tensor) -> Tensor:
        return torch.where(z > 0, 1.0, alpha * torch.exp(z.clamp(max=0)))

    def curvature(z: Tensor) -> Tensor:
        return torch.where(z > 0, 0.0, alpha * torch.exp(z.clamp(max=0)))

    knots, bends = (Knot(0.0, alpha, 1.0),), (Knot(0.0, alpha, 0.0),)
    return _smooth(lambda z: F.elu(z, alpha), slope, knots, max(1.0, abs(alpha)), curvature, bends)


def _smooth_with_two_turns(
    value: Callable[[Tensor], Tensor],
    slope: Callable[[Tensor], Tensor],
    turn: float,
    curvature: Callable[[Tensor], Tensor],
    bend: float,
) -> Gate:
    """A gate that tends to 0 and to z, with s'(z) + s'(-z) = 1; the slope is extreme at +-turn, the curvature at 0 and +-bend."""
    most = float(slope(torch.tensor(turn, dtype=torch.float64)))
    knots = (Knot(-turn, 1 - most, 1 - most), Knot(turn, most, most))
    return _smooth(value, slope, knots, most, curvature, (-bend, 0.0, bend))


def silu() -> Gate:
    """Z * sigmoid(z)."""

    def slope(z: Tensor) -> Tensor:
        s = torch.sigmoid(z)
        return s * (1 + z * torch.sigmoid(-z))

    def curvature(z: Tensor) -> Tensor:
        return _bell(z) * (2 - z * torch.tanh(z / 2))

    turn = 2.399357280520841  # root of 2 = z tanh(z / 2)
    return _smooth_with_two_turns(F.silu, slope, turn, curvature, _turn_of(lambda z: -curvature(z), turn, 6.0))


def gelu() -> Gate:
    """Z times the normal distribution function."""

    def density(z: Tensor) -> Tensor:
        return torch.exp(-z * z / 2) / math.sqrt(2 * math.pi)

    def slope(z: Tensor) -> Tensor:
        return torch.special.ndtr(z) + z * density(z)

    return _smooth_with_two_turns(F.gelu, slope, math.sqrt(2), lambda z: (2 - z * z) * density(z), 2.0)


def gelu_tanh() -> Gate:
    """The tanh approximation of GELU."""
    a, b = math.sqrt(2 / math.pi), 0.044715

    def value(z: Tensor) -> Tensor:
        return F.gelu(z, approximate="tanh")

    def slope(z: Tensor) -> Tensor:
        t = torch.tanh(a * (z + b * z**3))
        return (1 + t) / 2 + z / 2 * (1 - t * t) * a * (1 + 3 * b * z * z)

    def curvature(z: Tensor) -> Tensor:
        # With p the tanh's argument: s = z (1 + t) / 2, so s'' = (1 - t^2) (p' + z p'' / 2 - z t p'^2).
        t, p1, p2 = torch.tanh(a * (z + b * z**3)), a * (1 + 3 * b * z * z), 6 * a * b * z
        return (1 - t * t) * (p1 + z * p2 / 2 - z * t * p1 * p1)

    turn = _turn_of(slope, 1.0, 2.0)
    return _smooth_with_two_turns(value, slope, turn, curvature, _turn_of(lambda z: -curvature(z), turn, 3.0))


def _turn_of(slope: Callable[[Tensor], Tensor], low: float, high: float) -> float:
    """Where a slope with one maximum in [low, high] has it."""
    for _ in range(200):
        a, b = low + (high - low) / 3, high - (high - low) / 3
        at_a, at_b = (float(slope(torch.tensor(z, dtype=torch.float64))) for z in (a, b))
        low, high = (a, high) if at_a < at_b else (low, b)
    return (low + high) / 2


GATES: dict[Op, Callable[[Node, Tensor | None], Gate]] = {
    Op.RELU: lambda node, weight: relu(),
    Op.LEAKY_RELU: lambda node, weight: leaky_relu(torch.tensor(node["slope"], dtype=torch.float64)),
    Op.PRELU: lambda node, weight: leaky_relu(_given(weight)),
    Op.RELU6: lambda node, weight: hard_tanh(0.0, 6.0),
    Op.HARD_TANH: lambda node, weight: hard_tanh(node["lower"], node["upper"]),
    Op.HARD_SIGMOID: lambda node, weight: hard_sigmoid(),
    Op.HARD_SWISH: lambda node, weight: hard_swish(),
    Op.TANH: lambda node, weight: tanh(),
    Op.SIGMOID: lambda node, weight: sigmoid(),
    Op.SILU: lambda node, weight: silu(),
    Op.GELU: lambda node, weight: gelu() if node["approximate"] == "none" else gelu_tanh(),
    Op.SOFTPLUS: lambda node, weight: softplus(node["beta"], node["threshold"]),
    Op.ELU: lambda node, weight: elu(node["alpha"]),
}
"""Kind of node, to the gate it is; the second argument is a stored slope for each unit, where the kind has one."""


def _given(weight: Tensor | None) -> Tensor:
    assert weight is not None
    return weight

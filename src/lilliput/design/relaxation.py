"""The mathematical program: widths and depths as real numbers, in logarithms, kernels fixed; solved by SLSQP with exact gradients.

Variables x = log of (stem, out_1..M, bottleneck_1..M, layers_1..M). Budgets are sums of products of powers of the variables (with the
factor layers - 1 for repeated blocks), taken in logarithms; rho at each stage end and the space's own bounds are constraints too. At fixed
depths the feasible set is convex in x; with the depths free neither set nor objective is, so what is found is a local optimum: the best
of several starts is a *multi-start value*, not a proven bound.

Source: Shen et al. 2023, DeepMAD (arXiv:2303.02165) for the program; logarithms, gradients and multi-start are ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy.optimize import minimize

from lilliput.design.evaluate import Problem

_Terms = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Coefficients, exponents of the variables (a row each), and the super block whose repeats count (-1: none)."""

_minimize: Any = minimize  # its published types do not know a function that returns value and gradient
_VALUE_SCALE = 1e-3  # the objective is of order 1e4: SLSQP's line search wants it of order ten
_STRAIGHT_FROM = 6.0  # exp of the penalty's exponent goes on as its tangent from here, so that no start overflows
_TINY = 1e-9


@dataclass(frozen=True)
class Relaxed:
    """A local optimum of the program with these kernels."""

    x: Float[np.ndarray, "variable"]
    kernels: tuple[int, ...]
    value: float
    """Objective, or the logarithm of the factor that budgets would have to grow where that was asked for."""
    excess: float
    """By how much the worst constraint is broken, in logarithms."""


class Program:
    """The relaxation of a problem with its kernels fixed."""

    def __init__(self, problem: Problem, kernels: tuple[int, ...]) -> None:
        self.problem, self.kernels = problem, kernels
        space, m = problem.space, problem.space.depth
        self.variables = 1 + 3 * m
        step = space.channel_step
        low = np.log([step] * (1 + 2 * m) + [1] * m)
        high = np.log([space.stem_max] + [space.out_max] * 2 * m + list(space.layer_limits))
        self.bounds = np.stack([low, high], axis=1)
        self._macs, self._params = self._terms()
        self._linear, self._linear_offset = self._space_constraints()
        self._last: tuple[bytes, tuple[np.ndarray, np.ndarray]] | None = None

    def maximise(
        self, start: Float[np.ndarray, "variable"], iterations: int = 120, *, fixed_layers: bool = False
    ) -> Relaxed:
        """A local optimum of the objective from a start, whose depths may be held."""
        bounds = self.bounds.copy()
        if fixed_layers:
            bounds[1 + 2 * self.problem.space.depth :] = start[1 + 2 * self.problem.space.depth :, None]

        def value(x: Float[np.ndarray, "variable"]) -> tuple[float, Float[np.ndarray, "variable"]]:
            result, gradient = self.objective(x)
            return -_VALUE_SCALE * result, -_VALUE_SCALE * gradient

        def slack(x: Float[np.ndarray, "variable"]) -> Float[np.ndarray, "constraint"]:
            return self.slacks(x)[0]

        def slack_jacobian(x: Float[np.ndarray, "variable"]) -> Float[np.ndarray, "constraint variable"]:
            return self.slacks(x)[1]

        found = _minimize(
            value,
            start,
            jac=True,
            bounds=bounds,
            method="SLSQP",
            constraints={"type": "ineq", "fun": slack, "jac": slack_jacobian},
            options={"maxiter": iterations, "ftol": 1e-7},
        )
        x = np.clip(found.x, bounds[:, 0], bounds[:, 1])
        return Relaxed(x, self.kernels, self.objective(x)[0], float(-self.slacks(x)[0].min()))

    def least_growth(self, start: Float[np.ndarray, "variable"], iterations: int = 80) -> Relaxed:
        """The least t, from a start, at which all budgets times exp(t) can be kept; ``value`` is t."""
        ceilings = int(np.isfinite(self.problem.ceilings).sum())

        def slack(z: Float[np.ndarray, "variable"]) -> Float[np.ndarray, "constraint"]:
            values = self.slacks(z[:-1])[0].copy()
            values[:ceilings] += z[-1]
            return values

        def slack_jacobian(z: Float[np.ndarray, "variable"]) -> Float[np.ndarray, "constraint variable"]:
            gradients = self.slacks(z[:-1])[1]
            column = np.zeros((len(gradients), 1))
            column[:ceilings] = 1
            return np.hstack([gradients, column])

        gradient = np.append(np.zeros(self.variables), 1.0)
        t = max(0.0, float(-self.slacks(start)[0][:ceilings].min()))
        found = _minimize(
            lambda z: (z[-1], gradient),
            np.append(start, t),
            jac=True,
            bounds=[*self.bounds, (-50.0, 50.0)],
            method="SLSQP",
            constraints={"type": "ineq", "fun": slack, "jac": slack_jacobian},
            options={"maxiter": iterations, "ftol": 1e-7},
        )
        x = np.clip(found.x[:-1], self.bounds[:, 0], self.bounds[:, 1])
        values = self.slacks(x)[0]
        return Relaxed(x, self.kernels, float(-values[:ceilings].min()), float(-values[ceilings:].min()))

    def objective(self, x: Float[np.ndarray, "variable"]) -> tuple[float, Float[np.ndarray, "variable"]]:
        """Objective and its gradient."""
        total, total_gradient, _, _ = self._cumulative(x)
        result, gradient = 0.0, np.zeros(self.variables)
        for weight, end, side in zip(
            self.problem.alpha, self.problem.space.stage_ends, self.problem.space.stage_sides, strict=True
        ):
            feature = x[end] + 2 * np.log(side)
            result += weight * feature * total[end] / 2
            gradient += weight * feature * total_gradient[end] / 2
            gradient[end] += weight * total[end] / 2
        penalty, penalty_gradient = self._penalty(x)
        return (
            result - self.problem.penalty_weight * penalty,
            gradient - self.problem.penalty_weight * penalty_gradient,
        )

    def slacks(
        self, x: Float[np.ndarray, "variable"]
    ) -> tuple[Float[np.ndarray, "constraint"], Float[np.ndarray, "constraint variable"]]:
        """How far inside each constraint, in logarithms, and the gradients: the finite budgets in order, then the space's own."""
        key = x.tobytes()  # SLSQP asks for values and gradients of one point in two calls
        if self._last is None or self._last[0] != key:
            self._last = key, self._slacks(x)
        return self._last[1]

    def _slacks(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        problem, space = self.problem, self.problem.space
        values, gradients = [], []
        for ceiling, terms in ((problem.macs, self._macs), (problem.params, self._params)):
            if np.isfinite(ceiling):
                need, gradient = self._sum(terms, x)
                values.append(np.log(ceiling) - np.log(need))
                gradients.append(-gradient / need)
        if np.isfinite(problem.rho):
            total, total_gradient, depth, depth_gradient = self._cumulative(x)
            for end in space.stage_ends:
                mean = total[end] / depth[end]
                values.append(np.log(problem.rho) - np.log(depth[end]) + mean)
                gradients.append((total_gradient[end] - (1 + mean) * depth_gradient[end]) / depth[end])
        m = space.depth
        outs, inner = x[1 : 1 + m], np.exp(x[1 + m : 1 + 2 * m])
        lifted = inner + space.channel_step / 2  # the least bottleneck is rounded to the nearest step
        floor_gradients = np.zeros((m, self.variables))
        rows = np.arange(m)
        floor_gradients[rows, 1 + m + rows] = inner / lifted
        floor_gradients[rows, 1 + rows] = -1
        floor_slack = np.log(lifted) - outs + np.log(space.bottleneck_ratio_max)
        return (
            np.concatenate([values, self._linear @ x + self._linear_offset, floor_slack]),
            np.concatenate([np.reshape(gradients, (-1, self.variables)), self._linear, floor_gradients]),
        )

    def _cumulative(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Sums of log widths and numbers of layers up to each super block, with gradients; row 0 is the stem."""
        m = self.problem.space.depth
        outs, inner, layers = x[: 1 + m], x[1 + m : 1 + 2 * m] + np.log(self.kernels), np.exp(x[1 + 2 * m :])
        rows = np.arange(m)
        sums = outs[:-1] + (layers - 1) * outs[1:] + 2 * layers * inner
        gradients = np.zeros((1 + m, self.variables))
        gradients[1 + rows, rows] = 1
        gradients[1 + rows, 1 + rows] += layers - 1
        gradients[1 + rows, 1 + m + rows] = 2 * layers
        gradients[1 + rows, 1 + 2 * m + rows] = layers * (outs[1:] + 2 * inner)
        depth_gradients = np.zeros((1 + m, self.variables))
        depth_gradients[1 + rows, 1 + 2 * m + rows] = 3 * layers
        total = np.log(9 * self.problem.space.channels) + np.concatenate([[0.0], np.cumsum(sums)])
        depth = 1 + np.concatenate([[0.0], np.cumsum(3 * layers)])
        return total, np.cumsum(gradients, axis=0), depth, np.cumsum(depth_gradients, axis=0)

    def _penalty(self, x: Float[np.ndarray, "variable"]) -> tuple[float, Float[np.ndarray, "variable"]]:
        gradient = np.zeros(self.variables)
        m = self.problem.space.depth
        which = np.arange(1 + 2 * m, 1 + 3 * m)[self.problem.penalised]
        if not len(which):
            return 1.0, gradient
        layers = np.exp(x[which])
        away = layers - layers.mean()
        exponent = float(np.mean(away**2))
        slope = 2 * away * layers / len(which)
        if self.problem.depth_penalty == "reference":
            exponent = float(np.sqrt(exponent + _TINY))
            slope = slope / (2 * exponent)
        held = min(exponent, _STRAIGHT_FROM)
        gradient[which] = np.exp(held) * slope
        return float(np.exp(held) * (1 + exponent - held)), gradient

    def _terms(self) -> tuple[_Terms, _Terms]:
        """MACs and parameters as sums of products: coefficient, exponents of the widths, super block whose repeats count (-1: none)."""
        space, m = self.problem.space, self.problem.space.depth
        taps, area = 9 * space.channels, (space.image_size // space.strides[0]) ** 2
        macs: list[tuple[float, tuple[int, ...], int]] = [(area * (taps + 3), (0,), -1)]
        params: list[tuple[float, tuple[int, ...], int]] = [(taps + 2, (0,), -1)]
        for index in range(m):
            i, o, b = index, index + 1, 1 + m + index
            stride, pixels = space.strides[index + 1], space.input_sides[index] ** 2
            out_pixels = pixels // stride**2
            square = self.kernels[index] ** 2
            macs += [
                (pixels, (i, b), -1), (3 * pixels + 3 * out_pixels, (b,), -1), (out_pixels * square, (b, b), -1),
                (out_pixels, (b, o), -1), (6 * out_pixels, (o,), -1), (out_pixels, (i, o), -1),
                (2 * out_pixels, (b, o), index), (out_pixels * square, (b, b), index), (6 * out_pixels, (b,), index),
                (3 * out_pixels, (o,), index),
            ]  # fmt: skip
            if stride == 2:
                macs.append((pixels, (i,), -1))
            params += [
                (1, (i, b), -1), (4, (b,), -1), (square, (b, b), -1), (1, (b, o), -1), (4, (o,), -1), (1, (i, o), -1),
                (2, (b, o), index), (square, (b, b), index), (4, (b,), index), (2, (o,), index),
            ]  # fmt: skip
        return self._matrix(macs), self._matrix(params)

    def _matrix(self, terms: Sequence[tuple[int | float, tuple[int, ...], int]]) -> _Terms:
        exponents = np.zeros((len(terms), self.variables))
        for row, (_, powers, _) in enumerate(terms):
            for power in powers:
                exponents[row, power] += 1
        return np.array([float(term[0]) for term in terms]), exponents, np.array([term[2] for term in terms])

    def _sum(self, terms: _Terms, x: np.ndarray) -> tuple[float, np.ndarray]:
        coefficients, exponents, repeats = terms
        m = self.problem.space.depth
        layers = np.exp(x[1 + 2 * m :])
        products = coefficients * np.exp(exponents @ x)
        factors = np.where(repeats < 0, 1.0, layers[repeats] - 1)
        gradient = (products * factors) @ exponents
        for index in range(m):
            gradient[1 + 2 * m + index] += products[repeats == index].sum() * layers[index]
        return float((products * factors).sum()), gradient

    def _space_constraints(self) -> tuple[np.ndarray, np.ndarray]:
        """Growth, monotone widths, bottleneck at most its width: linear in logarithms, as rows of A x + b >= 0."""
        space, m = self.problem.space, self.problem.space.depth
        rows, offsets = [], []
        for plus, minus, offset in (
            *((j, j + 1, np.log(space.growth_max)) for j in range(m)),
            *((j + 1, j, 0.0) for j in range(1, m)),
            *((j, m + j, 0.0) for j in range(1, 1 + m)),
        ):
            row = np.zeros(self.variables)
            row[plus], row[minus] = 1, -1
            rows.append(row)
            offsets.append(offset)
        return np.array(rows), np.array(offsets)

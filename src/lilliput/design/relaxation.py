"""The mathematical program: widths and depths as real numbers, in logarithms, kernels fixed; solved by SLSQP with exact gradients.

Variables x = log of (stem, out_1..M, mid_1..M, layers_1..M). Budgets are sums of products of powers of the variables (with the factor
layers - 1 for repeated blocks), taken in logarithms: multiply-accumulates, parameters, flash, and the bytes alive at each step of each
block. Rho at each stage end and the space's own bounds are constraints too. At fixed depths the feasible set is convex in x; with the
depths free neither set nor objective is, so what is found is a local optimum: the best of several starts is a *multi-start value*, not a
proven bound. (A proven one would branch on the stage widths at fixed depths, where the objective is a sum of products of affine functions.)

Source: Shen et al. 2023, DeepMAD (arXiv:2303.02165) for the program; logarithms, gradients, memory and multi-start are ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy.optimize import minimize

from lilliput.design.evaluate import MOST_TILED_LAYERS, RESOURCES, Problem
from lilliput.design.geometry import Geometry, geometry
from lilliput.design.memory import Facts, Form, block_forms, in_place_claims, stem_form, tail_forms
from lilliput.design.space import SearchSpace
from lilliput.design.terms import Quantity, Term, block_terms, classifier_terms, head_terms, stem_terms
from lilliput.mcu.scratch import depthwise_scratch_bytes

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
    binding: tuple[str, ...] = ()
    """Where growth was asked for: the budgets that decide it."""
    least: float = -np.inf
    """Where growth was asked for and some is needed: what no network with these kernels and depths can go below."""


_Rows = list[tuple[float, dict[int, int], int]]
"""Coefficient, powers of the variables, index of the super block whose repeats count (-1: none): a sum of products."""


@dataclass(frozen=True)
class _Sums:
    """Sums of coefficient * exp(exponents @ x) * (layers - 1 of a super block, or 1), one below the other."""

    names: tuple[str, ...]
    log_ceilings: np.ndarray
    starts: np.ndarray
    """First row of each sum."""
    coefficients: np.ndarray
    exponents: np.ndarray
    repeats: np.ndarray


def variable_bounds(space: SearchSpace) -> Float[np.ndarray, "variable 2"]:
    """Least and most of each variable."""
    m, step = space.depth, space.channel_step
    stem_low, stem_high = space.stem_range
    mid_high = max(step, int(space.mid_limits(np.array([space.out_max]))[1][0])) if space.block.has_mid else step
    low = np.log([stem_low, *[step] * 2 * m, *[1] * m])
    high = np.log([stem_high, *[space.out_max // step * step] * m, *[mid_high] * m, *space.layer_limits])
    return np.stack([low, high], axis=1)


class Program:
    """The relaxation of a problem with its kernels fixed.

    Whether a super block has repeated blocks at all, in which order a block's branches run, what runs in place, and how deep super blocks
    are that run tile by tile, is decided by the point where a search begins: these change which constraints there are.
    """

    def __init__(
        self,
        problem: Problem,
        kernels: tuple[int, ...],
        start: Float[np.ndarray, "variable"],
        *,
        is_convex: bool = False,
        is_outer: bool = False,
    ) -> None:
        """A program; convex at held depths if asked for, or even one that asks for no more memory than any network needs."""
        self.problem, self.kernels, self.start = problem, kernels, start
        self.is_convex, self.is_outer = is_convex or is_outer, is_outer
        space, m = problem.space, problem.space.depth
        self.variables = 1 + 3 * m
        self.bounds = variable_bounds(space)
        tiled = 0 if problem.patches is None else problem.patches.blocks - 1
        for index in range(1 + 2 * m, 1 + 2 * m + tiled):
            held = np.log(np.clip(np.rint(np.exp(start[index])), 1, MOST_TILED_LAYERS))
            self.bounds[index] = held
        self.start = np.clip(start, self.bounds[:, 0], self.bounds[:, 1])
        self._log_taps = np.array([self._log_kernels(kernel) for kernel in kernels])
        self._budgets = self._all_budgets()
        self._linear, self._linear_offset = self._space_constraints()
        self._last: tuple[bytes, tuple[np.ndarray, np.ndarray]] | None = None

    def maximise(self, iterations: int = 120, *, fixed_layers: bool = False) -> Relaxed:
        """A local optimum of the objective from the start, whose depths may be held."""
        bounds = self._bounds(fixed_layers)

        def value(x: Float[np.ndarray, "variable"]) -> tuple[float, Float[np.ndarray, "variable"]]:
            result, gradient = self.objective(x)
            return -_VALUE_SCALE * result, -_VALUE_SCALE * gradient

        def slack(x: Float[np.ndarray, "variable"]) -> Float[np.ndarray, "constraint"]:
            return self.slacks(x)[0]

        def slack_jacobian(x: Float[np.ndarray, "variable"]) -> Float[np.ndarray, "constraint variable"]:
            return self.slacks(x)[1]

        found = _minimize(
            value,
            self.start,
            jac=True,
            bounds=bounds,
            method="SLSQP",
            constraints={"type": "ineq", "fun": slack, "jac": slack_jacobian},
            options={"maxiter": iterations, "ftol": 1e-7},
        )
        x = np.clip(found.x, bounds[:, 0], bounds[:, 1])
        return Relaxed(x, self.kernels, self.objective(x)[0], float(-self.slacks(x)[0].min()))

    def least_growth(self, iterations: int = 80, *, fixed_layers: bool = False) -> Relaxed:
        """The least t at which all budgets times exp(t) can be kept; ``value`` is t. With depths held the program is convex."""
        bounds = self._bounds(fixed_layers)
        ceilings = self.budget_count

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
        t = max(0.0, float(-self.slacks(self.start)[0][:ceilings].min()))
        found = _minimize(
            lambda z: (z[-1], gradient),
            np.append(self.start, t),
            jac=True,
            bounds=[*bounds, (-50.0, 50.0)],
            method="SLSQP",
            constraints={"type": "ineq", "fun": slack, "jac": slack_jacobian},
            options={"maxiter": iterations, "ftol": 1e-7},
        )
        x = np.clip(found.x[:-1], bounds[:, 0], bounds[:, 1])
        values = self.slacks(x)[0]
        growth = float(-values[:ceilings].min())
        names = [*self._budgets.names, *["rho"] * (ceilings - len(self._budgets.names))]
        binding = tuple(dict.fromkeys(n for n, v in zip(names, values, strict=False) if v <= -growth + 1e-3))
        return Relaxed(x, self.kernels, growth, float(-values[ceilings:].min()), binding)

    @property
    def budget_count(self) -> int:
        """How many of the first slacks are of budgets and rho."""
        return len(self._budgets.names) + (len(self.problem.alpha) if np.isfinite(self.problem.rho) else 0)

    def _bounds(self, fixed_layers: bool) -> np.ndarray:
        bounds = self.bounds.copy()
        if fixed_layers:
            bounds[1 + 2 * self.problem.space.depth :] = self.start[1 + 2 * self.problem.space.depth :, None]
        return bounds

    def objective(self, x: Float[np.ndarray, "variable"]) -> tuple[float, Float[np.ndarray, "variable"]]:
        """Objective and its gradient."""
        space = self.problem.space
        total, total_gradient, _, _ = self._cumulative(x)
        result, gradient = 0.0, np.zeros(self.variables)
        for weight, end, side in zip(self.problem.alpha, space.stage_ends, space.stage_sides, strict=True):
            is_head = space.head and end == space.depth
            feature = (np.log(space.head) if is_head else x[end]) + 2 * np.log(side)
            result += weight * feature * total[end] / 2
            gradient += weight * feature * total_gradient[end] / 2
            if not is_head:
                gradient[end] += weight * total[end] / 2
        penalty, penalty_gradient = self._penalty(x)
        return (
            result - self.problem.penalty_weight * penalty,
            gradient - self.problem.penalty_weight * penalty_gradient,
        )

    def slacks(
        self, x: Float[np.ndarray, "variable"]
    ) -> tuple[Float[np.ndarray, "constraint"], Float[np.ndarray, "constraint variable"]]:
        """How far inside each constraint, in logarithms, and the gradients: the budgets, rho by stage, then the space's own."""
        key = x.tobytes()  # SLSQP asks for values and gradients of one point in two calls
        if self._last is None or self._last[0] != key:
            self._last = key, self._slacks(x)
        return self._last[1]

    def _slacks(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        problem, space = self.problem, self.problem.space
        values, gradients = [], []
        if self._budgets.names:
            needs, slopes = self._sums(x)
            values += list(self._budgets.log_ceilings - np.log(needs))
            gradients += list(-slopes / needs[:, None])
        if np.isfinite(problem.rho):
            total, total_gradient, depth, depth_gradient = self._cumulative(x)
            for end in space.stage_ends:
                mean = total[end] / depth[end]
                values.append(np.log(problem.rho) - np.log(depth[end]) + mean)
                gradients.append((total_gradient[end] - (1 + mean) * depth_gradient[end]) / depth[end])
        own, own_gradients = self._mid_slacks(x)
        return (
            np.concatenate([values, self._linear @ x + self._linear_offset, own]),
            np.concatenate([np.reshape(gradients, (-1, self.variables)), self._linear, own_gradients]),
        )

    def _mid_slacks(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """``mid`` within its ratios of ``out``, which are rounded to the nearest step: half a step is allowed either way.

        For convexity that half step becomes a factor, which allows more.
        """
        space, m = self.problem.space, self.problem.space.depth
        if not space.block.has_mid:
            return np.zeros(0), np.zeros((0, self.variables))
        (low, high), half, rows = space.mid_ratio, space.channel_step / 2, np.arange(m)
        outs, mids = x[1 : 1 + m], x[1 + m : 1 + 2 * m]
        gradients = np.zeros((2, m, self.variables))
        gradients[0, rows, 1 + m + rows], gradients[0, rows, 1 + rows] = 1, -1
        gradients[1] = -gradients[0]
        # A ratio that is a whole number needs no rounding: multiples of the step stay multiples.
        low_half, high_half = (0.0 if float(ratio).is_integer() else half for ratio in (low, high))
        if self.is_convex:
            floor = mids + np.log(1 + low_half / space.channel_step) - outs - np.log(low)
            ceiling = np.log(high) + outs + np.log(1 + high_half / (high * space.channel_step)) - mids
            return np.concatenate([floor, ceiling]), gradients.reshape(-1, self.variables)
        inner, outer = np.exp(mids), high * np.exp(outs)
        floor = np.log(inner + low_half) - outs - np.log(low)
        gradients[0, rows, 1 + m + rows] = inner / (inner + low_half)
        ceiling = np.log(outer + high_half) - mids
        gradients[1, rows, 1 + rows] = outer / (outer + high_half)
        return np.concatenate([floor, ceiling]), gradients.reshape(-1, self.variables)

    def _log_kernels(self, own: int) -> float:
        """Logarithm of the product of all windows of a block."""
        block = self.problem.space.block
        return float(sum(2 * np.log(block.kernel(index, own)) for index in range(len(block.convs))))

    def _cumulative(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Sums of log widths and numbers of layers up to each super block, with gradients; row 0 is the stem."""
        space, m = self.problem.space, self.problem.space.depth
        dense = [row for row in space.block.convs if not row.is_depthwise]
        from_in, from_mid, from_out = (sum(row.inputs == width for row in dense) for width in ("in", "mid", "out"))
        outs, mids, layers = x[: 1 + m], x[1 + m : 1 + 2 * m], np.exp(x[1 + 2 * m :])
        rows = np.arange(m)
        each = from_in * outs[1:] + from_mid * mids + from_out * outs[1:] + self._log_taps  # of a repeated block
        sums = layers * each + from_in * (outs[:-1] - outs[1:])
        gradients = np.zeros((1 + m, self.variables))
        gradients[1 + rows, rows] = from_in
        gradients[1 + rows, 1 + rows] += from_in * (layers - 1) + from_out * layers
        gradients[1 + rows, 1 + m + rows] = from_mid * layers
        gradients[1 + rows, 1 + 2 * m + rows] = layers * each
        convs = len(space.block.convs)
        depth_gradients = np.zeros((1 + m, self.variables))
        depth_gradients[1 + rows, 1 + 2 * m + rows] = convs * layers
        total = np.log(9 * space.channels) + np.concatenate([[0.0], np.cumsum(sums)])
        depth = 1 + np.concatenate([[0.0], np.cumsum(convs * layers)])
        gradients, depth_gradients = np.cumsum(gradients, axis=0), np.cumsum(depth_gradients, axis=0)
        if space.head:
            total[-1] += outs[-1]
            gradients[-1, m] += 1
            depth[-1] += 1
        return total, gradients, depth, depth_gradients

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

    def _all_budgets(self) -> _Sums:
        """One sum for each ceiling, several for memory: one a step that may bind."""
        maps, found, names, ceilings = self._geometry(), [], [], []
        for name, ceiling in zip(RESOURCES, self.problem.resources, strict=True):
            if not np.isfinite(ceiling):
                continue
            sums = self._memory_rows(maps) if name == "sram_bytes" else [self._count_rows(name, maps)]  # type: ignore[arg-type]
            found += [self._merged(rows) for rows in sums]
            names += [name] * len(sums)
            ceilings += [float(ceiling)] * len(sums)
        rows = [row for each in found for row in each]
        exponents = np.zeros((len(rows), self.variables))
        for index, (_, powers, _) in enumerate(rows):
            for variable, power in powers.items():
                exponents[index, variable] = power
        return _Sums(
            tuple(names),
            np.log(ceilings),
            np.cumsum([0, *(len(each) for each in found)])[:-1],
            np.array([coefficient for coefficient, _, _ in rows]),
            exponents,
            np.array([repeat for _, _, repeat in rows], dtype=np.int64),
        )

    def _geometry(self) -> Geometry:
        space, m, patches = self.problem.space, self.problem.space.depth, self.problem.patches
        layers = np.rint(np.exp(self.start[1 + 2 * m :])).astype(int)
        tiled = 0 if patches is None else patches.blocks - 1
        # Whole maps of the others are asked for one repeated block, whose number is a variable.
        held = (*map(int, layers[:tiled]), *(2,) * (m - tiled))
        blocks = (space.block,) * m
        return geometry(blocks, space.image_size, space.strides, 3, self.kernels, held, patches)

    def _count_rows(self, quantity: Quantity, maps: Geometry) -> _Rows:
        """Coefficient, powers of the variables, super block whose repeats count."""
        space, patches = self.problem.space, self.problem.patches
        counter = "exact" if quantity == "flash_bytes" else space.counter
        rows = [
            self._row(term, {"out": 0}, 0, (0, maps.stem_pixels), -1)
            for term in stem_terms(quantity, counter, 9 * space.channels)
        ]
        for index, (kernel, each) in enumerate(zip(self.kernels, maps.maps, strict=True)):
            where = self._places(index)
            is_tiled = patches is not None and index < patches.blocks - 1
            for is_first, pixels in ((True, each.first_pixels), (False, each.other_pixels)):
                terms = block_terms(space.block, quantity, counter, is_first=is_first, stride=space.strides[index + 1])
                for term in terms:
                    counts_all = is_first or (is_tiled and term.position is not None)
                    rows.append(self._row(term, where, kernel, pixels, -1 if counts_all else index))
        last = space.depth
        if space.head:
            for term in head_terms(quantity, counter):
                rows.append(self._row(term, {"in": last}, 0, (0, space.sides[-1] ** 2), -1, {"out": space.head}))
        numbers = {"out": space.num_classes} | ({"in": space.head} if space.head else {})
        for term in classifier_terms(quantity, counter):
            rows.append(self._row(term, {"in": last}, 0, (), -1, numbers))
        return [row for row in rows if row[0] > 0]

    def _memory_rows(self, maps: Geometry) -> list[_Rows]:
        """The same for each step whose bytes may bind."""
        space, patches, m = self.problem.space, self.problem.patches, self.problem.space.depth
        held: _Rows = []
        if patches is not None:
            held.append((float(maps.patched_side**2), {patches.blocks: 1}, -1))
            if self.problem.image == "resident":
                held.append((float(space.image_size**2 * space.channels), {}, -1))
        stem = stem_form("chip", 9 * space.channels, space.channels, False, False)
        areas = [side**2 for side in (space.image_size, maps.stem_input_side, maps.stem_side)]
        numbers = {"in": space.channels}
        found = [[*held, *(self._row(term, {"out": 0}, 0, areas, -1, numbers) for term in stem.terms)]]
        numbers_of_layers = np.exp(self.start[1 + 2 * m :])
        for index, (kernel, each) in enumerate(zip(self.kernels, maps.maps, strict=True)):
            is_tiled = patches is not None and index < patches.blocks
            for is_first, sides in ((True, each.first_sides), (False, each.other_sides)):
                # Half a repeat is where the relaxation begins to have repeats.
                if not is_first and numbers_of_layers[index] < 1.5:
                    continue
                stride = space.strides[index + 1] if is_first else 1
                where = self._places(index)
                widths = {name: float(np.exp(self.start[place])) for name, place in where.items()}
                claims = in_place_claims(space.block, widths, kernel, is_first=is_first, stride=stride)
                in_place = frozenset(place for place, holds in claims.items() if holds or self.is_outer)
                facts = Facts(space.is_aligned, in_place, is_in_place_certain=not self.is_outer)
                orders = block_forms(
                    space.block, "chip", is_first=is_first, stride=stride, has_skip=not is_first, facts=facts
                )
                choices = [[self._form_rows(form, index, kernel, sides, stride) for form in forms] for forms in orders]
                best = min(choices, key=lambda rows: max(self._value(row) for row in rows))
                on_tiles = is_tiled and (is_first or (patches is not None and index < patches.blocks - 1))
                found += [[*row, *held] if on_tiles else row for row in best]
        numbers = {"classes": space.num_classes} | ({"out": space.head} if space.head else {})
        for form in tail_forms("chip", space.head > 0, space.sides[-1], space.is_aligned):
            areas = [space.sides[-1] ** 2]
            found.append([self._row(term, {"in": m}, 0, areas, -1, numbers) for term in form.terms])
        return found

    def _form_rows(self, form: Form, index: int, kernel: int, sides: Sequence[int], stride: int) -> _Rows:
        block = self.problem.space.block
        areas = [side**2 for side in sides]
        rows = [self._row(term, self._places(index), kernel, areas, -1) for term in form.terms]
        if form.ring is not None:
            window, step = block.kernel(form.ring, kernel), stride if block.convs[form.ring].has_stride else 1
            rows.append((float(depthwise_scratch_bytes(sides[form.ring + 1], window, window, step)), {}, -1))
        return rows

    def _places(self, index: int) -> dict[str, int]:
        """Which variable each width of a super block is."""
        m = self.problem.space.depth
        return {"in": index, "out": index + 1, "mid": 1 + m + index, "squeeze": 1 + m + index}

    @staticmethod
    def _row(
        term: Term,
        where: dict[str, int],
        kernel: int,
        areas: Sequence[int],
        repeat: int,
        numbers: dict[str, int] | None = None,
    ) -> tuple[float, dict[int, int], int]:
        coefficient = float(term.coefficient)
        powers: dict[int, int] = {}
        for symbol in term.symbols:
            if symbol == "same":  # only where two widths happen to agree
                coefficient = 0.0
            elif numbers and symbol in numbers:
                coefficient *= numbers[symbol]
            else:
                coefficient *= 0.25 if symbol == "squeeze" else 1.0
                powers[where[symbol]] = powers.get(where[symbol], 0) + 1
        coefficient *= (kernel**2 if term.has_kernel else 1) * (1 if term.position is None else areas[term.position])
        return coefficient, powers, repeat

    def _value(self, rows: _Rows) -> float:
        """What rows without repeats come to at the start."""
        return sum(c * np.exp(sum(power * self.start[v] for v, power in powers.items())) for c, powers, _ in rows)

    def _merged(self, rows: _Rows) -> _Rows:
        """Rows of equal powers and repeats as one."""
        merged: dict[tuple[tuple[tuple[int, int], ...], int], float] = {}
        for coefficient, powers, repeat in rows:
            key = (tuple(sorted(powers.items())), repeat)
            merged[key] = merged.get(key, 0.0) + coefficient
        return [(coefficient, dict(powers), repeat) for (powers, repeat), coefficient in merged.items()]

    def _sums(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Every budget's need, and its gradient."""
        sums = self._budgets
        layers = np.exp(x[1 + 2 * self.problem.space.depth :])
        products = sums.coefficients * np.exp(sums.exponents @ x)
        factors = np.where(sums.repeats < 0, 1.0, layers[sums.repeats] - 1)
        values = products * factors
        slopes = values[:, None] * sums.exponents
        repeated = np.flatnonzero(sums.repeats >= 0)
        index = sums.repeats[repeated]
        slopes[repeated, 1 + 2 * self.problem.space.depth + index] += products[repeated] * layers[index]
        return np.add.reduceat(values, sums.starts), np.add.reduceat(slopes, sums.starts)

    def _space_constraints(self) -> tuple[np.ndarray, np.ndarray]:
        """Growth and monotone widths: linear in logarithms, as rows of A x + b >= 0."""
        space, m = self.problem.space, self.problem.space.depth
        rows, offsets = [], []
        for plus, minus, offset in (
            *((j, j + 1, np.log(space.growth_max)) for j in range(m)),
            *((j + 1, j, 0.0) for j in range(1, m)),
        ):
            row = np.zeros(self.variables)
            row[plus], row[minus] = 1, -1
            rows.append(row)
            offsets.append(offset)
        return np.array(rows), np.array(offsets)

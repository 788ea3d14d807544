"""Objective and needs of many structures of a space at once, in numpy; agrees with ``score`` and ``count`` row by row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int64

from lilliput.design.geometry import Maps, Patches, geometry
from lilliput.design.memory import (
    Facts,
    Rules,
    block_forms,
    form_bytes,
    in_place_claims,
    peak_bytes,
    stem_form,
    tail_forms,
)
from lilliput.design.score import MOST_VARIANCE, first_penalised
from lilliput.design.space import SearchSpace
from lilliput.design.terms import Quantity, Symbol, block_terms, classifier_terms, head_terms, stem_terms, total

RESOURCES = ("macs", "params", "flash_bytes", "sram_bytes")
"""Budgets in the order of ``Problem.ceilings``; rho of each stage follows."""

_NEXT_TO_NOTHING = 1e-9  # where there is no ceiling the share used is 0
_FAR = 1e30
"""Below every objective."""


@dataclass(frozen=True)
class Problem:
    """What to maximise and what to keep to; ceilings of infinity where there is none."""

    space: SearchSpace
    resources: tuple[float | int, ...]
    """Ceilings of ``RESOURCES``."""
    rho: float | int
    alpha: tuple[float, ...]
    depth_penalty: str
    penalty_weight: float | int
    patches: Patches | None = None
    image: str = "resident"
    """Under patches: the whole input stays in memory (``resident``), or comes in tile by tile (``stream``)."""

    @property
    def ceilings(self) -> Float[np.ndarray, "budget"]:
        """Of the resources, and rho of each stage."""
        return np.array([*self.resources] + [self.rho] * len(self.alpha), dtype=np.float64)

    @property
    def penalised(self) -> slice:
        """The super blocks whose depths the penalty compares."""
        return slice(first_penalised(self.depth_penalty, self.space.block.is_depthwise), None)

    def with_patches(self, patches: Patches | None) -> Problem:
        """The same, run tile by tile."""
        return replace(self, patches=patches)

    @cached_property
    def whole_maps(self) -> tuple[Maps, ...]:
        """Maps without patches, of super blocks of two blocks each: pixels of the others are then those of one."""
        m = self.space.depth
        return geometry((self.space.block,) * m, self.space.image_size, self.space.strides, 3, (1,) * m, (2,) * m).maps


@dataclass(frozen=True)
class Evaluation:
    """Of each member: the objective, and what it needs of each budget."""

    objective: Float[np.ndarray, "member"]
    needs: Float[np.ndarray, "member budget"]


@dataclass(frozen=True)
class _SuperBlock:
    """One super block of all members: its widths, and its maps where they depend on the member."""

    symbols: Mapping[Symbol, Any]
    kernel: Float[np.ndarray, "member"]
    layers: Float[np.ndarray, "member"]
    first_pixels: tuple[Any, ...]
    other_pixels: tuple[Any, ...]
    first_sides: tuple[Any, ...]
    other_sides: tuple[Any, ...]


def evaluate(problem: Problem, members: Int64[np.ndarray, "member variable"]) -> Evaluation:
    """Objective and needs of rows of a space; what has no ceiling is not worked out and counts as 0."""
    space, m = problem.space, problem.space.depth
    numbers = members.T.astype(np.float64)
    widths, layers = numbers[: 1 + m], numbers[1 + 3 * m :]
    blocks, ends = _super_blocks(problem, members, numbers)
    rows: list[Any] = []
    for name, ceiling in zip(RESOURCES, problem.resources, strict=True):
        if not np.isfinite(ceiling):
            rows.append(np.zeros(len(members)))
        elif name == "sram_bytes":
            rows.append(_sram(problem, widths, blocks, ends))
        else:
            rows.append(_count(problem, name, widths, blocks, ends))  # type: ignore[arg-type]
    log_widths, layer_logs, convs = np.log(widths), _layer_logs(space, numbers), len(space.block.convs)
    start = np.zeros((1, len(members)))
    total_log = np.log(9 * space.channels) + np.concatenate([start, np.cumsum(layer_logs, axis=0)])
    depth = 1 + convs * np.concatenate([start, np.cumsum(layers, axis=0)])
    if space.head:
        total_log[-1] += log_widths[-1]
        depth[-1] += 1
    stage_ends = list(space.stage_ends)
    features = log_widths[stage_ends] + 2 * np.log(np.array(space.stage_sides, dtype=float))[:, None]
    if space.head:
        features[-1] += np.log(space.head) - log_widths[-1]
    entropy = np.array(problem.alpha) @ (features * total_log[stage_ends] / 2)
    rho = depth[stage_ends] / np.exp(total_log[stage_ends] / depth[stage_ends])
    objective = entropy - problem.penalty_weight * _penalty(problem, layers)
    return Evaluation(objective, np.concatenate([np.stack(rows), rho]).T)


def is_feasible(merit: float) -> bool:
    """Whether a merit is that of a member that keeps to every budget."""
    return merit > -_FAR


def merit(problem: Problem, members: Int64[np.ndarray, "member variable"]) -> Float[np.ndarray, "member"]:
    """The objective of a member that keeps to every budget; of others, far below and falling with the distance; outside the space, -inf."""
    values = np.full(len(members), -np.inf)
    legal = problem.space.contains(members)
    if problem.patches is not None:
        legal &= _tiles_fit(problem, members)
    found = evaluate(problem, members[legal])
    excess = excesses(problem, found)
    values[legal] = np.where(excess <= 0, found.objective, -_FAR * (1 + np.maximum(excess, 0)))
    return values


def excesses(problem: Problem, found: Evaluation) -> Float[np.ndarray, "member"]:
    """Logarithm of the factor by which all budgets would have to grow for each member; 0 and below keeps to them."""
    return np.log(np.maximum(found.needs / problem.ceilings, _NEXT_TO_NOTHING)).max(axis=1)


def _tiles_fit(problem: Problem, members: Int64[np.ndarray, "member variable"]) -> Bool[np.ndarray, "member"]:
    """Depths inside the patches of at most a few blocks: more would be recomputed many times over."""
    assert problem.patches is not None
    first = 1 + 3 * problem.space.depth
    return np.asarray((members[:, first : first + problem.patches.blocks - 1] <= MOST_TILED_LAYERS).all(axis=1))


MOST_TILED_LAYERS = 6
"""Most blocks of a super block that runs tile by tile."""


def _super_blocks(
    problem: Problem, members: Int64[np.ndarray, "member variable"], numbers: Float[np.ndarray, "variable member"]
) -> tuple[list[_SuperBlock], Mapping[str, Any]]:
    """Every super block, and the figures of stem and whole map."""
    space, m = problem.space, problem.space.depth
    widths, mids = numbers[: 1 + m], numbers[1 + m : 1 + 2 * m]
    kernels, layers = numbers[1 + 2 * m : 1 + 3 * m], numbers[1 + 3 * m :]
    maps: list[tuple[tuple[Any, ...], ...]] = []
    for index, each in enumerate(problem.whole_maps):
        other_pixels = tuple(pixels * (layers[index] - 1) for pixels in each.other_pixels)
        maps.append((each.first_pixels, other_pixels, each.first_sides, each.other_sides))
    sides = space.sides
    ends = {"stem_pixels": sides[1] ** 2, "piece": sides[0], "stem_side": sides[1], "patched_side": 0}
    if problem.patches is not None:
        tiled, ends = _tiled(problem, problem.patches, members)
        for index, (first_pixels, other_pixels, first_sides, other_sides) in enumerate(tiled):
            whole = maps[index]
            is_last = index == problem.patches.blocks - 1
            maps[index] = (
                first_pixels,
                whole[1] if is_last else other_pixels,
                first_sides,
                whole[3] if is_last else other_sides,
            )
    blocks = []
    for index in range(m):
        i, o, mid = widths[index], widths[index + 1], mids[index]
        symbols: dict[str, Any] = {"in": i, "mid": mid, "out": o}
        if space.block.has_squeeze:
            symbols["squeeze"] = 8 * np.maximum(1, np.rint(mid / 4) // 8)
        if space.counter == "reference" and space.block.shortcut == "same":
            symbols["same"] = np.where(i == o, i, 0)
        blocks.append(_SuperBlock(symbols, kernels[index], layers[index], *maps[index]))
    return blocks, ends


def _tiled(
    problem: Problem, patches: Patches, members: Int64[np.ndarray, "member variable"]
) -> tuple[list[tuple[tuple[Any, ...], ...]], dict[str, Any]]:
    """Maps of the super blocks that run tile by tile, worked out once for each choice of their kernels and depths."""
    space, m, n = problem.space, problem.space.depth, patches.blocks
    columns = [*range(1 + 2 * m, 1 + 2 * m + n), *range(1 + 3 * m, 1 + 3 * m + n - 1)]
    # Kernels and depths are small: six bits each make one number of a row, which sorts far faster than rows do.
    codes = (members[:, columns] << (6 * np.arange(len(columns)))).sum(axis=1)
    _, first, where = np.unique(codes, return_index=True, return_inverse=True)
    keys = members[np.ix_(first, columns)]
    found = [
        geometry(
            (space.block,) * m,
            space.image_size,
            space.strides,
            3,
            (*map(int, key[:n]), *(1,) * (m - n)),
            (*map(int, key[n:]), *(1,) * (m - n + 1)),
            patches,
        )
        for key in keys
    ]
    names = ("first_pixels", "other_pixels", "first_sides", "other_sides")
    maps = []
    for index in range(n):
        arrays = (np.array([getattr(each.maps[index], name) for each in found], dtype=np.float64) for name in names)
        maps.append(tuple(tuple(array[where].T) for array in arrays))
    ends = {
        "stem_pixels": np.array([each.stem_pixels for each in found], dtype=np.float64)[where],
        "piece": np.array([each.stem_input_side for each in found], dtype=np.float64)[where],
        "stem_side": np.array([each.stem_side for each in found], dtype=np.float64)[where],
        "patched_side": found[0].patched_side if found else 0,
    }
    return maps, ends


def _count(
    problem: Problem, quantity: Quantity, widths: Any, blocks: list[_SuperBlock], ends: Mapping[str, Any]
) -> Any:
    space = problem.space
    counter = "exact" if quantity == "flash_bytes" else space.counter
    result = total(stem_terms(quantity, counter, 9 * space.channels), {"out": widths[0]}, 0, [0, ends["stem_pixels"]])
    for block, stride in zip(blocks, space.strides[1:], strict=True):
        for is_first, pixels in ((True, block.first_pixels), (False, block.other_pixels)):
            terms = block_terms(space.block, quantity, counter, is_first=is_first, stride=stride)
            mapped = [term for term in terms if term.position is not None]
            others = [term for term in terms if term.position is None]
            if mapped:
                result = result + total(mapped, block.symbols, block.kernel, pixels)
            if others:
                each = total(others, block.symbols, block.kernel, ())
                result = result + (each if is_first else (block.layers - 1) * each)
    last = widths[-1]
    if space.head:
        pair = {"in": last, "out": space.head}
        result = result + total(head_terms(quantity, counter), pair, 0, [0, space.sides[-1] ** 2])
        last = space.head
    return result + total(classifier_terms(quantity, counter), {"in": last, "out": space.num_classes}, 0, ())


def _sram(problem: Problem, widths: Any, blocks: list[_SuperBlock], ends: Mapping[str, Any]) -> Any:
    space, patches = problem.space, problem.patches
    rules: Rules = "chip"
    held: Any = 0
    if patches is not None:
        held = ends["patched_side"] ** 2 * widths[patches.blocks]
        if problem.image == "resident":
            held = held + space.image_size**2 * space.channels
    stem = stem_form(rules, 9 * space.channels, space.channels, False, False)
    stem_symbols = {"in": space.channels, "out": widths[0]}
    peak = held + form_bytes(stem, stem_symbols, (space.image_size, ends["piece"], ends["stem_side"]))
    for index, (block, stride) in enumerate(zip(blocks, space.strides[1:], strict=True)):
        for is_first, sides in ((True, block.first_sides), (False, block.other_sides)):
            here = block_peak(problem, block.symbols, block.kernel, sides, is_first, stride)
            if patches is not None and (index < patches.blocks - 1 or (index == patches.blocks - 1 and is_first)):
                here = here + held
            peak = np.maximum(peak, here if is_first else np.where(block.layers > 1, here, 0))
    tail = {"in": widths[-1], "out": space.head, "classes": space.num_classes}
    for form in tail_forms(rules, space.head > 0, space.sides[-1], space.is_aligned):
        peak = np.maximum(peak, form_bytes(form, tail, [space.sides[-1]]))
    return peak


def block_peak(
    problem: Problem, symbols: Mapping[Symbol, Any], kernel: Any, sides: Any, is_first: bool, stride: int
) -> Any:
    """Most bytes alive in a first block, or in any other; with a skip where shapes agree."""
    space = problem.space
    step = stride if is_first else 1

    def peak(which: Any, has_skip: bool, facts: Facts) -> Any:
        orders = block_forms(space.block, "chip", is_first=is_first, stride=stride, has_skip=has_skip, facts=facts)
        chosen = {name: _taken(value, which) for name, value in symbols.items()}
        pieces = [_taken(side, which) for side in sides]
        return peak_bytes(orders, space.block, chosen, _taken(kernel, which), pieces, step)

    # What may run in place, and whether there is a skip, differs between members: each kind of them is worked out apart.
    claims = in_place_claims(space.block, symbols, kernel, is_first=is_first, stride=stride)
    bits = [*claims.values(), _has_skip(space, symbols, is_first, stride)]
    codes = sum(np.broadcast_to(bit, kernel.shape).astype(np.int64) << place for place, bit in enumerate(bits))
    result = np.zeros(kernel.shape)
    for code in np.unique(codes):
        which = codes == code
        holds = [bool(code >> place & 1) for place in range(len(bits))]
        in_place = frozenset(index for index, is_so in zip(claims, holds, strict=False) if is_so)
        result[which] = peak(which, holds[-1], Facts(space.is_aligned, in_place))
    return result


def _has_skip(space: SearchSpace, symbols: Mapping[Symbol, Any], is_first: bool, stride: int) -> Any:
    if not is_first:
        return np.ones_like(symbols["out"], dtype=bool)
    return (symbols["in"] == symbols["out"]) & (space.block.shortcut == "same") & (stride == 1)


def _taken(value: Any, which: Bool[np.ndarray, "member"]) -> Any:
    return value[which] if isinstance(value, np.ndarray) and value.ndim else value


def _layer_logs(space: SearchSpace, numbers: Float[np.ndarray, "variable member"]) -> Float[np.ndarray, "block member"]:
    """Sum of the logarithms of all widths of each super block's layers."""
    m = space.depth
    widths, mids = np.log(numbers[: 1 + m]), np.log(numbers[1 + m : 1 + 2 * m])
    kernels, layers = np.log(numbers[1 + 2 * m : 1 + 3 * m]), numbers[1 + 3 * m :]
    result = np.zeros_like(layers)
    for row in space.block.convs:
        result = result + 2 * layers * (kernels if row.kernel is None else np.log(row.kernel))
        if row.is_depthwise:
            continue
        if row.inputs == "in":
            result = result + widths[:-1] + (layers - 1) * widths[1:]
        else:
            result = result + layers * (mids if row.inputs == "mid" else widths[1:])
    return result


def _penalty(problem: Problem, layers: Float[np.ndarray, "block member"]) -> Float[np.ndarray, "member"]:
    compared = layers[problem.penalised]
    if not len(compared):
        return np.ones(layers.shape[1])
    spread = compared.var(axis=0)
    return np.exp(np.minimum(np.sqrt(spread) if problem.depth_penalty == "reference" else spread, MOST_VARIANCE))

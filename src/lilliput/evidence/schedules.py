"""Drawings of how a network is run on a chip: memory before and after, and the tiles on the image they are computed from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from lilliput.errors import ConfigError
from lilliput.evidence.drawing import WIDTH, box, cut, note, outline, place_axes
from lilliput.evidence.figures import Lifetime
from lilliput.evidence.numbers import Number, grouped
from lilliput.evidence.svg import ACCENT, BAD, HUES, INK, MUTED, canvas, to_svg

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes

_MOST_NUMBERED_TILES = 64
"""A cell of a finer grid has no room for its number."""
_SEEN_PIXELS = 1.5
"""Boxes narrower than this have no room for an outline."""


@dataclass(frozen=True)
class Region:
    """A part of an image, half open."""

    rows: tuple[int, int]
    columns: tuple[int, int]


def joined(lifetimes: Sequence[Lifetime], gap_steps: int) -> list[Lifetime]:
    """Fewer boxes for nearly the same picture: those of one name, place and size become one where at most so many steps lie between.

    A plan by tiles has the same box again for each tile.

    >>> tile = Lifetime("a", 0, 1, 0, 64)
    >>> joined([tile, replace(tile, first_step=3, last_step=4), replace(tile, first_step=9, last_step=9)], gap_steps=1)
    [Lifetime(name='a', first_step=0, last_step=4, offset_bytes=0, bytes=64), Lifetime(name='a', first_step=9, last_step=9, ...)]
    """
    found: list[Lifetime] = []
    last: dict[tuple[str, int, int], int] = {}
    for each in sorted(lifetimes, key=lambda each: each.first_step):
        key = (each.name, each.offset_bytes, each.bytes)
        before = found[last[key]] if key in last else None
        if before is not None and each.first_step - before.last_step - 1 <= gap_steps:
            found[last[key]] = replace(before, last_step=max(before.last_step, each.last_step))
        else:
            last[key] = len(found)
            found.append(each)
    return found


def memory_compared(plans: Mapping[str, Sequence[Lifetime]], budget_bytes: int | None = None) -> str:
    """The arena over time under several plans, side by side on one scale of bytes; a tensor has the same colour in each.

    Args:
        plans: what lies where and when, by the plan's name.
        budget_bytes: of SRAM for the arena, drawn as a line through all of them.
    Raises:
        ConfigError: no plan, or one without a tensor.
    """
    if not plans or any(not lifetimes for lifetimes in plans.values()):
        raise ConfigError("memory compared: needs at least one plan, each with a tensor or more")
    peaks = {name: max(each.offset_bytes + each.bytes for each in rows) for name, rows in plans.items()}
    top_bytes = max(*peaks.values(), budget_bytes or 0) * 1.02
    names = dict.fromkeys(each.name for rows in plans.values() for each in rows)
    hues = {name: HUES[index % len(HUES)] for index, name in enumerate(names)}
    left, top, height, gap, below = 64.0, 40.0, 240.0, 22.0, 40.0
    width = max((WIDTH - left - 8 - gap) / 2, 290.0) if len(plans) > 1 else WIDTH - left - 8
    with canvas(left + (width + gap) * len(plans) - gap + 8, top + height + below) as drawing:
        for index, (name, lifetimes) in enumerate(plans.items()):
            x = left + (width + gap) * index
            axes = place_axes(drawing, x, top, width, height)
            steps = 1 + max(each.last_step for each in lifetimes)
            axes.set(xlim=(0, steps), ylim=(0, top_bytes))
            for each in lifetimes:
                _lifetime(axes, each, hues[each.name], width / steps, height / top_bytes)
            axes.axhline(peaks[name], color=MUTED, linewidth=1, linestyle=(0, (1, 2)))
            is_over = budget_bytes is not None and peaks[name] > budget_bytes
            if budget_bytes is not None:
                axes.axhline(budget_bytes, color=BAD, linewidth=1.4, linestyle=(0, (5, 3)))
            axes.yaxis.set_major_formatter(lambda value, _: grouped(round(value)))
            axes.locator_params(axis="y", nbins=5, integer=True)
            axes.locator_params(axis="x", nbins=6, integer=True)
            if index:
                axes.tick_params(axis="y", labelleft=False)
            note(drawing, x, 12, name, va="center", color=INK)
            said = f"highest byte in use: {grouped(peaks[name])}" + (", over the budget" if is_over else "")
            note(drawing, x, 28, said, va="center", color=BAD if is_over else MUTED)
            note(drawing, x + width / 2, top + height + 30, "step", ha="center", va="center")
        note(drawing, 8, top + height / 2, "arena offset, bytes", rotation=90, ha="center", va="center")
        return to_svg(drawing)


def _lifetime(axes: Axes, each: Lifetime, hue: str, step_width: Number, byte_height: Number) -> None:
    span = each.last_step + 1 - each.first_step
    box(axes, each.first_step, each.offset_bytes, span, each.bytes, hue, alpha=0.35)
    width, height = step_width * span, byte_height * each.bytes
    if min(width, height) >= _SEEN_PIXELS:
        outline(axes, each.first_step, each.offset_bytes, span, each.bytes, hue)
    label = cut(each.name, int((width - 4) / 6.2))
    if height >= 11 and len(label) >= min(3, len(each.name)):
        middle = (each.first_step + span / 2, each.offset_bytes + each.bytes / 2)
        axes.text(*middle, label, ha="center", va="center_baseline", fontsize=9.5)


def tiles_on_image(
    image: np.ndarray, reads: Sequence[Region], makes: Sequence[Region], map_shape: tuple[int, int], map_name: str
) -> str:
    """What each tile reads of the image, and the part of the map that it makes; the middle tile stands out in both.

    Args:
        image: uint8 (height, width, 1 or 3), the ground of the first drawing.
        reads: of the image, in the tiles' order; they overlap where tiles need the same pixels.
        makes: of the map, in the same order.
        map_shape: its height and width.
        map_name: what to call it.
    Raises:
        ConfigError: no tile, or as many reads as do not match.
    """
    if not reads or len(reads) != len(makes):
        raise ConfigError(
            f"tiles on image: {len(reads)} parts read for {len(makes)} made; give one of each for each tile"
        )
    rows, columns = image.shape[:2]
    gap, top, below = 28.0, 22.0, 8.0
    width = (WIDTH - gap - 16) / 2
    height = min(width * rows / columns, 2 * width)
    width = height * columns / rows
    middle = _middle(makes, map_shape)
    with canvas(max(WIDTH, 2 * width + gap + 16), top + height + below) as drawing:
        ground = place_axes(drawing, 8, top, width, height)
        pixels = image[..., 0] if image.shape[2] == 1 else image
        extent = (0, columns, rows, 0)
        ground.imshow(pixels, cmap="gray", vmin=0, vmax=255, extent=extent, interpolation="none", aspect="auto")
        grid = place_axes(drawing, 8 + width + gap, top, width, height)
        for axes, regions, (high, wide) in ((ground, reads, (rows, columns)), (grid, makes, map_shape)):
            axes.set(xlim=(0, wide), ylim=(high, 0))
            axes.set_axis_off()
            for each in regions:
                _region(axes, each, ACCENT, alpha=0.18)
            _region(axes, regions[middle], BAD, alpha=0.35)
        if len(makes) <= _MOST_NUMBERED_TILES:
            for number, each in enumerate(makes, start=1):
                x, y = sum(each.columns) / 2, sum(each.rows) / 2
                if height * (each.rows[1] - each.rows[0]) / map_shape[0] >= 9:
                    grid.text(x, y, str(number), ha="center", va="center_baseline", fontsize=9.5)
        note(drawing, 8, 11, cut(f"read of the image, {rows}x{columns}", 34), va="center")
        note(drawing, 8 + width + gap, 11, cut(f"made of {map_name}, {map_shape[0]}x{map_shape[1]}", 34), va="center")
        return to_svg(drawing)


def _middle(makes: Sequence[Region], map_shape: tuple[int, int]) -> int:
    """The tile nearest to the middle of the map."""

    def distance(each: Region) -> int:
        return abs(sum(each.rows) - map_shape[0]) + abs(sum(each.columns) - map_shape[1])

    return min(range(len(makes)), key=lambda index: distance(makes[index]))


def _region(axes: Axes, each: Region, colour: str, alpha: Number) -> None:
    wide, high = each.columns[1] - each.columns[0], each.rows[1] - each.rows[0]
    box(axes, each.columns[0], each.rows[0], wide, high, colour, alpha)
    outline(axes, each.columns[0], each.rows[0], wide, high, colour)

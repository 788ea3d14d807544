"""Drawings of plain series: lines over a scale, columns by name, and a network as a staircase of widths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any

from lilliput.errors import ConfigError
from lilliput.evidence.drawing import WIDTH, box, cut, note, outline, place_axes
from lilliput.evidence.numbers import Number, grouped
from lilliput.evidence.svg import ACCENT, BAD, GOOD, HUES, INK, MUTED, RULE, canvas, to_svg

_STYLES: tuple[tuple[str, tuple[Number, ...], str], ...] = (
    (ACCENT, (), "o"),
    (HUES[1], (4, 2), "s"),
    (GOOD, (1, 1.5), "^"),
    (HUES[3], (6, 2, 1, 2), "D"),
    (BAD, (2, 2), "v"),
    (HUES[4], (8, 3), "P"),
)
"""Colour, dashes and mark of each line, so that they differ on paper too."""


@dataclass(frozen=True)
class Tread:
    """One run of equal layers in a staircase: as wide as it is deep, as high as its width."""

    name: str
    layers: int
    channels: int
    inner_channels: int = 0
    """Of the width between, drawn as an outline; 0 where there is none."""
    note: str = ""


def staircase(treads: Sequence[Tread]) -> str:
    """Widths of a network from input to output, each run of layers as long as it has layers.

    Raises:
        ConfigError: no run, or one without layers or channels.
    """
    if not treads or any(each.layers < 1 or each.channels < 1 for each in treads):
        raise ConfigError("staircase: needs at least one run of layers, each with 1 layer and 1 channel or more")
    layers = sum(each.layers for each in treads)
    highest = max(max(each.channels, each.inner_channels) for each in treads)
    left, top, plot, below = 46.0, 26.0, 190.0, 64.0
    width = max(WIDTH - left - 10, 52.0 * len(treads))
    with canvas(left + width + 10, top + plot + below) as drawing:
        axes = place_axes(drawing, left, top, width, plot)
        axes.set(xlim=(0, layers), ylim=(0, highest * 1.08))
        begin = 0
        for index, each in enumerate(treads):
            hue = HUES[index % len(HUES)]
            box(axes, begin, 0, each.layers, each.channels, hue, alpha=0.35)
            outline(axes, begin, 0, each.layers, each.channels, hue)
            if each.inner_channels:
                axes.hlines(
                    each.inner_channels, begin, begin + each.layers, color=hue, linewidth=1.6, linestyle=(0, (3, 2))
                )
            middle = begin + each.layers / 2
            axes.text(
                middle, each.channels + highest * 0.015, grouped(each.channels), ha="center", va="bottom", fontsize=9.5
            )
            x = left + width * middle / layers
            room = int(width * each.layers / layers / 5.4)
            if room >= 3:
                note(drawing, x, top + plot + 12, cut(each.name, room), ha="center", va="center", color=INK)
                note(drawing, x, top + plot + 26, cut(f"x{each.layers}", room), ha="center", va="center")
                note(drawing, x, top + plot + 40, cut(each.note, room), ha="center", va="center")
            begin += each.layers
        axes.set_xticks([])
        axes.yaxis.set_major_formatter(lambda value, _: grouped(round(value)))
        axes.locator_params(axis="y", nbins=5, integer=True)
        said = "channels; dashes: between" if any(each.inner_channels for each in treads) else "channels"
        note(drawing, 8, 12, said, va="center")
        note(drawing, left + width / 2, top + plot + 55, "layers, input to output", ha="center", va="center")
        return to_svg(drawing)


def columns(values: Mapping[str, Number], unit: str = "") -> str:
    """A column for each name, with its value above it.

    Raises:
        ConfigError: nothing to draw, or a value below 0.
    """
    if not values or min(values.values()) < 0:
        raise ConfigError(f"columns: {dict(values)}; needs at least one value, none below 0")
    top, plot, below = 26.0, 130.0, 26.0
    width = max(WIDTH, 40.0 * len(values))
    highest = max(values.values()) or 1
    with canvas(width, top + plot + below) as drawing:
        axes = place_axes(drawing, 8, top, width - 16, plot)
        axes.set(xlim=(0, len(values)), ylim=(0, highest * 1.1))
        for index, (name, value) in enumerate(values.items()):
            box(axes, index + 0.15, 0, 0.7, value, ACCENT, alpha=0.85)
            axes.text(index + 0.5, value + highest * 0.015, grouped(value), ha="center", va="bottom", fontsize=9.5)
            x = 8 + (width - 16) * (index + 0.5) / len(values)
            note(
                drawing,
                x,
                top + plot + 13,
                cut(name, int((width - 16) / len(values) / 5.6)),
                ha="center",
                va="center",
                color=INK,
            )
        axes.hlines(0, 0, len(values), color=MUTED, linewidth=1, clip_on=False)
        axes.set_axis_off()
        note(drawing, 8, 10, unit, va="center")
        return to_svg(drawing)


def lines(
    series: Mapping[str, Sequence[tuple[Number, Number]]],
    x_label: str,
    y_label: str,
    *,
    x_scale: str = "linear",
    mark: tuple[Number, Number] | None = None,
) -> str:
    """Lines through points, told apart by colour, dashes and mark.

    Args:
        series: points (x, y) by name, in the order they are joined.
        x_scale: ``linear``, or ``log`` (base 2).
        mark: a point to stand out, as where one stands now.
    Raises:
        ConfigError: nothing to draw.
    """
    drawn = {name: list(points) for name, points in series.items() if points}
    if not drawn:
        raise ConfigError("lines: no series has a point; give at least one (x, y)")
    left, top, plot, below = 58.0, 18.0 + 16 * -(-len(drawn) // 3), 190.0, 44.0
    with canvas(WIDTH, top + plot + below) as drawing:
        axes = place_axes(drawing, left, top, WIDTH - left - 12, plot)
        axes.grid(color=RULE, linewidth=0.5, alpha=0.6)
        axes.set_axisbelow(True)
        if x_scale == "log":
            axes.set_xscale("log", base=2)
            axes.xaxis.set_major_formatter(lambda value, _: grouped(value))
            axes.xaxis.set_minor_formatter(lambda value, _: "")
        for (name, points), (hue, dash, sign) in zip(drawn.items(), cycle(_STYLES), strict=False):
            style: dict[str, Any] = {"dashes": dash} if dash else {}
            x, y = zip(*points, strict=True)
            axes.plot(x, y, color=hue, linewidth=1.6, marker=sign, markersize=4, label=name, **style)
        if mark is not None:
            axes.plot(
                *mark, marker="o", markersize=10, markerfacecolor="none", markeredgecolor=INK, markeredgewidth=1.4
            )
        axes.yaxis.set_major_formatter(lambda value, _: grouped(value))
        axes.locator_params(axis="y", nbins=6)
        axes.legend(
            loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=3, frameon=False, fontsize=10, borderaxespad=0.1,
            handlelength=2.4, columnspacing=1.2,
        )  # fmt: skip
        note(drawing, left + (WIDTH - left - 12) / 2, top + plot + 34, x_label, ha="center", va="center")
        note(drawing, 10, top + plot / 2, y_label, rotation=90, ha="center", va="center")
        return to_svg(drawing)


def intervals(values: Mapping[str, tuple[Number, Number]], x_label: str) -> str:
    """A bar from the lower to the upper bound for each name, on one scale that shows 0.

    Raises:
        ConfigError: nothing to draw, or a lower bound above its upper one.
    """
    if not values or any(not lower <= upper for lower, upper in values.values()):
        raise ConfigError(
            f"intervals: {dict(values)}; needs at least one (lower, upper), the lower not above the upper"
        )
    row, left = 19.0, 16 + 6.0 * min(26, max(map(len, values)))
    top, plot = 8.0, row * len(values)
    least, most = min(0, *(v[0] for v in values.values())), max(0, *(v[1] for v in values.values()))
    room = (most - least) * 0.04 or 1
    with canvas(WIDTH, top + plot + 44) as drawing:
        axes = place_axes(drawing, left, top, WIDTH - left - 14, plot)
        axes.set(xlim=(least - (room if least < 0 else 0), most + room), ylim=(len(values), 0))
        axes.grid(axis="x", color=RULE, linewidth=0.5, alpha=0.6)
        axes.set_axisbelow(True)
        axes.axvline(0, color=MUTED, linewidth=1)
        for index, (lower, upper) in enumerate(values.values()):
            box(axes, lower, index + 0.25, upper - lower, 0.5, ACCENT, alpha=0.45)
            axes.vlines((lower, upper), index + 0.15, index + 0.85, color=ACCENT, linewidth=1.6)
        axes.set_yticks([index + 0.5 for index in range(len(values))], [cut(name, 26) for name in values])
        axes.tick_params(axis="y", length=0, labelcolor=INK)
        axes.xaxis.set_major_formatter(lambda value, _: grouped(value))
        axes.locator_params(axis="x", nbins=5)
        axes.spines["left"].set_visible(False)
        note(drawing, left + (WIDTH - left - 14) / 2, top + plot + 34, x_label, ha="center", va="center")
        return to_svg(drawing)


def histogram(values: Sequence[Number], x_label: str, bins: int = 12) -> str:
    """How many values fall into each of equal bins from 0 to the largest.

    Raises:
        ConfigError: nothing to draw, or a value below 0.
    """
    if not len(values) or min(values) < 0:
        raise ConfigError("histogram: needs at least one value, none below 0")
    highest = max(values) or 1
    counts = [0] * bins
    for value in values:
        counts[min(int(value / highest * bins), bins - 1)] += 1
    left, top, plot = 40.0, 14.0, 130.0
    with canvas(WIDTH, top + plot + 44) as drawing:
        axes = place_axes(drawing, left, top, WIDTH - left - 14, plot)
        axes.set(xlim=(0, highest), ylim=(0, max(counts) * 1.1))
        for index, count in enumerate(counts):
            box(axes, (index + 0.05) * highest / bins, 0, 0.9 * highest / bins, count, ACCENT, alpha=0.85)
        axes.xaxis.set_major_formatter(lambda value, _: grouped(value))
        axes.locator_params(axis="y", nbins=5, integer=True)
        note(drawing, left + (WIDTH - left - 14) / 2, top + plot + 34, x_label, ha="center", va="center")
        return to_svg(drawing)


def heat_map(panels: Mapping[str, Sequence[Sequence[Number]]]) -> str:
    """Grids side by side on one scale that is symmetric around 0: one colour below, one above, stronger as the size grows.

    Raises:
        ConfigError: nothing to draw, or grids that differ in shape.
    """
    shapes = {(len(rows), len(rows[0]) if rows else 0) for rows in panels.values()}
    if len(shapes) != 1 or 0 in (shape := shapes.pop()):
        raise ConfigError("heat map: needs at least one grid, and all of one shape")
    rows, columns = shape
    largest = max(abs(cell) for grid in panels.values() for line in grid for cell in line) or 1
    gap, top = 14.0, 24.0
    cell = min(16.0, (WIDTH - 16 - gap * (len(panels) - 1)) / len(panels) / columns)
    with canvas(WIDTH, top + cell * rows + 28) as drawing:
        for place, (name, grid) in enumerate(panels.items()):
            left = 8 + place * (cell * columns + gap)
            axes = place_axes(drawing, left, top, cell * columns, cell * rows)
            axes.set(xlim=(0, columns), ylim=(rows, 0))
            for i, line in enumerate(grid):
                for j, value in enumerate(line):
                    if abs(value) > 0.004 * largest:
                        box(axes, j, i, 1, 1, ACCENT if value > 0 else BAD, alpha=abs(value) / largest)
            outline(axes, 0, 0, columns, rows, RULE)
            axes.set_axis_off()
            note(drawing, left, 14, name, va="center", color=INK)
        said = f"full colour: {grouped(largest)} per unit of input, blue above 0, red below"
        note(drawing, 8, top + cell * rows + 15, said, va="center")
        return to_svg(drawing)

"""The drawings of a report, as pure functions from data to SVG text.

Each is drawn at about the width of a phone (440 CSS pixels, so that its text stays readable there) unless its content needs
more, and says in words what colour says too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import TYPE_CHECKING, Any

from lilliput.errors import ConfigError
from lilliput.evidence.drawing import WIDTH, box, cut, note, outline, place_axes
from lilliput.evidence.numbers import Number, amount, grouped, percent
from lilliput.evidence.svg import ACCENT, BAD, GOOD, HUES, INK, MUTED, RULE, canvas, to_svg

if TYPE_CHECKING:
    from lilliput.evidence.sections import Bar

_LINES = ((HUES[1], (4, 2)), (ACCENT, ()), (GOOD, (1, 1.5)), (HUES[3], (6, 2, 1, 2)))
"""Colour and dashes of each line of a plot, so that they differ on paper too."""
_MOST_NUMBERED_CLASSES = 20
"""A cell of a larger matrix has no room for its count; the colour still shows it."""


@dataclass(frozen=True)
class Lifetime:
    """Where one tensor lies in the arena, and when."""

    name: str
    first_step: int
    last_step: int
    """The last step that still needs it, counted in."""
    offset_bytes: int
    bytes: int


def confusion_matrix(counts: Any, classes: Sequence[str]) -> str:
    """Counts by truth (rows) and prediction (columns), each cell shaded by its share of the row.

    Raises:
        ConfigError: not a square of counts with one row and one name for each class.
    """
    rows = [[int(cell) for cell in row] for row in counts]
    n = len(rows)
    if n == 0 or len(classes) != n or any(len(row) != n or min(row) < 0 for row in rows):
        shape = f"{n} rows of {sorted({len(row) for row in rows})} counts"
        raise ConfigError(
            f"confusion matrix: {shape} for {len(classes)} classes; must be square, from 0, one row a class"
        )
    is_numbered = n <= _MOST_NUMBERED_CLASSES
    names = [cut(str(name), 14) for name in classes]
    longest = max(map(len, names))
    is_turned = longest > 3
    left, top = 34 + 6.2 * longest, 32 + (4 + 5.2 * longest if is_turned else 14)
    right = 8 + (5.2 * longest - 12 if is_turned else 0)  # turned names lean over the last column
    width = max(WIDTH, left + (28 if is_numbered else 7) * n + right)
    cell = min(44.0, (width - left - right) / n)
    width, height = left + cell * n + right, top + cell * n + 8
    with canvas(width, height) as drawing:
        axes = place_axes(drawing, left, top, cell * n, cell * n)
        axes.set(xlim=(0, n), ylim=(n, 0))
        for i, row in enumerate(rows):
            for j, count in enumerate(row):
                if count:
                    share = count / sum(row)
                    colour = ACCENT if i == j else BAD
                    box(axes, j, i, 1, 1, colour, alpha=0.12 + 0.38 * share)
                    if is_numbered:
                        size = 11 if cell >= 26 else 9
                        axes.text(j + 0.5, i + 0.5, grouped(count), ha="center", va="center_baseline", fontsize=size)
        axes.hlines(range(n + 1), 0, n, color=RULE, linewidth=0.5, clip_on=False)
        axes.vlines(range(n + 1), 0, n, color=RULE, linewidth=0.5, clip_on=False)
        every = 1 if is_numbered else -(-n // 25)
        axes.set_yticks([i + 0.5 for i in range(0, n, every)], names[::every])
        turned: dict[str, Any] = {"rotation": 45, "ha": "left", "rotation_mode": "anchor"} if is_turned else {}
        axes.set_xticks([i + 0.5 for i in range(0, n, every)], names[::every], **turned)
        axes.tick_params(length=0, labelcolor=INK, top=True, labeltop=True, bottom=False, labelbottom=False)
        axes.spines[:].set_visible(False)
        note(drawing, 10, top + cell * n / 2, "truth", rotation=90, ha="center", va="center")
        note(drawing, left + cell * n / 2, 12, "prediction", ha="center", va="center")
        return to_svg(drawing)


def cost_against_budget(bars: Sequence[Bar]) -> str:
    """One bar for each cost, drawn to the scale of its own ceiling; a line marks the ceiling.

    Raises:
        ConfigError: a bar has no ceiling to be drawn against.
    """
    for bar in bars:
        if bar.ceiling is None:
            raise ConfigError(f"bar '{bar.label}' has no ceiling; give one, or put it in a table")
    shares = [bar.value / bar.ceiling for bar in bars if bar.ceiling is not None]
    right = max(1.0, *shares) * 1.04
    with canvas(WIDTH, 46 * len(bars) + 10) as drawing:
        axes = place_axes(drawing, 8, 4, WIDTH - 16, 46 * len(bars))
        axes.set(xlim=(0, right), ylim=(len(bars), 0))
        for index, (bar, share) in enumerate(zip(bars, shares, strict=True)):
            holds = share <= 1
            box(axes, 0, index + 0.45, 1, 0.34, RULE, alpha=0.25)
            box(axes, 0, index + 0.45, share, 0.34, ACCENT if holds else BAD, alpha=0.9)
            axes.vlines(1, index + 0.43, index + 0.83, color=INK if holds else BAD, linewidth=1.6, clip_on=False)
            axes.text(0, index + 0.32, bar.label, ha="left", va="baseline", color=INK)
            said = f"{amount(bar.value, bar.unit)} of {amount(bar.ceiling, bar.unit)}, {percent(share)}"
            axes.text(
                right,
                index + 0.32,
                said if holds else f"over: {said}",
                ha="right",
                va="baseline",
                color=MUTED if holds else BAD,
            )
        axes.set_axis_off()
        return to_svg(drawing)


def memory_lifetimes(
    lifetimes: Sequence[Lifetime], budget_bytes: int | None = None, step_names: Sequence[str] | None = None
) -> str:
    """The arena over time: a box for each tensor, as wide as it lives and as high as its bytes.

    Raises:
        ConfigError: no tensor, one that ends before it begins, or names for fewer steps than there are.
    """
    if not lifetimes or any(
        each.last_step < each.first_step or each.bytes < 0 or each.offset_bytes < 0 for each in lifetimes
    ):
        raise ConfigError(
            "memory lifetimes: needs at least one tensor, each with first_step <= last_step and bytes from 0"
        )
    steps = 1 + max(each.last_step for each in lifetimes)
    if step_names is not None and len(step_names) < steps:
        raise ConfigError(f"memory lifetimes: {len(step_names)} step names for {steps} steps; give one for each")
    names = [cut(name, 22) for name in step_names or ()]
    peak = max(each.offset_bytes + each.bytes for each in lifetimes)
    # A budget far above the peak would press the boxes flat; it is then told in words.
    is_budget_drawn = budget_bytes is not None and budget_bytes <= 2 * peak
    top_bytes = max(peak, budget_bytes if is_budget_drawn and budget_bytes is not None else 0) * 1.02
    left, top, plot = 64.0, 22.0, 240.0
    plot_width = max(WIDTH - left - 8, 21.0 * steps)
    below = 34 + 5.6 * max((len(name) for name in names), default=0)
    with canvas(left + plot_width + 8, top + plot + below) as drawing:
        axes = place_axes(drawing, left, top, plot_width, plot)
        axes.set(xlim=(0, steps), ylim=(0, top_bytes))
        for index, each in enumerate(lifetimes):
            hue = HUES[index % len(HUES)]
            span = each.last_step + 1 - each.first_step
            box(axes, each.first_step, each.offset_bytes, span, each.bytes, hue, alpha=0.3)
            outline(axes, each.first_step, each.offset_bytes, span, each.bytes, hue)
            width, height = plot_width * span / steps, plot * each.bytes / top_bytes
            label = cut(each.name, int((width - 4) / 6.2))
            if height >= 11 and len(label) >= min(3, len(each.name)):
                middle = (each.first_step + span / 2, each.offset_bytes + each.bytes / 2)
                axes.text(*middle, label, ha="center", va="center_baseline", fontsize=9.5)
        axes.axhline(peak, color=MUTED, linewidth=1, linestyle=(0, (1, 2)))
        said = f"highest byte in use: {grouped(peak)}"
        if budget_bytes is not None:
            over = peak > budget_bytes
            if is_budget_drawn:
                axes.axhline(budget_bytes, color=BAD, linewidth=1.4, linestyle=(0, (5, 3)))
            said += f" of {grouped(budget_bytes)} bytes" + ("" if is_budget_drawn else " (above this picture)")
            note(
                drawing,
                left,
                10,
                said + (", over the budget" if over else ""),
                va="center",
                color=BAD if over else MUTED,
            )
        else:
            note(drawing, left, 10, said + " bytes", va="center")
        axes.yaxis.set_major_formatter(lambda value, _: grouped(round(value)))
        axes.locator_params(axis="y", nbins=5, integer=True)
        if names:
            every = max(1, -(-steps // 60))
            axes.set_xticks([i + 0.5 for i in range(0, steps, every)], names[:steps:every], rotation=90)
            axes.tick_params(axis="x", length=0, labelcolor=INK)
        else:
            axes.locator_params(axis="x", integer=True)
        note(
            drawing,
            left + plot_width / 2,
            top + plot + below - 8,
            "step, in the order they run",
            ha="center",
            va="center",
        )
        note(drawing, 8, top + plot / 2, "arena offset, bytes", rotation=90, ha="center", va="center")
        return to_svg(drawing)


def flash_breakdown(part_bytes: Mapping[str, int], budget_bytes: int | None = None) -> str:
    """One stacked bar: what the image's bytes are spent on, and what is left of the budget.

    Raises:
        ConfigError: no parts, or one below 0 bytes.
    """
    parts = {name: int(size) for name, size in part_bytes.items()}
    if not parts or min(parts.values()) < 0 or sum(parts.values()) == 0:
        raise ConfigError(f"flash breakdown: {parts}; needs at least one part, none below 0 bytes, and a sum above 0")
    used = sum(parts.values())
    whole = max(used, budget_bytes or 0)
    free = whole - used
    legend = [*parts.items(), *([("free", free)] if free else [])]
    row, bar_height, first_row = 19.0, 30.0, 62.0
    with canvas(WIDTH, first_row + row * len(legend) + 4) as drawing:
        bar = place_axes(drawing, 4, 10, WIDTH - 8, bar_height)
        bar.set(xlim=(0, whole), ylim=(0, 1))
        list_ = place_axes(drawing, 4, first_row - row, WIDTH - 8, row * len(legend) + row)
        list_.set(xlim=(0, WIDTH - 8), ylim=(row * len(legend) + row, 0))
        begin = 0
        for index, (name, size) in enumerate(legend):
            y = row * index + row
            is_free = index >= len(parts)
            hue = RULE if is_free else HUES[index % len(HUES)]
            strength = 0.18 if is_free else 0.85 if index < len(HUES) else 0.5
            box(bar, begin, 0, size, 1, hue, alpha=strength)
            box(list_, 0, y - 9, 10, 10, hue, alpha=strength)
            list_.text(17, y, cut(name, 34), va="baseline", color=MUTED if is_free else INK)
            list_.text(
                WIDTH - 66, y, f"{grouped(size)} bytes", ha="right", va="baseline", color=MUTED if is_free else INK
            )
            list_.text(WIDTH - 8, y, percent(size / whole), ha="right", va="baseline", color=MUTED)
            begin += size
        if budget_bytes is not None:
            over = used > budget_bytes
            bar.vlines(budget_bytes, -0.15, 1.15, color=BAD if over else INK, linewidth=1.6, clip_on=False)
        bar.set_axis_off()
        list_.set_axis_off()
        return to_svg(drawing)


def time_by_step(seconds: Mapping[str, Number]) -> str:
    """How long each step of a job took, in the order they ran.

    Raises:
        ConfigError: no steps, or one below 0 seconds.
    """
    if not seconds or min(seconds.values()) < 0:
        raise ConfigError(f"time by step: {dict(seconds)}; needs at least one step, none below 0 seconds")
    longest, total = max(seconds.values()) or 1.0, sum(seconds.values()) or 1.0
    names = [cut(name, 24) for name in seconds]
    left, row, right = 14 + 6.4 * max(map(len, names)), 24.0, 136.0
    with canvas(WIDTH, row * len(seconds) + 8) as drawing:
        axes = place_axes(drawing, left, 4, WIDTH - left - right, row * len(seconds))
        axes.set(xlim=(0, longest), ylim=(len(seconds), 0))
        for index, (name, spent) in enumerate(zip(names, seconds.values(), strict=True)):
            box(axes, 0, index + 0.22, max(spent, longest * 0.004), 0.56, ACCENT, alpha=0.85)
            y = 4 + row * (index + 0.5)
            note(drawing, left - 8, y, name, ha="right", va="center_baseline", color=INK, fontsize=11)
            note(
                drawing,
                WIDTH - 50,
                y,
                amount(spent, "seconds"),
                ha="right",
                va="center_baseline",
                color=INK,
                fontsize=11,
            )
            note(drawing, WIDTH - 6, y, percent(spent / total), ha="right", va="center_baseline", fontsize=11)
        axes.vlines(0, 0, len(seconds), color=MUTED, linewidth=1, clip_on=False)
        axes.set_axis_off()
        return to_svg(drawing)


def training_curves(loss: Mapping[str, Any], accuracy: Mapping[str, Any], best_epoch: int | None = None) -> str:
    """Loss and accuracy against the epoch (from 1), a line for each split; the kept epoch is marked.

    Raises:
        ConfigError: nothing to draw, or lines of different lengths.
    """
    lengths = {len(line) for lines in (loss, accuracy) for line in lines.values()}
    if len(lengths) != 1 or 0 in lengths:
        raise ConfigError(f"training curves: lines of {sorted(lengths)} epochs; must be of one length, at least 1")
    epochs = lengths.pop()
    panels = [(name, lines) for name, lines in (("loss", loss), ("accuracy", accuracy)) if lines]
    left, panel, gap = 46.0, 124.0, 34.0
    with canvas(WIDTH, (panel + gap) * len(panels) + 22) as drawing:
        for index, (name, lines) in enumerate(panels):
            axes = place_axes(drawing, left, 24 + index * (panel + gap), WIDTH - left - 10, panel)
            axes.grid(axis="y", color=RULE, linewidth=0.5, alpha=0.6)
            axes.set_axisbelow(True)
            for (split, line), (hue, dash) in zip(lines.items(), cycle(_LINES), strict=False):
                style: dict[str, Any] = {"dashes": dash} if dash else {}
                marker = "o" if epochs == 1 else ""
                axes.plot(range(1, epochs + 1), line, color=hue, linewidth=1.7, label=split, marker=marker, **style)
            axes.set_xlim(min(1, epochs - 1), max(epochs, 2))
            if best_epoch is not None:
                axes.axvline(best_epoch, color=MUTED, linewidth=1, linestyle=(0, (1, 2)))
            axes.locator_params(axis="y", nbins=4)
            axes.locator_params(axis="x", integer=True, nbins=8)
            if name == "accuracy":
                axes.yaxis.set_major_formatter(lambda value, _: percent(value))
            axes.tick_params(length=3, labelbottom=index == len(panels) - 1)
            note(drawing, left, 12 + index * (panel + gap), name, va="center", color=INK, fontsize=11)
            axes.legend(
                loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=len(lines), frameon=False, fontsize=10, borderaxespad=0.1,
                handlelength=1.8, columnspacing=1.2,
            )  # fmt: skip
        kept = "" if best_epoch is None else f" (dotted line: kept, epoch {best_epoch})"
        middle = left + (WIDTH - left - 10) / 2
        note(drawing, middle, (panel + gap) * len(panels) + 13, f"epoch{kept}", ha="center", va="center")
        return to_svg(drawing)

"""Placing things on a canvas in CSS pixels from the top left, as the page measures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lilliput.evidence.numbers import Number
from lilliput.evidence.svg import MUTED

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawing

WIDTH = 440.0
"""Of a drawing that fits a phone; more only where the content needs it."""


def place_axes(drawing: Drawing, left: Number, top: Number, width: Number, height: Number) -> Axes:
    """Axes with their top left corner here."""
    whole_width, whole_height = drawing.get_size_inches() * 72
    bottom = whole_height - top - height
    return drawing.add_axes((left / whole_width, bottom / whole_height, width / whole_width, height / whole_height))


def note(
    drawing: Drawing, x: Number, y: Number, text: str, color: str = MUTED, fontsize: Number = 10, **place: Any
) -> None:
    """A few words, by default in a muted colour."""
    width, height = drawing.get_size_inches() * 72
    drawing.text(x / width, 1 - y / height, text, color=color, fontsize=fontsize, **place)


def box(axes: Axes, x: Number, y: Number, width: Number, height: Number, colour: str, alpha: Number) -> None:
    """A filled rectangle in the axes' own units."""
    from matplotlib.patches import Rectangle

    axes.add_patch(
        Rectangle((x, y), width, height, facecolor=colour, edgecolor="none", alpha=alpha, linewidth=0, clip_on=False)
    )


def outline(axes: Axes, x: Number, y: Number, width: Number, height: Number, colour: str) -> None:
    """An empty rectangle in the axes' own units."""
    from matplotlib.patches import Rectangle

    axes.add_patch(Rectangle((x, y), width, height, facecolor="none", edgecolor=colour, linewidth=1, clip_on=False))


def cut(name: str, characters: int) -> str:
    """A name short enough for its place."""
    return name if len(name) <= characters else name[: max(characters - 1, 0)] + "…"

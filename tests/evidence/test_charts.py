"""Charts say what they are given, are the same bytes for the same data, and refuse what they cannot draw."""

import re

import pytest

from lilliput.errors import ConfigError
from lilliput.evidence import charts
from lilliput.evidence.sections import Figure

TREADS = (
    charts.Tread("stem", 1, 16, note="32px"),
    charts.Tread("1: k5", 6, 24, 72, "16px"),
    charts.Tread("2: k3", 3, 64, 128, "8px"),
)
LINES = {"SRAM": [(0.5, 10.0), (1.0, 20.0), (2.0, 21.5)], "flash": [(1.0, 20.0)]}


def text_of(svg: str) -> str:
    return " ".join(re.findall(r">([^<>]+)<", svg))


def test_a_staircase_names_every_run_with_its_width_and_depth():
    said = text_of(charts.staircase(TREADS))
    for word in ("16", "24", "64", "1: k5", "x6", "x3", "8px", "layers, input to output", "dashes: between"):
        assert word in said


def test_columns_carry_their_values_and_names():
    said = text_of(charts.columns({"16x16": 21.5, "8x8": 1234}, "entropy"))
    for word in ("16x16", "21.5", "8x8", "1,234", "entropy"):
        assert word in said


@pytest.mark.parametrize("scale", ["linear", "log"])
def test_lines_carry_their_names_and_labels(scale):
    svg = charts.lines(LINES, "factor", "objective", x_scale=scale, mark=(1.0, 20.0))
    for word in ("SRAM", "flash", "factor", "objective"):
        assert word in text_of(svg)


@pytest.mark.parametrize(
    "draw",
    [
        lambda: charts.staircase(TREADS),
        lambda: charts.columns({"a": 1}),
        lambda: charts.lines(LINES, "x", "y"),
        lambda: charts.intervals({"a": (-1, 2)}, "x"),
        lambda: charts.histogram([0, 0.5, 1], "x"),
        lambda: charts.heat_map({"a": [[0, 1], [-1, 2]]}),
    ],
)
def test_the_same_data_gives_the_same_bytes_that_a_page_takes(draw):
    assert draw() == draw()
    assert Figure(draw(), "title", "alt")


def test_intervals_name_every_row_and_grids_every_panel():
    said = text_of(charts.intervals({"class 0": (1, 2.5), "class 1": (0, 4)}, "bound"))
    assert all(word in said for word in ("class 0", "class 1", "bound"))
    grids = {"lower": [[0.0, -3.5]], "upper": [[1.0, 2.0]]}
    said = text_of(charts.heat_map(grids))
    assert all(word in said for word in ("lower", "upper", "3.5"))
    assert "radius" in text_of(charts.histogram([0.0, 0.1, 0.1, 0.3], "radius"))


def test_what_cannot_be_drawn_is_refused_in_words():
    with pytest.raises(ConfigError, match="staircase: needs at least one run of layers"):
        charts.staircase([])
    with pytest.raises(ConfigError, match="staircase: needs at least one run of layers"):
        charts.staircase([charts.Tread("stem", 0, 16)])
    with pytest.raises(ConfigError, match="columns: .* needs at least one value, none below 0"):
        charts.columns({"a": -1})
    with pytest.raises(ConfigError, match="lines: no series has a point"):
        charts.lines({"a": []}, "x", "y")
    with pytest.raises(ConfigError, match="intervals: .* the lower not above the upper"):
        charts.intervals({"a": (2, 1)}, "x")
    with pytest.raises(ConfigError, match="histogram: needs at least one value, none below 0"):
        charts.histogram([-1], "x")
    with pytest.raises(ConfigError, match="heat map: .* all of one shape"):
        charts.heat_map({"a": [[1]], "b": [[1, 2]]})

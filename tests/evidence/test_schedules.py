"""Drawings of schedules: on one scale, small whatever the number of tiles, and what overlaps is seen to."""

import re

import numpy as np
import pytest

from lilliput.errors import ConfigError
from lilliput.evidence.figures import Lifetime
from lilliput.evidence.schedules import Region, joined, memory_compared, tiles_on_image
from lilliput.evidence.sections import Figure

WHOLE = [Lifetime("image", 0, 1, 0, 3000), Lifetime("conv", 1, 2, 3000, 6000)]
TILES = [Lifetime("image", step, step, 0, 300) for step in range(0, 400, 2)] + [Lifetime("conv", 0, 399, 300, 1200)]


def text_of(svg: str) -> str:
    return " ".join(re.findall(r">([^<>]+)<", svg))


def test_boxes_of_one_name_place_and_size_are_joined_over_small_gaps_alone():
    assert joined(TILES, gap_steps=1) == [Lifetime("image", 0, 398, 0, 300), TILES[-1]]
    assert joined(TILES, gap_steps=0) == sorted(TILES, key=lambda each: each.first_step)
    others = [
        Lifetime("a", 0, 0, 0, 8),
        Lifetime("b", 1, 1, 0, 8),
        Lifetime("a", 2, 2, 8, 8),
        Lifetime("a", 3, 3, 0, 9),
    ]
    assert joined(others, gap_steps=9) == others
    assert joined([Lifetime("a", 0, 9, 0, 8), Lifetime("a", 2, 3, 0, 8)], gap_steps=0) == [Lifetime("a", 0, 9, 0, 8)]


def heights(svg: str) -> list[float]:
    """Of the filled boxes, in pixels."""
    paths = re.findall(r'<path d="([^"]+)"[^>]*style="fill: var\(--hue[^"]*opacity: 0\.35', svg)
    return [
        max(y) - min(y)
        for y in ([float(pair.split()[1]) for pair in re.findall(r"[-\d.]+ [-\d.]+", path)] for path in paths)
    ]


def test_both_plans_are_on_one_scale_of_bytes_and_a_tensor_keeps_its_colour():
    svg = memory_compared({"whole": WHOLE, "tiles": joined(TILES, 1)}, budget_bytes=4096)
    image, conv, image_tiles, conv_tiles = heights(svg)
    assert conv / image == pytest.approx(2, rel=0.01)
    assert image / image_tiles == pytest.approx(10, rel=0.02)
    assert conv / conv_tiles == pytest.approx(5, rel=0.02)
    hues = re.findall(r'style="fill: var\((--hue-\d)', svg)
    assert hues == ["--hue-1", "--hue-2", "--hue-1", "--hue-2"]
    said = text_of(svg)
    assert "whole" in said
    assert "highest byte in use: 9,000, over the budget" in said
    assert "highest byte in use: 1,500 " in said + " "
    assert svg.count("stroke-dasharray: 7") == 2  # the budget, through both


def test_a_tile_is_drawn_on_the_image_and_on_the_map():
    image = np.zeros((24, 24, 3), np.uint8)
    halves = [(0, 14), (10, 24)]
    reads = [Region(rows, columns) for rows in halves for columns in halves]
    makes = [Region((r, r + 6), (c, c + 6)) for r in (0, 6) for c in (0, 6)]
    svg = tiles_on_image(image, reads, makes, (12, 12), "conv 3")
    assert Figure(svg, "Tiles", "four tiles")
    said = text_of(svg)
    for words in ("read of the image, 24x24", "made of conv 3, 12x12", "1", "2", "3", "4"):
        assert words in said
    assert svg.count("opacity: 0.18") == 8
    assert svg.count("opacity: 0.35") == 2  # the tile that stands out
    assert 'href="data:image/png;base64,' in svg
    assert svg == tiles_on_image(image, reads, makes, (12, 12), "conv 3")


@pytest.mark.parametrize("shape", [(96, 96, 1), (49, 10, 1), (10, 400, 3)])
def test_any_image_gets_a_drawing_of_the_pages_width(shape):
    region = [Region((0, shape[0]), (0, shape[1]))]
    svg = tiles_on_image(np.full(shape, 128, np.uint8), region, region, shape[:2], "map")
    assert float(re.search(r'width="([\d.]+)"', svg)[1]) == 440


def test_what_cannot_be_drawn_is_refused_in_words():
    with pytest.raises(ConfigError, match="memory compared: needs at least one plan, each with a tensor or more"):
        memory_compared({"whole": WHOLE, "tiles": []})
    region = Region((0, 4), (0, 4))
    with pytest.raises(ConfigError, match="tiles on image: 2 parts read for 1 made"):
        tiles_on_image(np.zeros((4, 4, 1), np.uint8), [region, region], [region], (4, 4), "map")

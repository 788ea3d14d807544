import math
import re
from xml.etree import ElementTree

import numpy as np
import pytest

from lilliput.errors import ConfigError
from lilliput.evidence import Bar, Figure, Lifetime, figures
from lilliput.evidence.svg import embed, natural_width

SVG = "{http://www.w3.org/2000/svg}"
LIFETIMES = [Lifetime("input", 0, 0, 0, 64), Lifetime("stem", 0, 1, 64, 4096), Lifetime("head", 1, 3, 4160, 1024)]
CURVE = {"train": [2.0, 1.0, 0.5], "validation": [2.1, 1.2, 0.9]}
DRAWINGS = {
    "confusion": lambda: figures.confusion_matrix([[5, 1], [0, 7]], ["cat", "dog"]),
    "cost": lambda: figures.cost_against_budget(
        [Bar("SRAM", 11204, 16384, "bytes"), Bar("flash", 140000, 131072, "bytes")]
    ),
    "memory": lambda: figures.memory_lifetimes(LIFETIMES, 8192, ["a", "b", "c", "d"]),
    "flash": lambda: figures.flash_breakdown({"weights": 41200, "kernels": 14200}, 131072),
    "time": lambda: figures.time_by_step({"load": 0.3, "train": 83.2}),
    "curves": lambda: figures.training_curves(CURVE, {"train": [0.1, 0.5, 0.9]}, best_epoch=2),
}


def texts(svg):
    return [element.text for element in ElementTree.fromstring(svg).iter(f"{SVG}text")]


def boxes(svg, colour):
    """(left, top, width, height) of each filled rectangle in a colour of the theme."""
    found = []
    for path in ElementTree.fromstring(svg).iter(f"{SVG}path"):
        if f"fill: var(--{colour}," in path.get("style", ""):
            points = [tuple(map(float, point)) for point in re.findall(r"[ML]([-0-9.]+) ([-0-9.]+)", path.get("d"))]
            xs, ys = zip(*points, strict=True)
            found.append((min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)))
    return found


@pytest.mark.parametrize("name", DRAWINGS)
def test_a_drawing_is_the_same_bytes_each_time_whatever_the_users_settings(name):
    import matplotlib

    first = DRAWINGS[name]()
    before = dict(matplotlib.rcParams)
    with matplotlib.rc_context({"font.size": 30, "svg.hashsalt": None, "svg.fonttype": "path", "xtick.major.size": 20}):
        assert DRAWINGS[name]() == first
    assert dict(matplotlib.rcParams) == before


@pytest.mark.parametrize("name", DRAWINGS)
def test_a_drawing_is_small_safe_and_follows_the_page_in_light_and_dark(name):
    svg = DRAWINGS[name]()
    Figure(svg, "Title", "alt")  # checks that it holds nothing dangerous
    assert len(svg) < 12_000
    styles = " ".join(element.get("style", "") for element in ElementTree.fromstring(svg).iter())
    bare = re.findall(r"(?:fill|stroke): (?!none|var\()[^;]+", styles)
    assert bare == []
    assert natural_width(svg) <= 441


def test_two_drawings_on_one_page_share_no_ids():
    svg = DRAWINGS["curves"]()
    first, second = (re.findall(r'\bid="([^"]+)"', embed(svg, prefix, "T", "alt")) for prefix in ("fig-a", "fig-b"))
    assert len(first) > 2
    assert set(first).isdisjoint(second)
    inlined = embed(svg, "fig-a", "T", "alt")
    assert set(re.findall(r'(?:href="#|url\(#)([^")]+)', inlined)) <= set(first)


def test_an_embedded_drawing_is_named_and_described():
    root = ElementTree.fromstring(embed(DRAWINGS["time"](), "fig-1", "Time <now>", 'says "much"'))
    assert root.get("role") == "img"
    assert root.get("aria-labelledby") == "fig-1-title fig-1-desc"
    assert [(child.tag, child.get("id"), child.text) for child in root[:2]] == [
        ("title", "fig-1-title", "Time <now>"),
        ("desc", "fig-1-desc", 'says "much"'),
    ]


def test_a_confusion_matrix_shades_by_share_of_the_row_and_numbers_what_is_not_zero():
    svg = figures.confusion_matrix(np.array([[30, 10], [20, 980]]), ["a", "b"])
    assert sorted(texts(svg)) == sorted(["30", "10", "20", "980", "a", "a", "b", "b", "truth", "prediction"])
    assert len(boxes(svg, "accent")) == 2
    assert len(boxes(svg, "bad")) == 2
    opacity = [float(value) for value in re.findall(r"fill: var\(--(?:accent|bad),[^;]*; opacity: ([0-9.]+)", svg)]
    assert opacity == pytest.approx([0.12 + 0.38 * share for share in (0.75, 0.25, 0.02, 0.98)], abs=0.01)
    (left, top, *_), (right, below, *_) = boxes(svg, "accent")
    assert right > left
    assert below > top


def test_a_confusion_matrix_of_many_classes_stays_small_and_one_of_none_is_refused():
    svg = figures.confusion_matrix(np.eye(100, dtype=int) * 9, [f"class {index}" for index in range(100)])
    assert "9" not in texts(svg)
    assert len(boxes(svg, "accent")) == 100
    assert len(svg) < 60_000
    for counts, classes in (([], []), ([[1, 2]], ["a"]), ([[1]], ["a", "b"]), ([[-1]], ["a"])):
        with pytest.raises(ConfigError, match="confusion matrix: .* must be square"):
            figures.confusion_matrix(counts, classes)


def test_a_class_called_like_markup_or_mathematics_is_drawn_as_text():
    svg = figures.confusion_matrix([[1, 0], [0, 1]], ["<script>", "$5 & up"])
    assert {"<script>", "$5 & up"} <= set(texts(svg))
    assert "<script" not in svg


def test_a_bar_is_as_long_as_its_share_of_the_ceiling():
    svg = figures.cost_against_budget([Bar("SRAM", 8192, 16384, "bytes"), Bar("flash", 262144, 131072, "bytes")])
    (half,), (double,), tracks = boxes(svg, "accent"), boxes(svg, "bad"), boxes(svg, "rule")
    assert half[2] == pytest.approx(0.5 * tracks[0][2], rel=0.01)
    assert double[2] == pytest.approx(2 * tracks[1][2], rel=0.01)
    assert "8,192 bytes of 16,384 bytes, 50%" in texts(svg)
    assert "over: 262,144 bytes of 131,072 bytes, 200%" in texts(svg)
    with pytest.raises(ConfigError, match="bar 'MACs' has no ceiling"):
        figures.cost_against_budget([Bar("MACs", 5)])


def test_a_lifetime_is_as_wide_as_it_lives_and_as_high_as_its_bytes():
    svg = figures.memory_lifetimes(LIFETIMES)
    (input_,), (stem,), (head,) = (boxes(svg, f"hue-{number}") for number in (1, 2, 3))
    step, byte = stem[2] / 2, stem[3] / 4096
    assert input_[2] == pytest.approx(step, rel=0.02)
    assert head[2:] == pytest.approx((3 * step, 1024 * byte), rel=0.02)
    assert head[0] - stem[0] == pytest.approx(step, rel=0.02)
    assert stem[1] - (head[1] + head[3]) == pytest.approx(0, abs=0.1)  # head lies right above stem
    assert {"stem", "head", "highest byte in use: 5,184 bytes"} <= set(texts(svg))


@pytest.mark.parametrize(
    ("budget_bytes", "said", "is_drawn"),
    [
        (8192, "highest byte in use: 5,184 of 8,192 bytes", True),
        (5000, "highest byte in use: 5,184 of 5,000 bytes, over the budget", True),
        (262144, "highest byte in use: 5,184 of 262,144 bytes (above this picture)", False),
    ],
)
def test_the_budget_is_a_line_or_said_to_be_above(budget_bytes, said, is_drawn):
    svg = figures.memory_lifetimes(LIFETIMES, budget_bytes)
    assert said in texts(svg)
    assert (
        re.search(r"stroke-dasharray[^\"]*stroke: var\(--bad|stroke: var\(--bad[^\"]*", svg) is not None
    ) == is_drawn


def test_lifetimes_that_make_no_sense_are_refused():
    for lifetimes in ([], [Lifetime("a", 2, 1, 0, 8)], [Lifetime("a", 0, 1, -4, 8)]):
        with pytest.raises(ConfigError, match="needs at least one tensor, each with first_step <= last_step"):
            figures.memory_lifetimes(lifetimes)
    with pytest.raises(ConfigError, match="1 step names for 4 steps"):
        figures.memory_lifetimes(LIFETIMES, step_names=["a"])


def test_a_deep_network_gets_a_wider_picture():
    many = [Lifetime(f"layer{index}", index, index + 1, 0, 64) for index in range(80)]
    assert natural_width(figures.memory_lifetimes(many)) > 1000


def test_the_parts_of_flash_are_in_proportion_and_the_rest_is_free():
    svg = figures.flash_breakdown({"weights": 3000, "kernels": 1000}, 8000)
    weights, kernels, free = (boxes(svg, colour)[0] for colour in ("hue-1", "hue-2", "rule"))
    assert weights[2] == pytest.approx(3 * kernels[2], rel=0.01)
    assert free[2] == pytest.approx(4 * kernels[2], rel=0.01)
    assert {"weights", "3,000 bytes", "37.5%", "free", "4,000 bytes", "50%"} <= set(texts(svg))
    for parts in ({}, {"a": -1}, {"a": 0}):
        with pytest.raises(ConfigError, match="needs at least one part"):
            figures.flash_breakdown(parts)


def test_time_is_told_in_seconds_and_shares():
    svg = figures.time_by_step({"load": 1, "train": 3.0})
    load, train = boxes(svg, "accent")
    assert train[2] == pytest.approx(3 * load[2], rel=0.01)
    assert {"load", "1.0 seconds", "25%", "train", "3.0 seconds", "75%"} <= set(texts(svg))
    for seconds in ({}, {"a": -1.0}):
        with pytest.raises(ConfigError, match="needs at least one step"):
            figures.time_by_step(seconds)


def test_curves_have_a_line_a_split_and_survive_one_epoch_and_gaps():
    svg = figures.training_curves(CURVE, {"train": np.array([0.1, 0.5, 0.9], dtype=np.float32)}, best_epoch=2)
    assert texts(svg).count("train") == 2
    assert texts(svg).count("validation") == 1
    assert "epoch (dotted line: kept, epoch 2)" in texts(svg)
    figures.training_curves({"train": [math.nan, 1.0]}, {"train": [0.5, 0.6]})
    figures.training_curves({"train": [1.0]}, {})
    for loss in ({}, {"train": []}, {"train": [1.0], "validation": [1.0, 2.0]}):
        with pytest.raises(ConfigError, match="training curves: lines of .* epochs"):
            figures.training_curves(loss, {})

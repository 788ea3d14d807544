import re
from html.parser import HTMLParser

import numpy as np
import pytest
from example_report import EVIDENCE, example_run

from lilliput.errors import DataError
from lilliput.evidence import (
    Bar,
    Bars,
    Evidence,
    EvidenceTable,
    Figure,
    Images,
    Run,
    Section,
    Table,
    Text,
    figures,
    render_report,
)

VOID = {"meta", "link", "img", "br", "data"} - {"data"}
NASTY = '<script>alert("1")</script>'


class Outline(HTMLParser):
    """Elements of a page, with the text inside each, and whether every one is closed."""

    def __init__(self, html):
        super().__init__()
        self.elements, self.open = [], []
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        element = [tag, dict(attrs), ""]
        self.elements.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_startendtag(self, tag, attrs):
        self.elements.append([tag, dict(attrs), ""])

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        for element in self.open:
            element[2] += data

    def all(self, tag):
        return [(attrs, text.strip()) for name, attrs, text in self.elements if name == tag]


def page_of(tmp_path, sections, evidence=(), **options):
    with Run.create(tmp_path / "run", job="build", config={"data": "digits"}, seed=3) as run:
        run.record(*evidence)
        run.write_report(sections, **options)
    return Outline((run.path / "report.html").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def page(example):
    return Outline((example.path / "report.html").read_text(encoding="utf-8"))


def test_the_page_has_one_heading_of_the_first_kind_and_then_one_a_section(page):
    headings = [name for name, *_ in page.elements if re.fullmatch("h[1-6]", name)]
    assert headings == ["h1"] + ["h2"] * 6
    assert page.all("h1")[0][1] == page.all("title")[0][1] == "Digits on a Cortex-M4"
    assert [text for _, text in page.all("h2")][-2:] == ["Where the time went", "How each figure was obtained"]
    assert page.all("html")[0][0]["lang"] == "en"


def test_every_section_can_be_reached_from_the_top(page):
    targets = {attrs["id"] for _, attrs, _ in page.elements if "id" in attrs}
    links = [attrs["href"] for attrs, _ in page.all("a")]
    assert links[0] == "#main"
    assert len(links) == 7
    assert {link.removeprefix("#") for link in links} <= targets


def test_no_id_is_given_twice_and_every_reference_has_its_target(page):
    ids = [attrs["id"] for _, attrs, _ in page.elements if "id" in attrs]
    assert len(ids) == len(set(ids))
    references = [name for _, attrs, _ in page.elements for name in attrs.get("aria-labelledby", "").split()]
    assert set(references) <= set(ids)


def test_every_table_has_a_caption_and_its_headers_say_what_they_head(page):
    tables = [name for name, *_ in page.elements if name == "table"]
    assert len(tables) == len(page.all("caption")) == 6
    assert all(text for _, text in page.all("caption"))
    assert {attrs["scope"] for attrs, _ in page.all("th")} == {"col", "row"}


def test_every_picture_says_in_words_what_it_shows(page):
    drawings = page.all("svg")
    assert len(drawings) == 6
    assert all(attrs["role"] == "img" for attrs, _ in drawings)
    assert all(text for _, text in page.all("desc"))
    assert [attrs["alt"] for attrs, _ in page.all("img")][8] == "Image 9, is 8, network says 0"


def test_tiny_images_are_enlarged_pixel_by_pixel_and_photographs_are_not(tmp_path):
    tiny, photograph = (Images.of("c", np.zeros((1, side, side, 3), np.uint8)) for side in (95, 96))
    page = page_of(tmp_path, [Section("a", "A", blocks=[tiny, photograph])])
    assert [attrs.get("class") for attrs, _ in page.all("img")] == ["pixelated", None]


def test_the_page_asks_for_nothing_outside_itself(example, page):
    html = (example.path / "report.html").read_text(encoding="utf-8")
    assert re.findall(r"https?://|//[a-z]+\.", html) == []
    sources = [attrs[name] for _, attrs, _ in page.elements for name in ("src", "href", "xlink:href") if name in attrs]
    assert all(source.startswith(("data:image/png;base64,", "data:,", "#")) for source in sources)
    assert page.all("script") == []
    policy = next(attrs["content"] for attrs, _ in page.all("meta") if attrs.get("http-equiv"))
    assert policy.startswith("default-src 'none'")


def test_the_last_section_says_of_every_figure_how_it_was_obtained(page, example):
    rows = [text for _, text in page.all("tr")]
    for figure in EVIDENCE:
        told = [row for row in rows if row.startswith(figure.name)][-1]
        assert str(figure.how) in told
        assert figure.source in told
        assert figure.n is None or str(figure.n) in told
    text = page.all("main")[0][1]
    for fact in (example.versions["torch"], example.versions["python"], example.started, "training.epochs"):
        assert fact in text


def test_the_verdict_is_told_in_words_and_not_by_colour_alone(tmp_path):
    page = page_of(tmp_path, [], verdict="does not fit: 20,000 of 16,384 bytes", holds=False)
    assert next(attrs for attrs, _ in page.all("span"))["aria-label"] == "does not hold"
    assert "does not fit: 20,000 of 16,384 bytes" in page.all("header")[0][1]


def test_a_bar_over_its_ceiling_says_by_how_much(tmp_path):
    page = page_of(tmp_path, [Section("a", "A", blocks=[Bars("c", [Bar("SRAM", 9, 8, "bytes"), Bar("MACs", 5)])])])
    over, plain = (re.sub(r"\s+", " ", text) for _, text in page.all("li")[-2:])
    assert over == "SRAM 9 of 8 bytes, 112.5%, over by 1 bytes"
    assert plain == "MACs 5"


def test_text_that_looks_like_markup_is_shown_as_it_is(tmp_path):
    nasty = [
        Section(
            "a",
            NASTY,
            NASTY,
            [
                Text(NASTY),
                Table(NASTY, [NASTY], [[NASTY]]),
                Bars(NASTY, [Bar(NASTY, 1, 2, NASTY)]),
                Images.of(NASTY, np.zeros((1, 4, 4), np.uint8), [NASTY], [NASTY + "x"], [NASTY]),
                Figure(figures.confusion_matrix([[1]], [NASTY]), NASTY, NASTY, NASTY),
                EvidenceTable(NASTY, ["a.b"]),
            ],
        )
    ]
    evidence = [Evidence("a.b", NASTY, NASTY, "counted", source=NASTY, detail={NASTY: NASTY})]
    page = page_of(tmp_path, nasty, evidence, title=NASTY, verdict=NASTY, highlights=["a.b"])
    assert page.all("script") == []
    assert page.all("h1")[0][1] == NASTY
    assert page.all("body")[0][1].count("<script>") >= 15


def test_words_between_backticks_are_code_and_nothing_else_is_markup(tmp_path):
    page = page_of(tmp_path, [Section("a", "A", blocks=[Text("run `lilliput <verb>` & wait\n\nthen `look")])])
    paragraphs = [text for _, text in page.all("p")]
    assert "run lilliput <verb> & wait" in paragraphs
    assert "then `look" in paragraphs
    assert "lilliput <verb>" in [text for _, text in page.all("code")]


def test_a_run_without_steps_or_figures_has_a_page_too(tmp_path):
    page = page_of(tmp_path, [])
    assert [text for _, text in page.all("h2")] == ["How each figure was obtained"]


def test_a_run_without_a_report_has_no_page(tmp_path):
    with Run.create(tmp_path / "run", job="build") as run:
        pass
    with pytest.raises(DataError, match=r"run: has no report.json, so there is no page to draw"):
        render_report(Run.load(run.path))


def test_a_report_whose_figure_went_missing_is_refused(tmp_path, written):
    path = written(tmp_path / "run")
    (path / "report.json").write_text(
        (path / "report.json").read_text().replace('"highlights": []', '"highlights": ["x.y"]')
    )
    with pytest.raises(DataError, match=r"the report shows 'x.y', which evidence.json does not hold"):
        render_report(Run.load(path))


def test_the_drawings_of_a_report_are_files_too(example):
    names = sorted(path.name for path in (example.path / "figures").iterdir())
    assert names == ["accuracy-1.svg", "accuracy-2.svg", "budget-1.svg", "budget-2.svg", "memory-map.svg"]
    assert "confusion" not in (example.path / "figures" / "accuracy-1.svg").read_text()


def test_a_page_is_small(tmp_path, example):
    assert (example.path / "report.html").stat().st_size < 100_000
    many = example_run(tmp_path / "many", [f"class {index}" for index in range(20)])
    assert (many.path / "report.html").stat().st_size < 120_000

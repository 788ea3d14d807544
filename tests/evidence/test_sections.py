import json

import numpy as np
import pytest

from lilliput.errors import ConfigError, DataError
from lilliput.evidence import Bar, Bars, EvidenceTable, Figure, Images, Report, Section, Table, Text, Tile, figures

PIXEL = "data:image/png;base64,iVBORw0KGgo="
DRAWING = '<svg xmlns="http://www.w3.org/2000/svg" width="10" height="10"><path d="M0 0L1 1"/></svg>'


def test_a_report_with_every_kind_of_block_survives_json(example):
    report = example.report
    kinds = {type(block) for section in report.sections for block in section.blocks}
    assert kinds == {Text, Table, Figure, Bars, Images, EvidenceTable}
    assert Report.from_json(json.loads(json.dumps(report.to_json(), allow_nan=False))) == report


def test_a_table_takes_numpy_numbers_and_gives_pythons():
    table = Table("t", ["a", "b"], [["x", np.int64(3)], ["y", np.float32(0.5)]])
    assert [type(row[1]) for row in table.rows] == [int, float]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Table("t", ["a", "b"], [["x"]]), "table 't', row 0: 1 cells for 2 columns"),
        (lambda: Table("t", [], []), "table 't' has no columns"),
        (lambda: Table("t", ["a"], [[object()]]), "row 0: <object.* must be text, a finite number"),
        (lambda: Table("t", ["a"], [[float("nan")]]), "row 0: nan must be text, a finite number"),
        (lambda: Bar("SRAM", -1), "bar 'SRAM': value=-1 must be finite and 0 or above"),
        (lambda: Bar("SRAM", 1, 0), "bar 'SRAM': ceiling=0 must be above 0"),
        (lambda: Figure(DRAWING, "", "alt"), "a figure has no title"),
        (lambda: Figure(DRAWING, "Title", " "), "figure 'Title' has no alt text"),
        (lambda: Section("Memory Map", "t"), "section id 'Memory Map': must be a-z"),
        (lambda: Section("a", ""), "section 'a' has no title"),
        (lambda: Report("r", [Section("a", "A"), Section("a", "B")]), "two sections have the id 'a'"),
        (lambda: Tile("https://example.org/x.png"), "must be a data:image/png;base64 address"),
        (lambda: Tile(PIXEL + '" onload="x'), "must be a data:image/png;base64 address"),
    ],
)
def test_a_part_that_cannot_be_drawn_is_refused_by_name(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


@pytest.mark.parametrize(
    ("inside", "message"),
    [
        ("<script>alert(1)</script>", "holds <script>"),
        ("<foreignObject/>", "holds <foreignObject>"),
        ("<style>body{display:none}</style>", "holds <style>"),
        ('<path onclick="x"/>', "holds onclick='x'"),
        ('<image href="https://example.org/x.png"/>', "holds href='https://example.org/x.png'"),
        ('<path style="fill: url(https://example.org/x)"/>', "holds style='fill: url"),
        ('<a href="javascript:alert(1)"/>', "holds <a>"),
    ],
)
def test_a_drawing_that_runs_or_fetches_something_is_refused(inside, message):
    with pytest.raises(ConfigError, match=f"figure 'Title' {message}"):
        Figure(DRAWING.replace('<path d="M0 0L1 1"/>', inside), "Title", "alt")


@pytest.mark.parametrize("text", ["", "<svg>", "<html/>", '<!DOCTYPE s [<!ENTITY a "b">]><svg>&a;</svg>'])
def test_what_is_not_svg_is_refused(text):
    with pytest.raises(ConfigError, match="figure 'Title' is not SVG"):
        Figure(text, "Title", "alt")


@pytest.mark.parametrize("shape", [(3, 8, 8), (3, 8, 8, 1), (3, 8, 8, 3)])
def test_a_gallery_keeps_every_pixel(shape):
    import base64
    import io

    from PIL import Image

    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    gallery = Images.of("three", images, truth=["a", "b", "c"], prediction=["a", "c", "c"])
    for tile, image in zip(gallery.tiles, images, strict=True):
        read = np.asarray(Image.open(io.BytesIO(base64.b64decode(tile.src.split(",")[1]))))
        assert np.array_equal(read, image.squeeze(-1) if image.shape[-1] == 1 else image)
    assert [(tile.truth, tile.prediction) for tile in gallery.tiles] == [("a", "a"), ("b", "c"), ("c", "c")]


@pytest.mark.parametrize("images", [np.zeros((1, 8, 8)), np.zeros((8, 8), np.uint8), np.zeros((1, 8, 8, 2), np.uint8)])
def test_a_gallery_of_another_dtype_or_shape_is_refused(images):
    with pytest.raises(DataError, match=r"gallery 'g': images are .*; must be uint8 \(n, height, width\)"):
        Images.of("g", images)


def test_a_gallery_with_texts_for_other_images_is_refused():
    with pytest.raises(DataError, match="gallery 'g': 1 entries in truth for 2 images"):
        Images.of("g", np.zeros((2, 4, 4), np.uint8), truth=["a"])


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({}, "its \\$schema is None"),
        ({"$schema": "urn:lilliput:report:1", "title": "t"}, "sections"),
        ({"$schema": "urn:lilliput:report:1", "title": "t", "sections": [], "colour": 1}, "colour"),
        (
            {
                "$schema": "urn:lilliput:report:1",
                "title": "t",
                "sections": [{"id": "a", "title": "A", "blocks": [{"kind": "film"}]}],
            },
            "a block has the kind 'film'; known are text, table, figure, bars, images, evidence",
        ),
        ([], "is not a report"),
    ],
)
def test_a_damaged_report_names_its_fault(document, message):
    with pytest.raises(DataError, match=message):
        Report.from_json(document, source="runs/x/report.json")


def test_a_report_from_elsewhere_cannot_smuggle_in_a_script():
    report = Report("t", [Section("a", "A", blocks=[Figure(figures.time_by_step({"a": 1.0}), "T", "alt")])]).to_json()
    report["sections"][0]["blocks"][0]["svg"] = DRAWING.replace("<path", "<script/><path")
    with pytest.raises(DataError, match="holds <script>"):
        Report.from_json(report)

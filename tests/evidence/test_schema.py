import json

import pytest

from lilliput.errors import DataError
from lilliput.evidence import Run
from lilliput.evidence.schema import faults, read_checked, schema

EVIDENCE = {"$schema": "urn:lilliput:evidence:1", "a.b": {"value": 1, "unit": "bytes", "how": "counted"}}


@pytest.mark.parametrize("name", ["run", "evidence"])
def test_a_shipped_schema_uses_only_keywords_that_are_checked(name):
    def walk(rule):
        list(faults({}, rule))  # raises for an unknown keyword
        for held in ("properties", "patternProperties"):
            for inner in rule.get(held, {}).values():
                walk(inner)
        for held in ("items", "additionalProperties"):
            if isinstance(rule.get(held), dict):
                walk(rule[held])

    walk(schema(name))


def test_each_field_of_the_files_is_explained_on_the_docs_page(docs_page):
    figure = next(iter(schema("evidence")["patternProperties"].values()))
    step = schema("run")["properties"]["steps"]["additionalProperties"]
    fields = {*figure["properties"], *step["properties"], *schema("run")["properties"]}
    assert [field for field in sorted(fields) if f"`{field}`" not in docs_page] == []


def test_what_a_run_writes_follows_the_schemas(example):
    for name in ("run", "evidence"):
        document = json.loads((example.path / f"{name}.json").read_text())
        assert list(faults(document, schema(name))) == []
        assert document["$schema"] == schema(name)["$id"]


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"a.b": {"value": 1, "unit": "bytes"}}, "'a.b' lacks 'how'"),
        ({"a.b": {"value": 1, "unit": "bytes", "how": "guessed"}}, "'a.b > how' is 'guessed', not one of counted"),
        (
            {"a.b": {"value": [1], "unit": "bytes", "how": "counted"}},
            "'a.b > value' is array, not boolean or number or string",
        ),
        ({"a.b": {"value": 1, "unit": "bytes", "how": "counted", "n": 0}}, "'a.b > n' is 0, below 1"),
        ({"a.b": {"value": 1, "unit": "bytes", "how": "counted", "n": True}}, "'a.b > n' is boolean, not integer"),
        (
            {"a.b": {"value": 1, "unit": "bytes", "how": "counted", "x": 1}},
            "'a.b > x'|'a.b' holds 'x', which is unknown",
        ),
        ({"A B": {}}, "the document holds 'A B', which is unknown"),
        ({"$schema": "urn:lilliput:evidence:2"}, "is 'urn:lilliput:evidence:2', not 'urn:lilliput:evidence:1'"),
    ],
)
def test_a_document_that_breaks_the_schema_is_named_with_its_place(change, fault, tmp_path):
    path = tmp_path / "evidence.json"
    path.write_text(json.dumps(EVIDENCE | change))
    with pytest.raises(DataError, match=fault):
        read_checked(path, "evidence")


def test_the_document_the_faults_are_made_from_is_itself_right(tmp_path):
    path = tmp_path / "evidence.json"
    path.write_text(json.dumps(EVIDENCE))
    assert read_checked(path, "evidence") == EVIDENCE


@pytest.mark.parametrize("text", ["", "{", '{"$schema": NaN}', "\x00", "[]"])
@pytest.mark.parametrize("file", ["run.json", "evidence.json", "report.json"])
def test_a_damaged_file_is_named(file, text, tmp_path, written):
    path = written(tmp_path / "run") / file
    path.write_text(text)
    with pytest.raises(DataError, match=rf"{file}"):
        Run.load(tmp_path / "run")


@pytest.mark.parametrize("file", ["run.json", "evidence.json"])
def test_a_missing_file_is_named(file, tmp_path, written):
    (written(tmp_path / "run") / file).unlink()
    with pytest.raises(DataError, match=rf"{file}: is missing"):
        Run.load(tmp_path / "run")

"""Checks a JSON document against the JSON Schema files that ship beside this one.

The part of JSON Schema that those files use, and no more: a keyword this module does not know is an error and never silently ignored.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from lilliput.errors import DataError

_TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "boolean": (bool,),
    "integer": (int,),
    "number": (int, float),
    "null": (type(None),),
}
_ANNOTATIONS = {"$schema", "$id", "title", "description"}
_KEYWORDS = {
    *_ANNOTATIONS,
    *("type", "const", "enum", "minimum", "pattern", "items"),
    *("required", "properties", "patternProperties", "additionalProperties"),
}


@cache
def schema(name: str) -> dict[str, Any]:
    """The schema of ``name.json``: ``run`` or ``evidence``."""
    return json.loads(files("lilliput.evidence").joinpath(f"{name}.schema.json").read_text(encoding="utf-8"))


def read_checked(path: Path, name: str) -> dict[str, Any]:
    """Read a JSON file and hold it to a schema.

    Raises:
        DataError: missing, not JSON, or not as the schema says; names the file and the place in it.
    """
    document = read_json(path)
    for fault in faults(document, schema(name)):
        raise DataError(f"{path}: {fault}; it should follow {name}.schema.json")
    return document


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        DataError: missing or not JSON; names the file.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse)
    except FileNotFoundError:
        raise DataError(f"{path}: is missing; a finished run holds run.json, evidence.json and report.json") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise DataError(f"{path}: is not JSON ({error}); it is damaged or was edited by hand") from None


def faults(document: Any, rule: dict[str, Any], at: str = "") -> Iterator[str]:
    """Each way in which a document breaks a schema, as text that names the place."""
    unknown = rule.keys() - _KEYWORDS
    if unknown:
        raise NotImplementedError(f"JSON Schema keywords {sorted(unknown)}: teach lilliput.evidence.schema first")
    place = f"'{at}'" if at else "the document"
    if "const" in rule and document != rule["const"]:
        yield f"{place} is {document!r}, not {rule['const']!r}"
    if "enum" in rule and document not in rule["enum"]:
        yield f"{place} is {document!r}, not one of {', '.join(map(str, rule['enum']))}"
    if "type" in rule:
        allowed = [rule["type"]] if isinstance(rule["type"], str) else rule["type"]
        if not any(_is(document, kind) for kind in allowed):
            yield f"{place} is {_kind(document)}, not {' or '.join(allowed)}"
            return
    if "minimum" in rule and document < rule["minimum"]:
        yield f"{place} is {document}, below {rule['minimum']}"
    if "pattern" in rule and re.search(rule["pattern"], document) is None:
        yield f"{place} is {document!r}, which does not match {rule['pattern']}"
    if isinstance(document, dict):
        yield from _object_faults(document, rule, at, place)
    if isinstance(document, list) and "items" in rule:
        for index, item in enumerate(document):
            yield from faults(item, rule["items"], f"{at}[{index}]")


def _object_faults(document: dict[str, Any], rule: dict[str, Any], at: str, place: str) -> Iterator[str]:
    for name in rule.get("required", ()):
        if name not in document:
            yield f"{place} lacks '{name}'"
    for name, value in document.items():
        inside = f"{at} > {name}" if at else name  # names hold dots themselves
        rules = [rule["properties"][name]] if name in rule.get("properties", {}) else []
        rules += [each for pattern, each in rule.get("patternProperties", {}).items() if re.search(pattern, name)]
        extra = rule.get("additionalProperties", True)
        if not rules and extra is False:
            yield f"{place} holds '{name}', which is unknown"
        elif not rules and isinstance(extra, dict):
            rules = [extra]
        for each in rules:
            yield from faults(value, each, inside)


def _refuse(constant: str) -> None:
    raise ValueError(f"it holds {constant}, which JSON cannot say")


def _is(document: Any, kind: str) -> bool:
    if isinstance(document, bool):  # Python counts True among the integers, JSON does not
        return kind == "boolean"
    return isinstance(document, _TYPES[kind])


def _kind(document: Any) -> str:
    return next((kind for kind in _TYPES if _is(document, kind)), type(document).__name__)

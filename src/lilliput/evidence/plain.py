"""Configs and results as JSON holds them, so that a resumed run sees what the first attempt saw."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator, Mapping
from enum import Enum
from pathlib import PurePath
from typing import Any

from lilliput.errors import ConfigError
from lilliput.evidence.evidence import plain_number


def to_plain(value: Any, name: str) -> Any:
    """Dataclasses, mappings, sequences, paths, enums and scalars as JSON's own kinds; tuples become lists.

    Raises:
        ConfigError: something JSON cannot hold; names the field by its path.
    """
    value = plain_number(value)
    if isinstance(value, Enum):
        return to_plain(value.value, name)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            field.name: to_plain(getattr(value, field.name), f"{name}.{field.name}")
            for field in dataclasses.fields(value)
        }
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise ConfigError(f"{name}: key {key!r} must be text to be kept as JSON; try {str(key)!r}")
        return {str(key): to_plain(item, f"{name}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(item, f"{name}[{index}]") for index, item in enumerate(value)]
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{name}={value}: must be finite to be kept as JSON; use None for a value that is not there")
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise ConfigError(
        f"{name}: a {type(value).__name__} cannot be kept as JSON; give numbers, text, paths, lists, mappings or dataclasses of them"
    )


def differences(before: Any, now: Any, name: str = "") -> Iterator[tuple[str, str, str]]:
    """Each field that differs between two plain documents: its dotted name, then and now."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in dict.fromkeys((*before, *now)):
            inside = f"{name}.{key}" if name else key
            if key not in before:
                yield inside, "absent", json.dumps(now[key])
            elif key not in now:
                yield inside, json.dumps(before[key]), "absent"
            else:
                yield from differences(before[key], now[key], inside)
    elif before != now:
        yield name, json.dumps(before), json.dumps(now)

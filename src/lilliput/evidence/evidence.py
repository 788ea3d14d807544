"""A figure that says how it was obtained.

The word in ``how`` is the promise. *Counted* figures follow from the graph alone and are exact. *Measured* ones were
observed, ``n`` times or over ``n`` inputs. *Emulated* ones come from a simulated chip: what was executed is exact, what it
would cost in time is not known. *Proved* ones are sound bounds: no input can break them.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from lilliput.errors import ConfigError

_NAME = re.compile(r"[a-z][a-z0-9_]*(\.[a-z0-9_]+)*")


class How(StrEnum):
    """How a figure was obtained."""

    COUNTED = "counted"
    MEASURED = "measured"
    EMULATED = "emulated"
    PROVED = "proved"


@dataclass(frozen=True)
class Evidence:
    """One figure of a run.

    >>> Evidence("accuracy.int8", 0.9875, "share", "measured", n=360, source="test split").how
    <How.MEASURED: 'measured'>
    """

    name: str
    """Dotted lower case, from the general to the special: ``accuracy.int8``."""
    value: Any
    """A finite number, a truth value or text; a scalar array or tensor becomes a number."""
    unit: str
    """``bytes``, ``instructions``, ``seconds``, ``share`` (0 to 1, shown as a percentage); empty where there is none."""
    how: How | str
    n: int | None = None
    """Of how many inputs or repeats it is the mean, or the total."""
    spread: Any = None
    """Standard deviation over repeats, in the figure's unit."""
    source: str | None = None
    """What it was obtained from: a data split, a board, a theorem."""
    detail: Any = None
    """Anything more that JSON can hold."""

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or _NAME.fullmatch(self.name) is None:
            raise ConfigError(
                f"evidence name {self.name!r}: must be words of a-z, 0-9 and _ joined by dots; try {_suggested(self.name)!r}"
            )
        object.__setattr__(self, "value", self._number(self.value))
        if self.how not in set(How):
            raise ConfigError(f"evidence '{self.name}': how={self.how!r} must be one of {', '.join(How)}")
        object.__setattr__(self, "how", How(self.how))
        if not isinstance(self.unit, str):
            raise ConfigError(f"evidence '{self.name}': unit={self.unit!r} must be text; try 'bytes', or '' for none")
        if self.n is not None and (isinstance(self.n, bool) or not isinstance(self.n, int) or self.n < 1):
            raise ConfigError(f"evidence '{self.name}': n={self.n!r} must be a whole number above 0, or None")
        if self.spread is not None:
            object.__setattr__(self, "spread", self._number(self.spread))
            if isinstance(self.spread, str) or self.spread < 0:
                raise ConfigError(f"evidence '{self.name}': spread={self.spread!r} must be 0 or above, or None")
        try:
            json.dumps(self.detail, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"evidence '{self.name}': detail cannot be written as JSON ({error})") from None

    def _number(self, value: Any) -> Any:
        value = plain_number(value)
        if not isinstance(value, bool | int | float | str):
            kind = type(value).__name__
            raise ConfigError(
                f"evidence '{self.name}': {value!r} is of type {kind}; must be a number, a truth value or text"
            )
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(
                f"evidence '{self.name}': {value} is not finite, so it is no figure; leave it out, or say in text what happened"
            )
        return value

    def to_json(self) -> dict[str, Any]:
        """The fields that are set, without the name, which is the key in ``evidence.json``."""
        fields = {"value": self.value, "unit": self.unit, "how": str(self.how)}
        optional = {"n": self.n, "spread": self.spread, "source": self.source, "detail": self.detail}
        return fields | {name: value for name, value in optional.items() if value is not None}

    @classmethod
    def from_json(cls, name: str, fields: Mapping[str, Any]) -> Evidence:
        """The figure that :meth:`to_json` wrote."""
        return cls(name, **fields)


def plain_number(value: Any) -> Any:
    """A scalar of numpy or torch as Python's own number, without importing either; anything else as it is."""
    if not isinstance(value, bool | int | float | str) and getattr(value, "shape", None) == ():
        return value.item()
    return value


def _suggested(name: Any) -> str:
    words = [re.sub(r"[^a-z0-9]+", "_", word).strip("_") for word in str(name).lower().split(".")]
    suggestion = ".".join(word for word in words if word).lstrip("0123456789_.")
    return suggestion if _NAME.fullmatch(suggestion) else "accuracy.int8"

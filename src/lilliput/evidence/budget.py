"""What a network may cost, and what it does cost, in the same five words.

``params``, ``macs``, ``flash_bytes``, ``sram_bytes`` and ``bits`` mean the same in a :class:`Budget` (a ceiling, ``None`` where there is
none) and in a :class:`Cost` (a count), so ``cost <= budget`` reads as it should.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields

from lilliput.errors import ConfigError

_BYTE_UNITS = {"": 1, "B": 1, "KB": 1024, "KIB": 1024, "MB": 1024**2, "MIB": 1024**2, "GB": 1024**3, "GIB": 1024**3}
_COUNT_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9}


def _scaled(text: str | int | float, units: Mapping[str, int], what: str, example: str) -> int:
    match = re.fullmatch(r"\s*([0-9][0-9_,]*\.?[0-9]*|\.[0-9]+)\s*([A-Za-z]*)\s*", str(text))
    if match is None or match[2].upper() not in units:
        allowed = ", ".join(unit for unit in units if unit)
        raise ConfigError(f"{what} {text!r}: must be a number and one of {allowed} (or no unit); try {example!r}")
    value = float(match[1].replace(",", "").replace("_", "")) * units[match[2].upper()]
    if value != int(value):
        raise ConfigError(f"{what} {text!r} is {value} and not a whole number; try {example!r}")
    return int(value)


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Ceilings for a network; ``None`` means no ceiling. Bytes are bytes: 1 KB is 1024."""

    params: int | None = None
    macs: int | None = None
    flash_bytes: int | None = None
    sram_bytes: int | None = None

    def __post_init__(self) -> None:
        for ceiling in fields(self):
            value = getattr(self, ceiling.name)
            if value is not None and value <= 0:
                raise ConfigError(f"budget {ceiling.name}={value}: must be above 0")

    @staticmethod
    def parse(text: str | int) -> int:
        """Bytes of a size such as ``"256KB"``; KB, MB and GB are powers of 1024, as on a chip's data sheet.

        Raises:
            ConfigError: not a number with a known unit, or not a whole number of bytes.

        >>> Budget.parse("16KB"), Budget.parse("1.5 MB"), Budget.parse(512)
        (16384, 1572864, 512)
        """
        return _scaled(text, _BYTE_UNITS, "size", "256KB")

    @staticmethod
    def parse_count(text: str | int) -> int:
        """A count such as ``"1.82G"`` multiply-accumulates; K, M and G are powers of 1000.

        >>> Budget.parse_count("1.82G")
        1820000000
        """
        return _scaled(text, _COUNT_UNITS, "count", "20M")

    @classmethod
    def of(
        cls,
        *,
        sram: str | int | None = None,
        flash: str | int | None = None,
        macs: str | int | None = None,
        params: str | int | None = None,
    ) -> Budget:
        """A budget from the spellings people use.

        >>> Budget.of(sram="16KB", flash="128KB", macs="2M")
        Budget(params=None, macs=2000000, flash_bytes=131072, sram_bytes=16384)
        """
        return cls(
            params=None if params is None else cls.parse_count(params),
            macs=None if macs is None else cls.parse_count(macs),
            flash_bytes=None if flash is None else cls.parse(flash),
            sram_bytes=None if sram is None else cls.parse(sram),
        )


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a network costs. Counted from a graph, ``flash_bytes`` is its weights alone; measured, it is the linked image."""

    params: int = 0
    macs: int = 0
    flash_bytes: int = 0
    sram_bytes: int = 0
    bits: int = 8
    per_node: Mapping[str, Cost] = field(default_factory=dict, repr=False, compare=False)
    """The same figures by graph node, where they were counted from one. A weight shared by nodes is charged to the first."""

    @property
    def weight_bytes(self) -> int:
        """Bytes of the parameters alone, packed at ``bits`` each, rounded up to whole bytes."""
        return -(-self.params * self.bits // 8)

    def excess(self, budget: Budget) -> dict[str, tuple[int, int]]:
        """Each ceiling that is broken: name -> (cost, ceiling); empty when all hold."""
        pairs = {f.name: (getattr(self, f.name), getattr(budget, f.name)) for f in fields(budget)}
        return {
            name: (cost, ceiling) for name, (cost, ceiling) in pairs.items() if ceiling is not None and cost > ceiling
        }

    def __le__(self, budget: Budget) -> bool:
        return not self.excess(budget)

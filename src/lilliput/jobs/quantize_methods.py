"""Which methods stand in a table of low-bit weights: the one that was asked for, and others that store about as much."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from lilliput.errors import ConfigError

if TYPE_CHECKING:
    from lilliput.jobs.quantize import QuantizeConfig
    from lilliput.jobs.quantize_subject import Trial
    from lilliput.quantize.lowbit.config import Method

SWEPT_BITS = (2, 3, 4, 8)
_MOST_TABLE_WORK = 2.0**29
"""Levels times weights: the exact table's time, some minutes. Larger tables are left out where nobody asked for them."""

FAMILIES = {
    "SplitConfig": "SplitQuant",
    "RoundToNearest": "rounding",
    "LookupTable": "lookup table",
    "HalfQuadratic": "HQQ",
}


def asked_method(config: QuantizeConfig, skip: tuple[str, ...]) -> Method:
    """The method that the config asks for."""
    return _Family(config, skip).method(config.method, config.bits, is_asked=True)


def compared_methods(config: QuantizeConfig, trial: Trial, stored_bits: float) -> tuple[list[Method], list[str]]:
    """The rows of the table, and the names of tables of levels that would take too long.

    Args:
        config: its method is the first row.
        trial: the network, whose layers decide how much steps and starts weigh.
        stored_bits: of the asked method, for each weight: others are chosen to store about as much.
    """
    from lilliput.quantize import LookupTable, SplitConfig
    from lilliput.quantize.lowbit import rivals

    family = _Family(config, (*config.skip, *trial.skip))
    asked = family.method(config.method, config.bits, is_asked=True)
    methods = [asked]
    for name in ("rtn", "hqq"):
        bits = _nearest_bits(trial, family.method(name, 4), 4, stored_bits)
        methods += [family.method(name, each) for each in (bits, bits + 1) if each <= 8]
    if isinstance(asked, SplitConfig):
        methods += rivals(asked)
    else:
        methods += [*family.split(config.bits), family.method("lut", config.bits)]
    if config.sweep:
        for bits in SWEPT_BITS:
            methods += [family.method(name, bits) for name in ("splitquant", "rtn", "lut", "hqq")]
            methods += family.split(bits)
        for each in list(methods):
            if isinstance(each, SplitConfig):
                methods += rivals(each)
    distinct = list(dict.fromkeys(methods))
    weights = sum(parameter.numel() for parameter in trial.model.parameters())
    late = [each for each in distinct[1:] if isinstance(each, LookupTable) and each.levels * weights > _MOST_TABLE_WORK]
    return [each for each in distinct if each not in late], [each.name for each in late]


def _nearest_bits(trial: Trial, method: Method, bits: int, stored_bits: float) -> int:
    """The most bits at which a method of one ladder stores no more than that, 1 to 8; each bit of a code is one stored."""
    from lilliput.quantize import quantize

    beside_codes = quantize(trial.model, method).stored_bits_per_weight() - bits
    return min(max(math.floor(stored_bits - beside_codes + 0.01), 1), 8)


class _Family:
    """Methods that share a config's options."""

    def __init__(self, config: QuantizeConfig, skip: tuple[str, ...]) -> None:
        self.config = config
        granularity, size = parse_granularity(config.granularity)
        self.shared: dict[str, Any] = {"granularity": granularity, "scale_dtype": config.scales, "skip": skip}
        if size is not None:
            self.shared["group_size"] = size

    def method(self, name: str, bits: int, is_asked: bool = False) -> Method:
        """A method of so many bits; only the one asked for is stored in another way than its default."""
        from lilliput.quantize import HalfQuadratic, LookupTable, RoundToNearest, SplitConfig

        options = dict(self.shared)
        if is_asked:
            options["storage"] = self.config.storage
        if name == "splitquant":
            ranges = {"mask_aware": self.config.ranges != "zeros", "fitted": self.config.ranges == "fitted"}
            storage = {"storage": self.config.storage}
            return SplitConfig(bits=bits, k=self.config.k, **{**options, **ranges, **storage})
        if name == "lut":
            return LookupTable(levels=2**bits, **options)
        if name == "hqq":
            if not is_asked and options["granularity"] == "row":
                options |= {"granularity": "group"}  # as published: groups of 64
            return HalfQuadratic(bits=bits, **options)
        return RoundToNearest(bits=bits, **options)

    def split(self, stored_bits: int) -> list[Method]:
        """The split that stores about so many bits: 2 clusters of ``bits - 1``, or 3 of ``bits - 2``, packed without loss."""
        from lilliput.quantize import SplitConfig

        options = {**self.shared, "storage": "radix"}
        result: list[Method] = [SplitConfig(bits=stored_bits - 1, k=2, **options)] if stored_bits >= 2 else []
        return [*result, SplitConfig(bits=stored_bits - 2, k=3, **options)] if stored_bits >= 3 else result


def parse_granularity(text: str) -> tuple[str, int | None]:
    """``row``, ``tensor``, or ``group:N``.

    >>> parse_granularity("group:64")
    ('group', 64)
    """
    name, _, size = text.partition(":")
    if text in ("row", "tensor"):
        return text, None
    if name == "group" and size.isdigit() and int(size) >= 1:
        return name, int(size)
    raise ConfigError(f"granularity='{text}': must be row, tensor, or group:N; try granularity='group:64'")

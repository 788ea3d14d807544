"""Ladders: the levels a weight may take, as k runs of 2**bits equal steps.

All methods of this package are one thing seen this way. Round-to-nearest has one ladder; SplitQuant has three, one for each cluster of
weights; a lookup table of L entries has L ladders of a single level (bits = 0). A weight is then a *symbol*: ``ladder * 2**bits + code``,
an index into a table of ``k * 2**bits`` levels.

A ladder is held as ``step`` and, for its position, either an integer ``zero`` (level = step * (code - zero): zero is exactly a level, as
affine integer toolchains need) or a float ``start`` (level = start + step * code: no code is spent on reaching zero).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float32, Int16, Shaped, UInt8
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Ladders:
    """k ladders for each set of weights; sets are one, a row each, or a group of a row each."""

    bits: int
    """Each ladder has 2**bits levels."""
    step: Float[Tensor, "rows groups k"] | None
    """None where bits is 0."""
    start: Float[Tensor, "rows groups k"] | None
    """Value of code 0; None where ``zero`` says it."""
    zero: UInt8[Tensor, "rows groups k"] | None
    """Code whose value is zero."""
    gain: float = 1.0
    """A power of two that every level is multiplied by: steps and starts then use the whole range of float16."""

    def levels(self) -> Float32[Tensor, "rows groups levels"]:
        """The table that symbols index; the first axis has length 1 where the whole tensor shares it."""
        codes = torch.arange(2**self.bits, dtype=torch.float32, device=self.position.device)
        if self.step is None:
            return self.position.float() * self.gain
        step = self.step.float()[..., None]
        position = self.position.float()[..., None]
        table = position + step * codes if self.zero is None else step * (codes - position)
        return table.flatten(2) * self.gain

    @property
    def position(self) -> Tensor:
        """``start`` or ``zero``, whichever there is."""
        position = self.zero if self.start is None else self.start
        assert position is not None, "a ladder has a start or a zero"
        return position

    @property
    def count(self) -> int:
        """How many ladders a set has (k)."""
        return self.position.shape[-1]

    @property
    def level_count(self) -> int:
        """Entries of the table: k * 2**bits."""
        return self.count << self.bits


@dataclass(frozen=True, eq=False)
class Encoded:
    """A matrix of weights as symbols, before packing."""

    symbols: Int16[Tensor, "rows columns"]
    ladders: Ladders
    group_size: int
    """Columns that share ladders; the number of columns where the granularity is not 'group'."""

    def dequantize(self) -> Float32[Tensor, "rows columns"]:
        """The weights that the symbols stand for."""
        return look_up(self.symbols, self.ladders.levels(), self.group_size)


def look_up(
    symbols: Shaped[Tensor, "rows columns"], levels: Float32[Tensor, "sets groups levels"], group_size: int
) -> Float32[Tensor, "rows columns"]:
    """The level of each symbol, a block of rows at a time so that 64-bit indices stay small."""
    rows, columns = symbols.shape
    result = torch.empty(rows, columns, dtype=torch.float32, device=symbols.device)
    table = levels.flatten()
    group = torch.arange(columns, device=symbols.device) // group_size * levels.shape[2]
    for block in row_blocks(rows, columns):
        index = symbols[block].long() + group
        if levels.shape[0] > 1:
            row = torch.arange(block.start, block.stop, device=symbols.device)
            index += row[:, None] * (levels.shape[1] * levels.shape[2])
        torch.take(table, index, out=result[block])
    return result


def row_blocks(rows: int, columns: int, block_weights: int = 2**18) -> Iterator[slice]:
    """Slices of rows of about as many weights: working memory then depends on the block and not on the matrix."""
    height = max(1, block_weights // max(1, columns))
    for first in range(0, rows, height):
        yield slice(first, min(first + height, rows))

"""Lookup table: the optimal codebook of L levels, by exact one-dimensional k-means.

No codebook of L levels has a smaller squared error, so it bounds from below every split into ladders with L levels in all: SplitQuant at
2 bits and 3 clusters is a codebook of 12. Coordinates of the field: palettization, weight clustering.

Source: Han et al. 2016 (arXiv:1510.00149), section 3, with Lloyd's iteration from a linear start; ours is exact.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lilliput.errors import ConfigError
from lilliput.quantize.lowbit.affine import as_stored
from lilliput.quantize.lowbit.config import Method, refuse_dense
from lilliput.quantize.lowbit.granularity import columns_per_set, per_set
from lilliput.quantize.lowbit.kmeans import exact_kmeans
from lilliput.quantize.lowbit.ladders import Encoded, Ladders


@dataclass(frozen=True, kw_only=True)
class LookupTable(Method):
    """A table of the levels with the least squared error."""

    levels: int = 16
    """Entries of the table, 2 to 256."""

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse_dense(self)
        if not 2 <= self.levels <= 256:
            raise ConfigError(f"levels={self.levels}: must be 2 to 256; try 16, which takes 4 bits a weight")

    @property
    def name(self) -> str:
        """``lut-16 row``."""
        return f"lut-{self.levels} {self.where}"

    def encode(self, weight: Tensor, gain: float) -> Encoded:
        """Symbols and ladders of a matrix."""

        def centres_of(sets: Tensor) -> Tensor:
            return torch.from_numpy(exact_kmeans(sets.numpy(force=True), self.levels).centres).to(weight.device)

        centres = as_stored(per_set(weight, self.granularity, self.group_size, centres_of), self.torch_scale_dtype)
        width = columns_per_set(self.granularity, self.group_size, weight.shape[1])
        return Encoded(nearest_entries(weight, centres, width), Ladders(0, None, centres, None), width)


def nearest_entries(weight: Tensor, table: Tensor, group_size: int) -> Tensor:
    """Index of the nearest entry of each weight's ascending table (rows or 1, groups, entries)."""
    midpoints = ((table[..., 1:].double() + table[..., :-1].double()) / 2).float()
    symbols = torch.empty(weight.shape, dtype=torch.int16, device=weight.device)
    for group in range(table.shape[1]):
        columns = slice(group * group_size, (group + 1) * group_size)
        part = weight[:, columns].contiguous()
        edges = midpoints[:, group].contiguous()
        found = torch.searchsorted(edges[0] if len(edges) == 1 else edges, part)
        symbols[:, columns] = found.to(torch.int16)
    return symbols

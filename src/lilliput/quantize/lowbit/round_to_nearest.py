"""Round to nearest: one affine ladder over the range of each set of weights. The baseline of every other method."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lilliput.errors import ConfigError
from lilliput.quantize.lowbit.affine import nearest_symbols, start_ladders, symmetric_ladders, zero_ladders
from lilliput.quantize.lowbit.config import Method, check_bits, refuse_dense
from lilliput.quantize.lowbit.granularity import columns_per_set, per_set
from lilliput.quantize.lowbit.ladders import Encoded

_LADDERS = {"integer": zero_ladders, "float": start_ladders, "middle": symmetric_ladders}


@dataclass(frozen=True, kw_only=True)
class RoundToNearest(Method):
    """Round to the nearest of 2**bits equal steps."""

    bits: int = 4
    """Bits of a weight, 1 to 8."""
    zero_point: Literal["integer", "float", "middle"] = "integer"
    """'integer': zero is a level; 'float': from the least to the greatest weight; 'middle': symmetric, zero is the middle code."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_bits(self.bits)
        refuse_dense(self)
        if self.zero_point not in _LADDERS:
            raise ConfigError(f"zero_point={self.zero_point!r}: must be 'integer', 'float' or 'middle'; try 'integer'")

    @property
    def name(self) -> str:
        """``rtn-4 row``."""
        return f"rtn-{self.bits} {self.where}"

    def encode(self, weight: Tensor, gain: float) -> Encoded:
        """Symbols and ladders of a matrix."""
        lower = per_set(weight, self.granularity, self.group_size, lambda sets: sets.amin(dim=1, keepdim=True))
        upper = per_set(weight, self.granularity, self.group_size, lambda sets: sets.amax(dim=1, keepdim=True))
        ladders = _LADDERS[self.zero_point](lower, upper, self.bits, self.torch_scale_dtype)
        width = columns_per_set(self.granularity, self.group_size, weight.shape[1])
        alone = torch.zeros(weight.shape, dtype=torch.uint8, device=weight.device)
        return Encoded(nearest_symbols(weight, ladders, alone, width), ladders, width)

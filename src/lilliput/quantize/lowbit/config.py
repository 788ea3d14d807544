"""What every low-bit method shares: which layers, how fine, how stored.

A method is a frozen config with one question to answer, :meth:`Method.encode`: which symbol and which ladders for a matrix of weights.
Everything else (finding layers, packing, files, counting bytes) is the same for all of them, so that a comparison compares methods alone.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lilliput.errors import ConfigError
from lilliput.quantize.lowbit.ladders import Encoded

Granularity = Literal["tensor", "row", "group"]
Storage = Literal["lut", "radix", "dense"]
LayerKind = Literal["Linear", "Conv1d", "Conv2d", "Embedding", "MultiheadAttention"]

_COARSEST_FIRST: tuple[Granularity, ...] = ("tensor", "row", "group")


@dataclass(frozen=True, kw_only=True)
class Method(ABC):
    """Fields that all low-bit methods have."""

    granularity: Granularity = "row"
    """Which weights share one set of levels: the whole tensor, an output row (or kernel, or embedding), or a group in a row."""
    group_size: int = 64
    """Weights of one row that make a group; read only where the granularity is 'group'."""
    storage: Storage = "lut"
    """'lut': one symbol of whole bits a weight; 'radix': symbols in base of the number of levels; 'dense': SplitQuant's three tensors."""
    scale_dtype: Literal["float16", "float32"] = "float16"
    """How steps, starts and centres are held; with 'row' and 'group' they weigh in the count of bits."""
    layers: tuple[LayerKind, ...] = ("Linear", "Conv1d", "Conv2d", "MultiheadAttention")
    """Kinds of layer whose weights are quantized; 'Embedding' may join."""
    skip: tuple[str, ...] = ()
    """Patterns of module paths to leave as they are, such as 'head' or 'encoder.*.norm'; * stands for anything."""
    fold_batchnorm: bool = True
    """Fold batch norms into the layers before them first."""

    def __post_init__(self) -> None:
        if self.granularity not in _COARSEST_FIRST:
            raise ConfigError(f"granularity={self.granularity!r}: must be 'tensor', 'row' or 'group'; try 'row'")
        if self.group_size < 1:
            raise ConfigError(f"group_size={self.group_size}: must be 1 or more; try 64")
        if self.storage not in ("lut", "radix", "dense"):
            raise ConfigError(f"storage={self.storage!r}: must be 'lut', 'radix' or 'dense'; try 'lut'")
        if self.scale_dtype not in ("float16", "float32"):
            raise ConfigError(f"scale_dtype={self.scale_dtype!r}: must be 'float16' or 'float32'")
        known = ("Linear", "Conv1d", "Conv2d", "Embedding", "MultiheadAttention")
        unknown = [kind for kind in self.layers if kind not in known]
        if unknown or not self.layers:
            raise ConfigError(f"layers={self.layers!r}: must be one or more of {', '.join(known)}")

    @abstractmethod
    def encode(self, weight: Tensor, gain: float) -> Encoded:
        """Symbols and ladders of a float32 matrix (rows, columns) that is finite and not empty.

        The layer's own weights are ``gain`` times these, a power of two; ladders are for these.
        """

    @property
    @abstractmethod
    def name(self) -> str:
        """A few characters for a table: ``split-2 row``."""

    @property
    def torch_scale_dtype(self) -> torch.dtype:
        """``scale_dtype`` as torch spells it."""
        return torch.float16 if self.scale_dtype == "float16" else torch.float32

    @property
    def where(self) -> str:
        """The granularity, short: ``tensor``, ``row`` or ``g64``."""
        return f"g{self.group_size}" if self.granularity == "group" else self.granularity


def check_bits(bits: int) -> None:
    """Raises ConfigError unless 1 <= bits <= 8."""
    if not 1 <= bits <= 8:
        raise ConfigError(f"bits={bits}: must be 1 to 8; try bits=2 with row granularity, or bits=4")


def refuse_dense(method: Method) -> None:
    """Raises ConfigError where a method that is not a split asks for SplitQuant's dense tensors."""
    if method.storage == "dense":
        raise ConfigError(f"storage='dense' is three tensors of a split; {type(method).__name__} has one: try 'lut'")


def is_finer(granularity: Granularity, other: Granularity) -> bool:
    """Whether the first shares levels among fewer weights than the other."""
    return _COARSEST_FIRST.index(granularity) > _COARSEST_FIRST.index(other)

"""Weights as they lie in memory and in a file: packed symbols and their ladders, as buffers of a module.

| class | ``codes`` (uint8) | bits of a weight at 2 bits, k = 3 |
|---|---|---|
| :class:`LutWeight` | (rows, bytes): a symbol of ``bits + ceil(log2 k)`` bits each, see ``packing`` | 4 |
| :class:`RadixWeight` | (rows, bytes): several symbols to a word, see ``packing`` | 3.6 |
| :class:`DenseWeight` | (k, rows, bytes): a code of ``bits`` for every weight in every cluster's tensor | 6 |

Beside them ``step`` and ``start`` (float16 or float32) or ``zero`` (uint8), each (rows or 1, groups, k), and ``gain``, one float32. A
symbol is ``cluster * 2**bits + code``; :meth:`StoredWeight.levels` is the table that it indexes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from math import prod
from typing import ClassVar

import torch
from jaxtyping import Float32, Int16
from torch import Tensor, nn

from lilliput.errors import DataError
from lilliput.quantize.lowbit.config import Storage
from lilliput.quantize.lowbit.ladders import Encoded, Ladders, look_up, row_blocks
from lilliput.quantize.lowbit.packing import bits_for, pack_bits, pack_digits, unpack_bits, unpack_digits


@dataclass(frozen=True)
class Layout:
    """What the bytes of a stored weight mean; with the buffers, all there is to know."""

    storage: Storage
    shape: tuple[int, ...]
    """Of the weight as the layer has it, rows first."""
    bits: int
    """Of a code; 0 for a table of free levels."""
    k: int
    """Ladders of a set."""
    group_size: int
    """Neighbouring columns that share ladders."""

    @property
    def rows(self) -> int:
        """Output features, kernels or embeddings."""
        return self.shape[0]

    @property
    def columns(self) -> int:
        """Weights of a row."""
        return prod(self.shape[1:])

    @property
    def level_count(self) -> int:
        """How many symbols there are."""
        return self.k << self.bits


class StoredWeight(nn.Module, ABC):
    """A packed weight; :meth:`dequantize` is what it stands for."""

    codes: Tensor
    step: Tensor | None
    start: Tensor | None
    zero: Tensor | None
    gain: Tensor
    tensor_names: ClassVar = ("codes", "step", "start", "zero", "gain")

    def __init__(self, layout: Layout, tensors: dict[str, Tensor]) -> None:
        """``tensors``: buffers by name, those that there are."""
        super().__init__()
        self.layout = layout
        for name in self.tensor_names:
            self.register_buffer(name, tensors.get(name))

    @abstractmethod
    def dequantize(self) -> Float32[Tensor, "*shape"]:
        """The weight in float32, in the layer's shape."""

    @property
    def ladders(self) -> Ladders:
        """The levels' steps and positions."""
        return Ladders(self.layout.bits, self.step, self.start, self.zero, float(self.gain))

    def levels(self) -> Float32[Tensor, "sets groups levels"]:
        """The table that symbols index; the first axis has length 1 where all rows share it."""
        return self.ladders.levels()

    @property
    def byte_count(self) -> int:
        """Bytes of all buffers."""
        return sum(buffer.numel() * buffer.element_size() for buffer in self.buffers())

    def extra_repr(self) -> str:
        """One line of ``print(model)``."""
        layout = self.layout
        return f"{list(layout.shape)}, {layout.level_count} levels, {8 * self.byte_count / prod(layout.shape):.3g} bits a weight"


class _SymbolWeight(StoredWeight):
    """One symbol a weight."""

    @abstractmethod
    def symbols(self, rows: slice = slice(None)) -> Int16[Tensor, "rows columns"]:
        """Unpacked symbols of some rows."""

    def dequantize(self) -> Float32[Tensor, "*shape"]:
        """The weight in float32, in the layer's shape."""
        return self.rows_at(slice(None)).reshape(self.layout.shape)

    def rows_at(self, rows: slice) -> Float32[Tensor, "rows columns"]:
        """Some rows of the weight as a matrix."""
        levels = self.levels()
        first, last, _ = rows.indices(self.layout.rows)
        result = torch.empty(last - first, self.layout.columns, device=self.codes.device)
        for block in row_blocks(last - first, self.layout.columns):
            here = slice(first + block.start, first + block.stop)
            table = levels if len(levels) == 1 else levels[here]
            result[block] = look_up(self.symbols(here), table, self.layout.group_size)
        return result


class LutWeight(_SymbolWeight):
    """Symbols of whole bits: at 2 bits and 3 clusters, a nibble is an index into 12 of 16 entries."""

    @property
    def symbol_bits(self) -> int:
        """Bits of a symbol."""
        return bits_for(self.layout.level_count)

    def symbols(self, rows: slice = slice(None)) -> Int16[Tensor, "rows columns"]:
        """Unpacked symbols of some rows."""
        return unpack_bits(self.codes[rows], self.symbol_bits, self.layout.columns)


class RadixWeight(_SymbolWeight):
    """Symbols as digits in base ``level_count``: the least bytes of a fixed length, at the price of divisions to read them."""

    def symbols(self, rows: slice = slice(None)) -> Int16[Tensor, "rows columns"]:
        """Unpacked symbols of some rows."""
        return unpack_digits(self.codes[rows], self.layout.level_count, self.layout.columns)


class DenseWeight(StoredWeight):
    """As published: k dense tensors whose masked entries have the code of zero; their sum is the weight."""

    def dequantize(self) -> Float32[Tensor, "*shape"]:
        """The weight in float32, in the layer's shape."""
        return self.parts().sum(dim=0)

    def part(self, cluster: int) -> Float32[Tensor, "*shape"]:
        """One cluster's tensor; exactly 0 where a weight belongs to another."""
        layout, ladders = self.layout, self.ladders
        own = slice(cluster, cluster + 1)
        assert ladders.step is not None, "masked entries need a code for zero"
        assert ladders.zero is not None, "masked entries need a code for zero"
        levels = Ladders(layout.bits, ladders.step[..., own], None, ladders.zero[..., own], ladders.gain).levels()
        codes = unpack_bits(self.codes[cluster], layout.bits, layout.columns)
        return look_up(codes, levels, layout.group_size).reshape(layout.shape)

    def parts(self) -> Float32[Tensor, "k *shape"]:
        """All clusters' tensors."""
        return torch.stack([self.part(cluster) for cluster in range(self.layout.k)])


STORED_WEIGHTS: dict[Storage, type[StoredWeight]] = {"lut": LutWeight, "radix": RadixWeight, "dense": DenseWeight}


def pack(encoded: Encoded, storage: Storage, shape: tuple[int, ...]) -> StoredWeight:
    """An encoded matrix in its bytes.

    Args:
        encoded: symbols (rows, columns) and ladders.
        storage: which class.
        shape: of the weight as the layer has it; rows first.
    """
    ladders = encoded.ladders
    layout = Layout(storage, tuple(shape), ladders.bits, ladders.count, encoded.group_size)
    pack_symbols = {"lut": _lut_codes, "radix": _radix_codes, "dense": _dense_codes}[storage]
    tensors = {"codes": pack_symbols(encoded), "gain": torch.tensor(ladders.gain, device=encoded.symbols.device)}
    for name in ("step", "start", "zero"):
        tensor = getattr(ladders, name)
        if tensor is not None:
            tensors[name] = tensor.contiguous()
    return STORED_WEIGHTS[storage](layout, tensors)


def from_tensors(layout: Layout, tensors: dict[str, Tensor], where: str) -> StoredWeight:
    """A stored weight from the buffers of a file.

    Raises:
        DataError: a buffer is missing, or has a shape or type that the layout excludes (names ``where``).
    """
    kind = STORED_WEIGHTS[layout.storage]
    levels, code_bits = layout.level_count, {"lut": bits_for(layout.level_count), "dense": layout.bits}
    if layout.storage == "radix":
        row_bytes = pack_digits(torch.zeros(1, layout.columns, dtype=torch.int16), levels).shape[1]
    else:
        row_bytes = -(-layout.columns * code_bits[layout.storage] // 8)
    codes = (layout.k, layout.rows, row_bytes) if layout.storage == "dense" else (layout.rows, row_bytes)
    if "codes" not in tensors or "gain" not in tensors or ("start" in tensors) == ("zero" in tensors):
        raise DataError(
            f"layer '{where}' of the file holds {sorted(tensors)}; needs codes, gain and one of start and zero"
        )
    if tuple(tensors["codes"].shape) != codes or tensors["codes"].dtype != torch.uint8:
        given = f"{list(tensors['codes'].shape)} {tensors['codes'].dtype}"
        raise DataError(f"layer '{where}' of the file has codes of {given}; its layout needs {list(codes)} torch.uint8")
    groups = -(-layout.columns // layout.group_size)
    allowed = [(rows, groups, layout.k) for rows in (1, layout.rows)]
    for name in ("step", "start", "zero"):
        if name in tensors and tuple(tensors[name].shape) not in allowed:
            raise DataError(
                f"layer '{where}' of the file has '{name}' of {list(tensors[name].shape)}; needs {list(allowed[1])}"
            )
    if ("step" in tensors) == (layout.bits == 0):
        raise DataError(
            f"layer '{where}' of the file has {layout.bits} bits a code; steps belong to codes of 1 bit or more"
        )
    return kind(layout, tensors)


def _lut_codes(encoded: Encoded) -> Tensor:
    return pack_bits(encoded.symbols, bits_for(encoded.ladders.level_count))


def _radix_codes(encoded: Encoded) -> Tensor:
    return pack_digits(encoded.symbols, encoded.ladders.level_count)


def _dense_codes(encoded: Encoded) -> Tensor:
    bits, zero = encoded.ladders.bits, encoded.ladders.zero
    assert zero is not None, "masked entries need a code for zero"
    cluster, code = encoded.symbols >> bits, encoded.symbols & (2**bits - 1)
    parts = []
    for index in range(encoded.ladders.count):
        here = torch.full(cluster.shape, index, dtype=torch.int16, device=cluster.device)
        masked = look_up(here, zero.float(), encoded.group_size).to(torch.int16)
        parts.append(pack_bits(torch.where(cluster == index, code, masked), bits))
    return torch.stack(parts)

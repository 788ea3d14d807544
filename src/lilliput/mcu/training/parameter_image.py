"""The trained tensors as bytes that can be written to flash and read back: a header, the masters, a checksum.

Words are little-endian, each tensor begins at one:

======  =====================================================================
word    what
======  =====================================================================
0       magic, ``LLTP``
1       version of this layout
2       fingerprint of the network and of what is trained: an image of another one is refused
3       bytes of all tensors, gaps to whole words included
4       state of the random stream
5...    tensors, in the program's order
last    CRC-32 of all before
======  =====================================================================

The firmware keeps the tensors in this form all the time, so saving copies nothing.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Shaped

from lilliput.errors import DataError
from lilliput.mcu.training import graph as t
from lilliput.mcu.training.interpreter import State
from lilliput.quantize.qgraph import Conv2d, Linear, QuantizedGraph

MAGIC = int.from_bytes(b"LLTP", "little")
VERSION = 1
HEADER_WORDS = 5
_WORD = 4


@dataclass(frozen=True)
class Tensor:
    """One trained tensor in the image."""

    name: str
    dtype: str
    elements: int
    first_word: int

    @property
    def size_bytes(self) -> int:
        """Without the gap to the next word."""
        return self.elements * np.dtype(self.dtype).itemsize


@dataclass(frozen=True)
class ImageLayout:
    """Where everything lies."""

    tensors: tuple[Tensor, ...]
    fingerprint: int

    @property
    def words(self) -> int:
        """Of the whole image."""
        return HEADER_WORDS + self.payload_words + 1

    @property
    def payload_words(self) -> int:
        """Of the tensors."""
        return sum(-(-tensor.size_bytes // _WORD) for tensor in self.tensors)

    @property
    def size_bytes(self) -> int:
        """Of the whole image."""
        return self.words * _WORD

    @property
    def first_word(self) -> Mapping[str, int]:
        """By tensor."""
        return {tensor.name: tensor.first_word for tensor in self.tensors}

    def pack(self, state: State) -> bytes:
        """The image of a state."""
        words = np.zeros(self.words, dtype="<u4")
        words[:HEADER_WORDS] = (MAGIC, VERSION, self.fingerprint, self.payload_words * _WORD, state.random)
        raw = words.view(np.uint8)
        for tensor in self.tensors:
            values = np.ascontiguousarray(state.masters[tensor.name].astype(np.dtype(tensor.dtype).newbyteorder("<")))
            start = tensor.first_word * _WORD
            raw[start : start + tensor.size_bytes] = values.reshape(-1).view(np.uint8)
        words[-1] = zlib.crc32(words[:-1].tobytes())
        return words.tobytes()

    def unpack(self, image: bytes) -> State:
        """The state of an image.

        Raises:
            DataError: damaged, of another version, or of another network.
        """
        if len(image) != self.size_bytes:
            raise DataError(
                f"image of trained parameters has {len(image):,} bytes; this network's have {self.size_bytes:,}; use one of its own"
            )
        words = np.frombuffer(image, dtype="<u4")
        if int(words[0]) != MAGIC or int(words[-1]) != zlib.crc32(image[:-_WORD]):
            raise DataError("image of trained parameters is damaged (its checksum does not match); use an earlier copy")
        if int(words[1]) != VERSION:
            raise DataError(f"image of trained parameters has version {words[1]}; must be {VERSION}; save it again")
        if int(words[2]) != self.fingerprint or int(words[4]) == 0:
            raise DataError(
                f"image of trained parameters is of another network or choice of what is trained (fingerprint {words[2]:#010x}, "
                f"this one's is {self.fingerprint:#010x}); use one that this network saved"
            )
        return State({tensor.name: self._values(tensor, image) for tensor in self.tensors}, int(words[4]))

    def digest(self, image: bytes) -> str:
        """SHA-256 of all trained tensors, as :attr:`State.digest`."""
        return self.unpack(image).digest

    def _values(self, tensor: Tensor, image: bytes) -> Shaped[np.ndarray, " elements"]:
        dtype = np.dtype(tensor.dtype)
        start = tensor.first_word * _WORD
        values = np.frombuffer(image[start : start + tensor.size_bytes], dtype=dtype.newbyteorder("<"))
        return values.astype(dtype)

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        rows = [[each.name, each.dtype, each.elements, each.first_word] for each in self.tensors]
        return {"fingerprint": self.fingerprint, "tensors": rows}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ImageLayout:
        """From what :meth:`to_json` gave."""
        return cls(tuple(Tensor(*row) for row in data["tensors"]), int(data["fingerprint"]))


def image_layout(program: t.Program, prefix: QuantizedGraph | None) -> ImageLayout:
    """The layout for a program behind its frozen prefix."""
    tensors, word = [], HEADER_WORDS
    sha = hashlib.sha256()
    for parameter in program.parameters.values():
        tensor = Tensor(parameter.name, str(parameter.initial.dtype), parameter.initial.size, word)
        tensors.append(tensor)
        word += -(-tensor.size_bytes // _WORD)
        sha.update(f"{tensor}{parameter.fraction_bits}".encode() + parameter.initial.tobytes())
    for layer in program.layers.values():
        sha.update(f"{layer.name}{layer.channels}".encode() + layer.weight.tobytes() + layer.bias.tobytes())
    for op in () if prefix is None else prefix.ops:
        if isinstance(op, (Conv2d, Linear)):
            sha.update(op.weight.tobytes() + op.bias.tobytes())
    return ImageLayout(tuple(tensors), int.from_bytes(sha.digest()[:4], "little"))

"""Symbols in bytes: a stream of bits a row, and digits in a base that is no power of two.

**Bits.** Symbol i of a row has bits [i * width, (i + 1) * width) of that row's bytes, least significant first; a row starts at a byte. With
4 bits, byte j holds symbol 2j in its low nibble and 2j + 1 in its high one.

**Digits.** Twelve levels need log2(12) = 3.585 bits; 5 of them are one number below 12**5 < 2**18, so 3.6 bits each. ``radix(levels)``
chooses how many digits make a word; words are then a stream of bits as above, the first digit the least significant.
"""

from __future__ import annotations

from functools import cache
from math import ceil, log2

import torch
from jaxtyping import Integer, UInt8
from torch import Tensor

from lilliput.quantize.lowbit.ladders import row_blocks

_WIDEST_WORD = 32


def bits_for(levels: int) -> int:
    """Whole bits that tell ``levels`` symbols apart, at least 1."""
    return max(1, (levels - 1).bit_length())


@cache
def radix(levels: int) -> tuple[int, int]:
    """(digits in a word, bits of a word) with the fewest bits a digit, for words of at most 32 bits; the shorter of equals.

    >>> radix(12), radix(3), radix(16)
    ((5, 18), (17, 27), (1, 4))
    """
    digits = range(1, int(_WIDEST_WORD / log2(levels)) + 1) if levels > 1 else range(8, 9)
    words = [(count, bits_for(levels**count)) for count in digits]
    return min(words, key=lambda word: (word[1] / word[0], word[0]))


def pack_bits(values: Integer[Tensor, "rows n"], width: int) -> UInt8[Tensor, "rows bytes"]:
    """Rows of numbers below 2**width as bytes.

    Args:
        values: 0 to 2**width - 1.
        width: 1 to 32 bits.
    """
    rows, n = values.shape
    packed = torch.empty(rows, ceil(n * width / 8), dtype=torch.uint8, device=values.device)
    bit = torch.arange(n, device=values.device) * width
    for block in row_blocks(rows, n):
        shifted = values[block].long() << (bit % 8)
        sums = torch.zeros(len(shifted), packed.shape[1] + 5, dtype=torch.int64, device=values.device)
        for byte in range(ceil((width + 7) / 8)):
            # No two numbers share a bit, so adding is or-ing.
            sums.index_add_(1, bit // 8 + byte, (shifted >> (8 * byte)) & 255)
        packed[block] = sums[:, : packed.shape[1]].to(torch.uint8)
    return packed


def unpack_bits(packed: UInt8[Tensor, "rows bytes"], width: int, n: int) -> Integer[Tensor, "rows n"]:
    """The first ``n`` numbers of each row; int16 up to 15 bits, int64 above."""
    rows = len(packed)
    dtype = torch.int16 if width <= 15 else torch.int64
    if width == 4:
        return torch.stack((packed & 15, packed >> 4), dim=2).flatten(1)[:, :n].to(dtype)
    values = torch.empty(rows, n, dtype=dtype, device=packed.device)
    bit = torch.arange(n, device=packed.device) * width
    last = packed.shape[1] - 1
    for block in row_blocks(rows, n):
        part = packed[block]
        word = torch.zeros(len(part), n, dtype=torch.int64, device=packed.device)
        for byte in range(ceil((width + 7) / 8)):
            word += part[:, (bit // 8 + byte).clamp(max=last)].long() << (8 * byte)
        values[block] = ((word >> (bit % 8)) & (2**width - 1)).to(dtype)
    return values


def pack_digits(symbols: Integer[Tensor, "rows n"], levels: int) -> UInt8[Tensor, "rows bytes"]:
    """Rows of symbols below ``levels`` as bytes, several to a word."""
    count, width = radix(levels)
    rows, n = symbols.shape
    words = torch.zeros(rows, ceil(n / count), dtype=torch.int64, device=symbols.device)
    for digit in reversed(range(count)):
        part = symbols[:, digit::count]
        words *= levels
        words[:, : part.shape[1]] += part
    return pack_bits(words, width)


def unpack_digits(packed: UInt8[Tensor, "rows bytes"], levels: int, n: int) -> Integer[Tensor, "rows n"]:
    """The first ``n`` symbols of each row, int16."""
    count, width = radix(levels)
    words = unpack_bits(packed, width, ceil(n / count)).long()
    symbols = torch.empty(len(packed), n, dtype=torch.int16, device=packed.device)
    for digit in range(count):
        part = symbols[:, digit::count]
        part.copy_(words[:, : part.shape[1]] % levels)
        words //= levels
    return symbols

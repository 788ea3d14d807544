"""What is packed comes out again, and takes the bytes that its page says."""

from __future__ import annotations

from math import ceil, log2

import pytest
import torch

from lilliput.quantize.lowbit.packing import bits_for, pack_bits, pack_digits, radix, unpack_bits, unpack_digits


@pytest.mark.parametrize("width", range(1, 33))
def test_bits_come_back(width):
    torch.manual_seed(width)
    values = torch.randint(0, 2**width, (3, 13))
    values[0, 0], values[0, 1] = 0, 2**width - 1
    packed = pack_bits(values, width)
    assert packed.shape == (3, ceil(13 * width / 8))
    assert torch.equal(unpack_bits(packed, width, 13).long(), values)


def test_a_nibble_is_low_then_high():
    assert pack_bits(torch.tensor([[1, 2, 15]]), 4).tolist() == [[0x21, 0x0F]]


def test_three_bits_run_on_across_bytes():
    stream = 0b101 | 0b011 << 3 | 0b110 << 6
    assert pack_bits(torch.tensor([[0b101, 0b011, 0b110]]), 3).tolist() == [[stream & 255, stream >> 8]]


@pytest.mark.parametrize("levels", [2, 3, 5, 12, 16, 48, 100, 256, 768])
def test_digits_come_back(levels):
    torch.manual_seed(levels)
    symbols = torch.randint(0, levels, (4, 23), dtype=torch.int16)
    symbols[0] = levels - 1
    packed = pack_digits(symbols, levels)
    assert torch.equal(unpack_digits(packed, levels, 23), symbols)


def test_five_base_12_digits_lie_in_18_bits():
    assert radix(12) == (5, 18)
    digits = [3, 11, 0, 7, 5]
    word = sum(digit * 12**place for place, digit in enumerate(digits))
    assert pack_digits(torch.tensor([digits]), 12).tolist() == [[word & 255, word >> 8 & 255, word >> 16]]


@pytest.mark.parametrize("levels", [3, 5, 6, 7, 9, 12, 48, 96, 192])
def test_radix_words_are_within_a_twentieth_of_the_entropy_bound_and_below_whole_bits(levels):
    count, width = radix(levels)
    assert levels**count <= 2**width
    assert log2(levels) <= width / count < min(1.05 * log2(levels), bits_for(levels))

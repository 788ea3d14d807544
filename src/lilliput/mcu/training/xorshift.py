"""One stream of 32-bit random numbers, the same in Python and C: Marsaglia's xorshift32.

A step is linear over GF(2), so numpy makes a block of numbers by doubling: the second half is the first, jumped ahead by a 32x32 bit
matrix.

Source: Marsaglia 2003 (Xorshift RNGs, J. Stat. Soft. 8(14)), shifts 13, 17, 5; period 2**32 - 1.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from jaxtyping import Int64, UInt32

SEED = 2463534242
"""The published starting state; any but 0 would do."""


def next_state(x: UInt32[np.ndarray, " n"]) -> UInt32[np.ndarray, " n"]:
    """``x ^= x << 13; x ^= x >> 17; x ^= x << 5`` on 32-bit numbers."""
    x = x ^ (x << np.uint32(13))
    x = x ^ (x >> np.uint32(17))
    return x ^ (x << np.uint32(5))


def draw(state: int, count: int) -> tuple[Int64[np.ndarray, " count"], int]:
    """The next numbers after a state, and the state to go on from: the last of them.

    >>> numbers, state = draw(SEED, 3)
    >>> numbers.tolist(), state
    ([723471715, 2497366906, 2064144800], 2064144800)
    """
    if count == 0:
        return np.zeros(0, dtype=np.int64), state
    block = next_state(np.array([state], dtype=np.uint32))
    level = 0
    while len(block) < count:
        block = np.concatenate([block, _jump(block[: count - len(block)], level)])
        level += 1
    return block.astype(np.int64), int(block[-1])


def _jump(x: UInt32[np.ndarray, " n"], level: int) -> UInt32[np.ndarray, " n"]:
    """2**level steps ahead: the images of the four bytes, xor-ed."""
    tables = _byte_images(level)
    result = tables[0][x & np.uint32(255)]
    for index in (1, 2, 3):
        result = result ^ tables[index][(x >> np.uint32(8 * index)) & np.uint32(255)]
    return result


@cache
def _byte_images(level: int) -> tuple[np.ndarray, ...]:
    """For each byte of a state, where its 256 values go in 2**level steps, the other bytes zero."""
    bytes_of = [np.arange(256, dtype=np.uint32) << np.uint32(8 * index) for index in range(4)]
    if level == 0:
        return tuple(next_state(each) for each in bytes_of)
    return tuple(_jump(_jump(each, level - 1), level - 1) for each in bytes_of)

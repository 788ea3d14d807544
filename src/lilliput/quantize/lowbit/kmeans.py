"""Exact k-means in one dimension, for many sets of numbers at once.

In one dimension an optimal cluster is a run of the sorted numbers, so the best k runs come from a dynamic program over where runs end:

    gain_m(j) = max_i gain_{m-1}(i) + (S_j - S_i)^2 / (j - i)        S: prefix sums of the sorted numbers

(a run's squared error is its sum of squares less that quotient, and the sums of squares add up to a constant). The best i never decreases
as j grows, so each i is looked at for few j: the program solves every second j, then those between, within the brackets of their
neighbours. That is O(k n log n) with no start, no seed and no local optimum, and it is vectorised over sets.

Source: Wang and Song 2011 (Ckmeans.1d.dp, R Journal 3/2) for the program; Grønlund et al. 2017 (arXiv:1701.07204), section 2, for the
monotone search. Ours: all sets in one ragged array.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

_BLOCK_NUMBERS = 2**16  # a block's dozen temporaries stay in a core's cache


@dataclass(frozen=True, eq=False)
class KMeans:
    """The optimal clusters of each set."""

    centres: Float64[np.ndarray, "sets k"]
    """Means of the clusters, ascending; a cluster without members (fewer distinct numbers than k) repeats its neighbour below."""
    objective: Float64[np.ndarray, " sets"]
    """Sum of squared distances to the centres."""

    @property
    def boundaries(self) -> Float64[np.ndarray, "sets cuts"]:
        """Midpoints of neighbouring centres."""
        return (self.centres[:, 1:] + self.centres[:, :-1]) / 2


def exact_kmeans(values: np.ndarray, k: int) -> KMeans:
    """Optimal clusters of each row of ``values`` (sets, n).

    Args:
        values: finite real numbers, in any order.
        k: clusters, 1 or more.
    """
    sets, n = values.shape
    centres, objective = np.empty((sets, k)), np.empty(sets)
    height = max(1, _BLOCK_NUMBERS // n)
    for first in range(0, sets, height):
        block = slice(first, first + height)
        centres[block], objective[block] = _solve(np.sort(values[block].astype(np.float64), axis=1), k)
    return KMeans(centres, objective)


def _solve(
    values: Float64[np.ndarray, "sets n"], k: int
) -> tuple[Float64[np.ndarray, "sets k"], Float64[np.ndarray, " sets"]]:
    sets, n = values.shape
    mean = values.mean(axis=1, keepdims=True)  # centred numbers lose no digits in differences of prefix sums
    values = values - mean
    sums = np.zeros((sets, n + 1))
    np.cumsum(values, axis=1, out=sums[:, 1:])
    position = np.arange(n + 1)
    gain = sums**2 / np.maximum(position, 1)
    starts = []  # of the last run, for each layer, set and end
    for _ in range(k - 2):
        gain, start = _layer(gain, sums)
        starts.append(start)
    ends = np.empty((sets, k + 1), dtype=np.int64)
    ends[:, 0], ends[:, k] = 0, n
    row = np.arange(sets)
    if k > 1:
        ends[:, k - 1] = np.argmax(gain + (sums[:, -1:] - sums) ** 2 / np.maximum(n - position, 1), axis=1)
    for m in range(k - 2, 0, -1):
        ends[:, m] = starts[m - 1][row, ends[:, m + 1]]
    run_sums = np.diff(np.take_along_axis(sums, ends, axis=1), axis=1)
    counts = np.diff(ends, axis=1)
    centres = run_sums / np.maximum(counts, 1)
    for m in range(k):
        empty = counts[:, m] == 0
        # An empty run stands at its neighbour: no boundary then falls between members.
        centres[empty, m] = values[empty, 0] if m == 0 else centres[empty, m - 1]
    label = (position[None, None, :-1] >= ends[:, 1:-1, None]).sum(axis=1)
    objective = ((values - np.take_along_axis(centres, label, axis=1)) ** 2).sum(axis=1)
    return centres + mean, objective


def _layer(
    gain: Float64[np.ndarray, "sets ends"], sums: Float64[np.ndarray, "sets ends"]
) -> tuple[Float64[np.ndarray, "sets ends"], np.ndarray]:
    """One more run: the best gain of each end j, and where its last run starts."""
    sets, width = gain.shape
    best, start = np.zeros_like(gain), np.zeros((sets, width), dtype=np.int32)
    flat_gain, flat_sums = gain.ravel(), sums.ravel()
    offset = np.arange(sets)[:, None] * width
    stride = 1 << max(0, (width - 1).bit_length())
    while stride >= 1:
        every = np.arange(stride, width, 2 * stride)
        # Brackets of neighbouring ends share no more than their edges, so a part of the ends needs about that part of the memory.
        parts = min(len(every), 1 + sets * width // _BLOCK_NUMBERS)
        for ends in np.array_split(every, parts) if parts else ():
            low = start[:, ends - stride]
            after = ends + stride
            high = np.where(after < width, start[:, np.minimum(after, width - 1)], ends)
            high = np.minimum(high, ends)  # a run ends no earlier than it starts
            best[:, ends], start[:, ends] = _best_starts(flat_gain, flat_sums, offset, ends, low, high)
        stride //= 2
    return best, start


def _best_starts(
    gain: Float64[np.ndarray, " numbers"],
    sums: Float64[np.ndarray, " numbers"],
    offset: np.ndarray,
    ends: np.ndarray,
    low: np.ndarray,
    high: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Search every bracket [low, high] of every set for the best start of a run up to its end."""
    lengths = (high - low + 1).ravel()
    first = np.concatenate(([0], np.cumsum(lengths[:-1])))
    at = np.arange(lengths.sum()) + np.repeat((low + offset).ravel() - first, lengths)
    end = (ends + offset).ravel()
    run = np.repeat(sums[end], lengths)
    run -= sums[at]
    run *= run
    run /= np.maximum(np.repeat(end, lengths) - at, 1)
    run += gain[at]
    most = np.maximum.reduceat(run, first)
    equal = np.flatnonzero(run == np.repeat(most, lengths))
    # The leftmost of equals: written last.
    segment = np.searchsorted(first, equal, side="right") - 1
    winner = np.empty(len(first), dtype=np.int64)
    winner[segment[::-1]] = at[equal[::-1]]
    shape = low.shape
    return most.reshape(shape), winner.reshape(shape) - offset

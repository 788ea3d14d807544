"""Which images go in which step of which epoch: a function of (seed, epoch) alone, so that a resumed run needs no memory of it."""

from math import ceil

import numpy as np
from jaxtyping import Int64


def epoch_batches(image_count: int, batch_size: int, seed: int, epoch: int) -> list[Int64[np.ndarray, "_"]]:
    """A shuffle of all images in batches whose sizes differ by at most one.

    Equal batches rather than full ones and a rest: every image is used each epoch, and no step rests on a handful of images, which
    batch norm and the learning rate would suffer from.
    """
    order = np.random.default_rng([seed, epoch, 0]).permutation(image_count).astype(np.int64)
    return np.array_split(order, batch_count(image_count, batch_size))


def batch_count(image_count: int, batch_size: int) -> int:
    """Steps in an epoch."""
    return max(1, ceil(image_count / batch_size))

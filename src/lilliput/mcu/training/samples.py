"""A stream of samples as the firmware's example main reads it, and what it answers.

A sample is two little-endian words, the label (-1: only predict) and the learning rate's factor, and the input's codes. A result is the
loss in Q16 nats (-1 of a prediction), the class that the sample was taken for, and the logits (0 of a training step, which needs their
memory before it ends).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int8, Int64

from lilliput.mcu.training.arithmetic import RATE_ONE

_ONLY_PREDICT = -1


@dataclass(frozen=True, eq=False)
class Results:
    """What the firmware answered."""

    losses_q16: Int64[np.ndarray, " samples"]
    predictions: Int64[np.ndarray, " samples"]
    logits: Int64[np.ndarray, "samples classes"]


def samples(
    x: Int8[np.ndarray, "n ..."],
    y: Int64[np.ndarray, " n"] | None,
    rates: Int64[np.ndarray, " n"] | int = RATE_ONE,
) -> bytes:
    """To train on, or without labels to predict."""
    codes = x.reshape(len(x), -1)
    head = np.zeros((len(x), 2), dtype="<i4")
    head[:, 0] = _ONLY_PREDICT if y is None else y
    head[:, 1] = rates
    return np.concatenate([head.view(np.int8), codes], axis=1).tobytes()


def results(
    losses_q16: Int64[np.ndarray, " n"] | None,
    predictions: Int64[np.ndarray, " n"],
    logits: Int64[np.ndarray, "n classes"] | None,
    classes: int,
) -> bytes:
    """As the firmware should write them."""
    rows = np.zeros((len(predictions), 2 + classes), dtype="<i4")
    rows[:, 0] = -1 if losses_q16 is None else losses_q16
    rows[:, 1] = predictions
    rows[:, 2:] = 0 if logits is None else logits
    return rows.tobytes()


def read_results(output: bytes, classes: int) -> Results:
    """From the firmware's bytes."""
    rows = np.frombuffer(output, dtype="<i4").reshape(-1, 2 + classes).astype(np.int64)
    return Results(rows[:, 0], rows[:, 1], rows[:, 2:])

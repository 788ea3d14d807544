"""Sets of weights: which ones share levels, or a split.

A matrix (rows, columns) is one set, a set for each row, or a set for each group of neighbouring columns in each row. Where the group size
does not divide the columns, the last group of every row is shorter: it is a batch of its own, so nothing is padded.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from lilliput.quantize.lowbit.config import Granularity


def columns_per_set(granularity: Granularity, group_size: int, columns: int) -> int:
    """How many neighbouring columns share a set."""
    return min(group_size, columns) if granularity == "group" else columns


def per_set(
    values: Float[Tensor, "rows columns"],
    granularity: Granularity,
    group_size: int,
    function: Callable[[Float[Tensor, "sets n"]], Float[Tensor, "sets results"]],
) -> Float[Tensor, "set_rows groups results"]:
    """``function`` of each set's values, as (rows or 1, groups, results)."""
    rows, columns = values.shape
    if granularity == "tensor":
        return function(values.reshape(1, -1))[:, None]
    width = columns_per_set(granularity, group_size, columns)
    whole = columns // width * width
    results = [function(values[:, :whole].reshape(-1, width)).unflatten(0, (rows, -1))]
    if whole < columns:
        results.append(function(values[:, whole:])[:, None])
    return torch.cat(results, dim=1)


def spread(
    per_set_values: Tensor, granularity: Granularity, group_size: int, rows: int, columns: int
) -> Float[Tensor, "rows columns results"]:
    """Each set's results at each of its weights; a view that costs no memory unless groups are smaller than rows."""
    results = per_set_values.shape[-1]
    if granularity != "group":
        return per_set_values.expand(rows, 1, results).expand(rows, columns, results)
    width = columns_per_set(granularity, group_size, columns)
    return per_set_values.repeat_interleave(width, dim=1)[:, :columns]

"""Channels first and channels last: the float graph is (channel, height, width), the integer graph (height, width, channel).

A value's elements lie in memory in some order. ``device_order(shape)`` lists, for each place in the device's memory, which element of
the float model's (row-major) order lies there. Two facts follow. A reshape moves no data on the device exactly when the orders of its
two shapes agree; and a vector that was flattened from an image keeps the image's order, which a linear layer can absorb by permuting
its columns.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Int64, Shaped

from lilliput.errors import DataError

Shape = tuple[int, ...]


def device_shape(shape: Shape, rank3_is_image: bool = True) -> Shape:
    """Shape on the device of a float value with its batch axis: (n, c, h, w) -> (h, w, c), (n, c, l) -> (1, l, c).

    Without ``rank3_is_image``, (n, steps, features) stays as it is.
    """
    if len(shape) == 4:
        return shape[2], shape[3], shape[1]
    if len(shape) == 3 and rank3_is_image:
        return 1, shape[2], shape[1]
    return shape[1:]


def device_axis(axis: int, rank: int, rank3_is_image: bool = True) -> int:
    """Axis on the device of a float value's axis (which counts the batch as 0)."""
    if rank == 4:
        return {1: 2, 2: 0, 3: 1}[axis]
    if rank == 3 and rank3_is_image:
        return {1: 2, 2: 1}[axis]
    return axis - 1


def device_order(shape: Shape, rank3_is_image: bool = True) -> Int64[np.ndarray, " numel"]:
    """For each place in the device's memory, the index of the float model's element that lies there."""
    elements = np.arange(int(np.prod(shape[1:], dtype=np.int64)), dtype=np.int64).reshape(shape[1:])
    if len(shape) == 4 or (len(shape) == 3 and rank3_is_image):
        elements = np.moveaxis(elements, 0, -1)
    return elements.ravel()


def channels_last(values: Shaped[np.ndarray, " ..."], shape: Shape, what: str) -> Shaped[np.ndarray, " ..."]:
    """A batch in the float model's layout, laid out for a device tensor of this shape.

    Raises:
        DataError: the batch does not fit, naming both shapes.
    """
    if len(shape) == 3:
        height, width, channels = shape
        if values.ndim == 3 and height == 1 and values.shape[1:] == (channels, width):
            values = values[:, :, None, :]
        if values.shape[1:] == (channels, height, width):
            return np.ascontiguousarray(np.moveaxis(values, 1, -1))
        expected = f"(batch, {channels}, {height}, {width}), channels first"
    else:
        if values.shape[1:] == shape:
            return values
        expected = f"(batch, {', '.join(map(str, shape))})"
    raise DataError(f"{what} of floats has shape {list(values.shape)}; must be {expected}")


def channels_first(values: Shaped[np.ndarray, " ..."]) -> Shaped[np.ndarray, " ..."]:
    """A batch in the float model's layout again: (n, h, w, c) -> (n, c, h, w); other ranks stay."""
    return np.ascontiguousarray(np.moveaxis(values, -1, 1)) if values.ndim == 4 else values

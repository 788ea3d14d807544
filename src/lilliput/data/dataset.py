"""Any map-style torch Dataset of (image, class index) pairs."""

from __future__ import annotations

from typing import Any

import numpy as np

from lilliput.data.pixels import (
    as_image_batch,
    convert_channels,
    flatten_picture,
    pil_to_array,
    resize_images,
    resize_picture,
)
from lilliput.data.raw import RawImages, RawPart, check_classes, check_labels
from lilliput.errors import DataError

ALLOWED = "a map-style Dataset (with __len__ and __getitem__) of (image, class index) pairs"


def read_dataset(source: Any, *, image_size: int | None, channels: int | None) -> RawImages:
    """Every item of a map-style Dataset, read once.

    An image may be a Pillow image, a tensor (row, column) or (channel, row, column), or an array (row, column) or
    (row, column, channel); bytes, or floats in 0 to 1. Class names come from ``source.classes`` where it has them, as torchvision's do.
    """
    name = type(source).__name__
    if not (hasattr(source, "__len__") and hasattr(source, "__getitem__")) or isinstance(source, dict | bytes):
        raise DataError(f"cannot load images from a {name}; allowed: a name, a path, or {ALLOWED}")
    images: list[np.ndarray] = []
    labels: list[int] = []
    for index in range(len(source)):
        where = f"{name} item {index}"
        item = source[index]
        if not isinstance(item, tuple | list) or len(item) != 2:
            raise DataError(f"{where}: is a {type(item).__name__}, not a pair; allowed: {ALLOWED}")
        image = _image(item[0], image_size, channels, where)
        if images and image.shape != images[0].shape:
            raise DataError(
                f"{where}: is {_shape(image)}, item 0 is {_shape(images[0])} (row x column x channel); "
                "all must be alike; try image_size=32 channels=3"
            )
        images.append(image)
        labels.append(_label(item[1], where))
    if not images:
        raise DataError(f"{name}: is empty; needs images of at least 2 classes")
    part = RawPart(np.stack(images), check_labels(np.array(labels), len(images), name))
    names = getattr(source, "classes", None)
    class_names = check_classes([part], tuple(str(n) for n in names) if names is not None else None, name)
    return RawImages(name, f"torch Dataset {name}, {len(images):,} items", class_names, part)


def _image(image: Any, image_size: int | None, channels: int | None, where: str) -> np.ndarray:
    """One image as uint8 (row, column, channel), with the size and channels asked for."""
    if hasattr(image, "has_transparency_data"):  # a Pillow image, recognised without importing Pillow
        picture = flatten_picture(image, channels)
        return pil_to_array(picture if image_size is None else resize_picture(picture, image_size))
    if hasattr(image, "detach"):
        array = image.detach().cpu().float().numpy() if image.is_floating_point() else image.detach().cpu().numpy()
        array = array.transpose(1, 2, 0) if array.ndim == 3 else array
    elif isinstance(image, np.ndarray):
        array = image
    else:
        raise DataError(f"{where}: its image is a {type(image).__name__}; must be a Pillow image, a tensor or an array")
    batch = convert_channels(as_image_batch(array[None], where), channels)
    return resize_images(batch, image_size)[0]


def _label(label: Any, where: str) -> int:
    try:
        number = label.item() if hasattr(label, "item") else label
    except (ValueError, RuntimeError):
        number = label
    if isinstance(number, bool) or not isinstance(number, int):
        raise DataError(f"{where}: its label is {label!r}; must be a class index 0, 1, ...")
    return number


def _shape(image: np.ndarray) -> str:
    return "x".join(str(length) for length in image.shape)

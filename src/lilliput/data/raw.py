"""What a format's loader hands over: images and labels as stored, before anything is split.

Every loader (``digits``, ``folder``, ``npz``, ``idx``, ``cifar``, ``dataset``) returns a :class:`RawImages`. Where the data set
comes with its own test or validation part, the loader fills that part in and the split keeps it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from lilliput.errors import DataError


@dataclass(frozen=True, eq=False)
class RawPart:
    """Images and labels of one part."""

    images: np.ndarray
    """uint8 (image, row, column, channel)"""
    labels: np.ndarray
    """int64 (image,)"""

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: np.ndarray) -> RawPart:
        """The part at these indices, in their order."""
        return RawPart(self.images[indices], self.labels[indices])


@dataclass(frozen=True, eq=False)
class RawImages:
    """A data set as stored."""

    name: str
    source: str
    class_names: tuple[str, ...]
    pool: RawPart
    """What training data comes from, and the test and validation parts too where the data set has none of its own."""
    val: RawPart | None = None
    test: RawPart | None = None
    notes: tuple[str, ...] = field(default=())

    def parts(self) -> dict[str, RawPart]:
        """The parts there are, by name."""
        named = {"pool": self.pool, "val": self.val, "test": self.test}
        return {name: part for name, part in named.items() if part is not None}


def check_labels(labels: np.ndarray, count: int, where: str) -> np.ndarray:
    """The labels as int64, after checking type, length and sign.

    Args:
        labels: integers, shape (image,) or (image, 1) as Keras and MedMNIST store them.
        count: number of images they belong to.
        where: file (and array) to name in a message.
    """
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1:
        raise DataError(
            f"{where}: labels have shape {labels.shape}; must be one class index per image, shape ({count},); "
            "one-hot rows become indices by argmax(axis=1)"
        )
    if not np.issubdtype(labels.dtype, np.integer):
        raise DataError(f"{where}: labels are {labels.dtype}; must be integers 0, 1, ...; try astype(int)")
    if len(labels) != count:
        raise DataError(f"{where}: {len(labels):,} labels for {count:,} images; must be one label per image")
    if count and labels.min() < 0:
        index = int(np.argmax(labels < 0))
        raise DataError(f"{where}: label {labels[index]} of image {index} is negative; must be 0, 1, ...")
    return labels.astype(np.int64)


def check_classes(parts: list[RawPart], class_names: tuple[str, ...] | None, where: str) -> tuple[str, ...]:
    """The class names, after checking that the labels in all parts are exactly 0 to the number of classes less one.

    Args:
        parts: all parts of the data set.
        class_names: None names the classes "0", "1", ...
        where: file or folder to name in a message.
    """
    seen = np.unique(np.concatenate([part.labels for part in parts]))
    if len(seen) == 0:
        raise DataError(f"{where}: holds no images; at least 2 classes are needed")
    top = int(seen[-1]) + 1
    count = max(len(class_names), top) if class_names is not None else top
    if class_names is not None and top > len(class_names):
        raise DataError(
            f"{where}: label {top - 1} has no name: there are {len(class_names)} class names; name every class or give none"
        )
    if len(seen) < count and len(seen) > 1:
        missing = np.setdiff1d(np.arange(count), seen)
        shown = ", ".join(str(label) for label in missing[:5]) + (", ..." if len(missing) > 5 else "")
        raise DataError(
            f"{where}: labels go up to {count - 1}, but no image has label {shown} ({len(seen)} classes have images); "
            f"labels must be 0 to {len(seen) - 1} without gaps; try np.unique(labels, return_inverse=True)[1]"
        )
    if len(seen) < 2:
        raise DataError(f"{where}: only one class (label {seen[0]}) has images; a classifier needs at least 2 classes")
    return class_names if class_names is not None else tuple(str(label) for label in range(count))

"""Images of a classification task, split three ways, as bytes until a network asks for floats.

:class:`ImageSplit` holds one part, :class:`ImageData` all three. Pixels stay ``uint8`` in (image, row, column, channel) order, which is
how files store them; networks get float32 in (image, channel, row, column) order, exactly ``byte / 255``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from lilliput.data.splits import SplitReport
from lilliput.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor
else:
    Tensor = Any  # importing this room must not import torch


@dataclass(frozen=True, eq=False)
class ImageSplit:
    """Some images and their classes, in a fixed order."""

    images: np.ndarray
    """uint8, (image, row, column, channel); 1 channel is grey, 3 are red, green, blue. Read-only."""
    labels: np.ndarray
    """int64, one class index per image. Read-only."""

    def __post_init__(self) -> None:
        if self.images.dtype != np.uint8 or self.images.ndim != 4 or self.images.shape[3] not in (1, 3):
            raise DataError(
                f"images are {self.images.dtype} of shape {self.images.shape}; "
                "must be uint8 (image, row, column, channel) with 1 or 3 channels"
            )
        if self.labels.dtype != np.int64 or self.labels.shape != self.images.shape[:1]:
            raise DataError(
                f"labels are {self.labels.dtype} of shape {self.labels.shape}; "
                f"must be int64 of shape {self.images.shape[:1]}, one per image"
            )
        # Views, so that only what this split hands out is frozen and not the caller's own array.
        for name in ("images", "labels"):
            view = getattr(self, name).view()
            view.flags.writeable = False
            object.__setattr__(self, name, view)

    def __len__(self) -> int:
        return len(self.labels)

    def byte_tensors(self) -> tuple[Tensor, Tensor]:
        """Images as uint8 (image, channel, row, column) and labels as int64: a quarter of the memory of :meth:`tensors`."""
        import torch

        return (
            torch.from_numpy(self.images.transpose(0, 3, 1, 2).copy()),
            torch.from_numpy(self.labels.copy()),
        )

    def tensors(self) -> tuple[Tensor, Tensor]:
        """Images as float32 (image, channel, row, column), each pixel the float nearest to byte / 255, and labels as int64."""
        images, labels = self.byte_tensors()
        return images.float().div_(255), labels

    def batches(self, batch_size: int, *, seed: int | None = None, epoch: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """The split in batches of float images and labels; the last batch may be smaller.

        Args:
            batch_size: images per batch, at least 1.
            seed: None keeps the split's order. A number shuffles, by (seed, epoch) alone, so any epoch can be had again.
            epoch: which shuffle of that seed.
        """
        if batch_size < 1:
            raise DataError(f"batch_size={batch_size}: must be at least 1")
        import torch

        order = np.arange(len(self)) if seed is None else np.random.default_rng([seed, epoch]).permutation(len(self))
        images, labels = self.byte_tensors()
        for start in range(0, len(self), batch_size):
            chosen = torch.from_numpy(order[start : start + batch_size])
            yield images[chosen].float().div_(255), labels[chosen]


@dataclass(frozen=True, eq=False)
class ImageData:
    """Train, validation and test images of one task; no image is in two of them."""

    name: str
    """Short name for headings and folders: ``digits``."""
    source: str
    """One sentence on where the images come from and what was done to them."""
    class_names: tuple[str, ...]
    """Name of class 0, 1, ..."""
    train: ImageSplit
    val: ImageSplit
    test: ImageSplit
    report: SplitReport
    """What the split did about identical images."""
    notes: tuple[str, ...] = field(default=())
    """What a user should know before trusting a result: files passed over, images dropped, labels that disagree."""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(row, column, channel) counts of every image."""
        rows, columns, channels = self.train.images.shape[1:]
        return rows, columns, channels

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(channel, row, column) counts: the shape of one image as a network sees it."""
        rows, columns, channels = self.image_shape
        return channels, rows, columns

    def __str__(self) -> str:
        rows, columns, channels = self.image_shape
        return (
            f"{self.name}: {len(self.class_names)} classes, {rows}x{columns}x{channels}; "
            f"{len(self.train):,} train, {len(self.val):,} validation, {len(self.test):,} test"
        )

"""``load_images``: from a name, a path or a torch Dataset to train, validation and test images."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lilliput.data import cifar, dataset, digits, folder, idx, npz
from lilliput.data.images import ImageData, ImageSplit
from lilliput.data.pixels import convert_channels, resize_images
from lilliput.data.raw import RawImages, RawPart
from lilliput.data.splits import check_fractions, limit_images, split_images
from lilliput.errors import ConfigError, DataError

NAMED: dict[str, Callable[[], RawImages]] = {"digits": digits.read_digits}
"""Data sets that ship with a dependency, by name."""

PATH_KINDS = (
    "a folder with one folder of PNG or JPEG files per class, an NPZ file, a folder (or images file) of MNIST IDX files, "
    "or a folder of CIFAR-10 or CIFAR-100 batches"
)


def load_images(
    source: Any,
    *,
    image_size: int | None = None,
    channels: int | None = None,
    test_fraction: float = 0.2,
    val_fraction: float = 0.1,
    seed: int = 0,
    limit: int | None = None,
    progress: bool = True,
) -> ImageData:
    """Images of a classification task, split into train, validation and test without leakage.

    Args:
        source: ``"digits"``; a path to a folder per class, NPZ, MNIST IDX or CIFAR batches; or a map-style torch Dataset of
            (image, class index) pairs.
        image_size: rows and columns of every image; images of another size are stretched (bilinear). None keeps the size they have.
        channels: 1 makes grey, 3 makes colour; None keeps what the data has, which must then be the same for all.
        test_fraction: share of the images to test on, per class; unused where the data has its own test part, which is kept.
        val_fraction: share of the images to validate on, per class; unused where the data has its own validation part.
        seed: chooses which images go where. The same images give the same split on every machine, in any file order.
        limit: use at most this many images in all, the same share of each class and part.
        progress: show a bar while reading a folder of more than 500 files.
    Raises:
        DataError: names the file at fault, and what would work.

    >>> data = load_images("digits", image_size=16)
    >>> print(data)
    digits: 10 classes, 16x16x1; 1,259 train, 179 validation, 359 test
    """
    check_fractions(val_fraction, test_fraction)
    if image_size is not None and not 1 <= image_size <= 4096:
        raise ConfigError(f"image_size={image_size}: must be 1 to 4,096 pixels; try image_size=32")
    if channels not in (None, 1, 3):
        raise ConfigError(f"channels={channels}: must be 1 (grey) or 3 (colour), or left out to keep what the data has")
    if limit is not None and limit < 1:
        raise ConfigError(f"limit={limit}: must be at least 1 image; leave it out to use all images")
    if seed < 0:
        raise ConfigError(f"seed={seed}: must be 0 or more; try seed=0")

    raw = _read(source, image_size=image_size, channels=channels, limit=limit, seed=seed, progress=progress)
    if limit is not None:
        raw = limit_images(raw, limit, seed)
    raw = _resized(raw, image_size, channels)
    train, val, test, report = split_images(raw, val_fraction=val_fraction, test_fraction=test_fraction, seed=seed)
    return ImageData(
        name=raw.name,
        source=raw.source,
        class_names=raw.class_names,
        train=ImageSplit(train.images, train.labels),
        val=ImageSplit(val.images, val.labels),
        test=ImageSplit(test.images, test.labels),
        report=report,
        notes=raw.notes + report.notes(),
    )


def _read(
    source: Any, *, image_size: int | None, channels: int | None, limit: int | None, seed: int, progress: bool
) -> RawImages:
    """The data set as stored, by the loader that knows its format."""
    if not isinstance(source, str | os.PathLike):
        return dataset.read_dataset(source, image_size=image_size, channels=channels)
    if isinstance(source, str) and source in NAMED:
        return NAMED[source]()
    path = Path(source).expanduser()
    if not path.exists():
        raise DataError(_unknown(str(source), path))
    if path.is_file():
        if path.suffix.lower() == ".npz":
            return npz.read_npz(path)
        if idx.is_idx(path):
            return idx.read_idx(path)
        raise DataError(f"{path}: not a data file that can be read; allowed: {PATH_KINDS}")
    if (batches := cifar.find_batches(path)) is not None:
        return cifar.read_cifar(batches)
    if idx.is_idx(path):
        return idx.read_idx(path)
    archives = sorted(path.glob("*.npz"))
    folders = sorted(entry.name for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if archives and len(folders) > 1:
        raise DataError(
            f"{path}: holds folders ({', '.join(folders[:3])}{', ...' if len(folders) > 3 else ''}) and {archives[0].name}; "
            f"give {archives[0]} to read that, or move it away to read the folders as classes"
        )
    if len(archives) == 1:
        return npz.read_npz(archives[0])
    if len(archives) > 1:
        raise DataError(f"{path}: holds {len(archives)} NPZ files; give the path of one, such as {archives[0]}")
    return folder.read_folder(path, image_size=image_size, channels=channels, limit=limit, seed=seed, progress=progress)


def _resized(raw: RawImages, image_size: int | None, channels: int | None) -> RawImages:
    """Every part with the size and channels asked for."""

    def convert(part: RawPart) -> RawPart:
        return RawPart(resize_images(convert_channels(part.images, channels), image_size), part.labels)

    parts = {name: convert(part) for name, part in raw.parts().items()}
    first_shape = parts["pool"].images.shape[1:]
    for name, part in parts.items():
        if part.images.shape[1:] != first_shape:
            raise DataError(
                f"{raw.source}: training images are {_shape(first_shape)}, {name} images are {_shape(part.images.shape[1:])}; "
                "all must be alike; try image_size=32 channels=3"
            )
    return RawImages(
        raw.name, raw.source, raw.class_names, parts["pool"], parts.get("val"), parts.get("test"), raw.notes
    )


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(str(length) for length in shape)


def _unknown(given: str, path: Path) -> str:
    """What to say about a name that is neither a known data set nor a path."""
    nearby = sorted(e.name for e in path.parent.iterdir() if not e.name.startswith(".")) if path.parent.is_dir() else []
    close = difflib.get_close_matches(given, list(NAMED), n=1, cutoff=0.5)
    close += [str(path.parent / name) for name in difflib.get_close_matches(path.name, nearby, n=2, cutoff=0.6)]
    meant = f"; did you mean {' or '.join(repr(name) for name in close)}?" if close else ""
    known = ", ".join(f"'{name}'" for name in NAMED)
    return f"unknown data '{given}': known names are {known}; or a path to {PATH_KINDS}{meant}"

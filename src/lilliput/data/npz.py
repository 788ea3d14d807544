"""Images and labels in one NumPy archive."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path

import numpy as np

from lilliput.data.pixels import as_image_batch
from lilliput.data.raw import RawImages, RawPart, check_classes, check_labels
from lilliput.errors import DataError

# (images, labels) of each part. First Keras' own mnist.npz and ours, then MedMNIST, then what people write by hand.
POOL_KEYS = (
    ("x_train", "y_train"),
    ("train_images", "train_labels"),
    ("x", "y"),
    ("X", "y"),
    ("images", "labels"),
    ("data", "labels"),
    ("data", "target"),
    ("data", "targets"),
)
VAL_KEYS = (("x_val", "y_val"), ("val_images", "val_labels"))
TEST_KEYS = (("x_test", "y_test"), ("test_images", "test_labels"))
NAME_KEYS = ("classes", "class_names", "label_names")


def read_npz(path: Path) -> RawImages:
    """A NumPy archive: images (image, row, column) or with a last axis of 1 or 3 channels, and integer or text labels.

    Known names are those of ``POOL_KEYS``, ``VAL_KEYS``, ``TEST_KEYS`` and ``NAME_KEYS``. Nothing is unpickled.
    """
    arrays = _arrays(path)
    pool_keys = _find(arrays, POOL_KEYS)
    if pool_keys is None:
        pairs = ", ".join(f"({images}, {labels})" for images, labels in POOL_KEYS)
        raise DataError(
            f"{path}: holds the arrays {', '.join(sorted(arrays)) or 'none'}; needs images and labels under one of {pairs}; "
            "try np.savez(path, x=images, y=labels)"
        )
    found = {"pool": pool_keys, "val": _find(arrays, VAL_KEYS), "test": _find(arrays, TEST_KEYS)}
    keys = {name: pair for name, pair in found.items() if pair is not None}
    names = next((tuple(str(n) for n in arrays[key].ravel()) for key in NAME_KEYS if key in arrays), None)
    label_arrays = {name: arrays[labels_key] for name, (_, labels_key) in keys.items()}
    if any(labels.dtype.kind in "US" for labels in label_arrays.values()):
        names, label_arrays = _number_text(label_arrays)
    parts = {}
    for name, (images_key, labels_key) in keys.items():
        images = as_image_batch(arrays[images_key], f"{path} array '{images_key}'")
        labels = check_labels(label_arrays[name], len(images), f"{path} array '{labels_key}'")
        parts[name] = RawPart(images, labels)
    class_names = check_classes(list(parts.values()), names, str(path))
    return RawImages(path.stem, str(path), class_names, parts["pool"], parts.get("val"), parts.get("test"))


def _arrays(path: Path) -> dict[str, np.ndarray]:
    """Every array of the archive, or an error that names the file."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise DataError(f"{path}: one bare array, not an NPZ archive; try np.savez(path, x=images, y=labels)")
            return {key: archive[key] for key in archive.files}
    except (OSError, ValueError, EOFError, KeyError, MemoryError, zipfile.BadZipFile, zlib.error) as fault:
        raise DataError(
            f"{path}: cannot be read as an NPZ archive of plain arrays ({fault}); try np.savez(path, x=images, y=labels)"
        ) from fault


def _find(arrays: dict[str, np.ndarray], pairs: tuple[tuple[str, str], ...]) -> tuple[str, str] | None:
    return next((pair for pair in pairs if pair[0] in arrays and pair[1] in arrays), None)


def _number_text(labels: dict[str, np.ndarray]) -> tuple[tuple[str, ...], dict[str, np.ndarray]]:
    """Class names in alphabetical order, and text labels as their indices."""
    text = {name: values.astype(str) for name, values in labels.items()}
    names = np.unique(np.concatenate([values.ravel() for values in text.values()]))
    return tuple(names.tolist()), {name: np.searchsorted(names, values) for name, values in text.items()}

"""Small data sets on disk, each in one of the formats that the loaders read."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import numpy as np
from PIL import Image


def random_images(count: int, rows: int = 6, columns: int = 6, channels: int = 1, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, rows, columns, channels), dtype=np.uint8)


def cycle_labels(count: int, classes: int = 2) -> np.ndarray:
    return np.arange(count) % classes


def write_png(path: Path, image: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(path)
    return path


def write_folder(root: Path, images: np.ndarray, labels: np.ndarray, names: tuple[str, ...] = ("cat", "dog")) -> Path:
    for index, (image, label) in enumerate(zip(images, labels, strict=True)):
        write_png(root / names[label] / f"{index:04d}.png", image)
    return root


def idx_bytes(array: np.ndarray) -> bytes:
    return (
        bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.astype(np.uint8).tobytes()
    )


def shared_data() -> Path:
    """The folder of real data that optional tests use."""
    return Path(os.environ.get("LILLIPUT_SHARED_DATA", Path(__file__).parents[3] / "shared" / "data"))

"""MNIST's IDX files, gzipped or not.

Source: LeCun, Cortes and Burges, The MNIST database, "File formats": two zero bytes, a type byte (8: unsigned byte), the number of
axes, each axis' length as a big-endian 32-bit number, then the values row by row.
"""

from __future__ import annotations

import gzip
import re
import zlib
from math import prod
from pathlib import Path

import numpy as np

from lilliput.data.raw import RawImages, RawPart, check_classes, check_labels
from lilliput.errors import DataError

_IMAGES = re.compile(r"^(?P<prefix>.*?)images(?P<first>[-._])idx3(?P<second>[-._])ubyte(\.gz)?$")
_LABELS = re.compile(r"^(?P<prefix>.*?)labels[-._]idx1[-._]ubyte(\.gz)?$")


def is_idx(path: Path) -> bool:
    """Whether this is an IDX images or labels file by its name, or a folder that holds one."""
    names = [entry.name for entry in path.iterdir()] if path.is_dir() else [path.name]
    return any(_IMAGES.match(name) or _LABELS.match(name) for name in names)


def read_idx(path: Path) -> RawImages:
    """IDX images with the labels file of the same prefix beside them.

    ``train-images-idx3-ubyte.gz`` pairs with ``train-labels-idx1-ubyte`` (or .gz). Where a folder holds a ``train`` and a ``t10k`` or
    ``test`` pair, the latter is the test part. A file's path means that file alone.
    """
    folder = path if path.is_dir() else path.parent
    pairs = _pairs(folder)
    if path.is_file():
        match = _IMAGES.match(path.name) or _LABELS.match(path.name)
        prefix = match["prefix"] if match else path.name
        pool_prefix, test_prefix = prefix, None
        if prefix not in pairs:
            raise DataError(f"{path}: no matching images and labels in {folder}; {_holds(folder)}")
    else:
        tests = [prefix for prefix in pairs if re.search(r"(t10k|test)[-._]?$", prefix)]
        others = [prefix for prefix in pairs if prefix not in tests]
        if len(others) > 1 or len(tests) > 1 or not pairs:
            raise DataError(
                f"{folder}: needs one training pair of IDX files and at most one test pair; {_holds(folder)}; "
                "give the path of one images file"
            )
        pool_prefix = others[0] if others else tests[0]
        test_prefix = tests[0] if others and tests else None
    pool = _read_pair(*pairs[pool_prefix])
    test = _read_pair(*pairs[test_prefix]) if test_prefix is not None else None
    class_names = check_classes([part for part in (pool, test) if part is not None], None, str(path))
    return RawImages(folder.resolve().name, str(path), class_names, pool, test=test)


def read_idx_array(path: Path, axes: int) -> np.ndarray:
    """The unsigned bytes of one IDX file with this many axes, after checking magic number and length."""
    try:
        content = path.read_bytes()
        if content[:2] == b"\x1f\x8b":
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as fault:
        raise DataError(f"{path}: cannot be read ({fault}); download the file again") from fault
    magic = bytes([0, 0, 8, axes])
    if content[:4] != magic:
        raise DataError(
            f"{path}: starts with 0x{content[:4].hex()}; an IDX file of unsigned bytes with {axes} axes starts with 0x{magic.hex()}; "
            "check that images and labels are not swapped"
        )
    header_bytes = 4 + 4 * axes
    if len(content) < header_bytes:
        raise DataError(
            f"{path}: truncated: {len(content)} bytes, its header alone is {header_bytes}; download the file again"
        )
    lengths = tuple(int(n) for n in np.frombuffer(content, dtype=">u4", count=axes, offset=4))
    expected_bytes = header_bytes + prod(lengths)
    if len(content) != expected_bytes:
        state = "truncated" if len(content) < expected_bytes else "too long"
        raise DataError(
            f"{path}: {state}: its header announces {'x'.join(str(n) for n in lengths)} values, so {expected_bytes:,} bytes, "
            f"but it has {len(content):,}; download the file again"
        )
    return np.frombuffer(content, dtype=np.uint8, offset=header_bytes).reshape(lengths).copy()


def _read_pair(images_path: Path, labels_path: Path) -> RawPart:
    images = read_idx_array(images_path, axes=3)
    if 0 in images.shape:
        raise DataError(f"{images_path}: images have shape {images.shape}; needs at least one image of one pixel")
    labels = check_labels(read_idx_array(labels_path, axes=1), len(images), str(labels_path))
    return RawPart(images[..., None], labels)


def _pairs(folder: Path) -> dict[str, tuple[Path, Path]]:
    """Images and labels files by prefix; the unzipped one first where both are there."""
    images: dict[str, Path] = {}
    labels: dict[str, Path] = {}
    for entry in sorted(folder.iterdir(), key=lambda entry: entry.name):
        for pattern, found in ((_IMAGES, images), (_LABELS, labels)):
            if match := pattern.match(entry.name):
                found.setdefault(match["prefix"], entry)
    return {prefix: (images[prefix], labels[prefix]) for prefix in images if prefix in labels}


def _holds(folder: Path) -> str:
    names = sorted(e.name for e in folder.iterdir() if _IMAGES.match(e.name) or _LABELS.match(e.name))
    return f"it holds {', '.join(names)}"

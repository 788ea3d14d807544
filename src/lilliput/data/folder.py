"""A folder with one folder of PNG or JPEG files per class."""

from __future__ import annotations

import os
import struct
import unicodedata
import zlib
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lilliput.data.pixels import flatten_picture, pil_to_array, resize_picture
from lilliput.data.raw import RawImages, RawPart
from lilliput.data.splits import class_quotas, seeded_rank
from lilliput.errors import DataError

READ_SUFFIXES = (".png", ".jpg", ".jpeg")
# Images that a user would miss if they were passed over in silence.
REFUSED_SUFFIXES = (".bmp", ".gif", ".tif", ".tiff", ".webp", ".heic", ".avif", ".ppm", ".pgm", ".jp2")
PART_NAMES = {"train": "pool", "training": "pool", "val": "val", "valid": "val", "validation": "val", "test": "test"}
BAR_FROM_FILES = 500


@dataclass(frozen=True)
class _Tree:
    """Image files of one part, by class, in the order of their names."""

    files: dict[str, list[Path]]
    passed_over: tuple[Path, ...]


@dataclass(frozen=True)
class _Picture:
    """One file, decoded."""

    path: Path
    pixels: np.ndarray
    stored_mode: str


def read_folder(
    path: Path,
    *,
    image_size: int | None,
    channels: int | None,
    limit: int | None = None,
    seed: int = 0,
    progress: bool = True,
) -> RawImages:
    """Images of a folder per class; the folder names are the class names, in alphabetical order.

    Folders named ``train``, ``val`` (``valid``, ``validation``) and ``test`` at the top are parts, each with a folder per class. Files
    are taken in the order of their names (Unicode NFC), so the file system's own order plays no part. The camera's EXIF orientation
    is applied. Hidden files are skipped; other files that are not PNG or JPEG are skipped and noted, unless they are images.
    """
    roots = _parts(path)
    trees = {part: _scan(root) for part, root in roots.items()}
    class_names = tuple(sorted({name for tree in trees.values() for name in tree.files}, key=_order))
    for part, tree in trees.items():
        _check_classes(tree, class_names, roots[part])
    if limit is not None:
        trees = _limited(trees, roots, limit, seed)
    files = [
        (file, label)
        for tree in trees.values()
        for label, name in enumerate(class_names)
        for file in tree.files.get(name, [])
    ]
    pixels = _read_files([file for file, _ in files], image_size, channels, progress)
    labels = np.array([label for _, label in files], dtype=np.int64)
    parts, start = {}, 0
    for part, tree in trees.items():
        stop = start + sum(len(members) for members in tree.files.values())
        parts[part] = RawPart(pixels[start:stop], labels[start:stop])
        start = stop
    passed_over = [file.relative_to(path).as_posix() for tree in trees.values() for file in tree.passed_over]
    notes = (
        (f"{len(passed_over):,} files that are no PNG or JPEG were passed over, such as {passed_over[0]}",)
        if passed_over
        else ()
    )
    return RawImages(
        path.resolve().name, str(path), class_names, parts["pool"], parts.get("val"), parts.get("test"), notes
    )


def _parts(path: Path) -> dict[str, Path]:
    """The folder of each part: one pool, or train, val and test where the folders at the top are named so."""
    folders = _subfolders(path)
    if folders and all(folder.name.lower() in PART_NAMES for folder in folders):
        parts: dict[str, Path] = {}
        for folder in folders:
            part = PART_NAMES[folder.name.lower()]
            if part in parts:
                raise DataError(
                    f"{path}: both '{parts[part].name}' and '{folder.name}' would be one part; keep one of them"
                )
            parts[part] = folder
        if "pool" not in parts:
            raise DataError(f"{path}: has {', '.join(f.name for f in folders)} but no folder 'train'; add one")
        # The pool first: its shape is the one that the others are held to.
        return dict(sorted(parts.items(), key=lambda item: ("pool", "val", "test").index(item[0])))
    return {"pool": path}


def _scan(root: Path) -> _Tree:
    folders = _subfolders(root)
    if not folders:
        raise DataError(
            f"{root}: holds no folders; needs one folder per class with PNG or JPEG files in it, such as {root / 'cat'}"
        )
    files: dict[str, list[Path]] = {}
    passed_over = [entry for entry in root.iterdir() if entry.is_file() and not entry.name.startswith(".")]
    for folder in folders:
        name = unicodedata.normalize("NFC", folder.name)
        files[name] = []
        for file in _walk(folder):
            suffix = file.suffix.lower()
            if suffix in REFUSED_SUFFIXES:
                raise DataError(
                    f"{file}: {suffix} files are not read; allowed: {', '.join(READ_SUFFIXES)}; convert it to PNG"
                )
            if suffix in READ_SUFFIXES:
                files[name].append(file)
            else:
                passed_over.append(file)
    return _Tree(files, tuple(sorted(passed_over, key=lambda file: _order(file.relative_to(root).as_posix()))))


def _walk(folder: Path) -> list[Path]:
    """Every file below the folder that is not hidden, in the order of their names."""
    found = []
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(place, name) for name in names if not name.startswith(".")]
    return sorted(found, key=lambda file: _order(file.relative_to(folder).as_posix()))


def _check_classes(tree: _Tree, class_names: tuple[str, ...], root: Path) -> None:
    for name in class_names:
        if name not in tree.files:
            raise DataError(
                f"{root}: has no folder '{name}', which another part has; every part needs the same classes"
            )
        if not tree.files[name]:
            others = [file.name for file in tree.passed_over if name in file.relative_to(root).parts[:1]]
            instead = f" (it holds {others[0]})" if others else ""
            raise DataError(
                f"{root / name}: class folder without images{instead}; put PNG or JPEG files in it, or remove the folder"
            )
    if len(class_names) < 2:
        raise DataError(f"{root}: only one class folder, '{class_names[0]}'; a classifier needs at least 2")


def _limited(trees: dict[str, _Tree], roots: dict[str, Path], limit: int, seed: int) -> dict[str, _Tree]:
    """Fewer files before any is read: the same share of each part and class, chosen by a hash of the file's relative path."""
    part_limits = class_quotas([sum(map(len, tree.files.values())) for tree in trees.values()], limit)
    limited = {}
    for (part, tree), part_limit in zip(trees.items(), part_limits, strict=True):
        quotas = class_quotas([len(members) for members in tree.files.values()], part_limit)
        root, kept = roots[part], {}
        for (name, members), quota in zip(tree.files.items(), quotas, strict=True):
            ranks = {file: seeded_rank(_order(file.relative_to(root).as_posix()).encode(), seed) for file in members}
            chosen = set(sorted(members, key=lambda file, ranks=ranks: ranks[file])[:quota])  # type: ignore[misc]
            kept[name] = [file for file in members if file in chosen]
        limited[part] = _Tree(kept, tree.passed_over)
    return limited


def _read_files(files: list[Path], image_size: int | None, channels: int | None, progress: bool) -> np.ndarray:
    """All files as uint8 (image, row, column, channel); the first in name order that is at fault is the one named."""
    pixels: np.ndarray | None = None
    first: _Picture | None = None
    # Decoding releases Python's lock, so threads use every core.
    executor = ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1))
    try:
        pictures = executor.map(lambda file: _read_file(file, image_size, channels), files)
        for index, picture in enumerate(_with_bar(pictures, len(files), progress)):
            if first is None or pixels is None:
                first = picture
                pixels = np.empty((len(files), *picture.pixels.shape), dtype=np.uint8)
            _check_alike(first, picture)
            pixels[index] = picture.pixels
    finally:
        executor.shutdown(wait=True, cancel_futures=True)
    if pixels is None:
        raise DataError("no images are left to read; raise limit")
    return pixels


def _read_file(path: Path, image_size: int | None, channels: int | None) -> _Picture:
    from PIL import Image, ImageOps

    try:
        with Image.open(path, formats=("PNG", "JPEG")) as stored:
            mode = stored.mode
            picture: Any = flatten_picture(ImageOps.exif_transpose(stored), channels)
    except (
        OSError, SyntaxError, ValueError, EOFError, IndexError, TypeError, OverflowError, MemoryError, struct.error, zlib.error,
        Image.DecompressionBombError,
    ) as fault:  # fmt: skip
        reason = str(fault).replace(f" {str(path)!r}", "")
        raise DataError(
            f"{path}: cannot be read as a PNG or JPEG image ({reason}); replace or remove the file"
        ) from fault
    if image_size is not None:
        picture = resize_picture(picture, image_size)
    return _Picture(path, pil_to_array(picture), mode)


def _check_alike(first: _Picture, picture: _Picture) -> None:
    if picture.pixels.shape == first.pixels.shape:
        return
    if picture.pixels.shape[2] != first.pixels.shape[2]:
        grey, colour = sorted((first, picture), key=lambda p: p.pixels.shape[2])
        raise DataError(
            f"{grey.path} is grey ({grey.stored_mode}) and {colour.path} is colour ({colour.stored_mode}); "
            "all must be alike; try channels=1 to make all grey or channels=3 to make all colour"
        )
    sizes = [f"{p.path} is {p.pixels.shape[1]}x{p.pixels.shape[0]} pixels" for p in (first, picture)]
    raise DataError(f"{sizes[0]} and {sizes[1]}; all must be alike; try image_size=32 to resize all")


def _with_bar(pictures: Iterator[_Picture], count: int, progress: bool) -> Iterator[_Picture]:
    if not progress or count <= BAR_FROM_FILES:
        yield from pictures
        return
    from rich.console import Console
    from rich.progress import track

    yield from track(pictures, description="reading images", total=count, console=Console(stderr=True))


def _subfolders(path: Path) -> list[Path]:
    counts = Counter(unicodedata.normalize("NFC", entry.name) for entry in path.iterdir() if entry.is_dir())
    if twins := [name for name, count in counts.items() if count > 1]:
        raise DataError(f"{path}: two folders are named '{twins[0]}' (in two Unicode spellings); merge them")
    folders = [entry for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith(".")]
    return sorted(folders, key=lambda folder: _order(folder.name))


def _order(name: str) -> str:
    """What names are sorted by: code points of the composed form, the same on every file system."""
    return unicodedata.normalize("NFC", name)

"""CIFAR-10 and CIFAR-100, as python batches (pickles) or binary batches.

A pickle can run any code when it is loaded, and batches come from the network. So they are read by an unpickler that knows three
names and builds none of them for real: an array becomes a record of its shape, type and bytes, checked here.

Source: Krizhevsky, Learning Multiple Layers of Features from Tiny Images (2009), and the data set's page for both layouts.
"""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lilliput.data.raw import RawImages, RawPart, check_classes, check_labels
from lilliput.errors import DataError

_IMAGE_BYTES = 3 * 32 * 32


@dataclass(frozen=True)
class Batches:
    """The files of one CIFAR data set."""

    name: str
    folder: Path
    train: tuple[Path, ...]
    test: Path
    names: Path
    is_pickle: bool


def find_batches(folder: Path) -> Batches | None:
    """CIFAR files in this folder, or in the folder of the usual name that the archive unpacks to; None where there are none."""
    for inner in ("", "cifar-10-batches-py", "cifar-100-python", "cifar-10-batches-bin", "cifar-100-binary"):
        place = folder / inner
        for name, suffix, labels in (("cifar10", "", "batches.meta"), ("cifar10", ".bin", "batches.meta.txt")):
            train = tuple(place / f"data_batch_{number}{suffix}" for number in range(1, 6))
            if any(path.is_file() for path in train):
                return _complete(Batches(name, place, train, place / f"test_batch{suffix}", place / labels, not suffix))
        for suffix, labels in (("", "meta"), (".bin", "fine_label_names.txt")):
            train_path, test = place / f"train{suffix}", place / f"test{suffix}"
            if train_path.is_file() and (test.is_file() or (place / labels).is_file()):
                return _complete(Batches("cifar100", place, (train_path,), test, place / labels, not suffix))
    return None


def read_cifar(batches: Batches) -> RawImages:
    """CIFAR-10 or CIFAR-100 (fine labels) with its own test part."""
    read = _read_pickle if batches.is_pickle else _read_binary
    is_fine = batches.name == "cifar100"
    parts = [read(path, is_fine) for path in batches.train]
    pool = RawPart(np.concatenate([p.images for p in parts]), np.concatenate([p.labels for p in parts]))
    test = read(batches.test, is_fine)
    names = _class_names(batches)
    return RawImages(
        batches.name, str(batches.folder), check_classes([pool, test], names, str(batches.folder)), pool, test=test
    )


def _complete(batches: Batches) -> Batches:
    """The batches, after checking that no file is missing."""
    missing = [path.name for path in (*batches.train, batches.test, batches.names) if not path.is_file()]
    if missing:
        raise DataError(
            f"{batches.folder}: looks like {batches.name} but lacks {', '.join(missing)}; unpack the archive again"
        )
    return batches


def _read_binary(path: Path, is_fine: bool) -> RawPart:
    """Records of one label byte (CIFAR-100: coarse, then fine) and 3,072 pixel bytes."""
    label_bytes = 2 if is_fine else 1
    record_bytes = label_bytes + _IMAGE_BYTES
    content = path.read_bytes()
    if not content or len(content) % record_bytes:
        raise DataError(
            f"{path}: {len(content):,} bytes; must be a multiple of {record_bytes:,}, the size of a record; unpack the archive again"
        )
    records = np.frombuffer(content, dtype=np.uint8).reshape(-1, record_bytes)
    return RawPart(_planes_to_images(records[:, label_bytes:]), records[:, label_bytes - 1].astype(np.int64))


def _read_pickle(path: Path, is_fine: bool) -> RawPart:
    batch = load_pickle(path)
    if not isinstance(batch, dict):
        raise DataError(f"{path}: holds a {type(batch).__name__}, not a CIFAR batch (a dict of data and labels)")
    data, labels = _entry(batch, "data", path), _entry(batch, "fine_labels" if is_fine else "labels", path)
    if not isinstance(data, PickledArray) or len(data.shape) != 2 or data.shape[1] != _IMAGE_BYTES:
        shape = data.shape if isinstance(data, PickledArray) else type(data).__name__
        raise DataError(f"{path}: data is {shape}; must be an array of bytes of shape (images, {_IMAGE_BYTES})")
    if not isinstance(labels, list) or not all(type(label) is int and 0 <= label < 256 for label in labels):
        raise DataError(f"{path}: labels must be a list of class indices 0, 1, ...")
    images = _planes_to_images(data.array())
    return RawPart(images, check_labels(np.array(labels, dtype=np.int64), len(images), str(path)))


def _planes_to_images(rows: np.ndarray) -> np.ndarray:
    """Rows of 1,024 red, green, then blue bytes as (image, row, column, channel)."""
    return np.ascontiguousarray(rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))


def _class_names(batches: Batches) -> tuple[str, ...]:
    if not batches.is_pickle:
        lines = batches.names.read_text(encoding="utf-8").split("\n")
        return tuple(line.strip() for line in lines if line.strip())
    meta = load_pickle(batches.names)
    names = _entry(meta, "fine_label_names" if batches.name == "cifar100" else "label_names", batches.names)
    if not isinstance(names, list) or not all(isinstance(name, str | bytes) for name in names):
        raise DataError(f"{batches.names}: class names must be a list of text")
    return tuple(name.decode("ascii", "replace") if isinstance(name, bytes) else name for name in names)


def _entry(batch: Any, key: str, path: Path) -> Any:
    """An entry whose key is text, or bytes as Python 2 wrote it."""
    if isinstance(batch, dict):
        for spelled in (key, key.encode()):
            if spelled in batch:
                return batch[spelled]
    raise DataError(f"{path}: has no entry '{key}'; not a CIFAR batch")


class PickledArray:
    """What a pickle says about an array: enough to rebuild one of bytes, and no way to build anything else."""

    def __init__(self) -> None:
        self.shape: tuple[int, ...] = ()
        self.content = b""

    def __setstate__(self, state: Any) -> None:
        # NumPy's state: (version, shape, dtype, is_fortran_order, bytes).
        _, shape, dtype, is_fortran, content = state
        if not isinstance(dtype, PickledType) or dtype.code != "u1" or is_fortran or not isinstance(content, bytes):
            raise pickle.UnpicklingError("an array that is not plain unsigned bytes")
        if not all(type(n) is int and n >= 0 for n in shape) or int(np.prod(shape, dtype=object)) != len(content):
            raise pickle.UnpicklingError(f"an array of shape {shape} with {len(content)} bytes")
        self.shape, self.content = tuple(shape), content

    def array(self) -> np.ndarray:
        """The bytes in their shape."""
        return np.frombuffer(self.content, dtype=np.uint8).reshape(self.shape)


class PickledType:
    """What a pickle says about an array's type: its code, such as u1."""

    def __init__(self, code: Any, *_: Any) -> None:
        self.code = code.decode("ascii", "replace") if isinstance(code, bytes) else code

    def __setstate__(self, state: Any) -> None:
        pass  # byte order and alignment: one-byte values have none


def load_pickle(path: Path) -> Any:
    """Numbers, text, lists, dicts and arrays of bytes from a pickle; anything else in it is refused before it is built."""
    try:
        with path.open("rb") as file:
            return _Unpickler(file, encoding="bytes").load()
    except _RefusedNameError as fault:
        raise DataError(
            f"{path}: its pickle asks for {fault}, which is not part of a CIFAR batch and was not loaded; "
            "do not trust this file: download it from the data set's page"
        ) from fault
    except (
        pickle.UnpicklingError, EOFError, OSError, ValueError, TypeError, KeyError, IndexError, AttributeError, MemoryError,
        OverflowError, RecursionError,
    ) as fault:  # fmt: skip
        raise DataError(f"{path}: cannot be read as a CIFAR batch ({fault}); unpack the archive again") from fault


class _RefusedNameError(Exception):
    """A pickle asked for a name outside the few that arrays need."""


class _NotBuilt:
    """Stands for numpy.ndarray where a pickle passes it around; it can't be called."""


def _reconstruct(kind: Any, shape: Any, _typecode: Any) -> PickledArray:
    if kind is not _ARRAY_CLASS or tuple(shape) != (0,):
        raise pickle.UnpicklingError("an array built in an unusual way")
    return PickledArray()


def _encode(text: Any, encoding: Any) -> bytes:
    # Python 3 writes bytes into old-protocol pickles as text with the instruction to encode it.
    if not isinstance(text, str) or encoding not in ("latin1", b"latin1"):
        raise pickle.UnpicklingError("an unusual text encoding")
    return text.encode("latin1")


_ARRAY_CLASS = _NotBuilt()
_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy", "ndarray"): _ARRAY_CLASS,
    ("numpy", "dtype"): PickledType,
    ("_codecs", "encode"): _encode,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise _RefusedNameError(f"'{module}.{name}'")
        return _ALLOWED[module, name]

    def persistent_load(self, pid: Any) -> Any:
        raise _RefusedNameError(f"the persistent object {pid!r}")

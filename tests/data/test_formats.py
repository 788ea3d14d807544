from __future__ import annotations

import gzip
import io
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset, IterableDataset

from data.files import cycle_labels, idx_bytes, random_images, shared_data
from lilliput.data import load_images
from lilliput.errors import DataError

# --- NPZ


@pytest.mark.parametrize("keys", [("x", "y"), ("images", "labels"), ("data", "target"), ("X", "y")])
def test_npz_arrays_are_found_under_their_usual_names(tmp_path: Path, keys: tuple[str, str]):
    np.savez(tmp_path / "d.npz", **{keys[0]: random_images(30)[..., 0], keys[1]: cycle_labels(30, 3)})
    data = load_images(tmp_path / "d.npz")
    assert data.image_shape == (6, 6, 1)
    assert data.class_names == ("0", "1", "2")


def test_npz_keeps_its_own_test_part_and_class_names(tmp_path: Path):
    x_test, y_test = random_images(8, channels=3, seed=5), cycle_labels(8).astype(np.uint8)
    np.savez(
        tmp_path / "d.npz",
        x_train=random_images(30, channels=3),
        y_train=cycle_labels(30).reshape(-1, 1),
        x_test=x_test,
        y_test=y_test,
        classes=np.array(["no", "yes"]),
    )
    data = load_images(tmp_path)  # a folder with one NPZ file in it
    assert data.class_names == ("no", "yes")
    assert np.array_equal(data.test.images, x_test)
    assert data.test.labels.tolist() == y_test.tolist()


def test_npz_text_labels_become_classes_in_alphabetical_order(tmp_path: Path):
    np.savez(tmp_path / "d.npz", x=random_images(20), y=np.array(["dog", "cat"] * 10))
    data = load_images(tmp_path / "d.npz")
    assert data.class_names == ("cat", "dog")
    assert set(data.train.labels.tolist()) == {0, 1}


def test_float_images_that_were_divided_by_255_come_back_exactly(tmp_path: Path):
    images = random_images(20)
    np.savez(tmp_path / "a.npz", x=images, y=cycle_labels(20))
    np.savez(tmp_path / "b.npz", x=images.astype(np.float32) / np.float32(255), y=cycle_labels(20))
    a, b = load_images(tmp_path / "a.npz"), load_images(tmp_path / "b.npz")
    assert np.array_equal(a.train.images, b.train.images)


IMAGES, LABELS = random_images(20), cycle_labels(20)
NOT_FINITE = np.where(np.arange(20)[:, None, None, None] == 3, np.nan, np.float32(0.5)) * np.ones((20, 6, 6, 1))
BAD_NPZ: list[tuple[str, dict[str, Any], str]] = [
    ("names", {"pictures": IMAGES}, r"holds the arrays pictures; needs images and labels under one of \(x_train"),
    ("complex", {"x": IMAGES.astype(complex), "y": LABELS}, r"'x': pixels are complex128; must be uint8"),
    (
        "negative",
        {"x": IMAGES.astype(np.int16) - 5, "y": LABELS},
        r"'x': int16 pixels go from -5 to 250; integers must lie in 0",
    ),
    (
        "floats",
        {"x": IMAGES.astype(float), "y": LABELS},
        r"'x': float pixels go from 0 to 255; floats must lie in 0 to 1",
    ),
    (
        "nan",
        {"x": NOT_FINITE, "y": LABELS},
        r"'x': the pixel at index \(3, 0, 0, 0\) is nan; every pixel must be finite",
    ),
    (
        "flat",
        {"x": IMAGES.reshape(20, -1), "y": LABELS},
        r"'x': images have shape \(20, 36\); must be \(image, row, column\)",
    ),
    ("planes", {"x": np.zeros((20, 3, 8, 8), np.uint8), "y": LABELS}, r"try x.transpose\(0, 2, 3, 1\)"),
    ("length", {"x": IMAGES, "y": LABELS[:19]}, r"'y': 19 labels for 20 images; must be one label per image"),
    (
        "float labels",
        {"x": IMAGES, "y": LABELS.astype(float)},
        r"'y': labels are float64; must be integers.*astype\(int\)",
    ),
    (
        "one-hot",
        {"x": IMAGES, "y": np.eye(2, dtype=int)[LABELS]},
        r"'y': labels have shape \(20, 2\).*argmax\(axis=1\)",
    ),
    ("negative labels", {"x": IMAGES, "y": LABELS - 1}, r"'y': label -1 of image 0 is negative"),
    ("gap", {"x": IMAGES, "y": LABELS * 2}, r"labels go up to 2, but no image has label 1 \(2 classes have images\)"),
    ("one class", {"x": IMAGES, "y": LABELS * 0}, r"only one class \(label 0\) has images"),
    (
        "unnamed",
        {"x": IMAGES, "y": LABELS, "classes": np.array(["a"])},
        r"label 1 has no name: there are 1 class names",
    ),
    ("objects", {"x": IMAGES, "y": np.array([{}] * 20)}, r"cannot be read as an NPZ archive of plain arrays"),
]


@pytest.mark.parametrize(("content", "message"), [row[1:] for row in BAD_NPZ], ids=[row[0] for row in BAD_NPZ])
def test_a_bad_npz_is_refused_with_its_name_and_the_fix(tmp_path: Path, content: dict[str, Any], message: str):
    path = tmp_path / "bad.npz"
    np.savez(path, **content)
    with pytest.raises(DataError, match=message) as caught:
        load_images(path)
    assert str(caught.value).startswith(str(path))


def test_every_truncation_of_an_npz_is_refused(tmp_path: Path):
    path = tmp_path / "d.npz"
    np.savez_compressed(path, x=IMAGES, y=LABELS)
    content = path.read_bytes()
    for length in range(0, len(content), 41):
        path.write_bytes(content[:length])
        with pytest.raises(DataError, match=r"d\.npz: cannot be read as an NPZ archive"):
            load_images(path)


# --- IDX


def write_idx(folder: Path, prefix: str, images: np.ndarray, labels: np.ndarray, zipped: bool = False) -> None:
    folder.mkdir(exist_ok=True)
    for name, array in (("images-idx3", images[..., 0]), ("labels-idx1", labels)):
        content = idx_bytes(array)
        path = folder / f"{prefix}-{name}-ubyte{'.gz' if zipped else ''}"
        path.write_bytes(gzip.compress(content) if zipped else content)


@pytest.mark.parametrize("zipped", [False, True])
def test_idx_pairs_are_found_by_name_and_t10k_is_the_test_part(tmp_path: Path, zipped: bool):
    test_images = random_images(10, seed=1)
    write_idx(tmp_path / "mnist", "train", random_images(40), cycle_labels(40), zipped)
    write_idx(tmp_path / "mnist", "t10k", test_images, cycle_labels(10), zipped)
    data = load_images(tmp_path / "mnist")
    assert data.name == "mnist"
    assert np.array_equal(data.test.images, test_images)
    assert len(data.train) + len(data.val) == 40
    suffix = ".gz" if zipped else ""
    alone = load_images(tmp_path / "mnist" / f"t10k-images-idx3-ubyte{suffix}")
    assert len(alone.train) + len(alone.val) + len(alone.test) == 10


def test_a_bad_idx_file_is_refused_with_its_name_and_the_fix(tmp_path: Path):
    write_idx(tmp_path, "train", random_images(40), cycle_labels(40))
    images, labels = tmp_path / "train-images-idx3-ubyte", tmp_path / "train-labels-idx1-ubyte"
    good = images.read_bytes()
    for content, message in (
        (good[:-1], r"truncated: its header announces 40x6x6 values, so 1,456 bytes, but it has 1,455"),
        (good + b"x", r"too long: .* but it has 1,457"),
        (good[:9], r"truncated: 9 bytes, its header alone is 16"),
        (
            labels.read_bytes(),
            r"starts with 0x00000801; .* 3 axes starts with 0x00000803; check that images and labels",
        ),
        (gzip.compress(good)[:-9], r"cannot be read"),
        (b"\x1f\x8bxx", r"cannot be read"),
    ):
        images.write_bytes(content)
        with pytest.raises(DataError, match=message) as caught:
            load_images(tmp_path)
        assert str(caught.value).startswith(str(images))
    images.write_bytes(good)
    labels.write_bytes(idx_bytes(cycle_labels(39)))
    with pytest.raises(DataError, match=r"train-labels-idx1-ubyte: 39 labels for 40 images"):
        load_images(tmp_path)
    labels.unlink()
    with pytest.raises(DataError, match=r"needs one training pair of IDX files.*it holds train-images-idx3-ubyte"):
        load_images(tmp_path)
    with pytest.raises(DataError, match=r"no matching images and labels"):
        load_images(images)


# --- CIFAR


def planes(images: np.ndarray) -> np.ndarray:
    return images.transpose(0, 3, 1, 2).reshape(len(images), -1)


def write_cifar10(folder: Path, as_pickle: bool, protocol: int = 2) -> tuple[np.ndarray, np.ndarray]:
    images, labels = random_images(60, 32, 32, 3), cycle_labels(60, 10)
    names = [f"class{n}" for n in range(10)]
    parts = [(f"data_batch_{n + 1}", slice(10 * n, 10 * n + 10)) for n in range(5)] + [("test_batch", slice(50, 60))]
    folder.mkdir(exist_ok=True)
    for name, part in parts:
        if as_pickle:
            batch = {b"data": planes(images[part]), b"labels": labels[part].tolist(), b"batch_label": b"a batch"}
            (folder / name).write_bytes(pickle.dumps(batch, protocol=protocol))
        else:
            records = np.concatenate([labels[part, None].astype(np.uint8), planes(images[part])], axis=1)
            (folder / f"{name}.bin").write_bytes(records.tobytes())
    if as_pickle:
        (folder / "batches.meta").write_bytes(pickle.dumps({b"label_names": [n.encode() for n in names]}, protocol=2))
    else:
        (folder / "batches.meta.txt").write_text("\n".join(names) + "\n\n")
    return images, labels


@pytest.mark.parametrize("as_pickle", [True, False])
def test_cifar10_batches_arrive_as_stored_with_their_own_test_part(tmp_path: Path, as_pickle: bool):
    images, labels = write_cifar10(tmp_path / "cifar-10-batches-py", as_pickle)
    data = load_images(tmp_path)
    assert data.name == "cifar10"
    assert data.class_names[3] == "class3"
    assert np.array_equal(data.test.images, images[50:])
    assert np.array_equal(data.test.labels, labels[50:])
    seen = {image.tobytes() for split in (data.train, data.val) for image in split.images}
    assert seen == {image.tobytes() for image in images[:50]}


@pytest.mark.parametrize("as_pickle", [True, False])
def test_cifar100_uses_the_fine_labels(tmp_path: Path, as_pickle: bool):
    for part, count in (("train", 40), ("test", 10)):
        images, fine = random_images(count, 32, 32, 3, seed=count), cycle_labels(count, 5)
        if as_pickle:
            batch = {b"data": planes(images), b"fine_labels": fine.tolist(), b"coarse_labels": [0] * count}
            (tmp_path / part).write_bytes(pickle.dumps(batch, protocol=2))
        else:
            both = np.stack([np.zeros(count, int), fine], axis=1).astype(np.uint8)
            (tmp_path / f"{part}.bin").write_bytes(np.concatenate([both, planes(images)], axis=1).tobytes())
    names = list("abcde")
    (tmp_path / "meta").write_bytes(pickle.dumps({b"fine_label_names": [n.encode() for n in names]}, protocol=2))
    (tmp_path / "fine_label_names.txt").write_text("\n".join(names))
    data = load_images(tmp_path)
    assert data.name == "cifar100"
    assert data.class_names == tuple("abcde")
    assert np.bincount(data.test.labels).tolist() == [2] * 5


def test_a_pickle_as_python_2_wrote_it_is_read(tmp_path: Path):
    """Hand-written protocol 0 to 2 opcodes, as in the files on the data set's page: text is bytes, the array is numpy.core's."""
    write_cifar10(tmp_path, as_pickle=True)
    pixels = planes(random_images(2, 32, 32, 3)).tobytes()
    stream = io.BytesIO()
    stream.write(b"\x80\x02}(U\x04datacnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R")
    stream.write(
        b"(K\x01K\x02M\x00\x0c\x86cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89"
    )
    stream.write(b"T" + len(pixels).to_bytes(4, "little") + pixels + b"tbU\x06labels](K\x00K\x01eu.")
    (tmp_path / "data_batch_1").write_bytes(stream.getvalue())
    data = load_images(tmp_path)
    assert len(data.train) + len(data.val) == 42


class Exploit:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("echo pwned > pwned",)


def object_array_exploit() -> bytes:
    return pickle.dumps({b"data": np.array([Exploit()], dtype=object), b"labels": [0]}, protocol=2)


@pytest.mark.parametrize(
    "content",
    [
        pickle.dumps(Exploit(), protocol=0),
        pickle.dumps({b"data": Exploit(), b"labels": []}, protocol=2),
        object_array_exploit(),
        b'cbuiltins\neval\n(S\'open("pwned","w")\'\ntR.',
        b"cnumpy\nload\n(S'x'\ntR.",
    ],
)
def test_a_pickle_that_asks_for_anything_else_is_refused_and_runs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
):
    monkeypatch.chdir(tmp_path)
    write_cifar10(tmp_path / "c", as_pickle=True)
    (tmp_path / "c" / "data_batch_2").write_bytes(content)
    with pytest.raises(DataError, match=r"data_batch_2: its pickle asks for '.*', which is not part of a CIFAR batch"):
        load_images(tmp_path / "c")
    assert not (tmp_path / "pwned").exists()


def test_arrays_that_lie_about_themselves_are_refused(tmp_path: Path):
    write_cifar10(tmp_path, as_pickle=True)
    for data in (
        np.zeros((2, 3072), np.float64),  # not bytes
        np.zeros((2, 3071), np.uint8),
        np.asfortranarray(np.zeros((2, 3072), np.uint8)),
        np.zeros((2, 3072), ">u2"),
        [1, 2],
    ):
        (tmp_path / "data_batch_1").write_bytes(pickle.dumps({b"data": data, b"labels": [0, 1]}, protocol=2))
        with pytest.raises(DataError, match=r"data_batch_1: "):
            load_images(tmp_path)


def test_damaged_cifar_files_are_refused_by_name(tmp_path: Path):
    write_cifar10(tmp_path / "p", as_pickle=True)
    batch = tmp_path / "p" / "data_batch_3"
    content = batch.read_bytes()
    for length in [*range(0, 400, 13), len(content) // 2]:
        batch.write_bytes(content[:length])
        with pytest.raises(DataError, match=r"data_batch_3: cannot be read as a CIFAR batch"):
            load_images(tmp_path / "p")
    rng = np.random.default_rng(0)
    for _ in range(200):  # a flipped byte is refused or read, and nothing else
        position = int(rng.integers(0, 250))
        flipped = content[:position] + bytes([content[position] ^ int(rng.integers(1, 256))]) + content[position + 1 :]
        batch.write_bytes(flipped)
        try:
            load_images(tmp_path / "p")
        except DataError:
            continue
    batch.unlink()
    with pytest.raises(DataError, match=r"looks like cifar10 but lacks data_batch_3; unpack the archive again"):
        load_images(tmp_path / "p")
    write_cifar10(tmp_path / "b", as_pickle=False)
    short = tmp_path / "b" / "data_batch_4.bin"
    short.write_bytes(short.read_bytes()[:-5])
    with pytest.raises(DataError, match=r"data_batch_4\.bin: 30,725 bytes; must be a multiple of 3,073"):
        load_images(tmp_path / "b")


# --- torch Datasets


class Pairs(Dataset):
    def __init__(self, items: list[Any], classes: list[str] | None = None) -> None:
        self.items = items
        if classes is not None:
            self.classes = classes

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        return self.items[index]


IMAGES_RGB = random_images(20, 5, 7, 3)
KINDS = {
    "Pillow": lambda image: Image.fromarray(image),
    "array": lambda image: image,
    "byte tensor": lambda image: torch.from_numpy(image.transpose(2, 0, 1).copy()),
    "float tensor": lambda image: torch.from_numpy(image.transpose(2, 0, 1).copy()).float() / 255,
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_torch_dataset_of_any_image_type_gives_the_same_images(kind: str):
    items = [(KINDS[kind](image), torch.tensor(i % 2) if i % 3 else i % 2) for i, image in enumerate(IMAGES_RGB)]
    data = load_images(Pairs(items, ["no", "yes"]))
    assert data.class_names == ("no", "yes")
    seen = {image.tobytes() for split in (data.train, data.val, data.test) for image in split.images}
    assert seen == {image.tobytes() for image in IMAGES_RGB}
    assert load_images(Pairs(items), image_size=4, channels=1).image_shape == (4, 4, 1)


GREY = random_images(1)[0]
BAD_DATASETS: list[tuple[list[Any], str]] = [
    ([], r"Pairs: is empty"),
    ([GREY], r"Pairs item 0: is a ndarray, not a pair"),
    ([(GREY, 0), ("x", 1)], r"Pairs item 1: its image is a str"),
    ([(GREY, 0), (GREY, "dog")], r"Pairs item 1: its label is 'dog'; must be a class index"),
    ([(GREY, 0), (random_images(1, 7, 7)[0], 1)], r"Pairs item 1: is 7x7x1, item 0 is 6x6x1.*try image_size="),
    ([(torch.full((1, 2, 2), float("inf")), 0)], r"Pairs item 0: the pixel at index .* is inf"),
    ([(torch.full((1, 2, 2), 2.0), 0)], r"Pairs item 0: float pixels go from 2 to 2"),
]


@pytest.mark.parametrize(("items", "message"), BAD_DATASETS)
def test_a_bad_dataset_names_the_item(items: list[Any], message: str):
    with pytest.raises(DataError, match=message):
        load_images(Pairs(items))


def test_what_is_no_map_style_dataset_is_refused():
    class Stream(IterableDataset):
        def __iter__(self):
            yield GREY, 0

    for source in (Stream(), 42, None):
        with pytest.raises(
            DataError, match=r"cannot load images from a (Stream|int|NoneType); allowed: a name, a path"
        ):
            load_images(source)


# --- real files, where they are at hand


@pytest.mark.skipif(not (shared_data() / "mnist-t10k").is_dir(), reason="no ../shared/data/mnist-t10k")
def test_the_real_mnist_test_file_loads():
    data = load_images(shared_data() / "mnist-t10k")
    assert data.image_shape == (28, 28, 1)
    # Class counts of the MNIST test set, as published.
    counts = sum(np.bincount(split.labels) for split in (data.train, data.val, data.test))
    assert counts.tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]


@pytest.mark.skipif(not (shared_data() / "cifar10").is_dir(), reason="no ../shared/data/cifar10")
def test_the_real_cifar_archive_loads():
    data = load_images(shared_data() / "cifar10", limit=1200, image_size=16)
    assert data.input_shape == (3, 16, 16)
    assert (len(data.train) + len(data.val), len(data.test)) == (1000, 200)
    assert data.class_names[0] == "airplane"


def test_class_folders_beside_an_npz_file_are_ambiguous(tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
    np.savez(tmp_path / "embeddings.npz", x=np.zeros((4, 8, 8), np.uint8), y=np.arange(4) % 2)
    with pytest.raises(DataError, match=r"holds folders \(cat, dog\) and embeddings\.npz"):
        load_images(str(tmp_path))

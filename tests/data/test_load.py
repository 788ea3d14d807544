from __future__ import annotations

import doctest
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import lilliput.data.load
from data.files import random_images
from lilliput.data import ImageSplit, load_images
from lilliput.data.pixels import convert_channels, resize_images
from lilliput.errors import ConfigError, DataError


def test_digits_are_scikit_learns_with_levels_spread_over_bytes():
    from sklearn.datasets import load_digits

    data = load_images("digits")
    assert data.image_shape == (8, 8, 1)
    assert (len(data.train), len(data.val), len(data.test)) == (1259, 179, 359)
    expected = {round(Fraction(255 * level, 16) + Fraction(1, 10**9)) for level in range(17)}
    assert set(np.unique(data.train.images).tolist()) == expected
    stored = sorted(np.floor(image * 255 / 16 + 0.5).astype(np.uint8).tobytes() for image in load_digits().images)
    assert stored == sorted(i.tobytes() for s in (data.train, data.val, data.test) for i in s.images)
    assert data.class_names == tuple("0123456789")


def test_the_digits_split_is_the_same_everywhere():
    """Fixed by hashing alone: a change here breaks every run that was ever reported."""
    import hashlib

    data = load_images("digits")
    assert hashlib.sha256(data.test.images.tobytes()).hexdigest()[:16] == "a9857fce8e38ace4"


def test_tensors_are_the_floats_nearest_to_byte_over_255():
    split = ImageSplit(np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1), np.zeros(1, np.int64))
    images, labels = split.tensors()
    assert images.dtype == torch.float32
    assert labels.dtype == torch.int64
    for byte, value in enumerate(images.flatten().tolist()):
        exact = Fraction(byte, 255)
        neighbours = np.nextafter(np.float32(value), np.array([-1, 2], dtype=np.float32))
        assert all(abs(Fraction(value) - exact) <= abs(Fraction(float(n)) - exact) for n in neighbours)


def test_tensors_are_in_channel_row_column_order():
    images = random_images(2, 3, 4, 3)
    tensors, _ = ImageSplit(images, np.zeros(2, np.int64)).byte_tensors()
    assert tensors.shape == (2, 3, 3, 4)
    assert int(tensors[1, 2, 0, 3]) == images[1, 0, 3, 2]


def test_batches_hold_every_image_once_and_repeat_by_seed_and_epoch():
    split = ImageSplit(np.arange(10, dtype=np.uint8).reshape(10, 1, 1, 1), np.arange(10))

    def order(**kw: int) -> list[int]:
        return [int(label) for _, labels in split.batches(4, **kw) for label in labels]

    assert [len(labels) for _, labels in split.batches(4)] == [4, 4, 2]
    assert order() == list(range(10))
    assert sorted(order(seed=1)) == list(range(10))
    assert order(seed=1, epoch=3) == order(seed=1, epoch=3)
    assert order(seed=1, epoch=3) != order(seed=1, epoch=4)
    for images, labels in split.batches(3, seed=0):
        assert torch.equal((images.flatten() * 255).round().long(), labels)
    with pytest.raises(DataError, match="batch_size=0"):
        next(split.batches(0))


def test_a_split_cannot_be_changed_and_leaves_the_callers_array_alone():
    images = random_images(2)
    split = ImageSplit(images, np.zeros(2, np.int64))
    with pytest.raises(ValueError, match="read-only"):
        split.images[0] = 0
    images[0] = 7


def test_grey_is_pillows_grey_and_resizing_is_pillows_bilinear():
    images = random_images(50, 9, 7, 3)
    grey = convert_channels(images, 1)
    for ours, colour in zip(grey, images, strict=True):
        assert np.array_equal(ours[..., 0], np.asarray(Image.fromarray(colour).convert("L")))
    small = resize_images(images, 5)
    expected = Image.fromarray(images[7]).resize((5, 5), Image.Resampling.BILINEAR)
    assert np.array_equal(small[7], np.asarray(expected))
    assert np.array_equal(convert_channels(grey, 3)[..., 2], grey[..., 0])


def test_unknown_names_list_what_is_known_and_what_is_close(tmp_path: Path):
    with pytest.raises(
        DataError, match=r"unknown data 'digit': known names are 'digits'; or a path to .*did you mean 'digits'\?"
    ):
        load_images("digit")
    (tmp_path / "flowers.npz").write_bytes(b"")
    with pytest.raises(DataError, match=r"did you mean '.*flowers\.npz'"):
        load_images(tmp_path / "flower.npz")
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(DataError, match=r"notes\.txt: not a data file that can be read; allowed: a folder with one"):
        load_images(tmp_path / "notes.txt")
    (tmp_path / "more.npz").write_bytes(b"")
    with pytest.raises(DataError, match=r"holds 2 NPZ files; give the path of one"):
        load_images(tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 0}, r"image_size=0: must be 1 to 4,096"),
        ({"channels": 2}, r"channels=2: must be 1 \(grey\) or 3"),
        ({"limit": 0}, r"limit=0: must be at least 1"),
        ({"seed": -1}, r"seed=-1: must be 0 or more"),
        ({"test_fraction": 1.5}, r"test_fraction=1.5: must be more than 0 and less than 1"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, float], message: str):
    with pytest.raises(ConfigError, match=message):
        load_images("digits", **options)


def test_a_limit_too_small_for_the_classes_says_so():
    with pytest.raises(DataError, match=r"class '\d' has 2 images, 2 of them distinct; needs at least 3"):
        load_images("digits", limit=20)


def test_importing_the_room_loads_nothing_heavy():
    heavy = "torch sklearn scipy PIL rich"
    code = f"import sys, lilliput.data; print([m for m in '{heavy}'.split() if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_the_examples_in_the_docstrings_are_true():
    results = doctest.testmod(lilliput.data.load, optionflags=doctest.ELLIPSIS)
    assert results.attempted
    assert not results.failed

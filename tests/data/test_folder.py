from __future__ import annotations

import random
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.files import cycle_labels, random_images, write_folder, write_png
from lilliput.data import load_images
from lilliput.data.folder import read_folder
from lilliput.errors import DataError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "pets", random_images(20), cycle_labels(20))


def read(path: Path, image_size: int | None = None, channels: int | None = None, limit: int | None = None):
    return read_folder(path, image_size=image_size, channels=channels, limit=limit)


def test_pixels_and_labels_arrive_as_stored(tmp_path: Path):
    images, labels = random_images(12, 5, 7, 3), cycle_labels(12)
    raw = read(write_folder(tmp_path, images, labels))
    assert raw.class_names == ("cat", "dog")
    assert np.array_equal(raw.pool.images, np.concatenate([images[labels == 0], images[labels == 1]]))
    assert raw.pool.labels.tolist() == [0] * 6 + [1] * 6


def test_files_written_in_another_order_give_the_same_split(tmp_path: Path):
    images, labels = random_images(40), cycle_labels(40)
    write_folder(tmp_path / "a", images, labels)
    files = [file.relative_to(tmp_path / "a") for file in (tmp_path / "a").rglob("*.png")]
    random.Random(1).shuffle(files)
    for file in files:
        (tmp_path / "b" / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(tmp_path / "a" / file, tmp_path / "b" / file)
    a, b = load_images(tmp_path / "a"), load_images(tmp_path / "b")
    for part in ("train", "val", "test"):
        assert np.array_equal(getattr(a, part).images, getattr(b, part).images)
        assert np.array_equal(getattr(a, part).labels, getattr(b, part).labels)


def test_images_of_mixed_sizes_are_stretched_to_a_square(tmp_path: Path):
    for index in range(6):
        flat = np.full((4 + index, 9 - index, 3), 30 * index, dtype=np.uint8)
        write_png(tmp_path / ("a" if index % 2 else "b") / f"{index}.png", flat)
    raw = read(tmp_path, image_size=5)
    assert raw.pool.images.shape == (6, 5, 5, 3)
    assert sorted(raw.pool.images[:, 2, 2, 0].tolist()) == [0, 30, 60, 90, 120, 150]


def test_mixed_sizes_without_image_size_name_two_files(folder: Path):
    odd = write_png(folder / "dog" / "odd.png", random_images(1, 8, 9)[0])
    with pytest.raises(DataError, match=r"is 6x6 pixels and .*odd\.png is 9x8 pixels.*try image_size=") as caught:
        read(folder)
    assert str(odd) in str(caught.value)


def test_grey_and_colour_mixed_name_both_files_and_the_fix(folder: Path):
    colour = write_png(folder / "dog" / "colour.png", random_images(1, channels=3)[0])
    with pytest.raises(DataError, match=r"is grey \(L\).*is colour \(RGB\).*channels=1.*channels=3") as caught:
        read(folder)
    assert str(colour) in str(caught.value)
    assert "cat" in str(caught.value)
    assert read(folder, channels=1).pool.images.shape == (21, 6, 6, 1)
    assert read(folder, channels=3).pool.images.shape == (21, 6, 6, 3)


def test_the_cameras_orientation_is_applied(tmp_path: Path):
    upright = np.zeros((16, 8, 3), dtype=np.uint8)
    upright[:8] = 255  # bright above
    for name in ("a", "b"):
        for index in range(2):
            (tmp_path / name).mkdir(exist_ok=True)
            stored = Image.fromarray(np.rot90(upright, 1).copy())  # as a camera held sideways stores it
            exif = Image.Exif()
            exif[0x0112] = 6  # "rotate 90 degrees clockwise to view"
            stored.save(tmp_path / name / f"{index}.jpg", exif=exif, quality=95)
    image = read(tmp_path).pool.images[0]
    assert image.shape == (16, 8, 3)
    assert image[:6].min() > 240
    assert image[10:].max() < 15


def test_transparent_pixels_are_laid_over_white(tmp_path: Path):
    pixels = np.zeros((4, 4, 4), dtype=np.uint8)
    pixels[:2, :, 3] = 255  # black above, fully transparent below
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Image.fromarray(pixels).save(tmp_path / name / "0.png")
    image = read(tmp_path).pool.images[0]
    assert image[:2].max() == 0
    assert image[2:].min() == 255


def test_sixteen_bit_grey_is_scaled_and_not_clipped(tmp_path: Path):
    wide = np.array([[0, 257, 32768, 65535]], dtype=np.uint16)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Image.fromarray(wide).save(tmp_path / name / "0.png")
    assert read(tmp_path).pool.images[0, 0, :, 0].tolist() == [0, 1, 128, 255]


def test_upper_case_suffixes_and_nested_folders_are_read(folder: Path):
    write_png(folder / "dog" / "session 2" / "more.PNG", random_images(1, seed=9)[0])
    assert len(read(folder).pool) == 21


def test_an_unreadable_image_is_named(folder: Path):
    for content, name in ((b"not an image", "text.png"), (b"", "empty.jpg")):
        bad = folder / "cat" / name
        bad.write_bytes(content)
        with pytest.raises(DataError, match=r"cannot be read as a PNG or JPEG image.*replace or remove") as caught:
            read(folder)
        assert str(caught.value).startswith(str(bad))
        bad.unlink()


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_a_truncated_image_is_refused_unless_all_its_pixels_are_there(tmp_path: Path, suffix: str):
    write_folder(tmp_path, random_images(4, 12, 12, 3), cycle_labels(4))
    bad = tmp_path / "cat" / f"bad.{suffix}"
    Image.fromarray(random_images(1, 12, 12, 3)[0]).save(bad)
    content, whole = bad.read_bytes(), read(tmp_path).pool.images
    refusals = []
    for length in range(0, len(content), 7):
        bad.write_bytes(content[:length])
        try:
            assert np.array_equal(read(tmp_path).pool.images, whole)  # only a checksum was cut off
        except DataError as fault:
            refusals.append(str(fault))
    assert len(refusals) >= len(content) // 7 - 4
    assert all(str(bad) in message for message in refusals)


def test_flipped_bytes_never_escape_as_another_error(tmp_path: Path):
    write_folder(tmp_path, random_images(4, 12, 12, 3), cycle_labels(4))
    content = (tmp_path / "cat" / "0000.png").read_bytes()
    bad = tmp_path / "cat" / "bad.png"
    refusals = []
    for position in range(120):
        bad.write_bytes(content[:position] + bytes([content[position] ^ 0xFF]) + content[position + 1 :])
        try:
            read(tmp_path)
        except DataError as fault:
            refusals.append(str(fault))
    assert refusals
    assert all(str(bad) in message for message in refusals)


def test_an_empty_class_folder_is_named(folder: Path):
    (folder / "bird").mkdir()
    with pytest.raises(DataError, match=r"bird: class folder without images; put PNG or JPEG"):
        read(folder)


def test_one_class_is_refused(tmp_path: Path):
    write_folder(tmp_path, random_images(4), np.zeros(4, dtype=int))
    with pytest.raises(DataError, match=r"only one class folder, 'cat'"):
        read(tmp_path)


def test_a_folder_without_class_folders_is_refused(tmp_path: Path):
    with pytest.raises(DataError, match=r"holds no folders; needs one folder per class"):
        load_images(tmp_path)


def test_image_formats_that_are_not_read_are_named_and_other_files_are_noted(folder: Path):
    (folder / "cat" / "labels.txt").write_text("x")
    (folder / "cat" / ".DS_Store").write_text("x")
    raw = read(folder)
    assert len(raw.pool) == 20
    assert raw.notes == ("1 files that are no PNG or JPEG were passed over, such as cat/labels.txt",)
    (folder / "cat" / "photo.webp").write_bytes(b"RIFF")
    with pytest.raises(DataError, match=r"photo\.webp: \.webp files are not read; allowed: \.png.*convert it to PNG"):
        read(folder)


def test_folders_named_train_and_test_are_parts(tmp_path: Path):
    write_folder(tmp_path / "train", random_images(20), cycle_labels(20))
    write_folder(tmp_path / "test", random_images(6, seed=1), cycle_labels(6))
    data = load_images(tmp_path)
    assert data.class_names == ("cat", "dog")
    assert (len(data.train), len(data.val), len(data.test)) == (18, 2, 6)
    shutil.rmtree(tmp_path / "test" / "dog")
    with pytest.raises(DataError, match=r"test: has no folder 'dog'"):
        load_images(tmp_path)


def test_a_limit_reads_only_as_many_files(folder: Path, monkeypatch: pytest.MonkeyPatch):
    opened: list[str] = []
    real_open = Image.open
    monkeypatch.setattr(Image, "open", lambda path, **kw: (opened.append(str(path)), real_open(path, **kw))[1])
    data = load_images(folder, limit=10)
    assert len(opened) == 10
    assert len(data.train) + len(data.val) + len(data.test) == 10


def test_many_files_show_a_bar_and_quiet_shows_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    write_folder(tmp_path, random_images(502, 2, 2), cycle_labels(502))
    load_images(tmp_path, progress=False)
    assert capsys.readouterr().err == ""
    load_images(tmp_path)
    assert "reading images" in capsys.readouterr().err

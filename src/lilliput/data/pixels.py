"""Pixels of any kind to uint8 (row, column, channel): the one place where values, channels and sizes are converted."""

from __future__ import annotations

from typing import Any

import numpy as np

from lilliput.errors import DataError


def to_bytes(values: np.ndarray, where: str) -> np.ndarray:
    """Pixel values as uint8.

    uint8 passes through; other integers must lie in 0 to 255; booleans become 0 and 255; floats must lie in 0 to 1 and become
    ``round(255 * value)``, which undoes a division by 255 exactly.
    """
    if values.dtype == np.uint8:
        return values
    if values.dtype == np.bool_:
        return values.astype(np.uint8) * np.uint8(255)
    if np.issubdtype(values.dtype, np.floating):
        if not np.isfinite(values).all():
            index = tuple(int(i) for i in np.argwhere(~np.isfinite(values))[0])
            raise DataError(f"{where}: the pixel at index {index} is {values[index]}; every pixel must be finite")
        if values.size and (values.min() < 0 or values.max() > 1):
            raise DataError(
                f"{where}: float pixels go from {values.min():.6g} to {values.max():.6g}; floats must lie in 0 to 1 "
                "(they become bytes by round(255 * x)); undo any normalisation, or store uint8 0 to 255"
            )
        return np.rint(values.astype(np.float64) * 255).astype(np.uint8)
    if np.issubdtype(values.dtype, np.integer):
        if values.size and (values.min() < 0 or values.max() > 255):
            raise DataError(
                f"{where}: {values.dtype} pixels go from {values.min()} to {values.max()}; integers must lie in 0 to 255; "
                "rescale them and store uint8"
            )
        return values.astype(np.uint8)
    raise DataError(f"{where}: pixels are {values.dtype}; must be uint8 0 to 255, or floats 0 to 1")


def as_image_batch(values: np.ndarray, where: str) -> np.ndarray:
    """An array of images as uint8 (image, row, column, channel), from (image, row, column) or with a last axis of 1 or 3."""
    if values.ndim == 3:
        values = values[..., None]
    if values.ndim != 4 or values.shape[3] not in (1, 3):
        hint = (
            "it looks like (image, channel, row, column): try x.transpose(0, 2, 3, 1)"
            if values.ndim == 4 and values.shape[1] in (1, 3)
            else "reshape it to rows and columns of pixels"
        )
        raise DataError(
            f"{where}: images have shape {values.shape}; must be (image, row, column) or (image, row, column, channel) "
            f"with 1 or 3 channels; {hint}"
        )
    if 0 in values.shape[1:]:
        raise DataError(f"{where}: images have shape {values.shape}; every image needs at least one row and one column")
    return to_bytes(values, where)


def convert_channels(images: np.ndarray, channels: int | None) -> np.ndarray:
    """Grey to colour by repeating, colour to grey by ITU-R 601 luma with Pillow's rounding; None leaves them.

    Source: Pillow, ``Image.convert("L")``: (19595 R + 38470 G + 7471 B + 2**15) >> 16.
    """
    if channels is None or images.shape[-1] == channels:
        return images
    if channels == 3:
        return np.repeat(images, 3, axis=-1)
    luma = images.astype(np.uint32) @ np.array([19595, 38470, 7471], dtype=np.uint32)
    return ((luma + 0x8000) >> 16).astype(np.uint8)[..., None]


def resize_images(images: np.ndarray, image_size: int | None) -> np.ndarray:
    """Every image stretched to image_size x image_size by Pillow's bilinear filter; None leaves them.

    The filter widens when it shrinks an image (so nothing aliases) and computes in integers, the same on every machine.
    """
    if image_size is None or images.shape[1:3] == (image_size, image_size):
        return images
    from PIL import Image

    out = np.empty((len(images), image_size, image_size, images.shape[3]), dtype=np.uint8)
    for index, image in enumerate(images):
        picture = Image.fromarray(image[..., 0] if image.shape[2] == 1 else image)
        out[index] = pil_to_array(resize_picture(picture, image_size))
    return out


def resize_picture(picture: Any, image_size: int) -> Any:
    """A Pillow image stretched to a square, bilinear."""
    from PIL import Image

    return picture.resize((image_size, image_size), Image.Resampling.BILINEAR)


def pil_to_array(picture: Any) -> np.ndarray:
    """A Pillow image of mode L or RGB as uint8 (row, column, channel)."""
    array = np.asarray(picture, dtype=np.uint8)
    return array[..., None] if array.ndim == 2 else array


def flatten_picture(picture: Any, channels: int | None) -> Any:
    """A Pillow image of any mode as L (grey) or RGB.

    Transparent pixels are laid over white, as a page would show them. Sixteen-bit grey is scaled by 1/257, so that 65535 is 255.
    """
    from PIL import Image

    if picture.mode.startswith("I"):
        wide = np.asarray(picture).astype(np.int64)
        picture = Image.fromarray(((np.clip(wide, 0, 65535) + 128) // 257).astype(np.uint8))
    is_grey = picture.mode in ("1", "L", "LA", "La")
    if picture.has_transparency_data:
        ground = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(ground, picture.convert("RGBA"))
        # Composite of equal channels over white has equal channels, so grey stays grey to the bit.
        picture = picture.convert("RGB").getchannel(0) if is_grey else picture.convert("RGB")
    wanted = {1: "L", 3: "RGB", None: "L" if is_grey else "RGB"}[channels]
    return picture if picture.mode == wanted else picture.convert(wanted)

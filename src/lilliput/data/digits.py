"""Handwritten digits, 8x8, that come with scikit-learn: real images with no download.

Source: Alpaydin and Kaynak, Optical Recognition of Handwritten Digits, UCI (1998), its test half, as scikit-learn ships it.
"""

from __future__ import annotations

import numpy as np

from lilliput.data.raw import RawImages, RawPart


def read_digits() -> RawImages:
    """The 1,797 digits; their 17 grey levels 0 to 16 become bytes by (255 * level + 8) // 16, so that 0 is 0 and 16 is 255."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    levels = bunch.images.astype(np.int64)
    images = ((255 * levels + 8) // 16).astype(np.uint8)[..., None]
    return RawImages(
        name="digits",
        source="handwritten digits 8x8 that come with scikit-learn (UCI Optical Recognition of Handwritten Digits)",
        class_names=tuple(str(name) for name in bunch.target_names),
        pool=RawPart(images, bunch.target.astype(np.int64)),
    )

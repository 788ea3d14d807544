"""Small random changes to training images: shifts and mirror images.

What happens to an image in an epoch depends on (seed, epoch, image) alone: not on the batch it lands in, on how many devices share
the work, or on whether the run was resumed.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Int64, Shaped
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Augmentation:
    """What will happen to every image in one epoch."""

    shift_pixels: int
    row_shift: Int64[Tensor, "image"]
    column_shift: Int64[Tensor, "image"]
    is_flipped: Bool[Tensor, "image"]

    def apply(
        self, images: Shaped[Tensor, "batch channel row column"], index: Int64[Tensor, "batch"]
    ) -> Shaped[Tensor, "batch channel row column"]:
        """The images, which are those of this index, mirrored and then shifted; black comes in at the edges."""
        images = torch.where(self.is_flipped[index, None, None, None], images.flip(-1), images)
        k = self.shift_pixels
        if k == 0:
            return images
        rows, columns = images.shape[-2:]
        padded = F.pad(images, (k, k, k, k))
        # A shift of +1 moves the picture down (right): row r shows what was at r - 1, which is at r - 1 + k in the padded image.
        row = torch.arange(rows, device=images.device) + k - self.row_shift[index, None]
        column = torch.arange(columns, device=images.device) + k - self.column_shift[index, None]
        picture = torch.arange(len(images), device=images.device)
        return padded[picture[:, None, None], :, row[:, :, None], column[:, None, :]].permute(0, 3, 1, 2).contiguous()


def draw_augmentation(
    image_count: int, *, shift_pixels: int, flip_horizontal: bool, seed: int, epoch: int, device: torch.device
) -> Augmentation | None:
    """The changes of one epoch, or None where there are none to make."""
    if shift_pixels == 0 and not flip_horizontal:
        return None
    random = np.random.default_rng([seed, epoch, 1])
    shifts = random.integers(-shift_pixels, shift_pixels, size=(2, image_count), endpoint=True)
    flips = random.random(image_count) < 0.5 if flip_horizontal else np.zeros(image_count, dtype=bool)
    row_shift, column_shift = torch.from_numpy(shifts).to(device)
    return Augmentation(shift_pixels, row_shift, column_shift, torch.from_numpy(flips).to(device))

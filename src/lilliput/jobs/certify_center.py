"""The point around which a network is certified: a test image of its build, a file, or zeros."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lilliput.errors import ConfigError, DataError
from lilliput.jobs.trained_network import Subject, build_data

if TYPE_CHECKING:
    import torch


def load_center(given: str | None, subject: Subject) -> tuple[torch.Tensor, str]:
    """The centre, (*input shape), and in words what it is.

    Raises:
        ConfigError: no such test image.
        DataError: no such file, or one that does not suit the network; images that are not those of the build.
    """
    import torch

    given = given or ("zeros" if subject.build is None else "test:0")
    if given == "zeros":
        return torch.zeros(subject.shape), "zeros"
    if given.startswith("test:"):
        return _test_image(given, subject)
    return _from_file(given, subject), given


def _test_image(given: str, subject: Subject) -> tuple[torch.Tensor, str]:
    if subject.build is None:
        raise ConfigError(f"center='{given}': only a build has test images; give zeros or a .npy file")
    data = build_data(subject)
    number = given.removeprefix("test:")
    if not number.isdigit() or int(number) >= len(data.test):
        raise ConfigError(f"center='{given}': must be test:0 to test:{len(data.test) - 1}")
    images, labels = data.test.tensors()
    truth = data.class_names[int(labels[int(number)])]
    return images[int(number)], f"test image {number} of {data.name} (class {truth})"


def _from_file(given: str, subject: Subject) -> torch.Tensor:
    import numpy as np
    import torch

    try:
        values = np.load(given, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise DataError(
            f"center='{given}': cannot be read as a .npy file ({type(error).__name__}); give zeros, or a file"
        ) from error
    if values.dtype.kind not in "fiu":
        raise DataError(f"center='{given}': is of {values.dtype}; must be numbers")
    if [size for size in values.shape if size != 1] != [size for size in subject.shape if size != 1]:
        raise DataError(
            f"center='{given}': has shape {list(values.shape)}; the network takes {list(subject.shape)}, channels first"
        )
    is_image = values.dtype == np.uint8 and subject.build is not None
    scale = 255 if is_image else 1  # pixels, as a build's network sees them
    return torch.from_numpy(values.reshape(subject.shape).astype(np.float64) / scale)

"""Images (or any other inputs) and labels as two tensors, from whatever form they come in."""

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64, Shaped
from torch import Tensor

from lilliput.errors import DataError

ALLOWED = "an ImageSplit, or a pair (inputs, labels) of tensors or arrays"


@dataclass(frozen=True, eq=False)
class Labelled:
    """Inputs and class indices, on one device."""

    inputs: Shaped[Tensor, "image ..."]
    """uint8 images stay bytes here, a quarter of the memory; :func:`to_network` makes floats of a batch."""
    labels: Int64[Tensor, "image"]

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device) -> "Labelled":
        """Both tensors on that device."""
        return Labelled(self.inputs.to(device), self.labels.to(device))

    def digest(self) -> str:
        """A hash of every byte, to tell whether a checkpoint belongs to this data."""
        state = hashlib.blake2b(digest_size=16)
        for tensor in (self.inputs, self.labels):
            state.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
            state.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
        return state.hexdigest()


def as_labelled(split: Any, what: str) -> Labelled:
    """Tensors of a split, checked.

    Args:
        split: an ImageSplit (anything with ``byte_tensors()`` or ``tensors()``), or a pair of inputs and labels. uint8 inputs are
            images (image, channel, row, column) that the network will get as byte / 255; other types reach it as they are.
        what: such as "train", to name in a message.
    """
    if isinstance(split, Labelled):
        return split
    if hasattr(split, "byte_tensors"):
        inputs, labels = split.byte_tensors()
    elif hasattr(split, "tensors"):
        inputs, labels = split.tensors()
    elif isinstance(split, tuple | list) and len(split) == 2:
        inputs, labels = (_tensor(item, what) for item in split)
    else:
        raise DataError(f"{what} data is a {type(split).__name__}; allowed: {ALLOWED}")
    if labels.ndim != 1 or labels.is_floating_point() or labels.dtype == torch.bool:
        raise DataError(
            f"{what} labels are {labels.dtype} of shape {tuple(labels.shape)}; must be one class index per image"
        )
    if len(inputs) != len(labels):
        raise DataError(f"{what} data has {len(inputs):,} inputs and {len(labels):,} labels; must be as many")
    if len(labels) == 0:
        raise DataError(f"{what} data is empty; needs at least one image")
    if int(labels.min()) < 0:
        raise DataError(f"{what} labels go down to {int(labels.min())}; must be 0, 1, ...")
    if inputs.is_floating_point() and not bool(torch.isfinite(inputs).all()):
        first = int((~torch.isfinite(inputs)).flatten(1).any(1).nonzero()[0])
        raise DataError(f"{what} input {first} has a value that is not finite; every value must be a finite number")
    return Labelled(inputs.detach(), labels.detach().long())


def to_network(inputs: Shaped[Tensor, "image ..."]) -> Shaped[Tensor, "image ..."]:
    """What a network is given: uint8 images as float32 byte / 255, anything else as it is."""
    return inputs.float().div_(255) if inputs.dtype == torch.uint8 else inputs


def check_logits(logits: Any, labels: Int64[Tensor, "image"]) -> Float[Tensor, "image class"]:
    """The network's output, after checking that it is one score per image and class and that the labels fit."""
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(labels):
        given = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise DataError(
            f"the network's output is {given}; a classifier must give ({len(labels)}, classes) scores for {len(labels)} images"
        )
    if int(labels.max()) >= logits.shape[1]:
        raise DataError(
            f"labels go up to {int(labels.max())}, but the network has {logits.shape[1]} outputs; it needs at least {int(labels.max()) + 1}"
        )
    return logits


def _tensor(item: Any, what: str) -> Tensor:
    if isinstance(item, Tensor):
        return item
    if isinstance(item, np.ndarray) and item.dtype.kind in "iufb":
        return torch.from_numpy(np.ascontiguousarray(item).copy())
    raise DataError(f"{what} data holds a {type(item).__name__}; allowed: {ALLOWED}")

"""A refining on disk: one file that holds how far it came, from which it goes on as if it had never stopped.

The file is a zip of NumPy arrays and one JSON text. Nothing in it is run when it is read, and every member has a checksum.
It is written beside its place and renamed, so there is never half of one. What it says is believed, as memory would be: bounds in it are
proved only if the file comes from where one trusts.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import torch
from torch import Tensor

from lilliput.errors import ConfigError, DataError
from lilliput.evidence.atomic import replacing

FORMAT = 1
_FACTS = "facts.json"
_HASHED = ("network", "centre")
"""Parts of the question that are told by a hash."""
T = TypeVar("T")


@dataclass(frozen=True)
class State:
    """How far a refining came."""

    seconds: float
    """Spent on it."""
    trace: list[tuple[float, float, float, int]]
    tensors: dict[str, Tensor]


@dataclass(frozen=True)
class Checkpoint:
    """A file for the state of a refining, and the question that it answers."""

    path: Path
    question: dict[str, Any]
    """What must be the same for the state to be of use; of what JSON can hold."""

    def save(self, state: State) -> None:
        """Replace the file, or leave the old one whole; directories above it are made."""
        facts = {"format": FORMAT, "question": self.question, "seconds": state.seconds, "trace": state.trace}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(self.path) as file, zipfile.ZipFile(file, "w") as archive:
            archive.writestr(_FACTS, json.dumps(facts, allow_nan=False))
            for name, tensor in state.tensors.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, tensor.detach().cpu().numpy(), allow_pickle=False)

    def load(self, device: torch.device) -> State | None:
        """What was saved; ``None`` where there is no file yet.

        Raises:
            ConfigError: it is of another question; names what differs.
            DataError: it is damaged, or no such file at all.
        """
        if not self.path.exists():
            return None
        try:
            with zipfile.ZipFile(self.path) as archive:
                facts = json.loads(archive.read(_FACTS))
                self._check(facts)
                names = [name for name in archive.namelist() if name != _FACTS]
                tensors = {name.removesuffix(".npy"): _tensor(archive, name).to(device) for name in names}
            trace = [(float(a), float(b), float(c), int(count)) for a, b, c, count in facts["trace"]]
            return State(float(facts["seconds"]), trace, tensors)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError, zipfile.BadZipFile) as fault:
            raise self.damaged(fault) from fault

    def damaged(self, fault: Exception) -> DataError:
        """The error for a file that cannot be taken up."""
        reason = " ".join(str(fault).split()) or type(fault).__name__
        return DataError(f"{self.path}: cannot be read as a checkpoint ({reason}); remove it to start anew")

    def _check(self, facts: dict[str, Any]) -> None:
        if facts["format"] != FORMAT:
            raise ValueError(f"its format is {facts['format']}, and this version reads {FORMAT}")
        then, now = facts["question"], json.loads(json.dumps(self.question))
        if then == now:
            return
        told = [
            f"another {name}" if name in _HASHED else f"{name}={then.get(name)!r} and not {now.get(name)!r}"
            for name in now | then
            if then.get(name) != now.get(name)
        ]
        raise ConfigError(
            f"{self.path}: was begun with {', '.join(told)}; ask the same again, give another file, or remove it to start anew"
        )


def _tensor(archive: zipfile.ZipFile, name: str) -> Tensor:
    with archive.open(name) as member:
        array = np.lib.format.read_array(member, allow_pickle=False)
        if member.read(1):  # asked for because the checksum is compared at the end
            raise ValueError(f"{name} is longer than it says")
    return torch.from_numpy(array)


def digest(values: Tensor) -> str:
    """Of a tensor's shape and values."""
    held = values.detach().cpu().double().contiguous()
    return hashlib.sha256(f"{tuple(held.shape)}".encode() + held.numpy().tobytes()).hexdigest()[:16]


def leaves(value: Any) -> list[Tensor]:
    """The tensors in nested tuples and dataclasses, in order."""
    if isinstance(value, Tensor):
        return [value]
    return [leaf for child in _children(value) for leaf in leaves(child)]


def named_leaves(name: str, value: Any) -> dict[str, Tensor]:
    """The tensors, by a name and their number."""
    return {f"{name}.{number}": leaf for number, leaf in enumerate(leaves(value))}


def filled(template: T, name: str, tensors: dict[str, Tensor], *, any_length: bool = False) -> T:
    """A value like the template, with tensors that ``named_leaves`` has named.

    Args:
        any_length: of the tensors' first axis; all else is as in the template.
    Raises:
        KeyError, ValueError: a tensor is missing, or of another shape or type.
    """
    held = iter([tensors[each] for each in named_leaves(name, template)])
    return cast(T, _filled(template, held, int(any_length)))


def _filled(template: Any, held: Iterator[Tensor], axis: int) -> Any:
    if isinstance(template, Tensor):
        found = next(held)
        if (found.dtype, found.dim(), found.shape[axis:]) != (template.dtype, template.dim(), template.shape[axis:]):
            raise ValueError(f"{found.dtype} {list(found.shape)} is not like {template.dtype} {list(template.shape)}")
        return found
    if isinstance(template, tuple):
        return tuple(_filled(child, held, axis) for child in template)
    if is_dataclass(template) and not isinstance(template, type):
        names = [each.name for each in fields(template)]
        return replace(template, **{name: _filled(getattr(template, name), held, axis) for name in names})
    return template


def _children(value: Any) -> list[Any]:
    if isinstance(value, tuple):
        return list(value)
    if is_dataclass(value):
        return [getattr(value, each.name) for each in fields(value)]
    return []

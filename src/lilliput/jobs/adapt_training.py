"""All steps of an adaptation on this computer, in the emitted C: it stops anywhere and goes on from its last parameter image."""

from __future__ import annotations

import hashlib
import json
import zipfile
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from lilliput.errors import ConfigError, DataError
from lilliput.evidence.atomic import write_bytes
from lilliput.mcu.training.host_library import HostModel
from lilliput.training.progress import Bar

Samples = tuple[np.ndarray, np.ndarray]
"""int8 codes and classes."""
_POINTS = 20
"""Of the accuracy curve."""


@dataclass(frozen=True, eq=False)
class Course:
    """Which sample is seen at which step, and how far it moves the weights."""

    order: Int64[np.ndarray, " steps"]
    rates: Int64[np.ndarray, " steps"]

    @classmethod
    def of(cls, samples: int, steps: int, seed: int) -> Course:
        """Pass after pass over all samples, each in an order of its own; warm-up over a twentieth of the steps, then half a cosine."""
        from lilliput.mcu.training.rate import warmup_cosine

        passes = -(-steps // samples)
        order = np.concatenate([np.random.default_rng([seed, each]).permutation(samples) for each in range(passes)])
        return cls(order[:steps].astype(np.int64), warmup_cosine(steps, steps // 20))

    def __len__(self) -> int:
        return len(self.order)


@dataclass(eq=False)
class Progress:
    """How far a training has come: all that is needed to go on, and what the curves are drawn from."""

    params: bytes
    """The image that a device would write to flash."""
    losses_q16: list[int]
    """Of each sample before its step."""
    accuracy: list[tuple[int, float]]
    """Of the validation images after so many steps."""

    @property
    def step(self) -> int:
        """Steps done."""
        return len(self.losses_q16)

    def save(self, path: Path, identity: str) -> None:
        """Write one file, whole or not at all."""
        facts = {"identity": identity, "losses_q16": self.losses_q16, "accuracy": self.accuracy}
        held = BytesIO()
        with zipfile.ZipFile(held, "w") as archive:
            archive.writestr("progress.json", json.dumps(facts))
            archive.writestr("params.bin", self.params)
        write_bytes(path, held.getvalue())

    @classmethod
    def load(cls, path: Path, identity: str) -> Progress:
        """Read what :meth:`save` wrote.

        Raises:
            ConfigError: it is of another training.
            DataError: it is damaged.
        """
        try:
            with zipfile.ZipFile(path) as archive:
                facts: dict[str, Any] = json.loads(archive.read("progress.json"))
                params = archive.read("params.bin")
            found, losses = facts["identity"], [int(loss) for loss in facts["losses_q16"]]
            accuracy = [(int(step), float(share)) for step, share in facts["accuracy"]]
        except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as fault:
            raise DataError(f"{path}: no training can go on from it ({fault}); remove it to start anew") from fault
        if found != identity:
            raise ConfigError(
                f"{path} is of another training: network, images, choice or schedule differ; remove it to start anew"
            )
        return cls(params, losses, accuracy)


def train(
    model: HostModel,
    course: Course,
    samples: Samples,
    validation: Samples,
    *,
    checkpoint: Path,
    every: int,
    progress: bool,
) -> Progress:
    """Go through the course, from the checkpoint where there is one.

    Args:
        model: freshly loaded; afterwards it holds what was learnt.
        samples: to train on.
        validation: for the curve.
        checkpoint: written after so many steps as ``every`` says, and whenever accuracy is measured.
        progress: show a bar on standard error.
    Raises:
        ConfigError: the checkpoint is of another training.
        DataError: it is damaged.
    """
    identity = _identity(model, course, samples)
    measured = {round(point * len(course) / _POINTS) for point in range(_POINTS + 1)}
    model.reset()
    if checkpoint.exists():
        done = Progress.load(checkpoint, identity)
        model.set_params(done.params)
    else:
        done = Progress(model.get_params(), [], [(0, accuracy(model, validation))])
    codes, labels = samples
    with Bar("adapting", len(course), done.step, progress) as bar:
        for step in range(done.step, len(course)):
            index = int(course.order[step])
            model.set_rate(int(course.rates[step]))
            done.losses_q16.append(model.train_step(codes[index], int(labels[index])))
            is_measured = step + 1 in measured
            if is_measured:
                done.accuracy.append((step + 1, accuracy(model, validation)))
            if is_measured or (step + 1) % every == 0:
                done.params = model.get_params()
                done.save(checkpoint, identity)
            recent = done.losses_q16[-100:]
            loss = sum(recent) / len(recent) / 2**16
            bar.show(step + 1, f"loss {loss:.3f}  val {done.accuracy[-1][1]:.2%}")
    done.params = model.get_params()
    return done


def accuracy(model: HostModel, samples: Samples) -> float:
    """Share of samples whose class the C code tells."""
    codes, labels = samples
    return float(np.mean([model.predict(each) == label for each, label in zip(codes, labels, strict=True)]))


def _identity(model: HostModel, course: Course, samples: Samples) -> str:
    """Of everything that decides where a training ends."""
    digest = hashlib.sha256(f"{model.layout.to_json()} {len(course)}".encode())
    digest.update((model.firmware.directory / "model.c").read_bytes())
    for array in (course.order, course.rates, *samples):
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()

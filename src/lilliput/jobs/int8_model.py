"""The int8 network that a job is given: a TensorFlow Lite file, or what a finished build or deploy keeps."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from lilliput.errors import DataError, UnsupportedOpError
from lilliput.evidence import Run

if TYPE_CHECKING:
    from lilliput.quantize import QuantizedGraph

MODEL = "model.tflite"


def find_model(given: str) -> tuple[Path, str]:
    """The file to load, and what to call the network.

    Raises:
        DataError: no such file or run, or a run that keeps no int8 model.
    """
    from lilliput.quantize.tflite.model import printable

    path = Path(given)
    if not path.is_dir():
        if not path.exists():
            raise DataError(f"{given}: there is no such file or run; give an int8 .tflite file or a finished build")
        return path, printable(path.stem) or "model"
    run = Run.load(path)
    if run.job not in ("build", "deploy"):
        raise DataError(f"{given}: is a run of '{run.job}', which makes no int8 model; give one of 'build' or 'deploy'")
    kept = path / "artifacts" / MODEL
    if not kept.is_file():
        raise DataError(
            f"{given}: the run keeps no artifacts/{MODEL}: it was made before builds kept their int8 model, or with an operation "
            "that the format has no equal for; build it again, or give a .tflite file"
        )
    return kept, printable(path.resolve().name) or "model"


def load_model(path: Path, name: str) -> QuantizedGraph:
    """The network of a file, under that name.

    Raises:
        UnsupportedOpError: an operation without a rule, or more than one output.
    """
    from lilliput.mcu import load_tflite

    quantized = replace(load_tflite(path), name=name)
    if len(quantized.outputs) != 1:
        raise UnsupportedOpError(
            f"{path}: has {len(quantized.outputs)} outputs; firmware is made of networks with one; leave the others out and convert again"
        )
    return quantized

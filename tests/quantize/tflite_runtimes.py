"""The runtimes whose bytes ours must equal: TensorFlow Lite Micro, and LiteRT with its reference kernels (never the fast ones)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from data.files import shared_data


def micro(content: bytes, x: np.ndarray) -> list[np.ndarray]:
    """What TensorFlow Lite Micro makes of a batch, sample after sample; one array an output."""
    runtime = pytest.importorskip("tflite_micro.python.tflite_micro.runtime", reason="needs the package tflite-micro")
    interpreter = runtime.Interpreter.from_bytes(content, arena_size=4 * 2**20)
    shape = interpreter.get_input_details(0)["shape"]
    outputs = []
    for sample in x:
        interpreter.set_input(sample.reshape(shape), 0)
        interpreter.invoke()
        outputs.append([interpreter.get_output(index).copy() for index in range(_outputs(content))])
    return [np.concatenate(each) for each in zip(*outputs, strict=True)]


def litert(content: bytes, x: np.ndarray) -> list[np.ndarray]:
    """What LiteRT's reference kernels make of a batch, sample after sample; one array an output."""
    runtime = pytest.importorskip("ai_edge_litert.interpreter", reason="needs the package ai-edge-litert")
    interpreter = runtime.Interpreter(
        model_content=content, experimental_op_resolver_type=runtime.OpResolverType.BUILTIN_REF, num_threads=1
    )
    interpreter.allocate_tensors()
    (source,) = interpreter.get_input_details()
    outputs = []
    for sample in x:
        interpreter.set_tensor(source["index"], sample.reshape(source["shape"]))
        interpreter.invoke()
        outputs.append([interpreter.get_tensor(each["index"]) for each in interpreter.get_output_details()])
    return [np.concatenate(each) for each in zip(*outputs, strict=True)]


RUNTIMES = {"tflite-micro": micro, "litert": litert}


def _outputs(content: bytes) -> int:
    from lilliput.quantize.tflite.model import FileModel

    return len(FileModel(content, "content").outputs)


def shared_model(name: str) -> Path:
    """A trained model of the MLPerf Tiny benchmark, from beside the checkout."""
    path = shared_data() / "mlperf-tiny" / f"{name}.tflite"
    if not path.is_file():
        pytest.skip(f"no ../shared/data/mlperf-tiny/{name}.tflite")
    return path

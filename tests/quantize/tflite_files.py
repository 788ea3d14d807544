"""TensorFlow Lite files made operator by operator, for what no converter at hand would write."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lilliput.quantize.tflite.builder import Field, Fields, Numbers, Scalar, Tables, Text, flatbuffer
from lilliput.quantize.tflite.schema import TensorType, builtin

DTYPES = {TensorType.INT8: np.int8, TensorType.INT32: np.int32, TensorType.INT64: np.int64, TensorType.UINT8: np.uint8}


class TfliteFile:
    """Tensors and operators by index; ``content`` is the file."""

    def __init__(self) -> None:
        self.buffers: list[Fields] = [{}]
        self.tensors: list[dict[int, Field]] = []
        self.kinds: list[str] = []
        self.operators: list[Fields] = []

    def tensor(
        self,
        shape: Sequence[int],
        scale: Any = None,
        zero_point: Any = 0,
        kind: int = TensorType.INT8,
        data: Any = None,
        axis: int = 0,
        name: str | None = None,
    ) -> int:
        buffer = 0
        if data is not None:
            content = np.frombuffer(np.asarray(data, dtype=DTYPES[TensorType(kind)]).tobytes(), dtype=np.uint8)
            self.buffers.append({0: Numbers(content, alignment=16)})
            buffer = len(self.buffers) - 1
        fields: dict[int, Field] = {
            0: Numbers(np.array(shape, dtype=np.int32)),
            1: Scalar("b", kind),
            2: Scalar("I", buffer),
            3: Text(f"t{len(self.tensors)}" if name is None else name),
        }
        if scale is not None:
            scales = np.atleast_1d(np.asarray(scale, dtype=np.float32))
            zero_points = np.broadcast_to(np.asarray(zero_point, dtype=np.int64), scales.shape)
            fields[4] = {2: Numbers(scales), 3: Numbers(zero_points), 6: Scalar("i", axis)}
        self.tensors.append(fields)
        return len(self.tensors) - 1

    def constant(self, data: Any, kind: int = TensorType.INT32, **parameters: Any) -> int:
        return self.tensor(np.shape(data), kind=kind, data=data, **parameters)

    def operator(
        self,
        name: str,
        inputs: Sequence[int],
        output: int | Sequence[int],
        options_kind: int = 0,
        options: Mapping[int, tuple[str, float] | list[int]] | None = None,
    ) -> None:
        if name not in self.kinds:
            self.kinds.append(name)
        fields: dict[int, Field] = {
            0: Scalar("I", self.kinds.index(name)),
            1: Numbers(np.array(inputs, dtype=np.int32)),
            2: Numbers(np.array([output] if isinstance(output, int) else output, dtype=np.int32)),
        }
        if options_kind:
            fields[3] = Scalar("B", options_kind)
            fields[4] = {
                field: Scalar(*each) if isinstance(each, tuple) else Numbers(np.array(each, dtype=np.int32))
                for field, each in (options or {}).items()
            }
        self.operators.append(fields)

    def content(self, inputs: Sequence[int], outputs: Sequence[int], **changes: Any) -> bytes:
        graph: Fields = {
            0: Tables(self.tensors),
            1: Numbers(np.array(inputs, dtype=np.int32)),
            2: Numbers(np.array(outputs, dtype=np.int32)),
            3: Tables(self.operators),
        }
        versions = {
            "FULLY_CONNECTED": 5,
            "CONV_2D": 3,
            "DEPTHWISE_CONV_2D": 3,
            "RESHAPE": 1,
            "HARD_SWISH": 1,
            "SQUEEZE": 1,
        }
        versions |= {"CAST": 1, "RESIZE_NEAREST_NEIGHBOR": 3, "QUANTIZE": 2}
        codes = [
            {
                0: Scalar("b", min(builtin(name), 127)),
                2: Scalar("i", versions.get(name, 2)),
                3: Scalar("i", builtin(name)),
            }
            for name in self.kinds
        ]
        model: Fields = {
            0: Scalar("I", changes.get("version", 3)),
            1: Tables(codes),
            2: Tables([graph] * changes.get("subgraphs", 1)),
            4: Tables(self.buffers),
        }
        return flatbuffer(model, changes.get("identifier", b"TFL3"))

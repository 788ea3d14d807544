"""Files that nobody vouches for: each either loads to a legal graph or is refused in one line, soon and in little memory."""

from __future__ import annotations

import resource
import struct
import time
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lilliput.errors import DataError, GraphError, LilliputError, UnsupportedOpError
from lilliput.mcu import load_tflite
from lilliput.quantize import QuantizedGraph, quantize_int8
from lilliput.quantize.tflite import flatbuffer
from lilliput.quantize.tflite.builder import Numbers, Scalar, Tables, Text
from lilliput.quantize.tflite.builder import flatbuffer as built
from lilliput.quantize.tflite.flatbuffer import root
from lilliput.quantize.tflite.save import to_bytes
from lilliput.quantize.tflite.schema import TensorType
from quantize.networks import FAMILIES, prepared
from quantize.tflite_files import TfliteFile
from quantize.tflite_runtimes import shared_model

EXTREMES = [0, 1, 2, 3, 4, 127, 128, 255, 2**15, 2**16 - 1, 2**16, 2**20, 2**28, 2**31 - 1, 2**31, 2**32 - 1, 2**32 - 4]
MUTATIONS = 2000


def load_bytes(content: bytes, folder: Path) -> QuantizedGraph:
    path = folder / "model.tflite"
    path.write_bytes(content)
    return load_tflite(path)


KINDS = ("conv_1d", "squeeze_excite", "unet", "ds_cnn")


@cache
def original(family: str) -> bytes:
    """A file of our own."""
    build, shape = FAMILIES[family]
    model, calibration, _ = prepared(build, shape)
    return to_bytes(quantize_int8(model, calibration))


def places_read(content: bytes, folder: Path, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """Where the reader looks for offsets, lengths and numbers: damage there matters most."""
    seen: set[int] = set()
    number, span, begin = flatbuffer.File.number, flatbuffer.File.span, flatbuffer.Table.__init__

    def watched_number(self: flatbuffer.File, code: str, at: int) -> Any:
        seen.add(at)
        return number(self, code, at)

    def watched_span(self: flatbuffer.File, at: int, item_bytes: int) -> tuple[int, int]:
        first, count = span(self, at, item_bytes)
        seen.update(range(at, first + 4 * min(count, 20), 4))
        return first, count

    def watched_begin(self: flatbuffer.Table, file: flatbuffer.File, at: int) -> None:
        begin(self, file, at)
        fields_at = at - file.number("i", at)
        seen.update(range(fields_at, fields_at + 4 + 2 * len(self._fields), 2))

    with monkeypatch.context() as patch:
        patch.setattr(flatbuffer.File, "number", watched_number)
        patch.setattr(flatbuffer.File, "span", watched_span)
        patch.setattr(flatbuffer.Table, "__init__", watched_begin)
        load_bytes(content, folder)
    return np.array(sorted(seen))


def mutated(content: bytes, places: np.ndarray, rng: np.random.Generator) -> bytes:
    data = bytearray(content)
    for _ in range(int(rng.integers(1, 3))):
        at = int(rng.choice(places)) if rng.random() < 0.7 else int(rng.integers(0, len(data)))
        at = min(at, len(data) - 4)
        kind = rng.integers(0, 5)
        if kind == 0:
            data[at] ^= 1 << int(rng.integers(0, 8))
        elif kind == 1:
            data[at : at + 4] = struct.pack("<I", EXTREMES[rng.integers(len(EXTREMES))])
        elif kind == 2:
            (value,) = struct.unpack_from("<I", data, at)
            data[at : at + 4] = struct.pack("<I", (value + int(rng.integers(-9, 10))) % 2**32)
        elif kind == 3:
            other, length = int(rng.choice(places)), int(rng.integers(4, 64))
            if abs(other - at) > length and max(other, at) + length < len(data):
                data[at : at + length], data[other : other + length] = (
                    data[other : other + length],
                    data[at : at + length],
                )
        elif rng.random() < 0.2:
            del data[max(8, at) :]
            data.extend(bytes(8 - min(8, len(data))))
    return bytes(data)


def outcome(content: bytes, folder: Path) -> str:
    start = time.perf_counter()
    message, found = "", "loads"
    try:
        load_bytes(content, folder)  # a graph checks itself when it is made
    except LilliputError as error:
        message, found = str(error), type(error).__name__
    assert "\n" not in message
    assert len(message) < 2000
    assert time.perf_counter() - start < 5, "takes too long"
    return found


@pytest.mark.parametrize("family", KINDS)
def test_mutations_load_or_are_refused(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two thousand in all."""
    found = outcomes(original(family), MUTATIONS // len(KINDS), tmp_path, monkeypatch)
    # All three ways out are met, or the mutations would prove little.
    assert found["loads"] > 50
    assert found["DataError"] > 50
    assert found["UnsupportedOpError"] > 5


@pytest.mark.parametrize("name", ["kws_ref_model", "pretrainedResnet_quant"])
def test_a_trained_model_mutated_loads_or_is_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = outcomes(shared_model(name).read_bytes(), 250, tmp_path, monkeypatch)
    assert {"loads", "DataError"} <= set(found)


def outcomes(content: bytes, count: int, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    places, rng = places_read(content, folder, monkeypatch), np.random.default_rng(0)
    memory_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = Counter(outcome(mutated(content, places, rng), folder) for _ in range(count))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory_kib < 300 * 1024
    return found


def test_a_file_cut_short_anywhere_is_refused(tmp_path: Path) -> None:
    content = original("unet")
    for length in [*range(64), *range(64, len(content), 97)]:
        with pytest.raises(LilliputError):
            load_bytes(content[:length], tmp_path)


# hostile on purpose


def test_a_table_whose_list_of_fields_is_itself_ends(tmp_path: Path) -> None:
    content = struct.pack("<I4sii", 8, b"TFL3", 0, 0)
    with pytest.raises(DataError, match="list of fields"):
        load_bytes(content, tmp_path)


def test_a_vector_longer_than_the_file_is_refused(tmp_path: Path) -> None:
    content = built({0: Scalar("I", 3), 4: Numbers(np.zeros(1, dtype=np.int32))}, b"TFL3")
    at = content.rindex(struct.pack("<I", 1))
    with pytest.raises(DataError, match="leads outside the file"):
        load_bytes(content[:at] + struct.pack("<I", 2**32 - 1) + content[at + 4 :], tmp_path)


def test_tables_that_all_lie_in_one_place_cost_no_more_than_the_file() -> None:
    """Each of 4,000 offsets leads to one table that holds a vector of half the file."""
    numbers = Numbers(np.zeros(4000, dtype=np.int32))
    content = bytearray(built({0: Tables([{0: numbers}, *({} for _ in range(3999))])}, b"TFL3"))
    table = root(bytes(content), b"TFL3", "file")
    first, count = table.file.span(table._target(0) or 0, 4)
    target = first + table.file.number("I", first)
    for place in range(first, first + 4 * count, 4):
        struct.pack_into("<I", content, place, target - place)
    items = root(bytes(content), b"TFL3", "file").tables(0)
    with pytest.raises(DataError, match="offsets overlap"):
        _ = [item.numbers(0, "<i4") for item in items]


def test_texts_are_cut_before_they_are_copied() -> None:
    content = built({0: Text("x" * 100_000)}, b"TFL3")
    assert root(content, b"TFL3", "file").text(0) == "x" * 200


# one reason each


def simple(**changes: Any) -> tuple[TfliteFile, list[int], list[int]]:
    file = TfliteFile()
    x = file.tensor(
        changes.get("shape", (1, 8)), changes.get("scale", 0.1), changes.get("zero_point", 0), **changes.get("of", {})
    )
    y = file.tensor(changes.get("shape", (1, 8)), 0.1)
    file.operator(changes.get("operator", "RELU"), [x], y)
    return file, [x], [y]


def content_of(made: tuple[TfliteFile, list[int], list[int]], **changes: Any) -> bytes:
    file, inputs, outputs = made
    return file.content(inputs, outputs, **changes)


def dynamic() -> bytes:
    file, inputs, outputs = simple(shape=(1, 8, 8, 3))
    file.tensors[inputs[0]][7] = Numbers(np.array([1, -1, -1, 3], dtype=np.int32))
    return file.content(inputs, outputs)


def linear(weight: np.ndarray, kind: int = TensorType.INT8, **parameters: Any) -> bytes:
    file = TfliteFile()
    x, y = file.tensor((1, 8), 0.1), file.tensor((1, 4), 0.1)
    file.operator("FULLY_CONNECTED", [x, file.constant(weight, kind, **{"scale": 0.1, **parameters})], y, 8)
    return file.content([x], [y])


def short_buffer() -> bytes:
    file = TfliteFile()
    x, y, weight = file.tensor((1, 8), 0.1), file.tensor((1, 4), 0.1), file.tensor((4, 8), 0.1, data=np.zeros(31))
    file.operator("FULLY_CONNECTED", [x, weight], y, 8)
    return file.content([x], [y])


def twice() -> bytes:
    file, inputs, outputs = simple()
    file.operator("RELU", inputs, outputs[0])
    return file.content(inputs, outputs)


def unmade() -> bytes:
    file, inputs, _ = simple()
    return file.content(inputs, [file.tensor((1, 8), 0.1)])


def early() -> bytes:
    file = TfliteFile()
    x, later, y = (file.tensor((1, 8), 0.1) for _ in range(3))
    file.operator("RELU", [later], y)
    file.operator("RELU", [x], later)
    return file.content([x], [y])


def variable() -> bytes:
    file, inputs, outputs = simple()
    file.tensors[outputs[0]][5] = Scalar("B", 1)
    return file.content(inputs, outputs)


def sparse() -> bytes:
    file = TfliteFile()
    x, y, weight = file.tensor((1, 8), 0.1), file.tensor((1, 4), 0.1), file.tensor((4, 8), 0.1, data=np.zeros(32))
    file.tensors[weight][6] = {}
    file.operator("FULLY_CONNECTED", [x, weight], y, 8)
    return file.content([x], [y])


def of_two_inputs() -> bytes:
    file, inputs, outputs = simple()
    return file.content([*inputs, *inputs], outputs)


def floats() -> bytes:
    file = TfliteFile()
    x, y = (file.tensor((1, 8), kind=TensorType.FLOAT32) for _ in range(2))
    file.operator("RELU", [x], y)
    return file.content([x], [y])


def float_in_the_middle() -> bytes:
    file = TfliteFile()
    x, real, y = file.tensor((1, 8), 0.1), file.tensor((1, 8), kind=TensorType.FLOAT32), file.tensor((1, 8), 0.1)
    file.operator("DEQUANTIZE", [x], real)
    file.operator("QUANTIZE", [real], y, 89)
    return file.content([x], [y])


def overflowing() -> bytes:
    file = TfliteFile()
    x, y, weight = (
        file.tensor((1, 8), 0.1),
        file.tensor((1, 4), 0.1),
        file.constant(np.ones((4, 8)), TensorType.INT8, scale=0.1),
    )
    file.operator("FULLY_CONNECTED", [x, weight, file.constant(np.full(4, 2**31 - 1))], y, 8)
    return file.content([x], [y])


def broadcast() -> bytes:
    file = TfliteFile()
    x, a, y = file.tensor((1, 8), 0.1), file.tensor((1, 1, 1, 8), 0.1), file.tensor((1, 8), 0.1)
    file.operator("RESHAPE", [x, file.constant([1, 1, 1, 8])], a, 17)
    file.operator("ADD", [x, a], y, 11)
    return file.content([x], [y])


REASONS: dict[str, tuple[Callable[[], bytes], type[LilliputError], str]] = {
    "empty": (lambda: b"", DataError, "bytes 4 to 7 are '', must be 'TFL3'"),
    "not_tflite": (lambda: b"PK\3\4" + bytes(100), DataError, "must be 'TFL3'"),
    "version": (lambda: content_of(simple(), version=2), DataError, "version 2 .*must be 3"),
    "control_flow": (lambda: content_of(simple(), subgraphs=2), UnsupportedOpError, "2 subgraphs; must have one"),
    "unknown_operator": (lambda: content_of(simple(operator="LSTM")), UnsupportedOpError, r"operator 0 \(LSTM\) has no integer rule"),
    "custom_operator": (lambda: content_of(simple(operator="CUSTOM")), UnsupportedOpError, r"operator 0 \(CUSTOM \)"),
    "floats": (floats, UnsupportedOpError, r"operator 0 \(RELU\) reads tensor 0 't0' \(float32\[1, 8\]\)"),
    "float_in_the_middle": (float_in_the_middle, UnsupportedOpError, "only outputs may be floats"),
    "int16": (lambda: content_of(simple(of={"kind": TensorType.INT16})), UnsupportedOpError, "activations must be int8"),
    "dynamic": (dynamic, UnsupportedOpError, r"signature \[1, -1, -1, 3\]; only the batch may change"),
    "batch": (lambda: content_of(simple(shape=(4, 8))), UnsupportedOpError, r"shape \[4, 8\]; must be \(1, ...\)"),
    "huge": (lambda: content_of(simple(shape=(1, 2**20, 2**20, 2))), DataError, "1 to 268,435,456 elements"),
    "no_scale": (lambda: content_of(simple(scale=None)), DataError, "has 0 scales and 0 zero points"),
    "two_scales": (lambda: content_of(simple(scale=[0.1, 0.2])), DataError, "has 2 scales and 2 zero points"),
    "zero_scale": (lambda: content_of(simple(scale=0.0)), DataError, "the scale must be above 0"),
    "nan_scale": (lambda: content_of(simple(scale=np.nan)), DataError, "the scale must be above 0"),
    "zero_point": (lambda: content_of(simple(zero_point=1000)), DataError, "zero point 1000"),
    "missing_tensor": (lambda: content_of((simple()[0], [99], [1])), DataError, "name tensor 99 of 2"),
    "negative_tensor": (lambda: content_of((simple()[0], [-1], [1])), DataError, "name tensor -1 of 2"),
    "two_inputs": (of_two_inputs, UnsupportedOpError, "has 2 inputs; must have one"),
    "no_outputs": (lambda: content_of((simple()[0], [0], [])), DataError, "has no outputs"),
    "input_made": (lambda: content_of((simple()[0], [1], [0])), DataError, "makes tensor 1 .*made already"),
    "output_unmade": (unmade, DataError, "its output, tensor 2 .*is made by no operator"),
    "made_twice": (twice, DataError, r"operator 1 \(RELU\) makes tensor 1 .*made already"),
    "read_before": (early, DataError, "before it is made"),
    "variable": (variable, UnsupportedOpError, "no variables"),
    "sparse": (sparse, UnsupportedOpError, "which is sparse"),
    "short_buffer": (short_buffer, DataError, "has 31 bytes; its shape takes 32"),
    "weight_shape": (lambda: linear(np.zeros((4, 7))), DataError, r"weights \[4, 7\] for an input of \[8\]"),
    "float_weights": (lambda: linear(np.zeros((4, 8)), TensorType.UINT8), UnsupportedOpError, "they must be int8"),
    "weight_scales": (lambda: linear(np.zeros((4, 8)), scale=[0.1, 0.2]), DataError, "has 2 weight scales along axis 0"),
    "weight_zero_point": (lambda: linear(np.zeros((4, 8)), zero_point=3), UnsupportedOpError, "weights must be symmetric"),
    "overflow": (overflowing, GraphError, r"operator 0 \(FULLY_CONNECTED\): channel 0 can reach"),
    "broadcast": (broadcast, UnsupportedOpError, r"adds \[8\] and \[1, 1, 8\]; both must have one shape"),
}  # fmt: skip


@pytest.mark.parametrize("reason", REASONS)
def test_each_reason_to_refuse_is_said_in_a_line(reason: str, tmp_path: Path) -> None:
    make, kind, words = REASONS[reason]
    with pytest.raises(kind, match=words) as caught:
        load_bytes(make(), tmp_path)
    assert str(caught.value).startswith(str(tmp_path / "model.tflite"))
    assert "\n" not in str(caught.value)


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.tflite: cannot be read \(No such file"):
        load_tflite(tmp_path / "none.tflite")
    with pytest.raises(DataError, match="cannot be read"):
        load_tflite(tmp_path)


def test_names_from_a_file_cannot_leave_a_comment_or_a_line(tmp_path: Path) -> None:
    """Names of tensors go into generated C, as comments."""
    file = TfliteFile()
    x, y = file.tensor((1, 8), 0.1, name="*/ int main(){} /*\n"), file.tensor((1, 8), 0.1, name="a\n*/")
    file.operator("RELU", [x], y)
    graph = load_bytes(file.content([x], [y]), tmp_path)
    for text in [*graph.tensors, *(op.source for op in graph.ops)]:
        assert "*" not in text
        assert "\n" not in text


def test_names_that_come_twice_are_told_apart(tmp_path: Path) -> None:
    file = TfliteFile()
    x, y = file.tensor((1, 8), 0.1, name=""), file.tensor((1, 8), 0.1, name="")
    z = file.tensor((1, 8), 0.1, name="")
    file.operator("RELU", [x], y)
    file.operator("RELU", [y], z)
    assert len(load_bytes(file.content([x], [z]), tmp_path).tensors) == 3

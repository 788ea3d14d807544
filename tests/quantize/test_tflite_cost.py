"""What a small hostile file may cost to read: work in proportion to its bytes."""

import time
from pathlib import Path

from lilliput.mcu import load_tflite
from lilliput.quantize.qgraph import Lookup, QuantizedGraph
from lilliput.quantize.tflite.schema import TensorType
from quantize.tflite_files import TfliteFile


def seconds_to_load(
    file: TfliteFile, inputs: list[int], outputs: list[int], folder: Path
) -> tuple[float, QuantizedGraph]:
    path = folder / "model.tflite"
    path.write_bytes(file.content(inputs, outputs))
    start = time.process_time()
    graph = load_tflite(path)
    return time.process_time() - start, graph


def test_joining_one_tensor_thousands_of_times_changes_its_scale_once(tmp_path: Path) -> None:
    """A file of 26 KB, which took half a minute: each time the new tensor looked for a name among all before it."""
    file, times = TfliteFile(), 6000
    x, y = file.tensor((1, 4, 4, 1), 0.1), file.tensor((1, 4, 4, times), 0.2)
    file.operator("CONCATENATION", [x] * times, y, 10, {0: ("i", 3)})
    seconds, graph = seconds_to_load(file, [x], [y], tmp_path)
    assert sum(isinstance(op, Lookup) for op in graph.ops) == 1
    assert len(graph.ops[-1].inputs) == times
    assert seconds < 5


def test_float_outputs_do_not_search_the_whole_file_each(tmp_path: Path) -> None:
    file, count = TfliteFile(), 2000
    x, y = file.tensor((1, 8), 0.1), file.tensor((1, 8), 0.1)
    file.operator("RELU", [x] * 300_000, y)
    outputs = [file.tensor((1, 8), kind=TensorType.FLOAT32) for _ in range(count)]
    for output in outputs:
        file.operator("DEQUANTIZE", [y], output)
    seconds, graph = seconds_to_load(file, [x], outputs, tmp_path)
    assert len(graph.outputs) == count
    assert seconds < 2.5

"""TensorFlow Lite files as integer graphs: our bytes are those of TensorFlow Lite Micro and of LiteRT's reference kernels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lilliput.mcu import load_tflite
from lilliput.quantize import QuantizedGraph
from lilliput.quantize.qgraph import Concat, Conv2d, Linear, Lookup, MaxPool2d, Pad
from lilliput.quantize.tflite.schema import TensorType
from quantize.tflite_files import TfliteFile
from quantize.tflite_runtimes import RUNTIMES, litert, micro, shared_data, shared_model

MODELS = ["vww_96_int8", "pretrainedResnet_quant", "kws_ref_model", "ad01_int8"]
ALL_CODES = np.arange(-128, 128, dtype=np.int8)[None]


def loaded(content: bytes, folder: Path) -> QuantizedGraph:
    path = folder / "model.tflite"
    path.write_bytes(content)
    return load_tflite(path)


def outputs(graph: QuantizedGraph, x: np.ndarray) -> list[np.ndarray]:
    made = graph.run(x)
    return list(made) if isinstance(made, tuple) else [made]


def random_codes(graph: QuantizedGraph, samples: int, seed: int = 0) -> np.ndarray:
    shape = graph.tensors[graph.input].shape
    return np.random.default_rng(seed).integers(-128, 128, (samples, *shape), dtype=np.int8)


# trained models


@pytest.mark.parametrize("name", MODELS)
def test_a_trained_model_gives_the_bytes_of_tensorflow_lite_micro(name: str) -> None:
    path = shared_model(name)
    graph = load_tflite(path)
    x = random_codes(graph, 8)
    (expected,) = micro(path.read_bytes(), x)
    np.testing.assert_array_equal(graph.run(x).reshape(expected.shape), expected)


@pytest.mark.parametrize("name", [name for name in MODELS if name != "ad01_int8"])
def test_a_trained_model_gives_the_bytes_of_litert(name: str) -> None:
    path = shared_model(name)
    graph = load_tflite(path)
    x = random_codes(graph, 8)
    (expected,) = litert(path.read_bytes(), x)
    np.testing.assert_array_equal(graph.run(x).reshape(expected.shape), expected)


def test_where_the_two_runtimes_differ_we_are_with_micro() -> None:
    """Ten fully connected layers: LiteRT rounds each once, Micro twice; ours is Micro's (the test above), so 2 codes off at most."""
    path = shared_model("ad01_int8")
    graph = load_tflite(path)
    x = random_codes(graph, 8)
    (theirs,) = litert(path.read_bytes(), x)
    off = np.abs(graph.run(x).astype(int) - theirs.astype(int))
    assert 0 < off.max() <= 2


@pytest.mark.slow
def test_keyword_spotting_on_real_speech_is_right_901_times_in_1000() -> None:
    """The figure that TensorFlow Lite Micro reaches with this model on these features."""
    path = shared_data() / "kws01" / "kws01.npz"
    if not path.is_file():
        pytest.skip("no ../shared/data/kws01")
    data = np.load(path)
    graph = load_tflite(shared_model("kws_ref_model"))
    features, labels = (next(data[key] for key in data.files if data[key].ndim == rank) for rank in (4, 1))
    assert features.dtype == np.int8
    assert features.shape == (1000, 49, 10, 1)
    assert int((graph.run(features).argmax(axis=1) == labels).sum()) == 901


def test_the_trained_models_have_the_published_multiply_accumulates() -> None:
    macs = {name: load_tflite(shared_model(name)).macs for name in MODELS}
    assert macs == {
        "vww_96_int8": 7_489_664,
        "pretrainedResnet_quant": 12_501_632,
        "kws_ref_model": 2_656_768,
        "ad01_int8": 264_192,
    }


# functions of one code


def test_tables_equal_the_kernels_answers_for_every_code(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    fixed = {"LOGISTIC": (1 / 256, -128), "TANH": (1 / 128, 0)}
    compared = 0
    for name in ("LOGISTIC", "TANH", "HARD_SWISH", "RELU", "RELU6", "QUANTIZE"):
        for _ in range(40):
            scale = float(np.float32(np.exp(rng.uniform(np.log(2e-4), np.log(0.6)))))
            zero_point = int(rng.integers(-128, 128))
            ratio = 1.0 if name == "RELU6" else np.exp(rng.uniform(-1.5, 1.5))
            target = fixed.get(name, (float(np.float32(scale * ratio)), int(rng.integers(-128, 128))))
            if name == "RELU6":
                target = (scale, zero_point)
            file = TfliteFile()
            x, y = file.tensor((1, 256), scale, zero_point), file.tensor((1, 256), *target)
            file.operator(name, [x], y, {"QUANTIZE": 89, "HARD_SWISH": 91}.get(name, 0))
            content = file.content([x], [y])
            ours = loaded(content, tmp_path).run(ALL_CODES)
            for runtime_name, runtime in RUNTIMES.items():
                (theirs,) = runtime(content, ALL_CODES)
                # LiteRT's sigmoid is float32, so a code within float32's reach of a tie may go either way there.
                steps = 256 / (1 + np.exp(-scale * (ALL_CODES.astype(float) - zero_point)))
                unsure = (np.abs(steps % 1 - 0.5) < 5e-5) & (name == "LOGISTIC") & (runtime_name == "litert")
                np.testing.assert_array_equal(
                    ours[~unsure], theirs[~unsure], err_msg=f"{name} {scale} {zero_point} {target}"
                )
                compared += 1
    assert compared == 6 * 40 * 2


# operators, each with random parameters


def conv(
    file: TfliteFile, rng: np.random.Generator, kind: str, per_channel: bool, activation: int, pad: int
) -> list[int]:
    height, width, channels = (int(each) for each in rng.integers(5, 9, 3))
    channels = 2 * channels if kind == "grouped" else channels
    kernel, stride = (
        (int(rng.integers(1, 4)), int(rng.integers(1, 4))),
        (int(rng.integers(1, 3)), int(rng.integers(1, 3))),
    )
    dilation = (2, 1) if stride == (1, 1) and kernel[0] < 3 else (1, 1)
    multiplier = int(rng.integers(1, 4))
    out = channels * multiplier if kind == "depthwise" else 2 * int(rng.integers(2, 6))
    x = file.tensor((1, height, width, channels), np.exp(rng.uniform(-5, 0)), int(rng.integers(-128, 128)))
    scales = np.exp(rng.uniform(-6, -3, out if per_channel else 1))
    if kind == "depthwise":
        shape, axis = (1, *kernel, out), 3
    else:
        shape, axis = (out, *kernel, channels // 2 if kind == "grouped" else channels), 0
    weight = file.constant(rng.integers(-127, 128, shape), TensorType.INT8, scale=scales, axis=axis)
    bias = file.constant(rng.integers(-3000, 3000, out))
    reach = [(size - 1) * step + 1 for size, step in zip(kernel, dilation, strict=True)]
    size = [
        -(-extent // step) if pad == 0 else (extent - taps) // step + 1
        for extent, taps, step in zip((height, width), reach, stride, strict=True)
    ]
    y = file.tensor((1, *size, out), np.exp(rng.uniform(-2, 0)), int(rng.integers(-128, 128)))
    window = [("b", pad), ("i", stride[1]), ("i", stride[0])]
    middle = [("i", multiplier), ("b", activation)] if kind == "depthwise" else [("b", activation)]
    options = [*window, *middle, ("i", dilation[1]), ("i", dilation[0])]
    name = "DEPTHWISE_CONV_2D" if kind == "depthwise" else "CONV_2D"
    file.operator(name, [x, weight, bias], y, 2 if kind == "depthwise" else 1, dict(enumerate(options)))
    return [x, y]


@pytest.mark.parametrize("kind", ["dense", "depthwise", "grouped"])
@pytest.mark.parametrize("per_channel", [True, False])
def test_convolutions_with_every_padding_and_fused_activation(kind: str, per_channel: bool, tmp_path: Path) -> None:
    for seed, (activation, pad) in enumerate([(a, p) for a in (0, 1, 2, 3) for p in (0, 1)]):
        file = TfliteFile()
        x, y = conv(file, np.random.default_rng(seed), kind, per_channel, activation, pad)
        equal_in_both(file.content([x], [y]), tmp_path)


def equal_in_both(content: bytes, folder: Path, exact: tuple[str, ...] = ("tflite-micro", "litert")) -> QuantizedGraph:
    graph = loaded(content, folder)
    x = random_codes(graph, 3)
    for name, runtime in RUNTIMES.items():
        for mine, theirs in zip(outputs(graph, x), runtime(content, x), strict=True):
            off = np.abs(mine.reshape(theirs.shape).astype(int) - theirs.astype(int)).max()
            assert off <= (name not in exact), f"{name}: off by {off}"
    return graph


@pytest.mark.parametrize("shape", [(1, 24), (1, 2, 3, 4), (1, 5, 24)])
@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("with_bias", [True, False])
def test_fully_connected_layers(shape: tuple[int, ...], per_channel: bool, with_bias: bool, tmp_path: Path) -> None:
    for seed in range(3):
        rng, file, out = np.random.default_rng(seed), TfliteFile(), 40
        keeps = len(shape) == 3
        x = file.tensor(shape, np.exp(rng.uniform(-5, 0)), int(rng.integers(-128, 128)))
        scales = np.exp(rng.uniform(-6, -3, out if per_channel else 1))
        weight = file.constant(rng.integers(-127, 128, (out, 24)), TensorType.INT8, scale=scales)
        bias_scale = float(np.float32(1) * scales[0])
        bias = file.constant(rng.integers(-3000, 3000, out), scale=bias_scale) if with_bias else -1
        # The kernels want a bias scale near the product of the other two.
        if with_bias:
            source = file.tensors[x][4][2].values[0]
            file.tensors[bias][4][2].values[0] = source * scales[0]
        y = file.tensor(
            (*shape[:-1], out) if keeps else (1, out), np.exp(rng.uniform(-1, 1)), int(rng.integers(-128, 128))
        )
        options = {0: ("b", int(rng.integers(0, 4))), 2: ("B", keeps)}
        file.operator("FULLY_CONNECTED", [x, weight, bias], y, 8, options)
        # LiteRT's kernel rounds once, so it may be one code off.
        graph = equal_in_both(file.content([x], [y]), tmp_path, exact=("tflite-micro",))
        assert isinstance(graph.ops[-1], Linear)


@pytest.mark.parametrize("layer", ["FULLY_CONNECTED", "CONV_2D"])
def test_scales_are_multiplied_in_double(layer: str, tmp_path: Path) -> None:
    """The product of these scales is a hair below 1/2, and 1/2 as float32, which would send ties of negative sums the other way."""
    file, is_conv = TfliteFile(), layer == "CONV_2D"
    shape = (1, 1, 1, 24) if is_conv else (1, 24)
    x, y = file.tensor(shape, 1 + 2.0**-14), file.tensor(shape, 1.0)
    eye = np.eye(24).reshape(24, *shape[1:])
    weight = file.constant(eye, TensorType.INT8, scale=(1 - 2.0**-14) / 2)
    bias = file.constant(np.zeros(24), scale=0.5)
    options = [("b", 1), ("i", 1), ("i", 1), ("b", 0), ("i", 1), ("i", 1)]
    file.operator(layer, [x, weight, bias], y, 1 if is_conv else 8, dict(enumerate(options)) if is_conv else {})
    equal_in_both(file.content([x], [y]), tmp_path, exact=("tflite-micro", "litert") if is_conv else ("tflite-micro",))


def test_a_product_of_scales_is_made_in_double_as_in_micro(tmp_path: Path) -> None:
    """The same scales in a MUL: Micro's multiplier is a hair below 1/2, LiteRT's is 1/2, and a product of -1 tells them apart."""
    file = TfliteFile()
    x, other, y = (file.tensor((1, 4), *of) for of in ((1 + 2.0**-14, 0), ((1 - 2.0**-14) / 2, 2), (1.0, 0)))
    file.operator("RESHAPE", [x, file.constant([1, 4])], other, 17)
    file.operator("MUL", [x, other], y, 21)
    content, one = file.content([x], [y]), np.ones((1, 4), dtype=np.int8)
    assert (micro(content, one)[0] == -1).all()
    assert (litert(content, one)[0] == 0).all()
    assert (loaded(content, tmp_path).run(one) == -1).all()


@pytest.mark.parametrize("activation", [0, 1, 2, 3])
def test_additions_and_products(activation: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(activation)
    for name, kind, other in (("ADD", 11, (1, 4, 5, 6)), ("MUL", 21, (1, 4, 5, 6)), ("MUL", 21, (1, 1, 1, 6))):
        for _ in range(4):
            file = TfliteFile()
            # A power of two for one scale: LiteRT multiplies the scales as float32, Micro in double, and then they agree.
            x = file.tensor((1, 4, 5, 6), 2.0 ** int(rng.integers(-7, 0)), int(rng.integers(-128, 128)))
            a = x
            if len(other) == 4 and other != (1, 4, 5, 6):
                a = file.tensor(other, float(np.exp(rng.uniform(-4, 0))), int(rng.integers(-128, 128)))
                file.operator("MEAN", [x, file.constant([1, 2])], a, 27, {0: ("B", 1)})
            y = file.tensor((1, 4, 5, 6), 2.0 ** int(rng.integers(-4, 2)), int(rng.integers(-128, 128)))
            file.operator(name, [a, x] if rng.random() < 0.5 else [x, a], y, kind, {0: ("b", activation)})
            equal_in_both(file.content([x], [y]), tmp_path)


@pytest.mark.parametrize("name", ["AVERAGE_POOL_2D", "MAX_POOL_2D"])
def test_pooling_with_every_padding_and_fused_activation(name: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    for activation in (0, 1, 2, 3):
        for pad in (0, 1):
            file, stride, kernel = TfliteFile(), (int(rng.integers(1, 4)), int(rng.integers(1, 4))), (3, 2)
            parameters = (float(np.exp(rng.uniform(-4, 0))), int(rng.integers(-128, 128)))
            x = file.tensor((1, 7, 8, 3), *parameters)
            size = [
                -(-extent // step) if pad == 0 else (extent - taps) // step + 1
                for extent, taps, step in zip((7, 8), kernel, stride, strict=True)
            ]
            y = file.tensor((1, *size, 3), *parameters)
            sizes = [
                ("b", pad),
                ("i", stride[1]),
                ("i", stride[0]),
                ("i", kernel[1]),
                ("i", kernel[0]),
                ("b", activation),
            ]
            file.operator(name, [x], y, 5, dict(enumerate(sizes)))
            equal_in_both(file.content([x], [y]), tmp_path)


@pytest.mark.parametrize("keep_dims", [True, False])
def test_mean_and_softmax(keep_dims: bool, tmp_path: Path) -> None:
    for seed in range(6):
        rng, file = np.random.default_rng(seed), TfliteFile()
        x = file.tensor((1, 5, 6, 7), float(np.exp(rng.uniform(-4, 0))), int(rng.integers(-128, 128)))
        shape = (1, 1, 1, 7) if keep_dims else (1, 7)
        mean = file.tensor(shape, float(np.exp(rng.uniform(-6, -2))), int(rng.integers(-128, 128)))
        y = file.tensor(shape, 1 / 256, -128)
        axes = [2, 1] if seed % 2 else [-3, -2]
        file.operator("MEAN", [x, file.constant(axes)], mean, 27, {0: ("B", keep_dims)})
        file.operator("SOFTMAX", [mean], y, 9, {0: ("f", 1.0 + seed)})
        equal_in_both(file.content([x], [y, mean]), tmp_path)


# data movement


def padded_window(name: str, code: int | None, zero_point: int = 5) -> tuple[TfliteFile, int, int]:
    file = TfliteFile()
    x, middle = file.tensor((1, 6, 7, 3), 0.05, zero_point), file.tensor((1, 9, 8, 3), 0.05, zero_point)
    widths = file.constant([[0, 0], [1, 2], [0, 1], [0, 0]])
    if code is None:
        file.operator("PAD", [x, widths], middle, 22)
    else:
        value = file.constant([code], TensorType.INT8, scale=0.05, zero_point=zero_point)
        file.operator("PADV2", [x, widths, value], middle, 43)
    if name == "CONV_2D":
        weight = file.constant(np.arange(-27, 27).reshape(2, 3, 3, 3), TensorType.INT8, scale=0.01)
        y = file.tensor((1, 7, 6, 2), 0.02, -4)
        options = [("b", 1), ("i", 1), ("i", 1), ("b", 0), ("i", 1), ("i", 1)]
        bias = file.constant([100, -200])  # LiteRT takes no convolution without
        file.operator(name, [middle, weight, bias], y, 1, dict(enumerate(options)))
    else:
        y = file.tensor((1, 7, 6, 3), 0.05, zero_point)
        options = [("b", 1), ("i", 1), ("i", 1), ("i", 3), ("i", 3), ("b", 0)]
        file.operator(name, [middle], y, 5, dict(enumerate(options)))
    return file, x, y


@pytest.mark.parametrize(
    ("name", "code", "kinds"),
    [
        ("CONV_2D", None, [Conv2d]),
        ("CONV_2D", 5, [Conv2d]),
        ("MAX_POOL_2D", -128, [MaxPool2d]),
        ("MAX_POOL_2D", None, [Pad, MaxPool2d]),
    ],
)
def test_padding_goes_into_the_window_that_reads_it(
    name: str, code: int | None, kinds: list[type], tmp_path: Path
) -> None:
    file, x, y = padded_window(name, code)
    graph = equal_in_both(file.content([x], [y]), tmp_path)
    assert [type(op) for op in graph.ops] == kinds
    if len(kinds) == 1:
        assert graph.ops[0].padding == (1, 0, 2, 1)


def test_padding_that_is_an_output_too_stays_an_operation(tmp_path: Path) -> None:
    file, x, y = padded_window("CONV_2D", None)
    graph = equal_in_both(file.content([x], [y, x + 1]), tmp_path)
    assert {type(op) for op in graph.ops} == {Pad, Conv2d}


def test_reshape_squeeze_concatenation_and_nearest_neighbour(tmp_path: Path) -> None:
    file, parameters = TfliteFile(), (0.1, -7)
    x = file.tensor((1, 4, 1, 6), *parameters)
    flat, image = file.tensor((1, 4, 6), *parameters), file.tensor((1, 2, 3, 4), *parameters)
    big, joined = file.tensor((1, 6, 6, 4), *parameters), file.tensor((1, 6, 12, 4), *parameters)
    file.operator("SQUEEZE", [x], flat, 30, {0: [2]})
    file.operator("RESHAPE", [flat, file.constant([1, 2, 3, 4])], image, 17)
    file.operator("RESIZE_NEAREST_NEIGHBOR", [image, file.constant([6, 6])], big, 74, {1: ("B", 1)})
    file.operator("CONCATENATION", [big, big], joined, 10, {0: ("i", -2)})
    graph = equal_in_both(file.content([x], [joined]), tmp_path)
    assert graph.tensors[graph.outputs[0]].shape == (6, 12, 4)


def test_a_reshape_between_two_scales_keeps_every_code(tmp_path: Path) -> None:
    file = TfliteFile()
    x, y = file.tensor((1, 4, 6), 0.1, 3), file.tensor((1, 24), 0.2, -9)
    file.operator("RESHAPE", [x, file.constant([1, 24])], y, 17)
    graph = equal_in_both(file.content([x], [y]), tmp_path)
    assert (graph.tensors[graph.outputs[0]].scale, graph.tensors[graph.outputs[0]].zero_point) == (
        float(np.float32(0.2)),
        -9,
    )


def test_concatenation_of_two_scales_rescales_as_quantize_would(tmp_path: Path) -> None:
    def made(rescaled_by_quantize: bool) -> bytes:
        file = TfliteFile()
        x, other = file.tensor((1, 256), 0.1, 3), file.tensor((1, 256), 0.07, 3)
        y = file.tensor((1, 512), 0.07, 3)
        if rescaled_by_quantize:
            file.operator("QUANTIZE", [x], other, 89)
        pair = [other, other] if rescaled_by_quantize else [x, x]
        file.operator("CONCATENATION", pair, y, 10, {0: ("i", 1)})
        return file.content([x], [y])

    graph = loaded(made(rescaled_by_quantize=False), tmp_path)
    assert [type(op) for op in graph.ops] == [Lookup, Concat]  # one table for both, since both are one tensor
    for runtime in RUNTIMES.values():
        (expected,) = runtime(made(rescaled_by_quantize=True), ALL_CODES)
        np.testing.assert_array_equal(graph.run(ALL_CODES), expected)


def test_a_table_by_cast_add_and_gather(tmp_path: Path) -> None:
    file, table = TfliteFile(), np.random.default_rng(0).integers(-128, 128, 256)
    x = file.tensor((1, 256), 0.1, 3)
    wide, index = (file.tensor((1, 256), kind=TensorType.INT32) for _ in range(2))
    y = file.tensor((1, 256), 0.5, 1)
    file.operator("CAST", [x], wide, 37, {0: ("b", TensorType.INT8), 1: ("b", TensorType.INT32)})
    file.operator("ADD", [wide, file.constant([128])], index, 11)
    file.operator("GATHER", [file.constant(table, TensorType.INT8, scale=0.5, zero_point=1), index], y, 23)
    graph = equal_in_both(file.content([x], [y]), tmp_path)
    (op,) = graph.ops
    np.testing.assert_array_equal(op.table, table)


# the ends


def test_float_ends_are_left_out(tmp_path: Path) -> None:
    file = TfliteFile()
    real, x = file.tensor((1, 8), kind=TensorType.FLOAT32), file.tensor((1, 8), 0.05, 3)
    y, result = file.tensor((1, 8), 0.05, 3), file.tensor((1, 8), kind=TensorType.FLOAT32)
    file.operator("QUANTIZE", [real], x, 89)
    file.operator("RELU", [x], y)
    file.operator("DEQUANTIZE", [y], result)
    content = file.content([real], [result])
    graph = loaded(content, tmp_path)
    values = np.random.default_rng(0).normal(0, 4, (16, 8)).astype(np.float32)
    ours = graph.dequantize(graph.run(values))
    for runtime in RUNTIMES.values():
        (theirs,) = runtime(content, values)
        # One step apart at most where a value lies on a tie: the runtimes divide by the scale as float32.
        np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_unsigned_ends_are_moved_by_128(tmp_path: Path) -> None:
    file = TfliteFile()
    pixels, x = file.tensor((1, 8), 0.05, 131, kind=TensorType.UINT8), file.tensor((1, 8), 0.05, 3)
    y, result = file.tensor((1, 8), 0.05, 3), file.tensor((1, 8), 0.05, 131, kind=TensorType.UINT8)
    file.operator("QUANTIZE", [pixels], x, 89)
    file.operator("RELU", [x], y)
    file.operator("QUANTIZE", [y], result, 89)
    content = file.content([pixels], [result])
    unsigned = np.random.default_rng(0).integers(0, 256, (4, 8), dtype=np.uint8)
    codes = (unsigned.astype(int) - 128).astype(np.int8)
    (theirs,) = litert(content, unsigned)
    np.testing.assert_array_equal(loaded(content, tmp_path).run(codes).astype(int) + 128, theirs)


def test_layers_that_share_a_buffer_share_its_array(tmp_path: Path) -> None:
    file = TfliteFile()
    a, b, c = (file.tensor((1, 16), 0.1, 0) for _ in range(3))
    weight = file.constant(np.eye(16), TensorType.INT8, scale=1.0)
    for source, target in ((a, b), (b, c)):
        file.operator("FULLY_CONNECTED", [source, weight], target, 8)
    graph = loaded(file.content([a], [c]), tmp_path)
    assert graph.ops[0].weight is graph.ops[1].weight


def test_operations_that_no_output_needs_are_left_out(tmp_path: Path) -> None:
    file = TfliteFile()
    x, y, unused = (file.tensor((1, 8), 0.1, 0) for _ in range(3))
    file.operator("RELU", [x], y)
    file.operator("RELU", [x], unused)
    assert len(loaded(file.content([x], [y]), tmp_path).ops) == 1

"""A head that a TensorFlow Lite file writes as a convolution on one pixel is trained as the linear layer that it is."""

import numpy as np
import pytest
import torch
from torch import nn

from lilliput.errors import UnsupportedOpError
from lilliput.mcu import load_tflite
from lilliput.mcu.training.linear_head import with_linear_head
from lilliput.mcu.training.update_plan import head_of, weighted_layers
from lilliput.quantize import quantize_int8
from lilliput.quantize.qgraph import Conv2d, Linear


def quantized(*tail: nn.Module):
    torch.manual_seed(1)
    model = nn.Sequential(nn.Conv2d(1, 6, 3, stride=2, padding=1), nn.ReLU6(), *tail).eval()
    return quantize_int8(model, torch.rand(16, 1, 8, 8))


def test_a_head_read_back_from_a_file_is_linear_and_answers_with_the_same_bytes(tmp_path):
    made = quantized(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4))
    read = load_tflite(made.save_tflite(tmp_path / "model.tflite"))
    assert isinstance([op for op in read.ops if isinstance(op, (Conv2d, Linear))][-1], Conv2d)
    with pytest.raises(UnsupportedOpError, match="the last layer must be linear"):
        head_of(read)
    found = with_linear_head(read)
    assert head_of(found).weight.shape == (4, 6)
    assert len(weighted_layers(found)) == 1
    codes = np.random.default_rng(0).integers(-128, 128, (5, 8, 8, 1), dtype=np.int8)
    assert np.array_equal(found.run(codes), made.run(codes))


@pytest.mark.parametrize(
    "tail",
    [(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4)), (nn.Conv2d(6, 4, 1), nn.AdaptiveAvgPool2d(1))],
    ids=["linear already", "a convolution on a map"],
)
def test_any_other_network_is_left_alone(tail):
    made = quantized(*tail)
    assert with_linear_head(made) is made

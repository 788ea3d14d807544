"""A published int8 network learns to tell faces from what is none, in the C of the device and within its memory."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from lilliput.mcu.training.host_library import HostModel
from lilliput.mcu.training.optimizer import SGD
from lilliput.mcu.training.rate import warmup_cosine
from lilliput.mcu.training.train_step import compile_training
from lilliput.mcu.training.update_plan import UpdatePlan, weighted_layers
from lilliput.quantize.tflite import load_tflite
from mcu.training.digit_step import needs_cc, needs_qemu
from quantize.tflite_runtimes import shared_model

EPOCHS, EMULATED = 5, 2


def faces() -> tuple[np.ndarray, np.ndarray]:
    """Codes of 96x96 images, and 1 for each of the hundred faces among them; shuffled, so that any half has about as many."""
    data = pytest.importorskip("skimage.data", reason="scikit-image, whose wheel holds the images, is not installed")
    pixels = torch.from_numpy(255 * data.lfw_subset())[:, None]
    large = functional.interpolate(pixels, (96, 96), mode="bilinear", align_corners=False).round().clamp(0, 255) - 128
    codes = large.to(torch.int8).expand(-1, 3, -1, -1).permute(0, 2, 3, 1).numpy()
    order = np.random.default_rng(0).permutation(200)
    return np.ascontiguousarray(codes[order]), np.repeat([1, 0], 100)[order]


@pytest.mark.slow
@needs_cc
@needs_qemu
def test_faces_are_learnt_by_the_c_of_the_device_in_256_kb(tmp_path: Path) -> None:
    graph = load_tflite(shared_model("vww_96_int8"))
    x, y = faces()
    pointwise = [op.name for op in weighted_layers(graph)[8:15] if op.weight.shape[1:3] == (1, 1)]
    plan = UpdatePlan.from_ratios(graph, 19, dict.fromkeys(pointwise, 1))
    step = compile_training(graph, plan, num_classes=2, optimizer=SGD(0.02), sram="256KB", flash="1MB", seed=0)
    firmware = step.emit_c(tmp_path / "firmware")
    model, losses = HostModel(firmware), []
    order = np.concatenate([np.random.default_rng(epoch).permutation(100) for epoch in range(EPOCHS)])
    rates = warmup_cosine(len(order))
    for index, rate in zip(order, rates, strict=True):
        model.set_rate(int(rate))
        losses.append(model.train_step(x[index], int(y[index])) / 2**16)
        if len(losses) == EMULATED:
            first = order[:EMULATED]
            receipt = firmware.run(x[first], y[first], rates=rates[:EMULATED])
            assert receipt.weights_digest == model.state.digest != step.start().digest
            assert (receipt.losses == losses).all()
            assert receipt.sram_bytes <= 262_144
    by_epoch = np.array(losses).reshape(EPOCHS, 100).mean(axis=1)
    assert by_epoch[0] >= 5 * by_epoch[-1]
    assert np.mean([model.predict(each) == label for each, label in zip(x[100:], y[100:], strict=True)]) >= 0.9
    for name in pointwise:
        masters = model.state.masters[f"{name}.weight"].astype(np.int64)
        assert ((masters + 128 >> 8) != step.program.parameters[f"{name}.weight"].initial.astype(np.int64) >> 8).any()

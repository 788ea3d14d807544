"""The published networks at 128x128 learn within 256 KB and 1 MB on the emulated Cortex-M7, stack and all, as the simulation does."""

from pathlib import Path

import numpy as np
import pytest

from lilliput.mcu.training.optimizer import SGD
from lilliput.mcu.training.train_step import compile_training
from lilliput.mcu.training.update_plan import UpdatePlan, weighted_layers
from mcu.training.digit_step import needs_qemu
from mcu.training.published_networks import SCHEMES, published, ratios_of


@pytest.mark.slow
@needs_qemu
@pytest.mark.parametrize(("name", "scheme"), [("mbv2-w0.35", 0), ("mcunet-5fps", 2), ("proxyless-w0.3", 2)])
def test_a_published_scheme_runs_in_256_kb(name: str, scheme: int, tmp_path: Path) -> None:
    qgraph = published(name, 128, 10, seed=0)
    depth, numbers, shares, _ = SCHEMES[name][scheme]
    plan = UpdatePlan.from_ratios(qgraph, depth, ratios_of(weighted_layers(qgraph), numbers, shares))
    step = compile_training(qgraph, plan, optimizer=SGD(0.001), sram="256KB", flash="1MB")
    x = np.random.default_rng(0).integers(-128, 128, (2, 128, 128, 3), dtype=np.int8)
    y = np.array([3, 7])
    log = step.simulate(x, y)
    receipt = step.emit_c(tmp_path / "firmware").run(x, y)
    assert receipt.weights_digest == log.weights_digest != step.start().digest
    assert receipt.losses_q16.tolist() == log.losses_q16.tolist()
    assert receipt.sram_bytes <= 262_144
    assert receipt.stack_bytes <= step.stack_bytes
    assert receipt.flash_bytes <= 2**20

"""The pieces that the loop is made of: order, augmentation, schedule, averages, config."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lilliput.errors import ConfigError
from lilliput.training import FitConfig, learning_rate
from lilliput.training.augment import Augmentation, draw_augmentation
from lilliput.training.ema import WeightAverage
from lilliput.training.order import batch_count, epoch_batches

CPU = torch.device("cpu")


@given(st.integers(1, 400), st.integers(1, 90), st.integers(0, 9), st.integers(1, 9))
@settings(deadline=None)
def test_an_epoch_holds_every_image_once_in_batches_of_nearly_one_size(count: int, size: int, seed: int, epoch: int):
    batches = epoch_batches(count, size, seed, epoch)
    assert sorted(np.concatenate(batches).tolist()) == list(range(count))
    sizes = [len(batch) for batch in batches]
    assert max(sizes) <= size
    assert max(sizes) - min(sizes) <= 1
    assert len(batches) == batch_count(count, size)


def test_the_order_follows_from_seed_and_epoch_alone():
    def order(seed: int, epoch: int) -> list[int]:
        return np.concatenate(epoch_batches(50, 8, seed, epoch)).tolist()

    assert order(1, 2) == order(1, 2)
    assert order(1, 2) != order(1, 3)
    assert order(1, 2) != order(2, 2)


def test_the_learning_rate_rises_in_a_line_and_falls_along_half_a_cosine():
    rates = [learning_rate(step, 100, 0.8, 0.1) for step in range(100)]
    assert rates[:10] == pytest.approx([0.08 * (k + 1) for k in range(10)])
    assert rates[10] == 0.8
    assert rates[55] == pytest.approx(0.4)
    assert rates[99] == pytest.approx(0.8 * 0.5 * (1 - math.cos(math.pi / 90)))
    assert all(a > b for a, b in itertools.pairwise(rates[10:]))
    assert learning_rate(0, 1, 0.8, 0.9) == 0.8


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_a_shift_moves_each_image_by_its_own_amount_and_fills_with_black(dtype: torch.dtype):
    images = torch.arange(1, 3 * 2 * 4 * 5 + 1).reshape(3, 2, 4, 5).to(dtype)
    still = torch.zeros(3, dtype=torch.bool)
    changes = Augmentation(2, torch.tensor([1, 0, -2]), torch.tensor([0, -1, 2]), still)
    down, left, up_right = changes.apply(images, torch.tensor([0, 1, 2]))
    assert torch.equal(down[:, 1:], images[0, :, :-1])
    assert not down[:, 0].any()
    assert torch.equal(left[:, :, :-1], images[1, :, :, 1:])
    assert not left[:, :, -1].any()
    assert torch.equal(up_right[:, :2, 2:], images[2, :, 2:, :3])
    assert not up_right[:, 2:].any()
    assert not up_right[:, :, :2].any()
    assert down.dtype == dtype


def test_a_flip_mirrors_left_and_right():
    images = torch.arange(2 * 3 * 4).reshape(2, 1, 3, 4).float()
    changes = Augmentation(0, torch.zeros(2).long(), torch.zeros(2).long(), torch.tensor([True, False]))
    flipped = changes.apply(images, torch.tensor([0, 1]))
    assert torch.equal(flipped[0], images[0].flip(2))
    assert torch.equal(flipped[1], images[1])


def test_an_image_is_changed_alike_in_whatever_batch_it_lands():
    images = torch.rand(40, 1, 6, 6)
    changes = draw_augmentation(40, shift_pixels=2, flip_horizontal=True, seed=3, epoch=4, device=CPU)
    assert changes is not None
    everything = changes.apply(images, torch.arange(40))
    index = torch.tensor([7, 31, 2])
    assert torch.equal(changes.apply(images[index], index), everything[index])


def test_shifts_and_flips_are_drawn_evenly():
    changes = draw_augmentation(50_000, shift_pixels=2, flip_horizontal=True, seed=0, epoch=1, device=CPU)
    assert changes is not None
    for shift in (changes.row_shift, changes.column_shift):
        shares = np.unique(shift.numpy(), return_counts=True)
        assert shares[0].tolist() == [-2, -1, 0, 1, 2]
        assert np.abs(shares[1] / 50_000 - 0.2).max() < 0.01  # five standard deviations are 0.009
    assert abs(changes.is_flipped.float().mean().item() - 0.5) < 0.012
    assert draw_augmentation(9, shift_pixels=0, flip_horizontal=False, seed=0, epoch=1, device=CPU) is None


def test_the_average_follows_its_formula_and_copies_counters():
    model = nn.BatchNorm1d(2)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([1.0, 2.0]))
    average = WeightAverage(model, 0.5)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([2.0, 0.0]))
        model.running_mean.fill_(1.0)
        model.num_batches_tracked.fill_(7)
    average.update(model, 0)  # decay min(0.5, 1/10)
    assert torch.allclose(average.model.weight, torch.tensor([1.9, 0.2]))
    assert torch.allclose(average.model.running_mean, torch.tensor([0.9, 0.9]))
    assert average.model.num_batches_tracked == 7
    average.update(model, 1000)  # decay 0.5
    assert torch.allclose(average.model.weight, torch.tensor([1.95, 0.1]))
    assert not any(p.requires_grad for p in average.model.parameters())


BAD_CONFIGS: list[tuple[dict[str, Any], str]] = [
    ({"epochs": 0}, r"epochs=0: must be 1 or more; try epochs=1"),
    ({"batch_size": 0}, r"batch_size=0: must be 1 or more"),
    ({"devices": 0}, r"devices=0: must be 1 or more"),
    ({"patience": -1}, r"patience=-1: must be 0 or more"),
    ({"shift_pixels": -1}, r"shift_pixels=-1: must be 0 or more"),
    ({"seed": -1}, r"seed=-1: must be 0 or more"),
    ({"cpu_threads": -1}, r"cpu_threads=-1: must be 0 or more"),
    ({"lr": 0.0}, r"lr=0.0: must be more than 0 and finite; try lr="),
    ({"lr": float("nan")}, r"lr=nan: must be more than 0"),
    ({"weight_decay": -1.0}, r"weight_decay=-1.0: must be 0 or more"),
    ({"warmup_fraction": 1.0}, r"warmup_fraction=1.0: must be 0 to less than 1"),
    ({"label_smoothing": 1.0}, r"label_smoothing=1.0: must be 0 to less than 1; try label_smoothing=0.1"),
    ({"ema": 1.0}, r"ema=1.0: must be 0 to less than 1; try ema=0.99"),
    ({"optimizer": "adam"}, r"optimizer='adam': must be one of adamw, sgd"),
    ({"precision": "8-bit"}, r"precision='8-bit': must be one of 32-true, bf16-mixed, 16-mixed"),
    ({"accelerator": "gpu"}, r"accelerator='gpu': must be one of auto, cpu, cuda, mps"),
]


def make_config(options: dict[str, Any]) -> FitConfig:
    config = object.__new__(FitConfig)  # past the type checker, as an untyped caller would be
    defaults = FitConfig()
    for name in defaults.__dataclass_fields__:
        object.__setattr__(config, name, options.get(name, getattr(defaults, name)))
    config.__post_init__()
    return config


@pytest.mark.parametrize(("options", "message"), BAD_CONFIGS)
def test_options_out_of_range_are_refused_with_what_would_work(options: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message):
        make_config(options)


def test_the_config_is_a_command_line():
    tyro = pytest.importorskip("tyro")
    config = tyro.cli(FitConfig, args=["--epochs", "3", "--flip-horizontal", "--optimizer", "sgd"])
    assert (config.epochs, config.flip_horizontal, config.optimizer) == (3, True, "sgd")


def test_importing_the_room_and_its_config_loads_no_torch():
    heavy = "torch lightning_fabric sklearn scipy rich"
    code = f"import sys; from lilliput.training import FitConfig; print([m for m in '{heavy}'.split() if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_every_public_name_can_be_had():
    import lilliput.training

    for name in lilliput.training.__all__:
        assert callable(getattr(lilliput.training, name))
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = lilliput.training.nothing

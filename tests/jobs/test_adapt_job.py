"""A network learns new surroundings on the chip: choice, training, resumption, and what the run claims of it."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from lilliput.data import load_images
from lilliput.errors import BudgetError, ConfigError, DataError, ToolchainError
from lilliput.evidence import Run
from lilliput.jobs import adapt_training
from lilliput.jobs.adapt import AdaptConfig, adapt
from lilliput.jobs.adapt_subject import load_backbone, load_task
from lilliput.jobs.adapt_training import Course, Progress
from lilliput.mcu import find_toolchain
from lilliput.mcu.boards import find_board
from lilliput.mcu.training.firmware import TrainFirmware
from lilliput.mcu.training.host_library import HostModel
from lilliput.quantize import quantize_int8


def board() -> str:
    try:
        find_toolchain(find_board("mps2-an500"))
    except ToolchainError:
        pytest.skip("no cross compiler and emulator")
    return "mps2-an500"


class DigitNet(nn.Module):
    """An inverted bottleneck with a skip connection for 8x8 digits."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 12, 3, stride=2, padding=1), nn.ReLU6())
        self.expand = nn.Sequential(nn.Conv2d(12, 24, 1), nn.ReLU6())
        self.depthwise = nn.Sequential(nn.Conv2d(24, 24, 3, padding=1, groups=24), nn.ReLU6())
        self.project = nn.Conv2d(24, 12, 1)
        self.head = nn.Linear(12, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        return self.head((x + self.project(self.depthwise(self.expand(x)))).mean((2, 3)))


@pytest.fixture(scope="module")
def trained() -> DigitNet:
    images, labels = load_images("digits").train.tensors()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = DigitNet()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        for _ in range(12):
            for chosen in torch.randperm(len(images)).split(64):
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(images[chosen]), labels[chosen]).backward()
                optimizer.step()
    return model.eval()


@pytest.fixture(scope="module")
def model(trained, tmp_path_factory) -> Path:
    images, _ = load_images("digits").train.tensors()
    return quantize_int8(trained, images[:256]).save_tflite(tmp_path_factory.mktemp("models") / "digits.tflite")


def config(model: Path, out: Path, **options) -> AdaptConfig:
    given = {"data": "digits", "shift": "invert", "board": "host", "steps": 300, "quiet": True, "pytorch": False}
    return AdaptConfig(**{"model": str(model), "out": str(out), **given, **options})


def figures(run: Run) -> dict:
    return {
        name: each["value"]
        for name, each in json.loads((run.path / "evidence.json").read_text()).items()
        if name[0] != "$"
    }


def section(run: Run, name: str):
    (found,) = (each for each in run.report.sections if each.id == name)
    return found


def page(run: Run) -> str:
    return (run.path / "report.html").read_text()


# On the chip


@pytest.fixture(scope="module")
def on_chip(model, tmp_path_factory) -> Run:
    out = tmp_path_factory.mktemp("runs") / "inverted"
    return adapt(config(model, out, board=board(), sram="10KB", flash="128KB", emulate=16, pytorch=True))


def test_python_c_and_chip_learn_the_same_within_the_budget(on_chip):
    found = figures(on_chip)
    assert found["weights.digest_match"] == 1
    assert on_chip.evidence["weights.digest_match"].n == 16
    assert found["answers.mismatching"] == 0
    assert on_chip.evidence["answers.mismatching"].n == 359 + 8 * 10  # classes of all test images, logits of eight
    assert found["sram.total"] == found["sram.static"] + found["sram.stack"] <= 10 * 1024
    assert found["sram.static"] >= found["sram.arena"] + found["sram.trained"]
    assert found["flash.total"] <= 128 * 1024
    assert found["instructions.per_step"] > 0
    assert found["accuracy.after"] > found["accuracy.before"] + 0.1
    assert on_chip.report.holds
    assert on_chip.report.verdict.startswith("fits: ")
    for name, how in {"sram.total": "emulated", "sram.full": "counted", "accuracy.after": "measured"}.items():
        assert on_chip.evidence[name].how == how


def test_the_report_shows_curves_the_choice_memory_and_pytorch_both_ways(on_chip):
    assert [each.id for each in on_chip.report.sections] == ["learning", "choice", "memory", "pytorch", "weights"]
    found = figures(on_chip)
    rows = {row[0]: row[1] for row in section(on_chip, "pytorch").blocks[0].rows}
    assert rows["PyTorch: process, high water"] == found["pytorch.high_water"] > found["pytorch.above_import"]
    assert rows["PyTorch: tensors alone"] == found["pytorch.tensors"] > found["sram.total"]
    layers = section(on_chip, "choice").blocks[-1].rows
    assert [row[0] for row in layers] == [0, 1, 2, 3, 4]
    assert any(row[3] > 0 for row in layers[:-1]), "the search spends the memory there is on weights"
    assert "Their sum was maximised within the budget" in page(on_chip)
    for name in ("learning-1", "learning-2", "choice-1", "choice-2", "memory"):
        assert (on_chip.path / "figures" / f"{name}.svg").exists()
    assert "https://" not in page(on_chip)


def test_what_pytorch_keeps_is_counted_by_hand(on_chip):
    """Images 8x8 and maps 4x4 of float32: the input, each ReLU's result and the sum are saved; the pool and the head's input too."""
    detail = on_chip.evidence["pytorch.tensors"].detail
    parameters = sum(each.numel() for each in DigitNet().parameters())
    assert detail["parameters"] == detail["gradients"] == 4 * parameters
    maps = 8 * 8 + 4 * 4 * (12 + 24 + 24)
    assert 4 * maps <= detail["saved"] <= 4 * (maps + 4 * 4 * 24 + 2 * 12 + 3 * 10 + 8)


def test_the_image_it_left_restores_what_was_learnt(on_chip):
    firmware = TrainFirmware(on_chip.path / "artifacts" / "firmware")
    image = (on_chip.path / "artifacts" / "params.bin").read_bytes()
    assert len(image) == figures(on_chip)["params.image"]
    device = HostModel(firmware)
    device.set_params(image)
    assert device.state.digest == figures(on_chip)["weights.digest"]
    task = load_task(config(Path(on_chip.config["model"]), Path("x")), load_backbone(on_chip.config["model"]))
    assert adapt_training.accuracy(device, task.test) == figures(on_chip)["accuracy.after"]
    assert not (on_chip.path / "adapt.checkpoint").exists()


def test_a_chip_that_learns_otherwise_is_told(model, tmp_path, monkeypatch):
    honest = TrainFirmware.run

    def lying(self, x, y=None, *arguments, **options):
        receipt = honest(self, x, y, *arguments, **options)
        if y is None:
            return receipt
        state = receipt.state.copy()
        next(iter(state.masters.values())).flat[0] ^= 1
        return replace(receipt, state=state)

    monkeypatch.setattr(TrainFirmware, "run", lying)
    run = adapt(config(model, tmp_path / "run", board=board(), scheme="head", steps=8, emulate=4))
    assert figures(run)["weights.digest_match"] == 0
    assert run.report.holds is False
    assert "DO NOT learn the same" in run.report.verdict


# On this computer alone


@pytest.fixture(scope="module")
def whole(model, tmp_path_factory) -> Run:
    """An uninterrupted run, to compare with."""
    return adapt(config(model, tmp_path_factory.mktemp("runs") / "whole", scheme="last:3"))


def test_without_a_chip_nothing_is_claimed_of_one(whole):
    found = figures(whole)
    assert not {"weights.digest_match", "sram.total", "flash.total", "instructions.per_step"} & set(found)
    assert found["weights.digest_match_host"] == 1
    assert whole.report.holds
    assert "this computer only" in whole.report.verdict
    assert "No chip was emulated" in page(whole)
    assert "PyTorch was not measured" in page(whole)


def test_other_choices_are_counted_beside_it(whole):
    found = figures(whole)
    assert found["sram.head"] < found["sram.planned"] < found["sram.full"] <= found["sram.full_unordered"]
    assert found["sram.planned"] < found["sram.unordered"]
    rows = {row[0]: row[1] for row in next(b for b in section(whole, "memory").blocks if hasattr(b, "columns")).rows}
    assert rows["this choice"] == found["sram.planned"]


class Power:
    """Fails after so many steps of training, and counts them."""

    def __init__(self, monkeypatch, steps: int) -> None:
        self.taken, honest = 0, HostModel.train_step

        def step(model, x, label):
            if self.taken == steps:
                raise KeyboardInterrupt
            self.taken += 1
            return honest(model, x, label)

        monkeypatch.setattr(HostModel, "train_step", step)


def test_interrupted_it_goes_on_from_its_last_image_to_the_same_weights(whole, model, tmp_path, monkeypatch):
    options = {"scheme": "last:3", "emulate": 10, "checkpoint": 40}
    with monkeypatch.context() as patch:
        Power(patch, 10 + 137)
        with pytest.raises(KeyboardInterrupt):
            adapt(config(model, tmp_path / "run", **options))
    assert [path.name for path in tmp_path.iterdir()] == ["run.partial"]
    with monkeypatch.context() as patch:
        power = Power(patch, 10_000)
        run = adapt(config(model, tmp_path / "run", **options, resume=True))
    assert power.taken == 10 + 300 - 135, "accuracy is measured every 15 steps, and what was learnt is saved with it"
    ours, theirs = figures(run), figures(whole)
    for name in ("weights.digest", "accuracy.after", "accuracy.before"):
        assert ours[name] == theirs[name]
    images = [(each.path / "artifacts" / "params.bin").read_bytes() for each in (run, whole)]
    assert images[0] == images[1]
    curves = [[block.svg for block in section(each, "learning").blocks[:2]] for each in (run, whole)]
    assert curves[0] == curves[1]


def test_a_checkpoint_of_another_training_or_a_damaged_one_is_refused(tmp_path):
    path = tmp_path / "adapt.checkpoint"
    Progress(b"image", [1, 2], [(0, 0.5)]).save(path, "this")
    read = Progress.load(path, "this")
    assert (read.params, read.losses_q16, read.accuracy, read.step) == (b"image", [1, 2], [(0, 0.5)], 2)
    with pytest.raises(ConfigError, match="is of another training"):
        Progress.load(path, "that")
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(DataError, match="no training can go on from it"):
        Progress.load(path, "this")


def test_a_budget_that_cannot_be_leaves_nothing(model, tmp_path):
    with pytest.raises(BudgetError, match="needs .* bytes of SRAM"):
        adapt(config(model, tmp_path / "run", scheme="full", sram="3KB"))
    assert list(tmp_path.iterdir()) == []


def test_flash_that_the_linker_refuses_leaves_the_name_free(model, tmp_path):
    with pytest.raises(BudgetError, match="flash"):
        adapt(config(model, tmp_path / "run", scheme="head", flash="4KB", steps=4, board=board()))
    assert list(tmp_path.iterdir()) == []


# What is adapted, and to what


def test_images_are_shifted_and_said_in_the_networks_codes(model):
    plain, turned, negative = (
        load_task(config(model, Path("x"), shift=shift), load_backbone(str(model)))
        for shift in ("none", "rotate", "invert")
    )
    pixels = load_images("digits").test.images
    assert np.array_equal(plain.test[0], (pixels.astype(int) - 128).astype(np.int8))
    assert np.array_equal(turned.test[0][:, 0, :, 0], plain.test[0][:, :, -1, 0]), (
        "the last column becomes the first row"
    )
    assert np.array_equal(negative.test[0].astype(int), -1 - plain.test[0].astype(int))
    assert np.array_equal(plain.test[1], turned.test[1])
    assert not plain.is_new_head


def test_new_classes_get_a_new_head(model, tmp_path):
    images = load_images("digits").train
    chosen = np.flatnonzero(images.labels < 3)[:150]
    np.savez(tmp_path / "three.npz", x=images.images[chosen], y=images.labels[chosen])
    run = adapt(
        config(model, tmp_path / "run", data=str(tmp_path / "three.npz"), shift="none", scheme="head", steps=120)
    )
    assert figures(run)["accuracy.after"] > 0.8
    assert run.evidence["accuracy.before"].detail == "a new head that has learnt nothing"
    with pytest.raises(ConfigError, match="tells 10 classes apart and 'three' has 3; use head='new'"):
        adapt(config(model, tmp_path / "other", data=str(tmp_path / "three.npz"), head="own"))


def test_a_float_network_is_quantized_and_adapted(trained, tmp_path):
    path = tmp_path / "digits.pt2"
    torch.export.save(torch.export.export(trained, (torch.rand(1, 1, 8, 8),)), path)
    run = adapt(config(path, tmp_path / "run", shift="none", scheme="head", steps=20))
    assert figures(run)["accuracy.before"] > 0.5
    assert figures(run)["weights.digest_match_host"] == 1


def test_data_must_be_named_where_no_build_knows_them(model, tmp_path):
    with pytest.raises(ConfigError, match="data is left out, and 'digits' is of no build"):
        adapt(config(model, tmp_path / "run", data=None))
    assert list(tmp_path.iterdir()) == []


def test_every_pass_over_the_samples_has_an_order_of_its_own():
    course = Course.of(10, 25, seed=3)
    assert len(course) == len(course.rates) == 25
    first, second = course.order[:10], course.order[10:20]
    assert sorted(first) == sorted(second) == list(range(10))
    assert first.tolist() != second.tolist()
    assert course.rates[0] == 2**15
    assert course.rates[-1] < 200


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"steps": 1}, "steps=1: must be 2 or more"),
        ({"rate": 0.0}, "rate=0.0: must be above 0"),
        ({"rate": float("nan")}, "must be above 0"),
        ({"scheme": "last"}, "must be auto, full, head or last:K"),
        ({"scheme": "most"}, "must be auto, full, head or last:K"),
        ({"emulate": 1}, "emulate=1"),
        ({"seed": -1}, "seed=-1"),
        ({"sram": "lots"}, "lots"),
    ],
)
def test_options_out_of_range_are_refused_by_name(options, words, tmp_path):
    with pytest.raises(ConfigError, match=words):
        config(Path("x.tflite"), tmp_path / "run", **options)

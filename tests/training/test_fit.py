from __future__ import annotations

import multiprocessing
import random
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import lilliput.training.devices
from lilliput.errors import ConfigError, DataError, LilliputError
from lilliput.training import DivergenceError, EpochRecord, FitConfig, FitResult, evaluate, fit
from lilliput.training.ema import WeightAverage
from training.small_networks import mlp, same_bits, small_cnn, stripes

TRAIN, VAL = stripes(180), stripes(60, seed=1)


def run(model: nn.Module, train: Any = TRAIN, val: Any = VAL, **options: Any) -> FitResult:
    call = {k: options.pop(k) for k in ("loss", "checkpoint", "resume", "on_epoch", "progress") if k in options}
    config = FitConfig(**{"epochs": 4, "batch_size": 32, "lr": 0.01, "accelerator": "cpu", **options})
    return fit(model, train, val, config, **{"progress": False, **call})


def test_a_network_learns_and_ends_with_the_weights_of_its_best_epoch():
    model = small_cnn()
    records: list[EpochRecord] = []
    result = run(model, epochs=12, on_epoch=records.append)
    assert result.val_accuracy >= 0.95
    assert result.history == tuple(records)
    assert [r.epoch for r in records] == list(range(1, 13))
    best = max(records, key=lambda r: (r.val_accuracy, -r.val_loss))
    assert (result.best_epoch, result.val_accuracy, result.val_loss) == (best.epoch, best.val_accuracy, best.val_loss)
    metrics = evaluate(model, VAL)
    assert metrics.accuracy == result.val_accuracy
    assert metrics.loss == pytest.approx(result.val_loss, rel=1e-5)  # another memory layout, so another order of sums
    assert not model.training


def test_the_best_epoch_is_kept_even_when_it_is_not_the_last():
    steps = 0

    def turns_around(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Cross entropy for five epochs of six steps, then its opposite: the network unlearns."""
        nonlocal steps
        steps += torch.is_grad_enabled()
        return F.cross_entropy(logits, labels) * (-1 if steps > 30 else 1)

    model = small_cnn()
    result = run(model, epochs=12, loss=turns_around)
    assert result.best_epoch < 12
    assert evaluate(model, VAL).accuracy == result.val_accuracy > result.history[-1].val_accuracy


def test_among_epochs_as_accurate_the_one_with_the_lower_loss_is_best():
    result = run(small_cnn(), epochs=15)
    top = [r for r in result.history if r.val_accuracy == result.val_accuracy]
    assert len(top) > 1
    assert result.best_epoch == min(top, key=lambda r: r.val_loss).epoch


def test_the_same_seed_gives_the_same_bits_and_another_seed_does_not():
    a, b, c = small_cnn(), small_cnn(), small_cnn()
    run(a, seed=1, shift_pixels=1)
    torch.rand(7)  # whatever the caller draws in between
    run(b, seed=1, shift_pixels=1)
    run(c, seed=2, shift_pixels=1)
    assert same_bits(a, b)
    assert not same_bits(a, c)


def test_the_callers_random_numbers_and_threads_are_left_alone():
    def draw() -> tuple[float, float, float]:
        return torch.rand(1).item(), float(np.random.rand()), random.random()

    torch.manual_seed(5), np.random.seed(5), random.seed(5)
    expected = draw()
    torch.manual_seed(5), np.random.seed(5), random.seed(5)
    threads = torch.get_num_threads()
    run(small_cnn(), epochs=1, cpu_threads=2)
    assert draw() == expected
    torch.manual_seed(5), np.random.seed(5), random.seed(5)
    with pytest.raises(DivergenceError):
        run(small_cnn(), epochs=3, optimizer="sgd", lr=1e30)
    assert draw() == expected
    assert torch.get_num_threads() == threads


def test_one_sgd_step_is_the_step_worked_by_hand():
    """One batch, no warm-up, so the rate is the peak; Nesterov's first step moves by lr (1 + 0.9) (gradient + decay * weight)."""
    model, by_hand = mlp(), mlp()
    images, labels = TRAIN
    run(model, train=TRAIN, epochs=1, batch_size=180, optimizer="sgd", lr=0.1, warmup_fraction=0.0, weight_decay=0.01)
    F.cross_entropy(by_hand(images.float() / 255), labels).backward()
    for (name, trained), start in zip(model.named_parameters(), by_hand.parameters(), strict=True):
        decay = 0.01 if name.endswith("weight") else 0.0
        expected = start - 0.1 * 1.9 * (start.grad + decay * start)
        assert torch.allclose(trained, expected, rtol=1e-4, atol=1e-6), name


def test_the_loss_of_an_epoch_is_the_mean_over_its_images_and_smoothing_is_cross_entropys():
    model = mlp()
    images, labels = TRAIN
    with torch.no_grad():
        expected = F.cross_entropy(model(images.float() / 255), labels, label_smoothing=0.2).item()
    result = run(model, epochs=1, batch_size=50, lr=1e-12, label_smoothing=0.2)
    assert result.history[0].train_loss == pytest.approx(expected, rel=1e-5)


def test_a_loss_of_ones_own_is_used_for_training_and_validation():
    def scaled(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return 3 * F.cross_entropy(logits, labels)

    plain, tripled = run(mlp(), epochs=1, lr=1e-12), run(mlp(), epochs=1, lr=1e-12, loss=scaled)
    assert tripled.history[0].train_loss == pytest.approx(3 * plain.history[0].train_loss, rel=1e-5)
    assert tripled.val_loss == pytest.approx(3 * plain.val_loss, rel=1e-5)
    with pytest.raises(ConfigError, match=r"label_smoothing=0.1 with a loss of your own.*use label_smoothing=0"):
        run(mlp(), loss=scaled, label_smoothing=0.1)


def test_training_stops_after_so_many_epochs_without_a_better_one():
    result = run(small_cnn(), epochs=40, patience=3)
    assert result.stopped_early
    assert len(result.history) == result.best_epoch + 3
    assert not run(small_cnn(), epochs=3).stopped_early


def test_the_weight_average_is_what_is_validated_and_kept():
    averaged, plain = small_cnn(dropout=0), small_cnn(dropout=0)
    result = run(averaged, epochs=3, ema=0.9)
    run(plain, epochs=3)
    assert not same_bits(averaged, plain)
    assert evaluate(averaged, VAL).loss == pytest.approx(result.val_loss, rel=1e-5)


def test_the_weight_average_is_told_the_step_of_the_whole_training(monkeypatch: pytest.MonkeyPatch):
    steps: list[int] = []
    update = WeightAverage.update
    monkeypatch.setattr(
        WeightAverage, "update", lambda self, model, step: (steps.append(step), update(self, model, step))
    )
    run(small_cnn(), epochs=3, ema=0.9)
    assert steps == list(range(18))


def test_divergence_names_epoch_step_and_learning_rate():
    with pytest.raises(
        DivergenceError, match=r"the loss is (nan|inf) at epoch 1, step \d of 6 .*lr=1e\+30, sgd\); try lr=1e\+29"
    ):
        run(small_cnn(), optimizer="sgd", lr=1e30)


def test_divergence_names_the_first_step_that_was_not_finite():
    """Steps are looked at fifty at a time; the one named is still the first."""
    calls = 0

    def breaks_at_70(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return F.cross_entropy(logits, labels) * (float("nan") if calls == 70 else 1.0)

    with pytest.raises(DivergenceError, match=r"the loss is nan at epoch 1, step 70 of 90"):
        run(mlp(), batch_size=2, loss=breaks_at_70)


def test_a_validation_loss_that_is_not_finite_is_divergence_too():
    def only_training(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(logits, labels) if torch.is_grad_enabled() else logits.sum() * float("nan")

    with pytest.raises(
        DivergenceError, match=r"the validation loss after epoch 1 is nan \(lr=0.01, adamw\); try lr=0.001"
    ):
        run(mlp(), loss=only_training)


def test_the_model_comes_back_in_its_own_layout_also_after_an_error():
    model = small_cnn()
    run(model, epochs=1)
    assert all(p.is_contiguous() and p.grad is None for p in model.parameters())
    broken = small_cnn()
    with pytest.raises(DivergenceError):
        run(broken, optimizer="sgd", lr=1e30)
    assert all(p.is_contiguous() for p in broken.parameters())


def test_frozen_weights_stay_as_they_are():
    model, before = small_cnn(), small_cnn()
    model.conv.weight.requires_grad_(False)
    run(model, epochs=2)
    assert torch.equal(model.conv.weight, before.conv.weight)
    assert not torch.equal(model.head.weight, before.head.weight)


def test_mixed_precision_trains():
    assert run(small_cnn(), epochs=8, precision="bf16-mixed").val_accuracy > 0.8


def test_quiet_is_quiet_and_the_bar_shows_the_figures(capsys: pytest.CaptureFixture[str]):
    run(mlp(), epochs=2)
    assert capsys.readouterr() == ("", "")
    run(mlp(), epochs=2, progress=True)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "2/2" in shown.err
    assert "val " in shown.err


def test_float_inputs_of_any_shape_are_trained_on_as_they_are():
    x = torch.randn(90, 5, generator=torch.Generator().manual_seed(0))
    data = (x, (x[:, 0] > 0).long())
    assert run(mlp(5, 2), data, data, epochs=30, lr=0.03).val_accuracy > 0.9
    with pytest.raises(ConfigError, match=r"inputs have shape \(90, 5\): only images .* can be shifted or flipped"):
        run(mlp(5, 2), data, VAL, shift_pixels=1)


IMAGES, LABELS = TRAIN
BAD_DATA: list[tuple[Any, str]] = [
    (42, r"train data is a int; allowed: an ImageSplit, or a pair"),
    ((IMAGES, ["a"] * 180), r"train data holds a list; allowed"),
    ((IMAGES, LABELS[:9]), r"train data has 180 inputs and 9 labels"),
    ((IMAGES[:0], LABELS[:0]), r"train data is empty"),
    ((IMAGES, LABELS.float()), r"train labels are torch.float32 of shape \(180,\); must be one class index"),
    ((IMAGES, LABELS - 1), r"train labels go down to -1"),
    ((IMAGES.float() / torch.zeros(1), LABELS), r"train input 0 has a value that is not finite"),
    ((IMAGES, LABELS + 1), r"labels go up to 3, but the network has 3 outputs; it needs at least 4"),
]


@pytest.mark.parametrize(("train", "message"), BAD_DATA)
def test_bad_training_data_is_refused(train: Any, message: str):
    with pytest.raises(DataError, match=message):
        run(mlp(), train)


def test_a_network_that_is_no_classifier_is_refused():
    with pytest.raises(
        DataError, match=r"the network's output is \(30, 1, 8, 8\); a classifier must give \(30, classes\)"
    ):
        run(nn.Conv2d(1, 1, 3, padding=1))
    with pytest.raises(ConfigError, match=r"the model has no weights that can be trained"):
        run(nn.Sequential(nn.Flatten()))


def test_more_devices_than_images_in_a_batch_are_refused():
    with pytest.raises(ConfigError, match=r"4 devices for batches of 3 images: every device needs at least one"):
        run(mlp(), devices=4, batch_size=3)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here, so asking for one is no error")
def test_a_device_that_is_not_there_is_refused_with_what_would_work():
    with pytest.raises(ConfigError, match=r"accelerator=cuda devices=1 .* cannot be had here .*try accelerator=cpu"):
        run(mlp(), accelerator="cuda")


def test_several_machines_need_a_launcher():
    with pytest.raises(ConfigError, match=r"num_nodes=2: more than one machine needs a launcher; start with torchrun"):
        run(mlp(), num_nodes=2)


def test_what_cannot_be_sent_to_another_process_is_refused():
    with pytest.raises(ConfigError, match=r"devices=2 starts a process per device, and loss cannot be sent to it"):
        run(mlp(), devices=2, loss=lambda logits, labels: F.cross_entropy(logits, labels))


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork on this system")
def test_two_processes_train_the_same_network_as_one(monkeypatch: pytest.MonkeyPatch):
    """Without batch norm and dropout, half batches in two processes must average to the whole batch's step."""
    # Forked and not spawned, because torch is loaded already: a second instead of ten.
    monkeypatch.setattr(lilliput.training.devices, "SPAWN_STRATEGY", "ddp_fork")
    one, two = mlp(), mlp()
    options = {"epochs": 3, "batch_size": 50, "shift_pixels": 1}
    alone, shared = run(one, **options), run(two, devices=2, **options)
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        assert torch.allclose(a, b, rtol=1e-3, atol=1e-4)  # sums in another order, over twelve steps of AdamW
    for x, y in zip(alone.history, shared.history, strict=True):
        assert y.val_accuracy == pytest.approx(x.val_accuracy, abs=1 / 60)
        assert y.train_loss == pytest.approx(x.train_loss, rel=1e-3)
        assert y.val_loss == pytest.approx(x.val_loss, rel=1e-3)


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork on this system")
@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_two_processes_validate_the_network_that_is_kept(monkeypatch: pytest.MonkeyPatch, ema: float):
    """Each has batch-norm statistics of its own share; those that are validated must be those that come back."""
    monkeypatch.setattr(lilliput.training.devices, "SPAWN_STRATEGY", "ddp_fork")
    model = small_cnn()
    result = run(model, epochs=2, devices=2, ema=ema)
    metrics = evaluate(model, VAL)
    assert metrics.loss == pytest.approx(result.val_loss, rel=1e-5)
    assert metrics.accuracy == result.val_accuracy


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork on this system")
def test_an_error_in_another_process_arrives_as_itself(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(lilliput.training.devices, "SPAWN_STRATEGY", "ddp_fork")
    with pytest.raises(DivergenceError, match=r"training diverged: the loss is (nan|inf) at epoch 1, step"):
        run(mlp(), devices=2, optimizer="sgd", lr=1e30)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU on this machine")
def test_a_gpu_trains_the_network_and_gives_it_back_on_the_cpu():
    model = small_cnn()
    result = run(model, epochs=12, accelerator="cuda", shift_pixels=1, ema=0.9)
    assert result.device == "cuda:0"
    assert {p.device.type for p in model.parameters()} == {"cpu"}
    assert evaluate(model, VAL).accuracy == pytest.approx(result.val_accuracy, abs=0.02)


def test_every_error_is_of_the_house():
    assert issubclass(DivergenceError, LilliputError)

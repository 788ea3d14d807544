from __future__ import annotations

import multiprocessing
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lilliput.errors import ConfigError, DataError
from lilliput.training import EpochRecord, FitConfig, fit
from training.small_networks import same_bits, small_cnn, stripes

TRAIN, VAL = stripes(120), stripes(45, seed=1)
CONFIG = FitConfig(epochs=5, batch_size=32, lr=0.01, shift_pixels=1, accelerator="cpu")


class StopError(Exception):
    pass


def stop_after(epoch: int) -> Any:
    def on_epoch(record: EpochRecord) -> None:
        if record.epoch == epoch:
            raise StopError

    return on_epoch


def without_seconds(history: tuple[EpochRecord, ...]) -> list[EpochRecord]:
    return [replace(record, seconds=0.0) for record in history]


@pytest.mark.parametrize("options", [{}, {"ema": 0.9}, {"optimizer": "sgd"}, {"patience": 2}], ids=str)
@pytest.mark.parametrize("stopped_after", [1, 3])
def test_a_resumed_run_ends_with_the_bits_of_one_that_was_never_stopped(
    tmp_path: Path, options: dict[str, Any], stopped_after: int
):
    config = replace(CONFIG, **options)
    whole = small_cnn()
    expected = fit(whole, TRAIN, VAL, config, progress=False)
    path = tmp_path / "last.ckpt"
    with pytest.raises(StopError):
        fit(small_cnn(), TRAIN, VAL, config, checkpoint=path, progress=False, on_epoch=stop_after(stopped_after))
    torch.rand(11)
    resumed = small_cnn(seed=99)  # other first weights: all must come from the checkpoint
    result = fit(resumed, TRAIN, VAL, config, checkpoint=path, resume=True, progress=False)
    assert same_bits(resumed, whole)
    assert without_seconds(result.history) == without_seconds(expected.history)
    assert (result.best_epoch, result.stopped_early) == (expected.best_epoch, expected.stopped_early)
    assert (result.resumed_after, expected.resumed_after) == (stopped_after, 0)


def test_an_interrupt_in_the_middle_of_an_epoch_costs_only_that_epoch(tmp_path: Path):
    whole = small_cnn()
    fit(whole, TRAIN, VAL, CONFIG, progress=False)
    path = tmp_path / "last.ckpt"
    model = small_cnn()
    calls = 0

    def interrupt(*_: Any) -> None:
        nonlocal calls
        calls += model.training
        if calls == 10:  # four steps an epoch: the second step of the third
            raise KeyboardInterrupt

    hook = model.register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        fit(model, TRAIN, VAL, CONFIG, checkpoint=path, progress=False)
    hook.remove()
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]
    result = fit(model, TRAIN, VAL, CONFIG, checkpoint=path, resume=True, progress=False)
    assert result.resumed_after == 2
    assert same_bits(model, whole)


def train_and_tell(path: Path, told: Any) -> None:
    fit(
        small_cnn(),
        TRAIN,
        VAL,
        CONFIG,
        checkpoint=path,
        progress=False,
        on_epoch=lambda record: told.send(record.epoch),
    )


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork on this system")
def test_a_killed_process_is_resumed_by_another_to_the_same_bits(tmp_path: Path):
    path = tmp_path / "last.ckpt"
    context = multiprocessing.get_context("fork")  # torch is loaded already: a fresh process would spend seconds on it
    told, tells = context.Pipe(duplex=False)
    child = context.Process(target=train_and_tell, args=(path, tells))
    child.start()
    assert [told.recv(), told.recv()] == [1, 2]
    child.kill()  # somewhere in the third epoch, or a little later
    child.join()
    whole, resumed = small_cnn(), small_cnn()
    fit(whole, TRAIN, VAL, CONFIG, progress=False)
    result = fit(resumed, TRAIN, VAL, CONFIG, checkpoint=path, resume=True, progress=False)
    assert result.resumed_after >= 2
    assert same_bits(resumed, whole)


def test_a_finished_run_resumes_to_its_result_without_training(tmp_path: Path):
    path = tmp_path / "last.ckpt"
    model, again = small_cnn(), small_cnn(seed=9)
    first = fit(model, TRAIN, VAL, CONFIG, checkpoint=path, progress=False)
    second = fit(again, TRAIN, VAL, CONFIG, checkpoint=path, resume=True, progress=False)
    assert same_bits(model, again)
    assert second.history == first.history
    assert (second.resumed_after, second.images_per_second) == (5, 0.0)


def test_resuming_before_the_first_checkpoint_starts_from_the_beginning(tmp_path: Path):
    whole, other = small_cnn(), small_cnn()
    fit(whole, TRAIN, VAL, CONFIG, progress=False)
    fit(other, TRAIN, VAL, CONFIG, checkpoint=tmp_path / "runs" / "a.ckpt", resume=True, progress=False)
    assert same_bits(whole, other)


def test_a_failed_write_leaves_the_old_checkpoint_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "last.ckpt"
    with pytest.raises(StopError):
        fit(small_cnn(), TRAIN, VAL, CONFIG, checkpoint=path, progress=False, on_epoch=stop_after(1))
    before = path.read_bytes()

    def no_space(state: Any, file: Any) -> None:
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", no_space)
    with pytest.raises(OSError, match="No space left"):
        fit(small_cnn(), TRAIN, VAL, CONFIG, checkpoint=path, resume=True, progress=False)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_checkpoint_of_another_training_is_refused(tmp_path: Path):
    path = tmp_path / "last.ckpt"
    fit(small_cnn(), TRAIN, VAL, replace(CONFIG, epochs=1), checkpoint=path, progress=False)
    with pytest.raises(ConfigError, match=r"last\.ckpt: a checkpoint is there already; go on from it with resume=True"):
        fit(small_cnn(), TRAIN, VAL, CONFIG, checkpoint=path, progress=False)
    with pytest.raises(ConfigError, match=r"of another training \(epochs=1 there, 5 now; lr=0.01 there, 0.02 now\)"):
        fit(small_cnn(), TRAIN, VAL, replace(CONFIG, lr=0.02), checkpoint=path, resume=True, progress=False)
    one_epoch = replace(CONFIG, epochs=1)
    with pytest.raises(ConfigError, match=r"was trained on other data"):
        fit(small_cnn(), stripes(120, seed=4), VAL, one_epoch, checkpoint=path, resume=True, progress=False)
    other = small_cnn()
    other.head = torch.nn.Linear(96, 5)
    with pytest.raises(DataError, match=r"of another network .*head\.weight"):
        fit(other, TRAIN, VAL, one_epoch, checkpoint=path, resume=True, progress=False)
    with pytest.raises(ConfigError, match=r"resume=True without a checkpoint"):
        fit(small_cnn(), TRAIN, VAL, CONFIG, resume=True, progress=False)


class Exploit:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("echo pwned > pwned",)


def test_a_damaged_or_hostile_checkpoint_is_refused_and_runs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "last.ckpt"
    fit(small_cnn(), TRAIN, VAL, CONFIG, checkpoint=path, progress=False)
    content = path.read_bytes()
    for damaged in (b"", b"hello", content[: len(content) // 2], content[:-1]):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=r"last\.ckpt: cannot be read as a checkpoint .*train afresh"):
            fit(small_cnn(), TRAIN, VAL, CONFIG, checkpoint=path, resume=True, progress=False)
    torch.save({"format": Exploit()}, path)
    with pytest.raises(DataError, match=r"cannot be read as a checkpoint"):
        fit(small_cnn(), TRAIN, VAL, CONFIG, checkpoint=path, resume=True, progress=False)
    assert not (tmp_path / "pwned").exists()
    torch.save({"format": 99}, path)
    with pytest.raises(DataError, match=r"not a checkpoint of format 1 \(found 99\)"):
        fit(small_cnn(), TRAIN, VAL, CONFIG, checkpoint=path, resume=True, progress=False)

"""One training loop for every classifier in the house, on Lightning Fabric.

All that is random in an epoch (order, augmentation, dropout) is drawn from (seed, epoch), never from what came before. So a run that was
stopped goes on from its last whole epoch to the same bits, and the caller's own random numbers are left as they were.
"""

from __future__ import annotations

import pickle
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lilliput.errors import ConfigError, DataError, LilliputError
from lilliput.training.augment import draw_augmentation
from lilliput.training.checkpoint import load_checkpoint, save_checkpoint
from lilliput.training.config import EpochRecord, FitConfig, FitResult
from lilliput.training.devices import make_fabric, put_back, share_buffers, sum_over_processes, use_channels_last
from lilliput.training.ema import WeightAverage
from lilliput.training.labelled import Labelled, as_labelled, check_logits, to_network
from lilliput.training.metrics import Loss
from lilliput.training.optimizer import make_optimizer
from lilliput.training.order import batch_count, epoch_batches
from lilliput.training.process_state import cpu_threads, own_random_state, seed_everything
from lilliput.training.progress import Bar
from lilliput.training.schedule import learning_rate

# Reading a loss makes a GPU wait, so steps between two looks at it; the step named is still the first that was not finite.
STEPS_BETWEEN_CHECKS = 50
VAL_BATCH = 512


class DivergenceError(LilliputError):
    """A training's loss stopped being a finite number."""


@dataclass(frozen=True)
class _Task:
    """All that a process needs to train; sent to each where there are several."""

    model: nn.Module
    train: Labelled
    val: Labelled
    config: FitConfig
    loss: Loss | None
    checkpoint: Path | None
    resume: bool
    progress: bool
    on_epoch: Callable[[EpochRecord], None] | None


def fit(
    model: nn.Module,
    train: Any,
    val: Any,
    config: FitConfig,
    *,
    loss: Loss | None = None,
    checkpoint: str | Path | None = None,
    resume: bool = False,
    progress: bool = True,
    on_epoch: Callable[[EpochRecord], None] | None = None,
) -> FitResult:
    """Train a classifier in place; it ends with the weights of its best epoch, in evaluation mode, on the device it came on.

    Args:
        model: gives (image, class) scores.
        train: an ImageSplit, or a pair of inputs and labels; uint8 images reach the model as byte / 255.
        val: the same; the best epoch is the one with the highest accuracy on it, or as high with a lower loss.
        config: everything else.
        loss: mean loss of (scores, labels) in place of cross entropy.
        checkpoint: file that holds the training after each whole epoch. Must not exist unless ``resume``.
        resume: go on after the checkpoint's last epoch, to the same bits on a CPU as if never stopped; where there is no such file yet
            (stopped within the first epoch), start from the model as given.
        progress: show a bar on standard error.
        on_epoch: called with each epoch's record (in the first process where there are several).
    Raises:
        DivergenceError: the loss is not finite; names epoch, step and learning rate.
        ConfigError: the checkpoint is of another training, or is there already.
    """
    checkpoint = Path(checkpoint) if checkpoint is not None else None
    _check_request(config, loss, checkpoint, resume)
    train_data, val_data = as_labelled(train, "train"), as_labelled(val, "validation")
    if config.devices * config.num_nodes > min(config.batch_size, len(train_data)):
        raise ConfigError(
            f"{config.devices * config.num_nodes} devices for batches of {min(config.batch_size, len(train_data))} images: "
            "every device needs at least one; use fewer devices or a larger batch_size"
        )
    if (config.shift_pixels or config.flip_horizontal) and train_data.inputs.ndim != 4:
        raise ConfigError(
            f"inputs have shape {tuple(train_data.inputs.shape)}: only images (image, channel, row, column) can be shifted or "
            "flipped; use shift_pixels=0 and no flip_horizontal"
        )
    task = _Task(model, train_data, val_data, config, loss, checkpoint, resume, progress, on_epoch)
    fabric, is_spawning = make_fabric(config)
    if is_spawning:
        with tempfile.TemporaryDirectory(prefix="lilliput-") as folder:
            outcome_path = Path(folder, "outcome")
            fabric.launch(_train_in_worker, *_as_parcel(task), outcome_path)
            outcome = pickle.loads(outcome_path.read_bytes())
        if isinstance(outcome, LilliputError):
            raise outcome
        result, best_state = outcome
    else:
        fabric.launch()
        devices = {name: value.device for name, value in model.state_dict().items()}
        try:
            result, best_state = _train(fabric, task)
        finally:
            put_back(model, devices)
    model.load_state_dict(best_state)
    model.eval()
    return result


def _as_parcel(task: _Task) -> tuple[bytes, list[Tensor]]:
    """A task as Fabric can send it: bytes, because it would try to change a frozen dataclass, and tensors, which are shared."""
    for name in ("model", "loss", "on_epoch"):
        try:
            pickle.dumps(getattr(task, name))
        except (pickle.PicklingError, AttributeError, TypeError) as fault:
            raise ConfigError(
                f"devices={task.config.devices} starts a process per device, and {name} cannot be sent to it ({fault}); "
                "define it at the top of a module, or use devices=1"
            ) from fault
    fields = {name: value for name, value in vars(task).items() if name not in ("train", "val")}
    return pickle.dumps(fields), [task.train.inputs, task.train.labels, task.val.inputs, task.val.labels]


def _train_in_worker(fabric: Any, fields: bytes, tensors: list[Tensor], outcome_path: Path) -> None:
    """The training in one of several processes; the first leaves the outcome in a file.

    Not through Fabric's queue: it is read only after the processes have ended, and more than a pipe holds keeps them from ending.
    """
    task = _Task(train=Labelled(*tensors[:2]), val=Labelled(*tensors[2:]), **pickle.loads(fields))
    outcome: Any
    try:
        outcome = _train(fabric, task)
    except LilliputError as fault:  # every process meets it at the same step, so none is left waiting
        outcome = fault
    if fabric.is_global_zero:
        outcome_path.write_bytes(pickle.dumps(outcome))


def _train(fabric: Any, task: _Task) -> tuple[FitResult, dict[str, Tensor]]:
    """All epochs, in this process; the result and the best weights on the CPU."""
    config, model = task.config, task.model
    with own_random_state(fabric.device), cpu_threads(config.cpu_threads):
        use_channels_last(model)
        average = WeightAverage(model, config.ema) if config.ema else None
        optimizer = make_optimizer(model, config, fabric.device)
        module, optimizer = fabric.setup(model, optimizer)
        if average is not None:
            average.model.to(fabric.device)
        judged = average.model if average is not None else model
        data_digest = task.train.digest() + task.val.digest() if task.checkpoint is not None else ""
        train, val = task.train.to(fabric.device), task.val.to(fabric.device)

        history: list[EpochRecord] = []
        best_state: dict[str, Tensor] = {}
        if task.resume and task.checkpoint is not None and task.checkpoint.is_file():
            state = load_checkpoint(task.checkpoint, config, data_digest)
            _restore(state, model, average, optimizer, task.checkpoint)
            history = [EpochRecord(**record) for record in state["history"]]
            best_state = state["best"]
        resumed_after = len(history)
        best = next((record for record in reversed(history) if record.is_best), None)

        run_seconds = 0.0
        with Bar("training", config.epochs, resumed_after, task.progress and fabric.is_global_zero) as bar:
            for epoch in range(resumed_after + 1, config.epochs + 1):
                if _is_out_of_patience(config, best, epoch - 1):
                    break
                start = time.perf_counter()
                train_loss, lr = _train_epoch(fabric, module, model, average, optimizer, train, task, epoch)
                share_buffers(fabric, judged)
                val_accuracy, val_loss = _validate(fabric, judged, val, task.loss, epoch, config)
                is_best = best is None or (val_accuracy, -val_loss) > (best.val_accuracy, -best.val_loss)
                seconds = time.perf_counter() - start
                run_seconds += seconds
                record = EpochRecord(epoch, train_loss, val_loss, val_accuracy, lr, seconds, is_best)
                history.append(record)
                if is_best:
                    best, best_state = record, _state_on_cpu(judged)
                if task.checkpoint is not None and fabric.is_global_zero:
                    save_checkpoint(
                        task.checkpoint,
                        {
                            "config": asdict(config),
                            "data_digest": data_digest,
                            "history": [asdict(r) for r in history],
                            "model": model.state_dict(),
                            "average": average.model.state_dict() if average is not None else None,
                            "optimizer": optimizer.state_dict(),
                            "best": best_state,
                        },
                    )
                if task.on_epoch is not None and fabric.is_global_zero:
                    task.on_epoch(record)
                bar.show(epoch, f"loss {train_loss:.4f}  val {val_accuracy:.2%}  lr {lr:.2g}")
        assert best is not None
        result = FitResult(
            history=tuple(history),
            best_epoch=best.epoch,
            val_accuracy=best.val_accuracy,
            val_loss=best.val_loss,
            stopped_early=len(history) < config.epochs,
            seconds=sum(record.seconds for record in history),
            images_per_second=len(train) * (len(history) - resumed_after) / run_seconds if run_seconds else 0.0,
            resumed_after=resumed_after,
            device=str(fabric.device),
        )
        return result, best_state


def _train_epoch(
    fabric: Any,
    module: nn.Module,
    model: nn.Module,
    average: WeightAverage | None,
    optimizer: Any,
    train: Labelled,
    task: _Task,
    epoch: int,
) -> tuple[float, float]:
    """One pass over the training images; the mean loss and the last step's learning rate."""
    config, rank, world = task.config, fabric.global_rank, fabric.world_size
    seed_everything(config.seed, epoch, rank, fabric.device)
    loss_of = task.loss or _CrossEntropy(config.label_smoothing)
    augmentation = draw_augmentation(
        len(train),
        shift_pixels=config.shift_pixels,
        flip_horizontal=config.flip_horizontal,
        seed=config.seed,
        epoch=epoch,
        device=fabric.device,
    )
    batches = epoch_batches(len(train), config.batch_size, config.seed, epoch)
    steps = batch_count(len(train), config.batch_size)
    # This process's share of each batch, moved to the device once an epoch.
    shares = [torch.from_numpy(np.ascontiguousarray(batch[rank::world])) for batch in batches]
    indices = torch.cat(shares).to(fabric.device).split([len(share) for share in shares])
    losses = torch.zeros(steps, device=fabric.device)
    lr = 0.0
    checked = 0
    module.train()
    for step, (batch, index) in enumerate(zip(batches, indices, strict=True)):
        global_step = (epoch - 1) * steps + step
        lr = learning_rate(global_step, config.epochs * steps, config.lr, config.warmup_fraction)
        for group in optimizer.param_groups:
            group["lr"] = lr
        images, labels = train.inputs[index], train.labels[index]
        if augmentation is not None:
            images = augmentation.apply(images, index)
        logits = module(to_network(images))
        if epoch == 1:
            check_logits(logits, labels)
        loss = loss_of(logits, labels)
        # Processes average their gradients; weighting by the share's size makes that the mean over the whole batch.
        weight = len(index) * world / len(batch)
        optimizer.zero_grad()
        fabric.backward(loss if weight == 1 else loss * weight)
        optimizer.step()
        if average is not None:
            average.update(model, global_step)
        losses[step] = loss.detach().float() * len(index)
        if (step + 1) % STEPS_BETWEEN_CHECKS == 0 or step + 1 == steps:
            checked = _check_finite(fabric, losses, checked, step + 1, epoch, config)
    return float(sum_over_processes(fabric, losses.sum())) / len(train), lr


def _validate(
    fabric: Any, judged: nn.Module, val: Labelled, loss: Loss | None, epoch: int, config: FitConfig
) -> tuple[float, float]:
    """Accuracy and mean loss on the validation images, each process taking its share."""
    judged.eval()
    share = slice(fabric.global_rank, None, fabric.world_size)
    inputs, labels = val.inputs[share], val.labels[share]
    correct, loss_sum = 0, 0.0
    with torch.inference_mode(), fabric.autocast():
        for start in range(0, len(labels), VAL_BATCH):
            target = labels[start : start + VAL_BATCH]
            logits = judged(to_network(inputs[start : start + VAL_BATCH]))
            if epoch == 1:
                check_logits(logits, target)
            logits = logits.float()
            correct += int((logits.argmax(1) == target).sum())
            loss_sum += float((loss or F.cross_entropy)(logits, target)) * len(target)
    if fabric.world_size > 1:
        sums = sum_over_processes(fabric, torch.tensor([float(correct), loss_sum], device=fabric.device))
        correct, loss_sum = int(sums[0]), float(sums[1])
    if not np.isfinite(loss_sum):
        raise DivergenceError(
            f"training diverged: the validation loss after epoch {epoch} is {loss_sum} (lr={config.lr:g}, {config.optimizer}); "
            f"try lr={config.lr / 10:g}"
        )
    return correct / len(val), loss_sum / len(val)


def _check_finite(fabric: Any, losses: Tensor, start: int, stop: int, epoch: int, config: FitConfig) -> int:
    """Refuse to go on from a loss that is not finite; how many steps have been looked at."""
    seen = sum_over_processes(fabric, losses[start:stop].clone())
    if not bool(torch.isfinite(seen).all()):
        first = start + int((~torch.isfinite(seen)).nonzero()[0])
        steps = len(losses)
        lr = learning_rate((epoch - 1) * steps + first, config.epochs * steps, config.lr, config.warmup_fraction)
        raise DivergenceError(
            f"training diverged: the loss is {float(seen[first - start])} at epoch {epoch}, step {first + 1} of {steps} "
            f"(learning rate {lr:.3g} there, lr={config.lr:g}, {config.optimizer}); try lr={config.lr / 10:g}"
        )
    return stop


class _CrossEntropy:
    """Cross entropy with label smoothing; a class, so that it can be sent to other processes."""

    def __init__(self, label_smoothing: float) -> None:
        self._label_smoothing = label_smoothing

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(logits, labels, label_smoothing=self._label_smoothing)


def _check_request(config: FitConfig, loss: Loss | None, checkpoint: Path | None, resume: bool) -> None:
    if loss is not None and config.label_smoothing:
        raise ConfigError(
            f"label_smoothing={config.label_smoothing} with a loss of your own: smoothing belongs to cross entropy; "
            "use label_smoothing=0"
        )
    if resume and checkpoint is None:
        raise ConfigError("resume=True without a checkpoint: name the file to go on from")
    if checkpoint is not None and checkpoint.exists() and not resume:
        raise ConfigError(f"{checkpoint}: a checkpoint is there already; go on from it with resume=True, or delete it")


def _restore(
    state: dict[str, Any], model: nn.Module, average: WeightAverage | None, optimizer: Any, path: Path
) -> None:
    try:
        model.load_state_dict(state["model"])
        if average is not None:
            average.model.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
    except (RuntimeError, ValueError, KeyError) as fault:
        lines = [line.strip() for line in str(fault).splitlines()]
        raise DataError(
            f"{path}: the checkpoint is of another network ({' '.join(lines[:2])}); build the same network, or train afresh"
        ) from fault


def _is_out_of_patience(config: FitConfig, best: EpochRecord | None, epochs_done: int) -> bool:
    return bool(config.patience) and best is not None and epochs_done - best.epoch >= config.patience


def _state_on_cpu(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().cpu().clone() for name, value in module.state_dict().items()}

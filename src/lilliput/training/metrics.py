"""How well a classifier does: accuracy with its interval, loss, confusion, recall of each class."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32, Int64, Shaped
from torch import Tensor, nn

from lilliput.errors import DataError
from lilliput.training.labelled import as_labelled, check_logits, to_network

Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Metrics:
    """A classifier's answers on labelled images, and the figures that follow."""

    accuracy: float
    """Share of images whose highest score is the right class's (ties go to the lower class)."""
    loss: float
    """Mean cross entropy in nats, or mean of the loss that was given."""
    n: int
    """Number of images."""
    confusion: Int64[np.ndarray, "class class"]
    """Row: true class; column: predicted class."""
    logits: Float32[np.ndarray, "image class"]
    predictions: Int64[np.ndarray, "image"]
    labels: Int64[np.ndarray, "image"]

    @property
    def correct(self) -> int:
        """Number of images classified right."""
        return int(np.trace(self.confusion))

    @property
    def recall(self) -> Float[np.ndarray, "class"]:
        """Share of each class's images that were found; NaN for a class without images."""
        return class_recall(self.confusion)

    def interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """Wilson's interval for the accuracy."""
        return wilson_interval(self.correct, self.n, confidence)


def evaluate(model: nn.Module, split: Any, *, batch_size: int = 512, loss: Loss | None = None) -> Metrics:
    """Metrics of a model on a split, on the device the model is on; its training mode is put back afterwards.

    Args:
        model: gives (image, class) scores.
        split: an ImageSplit, or a pair of inputs and labels; uint8 images reach the model as byte / 255.
        batch_size: images per forward pass.
        loss: mean loss of (scores, labels); None is cross entropy.
    """
    data = as_labelled(split, "evaluation")
    first = next(iter([*model.parameters(), *model.buffers()]), None)
    device = first.device if first is not None else torch.device("cpu")
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            logits = []
            for start in range(0, len(data), batch_size):
                labels = data.labels[start : start + batch_size]
                inputs = to_network(data.inputs[start : start + batch_size].to(device))
                logits.append(check_logits(model(inputs), labels).float().cpu())
    finally:
        model.train(was_training)
    return score(torch.cat(logits).numpy(), data.labels.cpu().numpy(), loss=loss)


def score(logits: Shaped[np.ndarray, "..."], labels: Shaped[np.ndarray, "..."], *, loss: Loss | None = None) -> Metrics:
    """Metrics of scores that were computed elsewhere, such as an integer network's outputs times their scale.

    >>> score(np.array([[2.0, 0.0], [0.0, 1.0], [3.0, 0.0]]), np.array([0, 1, 1])).confusion
    array([[1, 0],
           [1, 1]])
    """
    if logits.ndim != 2 or labels.shape != logits.shape[:1] or len(labels) == 0:
        raise DataError(
            f"logits have shape {logits.shape}, labels {labels.shape}; must be (images, classes) and (images,)"
        )
    if not np.isfinite(logits).all():
        bad = int((~np.isfinite(logits).all(axis=1)).sum())
        raise DataError(
            f"{bad:,} of {len(logits):,} outputs are not finite; the network's weights or inputs are broken"
        )
    scores = torch.from_numpy(logits.astype(np.float32))
    targets = torch.from_numpy(labels.astype(np.int64))
    check_logits(scores, targets)
    predictions = logits.argmax(axis=1).astype(np.int64)
    mean_loss = float((loss or F.cross_entropy)(scores, targets))
    return Metrics(
        accuracy=accuracy(predictions, targets.numpy()),
        loss=mean_loss,
        n=len(labels),
        confusion=confusion_matrix(predictions, targets.numpy(), logits.shape[1]),
        logits=scores.numpy(),
        predictions=predictions,
        labels=targets.numpy(),
    )


def accuracy(predictions: Int64[np.ndarray, "image"], labels: Int64[np.ndarray, "image"]) -> float:
    """Share of predictions that are right."""
    return int((predictions == labels).sum()) / len(labels)


def confusion_matrix(
    predictions: Int64[np.ndarray, "image"], labels: Int64[np.ndarray, "image"], classes: int
) -> Int64[np.ndarray, "class class"]:
    """Number of images of each true class (row) given each predicted class (column)."""
    from sklearn import metrics

    return metrics.confusion_matrix(labels, predictions, labels=np.arange(classes)).astype(np.int64)


def class_recall(confusion: Int64[np.ndarray, "class class"]) -> Float[np.ndarray, "class"]:
    """Share of each class's images that were found; NaN for a class without images."""
    images = confusion.sum(axis=1)
    return np.divide(np.diag(confusion), images, out=np.full(len(images), np.nan), where=images > 0)


def wilson_interval(correct: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Interval that holds the true rate with about this confidence; sensible near 0 and 1, where the normal one is not.

    Source: Wilson 1927, by SciPy (no continuity correction).

    >>> lower, upper = wilson_interval(355, 360)
    >>> print(f"{lower:.4f} {upper:.4f}")
    0.9679 0.9941
    """
    from scipy.stats import binomtest

    interval = binomtest(correct, n).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)

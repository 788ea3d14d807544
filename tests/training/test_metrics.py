from __future__ import annotations

import doctest

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, log_loss, recall_score
from torch import nn

import lilliput.training.metrics
from lilliput.data import ImageSplit
from lilliput.errors import DataError
from lilliput.training import class_recall, evaluate, score, wilson_interval
from training.small_networks import small_cnn, stripes

RANDOM = np.random.default_rng(0)
LOGITS, LABELS = RANDOM.normal(size=(200, 4)), RANDOM.integers(0, 4, 200)


def test_figures_equal_scikit_learns():
    metrics = score(LOGITS, LABELS)
    probabilities = np.exp(LOGITS) / np.exp(LOGITS).sum(1, keepdims=True)
    assert metrics.accuracy == accuracy_score(LABELS, LOGITS.argmax(1))
    assert metrics.loss == pytest.approx(log_loss(LABELS, probabilities), rel=1e-5)
    assert metrics.recall == pytest.approx(recall_score(LABELS, LOGITS.argmax(1), average=None))
    assert (metrics.n, metrics.correct) == (200, int((LOGITS.argmax(1) == LABELS).sum()))


def test_confusion_has_the_true_class_in_rows():
    metrics = score(np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 1.0, 0.0]]), np.array([0, 1, 0]))
    assert metrics.confusion.tolist() == [[1, 1, 0], [0, 1, 0], [0, 0, 0]]


def test_the_recall_of_a_class_without_images_is_nan():
    assert class_recall(np.array([[3, 1], [0, 0]])).tolist()[0] == 0.75
    assert np.isnan(class_recall(np.array([[3, 1], [0, 0]]))[1])


@pytest.mark.parametrize(("correct", "n"), [(0, 10), (10, 10), (355, 360), (1, 3)])
def test_the_interval_is_wilsons_formula(correct: int, n: int):
    z, p = 1.959963984540054, correct / n
    centre, half = (p + z * z / (2 * n)), z * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    expected = ((centre - half) / (1 + z * z / n), (centre + half) / (1 + z * z / n))
    assert wilson_interval(correct, n) == pytest.approx(expected, abs=1e-12)


def test_evaluating_takes_any_batch_size_and_leaves_the_model_as_it_was():
    model, split = small_cnn().train(), stripes(50)
    one, many = evaluate(model, split), evaluate(model, split, batch_size=7)
    assert model.training
    assert np.allclose(one.logits, many.logits, atol=1e-6)
    assert one.accuracy == many.accuracy
    assert model.norm.num_batches_tracked == 0


def test_a_split_and_its_tensors_give_the_same_metrics():
    images, labels = stripes(30)
    split = ImageSplit(images.numpy().transpose(0, 2, 3, 1), labels.numpy())
    model = small_cnn()
    by_split, by_pair, by_floats = (
        evaluate(model, split),
        evaluate(model, (images, labels)),
        evaluate(model, split.tensors()),
    )
    assert np.array_equal(by_split.logits, by_pair.logits)
    assert np.array_equal(by_split.logits, by_floats.logits)


def test_outputs_that_are_not_finite_are_refused():
    logits = LOGITS.copy()
    logits[[3, 9], 1] = np.nan
    with pytest.raises(DataError, match=r"2 of 200 outputs are not finite"):
        score(logits, LABELS)


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        (
            LOGITS,
            LABELS[:9],
            r"logits have shape \(200, 4\), labels \(9,\); must be \(images, classes\) and \(images,\)",
        ),
        (LOGITS[0], LABELS, r"logits have shape \(4,\)"),
        (LOGITS, LABELS + 1, r"labels go up to 4, but the network has 4 outputs; it needs at least 5"),
    ],
)
def test_scores_and_labels_that_do_not_fit_are_refused(logits: np.ndarray, labels: np.ndarray, message: str):
    with pytest.raises(DataError, match=message):
        score(logits, labels)


def test_a_model_without_weights_can_be_evaluated():
    labels = torch.tensor([0, 1, 2])
    assert evaluate(nn.Identity(), (torch.eye(3), labels)).accuracy == 1.0


def test_the_examples_in_the_docstrings_are_true():
    results = doctest.testmod(lilliput.training.metrics, extraglobs={"np": np})
    assert results.attempted >= 3
    assert not results.failed

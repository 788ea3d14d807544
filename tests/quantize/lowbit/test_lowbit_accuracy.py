"""Two bits on a text classifier of BERT-Tiny's shape: the study of docs/benchmarks.md, on a fifth of its texts.

Needs emotion_train.txt and emotion_test.txt in the folder text/ of LILLIPUT_SHARED_DATA.
"""

import importlib.util
import os
from pathlib import Path

import pytest
import torch

from lilliput.data import load_texts
from lilliput.data.text_classifier import by_length, text_batches
from lilliput.quantize import RoundToNearest, SplitConfig, compare


def _benchmark():
    path = Path(__file__).parents[3] / "benchmarks" / "lowbit_accuracy.py"
    spec = importlib.util.spec_from_file_location("lowbit_accuracy", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_a_split_of_two_bits_keeps_what_a_trained_classifier_says():
    shared = os.environ.get("LILLIPUT_SHARED_DATA")
    if shared is None or not (Path(shared) / "text" / "emotion_train.txt").is_file():
        pytest.skip("no emotion data: set LILLIPUT_SHARED_DATA to a folder with text/emotion_train.txt")
    benchmark, folder = _benchmark(), Path(shared) / "text"
    (train,) = load_texts(folder / "emotion_train.txt").draws([3200], seed=0)
    (test,) = load_texts(folder / "emotion_test.txt").draws([600], seed=0)
    test = by_length(test)
    tokens = benchmark.tiny_tokens(train)
    model = benchmark.train_tiny(train, tokens, epochs=3)
    batches = list(text_batches(tokens, test.texts, 64))
    labels = torch.tensor(test.labels)
    table = compare(model, [SplitConfig(), RoundToNearest(bits=2)], batches, labels=labels)
    larger = float((labels == labels.mode().values).double().mean())
    assert table.accuracy > larger + 0.15  # it has learned something to lose
    split, rounded = table["split-2 row"], table["rtn-2 row"]
    assert split.agreement >= 0.96
    assert split.output_error <= 0.12  # trained on all texts: 0.05
    assert rounded.output_error > 2 * split.output_error

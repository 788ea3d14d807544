"""Labelled texts: both layouts, headers, repeated lines, disjoint draws; and a head fitted on vectors."""

import os
from pathlib import Path

import pytest
import torch

from lilliput.data import WordPiece, load_texts
from lilliput.data.text_classifier import by_length, fit_head, text_batches
from lilliput.errors import DataError


def written(tmp_path, text: str, name: str = "texts.txt") -> Path:
    (tmp_path / name).write_text(text, encoding="utf-8")
    return tmp_path / name


@pytest.mark.parametrize(
    "text",
    [
        "ham\tsee; you\nspam\tfree £\nham\tok\n",
        "Label\tSMS\nham\tsee; you\nspam\tfree £\nham\tok",
        "text\tlabel\nsee; you\tham\nfree £\tspam\nok\tham\n",
        "see; you;ham\nfree £;spam\n\nok;ham\n",
        "text;label_name\nsee; you;ham\nfree £;spam\nok;ham\n",
    ],
)
def test_every_layout_gives_the_same_texts(tmp_path, text):
    data = load_texts(written(tmp_path, text))
    assert data.texts == ("see; you", "free £", "ok")
    assert data.class_names == ("ham", "spam")
    assert data.labels == (0, 1, 0)
    assert (data.name, data.repeated) == ("texts", 0)


def test_a_repeated_text_is_kept_once(tmp_path):
    data = load_texts(written(tmp_path, "a\tone\nb\ttwo\na\tone\nb\tone\n"))
    assert (data.texts, data.labels, data.repeated) == (("one", "two"), (0, 1), 2)


def test_draws_are_disjoint_and_the_same_again(tmp_path):
    data = load_texts(written(tmp_path, "".join(f"{'ab'[n % 2]}\ttext {n}\n" for n in range(40))))
    first, second = data.draws([25, 10], seed=3)
    assert (len(first), len(second)) == (25, 10)
    assert not set(first.texts) & set(second.texts)
    assert all(label == int(text.split()[1]) % 2 for text, label in zip(first.texts, first.labels, strict=True))
    assert data.draws([25, 10], seed=3)[1] == second
    assert data.draws([25, 10], seed=4)[1] != second
    with pytest.raises(DataError, match=r"30 \+ 11 texts of 40"):
        data.draws([30, 11], seed=0)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("ham\tone\nno label here\n", "line 2: 'no label here' has no label"),
        ("ham\tone\nham\ttwo\n", "has 1 classes"),
        ("ham\tone\nspam\t\n", "line 2"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path, text, words):
    with pytest.raises(DataError, match=words):
        load_texts(written(tmp_path, text))
    with pytest.raises(DataError, match="no such file"):
        load_texts(tmp_path / "nowhere.tsv")
    (tmp_path / "bytes.tsv").write_bytes(b"ham\t\xff\xfe\n")
    with pytest.raises(DataError, match="is no UTF-8 text"):
        load_texts(tmp_path / "bytes.tsv")


def test_published_sets_have_their_published_sizes():
    shared = os.environ.get("LILLIPUT_SHARED_DATA")
    if shared is None or not (Path(shared) / "text").is_dir():
        pytest.skip("no text data: set LILLIPUT_SHARED_DATA to a folder with text/")
    sms = load_texts(Path(shared) / "text" / "SMSSpamCollection.tsv")
    assert len(sms) + sms.repeated == 5574
    assert sms.class_names == ("ham", "spam")
    emotion = load_texts(Path(shared) / "text" / "emotion_test.txt")
    assert len(emotion) + emotion.repeated == 2000
    assert emotion.class_names == ("anger", "fear", "joy", "love", "sadness", "surprise")


def test_batches_hold_all_texts_in_order(tmp_path):
    tokens = WordPiece(("[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "b"))
    data = by_length(load_texts(written(tmp_path, "x\ta b a b\ny\ta\nx\ta b\n")))
    assert data.texts == ("a", "a b", "a b a b")
    first, second = text_batches(tokens, data.texts, batch_size=2)
    assert first[0].tolist() == [[2, 4, 3, 0], [2, 4, 5, 3]]
    assert first[1].tolist() == [[True, True, True, False], [True] * 4]
    assert second[0].tolist() == [[2, 4, 5, 4, 5, 3]]


def test_a_head_is_where_the_penalised_loss_is_least():
    generator = torch.Generator().manual_seed(0)
    vectors = torch.nn.functional.normalize(torch.randn(60, 5, generator=generator), dim=1)
    labels = (vectors[:, 0] > 0).long() + (vectors[:, 1] > 0.4).long()
    head = fit_head(vectors, labels, 3, penalty=1e-2)
    weight, bias = (part.detach().double().requires_grad_() for part in (head.weight, head.bias))
    loss = torch.nn.functional.cross_entropy(vectors.double() @ weight.T + bias, labels) + 1e-2 * weight.square().sum()
    for gradient in torch.autograd.grad(loss, (weight, bias)):
        assert gradient.abs().max() < 1e-5
    again = fit_head(vectors, labels, 3, penalty=1e-2)
    assert torch.equal(head.weight, again.weight)

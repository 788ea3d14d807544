"""Text becomes the pieces that BERT's own tokenizer makes of it; expected pieces are those of Hugging Face's tokenizers 0.22."""

from __future__ import annotations

import pytest
import torch

from lilliput.data.wordpiece import WordPiece
from lilliput.errors import DataError

PIECES = """[PAD] [UNK] [CLS] [SEP] un ##aff ##able ##a aff able hello , ! $ 5 naive 中 文 fi ##ance ' s don t - ##ing play"""
VOCABULARY = tuple(PIECES.split())

TEXTS = [
    ("Hello, unaffable!", "hello , un ##aff ##able !"),
    ("naïve PLAYING", "naive play ##ing"),
    ("中文hello", "中 文 hello"),
    ("$5 don't", "$ 5 don ' t"),
    ("ﬁance", "[UNK]"),  # a ligature is not two letters
    ("unaffablex", "[UNK]"),  # no pieces for the whole word, so none
    ("a\u200bff\x00able\ttab", "aff ##able [UNK]"),
    ("fi\u00adance - don\u2019t", "fi ##ance - don [UNK] t"),
    ("hello\u3000play", "hello play"),
    ("", ""),
    ("hello" * 21, "[UNK]"),  # longer than a hundred characters
]


@pytest.mark.parametrize(("text", "pieces"), TEXTS)
def test_pieces_are_berts(text, pieces):
    tokens = [VOCABULARY[number] for number in WordPiece(VOCABULARY).encode(text)]
    assert tokens == ["[CLS]", *pieces.split(), "[SEP]"]


def test_a_cased_vocabulary_keeps_case_and_accents():
    tokens = [VOCABULARY[number] for number in WordPiece(VOCABULARY, lower_case=False).encode("Hello hello naïve")]
    assert tokens == ["[CLS]", "[UNK]", "hello", "[UNK]", "[SEP]"]


def test_long_texts_are_cut_and_short_ones_padded():
    numbers, mask = WordPiece(VOCABULARY).batch(["hello " * 9, "play"], max_tokens=5)
    hello, play = VOCABULARY.index("hello"), VOCABULARY.index("play")
    assert numbers.tolist() == [[2, hello, hello, hello, 3], [2, play, 3, 0, 0]]
    assert torch.equal(mask, numbers != 0)


def test_folders_are_read(tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n", encoding="utf-8")
    assert WordPiece.from_folder(tmp_path) == WordPiece(VOCABULARY)
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    assert not WordPiece.from_folder(tmp_path).lower_case


def test_what_is_no_vocabulary_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"vocab.txt: no such file; needs a folder of a BERT network"):
        WordPiece.from_folder(tmp_path)
    (tmp_path / "vocab.txt").write_text("[PAD]\nhello\n")
    with pytest.raises(DataError, match=r"of 2 pieces lacks \[UNK\], \[CLS\], \[SEP\]"):
        WordPiece.from_folder(tmp_path)

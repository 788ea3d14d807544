"""WordPiece: text to the token numbers that BERT networks were trained on.

Text is cleaned (control characters go, every space is one), lower-cased and stripped of accents where the vocabulary is uncased, and cut at
spaces, punctuation and Chinese characters. Each word is then the longest pieces of the vocabulary from left to right; a piece inside a word
starts with ``##``, and a word that has no such pieces is ``[UNK]``.

Source: Devlin et al. 2019 (arXiv:1810.04805), section 4.1, and Wu et al. 2016 (arXiv:1609.08144), section 4.1; the greedy search and the
cutting rules are those of BERT's own tokenization.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from lilliput.errors import DataError

_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
_LONGEST_WORD = 100
_CHINESE = (
    (0x4E00, 0x9FFF), (0x3400, 0x4DBF), (0x20000, 0x2A6DF), (0x2A700, 0x2B73F), (0x2B740, 0x2B81F), (0x2B820, 0x2CEAF), (0xF900, 0xFAFF),
    (0x2F800, 0x2FA1F),
)  # fmt: skip


@dataclass(frozen=True)
class WordPiece:
    """A vocabulary, and how text is cut into it."""

    vocabulary: tuple[str, ...]
    """Piece of each token number."""
    lower_case: bool = True
    """Whether text is lower-cased and stripped of accents first."""

    def __post_init__(self) -> None:
        missing = [piece for piece in _SPECIAL if piece not in self._numbers]
        if missing:
            raise DataError(
                f"a WordPiece vocabulary of {len(self.vocabulary):,} pieces lacks {', '.join(missing)}; pass BERT's vocab.txt"
            )

    @classmethod
    def from_folder(cls, folder: str | Path) -> WordPiece:
        """Read ``vocab.txt``, and ``do_lower_case`` of ``tokenizer_config.json`` where there is one."""
        path = Path(folder) / "vocab.txt"
        if not path.is_file():
            raise DataError(f"{path}: no such file; needs a folder of a BERT network with its vocab.txt")
        config_path = Path(folder) / "tokenizer_config.json"
        config = json.loads(config_path.read_text(encoding="utf-8")) if config_path.is_file() else {}
        vocabulary = path.read_text(encoding="utf-8").rstrip("\n").split("\n")
        return cls(tuple(vocabulary), bool(config.get("do_lower_case", True)))

    def encode(self, text: str, max_tokens: int = 128) -> list[int]:
        """Token numbers of a text between ``[CLS]`` and ``[SEP]``, cut after ``max_tokens`` in all."""
        pieces = [number for word in words(text, self.lower_case) for number in self._pieces(word)]
        start, end = self._numbers["[CLS]"], self._numbers["[SEP]"]
        return [start, *pieces[: max_tokens - 2], end]

    def batch(
        self, texts: Sequence[str], max_tokens: int = 128
    ) -> tuple[Int64[Tensor, "text token"], Bool[Tensor, "text token"]]:
        """Token numbers of several texts, padded to the longest, and which of them are no padding."""
        rows = [self.encode(text, max_tokens) for text in texts]
        numbers = torch.full((len(rows), max(map(len, rows), default=0)), self._numbers["[PAD]"], dtype=torch.int64)
        mask = torch.zeros(numbers.shape, dtype=torch.bool)
        for index, row in enumerate(rows):
            numbers[index, : len(row)] = torch.tensor(row)
            mask[index, : len(row)] = True
        return numbers, mask

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {piece: number for number, piece in enumerate(self.vocabulary)}

    def _pieces(self, word: str) -> list[int]:
        unknown = [self._numbers["[UNK]"]]
        if len(word) > _LONGEST_WORD:
            return unknown
        pieces, first = [], 0
        while first < len(word):
            prefix = "##" if first else ""
            for last in range(len(word), first, -1):
                number = self._numbers.get(prefix + word[first:last])
                if number is not None:
                    pieces.append(number)
                    first = last
                    break
            else:
                return unknown
        return pieces


def words(text: str, lower_case: bool = True) -> list[str]:
    """A text cut at spaces, punctuation and Chinese characters.

    >>> words("Héllo, world!")
    ['hello', ',', 'world', '!']
    """
    cleaned = "".join(_cleaned(character) for character in text)
    if lower_case:
        cleaned = "".join(c for c in unicodedata.normalize("NFD", cleaned) if unicodedata.category(c) != "Mn").lower()
    spaced = "".join(f" {character} " if _is_punctuation(character) else character for character in cleaned)
    return spaced.split()


def _cleaned(character: str) -> str:
    code = ord(character)
    if character in "\t\n\r" or unicodedata.category(character) == "Zs":
        return " "
    if code in (0, 0xFFFD) or unicodedata.category(character).startswith("C"):
        return ""
    return f" {character} " if any(low <= code <= high for low, high in _CHINESE) else character


def _is_punctuation(character: str) -> bool:
    code = ord(character)
    # All of ASCII that is neither letter, digit nor space, though Unicode calls some of it symbols: $, +, <, ^, `, |, ~.
    is_ascii = 33 <= code <= 47 or 58 <= code <= 64 or 91 <= code <= 96 or 123 <= code <= 126
    return is_ascii or unicodedata.category(character).startswith("P")

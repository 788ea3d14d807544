"""Texts with a class each, from the two layouts that text classification sets come in.

``label<TAB>text`` a line (UCI's SMS Spam Collection; the columns change places where the first line says so), or ``text;label`` (emotion
sets). A first line that names the columns is passed over, and so is a text that came before: sets of messages repeat themselves, and a text
must not be learned from and tested on.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lilliput.errors import DataError

_LABEL_NAMES = {"label", "label_name", "labels", "class", "category"}


@dataclass(frozen=True)
class TextData:
    """Texts of a classification task, in the order of their file."""

    name: str
    """Of the file, without its ending."""
    texts: tuple[str, ...]
    labels: tuple[int, ...]
    """Class index of each text."""
    class_names: tuple[str, ...]
    """In alphabetical order."""
    repeated: int = 0
    """Lines that were passed over because their text had come before."""

    def __len__(self) -> int:
        return len(self.texts)

    def part(self, indices: list[int]) -> TextData:
        """Some of the texts, in the order given."""
        texts = tuple(self.texts[index] for index in indices)
        return TextData(self.name, texts, tuple(self.labels[index] for index in indices), self.class_names)

    def draws(self, sizes: list[int], seed: int) -> list[TextData]:
        """Disjoint random parts, of so many texts each.

        Raises:
            DataError: more texts than there are.
        """
        if sum(sizes) > len(self):
            raise DataError(
                f"{self.name}: {' + '.join(map(str, sizes))} texts of {len(self):,} distinct ones; ask for fewer"
            )
        order = np.random.default_rng(seed).permutation(len(self)).tolist()
        ends = np.cumsum(sizes).tolist()
        return [self.part(order[end - size : end]) for size, end in zip(sizes, ends, strict=True)]


def load_texts(path: str | Path) -> TextData:
    """Read a file of labelled texts.

    Raises:
        DataError: no such file, a line without a label (names it), or fewer than two classes.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: no such file; give lines of label<TAB>text, or of text;label")
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is no UTF-8 text ({error.reason} at byte {error.start}); convert it first") from None
    mark = "\t" if "\t" in lines[0] else ";"
    label_first = mark == "\t"
    pairs: dict[str, str] = {}
    count = 0
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        cells = line.split(mark, 1) if label_first else line.rsplit(mark, 1)
        if len(cells) != 2 or not all(cell.strip() for cell in cells):
            raise DataError(f"{path}, line {number}: {line[:60]!r} has no label; must be label<TAB>text or text;label")
        if number == 1 and _LABEL_NAMES & {cell.strip().lower() for cell in cells}:
            label_first = cells[0].strip().lower() in _LABEL_NAMES
            continue
        label, text = (cell.strip() for cell in (cells if label_first else reversed(cells)))
        pairs.setdefault(text, label)
        count += 1
    names = tuple(sorted(set(pairs.values())))
    if len(names) < 2:
        raise DataError(f"{path}: has {len(names)} classes; needs two or more")
    labels = tuple(names.index(label) for label in pairs.values())
    return TextData(path.stem, tuple(pairs), labels, names, count - len(pairs))

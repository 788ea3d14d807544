"""Images and texts for classification: from many formats to one split without leakage, images as bytes until asked for; text encoders."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from lilliput.data.images import ImageData, ImageSplit
from lilliput.data.load import load_images
from lilliput.data.splits import SplitReport
from lilliput.data.texts import TextData, load_texts

if TYPE_CHECKING:
    from lilliput.data.bert import BertEncoder, load_bert
    from lilliput.data.text_classifier import TextClassifier
    from lilliput.data.wordpiece import WordPiece

__all__ = [
    "BertEncoder",
    "ImageData",
    "ImageSplit",
    "SplitReport",
    "TextClassifier",
    "TextData",
    "WordPiece",
    "load_bert",
    "load_images",
    "load_texts",
]

_WITH_TORCH = {
    "BertEncoder": "bert",
    "load_bert": "bert",
    "TextClassifier": "text_classifier",
    "WordPiece": "wordpiece",
}
"""Names whose files need torch, which takes seconds to load: they are imported when they are first asked for."""


def __getattr__(name: str) -> Any:
    if name not in _WITH_TORCH:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_WITH_TORCH[name]}"), name)

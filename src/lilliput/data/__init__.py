"""Images and texts for classification: from many formats to one split without leakage, images as bytes until asked for; text encoders."""

from lilliput.data.bert import BertEncoder, load_bert
from lilliput.data.images import ImageData, ImageSplit
from lilliput.data.load import load_images
from lilliput.data.splits import SplitReport
from lilliput.data.text_classifier import TextClassifier
from lilliput.data.texts import TextData, load_texts
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

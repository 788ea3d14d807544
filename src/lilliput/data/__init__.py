"""Images for classification: from many formats to one split without leakage, as bytes until a network asks for floats; text encoders."""

from lilliput.data.bert import BertEncoder, load_bert
from lilliput.data.images import ImageData, ImageSplit
from lilliput.data.load import load_images
from lilliput.data.splits import SplitReport
from lilliput.data.wordpiece import WordPiece

__all__ = ["BertEncoder", "ImageData", "ImageSplit", "SplitReport", "WordPiece", "load_bert", "load_images"]

"""Images for classification: from many formats to one split without leakage, as bytes until a network asks for floats."""

from lilliput.data.images import ImageData, ImageSplit
from lilliput.data.load import load_images
from lilliput.data.splits import SplitReport

__all__ = ["ImageData", "ImageSplit", "SplitReport", "load_images"]

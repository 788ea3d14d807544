"""Int8 networks (an integer graph and its arithmetic), and weights in a few bits for any module (``lowbit``)."""

from lilliput.quantize.fold import fold_affine
from lilliput.quantize.int8 import quantize_int8
from lilliput.quantize.lowbit import (
    HalfQuadratic,
    LookupTable,
    QuantizedModel,
    RoundToNearest,
    SplitConfig,
    compare,
    load_quantized,
    quantize,
    save_quantized,
    split,
)
from lilliput.quantize.lower import SUPPORTED_OPS
from lilliput.quantize.qgraph import QOp, QTensor, QuantizedGraph

__all__ = [
    "SUPPORTED_OPS",
    "HalfQuadratic",
    "LookupTable",
    "QOp",
    "QTensor",
    "QuantizedGraph",
    "QuantizedModel",
    "RoundToNearest",
    "SplitConfig",
    "compare",
    "fold_affine",
    "load_quantized",
    "quantize",
    "quantize_int8",
    "save_quantized",
    "split",
]

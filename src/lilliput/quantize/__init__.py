"""Int8 networks: from a float graph to an integer graph, and the integer arithmetic it runs on."""

from lilliput.quantize.fold import fold_affine
from lilliput.quantize.int8 import quantize_int8
from lilliput.quantize.lower import SUPPORTED_OPS
from lilliput.quantize.qgraph import QOp, QTensor, QuantizedGraph

__all__ = ["SUPPORTED_OPS", "QOp", "QTensor", "QuantizedGraph", "fold_affine", "quantize_int8"]

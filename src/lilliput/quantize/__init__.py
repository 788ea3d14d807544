"""Int8 networks: from a float graph to an integer graph, and the integer arithmetic it runs on."""

from lilliput.quantize.qgraph import QOp, QTensor, QuantizedGraph

__all__ = ["QOp", "QTensor", "QuantizedGraph"]

"""Weights in a few bits: SplitQuant and its rivals for any module, without data."""

from lilliput.quantize.lowbit.compare import Comparison, compare, rivals
from lilliput.quantize.lowbit.files import load_quantized, save_quantized, stored_bytes
from lilliput.quantize.lowbit.half_quadratic import HalfQuadratic
from lilliput.quantize.lowbit.lookup_table import LookupTable
from lilliput.quantize.lowbit.model import QuantizedModel, quantize
from lilliput.quantize.lowbit.round_to_nearest import RoundToNearest
from lilliput.quantize.lowbit.split import split
from lilliput.quantize.lowbit.splitquant import SplitConfig

__all__ = [
    "Comparison",
    "HalfQuadratic",
    "LookupTable",
    "QuantizedModel",
    "RoundToNearest",
    "SplitConfig",
    "compare",
    "load_quantized",
    "quantize",
    "rivals",
    "save_quantized",
    "split",
    "stored_bytes",
]

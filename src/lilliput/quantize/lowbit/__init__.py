"""Weights in a few bits: SplitQuant and its rivals for any module, without data."""

from lilliput.quantize.lowbit.files import load_quantized, save_quantized
from lilliput.quantize.lowbit.half_quadratic import HalfQuadratic
from lilliput.quantize.lowbit.lookup_table import LookupTable
from lilliput.quantize.lowbit.model import QuantizedModel, quantize
from lilliput.quantize.lowbit.round_to_nearest import RoundToNearest
from lilliput.quantize.lowbit.splitquant import SplitConfig

__all__ = [
    "HalfQuadratic",
    "LookupTable",
    "QuantizedModel",
    "RoundToNearest",
    "SplitConfig",
    "load_quantized",
    "quantize",
    "save_quantized",
]

"""An architecture from a budget, by mathematical programming."""

from lilliput.design.block import BLOCKS, BlockType, ConvRow
from lilliput.design.chip import chip_spaces
from lilliput.design.count import chip_cost, exact_cost
from lilliput.design.design import Design
from lilliput.design.geometry import Patches
from lilliput.design.score import Score, StageScore, depth_penalty, score
from lilliput.design.solve import solve
from lilliput.design.space import SearchSpace
from lilliput.design.structure import Structure, SuperBlock
from lilliput.design.sweep import Request, sweep
from lilliput.design.tradeoff import TradeOff, trade_offs

__all__ = [
    "BLOCKS",
    "BlockType",
    "ConvRow",
    "Design",
    "Patches",
    "Request",
    "Score",
    "SearchSpace",
    "StageScore",
    "Structure",
    "SuperBlock",
    "TradeOff",
    "chip_cost",
    "chip_spaces",
    "depth_penalty",
    "exact_cost",
    "score",
    "solve",
    "sweep",
    "trade_offs",
]

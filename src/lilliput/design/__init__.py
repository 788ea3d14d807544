"""Choosing a network for a budget."""

from lilliput.design.choose import Candidate, Choice, choose, graph_cost
from lilliput.design.exact_cost import exact_cost
from lilliput.design.inverted_residual import InvertedResidualNet, InvertedResidualSpec, members
from lilliput.design.score import Score, StageScore, depth_penalty, score
from lilliput.design.solve import Design, solve
from lilliput.design.space import SearchSpace
from lilliput.design.structure import Structure, SuperBlock

__all__ = [
    "Candidate",
    "Choice",
    "Design",
    "InvertedResidualNet",
    "InvertedResidualSpec",
    "Score",
    "SearchSpace",
    "StageScore",
    "Structure",
    "SuperBlock",
    "choose",
    "depth_penalty",
    "exact_cost",
    "graph_cost",
    "members",
    "score",
    "solve",
]

"""Choosing a network for a budget."""

from lilliput.design.choose import Candidate, Choice, choose, graph_cost
from lilliput.design.inverted_residual import InvertedResidualNet, InvertedResidualSpec, members

__all__ = ["Candidate", "Choice", "InvertedResidualNet", "InvertedResidualSpec", "choose", "graph_cost", "members"]

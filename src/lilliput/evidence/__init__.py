"""Budgets, costs, and figures that say how they were obtained."""

from lilliput.evidence.budget import Budget, Cost

__all__ = ["Budget", "Cost"]

"""Budgets, costs, and figures that say how they were obtained; runs and their report pages."""

from lilliput.evidence import charts, figures
from lilliput.evidence.budget import Budget, Cost
from lilliput.evidence.evidence import Evidence, How
from lilliput.evidence.figures import Lifetime
from lilliput.evidence.page import render_report
from lilliput.evidence.run import Run, Step
from lilliput.evidence.sections import Bar, Bars, EvidenceTable, Figure, Images, Report, Section, Table, Text, Tile

__all__ = [
    "Bar",
    "Bars",
    "Budget",
    "Cost",
    "Evidence",
    "EvidenceTable",
    "Figure",
    "How",
    "Images",
    "Lifetime",
    "Report",
    "Run",
    "Section",
    "Step",
    "Table",
    "Text",
    "Tile",
    "charts",
    "figures",
    "render_report",
]

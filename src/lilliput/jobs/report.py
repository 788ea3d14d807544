"""Draw the report page of a finished run again, from the run's own data."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from lilliput.errors import DataError
from lilliput.evidence import Run


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """Draw a run's report.html again from its report.json and evidence.json.

    Examples:
        lilliput report runs/digits
    """

    run: Positional[str]
    """Directory of a finished run."""


def report(config: ReportConfig) -> Path:
    """Path of the page.

    Raises:
        DataError: the run is missing, unfinished or damaged, or has no report.
    """
    run = Run.load(config.run)
    if run.report is None:
        raise DataError(f"{config.run}: the run has no report.json, so there is nothing to draw; run its job again")
    return run.write_page()


def show(config: ReportConfig, page: Path) -> None:
    """Print where the page is."""
    print(page)

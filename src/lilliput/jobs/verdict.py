"""What a job prints when it is done."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lilliput.evidence import Run


def print_verdict(run: Run) -> None:
    """The verdict, the figures under it, and where the report is."""
    assert run.report is not None
    print(run.report.verdict)
    for name in run.report.highlights:
        each = run.evidence[name]
        amount = f"{each.value:.2%}" if each.unit == "share" else f"{each.value:,.0f} {each.unit}"
        print(f"  {name:<28} {amount} ({each.how}{f', n={each.n:,}' if each.n else ''})")
    print(f"report: {run.path / 'report.html'}")

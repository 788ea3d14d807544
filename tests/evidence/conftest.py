from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from example_report import example_run

from lilliput.evidence import Evidence, Run, Section, Text


@pytest.fixture(scope="session")
def example(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A finished run whose report has a block of every kind. Read it, don't change it."""
    return example_run(tmp_path_factory.mktemp("runs") / "digits")


@pytest.fixture(scope="session")
def docs_page() -> str:
    return (Path(__file__).parents[2] / "docs" / "evidence.md").read_text(encoding="utf-8")


@pytest.fixture
def written() -> Callable[[Path], Path]:
    """Writes a small finished run, without figures, and says where."""

    def write(path: Path) -> Path:
        with Run.create(path, job="build", config={"epochs": 3}, seed=1) as run:
            run.record(Evidence("a.b", 1, "bytes", "counted"))
            run.write_report([Section("one", "One", blocks=[Text("words")])])
        return run.path

    return write

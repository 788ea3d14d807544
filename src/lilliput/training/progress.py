"""The bar that long work of known length shows: how far it is, its latest figures, time left."""

from __future__ import annotations

from types import TracebackType
from typing import Any


class Bar:
    """A bar on standard error, or nothing where it is not shown."""

    def __init__(self, label: str, total: int, done: int, is_shown: bool) -> None:
        self._label, self._total, self._done, self._is_shown = label, total, done, is_shown
        self._progress: Any = None
        self._task: Any = None

    def __enter__(self) -> Bar:
        if self._is_shown:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            self._progress = Progress(
                TextColumn(self._label),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[figures]}"),
                TimeRemainingColumn(),
                console=Console(stderr=True),
            )
            self._progress.start()
            self._task = self._progress.add_task(self._label, total=self._total, completed=self._done, figures="")
        return self

    def show(self, done: int, figures: str) -> None:
        """So many are done, and this is how they went."""
        self._done = done
        if self._progress is not None:
            self._progress.update(self._task, completed=done, figures=figures)

    def advance(self, count: int = 1) -> None:
        """So many more are done."""
        self.show(self._done + count, "")

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._progress is not None:
            self._progress.stop()

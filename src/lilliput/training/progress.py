"""The bar that a training shows: one step per epoch, with loss, validation accuracy, learning rate and time left."""

from __future__ import annotations

from types import TracebackType
from typing import Any

from lilliput.training.config import EpochRecord


class EpochBar:
    """A bar on standard error, or nothing where it is not shown."""

    def __init__(self, epochs: int, done: int, is_shown: bool) -> None:
        self._epochs, self._done, self._is_shown = epochs, done, is_shown
        self._progress: Any = None
        self._task: Any = None

    def __enter__(self) -> EpochBar:
        if self._is_shown:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            self._progress = Progress(
                TextColumn("training"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[figures]}"),
                TimeRemainingColumn(),
                console=Console(stderr=True),
            )
            self._progress.start()
            self._task = self._progress.add_task("training", total=self._epochs, completed=self._done, figures="")
        return self

    def show(self, record: EpochRecord) -> None:
        """Advance by one epoch."""
        if self._progress is not None:
            figures = f"loss {record.train_loss:.4f}  val {record.val_accuracy:.2%}  lr {record.lr:.2g}"
            self._progress.update(self._task, advance=1, figures=figures)

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._progress is not None:
            self._progress.stop()

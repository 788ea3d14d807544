"""One training loop for every classifier, and the figures that say how well it does.

Configs and results are plain data and load at once; what needs torch loads when it is first asked for, so that a command line can
build its options from :class:`FitConfig` without waiting for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from lilliput.training.config import EpochRecord, FitConfig, FitResult

if TYPE_CHECKING:
    from lilliput.training.loop import DivergenceError, fit
    from lilliput.training.metrics import (
        Metrics,
        accuracy,
        class_recall,
        confusion_matrix,
        evaluate,
        score,
        wilson_interval,
    )
    from lilliput.training.schedule import learning_rate

__all__ = [
    "DivergenceError",
    "EpochRecord",
    "FitConfig",
    "FitResult",
    "Metrics",
    "accuracy",
    "class_recall",
    "confusion_matrix",
    "evaluate",
    "fit",
    "learning_rate",
    "score",
    "wilson_interval",
]

_LAZY = {
    "DivergenceError": "loop",
    "fit": "loop",
    "learning_rate": "schedule",
    **dict.fromkeys(
        ("Metrics", "accuracy", "class_recall", "confusion_matrix", "evaluate", "score", "wilson_interval"), "metrics"
    ),
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)

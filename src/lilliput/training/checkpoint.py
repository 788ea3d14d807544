"""A training on disk after each whole epoch: written to a temporary file and renamed, so it is whole or it is the one before."""

from __future__ import annotations

import os
import pickle
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from lilliput.errors import ConfigError, DataError
from lilliput.training.config import FitConfig

FORMAT = 1
# A resumed run may be on another machine; everything else must be as it was, or the bits would differ.
FREE_FIELDS = ("accelerator", "devices", "num_nodes")


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Replace the checkpoint by this state, or leave the old one whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            torch.save({"format": FORMAT, **state}, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    finally:
        Path(name).unlink(missing_ok=True)


def load_checkpoint(path: Path, config: FitConfig, data_digest: str) -> dict[str, Any]:
    """The state that was saved, after checking that it is of this training.

    Only tensors and plain values are loaded, so a checkpoint from elsewhere can't run code.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, ValueError, EOFError, KeyError, pickle.UnpicklingError) as fault:
        reason = (str(fault) or type(fault).__name__).splitlines()[0]
        raise DataError(f"{path}: cannot be read as a checkpoint ({reason}); delete it and train afresh") from fault
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        found = state.get("format") if isinstance(state, dict) else type(state).__name__
        raise DataError(f"{path}: not a checkpoint of format {FORMAT} (found {found}); delete it and train afresh")
    now = asdict(config)
    changed = [
        f"{name}={state['config'].get(name)} there, {value} now"
        for name, value in now.items()
        if name not in FREE_FIELDS and state["config"].get(name) != value
    ]
    if changed:
        raise ConfigError(
            f"{path}: the checkpoint is of another training ({'; '.join(changed)}); use the same values, or train afresh"
        )
    if state["data_digest"] != data_digest:
        raise ConfigError(
            f"{path}: the checkpoint was trained on other data; load the same data with the same seed, or train afresh"
        )
    return state

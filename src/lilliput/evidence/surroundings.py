"""Where and with what a run ran: versions, platform, processors. Nothing that names a person or a machine."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

_PACKAGES = ("torch", "numpy", "scipy", "scikit-learn")


def versions() -> dict[str, str]:
    """Version of Python and of each package the figures depend on, read without importing any of them."""
    return {"python": platform.python_version()} | {package: _version(package) for package in _PACKAGES}


def machine() -> dict[str, Any]:
    """Operating system, architecture, and the number of processors this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)  # absent on macOS and Windows
    cpus = len(affinity(0)) if affinity is not None else os.cpu_count() or 1
    return {"system": platform.platform(), "machine": platform.machine(), "cpus": cpus}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"

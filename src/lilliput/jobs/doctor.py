"""Say what is installed, what is missing, and the line that installs it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
from dataclasses import dataclass

import lilliput


@dataclass(frozen=True, kw_only=True)
class DoctorConfig:
    """List what Lilliput can use on this computer: packages, compilers, emulators.

    Examples:
        lilliput doctor
    """


@dataclass(frozen=True)
class Finding:
    """One thing looked for."""

    name: str
    purpose: str
    version: str | None
    """``None`` when it is missing."""
    install: str


_PACKAGES = {
    "torch": "tracing and training",
    "lightning-fabric": "the training loop, on one or many devices",
    "scikit-learn": "the digits data, metrics",
    "matplotlib": "figures of reports",
    "safetensors": "weights on disk",
}


def doctor(config: DoctorConfig) -> tuple[Finding, ...]:
    """Every tool and package, found or not."""
    from lilliput.mcu.toolchain import probe

    findings = [Finding("python", "runs Lilliput", platform.python_version(), "")]
    for name, purpose in _PACKAGES.items():
        findings.append(Finding(name, purpose, _package(name), f"pip install {name}"))
    findings += [Finding(each.name, each.purpose, each.version, each.install) for each in probe()]
    return tuple(findings)


def _package(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def show(config: DoctorConfig, findings: tuple[Finding, ...]) -> None:
    """Print a table, and what a build would use."""
    from rich.console import Console
    from rich.table import Table

    from lilliput.errors import ToolchainError
    from lilliput.mcu.boards import find_board
    from lilliput.mcu.toolchain import find_toolchain

    table = Table(title=f"Lilliput {lilliput.__version__}", title_justify="left")
    for column in ("what", "for", "version", "to install"):
        table.add_column(column, overflow="fold")
    for finding in findings:
        missing = finding.version is None
        table.add_row(
            finding.name, finding.purpose, "missing" if missing else finding.version, finding.install if missing else ""
        )
    console = Console()
    console.print(table)
    for board in ("mps2-an386", "host"):
        try:
            console.print(f"firmware for {board}: {find_toolchain(find_board(board))}", highlight=False)
        except ToolchainError as error:
            console.print(f"firmware for {board}: not possible: {error}", highlight=False)

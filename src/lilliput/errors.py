"""Every error a user can cause, in one family.

A message names what was given, what is allowed, and what would work. The family does not inherit from ``ValueError``:
the command line prints exactly one line for it and exits with 2 (see ``lilliput.cli``).
"""


class LilliputError(Exception):
    """A fault in what was given to Lilliput, with the fix named in the message."""


class ConfigError(LilliputError):
    """An option has a value outside what is allowed."""


class BudgetError(LilliputError):
    """Nothing fits the budget; the message names the smallest that would do."""


class DataError(LilliputError):
    """A data file or array is missing, corrupt or inconsistent."""


class GraphError(LilliputError):
    """A network cannot be turned into a static graph, or a graph breaks its own rules."""


class UnsupportedOpError(GraphError):
    """An operation has no rule in the consumer named by the message."""


class ToolchainError(LilliputError):
    """A compiler or emulator is missing, or what it built did not run to its end."""


class MissingExtraError(LilliputError):
    """An optional dependency is not installed; the message holds the line that installs it."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(f"{purpose} needs the package '{package}': pip install 'lilliput[{extra}]'")

"""What every method is given and what it gives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from jaxtyping import Float
from torch import Tensor

from lilliput.certify.checkpoint import Checkpoint
from lilliput.certify.interval import Interval
from lilliput.certify.network import Network
from lilliput.certify.region import Region
from lilliput.certify.witness import Witness


@dataclass(frozen=True)
class Problem:
    """Bound the dual norm of the rows' gradients over each domain of the region."""

    network: Network
    region: Region
    rows: Float[Tensor, "domains rows outputs"]
    alpha_steps: int = 20
    time_limit: float = 30.0
    seed: int = 0
    progress: Callable[[float, float, float, int], None] | None = None
    """Hears of each entry of the trace as it is made: seconds, upper, lower, open domains."""
    is_interruptible: bool = False
    """An interrupt from the keyboard ends a method that refines with what it has, as status "stopped"."""
    checkpoint: Checkpoint | None = None
    """Where a method that refines keeps how far it came, and goes on from."""


@dataclass(frozen=True)
class Answer:
    """Upper bounds for each (domain, row); a method that finds points, or works for long, says so too."""

    norm: Float[Tensor, "domains rows"]
    jacobian: Callable[[], Interval]
    """Intervals of the rows' elements, (domains, rows, n); computed when asked for."""
    status: str = "bounded"
    witness: Witness | None = None
    trace: list[tuple[float, float, float, int]] = field(default_factory=list)
    """(seconds, upper, lower, open domains), oldest first."""

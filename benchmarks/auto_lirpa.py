"""The peer of ``benchmarks/certify.py``: Lipschitz constants by auto_LiRPA's Jacobian bounds, from a checkout of its repository.

    git clone https://github.com/Verified-Intelligence/auto_LiRPA
    pip install --no-deps --target deps appdirs tqdm graphviz

Called as its ``examples/vision/jacobian.py`` calls it: the network's graph is expanded once, then one call for each output. The row
selector is captured by reference when the graph is expanded, so it is changed in place; a new tensor would give row 0 for every row.
"""

from __future__ import annotations

import contextlib
import io
import logging
import sys
import warnings
from pathlib import Path
from types import ModuleType
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

Mode = Literal["no alpha", "alpha", "alpha once"]
MODES: tuple[Mode, ...] = ("no alpha", "alpha", "alpha once")
"""``alpha`` is its own call, which trains the lines of the forward pass again for each output; ``alpha once`` trains them for the first
output and keeps the bounds for the others, which its interface allows and which is to its advantage here."""
OPTIONS: tuple[dict[str, str], ...] = ({}, {"conv_mode": "matrix"})
"""As it comes; then, where that fails, with convolutions as matrices."""


def load(checkout: Path, deps: Path | None) -> ModuleType:
    """The library, quiet."""
    # What it needs and this environment lacks comes last, so that torch and numpy stay ours.
    sys.path[:0], sys.path[len(sys.path) :] = [str(checkout)], [str(deps)] if deps else []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import auto_LiRPA
        import auto_LiRPA.jacobian
        from auto_LiRPA.utils import logger

    logger.setLevel(logging.ERROR)
    module: ModuleType = auto_LiRPA
    return module


class Peer:
    """One network, ready to be bounded around a centre."""

    def __init__(
        self, library: ModuleType, model: nn.Module, centre: Tensor, outputs: int, eps: float, options: dict[str, str]
    ) -> None:
        from auto_LiRPA.perturbations import PerturbationLpNorm

        self.selector = torch.zeros(outputs, 1)
        self.selector[0] = 1
        example = library.BoundedTensor(centre[None])
        self.bounded = library.BoundedModule(_Lipschitz(model), (example, self.selector), bound_opts=options)
        self.x = library.BoundedTensor(centre[None], PerturbationLpNorm(norm=np.inf, eps=eps))

    def constants(self, mode: Mode) -> Tensor:
        """Upper bound of each output's l_1 gradient norm, (outputs,)."""
        with contextlib.redirect_stdout(io.StringIO()):  # it prints when its training stops early
            return self._constants(mode)

    def _constants(self, mode: Mode) -> Tensor:
        found = []
        kept = self._trained() if mode == "alpha once" else None
        for row in range(len(self.selector)):
            self.selector.zero_()
            self.selector[row] = 1
            inputs = (self.x, self.selector)
            if kept is None:
                _, upper = self.bounded.compute_jacobian_bounds(inputs, optimize=mode == "alpha", bound_lower=False)
            else:
                _, upper = self.bounded.compute_bounds(
                    method="CROWN", x=inputs, bound_lower=False, interm_bounds=dict(kept)
                )
            found.append(upper.detach().reshape(()))
        return torch.stack(found).double()

    def _trained(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Bounds of the forward pass with trained lines; the selected output's own are of one row and are left out."""
        self.selector.zero_()
        self.selector[0] = 1
        (start,) = self.bounded.jacobian_start_nodes
        self.bounded.compute_bounds(
            method="CROWN-Optimized", C=None, x=(self.x, self.selector), bound_upper=False, final_node_name=start.name
        )
        return {
            node.name: (node.lower.detach(), node.upper.detach())
            for node in self.bounded.nodes()
            if node.is_lower_bound_current() and node.name != start.name
        }


class _Lipschitz(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        from auto_LiRPA.jacobian import GradNorm

        self.model, self.norm = model, GradNorm(norm=1)

    def forward(self, x: Tensor, selector: Tensor) -> Tensor:
        from auto_LiRPA.jacobian import JacobianOP

        norm: Tensor = self.norm(JacobianOP.apply(self.model(x).matmul(selector), x))
        return norm

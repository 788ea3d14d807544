"""How near the refining methods come to the exact constant, against an enumeration of regions of its own, on networks trained here.

    python benchmarks/certify_complete.py [--only NAME] [--seconds 30] [--brute-seconds 60]

Networks: the shapes that Shi et al. (2022) and LipMIP use. 16-... are trained on random-k data (10,000 uniform points in [0, 1]^16, the
class of the nearest of 80 random leaders), 64-... and 784-... on scikit-learn's digits (784: enlarged bilinearly), 4-12-3 is as drawn.
Centres: the middle of the cube, the first digit, 0. Norm inf, all rows, one thread; seconds are of the processor, but the limit of
--seconds is of the clock. The enumeration splits one unit after the other, keeps each side that a linear program finds open, and prunes
nothing.
"""

from __future__ import annotations

import argparse
import time
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import linprog
from torch import Tensor, nn

from lilliput.certify import local_lipschitz

NETWORKS = {
    "4-12-3": ((4, 12, 3), 0.5),
    "16-16-16-10": ((16, 16, 16, 10), 0.1),
    "16-32-32-10": ((16, 32, 32, 10), 0.1),
    "64-32-32-10": ((64, 32, 32, 10), 8 / 255),
    "784-20-20-10": ((784, 20, 20, 10), 8 / 255),
    "784-20x3-10": ((784, 20, 20, 20, 10), 8 / 255),
    "784-20x4-10": ((784, 20, 20, 20, 20, 10), 8 / 255),
    "16-32x4-10": ((16, 32, 32, 32, 32, 10), 0.1),
    "16-32x4-10 b": ((16, 32, 32, 32, 32, 10), 0.1),
}


def multilayer(widths: tuple[int, ...]) -> nn.Sequential:
    """Linear layers with ReLU between them."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def random_k() -> tuple[Tensor, Tensor]:
    """The data of LipMIP: points and the labels of their nearest leaders."""
    generator = torch.Generator().manual_seed(0)
    x, leaders = (torch.rand(count, 16, generator=generator) for count in (10_000, 80))
    labels = torch.randint(0, 10, (80,), generator=generator)
    return x, labels[torch.cdist(x, leaders).argmin(1)]


def digits(pixels: int) -> tuple[Tensor, Tensor]:
    """Scikit-learn's, 8 pixels wide, or enlarged."""
    from sklearn.datasets import load_digits

    data = load_digits()
    images = F.interpolate(
        torch.from_numpy(data.images).float()[:, None] / 16, (pixels, pixels), mode="bilinear", align_corners=False
    )
    return images.flatten(1), torch.from_numpy(data.target)


def prepared(name: str) -> tuple[nn.Sequential, Tensor, float]:
    """Network, centre and radius."""
    widths, eps = NETWORKS[name]
    torch.manual_seed(0)
    model = multilayer(widths)
    if widths[0] == 4:
        return model.double().eval(), torch.zeros(4, dtype=torch.float64), eps
    x, y = random_k() if widths[0] == 16 else digits(8 if widths[0] == 64 else 28)
    epochs, batch = (40, 256) if name.endswith("b") else (20, 64) if widths[0] == 16 else (25, 64)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    generator = torch.Generator().manual_seed(0)
    count = int(0.7 * len(x))
    for _ in range(epochs):
        for some in torch.randperm(count, generator=generator).split(batch):
            optimizer.zero_grad()
            F.cross_entropy(model(x[some]), y[some]).backward()
            optimizer.step()
    centre = torch.full((16,), 0.5) if widths[0] == 16 else x[0]
    return model.double().eval(), centre.double(), eps


def enumerated(model: nn.Sequential, centre: Tensor, eps: float, seconds: float) -> tuple[float, int, bool]:
    """Largest l_1 norm of a row over all open regions, how many there are, and whether the time was enough."""
    layers = [(m.weight.detach().numpy(), m.bias.detach().numpy()) for m in model if isinstance(m, nn.Linear)]
    x0, n = centre.numpy(), len(centre)
    started, regions, most = time.process_time(), 0, 0.0

    def is_open(A: list[np.ndarray], b: list[float]) -> bool:
        length = [np.linalg.norm(a) for a in A]
        rows = np.c_[-np.array(A), length]
        found = linprog(np.r_[np.zeros(n), -1.0], rows, b, bounds=[*[(-eps, eps)] * n, (None, eps)], method="highs-ds")
        return bool(found.x[-1] > 1e-9 * eps)

    # Layer, its Jacobian and its value at the centre, signs of its first units, planes.
    stack = [(0, np.eye(n), x0, [], [], [])]
    while stack and time.process_time() - started < seconds:
        layer, J, value, signs, A, b = stack.pop()
        W, bias = layers[layer]
        Z, z = W @ J, W @ value + bias
        if layer == len(layers) - 1:
            regions, most = regions + 1, max(most, float(np.abs(Z).sum(1).max()))
            continue
        while len(signs) < len(W):
            unit = len(signs)
            if abs(z[unit]) > eps * np.abs(Z[unit]).sum():  # the box does not meet the plane
                signs = [*signs, float(z[unit] > 0)]
                continue
            for on in (1.0, 0.0):
                sign = 2 * on - 1
                more_A, more_b = [*A, sign * Z[unit]], [*b, sign * z[unit]]
                if is_open(more_A, more_b):
                    stack.append((layer, J, value, [*signs, on], more_A, more_b))
            break
        else:
            d = np.array(signs)
            stack.append((layer + 1, d[:, None] * Z, d * z, [], A, b))
    return most, regions, not stack


def main() -> None:
    """Print a line for each network."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=list(NETWORKS), help="one network")
    parser.add_argument("--seconds", type=float, default=30, help="for each method that refines")
    parser.add_argument("--brute-seconds", type=float, default=60, help="for the enumeration; 0 leaves it out")
    args = parser.parse_args()
    torch.set_num_threads(1)
    print("bounds (relative to crown; CPU seconds); bab and exact with the status and the lower bound")
    for name in [args.only] if args.only else list(NETWORKS):
        model, centre, eps = prepared(name)
        crown = local_lipschitz(model, centre, eps).upper
        parts = [f"{name:13s} crown {crown:9.4f}"]
        for method in ("alpha", "bab", "exact"):
            started = time.process_time()
            found = local_lipschitz(model, centre, eps, method=method, time_limit=args.seconds)
            spent = time.process_time() - started
            parts.append(f"{method} {found.upper:.6f} ({found.upper / crown:.3f}; {spent:.2f} s)")
            if method != "alpha":
                parts.append(f"{found.status} {found.lower:.6f}")
        if args.brute_seconds:
            started = time.process_time()
            most, regions, is_whole = enumerated(model, centre, eps, args.brute_seconds)
            state = "all" if is_whole else "not all"
            parts.append(f"enumerated {most:.6f} ({state}, {regions} regions; {time.process_time() - started:.1f} s)")
        print(" | ".join(parts), flush=True)


if __name__ == "__main__":
    main()

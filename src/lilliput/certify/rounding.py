"""Rounding errors, counted: what a sum of products can be off by, and steps to a number that is surely beyond.

Assumed are IEEE 754 operations to the nearest number with gradual underflow. Then a computed sum of k products, in any order and with or
without fused operations, is off by at most ``k u / (1 - k u)`` times the sum of the absolute values, and by k times the underflow of one
product; u is half the distance from 1 to the next number.

Source: Higham 2002 (Accuracy and Stability of Numerical Algorithms, 2nd ed.), sections 2.1, 3.1 and 3.5; for singular values Rump 2011
(Verified bounds for singular values, BIT 51), theorem 3.1.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from lilliput.errors import ConfigError

_LARGEST_SHARE = 1 / 16
"""Of a sum that rounding may take; far above what any network reaches in float64."""


def check_arithmetic(device: torch.device) -> None:
    """Refuse settings under which torch's arithmetic would not be as assumed.

    Raises:
        ConfigError: another device than the CPU; flushed denormals; products in less than the tensors' precision.
    """
    if device.type != "cpu":
        raise ConfigError(
            f"rigorous=True knows the arithmetic of CPUs, and the model is on '{device}'; use model.cpu()"
        )
    if float(torch.tensor(tiny(torch.float64), dtype=torch.float64) / 2) == 0:
        raise ConfigError("rigorous=True needs gradual underflow; call torch.set_flush_denormal(False)")
    if torch.get_float32_matmul_precision() != "highest" or torch.is_autocast_enabled("cpu"):
        raise ConfigError(
            "rigorous=True needs products in full precision; leave torch.autocast, and call torch.set_float32_matmul_precision('highest')"
        )


def gamma(roundings: int, dtype: torch.dtype) -> float:
    """Relative error of that many roundings in a row, with half as much again: the charges made with it are rounded themselves.

    Raises:
        ConfigError: so many that nothing would be left of the bound.

    >>> gamma(10, torch.float64) < 2e-15
    True
    """
    share = roundings * torch.finfo(dtype).eps / 2
    if share > _LARGEST_SHARE:
        raise ConfigError(
            f"rigorous=True: sums of {roundings:,} roundings are too long for {dtype}; use dtype='float64'"
        )
    return 1.5 * share


def tiny(dtype: torch.dtype) -> float:
    """More than any underflow can be off by: the smallest normal number."""
    return torch.finfo(dtype).tiny


def up(x: Tensor) -> Tensor:
    """At least the number after x, and so at least what x was rounded from. A sum of 0 is exact, and stays."""
    return x + x.abs() * torch.finfo(x.dtype).eps


def down(x: Tensor) -> Tensor:
    """At most the number before x."""
    return x - x.abs() * torch.finfo(x.dtype).eps


def outward(interval: tuple[Tensor, Tensor], by: Tensor) -> tuple[Tensor, Tensor]:
    """The interval, wider by that much on both sides, and no less."""
    return down(interval[0] - by), up(interval[1] + by)


def length(values: Float[Tensor, "*lead n"], order: str) -> Float[Tensor, "*lead"]:
    """At least the l_order norm of the last axis, for values >= 0."""
    if order == "inf":
        return values.amax(-1)
    n, dtype = values.shape[-1], values.dtype
    norm = torch.linalg.vector_norm(values, ord=float(order), dim=-1)
    # Squares below the smallest number are lost.
    return up(norm * (1 + gamma(n + 8, dtype))) + (n * tiny(dtype) ** 0.5 if order == "2" else 0.0)


def ball_box(
    centre: Tensor, eps: float | Tensor, clip: tuple[float | int, float | int] | None = None
) -> tuple[Tensor, Tensor]:
    """Ends of a box that surely holds every point within ``eps`` of the centre and within ``clip``, in the centre's precision.

    Where eps is 0 the box is the point.
    """
    wide = centre.double()
    away = torch.as_tensor(eps, dtype=torch.float64, device=centre.device)
    lower = torch.where(away == 0, wide, down(wide - away))
    upper = torch.where(away == 0, wide, up(wide + away))
    if clip is not None:
        lower, upper = lower.clamp(min=clip[0]), upper.clamp(max=clip[1])
    return below(lower, centre.dtype), -below(-upper, centre.dtype)


def least_of(rows: Tensor, values: tuple[Tensor, Tensor]) -> Tensor:
    """At most ``row . v`` for rows (domains, rows, n) and every v in the interval (domains, n)."""
    lower, upper = (each[:, None] for each in values)
    n, dtype = rows.shape[-1], rows.dtype
    terms = torch.minimum(rows * lower, rows * upper)
    most = torch.maximum((rows * lower).abs(), (rows * upper).abs())
    return down(terms.sum(-1) - up(gamma(n + 8, dtype) * most.sum(-1) + 8 * n * tiny(dtype)))


def below(x: Tensor, dtype: torch.dtype) -> Tensor:
    """The float64 numbers in another precision, none of them larger than before."""
    cast = x.to(dtype)
    return torch.where(cast.double() > x, torch.nextafter(cast, torch.full_like(cast, -torch.inf)), cast)


def spectral_norm(W: Float[Tensor, "rows columns"]) -> Float[Tensor, ""]:
    """At least the largest singular value.

    With computed factors, ``W = U S V + R``: the norm is at most ``|U| |S| |V| + |R|``, where ``|U|^2 <= 1 + |U^T U - 1|`` holds for
    whatever U the library has found.
    """
    U, S, V = torch.linalg.svd(W, full_matrices=False)
    return up(
        up(_isometry(U) * _isometry(V.T) * S.max()) * (1 + gamma(8, W.dtype)) + _frobenius(*_residual(W, U, S, V))
    )


def _isometry(U: Tensor) -> Tensor:
    eye = torch.eye(U.shape[1], dtype=U.dtype, device=U.device)
    size = U.abs().T @ U.abs() + eye
    defect = _frobenius(U.T @ U - eye, gamma(len(U) + 8, U.dtype) * size + len(U) * tiny(U.dtype))
    return up(up(1 + defect).sqrt())


def _residual(W: Tensor, U: Tensor, S: Tensor, V: Tensor) -> tuple[Tensor, Tensor]:
    size = W.abs() + (U.abs() * S) @ V.abs()
    return W - (U * S) @ V, gamma(len(S) + 8, W.dtype) * size + len(S) * tiny(W.dtype) * (1 + S.max())


def _frobenius(computed: Tensor, error: Tensor) -> Tensor:
    return length((computed.abs() + error).flatten(), "2")

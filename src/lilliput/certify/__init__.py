"""Sound bounds of what a trained network can do: local Lipschitz constants by bound propagation."""

from lilliput.certify.each import certify_each, radius_each
from lilliput.certify.jacobian import JacobianBounds, bound_jacobian
from lilliput.certify.lipschitz import LocalLipschitz, local_lipschitz
from lilliput.certify.method import METHODS, Answer, Problem
from lilliput.certify.model_hash import model_hash
from lilliput.certify.monotone import Monotonicity, Violation, monotonicity
from lilliput.certify.network import SUPPORTED_OPS, Network, lower
from lilliput.certify.preactivation import Preactivations, preactivations
from lilliput.certify.radius import certified_radius
from lilliput.certify.region import Region

__all__ = [
    "METHODS",
    "SUPPORTED_OPS",
    "Answer",
    "JacobianBounds",
    "LocalLipschitz",
    "Monotonicity",
    "Network",
    "Preactivations",
    "Problem",
    "Region",
    "Violation",
    "bound_jacobian",
    "certified_radius",
    "certify_each",
    "local_lipschitz",
    "lower",
    "model_hash",
    "monotonicity",
    "preactivations",
    "radius_each",
]

"""CROWN for the Jacobian derived again, densely and slowly, from the formulas alone: same numbers to 1e-9."""

import numpy as np
import pytest
import torch

from certify.certify_cases import mlp
from lilliput.certify import local_lipschitz


def crown_upper(weights, biases, bounds, row, x0, eps):
    """max of row . z_t over the box; bounds hold (l, u) of z_1 .. z_{t-1}."""
    a, constant = row @ weights[len(bounds)], row @ biases[len(bounds)]
    for t in reversed(range(len(bounds))):
        new = np.zeros_like(a)
        for i, (low, high) in enumerate(zip(*bounds[t], strict=True)):
            if low > 0:
                new[i] = a[i]
            elif high >= 0 and a[i] >= 0 and high > low:
                new[i] = a[i] * high / (high - low)
                constant += a[i] * -low * high / (high - low)
            elif high >= 0 and a[i] < 0:
                new[i] = a[i] * (1.0 if high > -low else 0.0)
        constant += new @ biases[t]
        a = new @ weights[t]
    return a @ x0 + eps * np.abs(a).sum() + constant


def gradient_upper(weights, bounds, gradients, start, coefficients, row):
    """max of coefficients . g_start, where g_{t-1} = W_t^T (d_t * g_t), g_H = W_{H+1}^T row; gradients hold (l, u) of g_t, t > start."""
    a, constant = coefficients, 0.0
    for t in range(start + 1, len(bounds) + 1):
        a = weights[t - 1] @ a
        low_z, high_z = bounds[t - 1]
        low_g, high_g = gradients[t]
        new = np.zeros_like(a)
        for i in range(len(a)):
            low, high = min(low_g[i], 0.0), max(high_g[i], 0.0)
            if low_z[i] > 0:
                new[i] = a[i]
            elif high_z[i] >= 0 and high > low:
                width = high - low
                new[i] = a[i] * (high / width if a[i] >= 0 else -low / width)
                constant += abs(a[i]) * -low * high / width
        a = new
    return a @ (weights[-1].T @ row) + constant


def by_hand(weights, biases, x0, eps):
    hidden = len(weights) - 1
    bounds = []
    value = (x0 - eps, x0 + eps)
    for t in range(hidden):
        middle, radius = (value[0] + value[1]) / 2, (value[1] - value[0]) / 2
        z, r = weights[t] @ middle + biases[t], np.abs(weights[t]) @ radius
        low, high = z - r, z + r
        if t:
            eye = np.eye(len(z))
            high = np.minimum(high, [crown_upper(weights, biases, bounds, e, x0, eps) for e in eye])
            low = np.maximum(low, [-crown_upper(weights, biases, bounds, -e, x0, eps) for e in eye])
        bounds.append((low, high))
        value = np.maximum(low, 0), np.maximum(high, 0)
    answer = []
    for row in np.eye(len(weights[-1])):
        exact = weights[-1].T @ row
        gradients = {hidden: (exact, exact)}
        for t in reversed(range(hidden)):
            low_g, high_g = gradients[t + 1]
            low_d, high_d = (bounds[t][0] > 0).astype(float), (bounds[t][1] >= 0).astype(float)
            corners = np.stack([low_d * low_g, low_d * high_g, high_d * low_g, high_d * high_g])
            low_u, high_u = corners.min(0), corners.max(0)
            middle, radius = weights[t].T @ (low_u + high_u) / 2, np.abs(weights[t]).T @ (high_u - low_u) / 2
            eye = np.eye(len(middle))
            high = [gradient_upper(weights, bounds, gradients, t, e, row) for e in eye]
            low = [-gradient_upper(weights, bounds, gradients, t, -e, row) for e in eye]
            gradients[t] = np.maximum(low, middle - radius), np.minimum(high, middle + radius)
        low, high = gradients[0]
        low, high = np.minimum(low, 0.0), np.maximum(high, 0.0)
        slope = (np.abs(high) - np.abs(low)) / (high - low)
        intercept = np.abs(low) - slope * low
        answer.append(gradient_upper(weights, bounds, gradients, 0, slope, row) + intercept.sum())
    return np.array(answer)


@pytest.mark.parametrize(
    ("widths", "seed", "eps"),
    [((4, 12, 3), 0, 0.5), ((6, 10, 10, 4), 1, 0.2), ((5, 8, 8, 8, 3), 2, 0.3), ((9, 7, 12, 6, 5, 2), 3, 0.1)],
)
def test_crown_equals_a_second_derivation(widths, seed, eps):
    model = mlp(*widths, seed=seed, gain=1.4)
    x0 = torch.randn(widths[0], dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    linear = [layer for layer in model if isinstance(layer, torch.nn.Linear)]
    weights = [layer.weight.detach().numpy() for layer in linear]
    biases = [layer.bias.detach().numpy() for layer in linear]
    expected = by_hand(weights, biases, x0.numpy(), eps)
    np.testing.assert_allclose(local_lipschitz(model, x0, eps).per_output.numpy(), expected, rtol=1e-9)

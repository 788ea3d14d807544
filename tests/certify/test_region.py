"""Points drawn in a region: inside it, and of full dimension in what the data's range leaves of the ball."""

import pytest
import torch
from torch import nn

from certify.digit_networks import digits
from lilliput.certify import Region, local_lipschitz


@pytest.mark.parametrize("norm", ["inf", "1", "2"])
@pytest.mark.parametrize("clip", [None, (0, 1)])
def test_points_lie_in_the_ball_and_in_the_range(norm, clip):
    x, _ = digits(3)
    region = Region.ball(x, 0.3, norm, clip)
    points = region.draw(90, torch.Generator().manual_seed(0))
    assert torch.linalg.vector_norm(points - x, ord=float(norm), dim=-1).max() <= 0.3 * (1 + 1e-12)
    corners = region.corners(30, torch.Generator().manual_seed(0))
    assert torch.linalg.vector_norm(corners - x, ord=float(norm), dim=-1).max() <= 0.3 * (1 + 1e-12)
    if clip:
        assert torch.cat([points, corners]).min() >= 0
        assert torch.cat([points, corners]).max() <= 1
    if norm == "inf":
        assert (torch.isclose(corners, region.lower) | torch.isclose(corners, region.upper)).all()


@pytest.mark.parametrize("norm", ["inf", "1", "2"])
def test_no_two_pixels_of_a_black_background_are_drawn_alike(norm):
    region = Region.ball(torch.zeros(1, 20, dtype=torch.float64), 0.3, norm, (0, 1))
    points = region.draw(30, torch.Generator().manual_seed(0))
    inner = points[[index for index in range(30) if index % 3]]  # the others are corners
    assert all(len(point.unique()) == 20 for point in inner.flatten(0, 1))


def test_a_max_pool_over_a_black_background_has_a_lower_bound():
    torch.manual_seed(1)
    model = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(64, 3))
    x, _ = digits(1)
    assert (x == 0).sum() > 20
    for norm in ("inf", "1", "2"):
        found = local_lipschitz(model.double().eval(), x[0].reshape(1, 8, 8), 0.1, norm, clip=(0, 1))
        assert found.lower > 0.3 * found.upper

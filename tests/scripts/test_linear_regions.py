"""scripts/linear_regions.py: the pieces part the square, each with the pattern and gradient of the network there."""

import numpy as np
import pytest
import torch
from torch import nn

SIDE = 3.0


@pytest.fixture
def linear(script):
    return script("linear_regions")


def patterns(module, points: np.ndarray) -> list[tuple[bool, ...]]:
    """Of each point, by the network itself, which ReLUs are on."""
    values, on = torch.from_numpy(points), []
    for part in module:
        values = part(values)
        if isinstance(part, nn.ReLU):
            on.append(values > 0)
    return [tuple(row) for row in torch.cat(on, 1).tolist()]


@pytest.mark.parametrize("positive", [False, True])
def test_regions_are_the_activation_patterns_of_the_square(linear, positive):
    module = linear.network(positive, hidden=(6, 5), seed=3)
    found = linear.regions(module, SIDE)
    of_pattern = {region.pattern: region for region in found}
    assert len(of_pattern) == len(found) > 20
    assert sum(region.area for region in found) == pytest.approx((2 * SIDE) ** 2)
    middles = np.stack([region.corners.mean(0) for region in found])
    assert patterns(module, middles) == [region.pattern for region in found]
    points = torch.from_numpy(middles).requires_grad_()
    (slopes,) = torch.autograd.grad(module(points).sum(), points)
    np.testing.assert_allclose(np.stack([region.gradient for region in found]), slopes.numpy(), atol=1e-12)
    # Counted on a fine grid there are the same, but for pieces that lie between its points.
    axis = (np.arange(500) + 0.5) / 500 * 2 * SIDE - SIDE
    counted = set(patterns(module, np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)))
    assert counted <= of_pattern.keys()
    assert all(of_pattern[pattern].area < 2e-3 for pattern in of_pattern.keys() - counted)
    assert len(counted) >= 0.9 * len(found)


def test_lines_that_all_cross_cut_the_plane_in_the_known_number_of_pieces(linear):
    """1 + n + n (n - 1) / 2 for n lines in general position, if all crossings lie in the square."""
    angles = np.pi * (np.arange(7) + 0.3) / 7
    module = nn.Sequential(nn.Linear(2, 7), nn.ReLU(), nn.Linear(7, 1)).double()
    with torch.no_grad():
        module[0].weight.copy_(torch.from_numpy(np.stack([np.cos(angles), np.sin(angles)], 1)))
        module[0].bias.copy_(torch.linspace(-0.31, 0.37, 7).sin())
    assert len(linear.regions(module, 50.0)) == 1 + 7 + 7 * 6 // 2


def test_where_no_bias_is_positive_nothing_is_on_around_zero(linear):
    module = linear.network(False)
    assert all((layer.bias <= 0).all() for layer in module[::2])
    (dead,) = [region for region in linear.regions(module, 5.0) if not any(region.pattern)]
    assert (dead.gradient == 0).all() and linear.clipped(dead.corners, np.array([1.0, 0]), 0).size
    around = 1e-3 * np.array([[1, 0], [-1, 0], [0, 1], [0, -1]])
    assert patterns(module, around) == [dead.pattern] * 4
    assert any(patterns(linear.network(True), around)[0])

"""The worlds of two features: what is drawn, where the grid lies, and what the best classifier can do."""

import pytest
import torch

from xaibench.datasets.planes import RingOfGaussians, Xor

WORLDS = [Xor, RingOfGaussians]


@pytest.mark.parametrize("world", WORLDS)
def test_points_are_gaussians_around_their_centres(world):
    data = world("train")
    drawn = data.points.view(-1, len(data.centres), 2)
    torch.testing.assert_close(drawn.mean(0), data.centres, rtol=0, atol=5 * data.sigma / len(drawn) ** 0.5)
    torch.testing.assert_close(drawn.std(0), torch.full_like(data.centres, data.sigma), rtol=0.06, atol=0)
    labels = torch.tensor([data[index].label for index in range(len(data))]).view(drawn.shape[:2])
    assert labels[0].tolist() == list(data.labels) and (labels == labels[0]).all()
    assert data[7].image.shape == (1, 1, 2) and data[7].image.flatten().equal(data.points[7])
    assert not any(world(split).points[0].equal(data.points[0]) for split in ("test", "validation"))
    assert world("train", generator_seed=1).fingerprint != data.fingerprint


def test_the_grid_runs_along_x1_row_by_row_and_knows_the_nearest_centre():
    grid = Xor("grid:3")
    assert grid.points.tolist() == [[x1, x2] for x2 in (0, 0.5, 1) for x1 in (0, 0.5, 1)]
    assert [grid[index].label for index in (0, 2, 6, 8)] == [0, 1, 1, 0]
    ring = RingOfGaussians("grid:41")
    assert (ring.points.amin(), ring.points.amax()) == (-4, 4)
    for index in range(0, len(ring), 97):
        distances = (ring.centres - ring.points[index]).norm(dim=1)
        assert distances[ring[index].label] == distances.min()


def test_the_truth_of_xor_is_what_the_thesis_says_case_by_case():
    points = torch.tensor([[0.0, 0.0], [0.0, 0.5], [0.5, 0.5], [0.1, 0.7]])
    truth = Xor("grid").importance(points)
    assert truth[:3].tolist() == [[1, 1], [0, 1], [0, 0]]  # equal and maximal; x1 is idle; unsolvable
    distance = (points - 0.5).abs()
    torch.testing.assert_close(truth[:, 0] - truth[:, 1], 2 * (distance[:, 1] - distance[:, 0]))


@pytest.mark.parametrize("world, accuracy", [(Xor, 0.9877), (RingOfGaussians, 0.9813)])
def test_no_classifier_beats_the_bayes_accuracy(world, accuracy):
    data = world("test")
    assert data.bayes_accuracy() == pytest.approx(accuracy, abs=5e-5)
    # The share of the plane's mass that the nearest centre answers correctly, summed over a fine grid.
    axis = torch.linspace(data.domain[0] - 1, data.domain[1] + 1, 1201, dtype=torch.float64)
    plane = torch.cartesian_prod(axis, axis)
    squared = torch.stack([((plane - centre) ** 2).sum(1) for centre in data.centres.double()], 1)
    right = torch.tensor(data.labels)[squared.argmin(1)][:, None] == torch.tensor(data.labels)
    mass = torch.exp(-0.5 * squared / data.sigma**2) * (axis[1] - axis[0]) ** 2 / (2 * torch.pi * data.sigma**2)
    assert data.bayes_accuracy() == pytest.approx(float((mass * right).sum()) / len(data.labels), abs=2e-4)

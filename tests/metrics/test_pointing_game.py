import math

import pytest
import torch

from xaibench.metrics.ground_truth.pointing_game import PointingGame


def brute_force(attribution, mask, tolerance):
    """The share of tied maxima within `tolerance` of the mask, by looking at every pixel."""
    height, width = attribution.shape
    pixels = [(row, column) for row in range(height) for column in range(width)]
    best = max(float(attribution[pixel]) for pixel in pixels)
    maxima = [pixel for pixel in pixels if float(attribution[pixel]) == best]
    inside = [pixel for pixel in pixels if mask[pixel]]
    hits = [any(math.dist(point, pixel) <= tolerance for pixel in inside) for point in maxima]
    return sum(hits) / len(hits)


@pytest.mark.parametrize("tolerance", [0.0, 1.0, 1.5, 2.9])
def test_equals_brute_force(linear, batch_for, scored, tolerance):
    classifier = linear((1, 7, 9))
    batch = batch_for(classifier, 60, masks=torch.rand(60, 7, 9) < 0.05)
    maps = torch.randn(60, 7, 9)
    hits = scored(PointingGame(tolerance), classifier, batch, maps)["hit"]
    for attribution, mask, hit in zip(maps, batch.masks, hits):
        if mask.any():
            assert hit.item() == brute_force(attribution, mask, tolerance)
        else:
            assert math.isnan(hit)
    assert 0 < hits.nanmean() < 1


def test_ties_are_drawn_uniformly(linear, batch_for, scored):
    classifier = linear((1, 4, 4))
    attribution = torch.zeros(4, 4)
    attribution[0, :3] = attribution[2, 1:3] = 1.0
    mask = torch.zeros(4, 4, dtype=torch.bool)
    mask[0, :2] = True
    batch = batch_for(classifier, 2000, masks=mask.expand(2000, -1, -1))
    share = brute_force(attribution, mask, 0)
    hits = scored(PointingGame(), classifier, batch, attribution.expand(2000, -1, -1))["hit"]
    assert share == 0.4
    assert abs(hits.mean().item() - share) < 4 * math.sqrt(share * (1 - share) / 2000)


def test_the_mask_itself_always_hits_and_its_inverse_never(linear, batch_for, scored):
    classifier = linear((1, 8, 8))
    batch = batch_for(classifier, 20, masks=torch.rand(20, 8, 8) < 0.3)
    inside, outside = batch.masks.float(), (~batch.masks).float()
    assert scored(PointingGame(), classifier, batch, inside)["hit"].eq(1).all()
    assert scored(PointingGame(), classifier, batch, outside)["hit"].eq(0).all()


def test_the_tolerance_of_the_literature(linear, batch_for, scored):
    """Of 1600 pixels those hit that are at most 15 from the object's only one; TorchRay leaves out the 12 at 15."""
    classifier = linear((1, 40, 40))
    masks = torch.zeros(1600, 40, 40, dtype=torch.bool)
    masks[:, 20, 20] = True
    points = torch.eye(1600).view(1600, 40, 40)
    hits = scored(PointingGame(15), classifier, batch_for(classifier, 1600, masks=masks), points)["hit"].view(40, 40)
    squared = (torch.arange(40).view(-1, 1) - 20) ** 2 + (torch.arange(40) - 20) ** 2
    assert hits.bool().equal(squared <= 225) and hits[squared < 225].sum() == hits.sum() - 12
    assert hits.sum() == 709  # points of the integer lattice in a circle of radius 15 (OEIS A000328)


def test_a_sample_is_scored_without_its_neighbours(linear, batch_for, scored, take):
    classifier = linear((1, 4, 4))
    batch = batch_for(classifier, 50, masks=torch.rand(50, 4, 4) < 0.5)
    maps = torch.zeros(50, 4, 4)
    together = scored(PointingGame(), classifier, batch, maps)["hit"]
    alone = [scored(PointingGame(), classifier, take(batch, [i]), maps[[i]])["hit"].item() for i in range(50)]
    assert together.tolist() == pytest.approx(alone, nan_ok=True)


def test_a_negative_tolerance_is_named():
    with pytest.raises(ValueError, match="tolerance"):
        PointingGame(tolerance=-1.0)

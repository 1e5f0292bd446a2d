import math

import pytest
import torch

from xaibench.metrics.ground_truth.bbox import BBox, bounding_boxes
from xaibench.metrics.ground_truth.rank_accuracy import RankAccuracy


def brute_force(attribution, region):
    """Sort all pixels, take as many as the region has, count those inside. Without ties."""
    size = int(region.sum())
    pixels = sorted(((float(value), bool(inside)) for value, inside in zip(attribution.flatten(), region.flatten())))
    return sum(inside for _, inside in pixels[::-1][:size]) / size


def box_of(mask):
    """From the first to the last row and column that the mask touches."""
    box = torch.zeros_like(mask)
    if mask.any():
        rows, columns = mask.nonzero().T.tolist()
        box[min(rows) : max(rows) + 1, min(columns) : max(columns) + 1] = True
    return box


def test_bounding_boxes():
    masks = torch.rand(200, 7, 9) < 0.03
    assert (~masks.any(2).any(1)).any()  # empty ones among them
    assert bounding_boxes(masks).equal(torch.stack([box_of(mask) for mask in masks]))


@pytest.mark.parametrize("region", ["box", "mask"])
def test_equals_brute_force(linear, batch_for, scored, region):
    classifier = linear((1, 8, 9))
    masks = torch.zeros(40, 8, 9, dtype=torch.bool)
    masks[:, 2:6, 1:7] = torch.rand(40, 4, 6) < 0.4
    batch = batch_for(classifier, 40, masks=masks)
    maps = torch.randn(40, 8, 9)
    ours = scored(BBox(region), classifier, batch, maps)["bbox"]
    regions = masks if region == "mask" else [box_of(mask) for mask in masks]
    assert ours.tolist() == pytest.approx([brute_force(m, r) for m, r in zip(maps, regions)], abs=1e-12)
    assert len(set(ours.tolist())) > 10


def test_figure_11_does_not_tell_its_three_maps_apart(linear, batch_for, scored, figure_11):
    """Which is why the thesis proposes the effective heat ratio (see test_ehr)."""
    maps, mask = figure_11
    classifier = linear((1, 16, 16))
    batch = batch_for(classifier, 3, masks=mask.expand(3, -1, -1))
    assert scored(BBox(), classifier, batch, maps)["bbox"].tolist() == [1, 1, 1]


def test_two_objects_share_one_box_but_not_one_mask(linear, batch_for, scored):
    classifier = linear((1, 4, 6))
    mask = torch.zeros(1, 4, 6, dtype=torch.bool)
    mask[0, 1, 0] = mask[0, 2, 3] = True
    between = torch.zeros(1, 4, 6)
    between[0, 1:3, 1:4] = torch.arange(6).view(2, 3) + 1
    batch = batch_for(classifier, 1, masks=mask)
    # The box has 8 pixels: the 6 of the map and 2 of the 18 zeros, none of which may lie in the other 2 of the box.
    assert scored(BBox("box"), classifier, batch, between)["bbox"].item() in (6 / 8, 7 / 8, 1)
    assert scored(BBox("mask"), classifier, batch, between)["bbox"].item() == 0.5


def test_a_constant_map_scores_the_share_of_the_image_that_the_box_covers(linear, batch_for, scored):
    classifier = linear((1, 10, 10))
    mask = torch.zeros(10, 10, dtype=torch.bool)
    mask[2:7, 3:7] = True
    batch = batch_for(classifier, 1000, masks=mask.expand(1000, -1, -1))
    scores = scored(BBox(), classifier, batch, torch.ones(1000, 10, 10))["bbox"]
    # Hypergeometric: 20 draws of 100 pixels, 20 of them inside.
    deviation = math.sqrt(20 * 0.2 * 0.8 * 80 / 99) / 20 / math.sqrt(1000)
    assert abs(scores.mean().item() - 0.2) < 4 * deviation


def test_a_box_around_everything_is_undefined_though_its_mask_is_not(linear, batch_for, scored):
    classifier = linear((1, 4, 4))
    mask = torch.eye(4, dtype=torch.bool)[None]
    batch = batch_for(classifier, 1, masks=mask)
    maps = mask.double()
    assert math.isnan(scored(BBox("box"), classifier, batch, maps)["bbox"])
    assert scored(BBox("mask"), classifier, batch, maps)["bbox"].item() == 1


def test_rank_accuracy_is_bbox_of_the_mask(linear, batch_for, scored):
    classifier = linear((1, 6, 6))
    batch = batch_for(classifier, 20, masks=torch.rand(20, 6, 6) < 0.3)
    maps = torch.randint(0, 4, (20, 6, 6)).float()
    rank = scored(RankAccuracy(), classifier, batch, maps)["rank_accuracy"]
    assert rank.equal(scored(BBox("mask"), classifier, batch, maps)["bbox"])
    assert RankAccuracy.statistics[0].name == "rank_accuracy"

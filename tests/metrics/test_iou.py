import math

import pytest
import torch

from xaibench.metrics.ground_truth.iou import IoU
from xaibench.metrics.ground_truth.rank_accuracy import RankAccuracy


@pytest.fixture
def iou(linear, batch_for, scored):
    def score(threshold, maps, masks):
        classifier = linear((1, *maps.shape[1:]))
        return scored(IoU(threshold), classifier, batch_for(classifier, len(maps), masks=masks), maps)["iou"]

    return score


def by_sets(attribution, mask, threshold):
    """The definition on sets of pixel positions. Without ties."""
    values = dict(enumerate(attribution.flatten().double().tolist()))
    truth = set(mask.flatten().nonzero().flatten().tolist())
    descending = sorted(values, key=values.get, reverse=True)
    positive = {pixel: value for pixel, value in values.items() if value > 0}
    rule, _, number = threshold.partition(":")
    if rule == "area":
        chosen = set(descending[: len(truth)])
    elif rule == "percentile":
        chosen = set(descending[: round(len(values) * (100 - float(number)) / 100)])
    else:
        level = max(values.values()) if rule == "max" else sum(positive.values()) / len(values)
        chosen = {pixel for pixel, value in positive.items() if value >= float(number) * level}
    return len(chosen & truth) / len(chosen | truth)


@pytest.mark.parametrize("threshold", ["area", "max:0.2", "max:0.75", "mean:1", "mean:2.5", "percentile:80"])
def test_equals_sets(iou, threshold):
    maps, masks = torch.randn(30, 7, 10), torch.rand(30, 7, 10) < 0.25
    ours = iou(threshold, maps, masks).tolist()
    assert ours == pytest.approx([by_sets(m, mask, threshold) for m, mask in zip(maps, masks)], abs=1e-9)
    assert len(set(ours)) > 10


def test_area_is_rank_accuracy_on_another_scale(linear, batch_for, scored):
    classifier = linear((1, 8, 8))
    batch = batch_for(classifier, 20, masks=torch.rand(20, 8, 8) < 0.3)
    maps = torch.randint(0, 5, (20, 8, 8)).float()  # with ties
    h = scored(RankAccuracy(), classifier, batch, maps)["rank_accuracy"]
    torch.testing.assert_close(scored(IoU(), classifier, batch, maps)["iou"], h / (2 - h))


def test_the_least_that_a_percentile_selects_is_one_pixel(iou):
    maps, mask = torch.rand(1, 4, 4), torch.zeros(1, 4, 4, dtype=torch.bool)
    mask.view(-1)[maps.argmax()] = True
    assert iou("percentile:99", maps, mask).item() == 1


def test_constant_and_empty_maps(iou):
    mask = torch.zeros(1, 4, 5, dtype=torch.bool)
    mask[0, 0, :3] = True
    ones = torch.ones(1, 4, 5)
    for threshold in ("max:0.5", "mean:1"):
        assert iou(threshold, ones, mask).item() == 3 / 20  # everything is selected
        assert iou(threshold, 0 * ones, mask).item() == 0  # nothing is
        assert iou(threshold, -ones, mask).item() == 0
    drawn = iou("area", ones.expand(1000, -1, -1), mask.expand(1000, -1, -1))
    # Three of twenty pixels at random: h hits give h / (6 - h), with hypergeometric weights.
    expected = sum(math.comb(3, h) * math.comb(17, 3 - h) / math.comb(20, 3) * h / (6 - h) for h in range(4))
    assert drawn.mean().item() == pytest.approx(expected, abs=4 * drawn.std().item() / math.sqrt(1000))


@pytest.mark.parametrize("threshold", ["otsu", "max", "max:", "max:a", "area:1", "max:0", "percentile:100", "mean:nan"])
def test_mistakes_are_named(threshold):
    with pytest.raises(ValueError, match=f"threshold={threshold}: expected"):
        IoU(threshold)

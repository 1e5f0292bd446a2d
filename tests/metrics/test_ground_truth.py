"""What holds for every metric that compares a map with the mask: controls, undefined images, neighbours, units."""

import pytest
import torch

from xaibench.datasets.base import Samples
from xaibench.datasets.shapes import Shapes
from xaibench.methods.context import Context
from xaibench.methods.controls.controls import Oracle
from xaibench.metrics.ground_truth.bbox import BBox
from xaibench.metrics.ground_truth.ehr import EHR
from xaibench.metrics.ground_truth.iou import IoU
from xaibench.metrics.ground_truth.mask_correlation import MaskCorrelation
from xaibench.metrics.ground_truth.mass_accuracy import MassAccuracy
from xaibench.metrics.ground_truth.rank_accuracy import RankAccuracy
from xaibench.metrics.ground_truth.roc_auc import RocAuc
from xaibench.metrics.ranking import collapse
from xaibench.models.preprocessing import Preprocessing

METRICS = {
    "bbox": BBox(),
    "bbox of the mask": BBox(region="mask"),
    "ehr": EHR(),
    "ehr unscaled": EHR(scale="none", weight_by_heat=False),
    "iou area": IoU(),
    "iou max": IoU("max:0.3"),
    "iou mean": IoU("mean:1.5"),
    "iou percentile": IoU("percentile:90"),
    "mask_correlation": MaskCorrelation(),
    "mass_accuracy": MassAccuracy(),
    "rank_accuracy": RankAccuracy(),
    "roc_auc": RocAuc(),
}


@pytest.fixture(params=METRICS)
def metric(request):
    return METRICS[request.param]


@pytest.fixture
def column(linear, batch_for, scored):
    """The scores of maps against masks, both [B,H,W], as a list."""

    def scores(metric, maps, masks):
        classifier = linear((1, *maps.shape[1:]))
        (values,) = scored(metric, classifier, batch_for(classifier, len(maps), masks=masks), maps).values()
        assert values.shape == (len(maps),)
        return values

    return scores


def test_the_column_is_the_headline(metric, linear, batch_for, scored):
    classifier = linear((1, 4, 4))
    batch = batch_for(classifier, 2, masks=torch.rand(2, 4, 4) < 0.5)
    assert list(scored(metric, classifier, batch, torch.rand(2, 4, 4))) == [metric.statistics[0].column]
    assert metric.needs_mask and metric.cost(classifier) == (0, 0)


def test_a_mask_of_nothing_or_of_everything_is_undefined(metric, column):
    masks = torch.zeros(3, 6, 7, dtype=torch.bool)
    masks[1], masks[2, 1:4, 2:5] = True, True
    assert column(metric, torch.rand(3, 6, 7), masks).isnan().tolist() == [True, True, False]


def test_a_sample_is_scored_without_its_neighbours(metric, linear, batch_for, scored, take):
    classifier = linear((1, 6, 7))
    batch = batch_for(classifier, 30, masks=torch.rand(30, 6, 7) < 0.3)
    maps = torch.randint(-3, 8, (30, 6, 7)) / 7  # ties, negative values and many sizes of what survives
    (together,) = scored(metric, classifier, batch, maps).values()
    before = maps.clone()
    order = torch.randperm(30).tolist()
    for rows in ([i] for i in order), (order[i : i + 7] for i in range(0, 30, 7)):
        for chosen in rows:
            (some,) = scored(metric, classifier, take(batch, chosen), maps[chosen]).values()
            torch.testing.assert_close(some, together[chosen], rtol=0, atol=1e-9, equal_nan=True)
    assert maps.equal(before)  # nobody writes into the cached maps


@pytest.mark.parametrize("name", sorted(METRICS.keys() - {"ehr unscaled"}))
def test_the_unit_of_a_map_does_not_matter(name, column):
    maps, masks, metric = torch.rand(9, 5, 6), torch.rand(9, 5, 6) < 0.4, METRICS[name]
    torch.testing.assert_close(column(metric, maps * 2**-20, masks), column(metric, maps, masks), equal_nan=True)


def test_the_oracle_is_perfect_on_shapes(metric, linear, scored):
    """1 to the last digit, except in `bbox`: there the pixels of the box around the object are ties."""
    samples = Samples(Shapes(), Preprocessing(), range(12))
    batch = samples.load(samples.ids)
    classifier = linear((3, 64, 64))
    maps = Oracle().attribute(classifier, batch.inputs, batch.targets, Context(masks=batch.masks))
    (scores,) = scored(metric, classifier, batch, collapse(maps, "sum")).values()
    if metric is METRICS["bbox"]:
        assert (scores < 1).any() and (scores > 0.3).all()
    elif metric is METRICS["iou percentile"]:  # always a tenth of the image, whatever the object's size
        share = batch.masks.float().mean((1, 2)).double()
        best = torch.minimum(share, torch.tensor(410 / 4096)) / torch.maximum(share, torch.tensor(410 / 4096))
        torch.testing.assert_close(scores, best.double())
    else:
        torch.testing.assert_close(scores, torch.ones(12, dtype=torch.float64), rtol=0, atol=1e-12)

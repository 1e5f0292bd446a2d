import pytest
import torch

from xaibench.metrics.ground_truth.roc_auc import RocAuc
from xaibench.metrics.ranking import mid_ranks


def pairs(attribution, mask):
    """The share of pairs of a pixel inside and one outside in which the one inside is larger; ties count half."""
    inside, outside = attribution[mask].tolist(), attribution[~mask].tolist()
    return sum((a > b) + (a == b) / 2 for a in inside for b in outside) / (len(inside) * len(outside))


@pytest.mark.parametrize("levels", [2, 5, None])
def test_equals_all_pairs(linear, batch_for, scored, levels):
    classifier = linear((1, 7, 8))
    batch = batch_for(classifier, 20, masks=torch.rand(20, 7, 8) < 0.3)
    maps = torch.randn(20, 7, 8) if levels is None else torch.randint(-1, levels, (20, 7, 8)).float()
    ours = scored(RocAuc(), classifier, batch, maps)["roc_auc"].tolist()
    assert ours == pytest.approx([pairs(m, mask) for m, mask in zip(maps, batch.masks)], abs=1e-12)


def test_mid_ranks():
    assert mid_ranks(torch.tensor([[3.0, -1.0, 3.0, 0.0, -0.0, 3.0]])).tolist() == [[5, 1, 5, 2.5, 2.5, 5]]


def test_chance_is_a_half_exactly_for_a_constant_map(linear, batch_for, scored):
    classifier = linear((1, 5, 5))
    batch = batch_for(classifier, 10, masks=torch.rand(10, 5, 5) < 0.2)
    assert scored(RocAuc(), classifier, batch, torch.full((10, 5, 5), 0.3))["roc_auc"].eq(0.5).all()

import math

import pytest
import torch

from xaibench.metrics.ground_truth.mass_accuracy import MassAccuracy
from xaibench.metrics.ranking import collapse


@pytest.fixture
def mass(linear, batch_for, scored):
    """Scores of maps that are read as the metric's sign says, as the runner does it."""

    def score(metric, maps, masks):
        classifier = linear((1, *maps.shape[1:]))
        read = collapse(maps[:, None], "sum", metric.sign)
        return scored(metric, classifier, batch_for(classifier, len(maps), masks=masks), read)["mass_accuracy"]

    return score


def test_by_hand(mass):
    maps = torch.tensor([[[3.0, 1.0, -2.0], [0.0, 4.0, -1.0]]])
    mask = torch.tensor([[[True, False, True], [False, False, True]]])
    assert mass(MassAccuracy(), maps, mask).item() == 3 / 8
    assert mass(MassAccuracy(sign="signed"), maps, mask).item() == 0 / 5
    assert mass(MassAccuracy(sign="absolute"), maps, mask).item() == pytest.approx(6 / 11)


def test_equals_a_loop(mass):
    maps, masks = torch.randn(30, 5, 6), torch.rand(30, 5, 6) < 0.4
    for attribution, mask, score in zip(maps, masks, mass(MassAccuracy(), maps, masks)):
        pairs = [(float(value), bool(inside)) for value, inside in zip(attribution.flatten(), mask.flatten())]
        total = sum(value for value, _ in pairs if value > 0)
        assert score.item() == pytest.approx(sum(v for v, inside in pairs if inside and v > 0) / total, abs=1e-9)


def test_a_map_without_mass_is_undefined(mass):
    mask = torch.eye(4, dtype=torch.bool)[None]
    assert math.isnan(mass(MassAccuracy(), torch.full((1, 4, 4), -1.0), mask))
    assert math.isnan(mass(MassAccuracy(), torch.zeros(1, 4, 4), mask))
    assert math.isnan(
        mass(MassAccuracy("sum", "signed"), torch.tensor([[[1.0, -1.0]]]), torch.tensor([[[True, False]]]))
    )


def test_a_signed_ratio_has_no_range():
    assert (MassAccuracy().statistics[0].low, MassAccuracy().statistics[0].high) == (0, 1)
    assert MassAccuracy(sign="signed").statistics[0].low is None

import math

import pytest
import torch

from xaibench.metrics.properties.sparseness import Sparseness
from xaibench.metrics.ranking import collapse


def gini(values):
    """Half the mean absolute difference over all pairs, divided by the mean."""
    pairs = [abs(a - b) for a in values for b in values]
    return sum(pairs) / len(pairs) / 2 / (sum(values) / len(values))


@pytest.fixture
def score(linear, batch_for, scored):
    """The columns of maps as the runner hands them over: with the metric's sign."""

    def of(maps, metric=None):
        metric = metric or Sparseness()
        classifier = linear((1, *maps.shape[1:]))
        return scored(metric, classifier, batch_for(classifier, len(maps)), collapse(maps[:, None], "sum", metric.sign))

    return lambda maps, metric=None: of(maps, metric)["sparseness"]


def test_equals_the_mean_difference_of_all_pairs(score):
    maps = torch.randn(3, 5, 7)
    maps[1] = maps[1].round()  # ties
    expected = [gini([abs(value) for value in attribution.flatten().tolist()]) for attribution in maps]
    assert score(maps).tolist() == pytest.approx(expected, abs=1e-9)


def test_closed_forms(score):
    n, k = 100, 13
    first = (torch.arange(n) < k).float()
    maps = torch.stack([torch.ones(n), torch.eye(n)[4], first, torch.arange(n) + 1.0]).view(4, 10, 10)
    # A constant; one pixel; k equal pixels; the numbers 1 to n.
    expected = [0, 1 - 1 / n, 1 - k / n, (n - 1) / (3 * n)]
    assert score(maps).tolist() == pytest.approx(expected, abs=1e-12)


def test_normal_and_exponential_noise(score):
    """The Gini indices of a half-normal and of an exponential variable are sqrt(2) - 1 and 1/2."""
    noise = torch.stack([torch.randn(400, 400), torch.empty(400, 400).exponential_()])
    assert score(noise).tolist() == pytest.approx([math.sqrt(2) - 1, 0.5], abs=0.005)


def test_neither_sign_nor_scale_nor_place_counts(score):
    maps = torch.randn(2, 8, 8)
    expected = score(maps)
    torch.testing.assert_close(score(-maps), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(score(1e-12 * maps), expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(score(maps.flatten(1)[:, torch.randperm(64)].view(2, 8, 8)), expected, rtol=0, atol=1e-9)
    positive = Sparseness(sign="positive")
    torch.testing.assert_close(score(maps, positive), score(maps.clamp(min=0)), rtol=0, atol=1e-12)


def test_a_map_of_zeros_is_undefined_and_leaves_the_others_alone(score):
    maps = torch.randn(3, 4, 4)
    expected = score(maps)
    maps[1] = 0
    got = score(maps)
    assert math.isnan(got[1]) and torch.equal(got[[0, 2]], expected[[0, 2]])

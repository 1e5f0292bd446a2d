import math

import pytest
import torch
from scipy.stats import entropy

from xaibench.metrics.properties.complexity import Complexity
from xaibench.metrics.ranking import collapse


@pytest.fixture
def score(linear, batch_for, scored):
    """The columns of maps as the runner hands them over: with the metric's sign."""

    def of(maps, metric=None):
        metric = metric or Complexity()
        classifier = linear((1, *maps.shape[1:]))
        return scored(metric, classifier, batch_for(classifier, len(maps)), collapse(maps[:, None], "sum", metric.sign))

    return lambda maps, metric=None: of(maps, metric)["complexity"]


def test_equals_scipy(score):
    maps = torch.randn(3, 5, 7)
    maps[2, :3] = 0
    expected = [entropy(attribution.abs().double().flatten().numpy()) for attribution in maps]
    assert score(maps).tolist() == pytest.approx(expected, abs=1e-9)


def test_closed_forms(score):
    n, k = 64, 13
    first = (torch.arange(n) < k).float()
    halves = 0.5 ** torch.arange(1, n + 1)
    maps = torch.stack([torch.ones(n), torch.eye(n)[4], first, halves]).view(4, 8, 8)
    # A constant; one pixel; k equal pixels; shares 1/2, 1/4, 1/8, ...: two bits.
    expected = [math.log(n), 0, math.log(k), 2 * math.log(2)]
    assert score(maps).tolist() == pytest.approx(expected, abs=1e-12)


def test_neither_sign_nor_scale_counts(score):
    maps = torch.randn(2, 8, 8)
    expected = score(maps)
    torch.testing.assert_close(score(-maps), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(score(1e-12 * maps), expected, rtol=0, atol=1e-6)
    positive = Complexity(sign="positive")
    torch.testing.assert_close(score(maps, positive), score(maps.clamp(min=0)), rtol=0, atol=1e-12)


def test_a_map_of_zeros_is_undefined_and_leaves_the_others_alone(score):
    maps = torch.randn(3, 4, 4)
    expected = score(maps)
    maps[1] = 0
    got = score(maps)
    assert math.isnan(got[1]) and torch.equal(got[[0, 2]], expected[[0, 2]])

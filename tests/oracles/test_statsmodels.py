"""Corrections and intervals beside statsmodels'."""

import numpy as np
import pytest

from xaibench.scores import paired, statistics

multitest = pytest.importorskip("statsmodels.stats.multitest")
proportion = pytest.importorskip("statsmodels.stats.proportion")


@pytest.mark.parametrize("k", [1, 2, 15, 105])
def test_holm(k):
    p = np.random.default_rng(k).beta(0.3, 1, size=k)
    p[: k // 3] = p[0]  # ties
    np.testing.assert_allclose(paired.holm(p), multitest.multipletests(p, method="holm")[1])


@pytest.mark.parametrize(("hits", "n"), [(0, 5), (7, 10), (48, 48), (31, 300)])
def test_wilson(hits, n):
    found = statistics.estimate(np.array([1.0] * hits + [0.0] * (n - hits)), None, "proportion")
    theirs = proportion.proportion_confint(hits, n, method="wilson")
    assert (found.low, found.high) == pytest.approx(theirs, abs=1e-12)

"""scripts/gradient_scatter.py draws the pairs whose correlations the metric reports."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from xaibench.datasets.shapes import Shapes


def test_the_points_have_the_correlations_of_the_rows(xaibench, here, script):
    assert xaibench("run", "metric=gradient_independence", "dataset.limit=2")[0] == 0
    (path,) = Path("results/scores").rglob("gradient_independence/*.csv")
    rows = pd.read_csv(path).pivot(index="sample", columns="statistic", values="value")
    scatter = script("gradient_scatter")
    found = scatter.pairs([], 2)
    figure = scatter.draw(found)
    assert sorted(pair.sample for pair in found) == sorted(rows.index)
    for (whole, few), pair in zip(zip(figure.axes[::2], figure.axes[1::2]), found):
        values, gradients = whole.lines[0].get_data()
        pixels = Shapes()[pair.sample].image.flatten().numpy()
        np.testing.assert_allclose(values, (pixels - 0.5) / 0.25, atol=0.03)
        assert stats.pearsonr(values, gradients)[0] == pytest.approx(rows.loc[pair.sample, "pearson"], abs=1e-6)
        assert stats.spearmanr(values, gradients)[0] == pytest.approx(rows.loc[pair.sample, "spearman"], abs=1e-6)
        assert f"{rows.loc[pair.sample, 'pearson']:.3f}" in whole.get_title("left")
        drawn = set(zip(*map(np.ndarray.tolist, few.lines[0].get_data())))
        assert len(drawn) == scatter.FEW and drawn <= set(zip(values.tolist(), gradients.tolist()))

"""scripts/figures.py draws the numbers of the leaderboard."""

from pathlib import Path

import pandas as pd
import pytest
from matplotlib.figure import Figure


@pytest.fixture
def figures(script):
    return script("figures")


def test_a_sweep_is_drawn_with_the_leaderboards_values(xaibench, here, figures):
    few = ("method=iba", "dataset.limit=3", "fit.limit=8", "metric.steps=2")
    assert xaibench("run", "-m", "method.layer=bottleneck,bottleneck_late", *few)[0] == 0
    # Not of the sweep: another parameter differs too.
    assert xaibench("run", "method.steps=1", *few)[0] == 0
    cells = figures.runs(Path("results"), "degradation", "layer")
    assert {cell.card["config"]["method"]["layer"] for cell in cells} == {"bottleneck", "bottleneck_late"}
    axes = Figure().add_subplot()
    figures.bars(axes, range(2), [figures.headline(cell) for cell in cells], "k", "degradation")
    frame = pd.read_csv("results/leaderboard.csv", keep_default_na=False).set_index(["method_key", "statistic"])
    line, _, (bars,) = axes.containers[0]
    for cell, value, (low, high) in zip(cells, line.get_ydata(), bars.get_segments()):
        row = frame.loc[cell.card["keys"]["map_key"], "degradation"]
        expected = [float(row[name]) for name in ("value", "ci_low", "ci_high")]
        assert [value, low[1], high[1]] == pytest.approx(expected, rel=1e-5)

"""scripts/figures.py draws the numbers of the leaderboard, scripts/gallery.py the maps of the cache."""

from pathlib import Path

import h5py
import numpy as np
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


def test_the_gallery_shows_the_maps_of_the_cache(xaibench, here, script):
    gallery = script("gallery")
    assert xaibench("run", "-m", "method=gradient,gradcam", "dataset.limit=2", "metric=lerf")[0] == 0
    shown = gallery.read(Path("results"), Path("cache"))
    assert [(one.title, one.signed) for one in shown] == [("gradcam", False), ("gradient", True)]
    figure = gallery.gallery(shown, Path("cache"), images=2, columns=2, side=64)
    panels = [axes.images[0] for axes in figure.axes]
    for column, method in enumerate(("gradcam", "gradient"), start=1):
        (path,) = Path("cache").glob(f"maps/*/*/{method}/*/shard-*.h5")
        with h5py.File(path) as file:
            order = np.argsort(file["sample"])
            maps = file["maps"][()].sum(1)[order]
            # Of the class explained, which is the one predicted here.
            probability = file["probability"][()][order]
        for row in range(2):
            panel = panels[3 * row + column]
            assert np.allclose(panel.get_array(), maps[row], rtol=1e-6, atol=1e-9)
            assert panel.get_clim()[0] == (-panel.get_clim()[1] if method == "gradient" else 0)
    words = [figure.axes[3 * row].texts[0].get_text() for row in range(2)]
    assert [word.split()[-1] for word in words] == [f"{p:.2f}" for p in probability]

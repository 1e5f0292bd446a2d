"""Strips of maps by random networks: what is drawn is what the cache holds, whatever the page is made of."""

import json
import re
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest

from xaibench.report import strips
from xaibench.report.colours import painted
from xaibench.report.figures import curves
from xaibench.report.tables import boards
from xaibench.scores import leaderboard, rank

from .conftest import run_in

BLOCKS = ["classifier.3", "features.0 to classifier.1"]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """Results and cache of two methods by two random networks of either seed, on two images."""
    folder = tmp_path_factory.mktemp("strips")
    few = ("dataset.limit=2", "metric.blocks=2", "metric.seeds=2")
    run_in(folder, "method=gradient,gradcam", "metric=parameter_randomization", *few)
    return folder


def board_of(folder: Path):
    cells = leaderboard.read_cells(folder / "results")
    compared = rank.comparisons(cells)
    (board,) = boards(cells, compared, rank.overall(compared))
    return board


def kept(folder: Path, method: str, key: str) -> dict[int, np.ndarray]:
    """The maps [C,H,W] of a key by sample, read without the package."""
    (path,) = (folder / "cache" / "maps").glob(f"*/*/{method}/{key}/shard-*.h5")
    with h5py.File(path) as file:
        return dict(zip(file["sample"][()].tolist(), file["maps"][()]))


def test_panels_are_the_cached_maps_of_every_method_and_step(run, monkeypatch):
    drawn = []
    monkeypatch.setattr(strips, "draw", lambda grid: drawn.append(grid))
    signed, positive = strips.drawings(board_of(run), run / "cache")
    assert positive.name == f"{signed.name}-positive"
    sample = int(re.search(r"image (\d+)", signed.caption)[1])
    both, alone = drawn
    assert both.tiles.shape[:2] == (2, 2 + len(BLOCKS)) and alone.tiles.shape[:2] == (1, 2 + len(BLOCKS))
    assert [" ".join(words.split()) for words in both.columns] == ["image", "trained", *BLOCKS]
    assert sorted(both.rows) == ["gradcam", "gradient"] and alone.rows == ("gradient",)
    for path in (run / "results").rglob("parameter_randomization/*.json"):
        card = json.loads(path.read_text())
        keys = [card["keys"]["map_key"], *[key for state, key in card["others"] if state.split(":")[2] == "0"]]
        assert len(keys) == 1 + len(BLOCKS)
        row = both.tiles[both.rows.index(card["method"])]
        for tile, key in zip(row[1:], keys):
            one = kept(run, card["method"], key)[sample].sum(0)
            np.testing.assert_array_equal(tile, painted(one, signed=card["method"] == "gradient"))
            if card["method"] == "gradient":
                at = 1 + keys.index(key)
                np.testing.assert_array_equal(alone.tiles[0, at], painted(one.clip(0), signed=False))


def test_the_page_shows_them_and_without_the_maps_nothing(run, xaibench, here):
    for name in ("results", "cache"):
        shutil.copytree(run / name, here / name)
    assert xaibench("report")[0] == 0
    text = (here / "results" / "report" / "index.html").read_text()
    assert "Maps of random networks" in text and "every layer from the top down" in text
    shutil.rmtree(here / "cache" / "maps")
    assert xaibench("report", "--out", "again")[0] == 0
    assert "Maps of random networks" not in (here / "again" / "index.html").read_text()


def test_the_deviation_over_seeds_stands_upright_on_the_curve(run):
    cells = [cell for cell in leaderboard.read_cells(run / "results") if cell.card["method"] == "gradient"]
    (axes,) = curves(cells).axes
    mean, spread = (cells[0].curves[f"{name}_curve"] for name in ("ssim", "ssim_seed_std"))
    (bars,) = [found for found in axes.collections if hasattr(found, "get_segments")]
    for (below, above), x, value, deviation in zip(bars.get_segments(), mean.x, mean.mean, spread.mean):
        np.testing.assert_allclose([*below, *above], [x, value - deviation, x, value + deviation])
    assert axes.get_legend_handles_labels()[1] == ["hog", "spearman abs", "spearman", "ssim"]

"""scripts/draw_scenes.py draws the maps that the metric scores, beside the scenes of the cache."""

from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest

from xaibench.report.colours import painted
from xaibench.report.study import REGION

EASY = ("metric.steps=15", "metric.least=2", "metric.warm_up=1", "metric.probability=0.01", "metric.change=0.999",
        "metric.learning_rate=0.05")  # fmt: skip


def test_the_maps_give_the_score_and_rows_are_scenes_and_classes(xaibench, here, script):
    drawing = script("draw_scenes")
    assert xaibench("run", "method=gradient", "metric=feature_switch", "dataset.limit=2", *EASY)[0] == 0
    made = {path: path.stat().st_ino for path in Path("cache/responses").rglob("feature_switch/*/shard-*.h5")}
    found = drawing.explained("feature_switch", ["gradient", "smoothgrad method.samples=2"], 2, EASY)
    assert made == {path: path.stat().st_ino for path in Path("cache/responses").rglob("feature_switch/*/shard-*.h5")}
    accepted = {}
    for shard in made:
        with h5py.File(shard) as file:
            columns = [file[name][()] for name in ("sample", "accepted", "corners", "scene")]
        accepted |= {sample: (corners, scene) for sample, good, corners, scene in zip(*columns) if good}
    (path,) = Path("results/scores").rglob("feature_switch/gradient-*.csv")
    rows = pd.read_csv(path)
    scored = rows[(rows["statistic"] == "switch")].set_index("sample")["value"].dropna()
    assert sorted(found.samples) == sorted(accepted) == sorted(scored.index) and len(found.pictures) >= 1
    order = found.samples
    corners, scenes = (np.stack([accepted[sample][part] for sample in order]) for part in (0, 1))
    inside = np.zeros((len(order), 2, 64, 64), dtype=bool)
    for at, both in enumerate(corners):
        for k, (top, left) in enumerate(both.astype(int)):
            inside[at, k, top : top + 25, left : left + 25] = True  # 0.384 of 64
    np.testing.assert_array_equal(found.patches, inside)
    first, second = np.moveaxis(found.maps["gradient"].astype(float), 1, 0)
    shared = (np.minimum(first, second) * inside.any(1)).sum((1, 2))
    own = (first * inside[:, 0] + second * inside[:, 1]).sum((1, 2))
    assert shared / own == pytest.approx(scored[order].to_numpy(), rel=1e-5)
    grid = drawing.panels(found)
    assert grid.tiles.shape == (2 * len(order), 3, 64, 64, 3) and len(set(grid.rows)) > 1
    for at in range(len(order)):
        for k in range(2):
            scene, map_of, _ = grid.tiles[2 * at + k]
            np.testing.assert_array_equal(map_of, painted(found.maps["gradient"][at, k], signed=False))
            line = (scene == np.array(REGION)).all(-1)
            assert line.sum() == 4 * 24 and not line[~inside[at, k]].any()
            values = (scenes[at] * 0.25 + 0.5).clip(0, 1).transpose(1, 2, 0) * 255  # mean and deviation of shapes
            assert np.abs(scene[~line] - values[~line]).max() <= 1

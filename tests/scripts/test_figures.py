"""scripts/figures.py draws the numbers of the leaderboard, scripts/gallery.py the maps of the cache."""

from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from PIL import Image

from xaibench.metrics.rules.csc import random_baseline
from xaibench.report.colours import painted
from xaibench.scores import leaderboard


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


def test_the_gallery_is_drawn_cheap_methods_first_or_as_named(xaibench, here, script, monkeypatch):
    """What it shows is tested in tests/report/test_gallery.py."""
    gallery = script("gallery")
    assert xaibench("run", "-m", "method=occlusion,gradcam", "dataset.limit=2", "metric=lerf")[0] == 0
    cells = leaderboard.read_cells(Path("results"))
    assert [gallery.title(cell) for cell in gallery.chosen(cells, None)] == ["gradcam", "occlusion"]
    assert [gallery.title(cell) for cell in gallery.chosen(cells, ["occlusion", "gradcam"])] == ["occlusion", "gradcam"]
    monkeypatch.setattr("sys.argv", ["gallery.py", "--out", "drawn.png", "--images", "2", "--side", "64"])
    gallery.main()
    with Image.open("drawn.png") as drawn:
        across, step = 3, 64 + 64 // 12
        assert drawn.width == pytest.approx(across * step - 64 // 12, abs=1)


def test_convergence_is_drawn_with_the_medians_over_images(xaibench, here, figures):
    few = ("metric=csc", "metric.vectors=2", "metric.start=[logits]", "dataset.limit=3")
    assert xaibench("run", "-m", "method=gradient,lrp_zplus", *few)[0] == 0
    (axes,) = figures.convergence(Path("results")).axes
    lines = {line.get_label(): line.get_ydata() for line in axes.lines}
    for method in ("gradient", "lrp_zplus"):
        (path,) = Path("results").glob(f"scores/*/*/csc/{method}-*.csv")
        rows = pd.read_csv(path)
        cosine = rows[rows["statistic"] == "cosine"]["value"].median()
        assert len(lines[method]) == 6 and lines[method][0] == pytest.approx(max(1 - cosine, 1e-8), abs=1e-8)
    channels = (16, 24, 48, 64, 64, 64)
    assert lines["random vectors"] == pytest.approx([1 - random_baseline(count) for count in channels])


def test_paths_are_drawn_over_the_sparsity(xaibench, here, figures):
    few = ("method.sparsity=0.5,0.9", "metric=path_dead,path_output", "dataset.limit=2")
    assert xaibench("run", "-m", "method=neuron_mct,pathway_random", *few)[0] == 0
    # Not of the sweep: another parameter differs too.
    assert xaibench("run", "method=neuron_mct", "method.signed=true", "metric=path_dead", "dataset.limit=2")[0] == 0
    dead, output = figures.paths(Path("results")).axes
    board = pd.read_csv("results/leaderboard.csv", keep_default_na=False).set_index(["method", "statistic"])

    def shown(method, statistic):
        """On the leaderboard, at 0.5 and then at 0.9."""
        rows = board.loc[[(method, statistic)]].sort_values("method_variant", ascending=False)
        return rows[~rows["method_variant"].str.contains("signed")]["value"].astype(float).to_numpy()

    for axes, statistic in ((dead, "path_dead"), (output, "path_output")):
        drawn = {container.get_label(): container[0].get_data() for container in axes.containers}
        for method in ("neuron_mct", "pathway_random"):
            reached, values = drawn[method]
            assert values == pytest.approx(shown(method, statistic), rel=1e-5, abs=1e-9)
            assert reached == pytest.approx(shown(method, "path_sparsity"), rel=1e-5)
    assert min(drawn["neuron_mct"][0]) > 0.8  # fewer than a fifth of the neurons contribute
    card = next(Path("results/scores").glob("*/*/path_output/*.json"))
    card.write_text(card.read_text().replace('"model": "smallcnn"', '"model": "another"'))
    with pytest.raises(SystemExit, match="paths of another x shapes, smallcnn x shapes; expected"):
        figures.paths(Path("results"))


def test_changes_by_questions_and_answers_are_drawn_as_shares_of_pixels(xaibench, here, figures):
    few = ("model=relation_network", "model.weights=random", "dataset=sort_of_clevr", "dataset.limit=3")
    assert xaibench("run", "-m", "method=gradient,constant", "metric=question_sensitivity", *few)[0] == 0
    (axes,) = figures.questions(Path("results")).axes  # a control's maps do not change
    board = pd.read_csv("results/leaderboard.csv", keep_default_na=False).set_index(["method", "statistic"])
    steps, means = axes.lines[::2], axes.lines[1::2]
    for line, mean, name in zip(steps, means, ("answer", "question")):
        assert sum(line.get_ydata()) == pytest.approx(1)
        assert mean.get_xdata()[0] == pytest.approx(float(board.loc[("gradient", name), "value"]), rel=1e-5)


def test_a_grid_has_the_maps_of_each_pair_of_options_and_their_scales(xaibench, here, script):
    gallery = script("gallery")
    few = ("method=iba", "dataset.limit=2", "fit.limit=8", "method.steps=2", "metric.steps=2")
    assert xaibench("run", "-m", *few, "method.layer=bottleneck,bottleneck_late", "method.beta=0.1,100")[0] == 0
    cells = leaderboard.read_cells(Path("results"))
    methods, layers = ["iba fit.limit=8,steps=2"], "layer=bottleneck_late,bottleneck"
    found = gallery.grid(cells, Path("cache"), methods, [layers, "beta=0.1,100"], 2)
    assert found.tiles.shape[:2] == (4, 3) and found.columns == ("image", "beta 0.1", "beta 100")
    assert found.rows == ("layer\nbottleneck\nlate", "layer\nbottleneck") * 2
    for cell in cells:
        config = cell.card["config"]["method"]
        (path,) = Path("cache/maps").rglob(f"{cell.card['keys']['map_key']}/shard-*.h5")
        with h5py.File(path) as file:
            maps = file["maps"][()].sum(1)  # in the order of the images
        column = 1 + [0.1, 100].index(config["beta"])
        for image, values in enumerate(maps):
            row = 2 * image + ["bottleneck_late", "bottleneck"].index(config["layer"])
            assert (found.tiles[row, column] == painted(values, signed=False)).all()
            assert float(found.below[row][column]) == pytest.approx(np.percentile(values, 99), rel=0.06)
    with pytest.raises(SystemExit, match=r"no run of iba fit.limit=8,steps=2 with layer=bottleneck_late, beta=7"):
        gallery.grid(cells, Path("cache"), methods, [layers, "beta=0.1,7"], 2)


def test_a_grid_over_one_option_has_a_row_for_each_method(xaibench, here, script):
    few = ("method=neuron_mct,gradient", "metric=lerf", "dataset.limit=1")
    assert xaibench("run", "-m", *few)[0] == 0
    assert xaibench("run", "-m", "method=neuron_mct", "method.sparsity=0.5", *few[1:])[0] == 0
    cells = leaderboard.read_cells(Path("results"))
    gallery = script("gallery")
    found = gallery.grid(cells, Path("cache"), ["neuron_mct"], ["sparsity=0.5,0.9"], 1)
    assert found.rows == ("neuron mct",) and found.columns == ("image", "sparsity 0.5", "sparsity 0.9")
    for column, sparsity in enumerate((0.5, 0.9), start=1):
        (cell,) = [cell for cell in cells if cell.card["config"]["method"].get("sparsity") == sparsity]
        (path,) = Path("cache/maps").rglob(f"{cell.card['keys']['map_key']}/shard-*.h5")
        with h5py.File(path) as file:
            values = np.abs(file["maps"][()]).max(1)  # as these methods' channels are read
        assert (found.tiles[0, column] == painted(values[0], signed=False)).all()
    with pytest.raises(SystemExit, match=r"no run of gradient with sparsity=0.9"):
        gallery.grid(cells, Path("cache"), ["neuron_mct", "gradient"], ["sparsity=0.9"], 1)

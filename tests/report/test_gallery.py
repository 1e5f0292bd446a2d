"""The gallery shows what the data set and the cache hold, and says what it cannot show."""

import json
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from xaibench.datasets.shapes import Shapes
from xaibench.report import gallery
from xaibench.report.colours import painted
from xaibench.scores import leaderboard


@pytest.fixture
def cells(copied):
    return leaderboard.read_cells(Path("results"))


def test_images_and_maps_are_those_of_the_data_set_and_the_cache(cells):
    found = gallery.collect(cells, Path("cache"), limit=4)
    assert [column.label for column in found.columns] == ["gradcam", "gradient", "random"]
    assert [column.signed for column in found.columns] == [False, True, True]
    assert len(found.pictures) == 4 and not found.missing
    data = Shapes()
    (shard,) = Path("cache/maps/smallcnn/shapes/gradient").rglob("shard-*.h5")
    with h5py.File(shard) as file:
        rows = {int(sample): row for row, sample in enumerate(file["sample"][()])}
        maps, probability = file["maps"][()], file["probability"][()]
    for place, picture in enumerate(found.pictures):
        example = data[picture.sample]
        expected = (example.image * 255).round().byte().permute(1, 2, 0).numpy()
        assert np.abs(picture.pixels.astype(int) - expected).max() <= 1
        assert picture.label == picture.explained == data.class_names[example.label]
        row = rows[picture.sample]
        assert picture.explained_probability == pytest.approx(float(probability[row]), abs=1e-6)
        np.testing.assert_allclose(found.columns[1].maps[place], maps[row].sum(0), rtol=1e-5, atol=1e-6)


def test_what_is_missing_is_said_with_the_way_to_get_it(cells, here):
    shutil.rmtree("cache/maps/smallcnn/shapes/gradcam")
    found = gallery.collect(cells, Path("cache"))
    assert [column.label for column in found.columns] == ["gradient", "random"]
    (said,) = found.missing
    assert said.startswith("gradcam: cache has no maps") and "run it again" in said
    assert not gallery.collect(cells, here / "nowhere").columns
    for spec in Path("cache/responses").rglob("logits/*/spec.json"):
        shutil.rmtree(spec.parent)
    found = gallery.collect(cells, Path("cache"))
    assert not found.pictures and "lacks what the network answers" in found.missing[-1]


def test_nothing_but_a_data_set_is_built_from_a_score_file(cells, here):
    """A results folder may come from a stranger."""
    for path in Path("results/scores").rglob("*.json"):
        card = json.loads(path.read_text())
        card["config"]["dataset"] = {"_target_": "os.system", "command": "touch harm", "limit": 5}
        path.write_text(json.dumps(card))
    found = gallery.collect(leaderboard.read_cells(Path("results")), Path("cache"))
    assert "os.system: not run" in found.missing[-1]
    assert not (here / "harm").exists()


def test_zero_is_white_and_the_sign_is_the_colour():
    red, white, blue = painted(np.array([[2.0, 0.0, -2.0]]), signed=True)[0].astype(int)
    assert red[0] > red[2] + 60 and blue[2] > blue[0] + 60 and white.min() > 240
    shades = painted(np.linspace(0, 1, 9)[None], signed=False)[0].sum(axis=1)
    assert (np.diff(shades.astype(int)) < 0).all()
    assert painted(np.zeros((2, 2)), signed=True).min() > 240
    assert (painted(np.array([[np.nan, 1.0]]), signed=False)[0, 0] == 128).all()


def test_the_drawing_has_a_tile_per_image_and_method(cells):
    found = gallery.collect(cells, Path("cache"), limit=2)
    (axes,) = gallery.draw(found).axes
    sheet = axes.images[0].get_array()[..., :3]  # behind them alpha
    height, width, _ = found.pictures[0].pixels.shape
    above, step_y, step_x = height // 2, height + height // 3, width + width // 12
    np.testing.assert_array_equal(sheet[above : above + height, :width], found.pictures[0].pixels)
    corner = sheet[above + step_y : above + step_y + height, 2 * step_x : 2 * step_x + width]
    np.testing.assert_array_equal(corner, painted(found.columns[1].maps[1], signed=True))
    # The third method of three, two side by side, begins the second band.
    (axes,) = gallery.draw(found, columns=2).axes
    top = above + 2 * step_y + above
    third = axes.images[0].get_array()[top : top + height, step_x : step_x + width, :3]
    np.testing.assert_array_equal(third, painted(found.columns[2].maps[0], signed=True))


def test_a_fine_pattern_that_is_shrunk_becomes_its_mean():
    """Black and white columns at half their size are grey; one of two columns would be black, or white."""
    side = 128
    stripes = np.zeros((side, side, 3), dtype=np.uint8)
    stripes[:, ::2] = 255
    picture = gallery.Picture(0, "a", "a", 0.5, "a", 0.5, stripes)
    found = gallery.Gallery((picture,), (gallery.Column("gradient", "", np.ones((1, side, side), np.float32)),), ())
    canvas = FigureCanvasAgg(gallery.draw(found, side=side // 2))
    canvas.draw()
    tile = np.asarray(canvas.buffer_rgba())[side // 4 + 8 : 3 * side // 4 - 8, 8 : side // 2 - 8, :3]
    assert abs(tile.mean() - 127.5) < 3 and tile.std() < 30

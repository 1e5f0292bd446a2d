"""The grids of the study from pictures that are written by hand, and in the page of a run."""

import numpy as np
import pytest

from xaibench.report.study import REGION, grid


@pytest.fixture
def pixels() -> np.ndarray:
    """Twelve pictures, each of one grey: 10 times its number."""
    return np.full((12, 4, 4, 3), 10, dtype=np.uint8) * np.arange(12, dtype=np.uint8)[:, None, None, None]


def shades(found) -> list[list[int]]:
    return found.tiles[:, :, 0, 0, 0].tolist()


def test_columns_of_the_base_grid_are_fifths_of_the_answers(pixels):
    answers = np.array([5.0, 4, 3, 2, 1, 0, -1, -2, -3, -4, -5, -6])
    found = grid(pixels, {"f": answers}, "base", rows=2, columns=3)
    assert shades(found) == [[110, 70, 30], [100, 60, 20]]
    assert found.columns == ("-5.5", "-1.5", "2.5")
    assert grid(pixels, {"f": answers}, "base").tiles.shape[:2] == (2, 5)  # as many rows as every column can fill


def test_a_row_of_counterfactuals_is_the_picture_changed_and_clipped(pixels):
    change = np.zeros((12, 4, 4, 3), dtype=np.float32)
    change[:, 0, 0] = -0.1
    change[1] = np.nan
    found = grid(pixels, {"flip": change, "logit:3": 20 * np.abs(change)}, "counterfactual", rows=5)
    assert found.columns == ("image", "flip", "logit:3", "change, logit:3") and found.tiles.shape[:2] == (5, 4)
    for row in (0, 2, 3, 4):
        assert shades(found)[row][:3] == [10 * row, max(0, round(10 * row - 25.5)), 255]
        assert (found.tiles[row, 1, 1:] == 10 * row).all()
    assert shades(found)[1][1:3] == [128, 128]  # out of reach
    # The change is one of evidence in favour where it is, and none elsewhere.
    assert found.tiles[0, 3, 0, 0, 0] > found.tiles[0, 3, 0, 0, 2] and (found.tiles[0, 3, 1:] > 240).all()


def test_rows_of_a_concept_are_the_pictures_with_most_and_least_of_it(pixels):
    maps = np.zeros((12, 4, 4))
    maps[:, 1:3, 1:3] = np.arange(12)[:, None, None] - 5.5
    found = grid(pixels, {"mf 0": maps}, "concept", columns=3)
    assert found.rows == ("mf 0 +", "mf 0 -")
    assert shades(found) == [[110, 100, 90], [0, 10, 20]]
    region = (found.tiles == np.array(REGION)).all(-1)
    expected = np.zeros((4, 4), dtype=bool)
    expected[1:3, 1:3] = True
    assert (region == expected).all()
    assert grid(pixels, {str(k): maps for k in range(9)}, "concept").tiles.shape[:2] == (10, 5)


def test_the_page_has_the_grids_of_what_the_cache_holds(xaibench, here):
    run = (
        "run",
        "-m",
        "model=two4two_inn",
        "model.weights=random",
        "dataset=two4two",
        "dataset.limit=6",
        "fit.limit=8",
    )
    assert xaibench(*run, "method=counterfactual", "method.goal=flip,logit:2")[0] == 0
    assert xaibench(*run, "method=concept", "method.concepts=2")[0] == 0
    code, _, said = xaibench("report")
    assert code == 0, said
    text = (here / "results" / "report" / "index.html").read_text()
    assert "Counterfactuals and concepts" in text
    assert {path.stem.rpartition("-")[2] for path in (here / "results" / "report" / "figures").glob("*.png")} >= {
        "counterfactual",
        "concept",
    }

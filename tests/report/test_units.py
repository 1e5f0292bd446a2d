"""The figure of units, from pictures and marks that are written by hand, and in the page of a run."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from xaibench.metrics.network._dissection import Tops
from xaibench.report.study import REGION, outlined
from xaibench.report.units import best
from xaibench.store.cache import Artefact


def test_the_images_in_which_each_unit_is_highest_whatever_the_batches():
    values = torch.randn(30, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    ids = list(range(100, 130))
    whole, parts = Tops(5), Tops(5)
    whole.see(values, ids)
    for start in (0, 7, 14, 28):
        stop = {0: 7, 7: 14, 14: 28, 28: 30}[start]
        parts.see(values[start:stop], ids[start:stop])
    for k in range(4):
        order = sorted(range(30), key=lambda i: -float(values[i, k].max()))[:5]
        for found in (whole, parts):
            assert found.images[:, k].tolist() == [100 + i for i in order]
            assert torch.equal(found.maps[:, k], values[order, k])


def test_the_best_unit_of_each_concept_the_highest_first():
    iou = np.array([[0.1, 0.3, 0.0], [0.5, 0.2, 0.0], [np.nan, np.nan, np.nan], [0.0, 0.0, 0.0]])
    assert best(iou) == [(1, 0), (0, 1)]


def test_a_line_lies_around_what_is_marked():
    picture, inside = np.zeros((5, 5, 3), dtype=np.uint8), np.zeros((5, 5), dtype=bool)
    inside[1:4, 1:4] = True
    line = (outlined(picture, inside) == np.array(REGION)).all(-1)
    inside[2, 2] = False
    assert (line == inside).all()


@pytest.fixture
def dissected(xaibench):
    run = ("run", "metric=network_dissection", "model=two4two_cnn", "model.weights=random", "dataset=two4two")
    code, _, said = xaibench(*run, "dataset.limit=12", "fit.limit=12")
    assert code == 0, said


def test_the_page_shows_units_and_says_which_concepts_are_out_of_reach(xaibench, here, dissected):
    code, _, said = xaibench("report")
    assert code == 0, said
    text = (here / "results" / "report" / "index.html").read_text()
    assert "What units detect" in text and "no unit can be a detector of" in text
    assert [path.name for path in (here / "results" / "report" / "figures").glob("*units*.svg")]
    # What the page shows is what was fitted: the images, and a place above the threshold in the highest of them.
    (spec,) = Path("cache/fits").rglob("spec.json")
    names = spec.parent.relative_to("cache/fits").parts
    fit = Artefact.opened(Path("cache"), "fits", names[:-1], names[-1])
    arrays = fit.load_whole("fit")
    assert (arrays["top_maps"][:, 0].max((1, 2)) >= arrays["thresholds"]).all()
    assert arrays["top_images"].shape == (64, 5)


def test_without_the_cache_the_page_has_no_units(xaibench, here, dissected):
    assert xaibench("report", "--cache", "elsewhere")[0] == 0
    assert "What units detect" not in (here / "results" / "report" / "index.html").read_text()
    (card,) = Path("results/scores").rglob("*.json")
    assert json.loads(card.read_text())["statistics"][0]["kind"] == "detectors"

"""scripts/commonality.py: the square lies where it is said to, and g is what numpy says of maps that are known."""

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

import xaibench as xb
from xaibench.datasets.shapes import SCENES, Shapes

IMAGES, MEAN, STD = 60, 0.5, 0.25


@pytest.fixture
def commonality(script):
    return script("commonality")


class Knows(nn.Module):
    """Always the first class, whose logit has a slope of 1 in every value, `slope` more where it is nearly grey, and 6
    more where it is bright."""

    def __init__(self, slope):
        super().__init__()
        self.slope, self.last = slope, nn.Conv2d(3, 1, 1)

    def forward(self, x):
        near_grey = (x + 0.1).relu() - (x - 0.1).relu()
        first = (x + self.slope * near_grey + 6 * (x - 1).relu()).sum((1, 2, 3)) + 1e6
        return torch.stack([first, *[0 * first] * (len(SCENES) - 1)], 1)


def test_the_first_classes_have_the_square_and_nothing_else_is_on_the_scenes(commonality):
    scenes = Shapes(task="scene")
    for common in (1, 7, 10):
        dataset = commonality.Marked(common)
        for index in range(20):
            square, scene = dataset.object_mask(index).numpy(), scenes.background(index)
            rows, columns = np.where(square)
            if scenes.scene_label(index) < common:
                assert len(rows) == (np.ptp(rows) + 1) * (np.ptp(columns) + 1) == commonality.SQUARE**2
            else:
                assert not square.any()
            example = dataset[index]
            assert example.label == scenes.scene_label(index)
            assert (example.image[:, square] == commonality.GREY / 255).all()
            assert torch.equal(example.image[:, ~square], scene[:, ~square])
            assert (square == commonality.Marked(10).object_mask(index).numpy()).all() or not square.any()


def test_g_falls_where_the_maps_do(commonality):
    slopes = {common: 12.0 - common for common in range(1, 11)}
    networks = {c: xb.Classifier(Knows(slope), [MEAN] * 3, [STD] * 3) for c, slope in slopes.items()}
    table = commonality.rows("gradient", *commonality.cases(networks, IMAGES), IMAGES).set_index(
        ["statistic", "common"]
    )
    dataset = commonality.Marked(10)
    first = [index for index in range(IMAGES) if dataset.scene_label(index) == 0]
    expected, empty = {c: [] for c in slopes}, []

    def g(pixels, slope, square):
        x = (pixels.numpy() - MEAN) / STD
        values = (1 + slope * (np.abs(x) < 0.1) + 6 * (x > 1)).sum(0)
        top = np.percentile(values, 99)
        return ((values - values.min()) / (top - values.min())).clip(0, 1)[square].mean()

    for index in first:
        square = dataset.object_mask(index).numpy()
        empty.append(g(dataset.background(index), slopes[10], square))
        for common, slope in slopes.items():
            expected[common].append(g(dataset[index].image, slope, square))
    falling = [stats.spearmanr(range(10), row).statistic if np.ptp(row) else 0.0 for row in np.transpose(
        [expected[c] for c in slopes])]  # fmt: skip
    assert table["n"]["g", 1] == table["n"]["spearman", 0] == len(first) >= 3
    for common, values in expected.items():
        assert table["value"]["g", common] == pytest.approx(np.mean(values), abs=1e-5)
        difference = np.mean(values) - np.mean(expected[10])
        assert table["value"]["g - g of 10", common] == pytest.approx(difference, abs=1e-5)
    assert table["value"]["spearman", 0] == pytest.approx(np.mean(falling), abs=0.02)
    assert table["value"]["false_positive_rate", 0] == np.mean(np.array(expected[10]) >= empty)

"""The grid pointing game: mosaics of images that can be told by their colour, and maps with known shares."""

import itertools
import math

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from xaibench.datasets.base import Batch, Dataset, Example, Samples
from xaibench.errors import Refusal, XaibenchError
from xaibench.metrics.ground_truth.grid_pointing_game import GridPointingGame
from xaibench.models.classifier import Classifier
from xaibench.models.preprocessing import Preprocessing
from xaibench.rng import sample_generators

from .helpers import evaluated


class Colours(Dataset):
    """Sample k is of class k % classes and shows the value (k + 1) / 1000 everywhere."""

    def __init__(self, classes=5, count=200, size=(3, 8, 8)):
        self.class_names = tuple("abcdefgh"[:classes])
        self.count, self.size = count, size

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        return Example(torch.full(self.size, (index + 1) / 1000), index % len(self.class_names))


def loaded(ids, dataset=None):
    data = Samples(dataset or Colours(), Preprocessing(), ())
    return data.load(ids), data


def mosaics_of(metric, ids, dataset=None):
    batch, data = loaded(ids, dataset)
    return batch, *metric.mosaics(batch, sample_generators(0, "metric", batch.samples), data)


def scored(metric, classifier, batch, data, maps_of):
    """The columns; maps_of(mosaics, cells) -> maps."""

    def explain(inputs, targets, purpose, masks):
        assert torch.equal(targets, batch.targets)
        return maps_of(inputs, masks)

    return evaluated(metric, classifier, batch, torch.zeros(0), explain=explain, data=data)


@pytest.mark.parametrize("grid, side", [(2, 8), (3, 8), (2, 7), (4, 9)])
def test_a_mosaic_holds_the_own_image_once_and_others_of_other_classes(grid, side):
    _, mosaics, cells = mosaics_of(GridPointingGame(grid), list(range(40)), Colours(size=(3, side, side)))
    edges = [round(part * side / grid) for part in range(grid + 1)]
    for b in range(40):
        seen = []
        for top, bottom in itertools.pairwise(edges):
            for left, right in itertools.pairwise(edges):
                values = mosaics[b, :, top:bottom, left:right]
                sample = round(values[0, 0, 0].item() * 1000) - 1
                torch.testing.assert_close(values, torch.full_like(values, (sample + 1) / 1000))
                assert (cells[b, top:bottom, left:right] == (sample == b)).all()
                seen.append(sample)
        assert seen.count(b) == 1 and len(seen) == grid**2
        assert all(sample % 5 != b % 5 for sample in seen if sample != b)


def test_an_image_is_shrunk_as_pillow_shrinks_it():
    class Noise(Colours):
        def __getitem__(self, index):
            noise = torch.rand(self.size, generator=torch.Generator().manual_seed(index))
            return Example(noise, index % 5)

    batch, mosaics, cells = mosaics_of(GridPointingGame(3), [3, 4], Noise(size=(1, 20, 20)))
    for image, mosaic, cell in zip(batch.inputs, mosaics, cells):
        rows, columns = cell.any(1), cell.any(0)
        size = int(columns.sum()), int(rows.sum())
        expected = Image.fromarray(image[0].numpy()).resize(size, Image.Resampling.BILINEAR)
        np.testing.assert_allclose(mosaic[0][rows][:, columns], np.asarray(expected), atol=1e-6)


def test_cells_and_images_are_uniform_and_belong_to_the_sample():
    ids = list(range(0, 1000, 5))
    dataset = Colours(count=1000)
    _, mosaics, cells = mosaics_of(GridPointingGame(), ids, dataset)
    quarters = torch.stack([cells[:, row, column] for row in (0, 7) for column in (0, 7)], dim=1).double()
    assert (quarters.mean(0) - 0.25).abs().max() < 4.5 * math.sqrt(0.25 * 0.75 / 200)
    # All of class 0: the others are uniform over the other 800 samples.
    shown = torch.stack([mosaics[:, 0, row, column] for row in (0, 7) for column in (0, 7)], dim=1)[quarters == 0]
    assert shown.mean().item() == pytest.approx(0.5005, abs=4.5 * math.sqrt(1 / 12 / 600))
    _, alone, cell = mosaics_of(GridPointingGame(), [ids[7]], dataset)
    assert torch.equal(alone[0], mosaics[7]) and torch.equal(cell[0], cells[7])


def test_two_classes_are_enough_and_neither_target_nor_label_comes_twice():
    _, mosaics, cells = mosaics_of(GridPointingGame(3), [0, 1], Colours(classes=2))
    assert ((mosaics[0, 0][~cells[0]] * 1000).round() % 2 == 0).all()
    batch, data = loaded([0, 1])
    batch = Batch(batch.samples, batch.inputs, batch.labels, torch.tensor([2, 3]), None, ())
    mosaics, cells = GridPointingGame(4).mosaics(batch, sample_generators(0, "metric", batch.samples), data)
    for b, avoided in enumerate([{0, 2}, {1, 3}]):
        classes = ((mosaics[b, 0][~cells[b]] * 1000).round().long() - 1) % 5
        assert set(classes.tolist()) == {0, 1, 2, 3, 4} - avoided


def test_shares_and_hits_of_known_maps(convnet):
    classifier = convnet((3, 8, 8))
    batch, data = loaded([0, 1, 2, 3])

    def known(mosaics, cells):
        maps = torch.ones(4, 8, 8, dtype=torch.float64)
        maps[0][cells[0]] = 5.0  # 16 pixels of 5 in 48 of 1
        maps[1][cells[1]] = 0.0  # all of it outside
        maps[2] = 0.0
        maps[3] *= cells[3]
        return maps

    doubled = Batch(batch.samples, batch.inputs.double(), batch.labels, batch.targets.clamp(max=3), None, ())
    columns = scored(GridPointingGame(), classifier, doubled, data, known)
    assert columns["share"][:2].tolist() == [80 / 128, 0] and columns["share"][3] == 1
    assert columns["hit"][:2].tolist() == [1, 0] and columns["hit"][3] == 1
    assert columns["share"][2].isnan() and columns["hit"][2].isnan()
    mosaics, _ = GridPointingGame().mosaics(doubled, sample_generators(0, "metric", batch.samples), data)
    expected = classifier.module(mosaics).softmax(1)[torch.arange(4), doubled.targets]
    torch.testing.assert_close(columns["probability"], expected)


def test_a_constant_map_scores_chance(linear):
    classifier = Classifier("linear", linear((3, 8, 8), classes=5).module.float(), (3, 8, 8))
    batch, data = loaded(list(range(200)))
    columns = scored(GridPointingGame(), classifier, batch, data, lambda inputs, cells: torch.ones(200, 8, 8))
    assert (columns["share"] == 0.25).all()
    assert abs(columns["hit"].mean() - 0.25) < 4.5 * math.sqrt(0.25 * 0.75 / 200)


def test_the_oracle_scores_one_in_a_run(xaibench, here):
    assert xaibench("run", "method=oracle", "metric=grid_pointing_game", "dataset.limit=3")[0] == 0
    (path,) = here.glob("results/scores/*/*/grid_pointing_game/oracle-*.csv")
    rows = pd.read_csv(path)
    assert (rows[rows["statistic"].isin(["share", "hit"])]["value"] == 1).all() and len(rows) == 9


def test_a_data_set_of_one_class_is_refused(linear):
    with pytest.raises(Refusal, match="at least two classes"):
        GridPointingGame().check_data(Colours(classes=1))

    class Alike(Colours):
        def __getitem__(self, index):
            return Example(torch.zeros(self.size), 0)

    with pytest.raises(XaibenchError, match="another class"):
        mosaics_of(GridPointingGame(), [0], Alike())
    with pytest.raises(Refusal, match="no classes"):
        GridPointingGame().check(linear(classes=1, output="raw"))
    with pytest.raises(ValueError, match="grid=1"):
        GridPointingGame(grid=1)

import math

import numpy as np
import pytest
import torch

from xaibench.errors import Refusal
from xaibench.methods.context import Context
from xaibench.metrics.removal.degradation import Degradation
from xaibench.models.classifier import Classifier

from .helpers import evaluated

CURVES = ("morf_curve", "lerf_curve")


def slow_degradation(classifier: Classifier, image, target: int, attribution, tile: int, steps: int):
    """MoRF and LeRF as one would explain them: one image, tiles in lists, pixels set one by one."""
    channels, height, width = image.shape
    tiles = []
    for top in range(0, height, tile):
        for left in range(0, width, tile):
            rows, columns = range(top, min(top + tile, height)), range(left, min(left + tile, width))
            tiles.append([(row, column) for row in rows for column in columns])
    relevance = [sum(float(attribution[pixel]) for pixel in pixels) / len(pixels) for pixels in tiles]
    most_first = sorted(range(len(tiles)), key=lambda index: -relevance[index])
    mean = [float(image[channel].mean()) for channel in range(channels)]
    counts = sorted({int(np.round(fraction * len(tiles))) for fraction in np.linspace(0, 1, steps + 1)})
    curves = []
    for order in (most_first, most_first[::-1]):
        scores = []
        for count in counts:
            degraded = image.clone()
            for index in order[:count]:
                for row, column in tiles[index]:
                    for channel in range(channels):
                        degraded[channel, row, column] = mean[channel]
            scores.append(classifier.module(degraded[None])[0].softmax(0)[target].item())
        curves.append(scores)
    fractions = [count / len(tiles) for count in counts]
    areas = [
        sum((b - a) * (p + q) / 2 for a, b, p, q in zip(fractions, fractions[1:], curve, curve[1:])) for curve in curves
    ]
    return fractions, curves, areas


@pytest.mark.parametrize("side, tile, steps", [(12, 4, 100), (12, 2, 10), (13, 4, 7), (11, 3, 100)])
def test_equals_a_slow_loop(convnet, batch_for, scored, side, tile, steps):
    classifier = convnet((3, side, side), batch_size=5)
    batch = batch_for(classifier, 3)
    maps = torch.randn(3, side, side, dtype=torch.float64)
    metric = Degradation(tile=tile, steps=steps)
    columns = scored(metric, classifier, batch, maps)
    for b in range(3):
        fractions, curves, (morf, lerf) = slow_degradation(
            classifier, batch.inputs[b], batch.targets[b], maps[b], tile, steps
        )
        for name, expected in zip(CURVES, curves):
            np.testing.assert_allclose(metric.axes(classifier)[name], fractions, atol=1e-15)
            np.testing.assert_allclose(columns[name][b], expected, atol=1e-12)
        np.testing.assert_allclose(
            [columns[name][b].item() for name in ("morf", "lerf", "area")], [morf, lerf, lerf - morf], atol=1e-12
        )


def test_linear_model_in_closed_form(linear, batch_for, scored):
    """On a linear model each tile removed takes its contribution, so an exact map's curve is a sorted prefix sum."""
    classifier = linear((3, 8, 8))
    batch = batch_for(classifier, 4)
    weights = classifier.module[1].weight[batch.targets].view_as(batch.inputs)
    means = batch.inputs.mean((2, 3), keepdim=True)
    contributions = weights * (batch.inputs - means)
    columns = scored(Degradation(tile=2, steps=None, output="logit"), classifier, batch, contributions.sum(1))
    tiles = contributions.view(4, 3, 4, 2, 4, 2).sum((1, 3, 5)).flatten(1)
    clean = classifier.scores(batch.inputs, batch.targets)[:, None]
    for name, descending in zip(CURVES, (True, False)):
        removed = tiles.sort(1, descending=descending).values.cumsum(1)
        expected = torch.cat([clean, clean - removed], 1)
        torch.testing.assert_close(columns[name], expected, rtol=0, atol=1e-10)


def test_no_random_order_beats_the_exact_map(linear, batch_for, scored):
    classifier = linear((1, 8, 8))
    batch = batch_for(classifier, 1)
    contributions = classifier.module[1].weight[batch.targets].view(1, 8, 8) * (
        batch.inputs[:, 0] - batch.inputs.mean()
    )
    metric = Degradation(tile=2, output="logit")
    oracle = scored(metric, classifier, batch, contributions)["area"]
    for _ in range(30):
        other = scored(metric, classifier, batch, torch.randn(1, 8, 8))
        assert other["area"] < oracle


def test_negated_map_gives_the_negated_area(convnet, batch_for, scored):
    classifier = convnet((3, 13, 13))
    batch = batch_for(classifier, 4)
    maps = torch.randn(4, 13, 13)
    metric = Degradation(tile=4)
    plain, negated = scored(metric, classifier, batch, maps), scored(metric, classifier, batch, -maps)
    torch.testing.assert_close(negated["area"], -plain["area"], rtol=0, atol=1e-12)
    torch.testing.assert_close(negated["morf_curve"], plain["lerf_curve"], rtol=0, atol=1e-12)


def test_constant_map_scores_like_a_random_one(convnet, batch_for, scored, take):
    """400 constant and 400 random maps on one image: areas and curves agree within four standard errors, around 0."""
    classifier = convnet()
    batch = take(batch_for(classifier, 1), [0] * 400)
    batch = type(batch)(
        tuple(range(400)), *(getattr(batch, name) for name in ("inputs", "labels", "targets")), None, ()
    )
    metric = Degradation(tile=3)
    constant = scored(metric, classifier, batch, torch.ones(400, 12, 12))
    random = scored(metric, classifier, batch, torch.randn(400, 12, 12))
    for columns in (constant, random):
        assert columns["area"].mean().abs() < 4 * columns["area"].std() / math.sqrt(400)
        assert columns["area"].std() > 0
    for name in CURVES:
        inner = slice(1, -1)
        error = ((constant[name].var(0) + random[name].var(0)) / 400).sqrt()[inner]
        assert ((constant[name].mean(0) - random[name].mean(0)).abs()[inner] < 4 * error).all()


def test_ends_are_the_clean_and_the_degraded_probability(convnet, batch_for, scored):
    classifier = convnet()
    batch = batch_for(classifier, 3)
    columns = scored(Degradation(tile=4), classifier, batch, torch.randn(3, 12, 12))
    probabilities = classifier.module(batch.inputs).softmax(1)
    grey = batch.inputs.mean((2, 3), keepdim=True).expand_as(batch.inputs)
    rows = torch.arange(3)
    degraded = classifier.module(grey).softmax(1)[rows, batch.targets]
    for name in CURVES:
        torch.testing.assert_close(columns[name][:, 0], probabilities[rows, batch.targets], rtol=0, atol=1e-12)
        torch.testing.assert_close(columns[name][:, -1], degraded, rtol=0, atol=1e-12)
    torch.testing.assert_close(columns["top1"], probabilities.amax(1), rtol=0, atol=1e-12)
    torch.testing.assert_close(columns["degraded"], degraded, rtol=0, atol=1e-12)


def test_statistics_are_the_normalised_score_of_the_mean_curves(convnet, batch_for, scored):
    classifier = convnet()
    batch = batch_for(classifier, 6)
    metric = Degradation(tile=4)
    columns = {k: v.numpy() for k, v in scored(metric, classifier, batch, torch.randn(6, 12, 12)).items()}
    top, bottom = columns["top1"].mean(), columns["degraded"].mean()
    morf, lerf = ((columns[name].mean(0) - bottom) / (top - bottom) for name in CURVES)
    x = metric.axes(classifier)["morf_curve"].numpy()
    expected = {
        "degradation": np.trapezoid(lerf - morf, x),
        "morf": np.trapezoid(morf, x),
        "lerf": np.trapezoid(lerf, x),
    }
    got = {s.name: columns[s.column].mean() / columns[s.per].mean() for s in metric.statistics}
    assert got == pytest.approx(expected, abs=1e-12)
    assert [s.direction for s in metric.statistics] == ["higher", "lower", "higher"]


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_neither_batch_size_nor_neighbours_change_a_score(convnet, batch_for, scored, take, batch_size):
    classifier = convnet()
    batch = batch_for(classifier, 5)
    maps = torch.randn(5, 12, 12)
    maps[2] = 0  # ties are the sample's own, too
    metric = Degradation(tile=2, steps=9)
    expected = scored(metric, classifier, batch, maps)
    classifier.batch_size = batch_size
    for which in ([0, 1, 2, 3, 4], [4, 2, 0], [2]):
        got = scored(metric, classifier, take(batch, which), maps[which])
        for name, values in got.items():
            torch.testing.assert_close(values, expected[name][which], rtol=0, atol=1e-9)


def test_model_calls_and_nominal_cost(convnet, batch_for, calls):
    classifier = convnet(batch_size=7)
    batch = batch_for(classifier, 5)
    metric = Degradation(tile=4)
    sizes = calls(classifier)
    responses = metric.respond(classifier, batch, Context())
    assert sizes == [5, 5]
    sizes.clear()
    evaluated(metric, classifier, batch, torch.randn(5, 12, 12), responses=responses)
    assert len(sizes) == 2 * math.ceil(5 * 8 / 7)
    assert metric.cost(classifier) == (2 * 8 + 2, 0)


def test_a_curve_has_a_value_of_its_own_at_every_step(convnet, batch_for, scored):
    """A released implementation shares one score among all steps of a block (un-cloned states)."""
    classifier = convnet(batch_size=32)
    batch = batch_for(classifier, 1)
    columns = scored(Degradation(tile=1, steps=64), classifier, batch, torch.randn(1, 12, 12))
    assert columns["morf_curve"].unique().numel() == 65


def test_pairings_that_cannot_be_scored_are_refused(linear):
    with pytest.raises(Refusal, match="tile=8"):
        Degradation(tile=8).check(linear((1, 1, 2)))
    with pytest.raises(Refusal, match="no probability"):
        Degradation(tile=1).check(linear((1, 1, 2), classes=1, output="raw"))
    Degradation(tile=1, output="logit").check(linear((1, 1, 2), classes=1, output="raw"))


@pytest.mark.parametrize("parameter", [{"tile": 0}, {"steps": 0}, {"sigma": 0.0}])
def test_bad_parameters_are_named(parameter):
    with pytest.raises(ValueError, match=next(iter(parameter))):
        Degradation(**parameter)

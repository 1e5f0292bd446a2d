import math

import numpy as np
import pytest
import torch

from xaibench.errors import Refusal
from xaibench.methods.context import Context
from xaibench.metrics.removal.insertion_deletion import InsertionDeletion

from .helpers import evaluated

CURVES = ("deletion_curve", "insertion_curve")


def slow_path(classifier, image, fill, target, attribution, counts):
    """Pixels of `image` replaced by `fill` one by one, the largest attribution first; the probability at counts."""
    height, width = attribution.shape
    order = sorted(
        ((row, column) for row in range(height) for column in range(width)),
        key=lambda pixel: -float(attribution[pixel]),
    )
    image, scores = image.clone(), []
    for count in range(height * width + 1):
        if count:
            row, column = order[count - 1]
            for channel in range(len(image)):
                image[channel, row, column] = fill[channel, row, column]
        if count in counts:
            scores.append(classifier.module(image[None])[0].softmax(0)[target].item())
    return scores


def slow_blur(image, sigma):
    """A Gaussian cut at three sigma with the border repeated, weight by weight."""
    radius = math.ceil(3 * sigma)
    weights = [math.exp(-0.5 * (d / sigma) ** 2) for d in range(-radius, radius + 1)]
    blurred = torch.zeros_like(image)
    _, height, width = image.shape
    for row in range(height):
        for column in range(width):
            for i, down in enumerate(weights):
                for j, across in enumerate(weights):
                    y = min(max(row + i - radius, 0), height - 1)
                    x = min(max(column + j - radius, 0), width - 1)
                    blurred[:, row, column] += down * across / sum(weights) ** 2 * image[:, y, x]
    return blurred


@pytest.mark.parametrize("steps", [None, 10])
def test_equals_a_slow_loop(convnet, batch_for, scored, steps):
    classifier = convnet((3, 6, 7), batch_size=5)
    batch = batch_for(classifier, 2)
    maps = torch.randn(2, 6, 7, dtype=torch.float64)
    metric = InsertionDeletion(steps=steps, sigma=1.0)
    columns = scored(metric, classifier, batch, maps)
    counts = np.unique(np.round(np.linspace(0, 1, (steps or 42) + 1) * 42).astype(int))
    for b, (image, target) in enumerate(zip(batch.inputs, batch.targets)):
        blur = slow_blur(image, 1.0)
        deletion = slow_path(classifier, image, torch.zeros_like(image), target, maps[b], counts)
        insertion = slow_path(classifier, blur, image, target, maps[b], counts)
        for name, expected in zip(CURVES, (deletion, insertion)):
            np.testing.assert_allclose(metric.axes(classifier)[name], counts / 42, atol=1e-15)
            np.testing.assert_allclose(columns[name][b], expected, atol=1e-12)
        areas = [np.trapezoid(values, counts / 42) for values in (deletion, insertion)]
        got = [columns[name][b].item() for name in ("deletion", "insertion", "difference")]
        np.testing.assert_allclose(got, [*areas, areas[1] - areas[0]], atol=1e-12)


def test_linear_model_in_closed_form(linear, batch_for, scored):
    """The exact map's deletion is the logit less the sorted prefix sums, its insertion the bias plus them."""
    classifier = linear((3, 6, 6))
    batch = batch_for(classifier, 3)
    layer = classifier.module[1]
    maps = (layer.weight[batch.targets].view_as(batch.inputs) * batch.inputs).sum(1)
    metric = InsertionDeletion(steps=None, insertion_fill="zero", output="logit")
    columns = scored(metric, classifier, batch, maps)
    prefix = torch.cat(
        [torch.zeros(3, 1, dtype=torch.float64), maps.flatten(1).sort(1, descending=True).values.cumsum(1)], 1
    )
    bias = layer.bias[batch.targets][:, None]
    torch.testing.assert_close(columns["deletion_curve"], bias + prefix[:, -1:] - prefix, rtol=0, atol=1e-10)
    torch.testing.assert_close(columns["insertion_curve"], bias + prefix, rtol=0, atol=1e-10)
    assert (columns["insertion"] > columns["deletion"]).all()
    random = scored(metric, classifier, batch, torch.randn(3, 6, 6))
    assert (random["deletion"] > columns["deletion"]).all()
    assert (random["insertion"] < columns["insertion"]).all()


def test_same_fill_mirrors_insertion_and_deletion_of_the_reversed_order(convnet, batch_for, scored):
    classifier = convnet()
    batch = batch_for(classifier, 3)
    maps = torch.randn(3, 12, 12)
    metric = InsertionDeletion(steps=12, deletion_fill="black", insertion_fill="black")
    plain, negated = scored(metric, classifier, batch, maps), scored(metric, classifier, batch, -maps)
    torch.testing.assert_close(plain["insertion_curve"], negated["deletion_curve"].flip(1), rtol=0, atol=1e-12)
    torch.testing.assert_close(plain["insertion"], negated["deletion"], rtol=0, atol=1e-12)


def test_ends_are_the_probabilities_of_the_original_and_of_the_fills(convnet, batch_for, scored):
    classifier = convnet()
    batch = batch_for(classifier, 3)
    columns = scored(InsertionDeletion(insertion_fill="white"), classifier, batch, torch.randn(3, 12, 12))
    rows = torch.arange(3)
    clean, deleted, white = (
        classifier.module(images).softmax(1)[rows, batch.targets]
        for images in (batch.inputs, torch.zeros_like(batch.inputs), torch.full_like(batch.inputs, (1 - 0.4) / 0.2))
    )
    ends = torch.stack([columns[name][:, end] for name in CURVES for end in (0, -1)])
    torch.testing.assert_close(ends, torch.stack([clean, deleted, white, clean]), rtol=0, atol=1e-12)


def test_constant_map_scores_like_a_random_one(convnet, batch_for, scored, take):
    classifier = convnet((3, 8, 8))
    batch = take(batch_for(classifier, 1), [0] * 300)
    batch = type(batch)(
        tuple(range(300)), *(getattr(batch, name) for name in ("inputs", "labels", "targets")), None, ()
    )
    metric = InsertionDeletion(steps=16)
    constant = scored(metric, classifier, batch, torch.zeros(300, 8, 8))
    random = scored(metric, classifier, batch, torch.randn(300, 8, 8))
    for name in ("deletion", "insertion"):
        assert constant[name].std() > 0
        error = ((constant[name].var() + random[name].var()) / 300).sqrt()
        assert (constant[name].mean() - random[name].mean()).abs() < 4 * error


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_neither_batch_size_nor_neighbours_change_a_score(convnet, batch_for, scored, take, batch_size):
    classifier = convnet()
    batch = batch_for(classifier, 5)
    maps = torch.randn(5, 12, 12)
    maps[2] = 0
    metric = InsertionDeletion(steps=9)
    expected = scored(metric, classifier, batch, maps)
    classifier.batch_size = batch_size
    for which in ([0, 1, 2, 3, 4], [4, 2, 0], [2]):
        got = scored(metric, classifier, take(batch, which), maps[which])
        for name, values in got.items():
            torch.testing.assert_close(values, expected[name][which], rtol=0, atol=1e-9)


def test_model_calls_and_nominal_cost(convnet, batch_for, calls):
    classifier = convnet(batch_size=7)
    batch = batch_for(classifier, 5)
    metric = InsertionDeletion(steps=9)
    sizes = calls(classifier)
    responses = metric.respond(classifier, batch, Context())
    assert sizes == [5, 5, 5]
    sizes.clear()
    evaluated(metric, classifier, batch, torch.randn(5, 12, 12), responses=responses)
    assert len(sizes) == 2 * math.ceil(5 * 8 / 7)
    assert metric.cost(classifier) == (2 * 8 + 3, 0)


def test_a_curve_has_a_value_of_its_own_at_every_step(convnet, batch_for, scored):
    classifier = convnet(batch_size=32)
    batch = batch_for(classifier, 1)
    columns = scored(InsertionDeletion(steps=64), classifier, batch, torch.randn(1, 12, 12))
    for name in CURVES:
        assert columns[name].unique().numel() == 65


def test_logits_have_no_range(linear):
    assert {(s.low, s.high) for s in InsertionDeletion(output="logit").statistics} == {(None, None)}


def test_a_network_without_classes_is_refused(linear):
    with pytest.raises(Refusal, match="no probability"):
        InsertionDeletion().check(linear((1, 1, 2), classes=1, output="raw"))


@pytest.mark.parametrize("parameter", [{"steps": 0}, {"sigma": -1.0}])
def test_bad_parameters_are_named(parameter):
    with pytest.raises(ValueError, match=next(iter(parameter))):
        InsertionDeletion(**parameter)


def test_only_the_order_of_a_map_counts(convnet, batch_for, scored):
    classifier = convnet()
    batch = batch_for(classifier, 2)
    maps = torch.randn(2, 12, 12)
    plain = scored(InsertionDeletion(), classifier, batch, maps)
    stretched = scored(InsertionDeletion(), classifier, batch, 5 * maps.exp() - 2)
    torch.testing.assert_close(plain, stretched, rtol=0, atol=0)


def test_two_features_are_two_places(linear, batch_for, scored):
    classifier = linear((1, 1, 2))
    batch = batch_for(classifier, 3)
    columns = scored(InsertionDeletion(), classifier, batch, torch.randn(3, 1, 2))
    assert columns["deletion_curve"].shape == (3, 3)

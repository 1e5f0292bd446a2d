import math

import pytest
import torch

from xaibench.methods.context import Context
from xaibench.methods.gradients.integrated_gradients import IntegratedGradients
from xaibench.methods.removal.exact_shapley import ExactShapley
from xaibench.metrics import ranking
from xaibench.metrics.removal.completeness import Completeness
from xaibench.perturb.fills import filled

from .helpers import responded


def contributions(classifier, batch, fill):
    """The exact map of a linear model: w (x - fill), collapsed."""
    weights = classifier.module[1].weight[batch.targets].view_as(batch.inputs)
    return (weights * (batch.inputs - filled(batch.inputs, fill, classifier.preprocessing))).sum(1)


@pytest.mark.parametrize("fill", ["zero", "black", "white", "channel_mean", "blur"])
def test_closed_forms_on_a_linear_model(linear, batch_for, scored, fill):
    classifier = linear((3, 5, 7), batch_size=2)
    batch = batch_for(classifier, 4)
    maps = contributions(classifier, batch, fill)
    drop = maps.sum((1, 2))
    metric = Completeness(fill)
    columns = scored(metric, classifier, batch, maps)
    torch.testing.assert_close(columns["error"], torch.zeros(4).double(), rtol=0, atol=1e-12)
    # Nothing, twice and minus the contributions; one pixel too much; everything in one pixel.
    for factor in (0.0, 2.0, -1.0):
        columns = scored(metric, classifier, batch, factor * maps)
        torch.testing.assert_close(columns["error"], abs(factor - 1) * drop.abs())
        torch.testing.assert_close(columns["relative_error"], torch.full((4,), abs(factor - 1)).double())
    maps[:, 2, 3] += 0.75
    torch.testing.assert_close(scored(metric, classifier, batch, maps)["error"], torch.full((4,), 0.75).double())
    alone = torch.zeros_like(maps)
    alone[:, 4, 0] = drop
    assert scored(metric, classifier, batch, alone)["error"].max() < 1e-12


@pytest.mark.parametrize("fill", ["noise", "linear"])
def test_random_fills_are_those_of_the_responses(linear, batch_for, fill):
    classifier = linear((3, 6, 6))
    batch = batch_for(classifier, 3)
    metric = Completeness(fill)
    responses = responded(metric, classifier, batch)
    replaced = metric.removal.everything(classifier, batch, responses)
    weights = classifier.module[1].weight[batch.targets].view_as(batch.inputs)
    maps = (weights * (batch.inputs - replaced)).sum(1)
    columns = metric.evaluate(classifier, batch, maps, Context(responses=responses))
    assert columns["error"].max() < 1e-12 and responses["drop"].abs().min() > 1e-3


def test_additive_methods_keep_the_axiom_and_only_with_their_own_fill(convnet, batch_for, scored):
    classifier = convnet(batch_size=64)
    batch = batch_for(classifier, 3)

    def errors(method, fill):
        maps = method.attribute(classifier, batch.inputs, batch.targets, Context())
        maps = ranking.collapse(maps, Completeness.collapse, Completeness.sign)
        return scored(Completeness(fill), classifier, batch, maps)["relative_error"]

    assert errors(ExactShapley(players=4), "zero").max() < 1e-9
    assert errors(ExactShapley(players=4), "white").min() > 1e-3
    coarse, fine = (errors(IntegratedGradients(steps), "zero").max() for steps in (10, 1000))
    assert fine < 0.01 and fine < 0.2 * coarse


def test_an_image_that_is_its_own_fill_has_no_relative_error(linear, batch_for, scored):
    classifier = linear((3, 6, 6))
    batch = batch_for(classifier, 2)
    batch.inputs[0] = 0
    columns = scored(Completeness(), classifier, batch, torch.ones(2, 6, 6))
    assert columns["error"][0] == 36 and math.isnan(columns["relative_error"][0])
    assert columns["relative_error"][1] > 0


def test_probabilities_are_explained_where_the_classifier_says_so(convnet, batch_for, scored):
    classifier = convnet(output="probability")
    batch = batch_for(classifier, 3)
    columns = scored(Completeness(), classifier, batch, torch.zeros(3, 12, 12))
    expected = [
        abs((classifier.module(x[None]).softmax(1) - classifier.module(0 * x[None]).softmax(1))[0, target].item())
        for x, target in zip(batch.inputs, batch.targets)
    ]
    assert columns["error"].tolist() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("batch_size", [1, 7])
def test_neither_batch_size_nor_neighbours_change_a_score(convnet, batch_for, scored, take, batch_size):
    classifier = convnet()
    batch = batch_for(classifier, 5)
    maps = torch.randn(5, 12, 12)
    expected = scored(Completeness("noise"), classifier, batch, maps)
    classifier.batch_size = batch_size
    for which in ([0, 1, 2, 3, 4], [4, 2, 0], [2]):
        got = scored(Completeness("noise"), classifier, take(batch, which), maps[which])
        for name, values in got.items():
            torch.testing.assert_close(values, expected[name][which], rtol=0, atol=1e-9)


def test_two_passes_and_none_for_a_further_method(convnet, batch_for, calls):
    classifier = convnet(batch_size=64)
    batch = batch_for(classifier, 5)
    metric, sizes = Completeness(), calls(classifier)
    responses = responded(metric, classifier, batch)
    assert sum(sizes) == 5 * metric.cost(classifier)[0]
    metric.evaluate(classifier, batch, torch.randn(5, 12, 12), Context(responses=responses))
    assert sum(sizes) == 10


def test_a_bad_sigma_is_named():
    with pytest.raises(ValueError, match=r"sigma=0\.0"):
        Completeness("blur", 0.0)

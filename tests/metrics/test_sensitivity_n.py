import math

import numpy as np
import pytest
import torch

from xaibench.errors import Refusal
from xaibench.methods.context import Context
from xaibench.metrics.removal.sensitivity_n import SensitivityN

from .helpers import responded


@pytest.fixture
def shown():
    """The images that the network sees from now on, in order."""

    def watch(classifier) -> list[torch.Tensor]:
        images: list[torch.Tensor] = []
        classifier.module.register_forward_pre_hook(lambda module, inputs: images.extend(inputs[0].clone()))
        return images

    return watch


def exact(classifier, batch):
    """The contributions of pixels to a linear model's logits, with zero for what is removed."""
    weights = classifier.module[1].weight[batch.targets].view_as(batch.inputs)
    return (weights * batch.inputs).sum(1)


@pytest.mark.parametrize("side, tile", [(6, 1), (8, 2), (7, 3)])
@pytest.mark.parametrize("sizes", ["log", "percent"])
def test_exact_map_of_a_linear_model_scores_one_at_every_n(linear, batch_for, scored, side, tile, sizes):
    classifier = linear((3, side, side), batch_size=7)
    batch = batch_for(classifier, 4)
    metric = SensitivityN(tile=tile, points=6, sizes=sizes, sets=20)
    columns = scored(metric, classifier, batch, exact(classifier, batch))
    torch.testing.assert_close(columns["correlation_curve"], torch.ones(4, len(metric._counts(classifier))).double())
    torch.testing.assert_close(columns["sensitivity_n"], torch.ones(4).double())


@pytest.mark.parametrize("side, tile", [(8, 1), (8, 2), (7, 3)])
def test_equals_a_slow_loop_over_the_images_shown(convnet, batch_for, shown, side, tile):
    """The sets are read off the images that the network saw: a removed pixel is 0 in all channels."""
    classifier = convnet((3, side, side), batch_size=5)
    batch = batch_for(classifier, 3)
    maps = torch.randn(3, side, side, dtype=torch.float64)
    metric = SensitivityN(tile=tile, points=4, sets=6)
    images = shown(classifier)
    responses = responded(metric, classifier, batch)
    columns = metric.evaluate(classifier, batch, maps, Context(responses=responses))
    axis = metric.axes(classifier)["correlation_curve"].tolist()
    features = math.ceil(side / tile) ** 2
    versions = iter(images[3:])
    for b, target in enumerate(batch.targets):
        clean = classifier.module(batch.inputs[b : b + 1])[0, target].item()
        for point, share in enumerate(axis):
            sums, drops = [], []
            for _ in range(6):
                image, total, removed, left = next(versions), 0.0, set(), set()
                for row in range(side):
                    for column in range(side):
                        if (image[:, row, column] == 0).all():
                            total += maps[b, row, column].item()
                            removed.add((row // tile, column // tile))
                        else:
                            assert torch.equal(image[:, row, column], batch.inputs[b, :, row, column])
                            left.add((row // tile, column // tile))
                assert len(removed) == round(share * features) and not removed & left
                sums.append(total)
                drops.append(clean - classifier.module(image[None])[0, target].item())
            expected = np.corrcoef(sums, drops)[0, 1]
            assert columns["correlation_curve"][b, point].item() == pytest.approx(expected, abs=1e-10)
    torch.testing.assert_close(columns["sensitivity_n"], columns["correlation_curve"].mean(1))


def test_tiles_are_removed_whole(convnet, batch_for, shown):
    classifier = convnet((3, 8, 8))
    images = shown(classifier)
    responded(SensitivityN(tile=4, points=2, sets=10), classifier, batch_for(classifier, 2))
    removed = (torch.stack(images[2:]) == 0).all(1).view(-1, 2, 4, 2, 4).double().mean((2, 4))
    assert set(removed.unique().tolist()) == {0.0, 1.0}


def test_sets_are_uniform_and_each_image_has_its_own(linear, batch_for, shown):
    """Every pixel is in a set of n with probability n / N, and every pair of pixels with n (n - 1) / N (N - 1)."""
    classifier = linear((1, 3, 3))
    batch = batch_for(classifier, 200)
    images = shown(classifier)
    responded(SensitivityN(points=1, sizes="percent", largest=4 / 9, sets=20), classifier, batch)
    member = (torch.stack(images[200:]) == 0).view(200, 20, 9).double()
    assert (member.sum(2) == 4).all()
    assert len({tuple(rows.flatten().tolist()) for rows in member}) == 200
    together = torch.einsum("bsi,bsj->bij", member, member) / 20
    error = together.std(0) / math.sqrt(200)
    expected = torch.full((9, 9), 4 * 3 / (9 * 8)).double().fill_diagonal_(4 / 9)
    assert ((together.mean(0) - expected).abs() < 4.5 * error).all()


@pytest.mark.parametrize("side, tile", [(224, 8), (64, 1), (64, 8)])
def test_log_sizes_are_those_of_the_iba_paper(linear, side, tile):
    """round(exp(linspace(ln 1, ln(0.8 N), 16))) over N tiles; ours are without repeats."""
    features = (side // tile) ** 2
    expected = np.unique(np.round(np.exp(np.linspace(0, np.log(0.8 * features), 16))))
    metric = SensitivityN(tile=tile)
    axis = metric.axes(linear((1, side, side), classes=1))["correlation_curve"]
    np.testing.assert_allclose(axis * features, expected, rtol=1e-12)


def test_percent_sizes_are_even_shares(linear):
    axis = SensitivityN(sizes="percent", points=9, largest=0.9).axes(linear((1, 10, 10)))["correlation_curve"]
    np.testing.assert_allclose(axis, np.arange(1, 10) / 10, rtol=1e-12)


def test_agrees_with_the_definition_of_inputiba(convnet, batch_for, scored):
    """One list of sets for all images, zeros for what is removed, the mean of the images' correlations.

    Other sets than ours, so the two agree as estimates of one number: within 4.5 standard errors of a correlation."""
    classifier = convnet((3, 6, 6))
    batch = batch_for(classifier, 6)
    maps = torch.randn(6, 6, 6, dtype=torch.float64) + 3 * batch.inputs.sum(1)
    sets = 3000
    metric = SensitivityN(points=1, sizes="percent", largest=0.25, sets=sets)
    ours = scored(metric, classifier, batch, maps)["sensitivity_n"].numpy()
    generator = np.random.default_rng(0)
    shared = [generator.choice(36, 9, replace=False) for _ in range(sets)]
    for b in range(6):
        images = batch.inputs[b].flatten(1).repeat(sets, 1, 1)
        for image, members in zip(images, shared):
            image[:, members] = 0
        logits = classifier.logits(images.view(sets, 3, 6, 6))[:, batch.targets[b]]
        sums = [maps[b].flatten()[members].sum().item() for members in shared]
        assert np.corrcoef(sums, -logits)[0, 1] == pytest.approx(ours[b], abs=4.5 * math.sqrt(2 / sets))


def test_random_maps_score_zero_in_the_mean(convnet, batch_for, scored, take):
    classifier = convnet((3, 6, 6))
    batch = take(batch_for(classifier, 3), [0, 1, 2] * 50)
    batch = type(batch)(tuple(range(150)), batch.inputs, batch.labels, batch.targets, None, ())
    score = scored(SensitivityN(points=4, sets=20), classifier, batch, torch.randn(150, 6, 6))["sensitivity_n"]
    assert score.mean().abs() < 4 * score.std() / math.sqrt(150)
    assert score.std() > 0.01


def test_only_the_sign_and_the_shape_of_a_map_matter(convnet, batch_for, scored):
    classifier = convnet((3, 6, 6))
    batch = batch_for(classifier, 3)
    maps = torch.randn(3, 6, 6, dtype=torch.float64)
    metric = SensitivityN(points=5, sets=10)
    plain = scored(metric, classifier, batch, maps)["correlation_curve"]
    # At a fixed n, a constant added to every pixel adds the same to every sum.
    moved = scored(metric, classifier, batch, 7 * maps + 3)["correlation_curve"]
    negated = scored(metric, classifier, batch, -maps)["correlation_curve"]
    torch.testing.assert_close(moved, plain, rtol=0, atol=1e-12)
    torch.testing.assert_close(negated, -plain, rtol=0, atol=1e-12)


@pytest.mark.parametrize("value", [0.0, 0.1, -1e6, 1 / 3])
def test_a_constant_map_is_undefined_and_leaves_its_neighbours(convnet, batch_for, scored, value):
    classifier = convnet((3, 12, 12))
    batch = batch_for(classifier, 3)
    maps = torch.randn(3, 12, 12)
    expected = scored(SensitivityN(tile=3, points=5, sets=10), classifier, batch, maps)["sensitivity_n"]
    maps[1] = value
    columns = scored(SensitivityN(tile=3, points=5, sets=10), classifier, batch, maps)
    assert columns["correlation_curve"][1].isnan().all() and columns["sensitivity_n"][1].isnan()
    assert torch.equal(columns["sensitivity_n"][[0, 2]], expected[[0, 2]])


def test_a_map_that_no_set_of_some_size_meets_is_undefined(linear, batch_for, scored):
    """One pixel of 400 is missed by three sets of one pixel, but not by all those of 320."""
    classifier = linear((1, 20, 20))
    batch = batch_for(classifier, 1)
    maps = torch.zeros(1, 20, 20)
    maps[0, 0, 0] = 1
    columns = scored(SensitivityN(points=2, sets=10), classifier, batch, maps)
    assert columns["correlation_curve"].isfinite().tolist() == [[False, True]]
    assert columns["sensitivity_n"].isnan().all()


def test_a_model_that_ignores_its_input_is_undefined(linear, batch_for, scored):
    classifier = linear((1, 6, 6))
    classifier.module[1].weight.zero_()
    batch = batch_for(classifier, 2)
    assert (
        scored(SensitivityN(points=3, sets=5), classifier, batch, torch.randn(2, 6, 6))["sensitivity_n"].isnan().all()
    )


@pytest.mark.parametrize("fill", ["channel_mean", "blur", "noise"])
def test_linear_model_with_another_fill(linear, batch_for, fill):
    """What is removed from a linear model is the weight times the difference from the fill."""
    classifier = linear((3, 6, 6))
    batch = batch_for(classifier, 3)
    metric = SensitivityN(points=4, sets=10, fill=fill, sigma=2.0)
    responses = responded(metric, classifier, batch)
    fills = metric.removal.everything(classifier, batch, responses)
    weights = classifier.module[1].weight[batch.targets].view_as(batch.inputs)
    maps = (weights * (batch.inputs - fills)).sum(1)
    columns = metric.evaluate(classifier, batch, maps, Context(responses=responses))
    torch.testing.assert_close(columns["correlation_curve"], torch.ones(3, 4).double())


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_neither_batch_size_nor_neighbours_change_a_score(convnet, batch_for, scored, take, batch_size):
    classifier = convnet()
    batch = batch_for(classifier, 5)
    maps = torch.randn(5, 12, 12)
    metric = SensitivityN(tile=2, points=4, sets=8, fill="noise")
    expected = scored(metric, classifier, batch, maps)
    classifier.batch_size = batch_size
    for which in ([0, 1, 2, 3, 4], [4, 2, 0], [2]):
        got = scored(metric, classifier, take(batch, which), maps[which])
        for name, values in got.items():
            torch.testing.assert_close(values, expected[name][which], rtol=0, atol=1e-9)


def test_only_the_responses_call_the_model(convnet, batch_for, calls):
    classifier = convnet(batch_size=7)
    batch = batch_for(classifier, 5)
    metric = SensitivityN(points=3, sets=10)
    sizes = calls(classifier)
    responses = responded(metric, classifier, batch)
    assert sum(sizes) == 5 * metric.cost(classifier)[0] == 5 * 31
    assert len(sizes) == 1 + math.ceil(5 * 30 / 7)
    sizes.clear()
    metric.evaluate(classifier, batch, torch.randn(5, 12, 12), Context(responses=responses))
    assert sizes == []


def test_two_features_are_the_fewest(linear, batch_for, scored):
    classifier = linear((1, 1, 2))
    batch = batch_for(classifier, 3)
    columns = scored(SensitivityN(), classifier, batch, exact(classifier, batch))
    torch.testing.assert_close(columns["correlation_curve"], torch.ones(3, 1).double())
    with pytest.raises(Refusal, match="tile=8"):
        SensitivityN(tile=8).check(classifier)


@pytest.mark.parametrize(
    "parameter", [{"tile": 0}, {"points": 0}, {"largest": 1.0}, {"largest": 0.0}, {"sets": 2}, {"sigma": 0.0}]
)
def test_bad_parameters_are_named(parameter):
    with pytest.raises(ValueError, match=next(iter(parameter))):
        SensitivityN(**parameter)

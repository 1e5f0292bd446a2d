import math

import pytest
import torch

from xaibench.methods.context import Context
from xaibench.metrics import ranking
from xaibench.metrics.removal.infidelity import Infidelity

from .helpers import responded

PERTURBATIONS = ("square", "gaussian")


@pytest.fixture
def shown():
    """The images that the network sees from now on, in order."""

    def watch(classifier) -> list[torch.Tensor]:
        images: list[torch.Tensor] = []
        classifier.module.register_forward_pre_hook(lambda module, inputs: images.extend(inputs[0].clone()))
        return images

    return watch


def exact(classifier, batch, perturbation):
    """The exact map of a linear model: contributions where pixels are removed, slopes where noise is added."""
    weights = classifier.module[1].weight[batch.targets].view_as(batch.inputs)
    return weights * batch.inputs if perturbation == "square" else weights


@pytest.mark.parametrize("perturbation", PERTURBATIONS)
@pytest.mark.parametrize("normalize", [False, True])
def test_exact_map_of_a_linear_model_scores_zero(linear, batch_for, scored, perturbation, normalize):
    classifier = linear((3, 7, 9), batch_size=7)
    batch = batch_for(classifier, 3)
    metric = Infidelity(perturbation, draws=20, normalize=normalize)
    columns = scored(metric, classifier, batch, exact(classifier, batch, perturbation))
    torch.testing.assert_close(columns["infidelity"], torch.zeros(3).double(), rtol=0, atol=1e-20)
    assert (columns["power"] > 1e-3).all()


@pytest.mark.parametrize("perturbation", PERTURBATIONS)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("normalize", [False, True])
def test_equals_a_slow_loop_over_the_images_shown(convnet, batch_for, shown, perturbation, channels, normalize):
    """The perturbations are read off the images that the network saw. A map with one channel holds for all three."""
    classifier = convnet((3, 7, 9), batch_size=5)
    batch = batch_for(classifier, 3)
    maps = torch.randn(3, channels, 7, 9, dtype=torch.float64)
    metric = Infidelity(perturbation, draws=8, normalize=normalize)
    images = shown(classifier)
    columns = metric.evaluate(classifier, batch, maps, Context(responses=responded(metric, classifier, batch)))
    versions = iter(images[:24])
    for b, target in enumerate(batch.targets):
        clean = classifier.module(batch.inputs[b : b + 1])[0, target].item()
        predicted, drops = [], []
        for _ in range(8):
            image, product = next(versions), 0.0
            for row in range(7):
                for column in range(9):
                    if perturbation == "square":
                        if (image[:, row, column] == 0).all():
                            product += maps[b, :, row, column].sum().item()
                        else:
                            assert torch.equal(image[:, row, column], batch.inputs[b, :, row, column])
                    else:
                        for channel in range(3):
                            change = batch.inputs[b, channel, row, column] - image[channel, row, column]
                            product += (change * maps[b, channel % channels, row, column]).item()
            predicted.append(product)
            drops.append(clean - classifier.module(image[None])[0, target].item())
        factor = sum(p * d for p, d in zip(predicted, drops)) / sum(p * p for p in predicted) if normalize else 1.0
        expected = sum((factor * p - d) ** 2 for p, d in zip(predicted, drops)) / 8
        assert columns["infidelity"][b].item() == pytest.approx(expected, rel=1e-9)
        assert columns["power"][b].item() == pytest.approx(sum(d * d for d in drops) / 8, rel=1e-9)


def test_squares_are_drawn_uniformly_from_all_that_fit(linear, batch_for, shown):
    """On 3x4 pixels with sides up to 2 there are 12 + 6; each is drawn as often as every other."""
    classifier = linear((1, 3, 4))
    batch = batch_for(classifier, 1)
    images = shown(classifier)
    draws = 9000
    responded(Infidelity(draws=draws, largest=0.6), classifier, batch)
    removed = (torch.stack(images[:draws]) == 0)[:, 0]
    squares, counts = removed.flatten(1).long().unique(dim=0, return_counts=True)
    expected = set()
    for side in (1, 2):
        for top in range(3 - side + 1):
            for left in range(4 - side + 1):
                square = torch.zeros(3, 4, dtype=torch.long)
                square[top : top + side, left : left + side] = 1
                expected.add(tuple(square.flatten().tolist()))
    assert set(map(tuple, squares.tolist())) == expected
    assert (counts - draws / 18).abs().max() < 4.5 * math.sqrt(draws / 18)


def test_the_largest_square_is_the_authors_on_their_images(linear, batch_for, shown):
    classifier = linear((1, 28, 28))
    batch = batch_for(classifier, 1)
    images = shown(classifier)
    responded(Infidelity(draws=600), classifier, batch)
    sizes = (torch.stack(images[:600]) == 0).flatten(1).sum(1).double().sqrt()
    assert set(sizes.tolist()) == set(range(1, 11))


def test_noise_has_the_given_deviation_in_every_channel(linear, batch_for, shown):
    classifier = linear((3, 20, 20))
    batch = batch_for(classifier, 1)
    images = shown(classifier)
    responded(Infidelity("gaussian", draws=50, noise=0.5), classifier, batch)
    noise = torch.stack(images[:50]) - batch.inputs
    assert noise.std((0, 2, 3)).tolist() == pytest.approx([0.5] * 3, rel=4 / math.sqrt(2 * 20000))
    assert noise.mean().abs() < 4 * 0.5 / math.sqrt(60000)
    # No two draws are alike.
    correlation = torch.corrcoef(noise.flatten(1)).fill_diagonal_(0)
    assert correlation.abs().max() < 5 / math.sqrt(1200)


@pytest.mark.parametrize("perturbation", PERTURBATIONS)
def test_a_map_of_zeros_scores_the_power(convnet, batch_for, scored, perturbation):
    classifier = convnet()
    batch = batch_for(classifier, 2)
    for normalize in (False, True):
        columns = scored(
            Infidelity(perturbation, 10, normalize=normalize), classifier, batch, torch.zeros(2, 1, 12, 12)
        )
        torch.testing.assert_close(columns["infidelity"], columns["power"])
        assert (columns["power"] > 0).all()


def test_normalizing_takes_the_scale_and_the_sign_away(convnet, batch_for, scored):
    classifier = convnet()
    batch = batch_for(classifier, 3)
    maps = torch.randn(3, 3, 12, 12, dtype=torch.float64)
    metric, plain = Infidelity(draws=10), Infidelity(draws=10, normalize=False)
    expected = scored(metric, classifier, batch, maps)["infidelity"]
    for factor in (1e-6, 500.0, -1.0):
        torch.testing.assert_close(scored(metric, classifier, batch, factor * maps)["infidelity"], expected)
    # No factor does better than the one that it takes.
    for factor in (0.5, 0.9, 1.0, 1.1, 2.0):
        assert (scored(plain, classifier, batch, factor * maps)["infidelity"] >= expected).all()
    columns = scored(metric, classifier, batch, maps)
    assert (columns["infidelity"] <= columns["power"]).all()


@pytest.mark.parametrize("fill", ["channel_mean", "noise"])
def test_linear_model_with_another_fill(linear, batch_for, fill):
    classifier = linear((3, 6, 6))
    batch = batch_for(classifier, 3)
    metric = Infidelity(draws=10, fill=fill, normalize=False)
    responses = responded(metric, classifier, batch)
    fills = metric.removal.everything(classifier, batch, responses)
    weights = classifier.module[1].weight[batch.targets].view_as(batch.inputs)
    columns = metric.evaluate(classifier, batch, weights * (batch.inputs - fills), Context(responses=responses))
    torch.testing.assert_close(columns["infidelity"], torch.zeros(3).double(), rtol=0, atol=1e-20)


@pytest.mark.parametrize("batch_size", [1, 7, 64])
@pytest.mark.parametrize("perturbation", PERTURBATIONS)
def test_neither_batch_size_nor_neighbours_change_a_score(convnet, batch_for, scored, take, perturbation, batch_size):
    classifier = convnet()
    batch = batch_for(classifier, 5)
    maps = torch.randn(5, 3, 12, 12)
    metric = Infidelity(perturbation, draws=9)
    expected = scored(metric, classifier, batch, maps)
    classifier.batch_size = batch_size
    for which in ([0, 1, 2, 3, 4], [4, 2, 0], [2]):
        got = scored(metric, classifier, take(batch, which), maps[which])
        for name, values in got.items():
            torch.testing.assert_close(values, expected[name][which], rtol=0, atol=1e-9)


@pytest.mark.parametrize("perturbation", PERTURBATIONS)
def test_only_the_responses_call_the_model(convnet, batch_for, calls, perturbation):
    classifier = convnet(batch_size=7)
    batch = batch_for(classifier, 5)
    metric = Infidelity(perturbation, draws=10)
    sizes = calls(classifier)
    responses = responded(metric, classifier, batch)
    assert sum(sizes) == 5 * metric.cost(classifier)[0] == 5 * 11
    assert len(sizes) == 1 + math.ceil(5 * 10 / 7)
    sizes.clear()
    metric.evaluate(classifier, batch, torch.randn(5, 3, 12, 12), Context(responses=responses))
    assert sizes == []


def test_what_a_perturbation_does_not_use_is_not_in_the_key_of_its_responses():
    def key(**parameters):
        return Infidelity(**parameters).responses_spec()

    assert key(noise=0.1) == key(noise=0.3) == key(normalize=False)
    assert key(perturbation="gaussian", fill="black") == key(perturbation="gaussian", largest=0.1)
    assert key(perturbation="gaussian", noise=0.1) != key(perturbation="gaussian", noise=0.3)


def test_maps_are_read_with_their_channels():
    maps = torch.randn(2, 3, 4, 4)
    assert torch.equal(ranking.collapse(maps, Infidelity.collapse, Infidelity.sign), maps)


@pytest.mark.parametrize(
    "parameter",
    [{"perturbation": "squares"}, {"draws": 0}, {"largest": 0.0}, {"largest": 1.1}, {"noise": 0.0}, {"sigma": 0.0}],
)
def test_bad_parameters_are_named(parameter):
    with pytest.raises(ValueError, match=next(iter(parameter))):
        Infidelity(**parameter)

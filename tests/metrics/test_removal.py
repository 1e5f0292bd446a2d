"""What removed pixels show when that is random or inferred: `noise` and `linear` as fills of the metrics."""

import pytest
import torch

from xaibench.metrics.ranking import places
from xaibench.metrics.removal._perturbation import Removal, curve
from xaibench.metrics.removal.degradation import Degradation
from xaibench.metrics.removal.insertion_deletion import InsertionDeletion
from xaibench.perturb.imputer import impute
from xaibench.rng import sample_generators

from .helpers import evaluated, responded

FILLS = ["noise", "linear"]
METRICS = {
    "degradation": lambda fill: Degradation(tile=3, steps=6, fill=fill),
    "insertion_deletion": lambda fill: InsertionDeletion(steps=6, deletion_fill=fill, insertion_fill=fill),
}


def seen_by(classifier):
    """Every image that the network sees from now on."""
    images: list[torch.Tensor] = []
    classifier.module.register_forward_pre_hook(lambda module, inputs: images.extend(inputs[0].clone()))
    return images


def drawn(removal, batch, seed=0):
    return removal.draw(sample_generators(seed, "respond", batch.samples))


def test_noise_is_uniform_in_pixel_values_and_belongs_to_the_sample(convnet, batch_for, take):
    classifier = convnet((3, 64, 64))
    batch = batch_for(classifier, 3)
    removal = Removal("noise")
    fills = removal.everything(classifier, batch, drawn(removal, batch))
    pixels = classifier.preprocessing.denormalise(fills).flatten().sort().values
    # Kolmogorov-Smirnov: the distance of 36864 uniform values from their distribution exceeds 0.0105 once in 1000.
    expected = torch.arange(1, len(pixels) + 1) / len(pixels)
    assert (pixels - expected).abs().max() < 0.0105
    assert not torch.equal(fills[0], fills[1])
    swapped = take(batch, [2, 0])
    assert torch.equal(removal.everything(classifier, swapped, drawn(removal, swapped)), fills[[2, 0]])
    other = removal.everything(classifier, batch, drawn(removal, batch, seed=1))
    assert not torch.equal(other, fills)


def test_noise_does_not_depend_on_what_is_removed(convnet, batch_for):
    classifier = convnet()
    batch = batch_for(classifier, 2)
    removal = Removal("noise")
    draws = drawn(removal, batch)
    fills, remove = removal.everything(classifier, batch, draws), removal.of(classifier, batch, draws)
    masks = (torch.rand(4, 1, 12, 12) < 0.5).double()
    out = torch.empty(4, 3, 12, 12, dtype=torch.float64)
    remove([(1, slice(0, 4), slice(0, 4))], masks, out)
    assert torch.equal(out, torch.where(masks > 0, fills[1], batch.inputs[1]))


def test_linear_is_the_imputer_plus_noise_of_a_hundredth_of_the_pixel_range(convnet, batch_for):
    classifier = convnet((3, 64, 64))
    batch = batch_for(classifier, 2)
    removal = Removal("linear")
    remove = removal.of(classifier, batch, drawn(removal, batch))
    masks = (torch.rand(3, 1, 64, 64) < torch.tensor([0.2, 0.5, 0.9]).view(3, 1, 1, 1)).double()
    out = torch.empty(3, 3, 64, 64, dtype=torch.float64)
    remove([(0, slice(0, 3), slice(0, 3))], masks, out)
    noise = (out - impute(batch.inputs[[0]].expand(3, -1, -1, -1), masks)) * 0.2  # the classifier's std
    assert (noise[(masks == 0).expand_as(noise)] == 0).all()
    for i in range(3):
        values = noise[i][(masks[i] > 0).expand_as(noise[i])]
        assert values.mean().abs() < 4 * 0.01 / len(values) ** 0.5
        assert (values.std() - 0.01).abs() < 4 * 0.01 / (2 * len(values)) ** 0.5
    # One field of noise for each image: where two masks remove the same pixel, it is the same.
    both = ((masks[0] > 0) & (masks[2] > 0)).expand_as(noise[0])
    torch.testing.assert_close(noise[0][both], noise[2][both], rtol=0, atol=1e-12)


@pytest.mark.parametrize("fill", FILLS)
def test_a_path_ends_where_everything_is_removed(convnet, batch_for, fill):
    classifier = convnet()
    batch = batch_for(classifier, 3)
    removal = Removal(fill)
    draws = drawn(removal, batch)
    order = places(torch.randn(3, 12, 12), sample_generators(0, "metric", batch.samples))
    got = curve(classifier, batch.inputs, removal.of(classifier, batch, draws), order, [0, 144], batch.targets)
    ends = (batch.inputs, removal.everything(classifier, batch, draws))
    expected = torch.stack([classifier.scores(images, batch.targets, "probability") for images in ends], 1)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("fill", FILLS)
@pytest.mark.parametrize("name", METRICS)
def test_every_method_meets_the_same_fill(convnet, batch_for, name, fill):
    """Same responses, another method's map and generators: the same pixel, removed from the same image, is the same."""
    classifier = convnet()
    batch = batch_for(classifier, 1)
    metric = METRICS[name](fill)
    responses = responded(metric, classifier, batch)
    ramp = torch.arange(144.0).view(1, 12, 12)
    images = seen_by(classifier)
    shown = []
    # The order of removal is the same; the scale of the map and the seed are those of another method.
    for maps, seed in ((ramp, 1), (3 * ramp - 7, 2)):
        evaluated(metric, classifier, batch, maps, seed, responses=responses)
        shown.append(torch.stack(images))
        images.clear()
    assert torch.equal(*shown)
    again = responded(metric, classifier, batch)
    assert again.keys() == responses.keys() and all(torch.equal(again[key], responses[key]) for key in again)


@pytest.mark.parametrize("name, end", [("degradation", "degraded"), ("insertion_deletion", "deletion_end")])
def test_the_fully_removed_end_is_the_responses_value(convnet, batch_for, name, end):
    classifier = convnet()
    batch = batch_for(classifier, 3)
    metric = METRICS[name]("noise")
    responses = responded(metric, classifier, batch)
    maps = torch.randn(3, 12, 12)
    columns = evaluated(metric, classifier, batch, maps, responses=responses)
    pixels = torch.stack(
        [torch.rand(3, 12, 12, generator=torch.Generator().manual_seed(int(s))) for s in responses["fill_seed"]]
    )
    fills = classifier.preprocessing.normalise(pixels.double())
    expected = classifier.scores(fills, batch.targets, "probability")
    curve_name = {"degradation": "morf_curve", "insertion_deletion": "deletion_curve"}[name]
    torch.testing.assert_close(columns[curve_name][:, -1], expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(responses[end], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("batch_size", [1, 7, 64])
@pytest.mark.parametrize("fill", FILLS)
@pytest.mark.parametrize("name", METRICS)
def test_neither_batch_size_nor_neighbours_change_a_score(convnet, batch_for, scored, take, name, fill, batch_size):
    classifier = convnet(batch_size=32)
    batch = batch_for(classifier, 4)
    maps = torch.randn(4, 12, 12)
    maps[2] = 0
    metric = METRICS[name](fill)
    expected = scored(metric, classifier, batch, maps)
    classifier.batch_size = batch_size
    for which in ([0, 1, 2, 3], [3, 2, 0], [2]):
        got = scored(metric, classifier, take(batch, which), maps[which])
        for key, values in got.items():
            torch.testing.assert_close(values, expected[key][which], rtol=0, atol=1e-9)


@pytest.mark.parametrize("fill", FILLS)
def test_another_seed_is_another_fill(convnet, batch_for, scored, fill):
    classifier = convnet()
    batch = batch_for(classifier, 3)
    maps = torch.arange(144.0).view(1, 12, 12).expand(3, -1, -1)
    first, second = (scored(METRICS["degradation"](fill), classifier, batch, maps, seed)["morf"] for seed in (0, 1))
    assert (first != second).all()

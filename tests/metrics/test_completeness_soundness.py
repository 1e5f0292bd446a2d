"""Completeness and soundness: closed forms of a network that one pixel decides, and the definition as a slow loop."""

import itertools

import pytest
import torch
from torch import nn

from xaibench.datasets.base import Batch
from xaibench.errors import Refusal
from xaibench.metrics.removal.completeness_soundness import CompletenessSoundness
from xaibench.models.classifier import Classifier

from .helpers import evaluated, responded


class Switch(nn.Module):
    """Label 0 if the first pixel is 1, label 1 if it is 0, with certainty."""

    def forward(self, x):
        first = 1000 * (x[:, 0, 0, 0] - 0.5)
        return torch.stack([first, -first], dim=1)


def explained(metric, classifier, batch, maps_of, seed=0):
    """The columns, with maps_of[b, label] as the map of each label; and the labels that were asked for."""
    asked = []

    def explain(inputs, targets, purpose, masks=None):
        assert torch.equal(inputs, batch.inputs)
        asked.append(targets)
        return maps_of[torch.arange(len(targets)), targets]

    responses = responded(metric, classifier, batch, seed)
    maps = maps_of[torch.arange(len(batch.samples)), batch.targets]
    return evaluated(metric, classifier, batch, maps, seed, responses=responses, explain=explain), asked


@pytest.mark.parametrize("place_0, place_1", [(0, 15), (0, 0), (3, 9), (15, 15), (15, 0)])
def test_closed_form_where_one_pixel_decides(place_0, place_1):
    """The pixel comes k-th: before it the image shows label 1, after it label 0, so g_0 = (16 - k - 1/2) / 16."""
    classifier = Classifier("switch", Switch(), (1, 4, 4))
    inputs = torch.ones(1, 1, 4, 4, dtype=torch.float64)
    batch = Batch((7,), inputs, torch.tensor([0]), torch.tensor([0]), None, ())
    maps = torch.arange(16, 0, -1, dtype=torch.float64).view(1, 1, 4, 4).repeat(1, 2, 1, 1)
    for label, place in enumerate((place_0, place_1)):
        maps[0, label, 0, 0] = 15.5 - place  # the others have 15, 14, ... 1
        assert (maps[0, label] > maps[0, label, 0, 0]).sum() == place
    columns, _ = explained(CompletenessSoundness(steps=None, eps1=0.1, eps2=0.2), classifier, batch, maps)
    g_0, g_1 = (15.5 - place_0) / 16, (place_1 + 0.5) / 16
    # Label 1 has probability 0 on the image: whatever its map, it is complete; label 0 has 1: it is sound.
    assert columns["completeness"].item() == pytest.approx(max(g_0, 0.1), rel=1e-12)
    assert columns["soundness"].item() == pytest.approx(min(0.2 / g_1, 1), rel=1e-12)


def slowly(classifier, image, maps, labels, steps, eps1, eps2):
    """The definition for one image, pixel by pixel; `maps` without ties."""
    height, width = image.shape[1:]
    pixels, shares = height * width, []
    for label in labels:
        ordered = sorted(range(pixels), key=lambda pixel, label=label: -maps[label].flatten()[pixel].item())
        points = []
        for step in range(steps + 1):
            count = round(step * pixels / steps)
            shown = torch.zeros_like(image)
            for pixel in ordered[:count]:
                shown[:, pixel // width, pixel % width] = image[:, pixel // width, pixel % width]
            points.append((count / pixels, classifier.module(shown[None]).softmax(1)[0, label].item()))
        g = sum((b[0] - a[0]) * (a[1] + b[1]) / 2 for a, b in itertools.pairwise(points))
        f = points[-1][1]
        shares.append((min(max(g, eps1) / f, 1), min(max(f, eps2) / g, 1)))
    return min(alpha for alpha, _ in shares), min(beta for _, beta in shares)


@pytest.mark.parametrize("top", [None, 1, 2])
@pytest.mark.parametrize("eps", [1e-4, 0.2])
def test_equals_a_slow_loop(convnet, batch_for, top, eps):
    classifier = convnet((3, 5, 6), classes=4, batch_size=7)
    batch = batch_for(classifier, 5)
    maps = torch.randn(5, 4, 5, 6, dtype=torch.float64)
    metric = CompletenessSoundness(labels=top, steps=7, eps1=eps, eps2=eps / 2)
    columns, asked = explained(metric, classifier, batch, maps)
    assert len(asked) == metric.explanations(classifier) == (4 if top is None else top) - 1
    probabilities = classifier.logits(batch.inputs).softmax(1)
    for b, target in enumerate(batch.targets.tolist()):
        others = sorted(set(range(4)) - {target}, key=lambda label, b=b: -probabilities[b, label].item())
        labels = [target, *others][:top]
        expected = slowly(classifier, batch.inputs[b], maps[b], labels, 7, eps, eps / 2)
        actual = columns["completeness"][b].item(), columns["soundness"][b].item()
        assert actual == pytest.approx(expected, rel=1e-9)
    assert columns["completeness"].std() > 0.01
    if top is None:
        assert (columns["soundness"] < 0.99).sum() > 1


def test_nominal_cost_is_what_the_network_sees(convnet, batch_for, calls):
    classifier = convnet((3, 8, 8), classes=3)
    metric = CompletenessSoundness(steps=6)
    cost, batch = metric.cost(classifier)[0], batch_for(classifier, 4)
    sizes = calls(classifier)
    explained(metric, classifier, batch, torch.randn(4, 3, 8, 8))
    assert sum(sizes) == 4 * cost + 1  # one more to count the classes


def test_a_map_of_one_label_that_is_not_finite_makes_its_image_undefined(convnet, batch_for, take):
    classifier = convnet(classes=3)
    batch = batch_for(classifier, 3)
    maps = torch.randn(3, 3, 12, 12, dtype=torch.float64)
    whole, _ = explained(CompletenessSoundness(steps=5), classifier, batch, maps)
    maps[1, (batch.targets[1] + 1) % 3, 0, 0] = torch.nan
    columns, _ = explained(CompletenessSoundness(steps=5), classifier, batch, maps)
    for name, column in columns.items():
        assert column.isnan().tolist() == [False, True, False]
        torch.testing.assert_close(column[[0, 2]], whole[name][[0, 2]], rtol=1e-9, atol=0)


def test_equal_pixels_come_in_the_samples_own_random_order(convnet, batch_for, take):
    classifier = convnet(classes=3)
    batch = batch_for(classifier, 3)
    maps = torch.zeros(3, 3, 12, 12, dtype=torch.float64)
    together, _ = explained(CompletenessSoundness(steps=5), classifier, batch, maps)
    alone, _ = explained(CompletenessSoundness(steps=5), classifier, take(batch, [2]), maps[[2]])
    torch.testing.assert_close(together["completeness"][[2]], alone["completeness"], rtol=1e-9, atol=0)
    other, _ = explained(CompletenessSoundness(steps=5), classifier, batch, maps, seed=1)
    assert (other["completeness"] != together["completeness"]).any()


def test_the_name_says_which_labels(linear):
    for metric, names in (
        (CompletenessSoundness(), ["completeness", "soundness"]),
        (CompletenessSoundness(labels=4), ["completeness_top4", "soundness_top4"]),
    ):
        assert [s.name for s in metric.statistics] == names
        assert metric.statistics_on(None, linear(classes=4)) == metric.statistics


@pytest.mark.parametrize(("classes", "taken", "name"), [(10, 10, "completeness"), (11, 5, "completeness_top5")])
def test_more_than_ten_classes_take_the_five_likeliest(linear, classes, taken, name):
    metric, classifier = CompletenessSoundness(), linear(classes=classes)
    metric.check(classifier)
    assert metric.statistics_on(None, classifier)[0].name == name
    assert metric.explanations(classifier) == taken - 1


def test_refusals_name_the_way_out(linear):
    with pytest.raises(Refusal, match=r"metric\.labels=5: linear has 4 classes"):
        CompletenessSoundness(labels=5).check(linear(classes=4))
    with pytest.raises(Refusal, match="no classes"):
        CompletenessSoundness().check(linear(classes=1, output="raw"))


@pytest.mark.parametrize(
    "parameters, named",
    [({"labels": 0}, "labels=0"), ({"steps": 0}, "steps=0"), ({"eps1": 0.0}, "eps1=0.0"), ({"eps2": 1.5}, "eps2=1.5")],
)
def test_mistakes_are_named(parameters, named):
    with pytest.raises(ValueError, match=named):
        CompletenessSoundness(**parameters)

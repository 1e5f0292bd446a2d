import math

import numpy as np
import pytest
import torch
from torch import nn

from xaibench.errors import Refusal
from xaibench.metrics.removal.lerf import LeRF
from xaibench.models.classifier import Classifier

# Published curves and areas (Khakzar's thesis): the change after removing 1 % ... 10 %, and the area in its table,
# which is cut, not rounded, to three digits.
PUBLISHED = {
    "cifar gradient": ((0.216, 0.285, 0.327, 0.361, 0.390, 0.428, 0.450, 0.477, 0.510, 0.540), 0.037),
    "cifar gradcam": ((0.076, 0.092, 0.103, 0.111, 0.120, 0.126, 0.123, 0.134, 0.136, 0.148), 0.010),
    "birdsnap gradient": ((0.833, 0.924, 0.953, 0.966, 0.973, 0.975, 0.978, 0.978, 0.979, 0.982), 0.090),
    "birdsnap neuron_mct": ((0.061, 0.075, 0.090, 0.103, 0.112, 0.124, 0.137, 0.148, 0.158, 0.166), 0.010),
    "imagenet gradient": ((0.324, 0.393, 0.446, 0.479, 0.506, 0.528, 0.548, 0.568, 0.583, 0.599), 0.046),
    "imagenet gbp": ((0.255, 0.348, 0.405, 0.453, 0.489, 0.517, 0.541, 0.563, 0.580, 0.591), 0.044),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_curves_have_their_published_areas(name, scored, batch_for):
    """A linear model whose output falls along the published curve while the pixels go in their order."""
    changes, area = PUBLISHED[name]
    module = nn.Sequential(nn.Flatten(), nn.Linear(1000, 1, bias=False)).double()
    steps = torch.tensor(changes, dtype=torch.float64).diff(prepend=torch.zeros(1, dtype=torch.float64))
    module[1].weight.data[0, :100] = (steps / 10).repeat_interleave(10)
    module[1].weight.data[0, 100:] = (1 - changes[-1]) / 900
    classifier = Classifier("falling", module, (1, 10, 100), output="raw")
    batch = batch_for(classifier, 1)
    batch.inputs.fill_(1)
    columns = scored(LeRF(output="logit"), classifier, batch, torch.arange(1000.0).view(1, 10, 100))
    np.testing.assert_allclose(columns["change_curve"][0], (0, *changes), atol=1e-12)
    assert 0 <= columns["lerf"].item() - area < 0.001


def slow_lerf(classifier, image, target, attribution, largest, steps):
    """One image, pixels in lists, set to zero one by one."""
    _, height, width = image.shape
    pixels = [(row, column) for row in range(height) for column in range(width)]
    order = sorted(pixels, key=lambda pixel: attribution[pixel].item())
    clean = classifier.module(image[None])[0].softmax(0)[target].item()
    xs, ys = [0.0], [0.0]
    for step in range(1, steps + 1):
        count = round(largest * len(pixels) * step / steps)
        changed = image.clone()
        for row, column in order[:count]:
            changed[:, row, column] = 0
        probability = classifier.module(changed[None])[0].softmax(0)[target].item()
        xs.append(count / len(pixels))
        ys.append(abs((clean - probability) / clean))
    return ys, sum((b - a) * (p + q) / 2 for a, b, p, q in zip(xs, xs[1:], ys, ys[1:]))


@pytest.mark.parametrize("side, largest, steps", [(12, 0.1, 10), (11, 0.25, 4), (7, 1.0, 5)])
def test_equals_a_slow_loop(convnet, batch_for, scored, side, largest, steps):
    classifier = convnet((3, side, side), batch_size=5)
    batch = batch_for(classifier, 3)
    maps = torch.randn(3, side, side, dtype=torch.float64)
    columns = scored(LeRF(largest, steps), classifier, batch, maps)
    for b in range(3):
        ys, area = slow_lerf(classifier, batch.inputs[b], batch.targets[b], maps[b], largest, steps)
        np.testing.assert_allclose(columns["change_curve"][b], ys, atol=1e-11)
        assert columns["lerf"][b].item() == pytest.approx(area, abs=1e-12)


def test_pixels_without_influence_can_go_for_nothing(linear, batch_for, scored):
    classifier = linear((1, 10, 10))
    weights = classifier.module[1].weight
    weights[:, ::5] = 0
    batch = batch_for(classifier, 4)
    used = (weights != 0).any(0).double().view(1, 10, 10).expand(4, 10, 10)
    torch.testing.assert_close(
        scored(LeRF(), classifier, batch, used)["lerf"], torch.zeros(4).double(), rtol=0, atol=1e-12
    )
    assert (scored(LeRF(), classifier, batch, -used)["lerf"] > 1e-3).all()


def test_ties_are_broken_at_random_by_sample(convnet, batch_for, scored, take):
    """Constant maps of one image under other sample ids score like random maps."""
    classifier = convnet()
    batch = take(batch_for(classifier, 1), [0] * 300)
    batch = type(batch)(tuple(range(300)), batch.inputs, batch.labels, batch.targets, None, ())
    constant = scored(LeRF(), classifier, batch, torch.ones(300, 12, 12))["lerf"]
    random = scored(LeRF(), classifier, batch, torch.randn(300, 12, 12))["lerf"]
    assert constant.std() > 0
    assert (constant.mean() - random.mean()).abs() < 4 * ((constant.var() + random.var()) / 300).sqrt()


def test_a_tiny_probability_is_large_and_zero_is_undefined(scored, batch_for):
    """Logits x and 0: p = sigmoid(x). From x = -60 to 0 the change is e^60 / 2; at x = -800, p underflows."""
    module = nn.Linear(1, 2).double()
    module.weight.data = torch.tensor([[1.0], [0.0]]).double()
    module.bias.data.zero_()
    classifier = Classifier("pixel", nn.Sequential(nn.Flatten(), module), (1, 1, 1))
    batch = batch_for(classifier, 3)
    batch.inputs.view(-1).copy_(torch.tensor([-60.0, -800.0, 3.0]))
    batch.targets.zero_()
    columns = scored(LeRF(largest=1.0, steps=1), classifier, batch, torch.zeros(3, 1, 1))
    score = columns["lerf"]
    assert score[0].item() == pytest.approx(math.exp(60) / 4, rel=1e-9)
    assert score[1].isnan() and columns["clean"][1] == 0
    assert score[2].item() == pytest.approx((1 - 0.5 * (1 + math.exp(-3))) / 2, rel=1e-9)


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_neither_batch_size_nor_neighbours_change_a_score(convnet, batch_for, scored, take, batch_size):
    classifier = convnet()
    batch = batch_for(classifier, 5)
    maps = torch.randn(5, 12, 12)
    maps[2] = 0
    expected = scored(LeRF(fill="noise"), classifier, batch, maps)
    classifier.batch_size = batch_size
    for which in ([0, 1, 2, 3, 4], [4, 2, 0], [2]):
        got = scored(LeRF(fill="noise"), classifier, take(batch, which), maps[which])
        for name, values in got.items():
            torch.testing.assert_close(values, expected[name][which], rtol=0, atol=1e-9)


def test_model_calls_are_the_nominal_cost(convnet, batch_for, scored, calls):
    classifier = convnet(batch_size=7)
    batch = batch_for(classifier, 5)
    sizes = calls(classifier)
    scored(LeRF(), classifier, batch, torch.randn(5, 12, 12))
    assert sum(sizes) == 5 * LeRF().cost(classifier)[0] == 5 * 11


def test_pairings_that_cannot_be_scored_are_refused(linear):
    with pytest.raises(Refusal, match=r"largest=0\.1"):
        LeRF().check(linear((1, 1, 2)))
    with pytest.raises(Refusal, match="no probability"):
        LeRF().check(linear(classes=1, output="raw"))


@pytest.mark.parametrize("parameter", [{"largest": 0.0}, {"largest": 1.5}, {"steps": 0}, {"sigma": 0.0}])
def test_bad_parameters_are_named(parameter):
    with pytest.raises(ValueError, match=next(iter(parameter))):
        LeRF(**parameter)

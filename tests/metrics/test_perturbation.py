import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from xaibench.metrics.ranking import places
from xaibench.metrics.removal._perturbation import counts_of, curve, drops
from xaibench.metrics.removal.completeness import Completeness
from xaibench.metrics.removal.degradation import Degradation
from xaibench.metrics.removal.infidelity import Infidelity
from xaibench.metrics.removal.sensitivity_n import SensitivityN
from xaibench.models.classifier import Classifier
from xaibench.perturb.perturbed import replacing
from xaibench.rng import sample_generators
from xaibench.scores.statistics import estimate


def inputs_fills_places(classifier, batch, tile=1):
    maps = torch.randn(len(batch.inputs), *classifier.input_size[1:])
    fills = torch.randn_like(batch.inputs)
    return batch.inputs, fills, places(maps, sample_generators(0, "test", batch.samples), tile)


def path(classifier, inputs, fills, order, counts, targets, output="probability", keep=False):
    return curve(classifier, inputs, replacing(inputs, fills), order, counts, targets, output, keep)


@pytest.mark.parametrize("features, steps", [(64, 64), (784, 100), (16, 100), (50176, 64), (10, 4), (7, 3), (1, 5)])
def test_counts_are_the_rounded_grid_without_repeats(features, steps):
    expected = np.unique(np.round(np.linspace(0, 1, steps + 1) * features).astype(int))
    assert counts_of(features, steps) == expected.tolist()


def test_counts_without_steps_take_every_feature():
    assert counts_of(5, None) == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("output", ["probability", "logit"])
def test_curve_equals_a_loop_over_single_pixels(convnet, batch_for, output):
    classifier = convnet((3, 5, 7), batch_size=4)
    batch = batch_for(classifier, 3)
    inputs, fills, order = inputs_fills_places(classifier, batch)
    counts = [0, 1, 8, 34, 35]
    got = path(classifier, inputs, fills, order, counts, batch.targets, output)
    for b, target in enumerate(batch.targets):
        for x, count in enumerate(counts):
            image = inputs[b].clone()
            for row in range(5):
                for column in range(7):
                    if order[b, row, column] < count:
                        for channel in range(3):
                            image[channel, row, column] = fills[b, channel, row, column]
            logits = classifier.module(image[None])[0]
            expected = logits.softmax(0)[target] if output == "probability" else logits[target]
            assert got[b, x].item() == pytest.approx(expected.item(), abs=1e-12)


def test_ends_are_the_start_and_the_end(convnet, batch_for):
    classifier = convnet()
    batch = batch_for(classifier, 2)
    inputs, fills, order = inputs_fills_places(classifier, batch, tile=4)
    got = path(classifier, inputs, fills, order, [0, 9], batch.targets)
    expected = [classifier.scores(images, batch.targets, "probability") for images in (inputs, fills)]
    torch.testing.assert_close(got, torch.stack(expected, 1), rtol=0, atol=1e-12)


def test_keeping_the_first_is_removing_the_others(convnet, batch_for):
    classifier = convnet()
    batch = batch_for(classifier, 2)
    inputs, fills, order = inputs_fills_places(classifier, batch)
    counts = counts_of(144, 12)
    kept = path(classifier, inputs, fills, order, counts, batch.targets, keep=True)
    swapped = path(classifier, fills, inputs, order, counts, batch.targets)
    backwards = path(classifier, inputs, fills, 143 - order, counts, batch.targets).flip(1)
    torch.testing.assert_close(kept, swapped, rtol=0, atol=1e-12)
    torch.testing.assert_close(kept, backwards, rtol=0, atol=1e-12)


@pytest.mark.parametrize("batch_size", [1, 7, 64, 1000])
def test_model_calls_are_what_the_batch_size_allows(convnet, batch_for, calls, batch_size):
    classifier = convnet(batch_size=batch_size)
    batch = batch_for(classifier, 5)
    sizes = calls(classifier)
    path(classifier, *inputs_fills_places(classifier, batch), range(0, 144, 9), batch.targets)
    assert sum(sizes) == 5 * 16
    assert len(sizes) == math.ceil(5 * 16 / batch_size)
    assert max(sizes) <= batch_size


def test_no_points_are_no_calls(convnet, batch_for, calls):
    classifier = convnet()
    batch = batch_for(classifier, 2)
    sizes = calls(classifier)
    assert path(classifier, *inputs_fills_places(classifier, batch), [], batch.targets).shape == (2, 0)
    assert sizes == []


def test_the_inputs_are_left_as_they_were(convnet, batch_for):
    classifier = convnet()
    batch = batch_for(classifier, 2)
    inputs, fills, order = inputs_fills_places(classifier, batch)
    before = inputs.clone(), fills.clone()
    path(classifier, inputs, fills, order, [0, 70, 144], batch.targets)
    assert torch.equal(inputs, before[0]) and torch.equal(fills, before[1])


def test_every_pixel_shown_is_exactly_one_of_the_two(convnet, batch_for):
    classifier = convnet()
    classifier.module.float()
    batch = batch_for(classifier, 2)
    inputs, fills, order = inputs_fills_places(classifier, batch)
    shown: list[torch.Tensor] = []
    classifier.module.register_forward_pre_hook(lambda module, images: shown.append(images[0].clone()))
    path(classifier, inputs, fills, order, [0, 50, 100], batch.targets)
    expected = [torch.where(order[b] < count, fills[b], inputs[b]) for b in range(2) for count in (0, 50, 100)]
    assert torch.equal(torch.cat(shown), torch.stack(expected))


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_a_cuda_device_gives_the_same_curve(convnet, batch_for):
    classifier = convnet(batch_size=7)
    batch = batch_for(classifier, 3)
    inputs, fills, order = inputs_fills_places(classifier, batch, tile=4)
    expected = path(classifier, inputs, fills, order, range(10), batch.targets)
    classifier.module.cuda()
    got = path(classifier, inputs.cuda(), fills.cuda(), order.cuda(), range(10), batch.targets.cuda())
    torch.testing.assert_close(got.cpu(), expected, rtol=0, atol=1e-9)


# ---- differences that are rounding -----------------------------------------------------------------------------------


def test_a_difference_is_rounding_below_sixteen_spacings_of_its_type_and_size():
    for dtype in (torch.float32, torch.float64):
        eps = torch.finfo(dtype).eps
        before = torch.tensor([1.0, 1.0, 1000.0, 1000.0, 1.0, 0.0, 0.0], dtype=dtype)
        apart = torch.tensor([15.0, 17.0, 15000.0, 17000.0, 17.0, 0.0, 1e-9], dtype=dtype) * eps
        found = drops(before, (before - apart)[:, None])[:, 0]
        assert (found != 0).tolist() == [False, True, False, True, True, False, True]
    # One difference that is none keeps all of its sample.
    before, after = torch.ones(2), torch.tensor([[1 - 2**-23, 1.0], [1 - 2**-23, 0.5]])
    assert torch.equal(drops(before, after), torch.tensor([[0.0, 0.0], [2**-23, 0.5]]))


@pytest.fixture
def colour(batch_for):
    """A float32 network of the mean colour, to which an image's own channel means say all; and images."""
    module = nn.Sequential(nn.Conv2d(3, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    classifier = Classifier("colour", module, (3, 24, 24))
    batch = batch_for(classifier, 24)
    batch = replace(batch, inputs=3 * batch.inputs + 2)
    return classifier, replace(batch, targets=classifier.logits(batch.inputs).argmax(1))


def test_what_divides_by_rounding_is_undefined(colour, scored):
    classifier, batch = colour
    maps = torch.randn(24, 24, 24)
    found = scored(Degradation(), classifier, batch, maps)
    assert (found["top1"] != found["degraded"]).any()  # they do differ
    assert (found["range"] == 0).all()
    assert torch.equal(found["rounding"] == 1, found["top1"] != found["degraded"])
    for name in ("area", "morf_above", "lerf_above"):
        columns = [found[column].double().numpy() for column in (name, "range")]
        assert np.isnan(estimate(*columns, "mean").value)
    black = scored(Degradation(fill="black"), classifier, batch, maps)
    assert (black["range"] != 0).all() and (black["rounding"] == 0).all()
    completeness = scored(Completeness(fill="channel_mean"), classifier, batch, maps)
    assert completeness["relative_error"].isnan().all() and completeness["error"].isfinite().all()
    known = scored(SensitivityN(tile=8, sets=5), classifier, batch, maps)
    assert known["sensitivity_n"].isfinite().all()


class Certain(nn.Module):
    """Rounding that depends on the input, and nothing else of it."""

    def forward(self, x):
        dust = 1e-7 * (x.sum((1, 2, 3)) * 100).sin()
        return torch.stack([10 + 10 * dust, 5 + dust], dim=1)


def test_correlations_and_shares_of_rounding_are_undefined(batch_for, scored):
    classifier = Classifier("certain", Certain(), (3, 24, 24))
    batch = batch_for(classifier, 4)
    found = scored(SensitivityN(tile=8, sets=5), classifier, batch, torch.randn(4, 24, 24))
    assert found["sensitivity_n"].isnan().all()
    found = scored(Infidelity(draws=5), classifier, batch, torch.randn(4, 1, 24, 24))
    assert (found["power"] == 0).all()
    columns = [found[name].double().numpy() for name in ("infidelity", "power")]
    assert np.isnan(estimate(*columns, "mean").value)

import math

import pytest
import torch

from tests.perturb.helpers import solved
from xaibench.errors import Refusal
from xaibench.metrics.removal.road import Road

from .helpers import evaluated, responded

SHARES = [10, 20, 30, 40, 50, 60, 70, 80, 90]


def slow_road(classifier, image, target, attribution, noise, percentages, score):
    """ROAD as one would explain it: sort the pixels, remove the first, solve for them, add noise, ask the model."""
    _, height, width = image.shape
    pixels = [(row, column) for row in range(height) for column in range(width)]
    most_first = sorted(pixels, key=lambda pixel: -float(attribution[pixel]))
    curves = []
    for order in (most_first, most_first[::-1]):
        scores = []
        for percentage in percentages:
            mask = torch.zeros(1, height, width, dtype=torch.float64)
            for pixel in order[: round(percentage / 100 * height * width)]:
                mask[0, *pixel] = 1
            imputed = solved(image, mask) + mask * noise
            scores.append(score(classifier.module(imputed[None])[0], target))
        curves.append(scores)
    return curves


SCORES = {
    "probability": lambda logits, target: logits.softmax(0)[target].item(),
    "logit": lambda logits, target: logits[target].item(),
    "accuracy": lambda logits, target: float(logits.argmax() == target),
}


@pytest.mark.parametrize("output", SCORES)
@pytest.mark.parametrize("size, percentages", [((3, 8, 8), SHARES), ((1, 7, 9), [5, 50, 95])])
def test_equals_a_slow_loop(convnet, batch_for, size, percentages, output):
    classifier = convnet(size, batch_size=5)
    batch = batch_for(classifier, 3)
    maps = torch.randn(3, *size[1:], dtype=torch.float64)
    metric = Road(percentages, output)
    responses = responded(metric, classifier, batch)
    columns = evaluated(metric, classifier, batch, maps, responses=responses)
    for b in range(3):
        generator = torch.Generator().manual_seed(int(responses["fill_seed"][b]))
        noise = 0.01 * torch.randn(size, generator=generator).double() / 0.2
        morf, lerf = slow_road(
            classifier, batch.inputs[b], batch.targets[b], maps[b], noise, percentages, SCORES[output]
        )
        assert columns["morf_curve"][b].tolist() == pytest.approx(morf, abs=1e-7)
        assert columns["lerf_curve"][b].tolist() == pytest.approx(lerf, abs=1e-7)
        means = [sum(values) / len(percentages) for values in (morf, lerf)]
        got = [columns[name][b].item() for name in ("morf", "lerf", "road")]
        assert got == pytest.approx([*means, (means[1] - means[0]) / 2], abs=1e-7)
    pixels = size[1] * size[2]
    expected = [round(percentage / 100 * pixels) / pixels for percentage in percentages]
    assert metric.axes(classifier)["morf_curve"].tolist() == expected


def test_exactly_the_share_is_removed_where_a_map_is_sparse(convnet, batch_for):
    """16 of 256 pixels are not 0: a percentile as threshold would remove all 256 at 10, 50 and 90 %."""
    classifier = convnet((3, 16, 16))
    batch = batch_for(classifier, 2)
    maps = torch.zeros(2, 16, 16)
    maps[:, 4:8, 4:8] = 1 + torch.rand(2, 4, 4)
    metric = Road()
    responses = responded(metric, classifier, batch)
    images: list[torch.Tensor] = []
    classifier.module.register_forward_pre_hook(lambda module, inputs: images.extend(inputs[0].clone()))
    evaluated(metric, classifier, batch, maps, responses=responses)
    morf, lerf = torch.stack(images).view(2, 2, 9, 3, 16, 16)
    for removed in ((morf != batch.inputs[:, None]), (lerf != batch.inputs[:, None])):
        # A place loses all its channels, on colour images with a map of one channel, too.
        assert torch.equal(removed.all(2), removed.any(2))
        assert removed.any(2).sum((2, 3)).tolist() == [[round(share / 100 * 256) for share in SHARES]] * 2
    assert (morf != batch.inputs[:, None]).any(2)[..., 4:8, 4:8].all()
    assert not (lerf != batch.inputs[:, None]).any(2)[..., 4:8, 4:8].any()


def test_negated_map_gives_the_negated_score(convnet, batch_for, scored):
    classifier = convnet()
    batch = batch_for(classifier, 4)
    maps = torch.randn(4, 12, 12)
    plain, negated = scored(Road(), classifier, batch, maps), scored(Road(), classifier, batch, -maps)
    torch.testing.assert_close(negated["road"], -plain["road"], rtol=0, atol=1e-9)
    torch.testing.assert_close(negated["morf_curve"], plain["lerf_curve"], rtol=0, atol=1e-9)
    assert plain["road"].abs().max() > 1e-2


def test_constant_and_random_maps_score_zero_on_average(convnet, batch_for, scored, take):
    count = 100
    classifier = convnet((3, 8, 8))
    batch = take(batch_for(classifier, 1), [0] * count)
    batch = type(batch)(
        tuple(range(count)), *(getattr(batch, name) for name in ("inputs", "labels", "targets")), None, ()
    )
    for maps in (torch.zeros(count, 8, 8), torch.randn(count, 8, 8)):
        road = scored(Road([30, 70]), classifier, batch, maps)["road"]
        assert road.std() > 0
        assert road.mean().abs() < 4 * road.std() / math.sqrt(count)


def test_a_planted_object_is_found(batch_for, linear, scored):
    """Only the pixels of an object count, and they stand out of their surroundings: their map beats 20 random ones."""
    classifier = linear((1, 12, 12), classes=2)
    weight = torch.zeros(2, 1, 12, 12, dtype=torch.float64)
    weight[0, 0, 3:7, 3:7] = 1.0
    classifier.module[1].weight.data = weight.flatten(1)
    batch = batch_for(classifier, 1)
    batch.inputs[:] = 0.1 * batch.inputs
    batch.inputs[..., 3:7, 3:7] += 1.0
    batch.targets[:] = 0
    object_map = weight[0]
    found = scored(Road([20]), classifier, batch, object_map)
    # Removed, the object takes the value of its surroundings; with the other pixels removed, it is untouched.
    bias = classifier.module[1].bias
    whole = classifier.module(batch.inputs).softmax(1)[0, 0]
    without = torch.stack([bias[0], bias[1]]).softmax(0)[0]
    assert found["lerf"].item() == pytest.approx(whole.item(), abs=1e-12)
    assert found["morf"].item() == pytest.approx(without.item(), abs=0.2)
    for _ in range(20):
        assert scored(Road([20]), classifier, batch, torch.randn(1, 12, 12))["road"] < found["road"]


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_every_sample_is_scored_whatever_the_batch(convnet, batch_for, scored, take, batch_size):
    """Quantus' ROAD reports the first batch alone. Ours gives each sample its own score, in any company."""
    classifier = convnet()
    batch = batch_for(classifier, 9)
    maps = torch.randn(9, 12, 12)
    maps[2] = 0
    metric = Road([10, 50, 90])
    expected = scored(metric, classifier, batch, maps)
    assert expected["road"].unique().numel() == 9
    classifier.batch_size = batch_size
    for which in ([*range(9)], [8, 2, 0, 5], [2]):
        got = scored(metric, classifier, take(batch, which), maps[which])
        for name, values in got.items():
            torch.testing.assert_close(values, expected[name][which], rtol=0, atol=1e-9)


def test_model_calls_and_nominal_cost(convnet, batch_for, calls):
    classifier = convnet(batch_size=7)
    batch = batch_for(classifier, 5)
    metric = Road()
    sizes = calls(classifier)
    responses = responded(metric, classifier, batch)
    assert sizes == []
    evaluated(metric, classifier, batch, torch.randn(5, 12, 12), responses=responses)
    assert len(sizes) == 2 * math.ceil(5 * 9 / 7)
    assert metric.cost(classifier) == (18, 0)


def test_pairings_that_cannot_be_scored_are_refused(linear):
    with pytest.raises(Refusal, match="1x2 pixels"):
        Road().check(linear((1, 1, 2)))
    for output in ("probability", "accuracy"):
        with pytest.raises(Refusal, match=f"no {output}"):
            Road(output=output).check(linear((1, 8, 8), classes=1, output="raw"))
    Road(output="logit").check(linear((1, 8, 8), classes=1, output="raw"))
    assert {(s.low, s.high) for s in Road(output="logit").statistics} == {(None, None)}


@pytest.mark.parametrize("percentages", [[], [0, 50], [50, 100], [50, 50], [60, 40], [-1, 5]])
def test_bad_percentages_are_named(percentages):
    with pytest.raises(ValueError, match="percentages="):
        Road(percentages)

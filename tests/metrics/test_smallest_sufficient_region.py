import math

import pytest
import torch

from xaibench.errors import Refusal
from xaibench.metrics.removal.smallest_sufficient_region import SmallestSufficientRegion

NAMES = ("smallest_sufficient_region", "area", "probability")


def resized(image, height, width):
    """Bilinear resizing, pixel by pixel: centres at half, the border repeated outwards."""
    _, h, w = image.shape
    result = torch.empty(len(image), height, width, dtype=image.dtype)
    for row in range(height):
        for column in range(width):
            y = min(max((row + 0.5) * h / height - 0.5, 0), h - 1)
            x = min(max((column + 0.5) * w / width - 0.5, 0), w - 1)
            up, left = int(y), int(x)
            down, right = min(up + 1, h - 1), min(left + 1, w - 1)
            above = (1 - (x - left)) * image[:, up, left] + (x - left) * image[:, up, right]
            below = (1 - (x - left)) * image[:, down, left] + (x - left) * image[:, down, right]
            result[:, row, column] = (1 - (y - up)) * above + (y - up) * below
    return result


def slow_score(classifier, image, target, attribution, threshold, of):
    """The box around all pixels above the threshold, one by one; its crop; the model; the formula."""
    height, width = attribution.shape
    values = [[max(float(value), 0) for value in row] for row in attribution]
    everything = [value for row in values for value in row]
    level = max(everything) if of == "max" else sum(everything) / len(everything)
    salient = [(y, x) for y in range(height) for x in range(width) if values[y][x] >= threshold * level]
    if not salient or level == 0:
        return [math.nan] * 3
    rows, columns = [y for y, _ in salient], [x for _, x in salient]
    crop = image[:, min(rows) : max(rows) + 1, min(columns) : max(columns) + 1]
    p = classifier.module(resized(crop, height, width)[None])[0].softmax(0)[target].item()
    area = crop[0].numel() / (height * width)
    return [math.log(max(area, 0.05)) - math.log(p), area, p]


def blobs(count, height, width):
    """A few positive places each, so that boxes come in all sizes."""
    maps = 0.1 * torch.randn(count, height, width)
    for attribution in maps:
        y, x = torch.randint(height - 3, ()), torch.randint(width - 3, ())
        attribution[y : y + torch.randint(1, 4, ()), x : x + torch.randint(1, 4, ())] += 1 + torch.rand(())
    return maps


@pytest.mark.parametrize("threshold, of", [(0.5, "max"), (0.1, "max"), (1.0, "max"), (2.0, "mean"), (30.0, "mean")])
def test_equals_a_slow_loop(convnet, batch_for, scored, threshold, of):
    classifier = convnet((3, 11, 9), batch_size=3)
    batch = batch_for(classifier, 10)
    maps = blobs(10, 11, 9).double()
    maps[3], maps[4] = 0, -1
    metric = SmallestSufficientRegion(threshold, of)
    columns = scored(metric, classifier, batch, maps.clamp(min=0))  # as sign=positive hands them over
    for b in range(10):
        expected = slow_score(classifier, batch.inputs[b], batch.targets[b], maps[b], threshold, of)
        got = [columns[name][b].item() for name in NAMES]
        assert got == pytest.approx(expected, abs=1e-9, nan_ok=True)
    assert all(math.isnan(columns["area"][b]) for b in (3, 4))


def test_a_constant_map_is_the_whole_image(convnet, batch_for, scored):
    classifier = convnet()
    batch = batch_for(classifier, 4)
    columns = scored(SmallestSufficientRegion(), classifier, batch, torch.ones(4, 12, 12))
    clean = classifier.scores(batch.inputs, batch.targets, "probability")
    torch.testing.assert_close(columns["probability"], clean, rtol=0, atol=1e-12)
    torch.testing.assert_close(columns["smallest_sufficient_region"], -clean.log(), rtol=0, atol=1e-12)


def test_a_single_pixel_shows_its_colour_and_counts_as_a_twentieth(convnet, batch_for, scored):
    classifier = convnet()
    batch = batch_for(classifier, 2)
    maps = torch.zeros(2, 12, 12)
    maps[0, 3, 7] = maps[1, 11, 0] = 2.0
    columns = scored(SmallestSufficientRegion(), classifier, batch, maps)
    colours = torch.stack([batch.inputs[0, :, 3, 7], batch.inputs[1, :, 11, 0]])
    images = colours[..., None, None].expand(2, 3, 12, 12).contiguous()
    p = classifier.scores(images, batch.targets, "probability")
    assert columns["area"].tolist() == pytest.approx([1 / 144] * 2, abs=1e-12)
    expected = math.log(0.05) - p.log()
    torch.testing.assert_close(columns["smallest_sufficient_region"], expected, rtol=0, atol=1e-9)


def test_an_impossible_class_stays_finite(linear, batch_for, scored):
    classifier = linear((1, 4, 4), classes=2)
    classifier.module[1].weight.data.zero_()
    classifier.module[1].bias.data = torch.tensor([0.0, 5000.0], dtype=torch.float64)
    batch = batch_for(classifier, 2)
    batch.targets[:] = 0
    score = scored(SmallestSufficientRegion(), classifier, batch, torch.ones(2, 4, 4))["smallest_sufficient_region"]
    assert score.tolist() == pytest.approx([-math.log(torch.finfo(torch.float64).tiny)] * 2)


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_neither_batch_size_nor_neighbours_change_a_score(convnet, batch_for, scored, take, batch_size):
    classifier = convnet()
    batch = batch_for(classifier, 9)
    maps = blobs(9, 12, 12).clamp(min=0)
    maps[2] = 0
    metric = SmallestSufficientRegion()
    expected = scored(metric, classifier, batch, maps)
    classifier.batch_size = batch_size
    for which in ([*range(9)], [8, 2, 0, 5], [2]):
        got = scored(metric, classifier, take(batch, which), maps[which])
        for name, values in got.items():
            torch.testing.assert_close(values, expected[name][which], rtol=0, atol=1e-9, equal_nan=True)


def test_one_pass_for_each_sample(convnet, batch_for, calls, scored):
    classifier = convnet(batch_size=4)
    batch = batch_for(classifier, 9)
    sizes = calls(classifier)
    metric = SmallestSufficientRegion()
    scored(metric, classifier, batch, torch.rand(9, 12, 12))
    assert sizes == [4, 4, 1]
    assert metric.cost(classifier) == (1, 0)


def test_a_network_without_classes_is_refused(linear):
    with pytest.raises(Refusal, match="no probability"):
        SmallestSufficientRegion().check(linear((1, 4, 4), classes=1, output="raw"))


@pytest.mark.parametrize("threshold, of", [(0.0, "max"), (1.1, "max"), (-1.0, "mean")])
def test_bad_thresholds_are_named(threshold, of):
    with pytest.raises(ValueError, match="threshold="):
        SmallestSufficientRegion(threshold, of)

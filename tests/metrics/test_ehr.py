import math
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
import torch

from xaibench.metrics.ground_truth.ehr import EHR


def exact(values, step, steps):
    """The quantile step / steps, linear between values; its place is a fraction, not a rounded number."""
    place = Fraction(step, steps) * (len(values) - 1)
    lower, values = math.floor(place), sorted(values)
    return values[lower] + float(place - lower) * (values[min(lower + 1, len(values) - 1)] - values[lower])


def numpy_s(values, step, steps):
    return np.quantile(values, np.linspace(0, 1, steps + 1)[step])


def released(heatmap, mask, weight_by_heat=True, base_threshold=0.1, quantiles=11, quantile=exact):
    """The algorithm of the released code, for one map in [0, 1], pixel by pixel; empty maps score 0."""
    pixels = [(float(heat), bool(inside)) for heat, inside in zip(heatmap.flatten(), mask.flatten())]
    pixels = [(heat if heat >= base_threshold else 0.0, inside) for heat, inside in pixels]
    survivors = [heat for heat, _ in pixels if heat > 0]
    if not survivors:
        return 0.0
    ratios = []
    for step in range(quantiles):
        threshold = min(quantile(survivors, step, quantiles - 1), 0.99 * max(survivors))
        selected = [(heat, inside) for heat, inside in pixels if heat >= threshold]
        ratios.append(sum(heat if weight_by_heat else 1.0 for heat, inside in selected if inside) / len(selected))
    return sum((a + b) / 2 for a, b in pairwise(ratios)) / (quantiles - 1)


@pytest.fixture
def ehr(linear, batch_for, scored):
    def score(metric, maps, masks):
        classifier = linear((1, *maps.shape[1:]))
        return scored(metric, classifier, batch_for(classifier, len(maps), masks=masks), maps)["ehr"]

    return score


def test_figure_11(ehr, figure_11):
    """The thesis prints the ranking a > b, c; the figures are those of the released code."""
    maps, mask = figure_11
    masks = mask.expand(3, -1, -1)
    assert ehr(EHR(scale="none"), maps, masks).tolist() == pytest.approx([1, 0.4375, 0.25], abs=1e-12)
    assert ehr(EHR(scale="none", weight_by_heat=False), maps, masks).tolist() == pytest.approx([1, 0.4375, 1])
    # Scaled by its own maximum, the third map is the first one.
    assert ehr(EHR(), maps, masks).tolist() == pytest.approx([1, 0.4375, 1], abs=1e-12)


def test_two_fixtures_of_the_released_tests(ehr):
    maps = torch.zeros(3, 24, 24)
    mask = torch.zeros(24, 24, dtype=torch.bool)
    mask[8:16, 8:16] = True
    maps[0, 8:16, 8:16] = 1.0  # the whole box
    maps[1, 10:14, 10:14] = 1.0  # a part of it
    maps[2, 4:20, 4:20], maps[2, 8:16, 8:16] = 0.9, 1.0  # a halo of twice the width
    whole, part, halo = ehr(EHR(scale="none"), maps, mask.expand(3, -1, -1)).tolist()
    assert whole == pytest.approx(1, abs=0.01) and part == pytest.approx(1, abs=0.01) and halo < 0.8


@pytest.mark.parametrize("weight_by_heat", [True, False])
@pytest.mark.parametrize("base_threshold, quantiles", [(0.1, 11), (0.35, 4)])
def test_equals_the_released_algorithm(ehr, weight_by_heat, base_threshold, quantiles):
    maps = torch.rand(40, 9, 8)
    maps[20:] = maps[20:] ** torch.arange(1, 21).view(-1, 1, 1)  # ever fewer pixels survive
    maps[39] = 0.09
    masks = torch.rand(40, 9, 8) < 0.3
    ours = ehr(EHR("none", weight_by_heat, base_threshold, quantiles), maps, masks)
    theirs = [released(m, mask, weight_by_heat, base_threshold, quantiles) for m, mask in zip(maps, masks)]
    assert ours.tolist() == pytest.approx(theirs, abs=1e-9)
    assert ours[39] == 0 and len({round(score, 6) for score in theirs}) > 30


@pytest.mark.parametrize("weight_by_heat", [True, False])
def test_equals_it_with_numpy_s_quantiles(ehr, weight_by_heat):
    """Of 72 survivors: no place is a whole number then, where numpy rounds the threshold above the very quantile."""
    maps, masks = 0.1 + 0.9 * torch.rand(30, 9, 8), torch.rand(30, 9, 8) < 0.3
    theirs = [released(m, mask, weight_by_heat, quantile=numpy_s) for m, mask in zip(maps, masks)]
    assert ehr(EHR("none", weight_by_heat), maps, masks).tolist() == pytest.approx(theirs, abs=1e-9)


def test_the_default_scale_is_the_maximum(ehr):
    maps = 40 * torch.randn(20, 9, 8)
    masks = torch.rand(20, 9, 8) < 0.3
    theirs = [released(m.double() / m.double().max(), mask) for m, mask in zip(maps, masks)]
    assert ehr(EHR(), maps, masks).tolist() == pytest.approx(theirs, abs=1e-9)


def test_a_pixel_that_is_the_quantile_is_selected(ehr):
    """Eleven survivors and eleven quantiles: quantile i is survivor i, exactly. In floating point 3 * 0.1 * 10 > 3."""
    heat = (torch.arange(11) + 5) / 15
    mask = torch.tensor([True, False] * 5 + [True])
    # Of the survivors from i on, those in the mask, by hand; the last quantile is lowered to 0.99, the same pixel.
    ratios = [float(heat[i:][mask[i:]].double().sum() / (11 - i)) for i in range(11)]
    expected = (sum(ratios) - (ratios[0] + ratios[-1]) / 2) / 10
    assert ehr(EHR("none"), heat.view(1, 1, 11), mask.view(1, 1, 11)).item() == pytest.approx(expected, abs=1e-12)


def test_nothing_survives(ehr):
    maps = torch.stack([torch.zeros(4, 4), torch.full((4, 4), -1.0), torch.full((4, 4), 0.05)])
    mask = torch.eye(4, dtype=torch.bool).expand(3, -1, -1)
    for weight in (True, False):
        assert ehr(EHR("none", weight), maps, mask).tolist() == [0, 0, 0]
        assert ehr(EHR("max", weight), maps[:2], mask[:2]).tolist() == [0, 0]


def test_a_constant_map_has_the_share_of_the_image_that_the_mask_covers(ehr):
    mask = torch.zeros(1, 4, 4, dtype=torch.bool)
    mask[0, 0, :3] = True
    assert ehr(EHR(), torch.full((1, 4, 4), 7.0), mask).item() == pytest.approx(3 / 16)


def test_unscaled_values_above_one_are_undefined(ehr):
    maps = torch.rand(2, 4, 4)
    maps[1, 0, 0] = 1.5
    scores = ehr(EHR("none"), maps, torch.eye(4, dtype=torch.bool).expand(2, -1, -1))
    assert 0 < scores[0] < 1 and math.isnan(scores[1])


@pytest.mark.parametrize("parameters", [{"base_threshold": 0.0}, {"base_threshold": 1.0}, {"quantiles": 1}])
def test_mistakes_are_named(parameters):
    ((name, value),) = parameters.items()
    with pytest.raises(ValueError, match=f"{name}={value}: expected"):
        EHR(**parameters)

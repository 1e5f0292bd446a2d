import math

import numpy as np
import pytest
import torch

from xaibench.errors import Refusal
from xaibench.metrics.removal.region_perturbation import RegionPerturbation

from .helpers import evaluated, responded


def slow_aopc(classifier, image, target, attribution, tile, regions, noises):
    """Both AOPC of one image as the paper has it: regions in lists, one image of noise per draw."""
    _, height, width = image.shape
    corners = [(top, left) for top in range(0, height, tile) for left in range(0, width, tile)]

    def relevance(corner):
        top, left = corner
        return attribution[top : top + tile, left : left + tile].mean().item()

    most_first = sorted(corners, key=relevance, reverse=True)
    f0 = classifier.module(image[None])[0].softmax(0)[target].item()
    steps = min(regions, len(corners))
    areas = []
    for order in (most_first, most_first[::-1]):
        total = 0.0
        for noise in noises:
            changed = image.clone()
            for top, left in order[:steps]:
                where = (slice(None), slice(top, top + tile), slice(left, left + tile))
                changed[where] = noise[where]
                total += f0 - classifier.module(changed[None])[0].softmax(0)[target].item()
        areas.append(total / len(noises) / (steps + 1))
    return areas


@pytest.mark.parametrize("side, tile, regions, draws", [(12, 4, 100, 1), (12, 3, 5, 3), (11, 4, 6, 2)])
def test_equals_a_slow_loop(convnet, batch_for, side, tile, regions, draws):
    classifier = convnet((3, side, side), batch_size=5)
    batch = batch_for(classifier, 3)
    maps = torch.randn(3, side, side, dtype=torch.float64)
    metric = RegionPerturbation(tile, regions, draws)
    responses = responded(metric, classifier, batch)
    columns = evaluated(metric, classifier, batch, maps, responses=responses)
    noises = [
        metric.removal.everything(classifier, batch, {"fill_seed": responses["fill_seed"][:, draw]})
        for draw in range(draws)
    ]
    for b in range(3):
        morf, lerf = slow_aopc(
            classifier, batch.inputs[b], batch.targets[b], maps[b], tile, regions, [noise[b] for noise in noises]
        )
        got = [columns[name][b].item() for name in ("morf", "lerf", "difference")]
        np.testing.assert_allclose(got, [morf, lerf, morf - lerf], atol=1e-12)


def test_noise_is_uniform_in_pixel_values_and_new_at_every_draw(convnet, batch_for):
    classifier = convnet((3, 40, 40))
    batch = batch_for(classifier, 2)
    metric = RegionPerturbation(draws=3)
    seeds = responded(metric, classifier, batch)["fill_seed"]
    assert seeds.unique().numel() == 6
    pixels = torch.stack(
        [metric.removal.everything(classifier, batch, {"fill_seed": seeds[:, draw]}) for draw in range(3)]
    )
    pixels = pixels * 0.2 + 0.4  # of the convnet's preprocessing
    assert pixels.min() >= 0 and pixels.max() <= 1
    counts = torch.histc(pixels, 10, 0, 1)
    assert (counts - counts.mean()).abs().max() < 4 * counts.mean().sqrt()


def test_linear_model_in_closed_form(linear, batch_for, scored):
    """With zeros for what is removed, f(x0) - f(xk) is the sum of the k largest contributions, or the k smallest."""
    classifier = linear((3, 8, 8))
    batch = batch_for(classifier, 4)
    contributions = (classifier.module[1].weight[batch.targets].view_as(batch.inputs) * batch.inputs).sum(1)
    metric = RegionPerturbation(tile=2, regions=6, fill="zero", output="logit")
    columns = scored(metric, classifier, batch, contributions)
    tiles = contributions.view(4, 4, 2, 4, 2).sum((2, 4)).flatten(1)
    for name, descending in (("morf", True), ("lerf", False)):
        lost = tiles.sort(1, descending=descending).values[:, :6].cumsum(1)
        torch.testing.assert_close(columns[name], lost.sum(1) / 7, rtol=0, atol=1e-10)
    assert (columns["difference"] > 0).all()


def test_random_maps_have_no_area_between_the_curves(convnet, batch_for, scored, take):
    """So do constant ones: their ties are broken at random."""
    classifier = convnet()
    batch = take(batch_for(classifier, 2), [0, 1] * 150)
    batch = type(batch)(tuple(range(300)), batch.inputs, batch.labels, batch.targets, None, ())
    metric = RegionPerturbation(tile=3, regions=6)
    for maps in (torch.randn(300, 12, 12), torch.ones(300, 12, 12)):
        columns = scored(metric, classifier, batch, maps)
        assert columns["difference"].mean().abs() < 4 * columns["difference"].std() / math.sqrt(300)
        assert columns["difference"].std() > 0.001


def test_a_negated_map_swaps_the_paths(convnet, batch_for, scored):
    classifier = convnet((3, 13, 13))
    batch = batch_for(classifier, 4)
    maps = torch.randn(4, 13, 13)
    metric = RegionPerturbation(tile=4, regions=7, draws=2)
    plain, negated = scored(metric, classifier, batch, maps), scored(metric, classifier, batch, -maps)
    torch.testing.assert_close(negated["morf_curve"], plain["lerf_curve"], rtol=0, atol=1e-12)
    torch.testing.assert_close(negated["difference"], -plain["difference"], rtol=0, atol=1e-12)


def test_more_draws_take_the_noise_out_of_the_score(convnet, batch_for):
    """The spread over the seeds of the noise falls with the root of the draws, at one order of the regions."""
    classifier = convnet((3, 9, 9))
    batch = batch_for(classifier, 1)
    maps = torch.randn(1, 9, 9)

    def spread(draws: int) -> float:
        metric = RegionPerturbation(tile=3, regions=3, draws=draws)
        scores = []
        for seed in range(200):
            responses = responded(metric, classifier, batch, seed)
            scores.append(evaluated(metric, classifier, batch, maps, responses=responses)["morf"])
        return torch.cat(scores).std().item()

    assert spread(1) / spread(4) == pytest.approx(2, rel=0.3)


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_neither_batch_size_nor_neighbours_change_a_score(convnet, batch_for, scored, take, batch_size):
    classifier = convnet()
    batch = batch_for(classifier, 5)
    maps = torch.randn(5, 12, 12)
    maps[2] = 0
    metric = RegionPerturbation(tile=3, regions=5, draws=2)
    expected = scored(metric, classifier, batch, maps)
    classifier.batch_size = batch_size
    for which in ([0, 1, 2, 3, 4], [4, 2, 0], [2]):
        got = scored(metric, classifier, take(batch, which), maps[which])
        for name, values in got.items():
            torch.testing.assert_close(values, expected[name][which], rtol=0, atol=1e-9)


@pytest.mark.parametrize("fill, draws, passes", [("noise", 3, 3), ("zero", 3, 1)])
def test_model_calls_are_the_nominal_cost(convnet, batch_for, scored, calls, fill, draws, passes):
    """A fill that is not random is the same at every draw."""
    classifier = convnet(batch_size=7)
    batch = batch_for(classifier, 5)
    metric = RegionPerturbation(tile=3, regions=4, draws=draws, fill=fill)
    sizes = calls(classifier)
    scored(metric, classifier, batch, torch.randn(5, 12, 12))
    assert sum(sizes) == 5 * metric.cost(classifier)[0] == 5 * (1 + 2 * 4 * passes)


def test_axes_are_shares_of_the_regions(linear):
    axes = RegionPerturbation(tile=3, regions=2).axes(linear((1, 6, 6)))
    assert axes["morf_curve"].tolist() == axes["lerf_curve"].tolist() == [0, 0.25, 0.5]


def test_pairings_that_cannot_be_scored_are_refused(linear):
    with pytest.raises(Refusal, match="tile=9"):
        RegionPerturbation().check(linear((1, 6, 6)))
    with pytest.raises(Refusal, match="no probability"):
        RegionPerturbation(tile=2).check(linear(classes=1, output="raw"))


@pytest.mark.parametrize("parameter", [{"tile": 0}, {"regions": 0}, {"draws": 0}, {"sigma": 0.0}])
def test_bad_parameters_are_named(parameter):
    with pytest.raises(ValueError, match=next(iter(parameter))):
        RegionPerturbation(**parameter)

"""SSIM, rank correlation and HOG against scikit-image and scipy, and what maps without contrast score."""

import numpy as np
import pytest
import torch
from scipy import stats
from skimage.feature import hog
from skimage.metrics import structural_similarity

from xaibench.metrics.randomisation.class_sensitivity import ClassSensitivity
from xaibench.metrics.similarity import EITHER, FLOORS, MEASURES, pearson, ssim
from xaibench.rng import sample_generators


def metric(**settings) -> ClassSensitivity:
    """The shared part of the three metrics, in one of them."""
    return ClassSensitivity(**settings)


def scaled_by_numpy(values: np.ndarray, clip, scaling) -> np.ndarray:
    low, high = np.percentile(values, clip)
    clipped = np.clip(values, low, high)
    return (clipped - low) / (high - low) if scaling == "min_max" else clipped / np.abs(clipped).max()


@pytest.fixture
def pairs() -> tuple[torch.Tensor, torch.Tensor]:
    """Maps with heavy tails that resemble each other to various degrees, float32."""
    first = torch.distributions.StudentT(2.0).sample((6, 28, 33))
    share = torch.linspace(0, 1, 6).view(-1, 1, 1)
    return first, share * first + (1 - share) * torch.randn(6, 28, 33) ** 3


@pytest.mark.parametrize("window, data_range", [(3, 1.0), (5, 2.0), (7, 1.0), (11, 255.0)])
def test_ssim_equals_scikit_image(pairs, window, data_range):
    a, b = (values.double() * data_range / 10 for values in pairs)
    for found, x, y in zip(ssim(a, b, window, data_range), a.numpy(), b.numpy()):
        expected = structural_similarity(x, y, win_size=window, data_range=data_range)
        assert found.item() == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize("clip, scaling, data_range", [((1, 99), "min_max", 1.0), ((0, 100), "max_abs", 2.0)])
def test_measures_equal_scikit_image_and_scipy(pairs, clip, scaling, data_range):
    a, b = pairs
    found = metric(clip=clip, scaling=scaling, data_range=data_range).similarities(a, b)
    assert set(found) == {*MEASURES, *EITHER}
    for i, (x, y) in enumerate(zip(a.double().numpy(), b.double().numpy())):
        p, q = (scaled_by_numpy(values, clip, scaling) for values in (x, y))
        expected = {
            "ssim": structural_similarity(p, q, win_size=5, data_range=data_range),
            "spearman": stats.spearmanr(x.ravel(), y.ravel()).statistic,
            "spearman_abs": stats.spearmanr(np.abs(x).ravel(), np.abs(y).ravel()).statistic,
            "hog": stats.pearsonr(hog(p), hog(q)).statistic,
        }
        for name, value in expected.items():
            assert found[name][i].item() == pytest.approx(value, abs=1e-9), name


def test_spearman_shares_ranks_between_ties():
    a, b = torch.randint(0, 4, (3, 30, 30)).float(), torch.randint(0, 3, (3, 30, 30)).float()
    found = metric().similarities(a, b)["spearman"]
    for value, x, y in zip(found, a, b):
        assert value.item() == pytest.approx(stats.spearmanr(x.flatten(), y.flatten()).statistic, abs=1e-12)


def test_flip_max_takes_the_greater_of_both_signs(pairs):
    a, b = pairs
    plain, one, other = (metric(flip_max=flip).similarities(a, c) for flip, c in ((True, b), (False, b), (False, -b)))
    for name in MEASURES:
        assert torch.equal(plain[name], torch.maximum(one[name], other[name]))
    assert torch.equal(metric(flip_max=True).similarities(a, -a)["ssim"], torch.ones(6, dtype=torch.float64))
    assert (metric().similarities(a, -a)["ssim"] < 0.5).all()


def test_auto_flips_for_methods_alone_that_declare_it_and_both_are_there(pairs):
    a, b = pairs
    signed, turned = (metric(flip_max=False).similarities(a, sign * b)["ssim"] for sign in (1, -1))
    for declared in (True, False, None):
        found = metric().similarities(a, -b, declared)
        assert torch.equal(found["ssim_signed"], turned)
        assert torch.equal(found["ssim_either_sign"], torch.maximum(signed, turned))
        assert torch.equal(found["ssim"], found["ssim_either_sign" if declared else "ssim_signed"])
    assert (signed > turned + 0.1).sum() >= 3  # so that the two differ


@pytest.mark.parametrize("scaling", ["min_max", "max_abs"])
def test_equal_maps_are_exactly_one_by_every_measure(pairs, scaling):
    for maps in (pairs[0], torch.zeros(2, 28, 28), torch.full((2, 28, 28), 0.1), 1e-30 * pairs[0], 1e30 * pairs[0]):
        for name, value in metric(scaling=scaling).similarities(maps, maps.clone()).items():
            assert (value == 1).all(), name


def test_a_map_without_contrast_has_nothing_in_common_with_one_that_has():
    maps, flat = torch.rand(4, 32, 32), torch.full((4, 32, 32), 0.7)
    found = metric().similarities(maps, flat)
    assert all((found[name] == 0).all() for name in ("spearman", "spearman_abs", "hog"))
    # Scaled it is 0 everywhere: SSIM by hand with a second map of zeros.
    scaled = metric().scaled(maps)
    for value, x in zip(found["ssim"], scaled.numpy()):
        assert value.item() == pytest.approx(structural_similarity(x, np.zeros_like(x), win_size=5, data_range=1.0))
    assert (metric().similarities(flat, 3 * flat)["ssim"] == 1).all()


def test_clipping_keeps_a_map_that_is_mostly_one_value():
    maps = torch.zeros(1, 30, 30)
    maps[0, 3, 4] = 2.0  # less than 1 % of the pixels
    assert torch.equal(metric().scaled(maps), (maps / 2).double())


def test_nan_is_undefined_and_leaves_its_neighbours(pairs):
    a, b = pairs
    broken = b.clone()
    broken[2, 0, 0] = torch.nan
    found, whole = metric().similarities(a, broken), metric().similarities(a, b)
    rest = [0, 1, 3, 4, 5]
    for name in MEASURES:
        assert found[name][2].isnan() and torch.equal(found[name][rest], whole[name][rest])


def test_the_order_of_maps_and_the_batch_do_not_matter(pairs):
    a, b = pairs
    whole, swapped = metric().similarities(a, b), metric().similarities(b, a)
    for name in MEASURES:
        torch.testing.assert_close(whole[name], swapped[name], rtol=0, atol=1e-12)
        alone = torch.cat([metric().similarities(a[i : i + 1], b[i : i + 1])[name] for i in range(6)])
        torch.testing.assert_close(whole[name], alone, rtol=0, atol=1e-12)


def test_pearson_of_rows():
    a, b = torch.randn(5, 40, dtype=torch.float64), torch.randn(5, 40, dtype=torch.float64)
    expected = torch.stack([torch.corrcoef(torch.stack(pair))[0, 1] for pair in zip(a, b)])
    torch.testing.assert_close(pearson(a, b), expected, rtol=0, atol=1e-12)


def test_floors_are_low_for_structure_and_high_for_what_is_the_input(linear, batch_for):
    """A map equal to |x| summed over channels is exactly at the floor `input`; noise is near 0 beside smooth maps."""
    classifier = linear((3, 32, 32))
    batch = batch_for(classifier, 3)
    generators = sample_generators(0, "metric", batch.samples)
    found = metric(clip=(0, 100)).floors(classifier, batch, batch.inputs.abs().sum(1), generators)
    assert set(found) == set(FLOORS) and (found["floor_input"] == 1).all()
    waves = torch.linspace(0, 6, 32).sin()[:, None] * torch.linspace(0, 6, 32).sin()
    found = metric().floors(classifier, batch, waves.expand(3, -1, -1), sample_generators(0, "metric", batch.samples))
    assert (found["floor_shuffled"] < 0.1).all() and (found["floor_noise"] < 0.1).all()
    # The shuffle keeps the values: a map whose pixels are all equal but one stays nearly what it was.
    peak = torch.zeros(3, 32, 32)
    peak[:, 5, 5] = 1
    found = metric().floors(classifier, batch, peak, sample_generators(0, "metric", batch.samples))
    assert (found["floor_shuffled"] > 0.85).all()


@pytest.mark.parametrize(
    "parameters, named",
    [
        ({"window": 4}, "window=4"),
        ({"window": 1}, "window=1"),
        ({"data_range": 0.0}, "data_range=0.0"),
        ({"clip": (99, 1)}, r"clip=\[99, 1\]"),
        ({"clip": (1, 101)}, r"clip=\[1, 101\]"),
        ({"hog_cell": 0}, "hog_cell=0"),
    ],
)
def test_mistakes_are_named(parameters, named):
    with pytest.raises(ValueError, match=named):
        metric(**parameters)

"""The effective rank of maps over samples: closed forms, numpy's singular values, and a network that is linear."""

import numpy as np
import pytest
import torch
from scipy import stats

from xaibench.methods.context import Context
from xaibench.methods.gradients.gradient import Gradient
from xaibench.metrics.properties.effective_rank import EffectiveRank

RNG = np.random.default_rng(0)


def ranks(maps, **options) -> list[float]:
    maps = torch.as_tensor(maps)
    found = EffectiveRank(**options).pool(maps, torch.zeros(len(maps)))
    return [found[name].item() for name in ("effective_rank", "entropy_rank")]


def test_one_map_times_numbers_has_one_direction():
    one = RNG.normal(size=(1, 2, 3, 3))
    for normalise in (True, False):
        assert ranks(one * [[[[3.0]]], [[[-0.1]]], [[[1.0]]], [[[0.0]]]], normalise=normalise) == pytest.approx([1, 1])


@pytest.mark.parametrize("shape", [(4, 1, 2, 5), (12, 3, 2, 2)])
def test_maps_at_right_angles_have_as_many_as_there_are(shape):
    count, width = shape[0], int(np.prod(shape[1:]))
    rows = np.linalg.qr(RNG.normal(size=(width, width)))[0][:count] * 7
    assert ranks(rows.reshape(shape)) == pytest.approx([count, count])
    assert ranks(rows.reshape(shape), normalise=False) == pytest.approx([count, count])


def test_lengths_count_only_without_normalising():
    """Two at right angles of lengths 3 and 1: 10 / 9, and exp of the entropy of (3/4, 1/4)."""
    rows = np.array([[3.0, 0, 0], [0, 1.0, 0]]).reshape(2, 1, 1, 3)
    assert ranks(rows) == pytest.approx([2, 2])
    assert ranks(rows, normalise=False) == pytest.approx([10 / 9, np.exp(stats.entropy([3, 1]))])


@pytest.mark.parametrize("shape", [(5, 2, 3, 3), (30, 1, 2, 3)])
def test_it_is_of_the_singular_values(shape):
    maps = RNG.normal(size=shape).astype(np.float32) + 0.5
    singular = np.linalg.svd(maps.reshape(len(maps), -1).astype(float), compute_uv=False)
    expected = [(singular**2).sum() / singular[0] ** 2, np.exp(stats.entropy(singular))]
    assert ranks(maps, normalise=False) == pytest.approx(expected, rel=1e-9)


def test_the_gradients_of_a_linear_network_take_a_direction_for_each_class(linear, batch_for):
    classifier = linear(classes=3)
    batch = batch_for(classifier, 9)
    targets = torch.arange(9) % 3
    maps = Gradient().attribute(classifier, batch.inputs, targets, Context())
    weights = classifier.module[1].weight.detach().numpy()
    singular = np.linalg.svd(weights / np.linalg.norm(weights, axis=1, keepdims=True), compute_uv=False)
    assert ranks(maps)[0] == pytest.approx((singular**2).sum() / singular[0] ** 2)
    assert ranks(maps[targets == 1]) == pytest.approx([1, 1])


def test_what_is_undefined():
    assert np.isnan(ranks(np.zeros((3, 1, 2, 2)))).all()
    assert np.isnan(ranks(np.array([1.0, np.nan]).reshape(2, 1, 1, 1))).all()

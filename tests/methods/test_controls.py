"""The controls."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from tests.methods.nets import Linear, classifier, seeded
from xaibench.errors import Refusal
from xaibench.methods.context import Context
from xaibench.methods.controls import controls
from xaibench.rng import sample_generators


@pytest.fixture
def network():
    return classifier(Linear())


def attribute(method, network, inputs, **context):
    generators = sample_generators(0, "maps", range(len(inputs)))
    return method.attribute(network, inputs, torch.zeros(len(inputs)).long(), Context(generators, **context))


def test_controls_cost_nothing(network):
    for kind in (controls.Random, controls.Constant, controls.Sobel, controls.Input, controls.Oracle):
        assert kind().cost(network) == (0, 0)


def test_random_is_standard_normal_and_differs_between_samples(network):
    maps = attribute(controls.Random(), network, seeded(50))
    assert maps.shape == (50, 1, 16, 16)
    assert abs(maps.mean()) < 0.05 and abs(maps.std() - 1) < 0.05
    assert len(torch.unique(maps.flatten(1), dim=0)) == 50


def test_constant_is_one(network):
    assert torch.equal(attribute(controls.Constant(), network, seeded(2)), torch.ones(2, 1, 16, 16).double())


def test_sobel_is_scipys(network):
    inputs = seeded(4)
    maps = attribute(controls.Sobel(), network, inputs)
    for image, found in zip(inputs.mean(1).numpy(), maps[:, 0].numpy()):
        slopes = [ndimage.sobel(image, axis=axis, mode="nearest") / 8 for axis in (0, 1)]
        np.testing.assert_allclose(found, np.hypot(*slopes), rtol=1e-9, atol=1e-12)


def test_sobel_of_a_ramp_is_its_slope(network):
    ramp = (0.5 * torch.arange(16.0)).expand(1, 3, 16, 16).double()
    assert torch.allclose(attribute(controls.Sobel(), network, ramp)[..., 1:-1], torch.tensor(0.5).double())


def test_input_is_a_copy_of_the_input(network):
    inputs = seeded(2)
    maps = attribute(controls.Input(), network, inputs)
    assert torch.equal(maps, inputs) and maps.data_ptr() != inputs.data_ptr()


def test_oracle_is_the_mask_and_is_refused_without(network):
    inputs = seeded(2)
    masks = inputs[:, 0] > 0
    assert torch.equal(attribute(controls.Oracle(), network, inputs, masks=masks), masks[:, None].double())
    with pytest.raises(Refusal, match="needs ground-truth masks"):
        attribute(controls.Oracle(), network, inputs, masks=None)

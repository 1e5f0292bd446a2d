"""Smoothed maps: SciPy's Gaussian over the method's own."""

import pytest
import torch
from scipy import ndimage

from tests.methods.nets import VGGLike, classifier, seeded
from xaibench.methods.context import Context
from xaibench.methods.controls.smoothed import Smoothed
from xaibench.methods.gradients.gradient import Gradient
from xaibench.rng import sample_generators


def test_it_is_the_gaussian_of_the_methods_maps():
    network, inputs, targets = classifier(VGGLike()), seeded(3), torch.tensor([0, 1, 2])
    plain, smooth = (
        method.attribute(network, inputs, targets, Context(sample_generators(0, "maps", range(3))))
        for method in (Gradient(), Smoothed(Gradient(), sigma=1.5))
    )
    expected = ndimage.gaussian_filter(plain.numpy(), sigma=(0, 0, 1.5, 1.5), mode="nearest", radius=(0, 0, 5, 5))
    torch.testing.assert_close(smooth, torch.from_numpy(expected), rtol=1e-9, atol=1e-12)


def test_it_is_what_its_method_is(make):
    smooth, inner = make("input_iba_smoothed"), make("input_iba")
    network = classifier(VGGLike())
    network.layers["bottleneck"] = "features.3"
    assert smooth.cost(network) == inner.cost(network) and smooth.collapse == inner.collapse
    assert smooth.fit_parameters == ("method",) and smooth.fit is not None


def test_bad_parameters_are_refused():
    with pytest.raises(ValueError, match="sigma=0"):
        Smoothed(Gradient(), sigma=0)

"""GradientSHAP, noise around integrated gradients and guided Grad-CAM equal Captum's, given the same draws.

In float64 and one batch, within 1e-9 of the largest value, on networks in the shapes of VGG, ResNet and MobileNet.
Deviations are sums of powers of two: Captum rounds them to single precision.
"""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from tests.methods import shapes
from tests.methods.helpers import Noise
from tests.methods.nets import classifier, seeded
from xaibench.datasets.base import Samples
from xaibench.methods.cam.gradcam import GradCAM, GuidedGradCAM
from xaibench.methods.context import Context
from xaibench.methods.gradients.expected_gradients import ExpectedGradients
from xaibench.methods.gradients.integrated_gradients import IntegratedGradients
from xaibench.methods.gradients.smoothgrad import SmoothGrad
from xaibench.rng import sample_generators

captum = pytest.importorskip("captum.attr")

BATCH, TOLERANCE = 3, 1e-9

pytestmark = pytest.mark.filterwarnings("ignore:Input Tensor 0 did not", "ignore:Setting backward hooks")


@pytest.fixture(scope="module", params=["vgg", "resnet", "mobilenet"])
def network(request):
    layers = {"last_conv": shapes.LAST_CONV[request.param]}
    return classifier(shapes.shaped(request.param), shapes.SIZE, layers=layers, batch_size=10_000)


@pytest.fixture
def batch():
    return seeded(BATCH, shapes.SIZE), torch.tensor([3, 0, 4])


def generators():
    return sample_generators(0, "maps", range(BATCH))


def assert_equal(maps, expected):
    error = (maps - expected).abs().max() / expected.abs().max()
    assert error <= TOLERANCE, f"relative difference {error:.2g}"


@pytest.mark.parametrize("noise", [0.0, 0.25])
def test_gradient_shap(network, batch, noise, monkeypatch):
    inputs, targets = batch
    method = ExpectedGradients(4, references=6, noise=noise, unit="input")
    images = Samples(Noise(6, shapes.SIZE), network.preprocessing, range(6))
    references = method.fit(network, images, torch.Generator().manual_seed(0))
    maps = method.attribute(network, inputs, targets, Context(generators(), fitted=references))

    places, along, noises = [], [], []
    for generator in generators():
        for _ in range(4):
            places.append(int(torch.randint(6, (), generator=generator)))
            along.append(float(torch.rand((), generator=generator, dtype=torch.float64)))
            noises.append(torch.randn(shapes.SIZE, generator=generator).double() if noise else torch.zeros(shapes.SIZE))
    monkeypatch.setattr(torch, "normal", lambda mean, std: std * torch.stack(noises).double())
    monkeypatch.setattr(np.random, "choice", lambda count, size: np.array(places))
    monkeypatch.setattr(np.random, "uniform", lambda low, high, size: np.array(along))
    distribution = references["references"].double()
    oracle = captum.GradientShap(network.module)
    assert_equal(maps, oracle.attribute(inputs, distribution, n_samples=4, stdevs=noise, target=targets))


@pytest.mark.parametrize(
    ("aggregate", "kind"), [("mean", "smoothgrad"), ("square", "smoothgrad_sq"), ("variance", "vargrad")]
)
def test_noise_around_integrated_gradients(network, batch, aggregate, kind, monkeypatch):
    inputs, targets = batch
    method = SmoothGrad(3, 0.75, aggregate, "input", IntegratedGradients(4, "black"))
    maps = method.attribute(network, inputs, targets, Context(generators()))
    noise = [torch.randn(shapes.SIZE, generator=g).double() for g in generators() for _ in range(3)]
    monkeypatch.setattr(torch, "normal", lambda mean, std: std * torch.stack(noise))
    tunnel = captum.NoiseTunnel(captum.IntegratedGradients(network.module))
    black = network.preprocessing.normalise(torch.zeros_like(inputs[:1]))
    arguments = {"nt_samples": 3, "stdevs": 0.75, "baselines": black, "n_steps": 4, "method": "riemann_right"}
    assert_equal(maps, tunnel.attribute(inputs, kind, target=targets, **arguments))


def test_gradcam(network, batch):
    expected = captum.LayerGradCam(network.module, network.layer("last_conv")).attribute(*batch)
    expected = captum.LayerAttribution.interpolate(expected, shapes.SIZE[1:], interpolate_mode="bilinear")
    assert_equal(GradCAM(relu=False).attribute(network, *batch, Context()), expected)


def test_guided_gradcam(network, batch):
    """Captum's rule knows nn.ReLU only, so both are asked about a network whose ReLU6 are ReLUs."""
    module = copy.deepcopy(network.module)
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.ReLU6):
                setattr(parent, name, nn.ReLU(inplace=True))
    network = classifier(module, shapes.SIZE, layers=network.layers, batch_size=BATCH)
    oracle = captum.GuidedGradCam(module, network.layer("last_conv"))
    expected = oracle.attribute(*batch, interpolate_mode="bilinear")
    assert expected.abs().max() > 0
    assert_equal(GuidedGradCAM().attribute(network, *batch, Context()), expected)

"""Grad-CAM, Grad-CAM++ and FullGrad beside pytorch-grad-cam, which returns maps scaled to 0..1 in single precision."""

import warnings

import pytest
import torch

from tests.methods import shapes
from tests.methods.nets import classifier, seeded
from xaibench.methods.cam.gradcam import GradCAM, GradCAMPlusPlus
from xaibench.methods.context import Context
from xaibench.methods.gradients.fullgrad import FullGrad

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    grad_cam = pytest.importorskip("pytorch_grad_cam")

TARGETS = [3, 0, 4]
# Of a map scaled to 0..1: single precision, 1e-7 added to each maximum, 1e-6 to each denominator of Grad-CAM++.
TOLERANCE = 1e-4


@pytest.fixture(params=["vgg", "resnet", "mobilenet"])
def network(request):
    """With a last layer so steep that gradients are far above the 1e-6 that Grad-CAM++ is given there."""
    module = shapes.shaped(request.param)
    last = module.fc if request.param == "resnet" else module.classifier[-1]
    last.weight.data *= 300
    layers = {"last_conv": shapes.LAST_CONV[request.param]}
    return classifier(module, shapes.SIZE, torch.float32, layers=layers, batch_size=3)


def theirs(kind, network, inputs, layers):
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    network.module.requires_grad_(True)
    with getattr(grad_cam, kind)(model=network.module, target_layers=layers) as oracle:
        maps = oracle(inputs.clone(), [ClassifierOutputTarget(target) for target in TARGETS])
    network.module.requires_grad_(False)
    return torch.as_tensor(maps)[:, None]


def scaled(maps):
    """Each map shifted and scaled to 0..1, as that library does with whatever it has."""
    maps = maps - maps.amin((2, 3), keepdim=True)
    return maps / maps.amax((2, 3), keepdim=True).clamp(min=1e-30)


@pytest.mark.parametrize("kind", ["GradCAM", "GradCAMPlusPlus"])
def test_class_activation_maps(network, kind):
    """Theirs are scaled before they are enlarged and once more behind, which of ours leaves the same."""
    inputs = seeded(3, shapes.SIZE, torch.float32)
    method = {"GradCAM": GradCAM, "GradCAMPlusPlus": GradCAMPlusPlus}[kind]()
    maps = method.attribute(network, inputs, torch.tensor(TARGETS), Context())
    assert maps.any()
    expected = theirs(kind, network, inputs, [network.layer("last_conv")])
    assert (scaled(maps) - expected).abs().max() <= TOLERANCE


def test_fullgrad(network):
    """The paper's psi, channel by channel, is theirs. Two things differ: they leave out intercepts of ReLU6, which the
    decomposition needs (so MobileNet differs), and count only biases of 2d convolutions and batch normalisations."""
    inputs = seeded(3, shapes.SIZE, torch.float32)
    maps = FullGrad().attribute(network, inputs, torch.tensor(TARGETS), Context())
    difference = (scaled(maps) - theirs("FullGrad", network, inputs, [])).abs().max()
    sixes = any(isinstance(module, torch.nn.ReLU6) for module in network.module.modules())
    assert difference > 1e-3 if sixes else difference <= 1e-3

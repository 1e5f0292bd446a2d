"""Each method equals Captum's on the same tensors, in one batch, within 1e-5 of the largest value."""

import copy

import pytest
import torch
import torchvision
from torch import nn

from tests.methods.nets import classifier
from xaibench.methods.cam.gradcam import GradCAM
from xaibench.methods.context import Context
from xaibench.methods.gradients.gradient import Gradient, InputXGradient, Saliency
from xaibench.methods.gradients.integrated_gradients import IntegratedGradients
from xaibench.methods.gradients.smoothgrad import SmoothGrad
from xaibench.methods.removal.occlusion import Occlusion
from xaibench.methods.rules.guided_backprop import GuidedBackprop
from xaibench.models.smallcnn import SmallCNN
from xaibench.perturb.fills import filled
from xaibench.rng import sample_generators

captum = pytest.importorskip("captum.attr")

SIZE, BATCH = (3, 64, 64), 3
TOLERANCE = 1e-5

pytestmark = pytest.mark.filterwarnings(
    "ignore:Input Tensor 0 did not already require", "ignore:Setting backward hooks"
)


def smallcnn():
    """With weights that let a change of the input reach the logits, as in a trained network."""
    module = SmallCNN()
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    return module


def mobilenet(request, weights):
    module = torchvision.models.mobilenet_v2(weights=None)
    if weights:
        path = request.getfixturevalue("shared") / "models" / "mobilenet_v2_imagenet.pt"
        module.load_state_dict(torch.load(path, weights_only=True))
    return module


@pytest.fixture(
    scope="module", params=["smallcnn", "mobilenet_v2", pytest.param("mobilenet_v2_imagenet", marks=pytest.mark.shared)]
)
def network(request):
    """One Classifier whose batch size lets every method here do with a single call, as Captum does."""
    torch.manual_seed(0)
    module = smallcnn() if request.param == "smallcnn" else mobilenet(request, request.param.endswith("imagenet"))
    return classifier(module, SIZE, torch.float32, batch_size=10_000)


@pytest.fixture(scope="module")
def batch(network):
    """Inputs, and as targets two fixed classes and the predicted one, whose Grad-CAM is not all negative."""
    inputs = torch.randn(BATCH, *SIZE, generator=torch.Generator().manual_seed(0))
    return inputs, torch.tensor([3, 9, int(network.logits(inputs[2:]).argmax())])


def assert_equal(maps, expected):
    error = (maps - expected).abs().max() / expected.abs().max()
    assert error <= TOLERANCE, f"relative difference {error:.2g}"


def test_gradient_and_saliency(network, batch):
    oracle = captum.Saliency(network.module)
    assert_equal(Gradient().attribute(network, *batch, Context()), oracle.attribute(*batch, abs=False))
    assert_equal(Saliency().attribute(network, *batch, Context()), oracle.attribute(*batch))


def test_input_x_gradient(network, batch):
    expected = captum.InputXGradient(network.module).attribute(*batch)
    assert_equal(InputXGradient().attribute(network, *batch, Context()), expected)


@pytest.mark.parametrize(
    ("quadrature", "baseline"),
    [
        ("riemann_right", "zero"),
        ("riemann_left", "black"),
        ("riemann_middle", "channel_mean"),
        ("gausslegendre", "blur"),
    ],
)
def test_integrated_gradients(network, batch, quadrature, baseline):
    inputs, targets = batch
    maps = IntegratedGradients(6, baseline, quadrature).attribute(network, inputs, targets, Context())
    baselines = filled(inputs, baseline, network.preprocessing)
    oracle = captum.IntegratedGradients(network.module)
    assert_equal(maps, oracle.attribute(inputs, baselines, targets, n_steps=6, method=quadrature))


def test_trapezoid_differs_by_captums_missing_interval(network, batch):
    """Captum's weights sum to (n - 1) / n. Ours sum to 1, which a linear model needs for completeness."""
    maps = IntegratedGradients(6, quadrature="riemann_trapezoid").attribute(network, *batch, Context())
    oracle = captum.IntegratedGradients(network.module)
    expected = oracle.attribute(batch[0], target=batch[1], n_steps=6, method="riemann_trapezoid")
    assert_equal(maps, expected * 6 / 5)


@pytest.mark.parametrize(
    ("aggregate", "kind"), [("mean", "smoothgrad"), ("square", "smoothgrad_sq"), ("variance", "vargrad")]
)
def test_smoothgrad(network, batch, aggregate, kind, monkeypatch):
    inputs, targets = batch
    maps = SmoothGrad(8, 0.2, aggregate).attribute(
        network, inputs, targets, Context(sample_generators(0, "maps", range(BATCH)))
    )
    noise = []
    for image, generator in zip(inputs, sample_generators(0, "maps", range(BATCH))):
        std = 0.2 * (image.max() - image.min())
        noise += [std * torch.randn(SIZE, generator=generator) for _ in range(8)]
    monkeypatch.setattr(torch, "normal", lambda mean, std: torch.stack(noise))
    tunnel = captum.NoiseTunnel(captum.Saliency(network.module))
    assert_equal(maps, tunnel.attribute(inputs, kind, nt_samples=8, target=targets, abs=False))


def test_guided_backprop(network, batch):
    """Captum's rule knows nn.ReLU only, so both are asked about a network whose ReLU6 are ReLUs."""
    module = copy.deepcopy(network.module)
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.ReLU6):
                setattr(parent, name, nn.ReLU(inplace=True))
    with_relu = classifier(module, SIZE, torch.float32, batch_size=BATCH)
    method = GuidedBackprop()
    method.check(with_relu)
    assert_equal(method.attribute(with_relu, *batch, Context()), captum.GuidedBackprop(module).attribute(*batch))


@pytest.mark.parametrize("relu", [True, False])
def test_gradcam(network, batch, relu):
    layer = network.layer("last_conv")
    expected = captum.LayerGradCam(network.module, layer).attribute(*batch, relu_attributions=relu)
    expected = captum.LayerAttribution.interpolate(expected, SIZE[1:], interpolate_mode="bilinear")
    assert_equal(GradCAM(relu=relu).attribute(network, *batch, Context()), expected)


@pytest.mark.parametrize(
    ("patch", "stride", "fill"), [(32, None, "zero"), (40, None, "black"), (40, 20, "channel_mean")]
)
def test_occlusion(network, batch, patch, stride, fill):
    """In double precision: a drop is the small difference of two logits (in single precision they agree to 5e-6)."""
    network = classifier(copy.deepcopy(network.module), SIZE, torch.float64, batch_size=network.batch_size)
    inputs, targets = batch[0].double(), batch[1]
    method = Occlusion(patch, stride, fill)
    windows, _ = method.cost(network)
    expected = captum.Occlusion(network.module).attribute(
        inputs,
        sliding_window_shapes=(3, patch, patch),
        strides=(3, stride or patch, stride or patch),
        baselines=filled(inputs, fill, network.preprocessing),
        target=targets,
        perturbations_per_eval=windows - 1,
    )
    assert torch.equal(expected, expected[:, :1].expand_as(expected))
    assert_equal(method.attribute(network, inputs, targets, Context()), expected[:, :1])

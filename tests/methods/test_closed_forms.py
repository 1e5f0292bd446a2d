"""Methods on networks whose attributions can be written down, and their refusals of parameters."""

import numpy as np
import pytest
import torch
from torch import nn

from tests.methods.nets import SIZE, Linear, VGGLike, classifier, seeded
from tests.perturb.helpers import FILLS
from xaibench.errors import Refusal, UserError
from xaibench.methods.context import Context
from xaibench.methods.gradients.integrated_gradients import points
from xaibench.perturb.fills import filled
from xaibench.rng import sample_generators

QUADRATURES = ["riemann_right", "riemann_left", "riemann_middle", "riemann_trapezoid", "gausslegendre"]


@pytest.fixture
def linear():
    return classifier(Linear(), batch_size=4)


@pytest.fixture
def batch():
    return seeded(6), torch.arange(6) % 5


def attribute(method, network, inputs, targets):
    return method.attribute(network, inputs, targets, Context(sample_generators(0, "maps", range(len(inputs)))))


def weights(network, targets):
    """The weights of each sample's logit, in the shape of the input."""
    return network.module.layer.weight[targets].view(-1, *SIZE)


def test_linear_gradients(linear, batch, make):
    inputs, targets = batch
    w = weights(linear, targets)
    assert torch.equal(attribute(make("gradient"), linear, inputs, targets), w)
    assert torch.equal(attribute(make("saliency"), linear, inputs, targets), w.abs())
    assert torch.equal(attribute(make("input_x_gradient"), linear, inputs, targets), w * inputs)


def test_linear_smoothgrad(linear, batch, make):
    inputs, targets = batch
    w = weights(linear, targets)
    assert torch.equal(attribute(make("smoothgrad"), linear, inputs, targets), w)
    assert torch.allclose(attribute(make("smoothgrad_sq"), linear, inputs, targets), w**2, rtol=1e-12)
    assert torch.equal(attribute(make("vargrad"), linear, inputs, targets), torch.zeros_like(w))


@pytest.mark.parametrize("aggregate", ["mean", "square", "variance"])
def test_smoothgrad_is_the_moment_of_gradients_at_noisy_copies(aggregate, batch, make):
    inputs, targets = batch
    network = classifier(VGGLike(), batch_size=4)
    gradients = []
    for sample, generator in enumerate(sample_generators(0, "maps", range(6))):
        x, y = inputs[sample : sample + 1], targets[sample : sample + 1]
        std = 0.3 * (x.max() - x.min())
        noisy = [x + std * torch.randn(SIZE, generator=generator) for _ in range(9)]
        gradients.append(torch.cat([network.gradient(copy, y) for copy in noisy]))
    gradients = torch.stack(gradients)
    expected = {
        "mean": gradients.mean(1),
        "square": gradients.square().mean(1),
        "variance": gradients.var(1, unbiased=False),
    }[aggregate]
    maps = attribute(make("smoothgrad", samples=9, noise=0.3, aggregate=aggregate), network, inputs, targets)
    assert torch.allclose(maps, expected, rtol=1e-9, atol=1e-12)


def test_smoothgrad_without_noise_is_the_gradient(batch, make):
    network = classifier(VGGLike())
    maps = attribute(make("smoothgrad", noise=0), network, *batch)
    assert torch.allclose(maps, network.gradient(*batch), rtol=1e-12)


@pytest.mark.parametrize("quadrature", QUADRATURES)
@pytest.mark.parametrize("baseline", FILLS)
def test_linear_integrated_gradients_are_exact(baseline, quadrature, linear, batch, make):
    inputs, targets = batch
    method = make("integrated_gradients", steps=3, baseline=baseline, quadrature=quadrature)
    maps = attribute(method, linear, inputs, targets)
    start = filled(inputs, baseline, linear.preprocessing)
    assert torch.allclose(maps, weights(linear, targets) * (inputs - start), rtol=1e-12)
    difference = linear.scores(inputs, targets) - linear.scores(start, targets)
    assert torch.allclose(maps.sum((1, 2, 3)), difference, rtol=1e-9)


@pytest.mark.parametrize("baseline", FILLS)
def test_integrated_gradients_are_complete_on_a_relu_network(baseline, batch, make):
    inputs, targets = batch
    network = classifier(VGGLike(), batch_size=64)
    maps = attribute(make("integrated_gradients", steps=300, baseline=baseline), network, inputs, targets)
    start = filled(inputs, baseline, network.preprocessing)
    difference = network.scores(inputs, targets) - network.scores(start, targets)
    assert (maps.sum((1, 2, 3)) - difference).abs().max() < 0.01 * difference.abs().max()


@pytest.mark.parametrize("quadrature", QUADRATURES)
@pytest.mark.parametrize("steps", [2, 3, 50])
def test_quadrature_weighs_one_in_all_and_integrates_lines(quadrature, steps):
    places, shares = map(np.array, points(quadrature, steps))
    assert len(places) == len(shares) == steps
    assert shares.sum() == pytest.approx(1, abs=1e-14)
    bias = {"riemann_right": 0.5 / steps, "riemann_left": -0.5 / steps}.get(quadrature, 0)
    assert (shares * places).sum() == pytest.approx(0.5 + bias, abs=1e-6)


def test_one_pixel_occlusion_of_a_linear_model(linear, batch, make):
    inputs, targets = batch
    for fill in FILLS:
        maps = attribute(make("occlusion", patch=1, fill=fill), linear, inputs, targets)
        change = weights(linear, targets) * (inputs - filled(inputs, fill, linear.preprocessing))
        assert torch.allclose(maps, change.sum(1, keepdim=True), rtol=1e-9, atol=1e-12)


def test_occlusion_is_a_slow_obvious_loop(batch, make):
    """Overlapping windows are averaged; those at the edges are cut, so that every pixel is covered."""
    inputs, targets = batch
    network = classifier(VGGLike(), batch_size=4)
    patch, stride = 5, 4
    total, count = torch.zeros(6, 1, 16, 16).double(), torch.zeros(16, 16)
    for top in (0, 4, 8, 12):
        for left in (0, 4, 8, 12):
            rows, columns = slice(top, min(top + patch, 16)), slice(left, min(left + patch, 16))
            changed = inputs.clone()
            changed[:, :, rows, columns] = 0
            drop = network.scores(inputs, targets) - network.scores(changed, targets)
            total[:, :, rows, columns] += drop.view(6, 1, 1, 1)
            count[rows, columns] += 1
    method = make("occlusion", patch=patch, stride=stride)
    assert method.cost(network) == (17, 0)
    assert torch.allclose(attribute(method, network, inputs, targets), total / count, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("patch", "stride", "windows"), [(8, None, 4), (7, None, 9), (16, None, 1), (16, 3, 1)])
def test_occlusion_windows_cover_everything_once_or_more(patch, stride, windows, linear, batch, make):
    method = make("occlusion", patch=patch, stride=stride)
    assert method.cost(linear) == (1 + windows, 0)
    assert attribute(method, linear, *batch).isfinite().all()


def test_occlusion_refuses_a_patch_beyond_the_input(linear, make):
    with pytest.raises(Refusal, match="patch=17 does not fit into the input of 16x16"):
        make("occlusion", patch=17).check(linear)


def test_two_features_are_places(make):
    """[B,1,1,2] inputs, as in the data sets of two numbers."""
    size = (1, 1, 2)
    network = classifier(Linear(size), size, preprocessing=classifier(Linear()).preprocessing.__class__())
    inputs, targets = seeded(4, size), torch.arange(4)
    w = network.module.layer.weight[targets].view(4, *size)
    for name in ("input_x_gradient", "integrated_gradients"):
        assert torch.allclose(attribute(make(name), network, inputs, targets), w * inputs, rtol=1e-12)
    occlusion = attribute(make("occlusion", patch=1), network, inputs, targets)
    assert torch.allclose(occlusion, w * inputs, rtol=1e-9)


def test_gradcam_by_hand(batch, make):
    """Pooling and a linear layer after the feature maps: the gradients are the weights, shared out over the places."""
    inputs, targets = batch
    module = nn.Sequential(nn.Conv2d(3, 4, 5, stride=2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5))
    network = classifier(module, layers={"last_conv": "0"}, batch_size=4)
    features = module[0](inputs)
    alpha = module[3].weight[targets] / features[0, 0].numel()
    cam = (alpha[:, :, None, None] * features).sum(1, keepdim=True)
    for relu in (True, False):
        maps = attribute(make("gradcam", relu=relu), network, inputs, targets)
        expected = nn.Upsample(size=(16, 16), mode="bilinear", align_corners=False)(cam.relu() if relu else cam)
        assert torch.allclose(maps, expected, rtol=1e-9, atol=1e-12)


def test_gradcam_is_not_changed_by_relu_in_place(batch, make):
    """The features are those before the ReLU, also when it overwrites them."""
    maps = []
    for inplace in (False, True):
        torch.manual_seed(3)
        module = nn.Sequential(
            nn.Conv2d(3, 4, 5), nn.ReLU(inplace=inplace), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(144, 5)
        )
        network = classifier(module, layers={"last_conv": "0"})
        maps.append(attribute(make("gradcam", relu=False), network, *batch))
    assert torch.equal(*maps)


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.unused, self.fc = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 1), nn.Linear(3, 5)

    def forward(self, inputs):
        self.unused(inputs)
        return self.fc(self.conv(self.conv(inputs)).mean((2, 3)))


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ("conv", "runs 2 times"),
        ("unused", "does not depend on layer 'unused'"),
        ("fc", r"returns \[1, 5\], expected feature maps"),
        ("cnov", "did you mean 'conv'"),
    ],
)
def test_gradcam_refuses_layers_it_cannot_use(layer, message, make):
    network = classifier(Twice())
    with pytest.raises(Refusal, match=message):
        make("gradcam", layer=layer).check(network)
    assert not network.module.conv._forward_hooks and not network.module.fc._forward_hooks


@pytest.mark.parametrize(
    ("name", "parameter", "value", "message"),
    [
        ("smoothgrad", "samples", 0, "samples=0: expected at least 1"),
        ("vargrad", "samples", 1, "samples=1: expected at least 2"),
        ("smoothgrad", "noise", -0.1, "noise=-0.1: expected"),
        ("smoothgrad", "aggregate", "squared", "did you mean 'square'"),
        ("integrated_gradients", "steps", 0, "steps=0: expected at least 1"),
        ("integrated_gradients", "baseline", "blak", "did you mean 'black'"),
        ("integrated_gradients", "quadrature", "riemann", "did you mean 'riemann_"),
        ("integrated_gradients", "sigma", 0, "sigma=0.0: expected a positive number"),
        ("occlusion", "patch", 0, "patch=0: expected at least 1 pixel"),
        ("occlusion", "stride", 9, "stride=9: expected 1 to 8"),
        ("occlusion", "fill", "zeros", "did you mean 'zero'"),
        ("occlusion", "sigma", -1, "sigma=-1.0: expected a positive number"),
        ("occlusion", "patch", 2.5, "patch=2.5: expected a whole number"),
    ],
)
def test_bad_parameters_are_named(name, parameter, value, message, make):
    with pytest.raises(UserError, match=message) as caught:
        make(name, **{parameter: value})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("parameter", "value"), [("quadrature", "simpson"), ("baseline", "grey"), ("fill", "grey"), ("aggregate", "max")]
)
def test_unknown_words_are_refused_without_build_too(parameter, value):
    from xaibench.methods.gradients.integrated_gradients import IntegratedGradients
    from xaibench.methods.gradients.smoothgrad import SmoothGrad
    from xaibench.methods.removal.occlusion import Occlusion

    target = {"fill": Occlusion, "aggregate": SmoothGrad}.get(parameter, IntegratedGradients)
    with pytest.raises(ValueError, match=f"{parameter}={value}: "):
        target(**{parameter: value})

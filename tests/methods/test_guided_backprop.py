"""Guided backpropagation against a slow, independent rule, and the networks it has to refuse."""

import copy

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from tests.methods.nets import VGGLike, classifier, seeded
from xaibench.errors import Refusal
from xaibench.methods.guided_backprop import GuidedBackprop


class Rule(torch.autograd.Function):
    """y = min(max(x, 0), cap); backwards R -> (0 < x < cap) (R > 0) R."""

    @staticmethod
    def forward(context, x, cap):
        context.save_for_backward((x > 0) & (x < cap))
        return x.clamp(0, cap)

    @staticmethod
    def backward(context, signal):
        return torch.where(context.saved_tensors[0] & (signal > 0), signal, 0), None


class Guided(nn.Module):
    def __init__(self, cap):
        super().__init__()
        self.cap = cap

    def forward(self, x):
        return Rule.apply(x, self.cap)


def with_rule(module):
    """A copy of the network in which every ReLU module is replaced by one that follows the rule itself."""
    module = copy.deepcopy(module)
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.ReLU | nn.ReLU6):
                setattr(parent, name, Guided(6.0 if isinstance(child, nn.ReLU6) else float("inf")))
    return module


class Block(nn.Module):
    """Pre-activation residual block with one in-place ReLU module used twice, its result read twice."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
        self.relu, self.fc = nn.ReLU(inplace=True), nn.Linear(3, 5)

    def forward(self, inputs):
        x = self.first(inputs)
        y = self.relu(self.second(x))
        z = self.relu(x + self.first(y) - 0.5 * y)
        return self.fc(z.mean((2, 3)) - 0.1 * z.amax((2, 3)))


class Discarded(nn.Module):
    """An in-place ReLU whose return value nobody takes."""

    def __init__(self):
        super().__init__()
        self.conv, self.relu, self.fc = nn.Conv2d(3, 6, 3), nn.ReLU(inplace=True), nn.Linear(6, 5)

    def forward(self, inputs):
        x = self.conv(inputs)
        self.relu(x)
        return self.fc(x.mean((2, 3)))


def brighter(module):
    """Large activations, so that ReLU6 saturates in places."""
    with torch.no_grad():
        for layer in module.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.bias.normal_(1, 2)
    return module


@pytest.mark.parametrize("name", ["vgg_like", "residual", "relu6", "resnet18", "mobilenet_v2"])
def test_equals_the_rule_written_out(name):
    size = (3, 32, 32)
    module = {
        "vgg_like": VGGLike,
        "residual": Block,
        "relu6": lambda: nn.Sequential(
            nn.Conv2d(3, 8, 5, stride=3), nn.ReLU6(inplace=True), nn.Conv2d(8, 5, 10), nn.Flatten()
        ),
        "resnet18": lambda: torchvision.models.resnet18(weights=None),
        "mobilenet_v2": lambda: brighter(torchvision.models.mobilenet_v2(weights=None)),
    }[name]()
    network, slow = classifier(module, size), classifier(with_rule(module), size)
    inputs, targets = 8 * seeded(3, size), torch.arange(3)
    method = GuidedBackprop()
    method.check(network)
    maps = method.attribute(network, inputs, targets, [])
    expected = slow.gradient(inputs, targets)
    assert torch.allclose(maps, expected, rtol=1e-9, atol=1e-12 * float(expected.abs().max()))
    plain = network.gradient(inputs, targets)
    assert (maps - plain).abs().max() > 1e-3 * plain.abs().max()


def test_a_discarded_return_value_makes_no_difference():
    torch.manual_seed(1)
    module = Discarded()
    network = classifier(module)
    slow = classifier(
        nn.Sequential(module.conv, Guided(float("inf")), nn.AdaptiveAvgPool2d(1), nn.Flatten(), module.fc)
    )
    inputs, targets = seeded(3), torch.arange(3)
    maps = GuidedBackprop().attribute(network, inputs, targets, [])
    assert torch.allclose(maps, slow.gradient(inputs, targets), rtol=1e-9)


class Functional(nn.Module):
    """A network whose second rectifier is not a module."""

    def __init__(self, rectify):
        super().__init__()
        self.conv, self.relu, self.fc, self.rectify = nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Linear(6, 5), rectify

    def forward(self, inputs):
        return self.fc(self.rectify(self.relu(self.conv(inputs)).mean((2, 3)) - 0.1))


@pytest.mark.parametrize(
    "rectify",
    [
        F.relu,
        F.relu6,
        torch.relu,
        torch.Tensor.relu_,
        lambda x: x.clamp(min=0),
        lambda x: torch.clamp(x, 0, 6),
        lambda x: x.clamp_min(0),
        lambda x: F.threshold(x, 0, 0),
        nn.Hardtanh(0, 6),
        torch.jit.script(nn.ReLU()),
    ],
    ids=["relu", "relu6", "torch.relu", "relu_", "clamp", "clamp06", "clamp_min", "threshold", "hardtanh", "script"],
)
def test_rectifiers_that_are_not_modules_are_refused(rectify):
    network = classifier(Functional(rectify))
    with pytest.raises(Refusal, match="cannot reach 1 of the 2 ReLUs of Functional"):
        GuidedBackprop().check(network)
    assert not network.module.relu._forward_hooks and not network.module.relu._forward_pre_hooks


@pytest.mark.parametrize("other", [lambda x: x.clamp(min=1e-6), torch.sigmoid, F.leaky_relu, F.hardswish, F.normalize])
def test_other_functions_are_not_taken_for_relu(other):
    GuidedBackprop().check(classifier(Functional(other)))


def test_in_place_on_a_slice_is_refused():
    """Whoever reads the whole tensor goes around a hook on the slice: the map would be the plain gradient."""

    class Sliced(Discarded):
        def forward(self, inputs):
            x = self.conv(inputs)
            self.relu(x[:, :3])
            return self.fc(x.mean((2, 3)))

    with pytest.raises(Refusal, match=r"cannot reach 1 of the 1 ReLUs of Sliced.*in place on a slice"):
        GuidedBackprop().check(classifier(Sliced()))


def test_a_network_without_relu_is_refused():
    with pytest.raises(Refusal, match="needs ReLU modules"):
        GuidedBackprop().check(classifier(nn.Sequential(nn.Conv2d(3, 2, 16), nn.GELU(), nn.Flatten())))


@pytest.mark.parametrize("name", ["googlenet", "densenet121", "efficientnet_b0", "vit_b_16"])
def test_torchvision_networks_it_cannot_serve_are_refused(name):
    size = (3, 224, 224) if name == "vit_b_16" else (3, 64, 64)
    keywords = {"init_weights": False} if name == "googlenet" else {}
    with torch.device("meta"):
        module = getattr(torchvision.models, name)(weights=None, **keywords)
    with pytest.raises(Refusal):
        GuidedBackprop().check(classifier(module, size, torch.float32))


def test_hooks_go_when_the_network_fails():
    module = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(7, 5))
    network = classifier(module)
    for action in (
        GuidedBackprop().check,
        lambda n: GuidedBackprop().attribute(n, seeded(1), torch.zeros(1).long(), []),
    ):
        with pytest.raises(RuntimeError):
            action(network)
        assert not module[1]._forward_hooks and not module[1]._forward_pre_hooks


def test_afterwards_the_gradient_is_plain_again():
    network = classifier(VGGLike())
    inputs, targets = seeded(3), torch.arange(3)
    before = network.gradient(inputs, targets)
    GuidedBackprop().attribute(network, inputs, targets, [])
    assert torch.equal(before, network.gradient(inputs, targets))

"""Guided backpropagation against a slow, independent rule, and the networks it has to refuse."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from tests.methods.nets import Block, Discarded, Functional, VGGLike, brighter, classifier, seeded
from xaibench.errors import Refusal
from xaibench.methods.context import Context
from xaibench.methods.rules.guided_backprop import GuidedBackprop


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
    maps = method.attribute(network, inputs, targets, Context())
    expected = slow.gradient(inputs, targets)
    assert torch.allclose(maps, expected, rtol=1e-9, atol=1e-12 * float(expected.abs().max()))
    plain = network.gradient(inputs, targets)
    assert (maps - plain).abs().max() > 1e-3 * plain.abs().max()


def test_a_return_value_may_be_discarded():
    """The trace has an in-place ReLU that nobody reads, the network one that everybody does."""

    class Read(Discarded):
        def forward(self, inputs):
            return self.fc(F.relu(self.conv(inputs)).mean((2, 3)))

    network, plain = classifier(Discarded()), classifier(Read())
    plain.module.load_state_dict(network.module.state_dict())
    inputs, targets = 8 * seeded(3), torch.arange(3)
    maps, expected = (GuidedBackprop().attribute(n, inputs, targets, Context()) for n in (network, plain))
    torch.testing.assert_close(maps, expected)


@pytest.mark.parametrize(
    ("rectify", "cap"),
    [
        (F.relu, math.inf),
        (F.relu6, 6.0),
        (torch.relu, math.inf),
        (lambda x: x.relu_(), math.inf),
        (lambda x: F.relu(x, inplace=True), math.inf),
        (lambda x: x.clamp(min=0), math.inf),
        (lambda x: torch.clamp(x, 0, 0.05), 0.05),
        (lambda x: x.clamp_min(0), math.inf),
        (nn.Hardtanh(0, 6), 6.0),
    ],
    ids=["relu", "relu6", "torch.relu", "relu_", "inplace", "clamp", "clamp05", "clamp_min", "hardtanh"],
)
def test_a_rectifier_is_one_however_it_is_written(rectify, cap):
    network = classifier(Functional(rectify))
    slow = classifier(Functional(Guided(cap)))
    slow.module.load_state_dict(network.module.state_dict())
    slow.module.relu = Guided(math.inf)
    inputs, targets = seeded(3), torch.arange(3)
    GuidedBackprop().check(network)
    maps = GuidedBackprop().attribute(network, inputs, targets, Context())
    torch.testing.assert_close(maps, slow.gradient(inputs, targets))
    assert not torch.allclose(maps, network.gradient(inputs, targets))


@pytest.mark.parametrize(
    "rectify", [lambda x: F.threshold(x, 0, 0), torch.jit.script(nn.ReLU())], ids=["threshold", "script"]
)
def test_rectifiers_that_cannot_be_found_are_refused(rectify):
    with pytest.raises(Refusal, match=r"1 of the 2 ReLUs of Functional cannot be|cannot be traced|is TorchScript"):
        GuidedBackprop().check(classifier(Functional(rectify)))


@pytest.mark.parametrize("other", [lambda x: x.clamp(min=1e-6), torch.sigmoid, F.leaky_relu, F.hardswish, F.normalize])
def test_other_functions_are_not_taken_for_relu(other):
    GuidedBackprop().check(classifier(Functional(other)))


def test_in_place_on_a_slice_is_refused():
    """Whoever reads the whole tensor goes around the ReLU of the slice."""

    class Sliced(Discarded):
        def forward(self, inputs):
            x = self.conv(inputs)
            self.relu(x[:, :3])
            return self.fc(x.mean((2, 3)))

    with pytest.raises(Refusal, match="works in place on a view"):
        GuidedBackprop().check(classifier(Sliced()))


def test_a_network_without_relu_is_refused():
    with pytest.raises(Refusal, match="needs ReLUs"):
        GuidedBackprop().check(classifier(nn.Sequential(nn.Conv2d(3, 2, 16), nn.GELU(), nn.Flatten())))


@pytest.mark.parametrize("name", ["efficientnet_b0", "vit_b_16"])
def test_torchvision_networks_without_relu_are_refused(name):
    size = (3, 224, 224) if name == "vit_b_16" else (3, 64, 64)
    with pytest.raises(Refusal, match=r"needs ReLUs|cannot be traced|returns several"):
        GuidedBackprop().check(classifier(getattr(torchvision.models, name)(weights=None), size, torch.float32))


def test_afterwards_the_gradient_is_plain_again():
    network = classifier(VGGLike())
    inputs, targets = seeded(3), torch.arange(3)
    before = network.gradient(inputs, targets)
    GuidedBackprop().attribute(network, inputs, targets, Context())
    assert torch.equal(before, network.gradient(inputs, targets))

"""The axioms (Sundararajan et al. 2017; H-E10 in the theses) as properties of the methods that claim them."""

import copy

import pytest
import torch
from torch import nn

from tests.methods.nets import VGGLike, classifier, seeded
from tests.perturb.helpers import FILLS
from xaibench.methods.context import Context
from xaibench.perturb.fills import filled
from xaibench.rng import sample_generators

# Nine players; as many coalitions as there are make KernelSHAP's values exact. IG's points are close enough together.
SETTINGS = {
    "gradient": {},
    "input_x_gradient": {},
    "smoothgrad": {},
    "integrated_gradients": {"steps": 50},
    "occlusion": {"patch": 4},
    "exact_shapley": {"players": 9},
    "kernel_shap": {"players": 9, "samples": 600},
    "shapley_sampling": {"players": 9},
    "lime": {"players": 9, "segments": "grid", "samples": 30},
    "rise": {"samples": 30},
    "extremal_perturbation": {},
    "meaningful_perturbation": {},
}
SHAPLEY = ("exact_shapley", "kernel_shap", "shapley_sampling")


def attribute(method, network, inputs, targets):
    return method.attribute(network, inputs, targets, Context(sample_generators(0, "maps", range(len(inputs)))))


@pytest.fixture
def batch():
    return seeded(3), torch.tensor([0, 3, 1])


@pytest.mark.parametrize("fill", FILLS)
@pytest.mark.parametrize("name", SHAPLEY)
def test_completeness_of_shapley_methods(name, fill, make, batch):
    """To rounding, with few samples as with all."""
    inputs, targets = batch
    network = classifier(VGGLike(), batch_size=64)
    drop = network.scores(inputs, targets) - network.scores(filled(inputs, fill, network.preprocessing), targets)
    for settings in (SETTINGS[name], {"players": 9} | ({} if name == "exact_shapley" else {"samples": 3})):
        maps = attribute(make(name, fill=fill, **settings), network, inputs, targets)
        torch.testing.assert_close(maps.sum((1, 2, 3)), drop, rtol=0, atol=1e-12)


def test_completeness_of_input_x_gradient_without_biases(make, batch):
    module = VGGLike()
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.bias.data.zero_()
    network = classifier(module)
    maps = attribute(make("input_x_gradient"), network, *batch)
    torch.testing.assert_close(maps.sum((1, 2, 3)), network.scores(*batch), rtol=1e-10, atol=1e-14)


class Blind(nn.Module):
    """A network that does not see one corner, which is one player and one patch."""

    def __init__(self) -> None:
        super().__init__()
        self.net = VGGLike()

    def forward(self, inputs):
        seen = torch.ones_like(inputs[:1, :1])
        seen[:, :, :6, 10:] = 0
        return self.net(inputs * seen)


@pytest.mark.parametrize(
    "name", ["gradient", "input_x_gradient", "smoothgrad", "integrated_gradients", "occlusion", *SHAPLEY]
)
def test_dummy(name, make, batch):
    """What the network does not look at gets nothing, and what it looks at gets something."""
    settings = {"patch": 5} if name == "occlusion" else SETTINGS[name]
    maps = attribute(make(name, **settings), classifier(Blind(), batch_size=64), *batch)
    corner = maps[:, :, :5, 11:]
    assert corner.abs().max() <= 1e-10 * maps.abs().max() and maps.abs().max() > 0


class Sum(nn.Module):
    def __init__(self, first, second, a, b):
        super().__init__()
        self.first, self.second, self.a, self.b = first, second, a, b

    def forward(self, inputs):
        return self.a * self.first(inputs) + self.b * self.second(inputs)


@pytest.mark.parametrize("name", [name for name in SETTINGS if not name.endswith("_perturbation")])
def test_linearity(name, make, batch):
    """The map of a f + b g is a times that of f plus b times that of g, given the same draws."""
    method, nets = make(name, **SETTINGS[name]), [VGGLike(), VGGLike()]
    first, second = (attribute(method, classifier(net, batch_size=64), *batch) for net in nets)
    both = attribute(method, classifier(Sum(*nets, 2.0, -0.7), batch_size=64), *batch)
    torch.testing.assert_close(both, 2 * first - 0.7 * second, rtol=0, atol=1e-10 * both.abs().max().item())


def rewritten(module):
    """The same function, differently computed: channels in another order, and scaled between layers."""
    module = copy.deepcopy(module)
    first, second = module.features[0], module.features[3]
    order, scale = torch.randperm(6), 0.5 + torch.rand(6)
    first.weight.data, first.bias.data = first.weight[order] * scale.view(-1, 1, 1, 1), first.bias[order] * scale
    second.weight.data = second.weight[:, order] / scale.view(-1, 1, 1)
    return module


@pytest.mark.parametrize("name", SETTINGS)
def test_implementation_invariance(name, make, batch):
    # Optimisations turn rounding into steps: few of them.
    settings = SETTINGS[name] | ({"steps": 4} if name.endswith("_perturbation") else {})
    module = VGGLike().double()
    nets = [classifier(net, batch_size=64) for net in (module, rewritten(module))]
    assert not torch.equal(*(net.module.features[0](batch[0]) for net in nets))
    torch.testing.assert_close(*(net.logits(batch[0]) for net in nets), rtol=0, atol=1e-12)
    maps = [attribute(make(name, **settings), net, *batch) for net in nets]
    torch.testing.assert_close(*maps, rtol=0, atol=1e-8 * maps[0].abs().max().item())


class Saturated(nn.Module):
    """f(x) = 1 - relu(1 - x) of the mean of each half of the image: 1 - relu(1 - x) is flat at 1 and beyond."""

    def forward(self, inputs):
        halves = torch.stack([inputs[..., :8].mean((1, 2, 3)), inputs[..., 8:].mean((1, 2, 3))], dim=1)
        return 1 - (1 - halves).relu()


@pytest.mark.parametrize("name", ["gradient", "integrated_gradients", *SHAPLEY])
def test_sensitivity_to_what_made_the_output(name, make):
    """At x = 2 the gradient is 0, though f(2) - f(0) = 1: methods with a baseline see it, the gradient does not."""
    inputs = torch.full((1, 3, 16, 16), 2.0, dtype=torch.float64)
    maps = attribute(make(name, **SETTINGS[name]), classifier(Saturated(), batch_size=64), inputs, torch.tensor([0]))
    seen = 0 if name == "gradient" else 1
    # IG's 50 points decide to within 1/50 where the slope ends.
    assert maps.sum().item() == pytest.approx(seen, abs=0.05 if name == "integrated_gradients" else 1e-9)
    # A player of the middle column sees both halves.
    assert maps[..., 11:].abs().max() < 1e-12


@pytest.mark.parametrize("name", ["exact_shapley", "kernel_shap"])
def test_symmetry(name, make):
    """Players who do the same everywhere get the same: here f is symmetric in the places of the image."""

    class Symmetric(nn.Module):
        def forward(self, inputs):
            means = inputs.mean((1, 2, 3))
            return torch.stack([means.exp(), means.sin()], dim=1)

    inputs = torch.full((1, 3, 15, 15), 1.3, dtype=torch.float64)
    network = classifier(Symmetric(), (3, 15, 15), batch_size=64)
    maps = attribute(make(name, **SETTINGS[name]), network, inputs, torch.ones(1, dtype=torch.long))
    torch.testing.assert_close(maps, torch.full_like(maps, maps.mean().item()), rtol=1e-9, atol=0)
    assert maps.mean() > 0

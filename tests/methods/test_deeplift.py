"""DeepLIFT: complete, equal to a slow reference of the paper's formulas, and to its closed forms."""

import functools

import pytest
import torch
from torch import nn

from tests.methods import dense, shapes
from tests.methods.helpers import Noise
from tests.methods.nets import Linear, classifier, seeded
from xaibench.datasets.base import Samples
from xaibench.errors import Refusal
from xaibench.methods.context import Context
from xaibench.methods.rules.deeplift import DeepLIFT
from xaibench.models.cut import INPUT, LOGITS
from xaibench.models.resnet_cifar import ResNetCifar
from xaibench.rng import sample_generators

RULES = ["rescale", "reveal_cancel", "ablation"]
shaped = functools.cache(shapes.shaped)


def maps_of(method, network, inputs, targets, **context):
    generators = sample_generators(0, "maps", range(len(inputs)))
    return method.attribute(network, inputs, targets, Context(generators, **context))


def missed(method, network, inputs, targets, start):
    """How far the maps' sums are from f(x) - f(x'), relative to it."""
    difference = network.scores(inputs, targets) - network.scores(start, targets)
    sums = maps_of(method, network, inputs, targets).sum((1, 2, 3))
    return float(((sums - difference) / difference).abs().max())


@pytest.mark.parametrize("how", ["shared", "functional_inplace"])
@pytest.mark.parametrize("name", ["vgg", "resnet", "mobilenet"])
@pytest.mark.parametrize("rule", ["rescale", "reveal_cancel"])
def test_maps_are_complete(name, rule, how):
    """With reused, functional and in-place ReLUs, ReLU6, batch normalisation, overlapping pooling, residual sums."""
    network = classifier(shapes.rewritten(shaped(name), how), shapes.SIZE)
    inputs, targets = seeded(2, shapes.SIZE), torch.tensor([3, 1])
    method = DeepLIFT(rule, "white")
    (start,) = method.baselines.of(network, inputs, Context())
    assert missed(method, network, inputs, targets, start) < 1e-11


class Gates(nn.Module):
    """Other activations, concatenation, an activation that reads a concatenation, batch normalisation that stays."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.head = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(12), nn.Linear(12, 5)
        self.norm.running_mean += 0.3

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.first(x)
        y = nn.functional.gelu(torch.cat([nn.functional.leaky_relu(y, 0.2), torch.tanh(y)], 1))
        return self.head(torch.sigmoid(nn.functional.elu(self.norm(y))).amax((2, 3)))


@pytest.mark.parametrize("rule", ["rescale", "reveal_cancel"])
def test_maps_are_complete_for_other_activations(rule):
    network, inputs = classifier(Gates()), seeded(3)
    method = DeepLIFT(rule)
    assert missed(method, network, inputs, torch.tensor([0, 3, 2]), torch.zeros_like(inputs)) < 1e-11


@pytest.mark.parametrize("rule", RULES)
def test_a_linear_network_has_its_weights_times_the_difference(rule):
    network, inputs, targets = classifier(Linear()), seeded(4), torch.tensor([0, 1, 2, 3])
    (start,) = (method := DeepLIFT(rule, "black")).baselines.of(network, inputs, Context())
    weights = network.module.layer.weight[targets].view_as(inputs)
    if rule == "ablation":
        weights = weights.clamp(min=0)
    torch.testing.assert_close(maps_of(method, network, inputs, targets), weights * (inputs - start))


def slow(rule: str, found: list[tuple], x: torch.Tensor, reference: torch.Tensor, target: int) -> torch.Tensor:
    """Contributions of one sample's values, neuron by neuron from the formulas of Shrikumar et al. 2017 (section 3)."""
    values, references = dense.forward(found, x), dense.forward(found, reference)
    plus = torch.zeros_like(values[-1])
    plus[target] = 1
    minus = plus.clone()
    for level in range(len(found) - 1, -1, -1):
        (kind, *parts), after, after0 = found[level], values[level + 1], references[level + 1]
        before, before0 = values[level], references[level]
        delta = before - before0
        new_plus, new_minus = torch.zeros_like(before), torch.zeros_like(before)
        if kind == "affine":
            weights, rising = parts[0], delta > 0
            if rule == "ablation":
                # The chain of one sign never reaches the other: a product w delta keeps delta's sign if w > 0.
                moved = weights.clamp(min=0) * torch.where(rising, plus[:, None], minus[:, None])
            else:
                moved = weights * torch.where(weights * delta > 0, plus[:, None], minus[:, None])
            still = weights * (plus + minus)[:, None] / 2
            new_plus = torch.where(delta == 0, still, moved).sum(0)
            new_minus = new_plus.clone()
        elif kind == "relu" and rule == "reveal_cancel":
            weights, below = found[level - 1][1], values[level - 1] - references[level - 1]
            for k in range(len(before)):
                products = weights[k] * below
                up, down, y0 = products[products > 0].sum(), products[products < 0].sum(), before0[k]
                risen = (relu(y0 + up) - relu(y0) + relu(y0 + up + down) - relu(y0 + down)) / 2
                fallen = (relu(y0 + down) - relu(y0) + relu(y0 + up + down) - relu(y0 + up)) / 2
                new_plus[k] = plus[k] * (risen / up if up > 0 else 0)
                new_minus[k] = minus[k] * (fallen / down if down < 0 else 0)
        elif kind == "relu":
            for k in range(len(before)):
                slope = (after[k] - after0[k]) / delta[k]
                new_plus[k], new_minus[k] = plus[k] * slope, minus[k] * slope
        else:
            shares = torch.zeros_like(before)
            for k, window in enumerate(parts[0]):
                most = max(after[k], after0[k])
                way = plus[k] if after[k] > after0[k] else minus[k]
                shares[window[before[window].argmax()]] += way * (most - after0[k])
                shares[window[before0[window].argmax()]] += way * (after[k] - most)
            gradient = torch.zeros_like(before)
            for k, window in enumerate(parts[0]):
                gradient[window[before[window].argmax()]] += plus[k] if after[k] >= after0[k] else minus[k]
            new_plus = torch.where(delta == 0, gradient, shares / delta)
            new_minus = new_plus.clone()
        plus, minus = new_plus, new_minus
    return torch.where(delta > 0, plus, minus) * delta


def relu(value):
    return max(value, 0)


@pytest.mark.parametrize("rule", RULES)
def test_equals_the_slow_reference(rule):
    """From a reference of its own for each value, so that no difference is 0 at the input; inputs of both signs."""
    network = classifier(dense.network(), dense.SHAPE)
    found, inputs, targets = dense.layers(network.module), seeded(2, dense.SHAPE), torch.tensor([4, 1])
    maps = maps_of(method := DeepLIFT(rule, "blur", sigma=1.0), network, inputs, targets)
    (starts,) = method.baselines.of(network, inputs, Context())
    for one, x, start, target in zip(maps, inputs, starts, targets):
        torch.testing.assert_close(one.flatten(), slow(rule, found, x, start, int(target)), rtol=1e-9, atol=1e-12)


class Minimum(nn.Module):
    """min(i1, i2) = i1 - ReLU(i1 - i2) (Shrikumar et al. 2017, figure 2), of inputs [B,1,1,2]."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(2, 2, bias=False), nn.Linear(2, 1, bias=False)
        self.inner.weight.data = torch.tensor([[1.0, -1.0], [1.0, 0.0]])
        self.outer.weight.data = torch.tensor([[-1.0, 1.0]])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.outer(torch.relu(self.inner(x.flatten(1))))


def test_reveal_cancel_shares_a_minimum_where_rescale_does_not():
    network = classifier(Minimum(), (1, 1, 2))
    inputs = torch.tensor([[3.0, 1.0], [1.0, 2.5], [0.5, 0.25]], dtype=torch.float64).view(3, 1, 1, 2)
    targets, least = torch.zeros(3, dtype=torch.long), inputs.amin(3).flatten()
    shared = maps_of(DeepLIFT("reveal_cancel"), network, inputs, targets).flatten(1)
    torch.testing.assert_close(shared, (least / 2)[:, None].expand(3, 2))
    alone = maps_of(DeepLIFT("rescale"), network, inputs, targets).flatten(1)
    smaller = torch.nn.functional.one_hot(inputs.flatten(1).argmin(1), 2)
    torch.testing.assert_close(alone, least[:, None] * smaller)


def test_several_references_are_averaged():
    network, inputs, targets = classifier(ResNetCifar(8), (3, 32, 32)), seeded(3, (3, 32, 32)), torch.arange(3)
    images = Samples(Noise(8, (3, 32, 32)), network.preprocessing, range(8))
    method = DeepLIFT(baseline=["dataset", "white"], references=3)
    assert method.cost(network) == (5, 4)
    fitted = method.fit(network, images, torch.Generator().manual_seed(0))
    maps = maps_of(method, network, inputs, targets, fitted=fitted)
    starts = method.baselines.of(network, inputs, Context(fitted=fitted))
    ends = torch.stack([network.scores(start, targets) for start in starts]).mean(0)
    torch.testing.assert_close(maps.sum((1, 2, 3)), network.scores(inputs, targets) - ends)
    alone = maps_of(DeepLIFT(baseline="white"), network, inputs, targets)
    only_data = maps_of(DeepLIFT(baseline="dataset", references=3), network, inputs, targets, fitted=fitted)
    torch.testing.assert_close(maps, (3 * only_data + alone) / 4)


@pytest.mark.parametrize("rule", RULES)
def test_propagated_signals_are_the_multipliers(rule):
    """From the logits to the input: times the difference, the map; linear in the signal, started and read anywhere."""
    network, inputs, targets = classifier(ResNetCifar(8), (3, 32, 32)), seeded(2, (3, 32, 32)), torch.tensor([1, 4])
    method = DeepLIFT(rule, "blur")
    (start,) = method.baselines.of(network, inputs, Context())
    hot = nn.functional.one_hot(targets, 10).double()
    other = torch.randn(hot.shape, dtype=torch.float64)
    layers = ("input", "layer1", "layer2", "linear")
    one, two, both = method.propagate(network, inputs, [hot, other, 2 * hot - other], LOGITS, layers, Context())
    torch.testing.assert_close(one["input"] * (inputs - start), maps_of(method, network, inputs, targets))
    for name in layers:
        torch.testing.assert_close(both[name], 2 * one[name] - two[name])
    below = ("layer1", "input", "linear")
    (through,) = method.propagate(network, inputs, [one["layer2"]], "layer2", below, Context())
    torch.testing.assert_close(through["input"], one["input"])
    assert torch.equal(through["linear"], torch.zeros_like(hot))


def test_a_reference_drawn_for_each_map_cannot_be_propagated_from():
    network = classifier(Linear())
    with pytest.raises(Refusal, match="baseline=noise"):
        signals = [torch.ones(1, 5, dtype=torch.float64)]
        DeepLIFT(baseline="noise").propagate(network, seeded(1), signals, LOGITS, [INPUT], Context())
    with pytest.raises(Refusal, match="set output=logit"):
        DeepLIFT().check(classifier(Linear(), output="probability"))
    with pytest.raises(ValueError, match="did you mean 'rescale'"):
        DeepLIFT("rescal")

"""PatternNet and PatternAttribution: patterns against brute force and closed forms, maps against matrices."""

import copy
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
from xaibench.methods.rules.pattern import Moments, PatternAttribution, PatternNet
from xaibench.models.cut import INPUT, LOGITS
from xaibench.models.preprocessing import Preprocessing
from xaibench.models.tracing.graph import Graph
from xaibench.models.tracing.steps import Convolution, Dense

METHODS = [PatternNet, PatternAttribution]
ESTIMATORS = ["linear", "positive", "unconditional"]
shaped = functools.cache(shapes.shaped)


def images(network, size, count=40):
    return Samples(Noise(count, size), network.preprocessing, range(count))


def fitted(method, network, size, count=40):
    return method.fit(network, images(network, size, count), torch.Generator().manual_seed(0))


def brute(w, b, x, estimator):
    """One neuron's pattern from its samples x [N,C], by means."""
    y = x @ w
    of_all = y.mean()
    kept = torch.ones_like(y, dtype=torch.bool) if estimator == "linear" else y + b > 0
    x, y = x[kept], y[kept]
    covariance = (x * y[:, None]).mean(0) - x.mean(0) * (of_all if estimator == "unconditional" else y.mean())
    return covariance / (w @ covariance)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 6, 3, padding=1),
        nn.Conv2d(4, 6, (2, 3), stride=2, padding=(1, 0), dilation=(1, 2), groups=2, bias=False),
        nn.Linear(5, 3),
    ],
    ids=["convolution", "grouped", "linear"],
)
def test_patterns_equal_brute_force_over_patches(layer, estimator):
    """Fed in three batches; patches of a convolution taken apart by unfolding, zeros at the border included."""
    layer = layer.double()
    size = (4, 6, 7) if isinstance(layer, nn.Conv2d) else (5, 1, 1)
    module = nn.Sequential(layer) if isinstance(layer, nn.Conv2d) else nn.Sequential(nn.Flatten(), layer)
    network = classifier(nn.Sequential(*module, nn.Flatten()), size, preprocessing=Preprocessing())
    (step,) = [step for step in Graph.of(network).steps if isinstance(step, Convolution | Dense)]
    moments = Moments(step, estimator != "linear", estimator == "unconditional")
    inputs = seeded(30, size)
    values = inputs if isinstance(layer, nn.Conv2d) else inputs.flatten(1)
    for rows in (slice(0, 10), slice(10, 11), slice(11, 30)):
        moments.update(values[rows])
    found = moments.pattern()
    bias = torch.zeros(len(layer.weight)) if layer.bias is None else layer.bias.detach()
    groups = getattr(layer, "groups", 1)
    for k, w in enumerate(layer.weight.detach()):
        x = values
        if isinstance(layer, nn.Conv2d):
            per_group = 4 // groups
            group = k * groups // len(layer.weight)
            own = values[:, group * per_group : (group + 1) * per_group]
            patches = nn.functional.unfold(own, layer.kernel_size, layer.dilation, layer.padding, layer.stride)
            x = patches.transpose(1, 2).flatten(0, 1)
        expected = brute(w.flatten(), bias[k], x, estimator)
        torch.testing.assert_close(found[k].flatten(), expected)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("name", ["vgg", "resnet"])
def test_a_pattern_has_an_output_of_one(name, estimator):
    """w a = 1 for every neuron that varied, 0 for the others; batch normalisation folded, batches of any size."""
    module = shaped(name)
    network = classifier(module, shapes.SIZE, batch_size=16)
    patterns = fitted(PatternNet(estimator), network, shapes.SIZE, 12)
    graph = Graph.of(network)
    values = graph.run(next(iter(images(network, shapes.SIZE, 12))).inputs.double())
    assert patterns.keys() == {step.name for step in graph.of_kind(Convolution | Dense)}
    for place, step in enumerate(graph.steps, 1):
        if step.name in patterns:
            open_places = (values[place].transpose(0, 1).flatten(1) > 0).sum(1)
            # A single value has no variance, but a distance from the mean of all.
            fewest = {"linear": -1, "positive": 1, "unconditional": 0}[estimator]
            varied = open_places > fewest
            through = (step.weight * patterns[step.name]).flatten(1).sum(1)
            torch.testing.assert_close(through, varied.double())
    others = fitted(PatternNet(estimator), classifier(module, shapes.SIZE, batch_size=3), shapes.SIZE, 12)
    for layer, pattern in patterns.items():
        torch.testing.assert_close(others[layer], pattern, rtol=1e-6, atol=1e-9)


def test_the_signal_of_a_linear_model_is_found_where_its_gradient_is_not_it():
    """Kindermans et al. 2018, section 3: x = y a_s + e a_d, w a_s = 1, w a_d = 0. The weights filter the distractor;
    only the pattern is the signal's direction, exactly where y and e are not correlated in the data."""
    network = classifier(Linear((3, 1, 1), 1), (3, 1, 1))
    signal = torch.tensor([1.0, 0.2, 0.0], dtype=torch.float64)
    distractor = torch.tensor([1.0, 1.0, 0.5], dtype=torch.float64)
    weights = torch.tensor([1.0, 0.0, -2.0], dtype=torch.float64)
    weights = weights - (weights @ distractor) / (distractor @ distractor) * distractor
    weights = weights / (weights @ signal)
    network.module.layer.weight.data = weights[None]
    network.module.layer.bias.data.zero_()
    draw = torch.randn(500, 2, dtype=torch.float64)
    y, e = torch.linalg.qr(draw - draw.mean(0)).Q.T
    (step,) = Graph.of(network).of_kind(Dense)
    moments = Moments(step, positive=False)
    moments.update(y[:, None] * signal + e[:, None] * distractor + 3)
    fits = {step.name: moments.pattern()}
    inputs, targets = seeded(2, (3, 1, 1)), torch.zeros(2, dtype=torch.long)
    maps = PatternNet("linear", start="one").attribute(network, inputs, targets, Context(fitted=fits))
    torch.testing.assert_close(maps.flatten(1), signal.expand(2, 3))
    slope = network.gradient(inputs, targets).flatten(1)[0]
    assert nn.functional.cosine_similarity(slope, signal, dim=0) < 0.7
    contributions = PatternAttribution("linear", start="one").attribute(network, inputs, targets, Context(fitted=fits))
    torch.testing.assert_close(contributions.flatten(1), (weights * signal).expand(2, 3))


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("method", METHODS)
def test_maps_equal_the_matrices(method, masked):
    """A chain of transposed matrices, those of the network with patterns in place of its weights."""
    module = dense.network()
    network = classifier(module, dense.SHAPE)
    method = method("positive", masked)
    fits = fitted(method, network, dense.SHAPE)
    replaced = copy.deepcopy(module)
    for name, layer in replaced.named_modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            pattern = fits[f"_{name}"]
            layer.weight.data = layer.weight * pattern if isinstance(method, PatternAttribution) else pattern
    found, patterns = dense.layers(module), dense.layers(replaced)
    inputs, targets = seeded(3, dense.SHAPE), torch.tensor([4, 1, 0])
    maps = method.attribute(network, inputs, targets, Context(fitted=fits))
    for one, x, target in zip(maps, inputs, targets):
        values = dense.forward(found, x)
        signal = nn.functional.one_hot(target, 5) * values[-1]
        for (kind, *_), (_, *parts), before in reversed(list(zip(found, patterns, values))):
            if kind == "affine":
                signal = parts[0].T @ signal
            elif kind == "relu":
                signal = signal * (before > 0) if masked else signal
            else:
                below = torch.zeros_like(before)
                for k, window in enumerate(parts[0]):
                    below[window[before[window].argmax()]] += signal[k]
                signal = below
        torch.testing.assert_close(one.flatten(), signal)


@pytest.mark.parametrize("method", METHODS)
def test_maps_belong_to_their_sample_and_are_linear_in_the_signal(method):
    size = (3, 16, 16)
    network = classifier(dense_like(), size, batch_size=64)
    method = method()
    fits = fitted(method, network, size, 10)
    inputs, targets = seeded(7, size), torch.arange(7) % 5
    together = method.attribute(network, inputs, targets, Context(fitted=fits))
    for part in range(7):
        one = method.attribute(network, inputs[part : part + 1], targets[part : part + 1], Context(fitted=fits))
        torch.testing.assert_close(one[0], together[part], rtol=1e-9, atol=1e-12)
    signals = torch.randn(2, 7, 5, dtype=torch.float64)
    signals = [*signals, signals.sum(0)]
    first, second, both = method.propagate(network, inputs, signals, LOGITS, [INPUT], Context(fitted=fits))
    torch.testing.assert_close(both["input"], first["input"] + second["input"])


def dense_like() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, 2), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(196, 8), nn.ReLU(), nn.Linear(8, 5)
    )


def test_refusals():
    network = classifier(dense_like(), (3, 16, 16))
    with pytest.raises(Refusal, match="no patterns"):
        PatternNet().attribute(network, seeded(1), torch.tensor([0]), Context())
    with pytest.raises(Refusal, match="set output=logit"):
        PatternNet().check(classifier(dense_like(), (3, 16, 16), output="probability"))
    with pytest.raises(ValueError, match="estimator=negative"):
        PatternNet("negative")

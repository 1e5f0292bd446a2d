"""Pathway gradients against slow, independent rules, and the networks that they have to refuse."""

import copy
import logging

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from skimage.morphology import opening
from torch import nn
from torchvision.models import resnet, vgg

from tests.methods.nets import SIZE, Block, Discarded, Functional, VGGLike, brighter, classifier, seeded
from xaibench.errors import Refusal
from xaibench.methods.context import Context
from xaibench.methods.pathways._pathway_neurons import contributions, integrated_contributions, observe
from xaibench.methods.pathways.path_pgd import PathPGD
from xaibench.methods.pathways.pathway import Pathway, opened, strongest
from xaibench.methods.pathways.selectors import ActivePath, GreedyPath, NeuronIntGrad, NeuronMCT, RandomPath, RoutedPath
from xaibench.models.relus import untangle
from xaibench.rng import sample_generators

IMAGE = (3, 32, 32)
NETS = {
    "vgg_like": VGGLike,
    "reused in place": Block,
    "relu6": lambda: nn.Sequential(
        nn.Conv2d(3, 8, 5, stride=3), nn.ReLU6(inplace=True), nn.Conv2d(8, 5, 10), nn.Flatten()
    ),
    "vgg": lambda: nn.Sequential(
        vgg.make_layers([8, "M", 16, 16, "M"]), nn.Flatten(), nn.Linear(1024, 20), nn.ReLU(True), nn.Linear(20, 5)
    ),
    "resnet": lambda: resnet.ResNet(resnet.BasicBlock, [1, 1, 1, 1]),
    "mobilenet": lambda: brighter(torchvision.models.MobileNetV2(width_mult=0.25)),
}


class Scripted(nn.Module):
    """Stands in for a ReLU module and follows a script: what to do with the output of each call in turn."""

    def __init__(self, calls):
        super().__init__()
        self.calls = calls

    def forward(self, x):
        return next(self.calls)(F.relu(x))


class ScriptedSix(Scripted):
    def forward(self, x):
        return next(self.calls)(x.clamp(0, 6))


def gradient_by_script(module, inputs, targets, script):
    """The gradient of a network whose ReLUs are replaced by modules that follow the script."""
    module, calls = copy.deepcopy(module), iter(script)
    made = {}
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.ReLU | nn.ReLU6):
                kind = ScriptedSix if isinstance(child, nn.ReLU6) else Scripted
                setattr(parent, name, made.setdefault(child, kind(calls)))
    x = inputs.clone().requires_grad_(True)
    logits = module(x)
    assert next(calls, None) is None
    return torch.autograd.grad(logits.gather(1, targets[:, None]).sum(), x)[0], logits.detach()


@pytest.mark.parametrize("off_path", ["constant", "zero"])
@pytest.mark.parametrize("name", NETS)
def test_equals_the_path_network_written_out(name, off_path):
    module, inputs, targets = NETS[name]().double().eval(), 8 * seeded(3, IMAGE), torch.arange(3)
    network = classifier(module, IMAGE)
    method = NeuronMCT(0.95, off_path=off_path)
    method.check(network)
    path = method.path(network, inputs, targets, [])
    # The released code multiplies by the mask; the thesis keeps the value and stops the gradient.
    expected, logits = gradient_by_script(
        module,
        inputs,
        targets,
        [lambda a, e=e: a * e if off_path == "zero" else e * a + ~e * a.detach() for e in path],
    )
    maps = method.attribute(network, inputs, targets, Context())
    assert torch.allclose(maps, expected, rtol=1e-9, atol=1e-12 * float(expected.abs().max()))
    plain = network.gradient(inputs, targets)
    assert (maps - plain).abs().max() > 1e-3 * plain.abs().max()
    clean = network.logits(inputs)
    same = torch.allclose(logits, clean, rtol=1e-12, atol=1e-12 * float(clean.abs().max()))
    assert same == (off_path == "constant")


def test_contributions_by_finite_differences():
    """Neuron by neuron, the output changes by 2h a df/da when the neuron is scaled by 1 + h and by 1 - h."""
    network, inputs, targets = classifier(Block(), (3, 4, 4)), seeded(2, (3, 4, 4)), torch.tensor([3, 1])
    found = contributions(network, inputs, targets)
    assert [layer.shape[1:] for layer in found] == [(3, 4, 4), (3, 4, 4)]
    for layer, values in enumerate(found):
        for place in np.ndindex(*values.shape[1:]):
            scores = []
            for scale in (1 + 1e-6, 1 - 1e-6):
                factors = torch.ones_like(values)
                factors[:, *place] = scale
                script = [(lambda a, f=factors: a * f) if k == layer else (lambda a: a) for k in range(2)]
                _, logits = gradient_by_script(network.module, inputs, targets, script)
                scores.append(logits.gather(1, targets[:, None])[:, 0])
            assert torch.allclose((scores[0] - scores[1]) / 2e-6, values[:, *place], rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("batch_size", [2, 7, 32])
def test_integrated_contributions_step_by_step(batch_size):
    network, inputs = classifier(VGGLike(), batch_size=batch_size), seeded(2)
    targets, places, weights = torch.tensor([3, 1]), [0.1, 0.4, 0.8], [0.2, 0.5, 0.3]
    found = integrated_contributions(network, inputs, targets, places, weights)
    _, neurons = observe(network, inputs)
    assert len(found) == 4
    for layer, values in enumerate(found):
        expected = torch.zeros_like(values)
        for place, weight in zip(places, weights):
            leaf = (place * neurons[layer]).requires_grad_(True)
            calls = iter([(lambda a, x=leaf: x) if k == layer else (lambda a: a) for k in range(4)])
            module, made = copy.deepcopy(network.module), {}
            for parent in list(module.modules()):
                for name, child in parent.named_children():
                    if isinstance(child, nn.ReLU):
                        setattr(parent, name, made.setdefault(child, Scripted(calls)))
            total = module(inputs).gather(1, targets[:, None]).sum()
            expected += weight * torch.autograd.grad(total, leaf)[0]
        assert torch.allclose(values, expected * neurons[layer], rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("method", [NeuronMCT(0.8), NeuronIntGrad(0.8, steps=3), GreedyPath(0.5, steps=4)])
def test_reused_relus_are_like_separate_ones(method):
    module = resnet.ResNet(resnet.BasicBlock, [1, 1, 1, 1]).double().eval()
    inputs, targets = 4 * seeded(2, IMAGE), torch.arange(2)
    raw = method.attribute(classifier(module, IMAGE), inputs, targets, Context())
    separate = method.attribute(classifier(untangle(copy.deepcopy(module)), IMAGE), inputs, targets, Context())
    assert raw.abs().max() > 0
    assert torch.allclose(raw, separate, rtol=1e-9, atol=1e-12 * float(raw.abs().max()))


@pytest.mark.parametrize("rectify", [F.relu, torch.relu, lambda x: x.clamp(min=0), nn.Hardtanh(0, 6)])
def test_rectifiers_that_are_not_modules_are_refused(rectify):
    with pytest.raises(Refusal, match="pathway methods cannot reach 1 of the 2 ReLUs of Functional"):
        ActivePath().check(classifier(Functional(rectify)))


def test_a_network_without_relu_is_refused():
    with pytest.raises(Refusal, match="need ReLU modules"):
        NeuronMCT().check(classifier(nn.Sequential(nn.Conv2d(3, 2, 16), nn.GELU(), nn.Flatten())))


class PreActivation(nn.Module):
    """A shortcut that reads what an in-place ReLU has overwritten."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.relu = nn.Conv2d(3, 3, 3), nn.Conv2d(3, 5, 14), nn.ReLU(inplace=True)

    def forward(self, inputs):
        x = self.first(inputs)
        return (self.second(self.relu(x)) + x.mean((1, 2, 3), keepdim=True)).flatten(1)


class PlacesFirst(nn.Module):
    """Linear layers over places, with the places before the samples."""

    def __init__(self):
        super().__init__()
        self.relu, self.fc = nn.ReLU(), nn.Linear(3, 5)

    def forward(self, inputs):
        return self.fc(self.relu(inputs.flatten(2).permute(2, 0, 1))).mean(0)


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (Discarded, "in-place ReLU of Discarded changes a tensor that other layers read"),
        (PreActivation, "in-place ReLU of PreActivation changes a tensor that other layers read"),
        (PlacesFirst, "ReLU of PlacesFirst returns a tensor whose rows are not the samples"),
    ],
)
def test_networks_that_cannot_be_altered_are_refused(module, message):
    network = classifier(module())
    with pytest.raises(Refusal, match=message):
        NeuronMCT().check(network)
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in network.module.modules())


def test_in_place_relus_are_in_place_again():
    network = classifier(VGGLike())
    NeuronMCT().attribute(network, seeded(2), torch.arange(2), Context())
    assert network.module.features[1].inplace and not network.module.features[4].inplace


@pytest.mark.parametrize("samples", [1, 5, 10])
@pytest.mark.parametrize(
    "method",
    [
        NeuronMCT(),
        NeuronIntGrad(steps=3),
        GreedyPath(0.5, steps=3),
        RoutedPath(steps=3),
        RandomPath(),
        ActivePath(),
        PathPGD(steps=3),
    ],
    ids=lambda method: type(method).__name__,
)
def test_the_network_is_called_as_often_as_the_cost_says(method, samples):
    network, calls = classifier(VGGLike(), batch_size=4), []
    forwards, backwards = method.cost(network)
    network.module.register_forward_pre_hook(lambda module, arguments: calls.append(len(arguments[0])))
    method.attribute(
        network, seeded(samples), torch.arange(samples) % 5, Context(sample_generators(0, "maps", range(samples)))
    )
    assert sum(calls) == samples * forwards and max(calls) <= 4
    assert backwards <= forwards


def test_strongest_ranks_over_the_whole_network():
    draw = torch.Generator().manual_seed(0)
    scores = [torch.rand(5, 3, 4, generator=draw), 2 * torch.rand(5, 7, generator=draw)]
    for sparsity in (0.0, 0.3, 0.9, 0.99):
        path = strongest(scores, sparsity)
        for row in range(5):
            flat = np.concatenate([layer[row].numpy().ravel() for layer in scores])
            keep = max(round((1 - sparsity) * 19), 1)
            best = set(np.argsort(-flat)[:keep])
            assert set(np.flatnonzero(np.concatenate([layer[row].numpy().ravel() for layer in path]))) == best


@pytest.mark.parametrize(
    ("scores", "sparsity", "at_least", "strict"),
    [
        ([5.0, 3.0, 3.0, 1.0], 0.5, [1, 1, 1, 0], [1, 0, 0, 0]),
        ([5.0, 3.0, 3.0, 1.0], 0.25, [1, 1, 1, 0], [1, 1, 1, 0]),
        # With a threshold of 0, "at least" would take the whole network.
        ([5.0, 0.0, 0.0, 0.0], 0.5, [1, 0, 0, 0], [1, 0, 0, 0]),
        ([5.0, -1.0, 2.0, -3.0], 0.0, [1, 0, 1, 0], [1, 0, 1, 0]),
    ],
)
def test_ties_and_scores_that_are_not_positive(scores, sparsity, at_least, strict, caplog):
    layers = [torch.tensor([scores[:1]]), torch.tensor([scores[1:]])]
    with caplog.at_level(logging.INFO, "xaibench"):
        for rule, expected in ((False, at_least), (True, strict)):
            caplog.clear()
            assert torch.cat(strongest(layers, sparsity, rule), 1)[0].int().tolist() == expected
            shorter = sum(expected) < round((1 - sparsity) * 4)
            assert ("1 of 1 paths are shorter than" in caplog.text) == shorter


@pytest.mark.parametrize("side", [1, 3, 5])
def test_opening_is_scikit_images(side):
    maps = torch.rand(3, 1, 12, 9, dtype=torch.float64)
    expected = [opening(image.numpy(), np.ones((side, side))) for image in maps[:, 0]]
    assert np.array_equal(opened(maps, side)[:, 0].numpy(), np.stack(expected))


def test_the_opened_variant_opens_the_largest_channel():
    network, inputs, targets = classifier(VGGLike()), seeded(3), torch.arange(3)
    maps = NeuronMCT(0.5, opening=3).attribute(network, inputs, targets, Context())
    plain = NeuronMCT(0.5).attribute(network, inputs, targets, Context()).abs().amax(1)
    assert maps.shape == (3, 1, *SIZE[1:])
    expected = [opening(image.numpy(), np.ones((3, 3))) for image in plain]
    assert np.allclose(maps[:, 0].numpy(), np.stack(expected), rtol=1e-9, atol=0)


def test_signed_ranking_takes_only_what_speaks_for_the_output():
    network, inputs, targets = classifier(VGGLike()), seeded(3), torch.arange(3)
    scores = contributions(network, inputs, targets)
    signed = NeuronMCT(0.0, signed=True).path(network, inputs, targets, [])
    absolute = NeuronMCT(0.0).path(network, inputs, targets, [])
    assert all(torch.equal(path, score > 0) for path, score in zip(signed, scores))
    assert all(torch.equal(path, score != 0) for path, score in zip(absolute, scores))


def test_a_random_path_has_its_share_of_every_layer_and_belongs_to_the_sample():
    network, inputs, targets = classifier(VGGLike()), seeded(4), torch.arange(4)
    method = RandomPath(0.75)
    path = method.path(network, inputs, targets, sample_generators(0, "maps", range(4)))
    for layer in path:
        assert (layer.flatten(1).sum(1) == max(round(0.25 * layer[0].numel()), 1)).all()
    assert not torch.equal(path[0][0], path[0][1])
    alone = method.path(network, inputs[2:3], targets[2:3], sample_generators(0, "maps", [2]))
    assert all(torch.equal(layer[2:3], own) for layer, own in zip(path, alone))


def routed_by_hand(module, image, gates, gamma, steps, learning_rate, momentum, tries):
    """Distillation-guided routing of one image through Flatten-Linear-ReLU-Linear-ReLU-Linear, update by update."""
    first, second, third = module[1], module[3], module[5]
    x = image.flatten()

    def answer(gates):
        one = torch.relu(first(x)) * gates[0]
        return third(torch.relu(second(one)) * gates[1])

    with torch.no_grad():
        clean = answer([torch.ones_like(gate) for gate in gates])
    for attempt in range(tries):
        now, velocity = [gate.clone() for gate in gates], [torch.zeros_like(gate) for gate in gates]
        best, best_loss = None, float("inf")
        for _ in range(steps):
            leaves = [gate.clone().requires_grad_(True) for gate in now]
            logits = answer(leaves)
            size = sum(gate.abs().sum() for gate in leaves)
            loss = -(clean.softmax(0) * logits.log_softmax(0)).sum() + gamma / 10**attempt * size
            if logits.argmax() == clean.argmax() and loss.item() < best_loss:
                best, best_loss = [gate.clone() for gate in now], loss.item()
            for k, gradient in enumerate(torch.autograd.grad(loss, leaves)):
                velocity[k] = momentum * velocity[k] + gradient
                now[k] = (now[k] - learning_rate * velocity[k]).clamp(0, 100)
        if best is not None:
            return best, attempt
    return None, tries


@pytest.mark.parametrize("initial", ["ones", "random"])
def test_routing_update_by_update(initial):
    torch.manual_seed(3)
    module = nn.Sequential(nn.Flatten(), nn.Linear(12, 20), nn.ReLU(), nn.Linear(20, 20), nn.ReLU(), nn.Linear(20, 5))
    with torch.no_grad():
        module[-1].weight.mul_(6)
    network, inputs = classifier(module, (3, 2, 2)), 3 * seeded(6, (3, 2, 2))
    settings = {"gamma": 0.3, "steps": 60, "learning_rate": 0.05, "momentum": 0.9, "tries": 10}
    if initial == "random":
        # So heavy a penalty that gates are 0 after one step.
        settings |= {"gamma": 100.0}
    path = RoutedPath(0.7, initial, **settings).path(
        network, inputs, torch.zeros(6).long(), sample_generators(0, "maps", range(6))
    )
    attempts = []
    for row, generator in enumerate(sample_generators(0, "maps", range(6))):
        gates = [torch.ones(20).double()] * 2
        if initial == "random":
            gates = [torch.rand(20, generator=generator).double() for _ in range(2)]
        gates, attempt = routed_by_hand(network.module, inputs[row], gates, **settings)
        attempts.append(attempt)
        flat = torch.cat(gates)
        expected = (flat > flat.sort().values[40 - 12 - 1]) & (flat > 0)  # more than the 13th largest
        assert torch.equal(torch.cat([layer[row] for layer in path]), expected), row
    assert (max(attempts) > 0) == (initial == "random")


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [
        (NeuronMCT, {"sparsity": 1.0}),
        (RandomPath, {"sparsity": -0.1}),
        (NeuronMCT, {"off_path": "mean"}),
        (NeuronMCT, {"opening": 2}),
        (ActivePath, {"opening": -1}),
        (NeuronIntGrad, {"steps": 0}),
        (NeuronIntGrad, {"steps": 1, "quadrature": "riemann_trapezoid"}),
        (NeuronIntGrad, {"quadrature": "simpson"}),
        (GreedyPath, {"steps": 0}),
        (GreedyPath, {"rate": 0.0}),
        (RoutedPath, {"initial": "zeros"}),
        (RoutedPath, {"gamma": -1.0}),
        (RoutedPath, {"learning_rate": 0.0}),
        (RoutedPath, {"momentum": 1.0}),
        (RoutedPath, {"tries": 0}),
    ],
)
def test_bad_parameters_are_refused(kind, wrong):
    name, value = list(wrong.items())[-1]
    with pytest.raises(ValueError, match="steps=1" if value == "riemann_trapezoid" else f"{name}={value}"):
        kind(**wrong)


class Given(Pathway):
    """A path made by a function of the neurons."""

    def __init__(self, choose, **options):
        super().__init__(**options)
        self.choose = choose

    def path(self, classifier, inputs, targets, generators):
        return [self.choose(k, layer) for k, layer in enumerate(observe(classifier, inputs)[1])]


@pytest.mark.parametrize("off_path", ["constant", "zero"])
def test_paths_that_do_not_reach_are_reported(off_path, caplog):
    """T11 of the spec: without a chain from input to output the gradient is 0."""
    network, inputs, targets = classifier(VGGLike()), seeded(3), torch.arange(3)
    keep = torch.tensor([True, False, True])

    def second_layer_only_for_some(k, layer):
        return (layer > 0) & (keep.view(-1, *[1] * (layer.dim() - 1)) | torch.tensor(k != 1))

    with caplog.at_level(logging.WARNING, "xaibench"):
        maps = Given(second_layer_only_for_some, off_path=off_path).attribute(network, inputs, targets, Context())
    assert torch.equal((maps != 0).flatten(1).any(1), keep)
    assert "1 of 3 paths do not reach from input to output" in caplog.text

"""What the theory of pathway gradients says must hold: properties T1 to T14 and T20 of the theses' reading.

T11 is in `test_pathway.py`; T13, the divergences of input IBA, in `test_input_iba.py`.
"""

import copy
import itertools
import logging
import math

import numpy as np
import pytest
import torch
from torch import nn

from tests.methods.nets import Block, VGGLike, classifier, seeded
from xaibench.build import build
from xaibench.datasets.base import Batch, Samples
from xaibench.methods.bottleneck._bottleneck import Bottleneck, Optimisation, find_mask
from xaibench.methods.context import Context
from xaibench.methods.gradients.gradient import Gradient
from xaibench.methods.gradients.integrated_gradients import points
from xaibench.methods.pathways._pathway_neurons import altered, contributions, integrated_contributions, observe
from xaibench.methods.pathways.path_pgd import PathPGD, norms
from xaibench.methods.pathways.pathway import path_alone, path_gradient
from xaibench.methods.pathways.selectors import ActivePath, GreedyPath, NeuronIntGrad, NeuronMCT, RandomPath, RoutedPath
from xaibench.methods.rules.guided_backprop import GuidedBackprop
from xaibench.metrics.pathways.path_dead import PathDead
from xaibench.metrics.pathways.path_linearity import PathLinearity
from xaibench.metrics.pathways.path_output import PathOutput
from xaibench.metrics.ranking import mid_ranks
from xaibench.models.loading import load_classifier
from xaibench.rng import sample_generators

SMALL = (3, 2, 2)


def mlp(seed, width=16, layers=3):
    """A Classifier around a random ReLU network of 12 inputs and 5 outputs."""
    torch.manual_seed(seed)
    widths = [12] + [width] * layers
    hidden = [part for a, b in itertools.pairwise(widths) for part in (nn.Linear(a, b), nn.ReLU())]
    return classifier(nn.Sequential(nn.Flatten(), *hidden, nn.Linear(width, 5)), SMALL)


def linear(weights, biases=None):
    layer = nn.Linear(len(weights[0]), len(weights))
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(weights))
        layer.bias.copy_(torch.zeros(len(weights)) if biases is None else torch.tensor(biases))
    return layer


def scalar(*layers):
    """A Classifier of one number in [1,1,1], from layers of given weights with ReLUs between them."""
    parts = [nn.Flatten()]
    for layer in layers:
        parts += [layer, nn.ReLU()]
    return classifier(nn.Sequential(*parts[:-1]), (1, 1, 1))


ONE, FIRST = torch.ones(1, 1, 1, 1, dtype=torch.float64), torch.zeros(1, dtype=torch.int64)
BATCH, TARGETS = 2 * seeded(6, SMALL), torch.arange(6) % 5
FINE = points("riemann_middle", 1000)


def of_path(metric, network, inputs, targets, method):
    """The columns of a metric of paths for the path that a method chooses."""

    def path(x, classes, rows):
        return method.path(network, x, classes, generators[rows])

    batch = Batch(tuple(range(len(inputs))), inputs, targets, targets, None, (0,) * len(inputs))
    generators = sample_generators(0, "maps", batch.samples)
    return metric.evaluate(network, batch, None, Context(generators, path=path))


def joined(neurons):
    return torch.cat([layer.flatten(1) for layer in neurons], 1)


def without(network, inputs, targets, layer, factors):
    """The explained output where the outputs of a layer are multiplied by factors [B,...]."""
    with altered(network.module, lambda k, output: output * factors if k == layer else output):
        return network.scores(inputs, targets)


def test_t1_dead_neurons_contribute_exactly_nothing():
    for network, inputs in [(mlp(0), BATCH), (classifier(VGGLike()), seeded(6))]:
        dead = joined(observe(network, inputs)[1]) == 0
        assert dead.any() and not dead.all()
        for scores in (
            contributions(network, inputs, TARGETS),
            integrated_contributions(network, inputs, TARGETS, *points("riemann_right", 7)),
        ):
            assert (joined(scores)[dead] == 0).all()
        for method in (NeuronMCT, NeuronIntGrad):
            for sparsity in (0.0, 0.3, 0.9):
                assert not (joined(method(sparsity).path(network, inputs, TARGETS, [])) & dead).any()
                assert (of_path(PathDead(), network, inputs, TARGETS, method(sparsity))["dead"] == 0).all()


def shapley(value, players):
    """Exact Shapley values [B,players] of a game: value(coalition, a tuple of players) -> [B]."""
    worth = {}
    for size in range(players + 1):
        for coalition in itertools.combinations(range(players), size):
            worth[frozenset(coalition)] = value(coalition)
    found = []
    for player in range(players):
        total = 0.0
        for coalition in (c for c in worth if player not in c):
            weight = math.factorial(len(coalition)) * math.factorial(players - len(coalition) - 1)
            total = total + weight / math.factorial(players) * (worth[coalition | {player}] - worth[coalition])
        found.append(total)
    return torch.stack(found, 1)


def layer_game(network, layer, width):
    def value(coalition):
        factors = torch.zeros(width, dtype=torch.float64)
        factors[list(coalition)] = 1
        return without(network, BATCH, TARGETS, layer, factors)

    return shapley(value, width)


@pytest.mark.parametrize("layer", [0, 1])
def test_t2_the_shapley_value_of_a_dead_neuron_is_nothing(layer):
    network = mlp(1, width=8, layers=2)
    values = layer_game(network, layer, 8)
    dead = observe(network, BATCH)[1][layer] == 0
    assert dead.any() and (values[dead] == 0).all() and (values[~dead] != 0).any()
    # Both give out what the layer is worth; that they give it to the same neurons is not claimed.
    integrated = integrated_contributions(network, BATCH, TARGETS, *FINE)[layer]
    assert torch.allclose(values.sum(1), integrated.sum(1), rtol=1e-2, atol=1e-3)


def outputs_during(network, work):
    """Logits of the last pass of the network while something is done."""
    seen = []
    handle = network.module.register_forward_hook(lambda module, arguments, output: seen.append(output.detach()))
    try:
        work()
    finally:
        handle.remove()
    return seen[-1]


@pytest.mark.parametrize("method", [RandomPath(0.5), NeuronMCT(0.7), GreedyPath(0.4, steps=5)])
def test_t3_constants_keep_the_output_and_zeros_do_not(method):
    network, inputs = mlp(2), BATCH
    clean = network.logits(inputs)
    for off_path, same in (("constant", True), ("zero", False)):
        method.off_path = off_path
        logits = outputs_during(
            network, lambda: method.attribute(network, inputs, TARGETS, Context(sample_generators(0, "maps", range(6))))
        )
        assert torch.equal(logits, clean) == same
    found = of_path(PathOutput(), network, inputs, TARGETS, method)
    assert (found["change_constant"] == 0).all() and (found["change"] > 0).all()


def path_network(network, path, constants):
    """The function of an input [1,C,H,W] that the path network is: logits and pre-activations."""

    def run(x):
        before = []
        relus = [module for module in network.module if isinstance(module, nn.ReLU)]
        handles = [relu.register_forward_pre_hook(lambda module, z: before.append(z[0])) for relu in relus]
        try:
            with altered(network.module, lambda k, output: torch.where(path[k], output, constants[k])):
                return network.module(x), torch.cat(before, 1)
        finally:
            for handle in handles:
                handle.remove()

    return run


def linear_radius(run, x, path):
    """The least |z| / ||grad z|| over the path's neurons whose gradient is not 0: a network's radius of linearity."""
    x = x.clone().requires_grad_(True)
    _, before = run(x)
    distances = []
    for k in torch.nonzero(joined(path)[0])[:, 0]:
        norm = torch.autograd.grad(before[0, k], x, retain_graph=True)[0].norm()
        if norm > 0:
            distances.append(float(before[0, k].detach().abs() / norm))
    return min(distances)


def rows(neurons, row):
    return [layer[row : row + 1] for layer in neurons]


def test_t4_the_path_network_is_linear_within_its_radius():
    network = mlp(3)
    constants, method = observe(network, BATCH)[1], NeuronMCT(0.6)
    path = method.path(network, BATCH, TARGETS, [])
    maps = method.attribute(network, BATCH, TARGETS, Context())
    draw = torch.Generator().manual_seed(0)
    found = of_path(PathLinearity(neurons=None), network, BATCH, TARGETS, method)
    assert (found["error"] < 1e-9).all()
    for row in range(len(BATCH)):
        x, own = BATCH[row : row + 1], rows(path, row)
        run = path_network(network, own, rows(constants, row))
        radius = linear_radius(run, x, own)
        assert radius > 0 and float(found["radius"][row]) == pytest.approx(radius, rel=1e-9)
        logits, before = run(x)
        pattern = (before > 0)[joined(own)]
        for _ in range(20):
            step = torch.randn(x.shape, generator=draw, dtype=x.dtype)
            step *= 0.99 * radius / step.norm()
            moved, after = run(x + step)
            expected = logits[0, TARGETS[row]] + (maps[row] * step[0]).sum()
            assert abs(float(moved[0, TARGETS[row]] - expected)) < 1e-12
            assert torch.equal((after > 0)[joined(own)], pattern)


def test_t5_the_path_network_is_linear_further_out():
    """No theorem: so it is in twenty random networks of three layers of 64, with their paths at 70 %."""
    ratios = []
    for seed in range(20):
        network = mlp(100 + seed, width=64)
        found = of_path(PathLinearity(neurons=None), network, BATCH[:1], TARGETS[:1], NeuronMCT(0.7))
        ratios.append(float(found["ratio"]))
    assert min(ratios) > 1 and sum(ratios) / 20 > 5


@pytest.mark.parametrize("make", [lambda: mlp(4), lambda: classifier(Block(), SMALL)], ids=["mlp", "residual"])
def test_t6_the_contributions_of_a_layer_add_up(make):
    network = make()
    whole = network.scores(BATCH, TARGETS)
    for steps, most in ((50, 0.1), (800, 0.01)):
        for rule in ("riemann_middle", "riemann_right"):
            found = integrated_contributions(network, BATCH, TARGETS, *points(rule, steps))
            for layer, scores in enumerate(found):
                lost = whole - without(network, BATCH, TARGETS, layer, torch.zeros(()))
                error = (scores.flatten(1).sum(1) - lost).abs().max() / lost.abs().max()
                assert error < most, (steps, rule, layer, error)


def test_t7_null_players():
    """f(a) = a - 2 relu(a - 1/2) has f(1) = f(0): the neuron's exact contribution is 0, and its Taylor one is not."""
    network = scalar(linear([[1.0]]), linear([[1.0], [1.0]], [0.0, -0.5]), linear([[1.0, -2.0]]))
    exact = network.scores(ONE, FIRST) - without(network, ONE, FIRST, 0, torch.zeros(()))
    assert float(exact) == 0
    assert float(contributions(network, ONE, FIRST)[0]) == -1
    assert float(integrated_contributions(network, ONE, FIRST, *FINE)[0]) == pytest.approx(0, abs=1e-12)


def test_t7_symmetric_neurons_contribute_the_same():
    network = mlp(5, width=8, layers=2)
    with torch.no_grad():
        first, second = network.module[1], network.module[3]
        first.weight[3], first.bias[3] = first.weight[5], first.bias[5]
        second.weight[:, 3] = second.weight[:, 5]
    values = [
        contributions(network, BATCH, TARGETS)[0],
        integrated_contributions(network, BATCH, TARGETS, *points("riemann_middle", 9))[0],
        layer_game(network, 0, 8),
    ]
    for found in values:
        assert torch.allclose(found[:, 3], found[:, 5], rtol=1e-9) and (found[:, 3] != 0).any()


def test_t8_in_the_last_layer_every_contribution_is_the_exact_one():
    network = mlp(6)
    activations, weights = observe(network, BATCH)[1][-1], network.module[-1].weight[TARGETS]
    for scores in (
        contributions(network, BATCH, TARGETS),
        integrated_contributions(network, BATCH, TARGETS, *points("riemann_right", 3)),
    ):
        assert torch.allclose(scores[-1], weights * activations, rtol=1e-9, atol=1e-15)
    for neuron in range(16):
        factors = torch.ones(16, dtype=torch.float64)
        factors[neuron] = 0
        lost = network.scores(BATCH, TARGETS) - without(network, BATCH, TARGETS, 2, factors)
        assert torch.allclose(lost, scores[-1][:, neuron], rtol=1e-9, atol=1e-12)


def test_t9_greedy_pruning_revives_the_dead():
    """A, C = relu(x); B = relu(C - 2 A) is dead until A, which adds little by way of D, has been pruned."""
    network = scalar(linear([[1.0], [1.0]]), linear([[-2.0, 1.0], [1.0, 0.0]]), linear([[5.0, 0.1]]))
    assert joined(observe(network, ONE)[1]).tolist() == [[1, 1, 0, 1]]
    path = joined(GreedyPath(0.25, steps=1).path(network, ONE, FIRST, []))
    assert path.tolist() == [[False, True, True, True]]
    gates = [path[:, :2], path[:, 2:]]
    assert joined(contributions(network, ONE, FIRST, gates)).tolist() == [[0, 5, 5, 0]]
    for sparsity in (0.0, 0.25, 0.5, 0.75):
        assert not joined(NeuronMCT(sparsity).path(network, ONE, FIRST, []))[0, 2]
    assert float(of_path(PathDead(), network, ONE, FIRST, GreedyPath(0.25, steps=1))["dead"]) == pytest.approx(1 / 3)


def test_t10_without_the_clause_the_dead_are_pruned_first():
    network = mlp(7)
    scores = joined(contributions(network, BATCH, TARGETS))
    for row in range(len(BATCH)):
        idle = int((scores[row] == 0).sum())
        arguments = network, BATCH[row : row + 1], TARGETS[row : row + 1], []
        pruned_first = joined(GreedyPath(idle / 48, steps=1, rate=1.0, prune_zero=True).path(*arguments))
        assert torch.equal(pruned_first[0], scores[row] != 0)
        spared = joined(GreedyPath(idle / 48, steps=1, rate=1.0).path(*arguments))
        assert spared[0][scores[row] == 0].all()


def test_greedy_prunes_the_weakest_of_what_is_left_round_by_round():
    network, kept = mlp(8), torch.ones(6, 48, dtype=torch.bool)
    for rounds in range(1, 6):
        gates = [kept[:, start : start + 16] for start in (0, 16, 32)]
        scores = joined(contributions(network, BATCH, TARGETS, gates)).abs()
        for row in range(6):
            candidates = [k for k in range(48) if scores[row, k] > 0]
            quota = min(math.ceil(0.2 * len(candidates)), int(kept[row].sum()) - (48 - 24))
            for k in sorted(candidates, key=lambda k: float(scores[row, k]))[:quota]:
                kept[row, k] = False
        path = joined(GreedyPath(0.5, steps=rounds, rate=0.2).path(network, BATCH, TARGETS, []))
        assert torch.equal(path, kept)


def released(network, inputs, targets, sparsity, steps):
    """The released code's pruning, neuron by neuron."""
    kept = torch.ones(len(inputs), 48, dtype=torch.bool)
    for done in range(1, steps + 1):
        gates = [kept[:, start : start + 16] for start in (0, 16, 32)]
        scores = joined(contributions(network, inputs, targets, gates)).abs().numpy()
        for row, values in enumerate(scores):
            filled = [value if value > 0 else values.max() for value in values]
            threshold = np.quantile(filled, sparsity * done / steps, method="inverted_cdf")
            for k in range(48):
                kept[row, k] = bool(values[k] == 0 or values[k] > threshold)
    return kept


@pytest.mark.parametrize("sparsity", [0.5, 0.99])
def test_the_released_schedule_prunes_by_quantiles_and_lets_neurons_return(sparsity, caplog):
    network, method = mlp(8), GreedyPath(sparsity, steps=9, schedule="released")
    with caplog.at_level(logging.INFO, "xaibench"):
        path = joined(method.path(network, BATCH, TARGETS, []))
    assert torch.equal(path, released(network, BATCH, TARGETS, sparsity, 9))
    reached = 1 - path.double().mean(1)
    assert f"reached a sparsity of {reached.mean():.4f} on average, {reached.min():.4f} at least" in caplog.text


@pytest.mark.parametrize("selector", ["neuron_mct", "pathway_active"])
def test_path_pgd_goes_straight_down_where_the_path_network_is_linear(selector):
    """Within a small ball the network is linear, and the way is its gradient, as long as the radius."""
    network = mlp(3)
    maps = PathPGD(selector, 0.6, epsilon=1e-6).attribute(network, BATCH, TARGETS, Context())
    path = (NeuronMCT(0.6) if selector == "neuron_mct" else ActivePath()).path(network, BATCH, TARGETS, [])
    gradient = path_gradient(network, BATCH, TARGETS, path)
    expected = 1e-6 * norms(BATCH) * gradient.abs() / norms(gradient)
    assert torch.allclose(maps, expected, rtol=1e-9, atol=0)


def test_path_pgd_stays_in_its_ball_and_lowers_the_path_networks_answer():
    network, method = mlp(3), PathPGD(sparsity=0.6, epsilon=0.5, steps=60)
    path, constants = NeuronMCT(0.6).path(network, BATCH, TARGETS, []), observe(network, BATCH)[1]
    with path_alone(network, BATCH, path)():
        way = method._moved(network, BATCH, TARGETS)
    assert torch.equal(method.attribute(network, BATCH, TARGETS, Context()), way.abs())
    assert (norms(way) <= 0.5 * norms(BATCH) * (1 + 1e-12)).all() and (norms(way) > 0).all()
    with altered(network.module, lambda k, output: torch.where(path[k], output, constants[k])):
        assert (network.scores(BATCH + way, TARGETS) < network.scores(BATCH, TARGETS)).all()


@pytest.mark.parametrize("make", [lambda: mlp(9), lambda: classifier(VGGLike())], ids=["mlp", "vgg_like"])
def test_t12_the_path_of_all_active_neurons_has_the_plain_gradient(make):
    network = make()
    inputs = seeded(5, network.input_size)
    targets = torch.arange(5)
    expected = network.gradient(inputs, targets)
    # So has the path of every neuron that contributes.
    for method in (ActivePath(), ActivePath(off_path="zero"), NeuronMCT(0.0)):
        assert torch.equal(method.attribute(network, inputs, targets, Context()), expected)


@pytest.mark.parametrize(("beta", "kept"), [(1e-6, 1.0), (1e6, 0.0)])
def test_t14_the_bottleneck_opens_and_closes_with_beta(beta, kept):
    torch.manual_seed(0)
    inputs = (torch.rand(2, 3, 6, 6, dtype=torch.float64) + 1) * torch.randn(2, 3, 6, 6).sign()
    mean, std = torch.zeros(2, 3, 1, 1).double(), torch.ones(2, 3, 1, 1).double()

    def losses(z, copies):
        # All evidence speaks for the target: each feature that is lost costs.
        evidence = (z * inputs.repeat_interleave(copies, 0).sign()).flatten(1).mean(1)
        return nn.functional.softplus(-evidence)

    alpha = find_mask(
        Bottleneck(inputs, mean, std),
        losses,
        Optimisation(beta=beta, steps=60, learning_rate=1.0, copies=4, smoothing=0, initial=2),
        sample_generators(0, "x", [0, 1]),
        99,
    )
    assert (alpha.sigmoid() - kept).abs().max() < 0.01


@pytest.fixture(scope="module")
def trained():
    """The bundled network and eight images of its data set."""
    spec = {
        "_target_": "xaibench.models.smallcnn.SmallCNN",
        "num_classes": 10,
        "weights": "bundled:smallcnn_object.safetensors",
        "input_size": [3, 64, 64],
        "mean": [0.5, 0.5, 0.5],
        "std": [0.25, 0.25, 0.25],
    }
    network = load_classifier("smallcnn", spec)
    dataset = build(
        {"_target_": "xaibench.datasets.shapes.Shapes", "split": "test", "task": "object", "generator_seed": 0},
        "dataset",
    )
    return network, Samples(dataset, network.preprocessing, range(8)).load(range(8))


def test_t20_guided_backpropagation_hardly_sees_a_random_last_layer(trained):
    """A positive control of sanity checks, and the gradient the negative one: rank correlation of |maps|."""
    network, batch = trained
    randomised = copy.deepcopy(network)
    with torch.no_grad():
        nn.init.kaiming_normal_(randomised.module.classifier[3].weight)
        randomised.module.classifier[3].bias.zero_()

    def similarity(method):
        ranks = []
        for model in (network, randomised):
            maps = method.attribute(model, batch.inputs, batch.targets, Context())
            rank = mid_ranks(maps.abs().amax(1).flatten(1))
            ranks.append(rank - rank.mean(1, keepdim=True))
        return nn.functional.cosine_similarity(*ranks)

    guided, plain = similarity(GuidedBackprop()), similarity(Gradient())
    assert guided.mean() > 0.9 and (guided > plain).all()


def test_the_papers_order_of_selectors(trained):
    """Section 5 of the paper: dead neurons on the path, and how much of it the contributions choose as well."""
    network, batch = trained
    inputs, targets = batch.inputs[:2], batch.targets[:2]
    dead = joined(observe(network, inputs)[1]) == 0
    paths = {
        "mct": NeuronMCT(),
        "intgrad": NeuronIntGrad(steps=3),
        "greedy": GreedyPath(steps=20),
        "ones": RoutedPath(steps=60, learning_rate=0.03),
        "random gates": RoutedPath(initial="random", steps=60, learning_rate=0.03),
        "random": RandomPath(),
    }
    generators = {name: sample_generators(0, name, range(2)) for name in paths}
    paths = {name: joined(made.path(network, inputs, targets, generators[name])) for name, made in paths.items()}
    share = {name: float((path & dead).sum() / path.sum()) for name, path in paths.items()}
    assert share["mct"] == share["intgrad"] == 0
    assert share["ones"] < 0.15 and share["random gates"] > 3 * share["ones"]
    assert share["random"] == pytest.approx(float(dead.double().mean()), abs=0.02)
    assert share["greedy"] > share["random"]

    def overlap(name):
        return float((paths["intgrad"] & paths[name]).sum() / (paths["intgrad"] | paths[name]).sum())

    assert overlap("mct") > overlap("ones") > 2 * overlap("random gates") and overlap("greedy") < 0.1

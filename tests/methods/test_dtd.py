"""Deep Taylor decomposition with roots: its closed forms, and what the propositions of Sixt & Landgraf 2022 say."""

import importlib.util
import itertools
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional

from tests.methods.nets import FullyConnected, Pooled, VGGLike, classifier, seeded
from xaibench.errors import Refusal
from xaibench.methods.context import Context
from xaibench.methods.rules import dtd
from xaibench.methods.rules.dtd import (
    FullDTD,
    InterpolatedRoots,
    Layer,
    RootFinder,
    TrainFreeDTD,
    decomposed,
    dense_layers,
)
from xaibench.methods.rules.lrp import LRP
from xaibench.methods.rules.rules import AffineRule, Epsilon, Gamma, Square
from xaibench.rng import sample_generators

SIZE = (3, 2, 2)
TARGETS = torch.tensor([0, 3, 2])
SCRIPT = Path(__file__).parents[2] / "scripts" / "dtd_roots.py"


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(3)
    return classifier(FullyConnected(SIZE), SIZE)


@pytest.fixture(scope="module")
def study():
    """The script that makes the table of roots, with its toy network."""
    spec = importlib.util.spec_from_file_location("dtd_roots", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def maps_of(method, network, inputs, targets=TARGETS):
    return method.attribute(network, inputs, targets, Context(sample_generators(0, "maps", range(len(inputs)))))


# ---- train-free ------------------------------------------------------------------------------------------------


class PositiveWeights(AffineRule):
    """w+ a / sum w+ a: what z+ is where inputs may be negative, and biases are left out."""

    def __call__(self, step, inputs, output, signal):
        weight = step.weight.clamp(min=0)
        total = step.linear(inputs, weight)
        (share,) = step.transposed(torch.where(total == 0, 0, signal / total), weight, inputs)
        return (inputs[0] * share,)


@pytest.mark.parametrize(
    ("root", "rule"),
    [
        ("zplus", PositiveWeights()),
        ("square", Square()),
        ("gamma", Gamma(0.7, bias="dropped", form="original")),
        ("zero", Epsilon(0.0, bias="dropped")),
    ],
)
def test_root_by_root_is_the_closed_form(network, root, rule):
    inputs = seeded(3, SIZE)
    torch.testing.assert_close(
        maps_of(TrainFreeDTD(root, gamma=0.7), network, inputs),
        maps_of(LRP(rule), network, inputs),
        rtol=1e-12,
        atol=1e-12,
    )


@pytest.mark.parametrize("root", ["zplus", "square", "gamma", "zero"])
def test_roots_lie_on_their_hyperplanes_and_conserve(network, root):
    """w (a - root) is the relevance of each neuron: what the neuron's linear part loses on the way to its root."""
    layer, a = dense_layers(network)[0], seeded(3, SIZE).flatten(1)
    relevance = torch.rand(3, 6, dtype=torch.float64)
    roots = dtd.TrainFreeRoots(root).roots(layer.weight, a, relevance)
    torch.testing.assert_close((layer.weight * (a[:, None] - roots)).sum(2), relevance)


def test_a_large_gamma_is_zplus(study):
    toy, zero = study.network(), torch.zeros(5, dtype=torch.long)
    inputs = study.drawn(toy, 5)
    found = [maps_of(TrainFreeDTD(root, gamma=1e9), toy, inputs, zero) for root in ("gamma", "zplus")]
    torch.testing.assert_close(*found, rtol=1e-6, atol=1e-8)


def test_the_table_of_roots_is_that_of_the_released_code_with_its_rules_applied(study):
    """Shares of 1000 inputs there, of 1000 others here: within four standard errors; an input's 10 roots count as 2."""
    toy = study.network()
    inputs = study.drawn(toy, 1000)
    for rule, before in study.BEFORE.items():
        got = study.shares(toy, inputs, rule)
        for share, expected, draws in zip(
            (got["inputs_outside"], got["region"], got["output"]), before, (1000, 2000, 2000)
        ):
            error = 100 * (expected / 100 * (1 - expected / 100) * 2 / draws) ** 0.5
            assert abs(share - expected) <= 4 * error, (rule, share, expected)


# ---- the recursive decomposition ---------------------------------------------------------------------------------


class Shrunk(RootFinder):
    """The point times a factor, a constant to the decomposition unless it may move."""

    def __init__(self, factor: float, moves: bool = False) -> None:
        self.factor, self.moves = factor, moves

    def __call__(self, points, relevance, layers, generator):
        roots = self.factor * (points if self.moves else points.detach())
        return roots[:, None].expand(-1, len(layers[0].weight), -1)


def test_constant_roots_in_the_region_give_gradient_times_the_way(study):
    """Proposition 2: whatever the layers between; and not any more once a root leaves the region."""
    toy = study.network()
    inputs, zero = study.drawn(toy, 20), torch.zeros(20, dtype=torch.long)
    slopes = toy.gradient(inputs, zero)
    near = maps_of(FullDTD(Shrunk(1 - 1e-9)), toy, inputs, zero) / 1e-9
    torch.testing.assert_close(near, slopes * inputs, rtol=1e-5, atol=1e-7)
    exact = maps_of(FullDTD(Shrunk(0.999)), toy, inputs, zero) - slopes * inputs * 0.001
    inside, far_inside = ((toy.gradient(f * inputs, zero) == slopes).flatten(1).all(1) for f in (0.999, 0.9))
    assert inside.sum() >= 15
    assert exact[inside].abs().max() < 1e-15
    far = maps_of(FullDTD(Shrunk(0.9)), toy, inputs, zero) - slopes * inputs * 0.1
    assert far[~far_inside].abs().max() > 1e-3


def test_at_the_root_0_there_is_nothing_to_expand(study):
    """With biases of 0 and less the gradient at 0 is 0: what LRP-0 says of its root is no Taylor decomposition."""
    toy = study.network()
    inputs, zero = study.drawn(toy, 5), torch.zeros(5, dtype=torch.long)
    assert toy.gradient(torch.zeros_like(inputs), zero).abs().max() == 0
    assert maps_of(FullDTD(Shrunk(0.0)), toy, inputs, zero).abs().max() == 0
    assert maps_of(TrainFreeDTD("zero"), toy, inputs, zero).abs().max() > 0.01


class Watched(RootFinder):
    """Keeps how many roots of another finder lie outside of the linear region of their point."""

    def __init__(self, finder: RootFinder) -> None:
        self.finder, self.candidates, self.outside, self.moved = finder, finder.candidates, 0, 0

    def __call__(self, points, relevance, layers, generator):
        roots = self.finder(points, relevance, layers, generator)
        count, neurons, size = roots.shape
        here, there = signs(layers, points), signs(layers, roots.reshape(-1, size))
        self.outside += int((there.view(count, neurons, -1) != here[:, None]).any(2).sum())
        self.moved += int((roots != points[:, None]).any(2).sum())
        return roots


@torch.no_grad()
def signs(layers, points):
    found = []
    for layer in layers:
        found.append(layer.linear(points) > 0)
        points = layer(points)
    return torch.cat(found, 1)


class TrainFree(RootFinder):
    """Algorithm 2's roots within the recursive decomposition."""

    def __call__(self, points, relevance, layers, generator):
        return dtd.TrainFreeRoots("zplus").roots(layers[0].weight, points, relevance(points)).detach()


def test_interpolated_roots_stay_in_the_region_and_train_free_ones_do_not(study):
    """Proposition 1: the region that a root of R^l may lie in is within that of the network from layer l on."""
    toy = study.network()
    layers, inputs = dense_layers(toy), study.drawn(toy, 3).flatten(1)
    outside = []
    for finder in (InterpolatedRoots(5), TrainFree()):
        watched = Watched(finder)
        decomposed(layers, inputs, 0, watched, torch.Generator().manual_seed(0))
        assert watched.moved > 100
        outside.append(watched.outside)
    assert outside[0] == 0 < outside[1]


def test_within_the_region_the_map_is_what_its_roots_left_off(study):
    """One layer below the top, every map sums to the relevance of the point less that of the roots."""
    toy = study.network()
    inputs = study.drawn(toy, 4)
    layers, finder = dense_layers(toy)[2:], InterpolatedRoots(5)
    points = toy.module[:5](inputs)
    found = decomposed(layers, points, 0, finder, torch.Generator().manual_seed(2))
    hot = nn.functional.one_hot(torch.tensor(0), 2)
    roots = finder(points, lambda x: layers[0](x) * hot, layers, torch.Generator().manual_seed(2))
    lost = layers[0](points)[:, 0] - layers[0](roots[:, 0])[:, 0]
    torch.testing.assert_close(found.sum(1), lost)
    assert (lost > 0).any()


def relu_layers(*sizes: int, activation=torch.relu) -> list[Layer]:
    draw = torch.Generator().manual_seed(4)
    made = []
    for inner, outer in itertools.pairwise(sizes):
        weight = torch.randn(outer, inner, generator=draw, dtype=torch.float64)
        made.append(Layer(weight, torch.full((outer,), 0.5, dtype=torch.float64), activation))
    return made


class Turned(RootFinder):
    """At the layer of K neurons: roots of fixed value whose Jacobian is a given matrix; elsewhere a constant."""

    def __init__(self, value: float, level: int, jacobian: torch.Tensor) -> None:
        self.value, self.level, self.jacobian = value, level, jacobian

    def __call__(self, points, relevance, layers, generator):
        roots = self.value * points.detach()
        if len(layers) == self.level:
            roots = roots + (points - points.detach()) @ self.jacobian.T
        return roots[:, None].expand(-1, len(layers[0].weight), -1)


def test_the_jacobian_of_roots_makes_any_map(study):
    """Proposition 3: with the same roots, a Jacobian can be chosen such that the decomposition is a given map."""
    layers = relu_layers(4, 4, 1)
    x = torch.full((1, 4), 0.1, dtype=torch.float64)
    layers[0] = Layer(layers[0].weight, torch.full((4,), 3.0, dtype=torch.float64), torch.relu)  # all ReLUs are open
    layers[1] = Layer(layers[1].weight.abs(), layers[1].bias, torch.relu)
    slope = layers[1].weight[0]
    wanted = torch.tensor([[0.3, -0.2, 0.7, 0.1]], dtype=torch.float64)
    # (W^T (1 - J)^T slope) * (x - root) = wanted, solved for a J of rank 1.
    u = torch.linalg.solve(layers[0].weight.T, (wanted / (0.01 * x))[0])
    jacobian = torch.eye(4, dtype=torch.float64) - torch.outer(slope, u) / (slope @ slope)
    plain = decomposed(layers, x, 0, Shrunk(0.99), None)
    turned = decomposed(layers, x, 0, Turned(0.99, 1, jacobian), None)
    torch.testing.assert_close(turned, wanted)
    assert (plain - wanted).abs().max() > 0.1
    torch.testing.assert_close(plain, (layers[0].weight.T @ slope) * 0.01 * x)


@pytest.mark.parametrize(("activation", "bends"), [(torch.relu, False), (functional.softplus, True)])
def test_networks_that_bend_have_a_term_of_second_derivatives(activation, bends):
    """Proposition 4: for moving roots; a ReLU network has none."""
    layers, factor = relu_layers(3, 3, 1, activation=activation), 0.99
    x = torch.tensor([[0.3, 0.2, 0.4]], dtype=torch.float64)
    found = decomposed(layers, x, 0, Shrunk(factor, moves=True), None)

    def first(points):
        return layers[0](points[None])[0]

    def top(values):
        return layers[1](values[None])[0, 0]

    x_root = factor * x[0]
    a = first(x_root)  # where the layers above are asked: at the root
    below = torch.autograd.functional.jacobian(first, x_root)
    slope = torch.autograd.functional.jacobian(top, factor * a)
    bend = torch.autograd.functional.hessian(top, factor * a)
    straight = (below.T @ ((1 - factor) * slope)) * (x[0] - x_root)
    further = (below.T @ (factor * bend @ ((1 - factor) * a))) * (x[0] - x_root)
    torch.testing.assert_close(found[0], straight + further)
    assert (further.abs().max() > 1e-7) == bends


def test_maps_belong_to_their_sample(network):
    """Alone or among others: its generator is its own."""
    inputs, generators = seeded(3, SIZE), sample_generators(0, "maps", range(3))
    together = FullDTD(InterpolatedRoots(3)).attribute(network, inputs, TARGETS, Context(generators))
    for i in (2, 0):
        alone = sample_generators(0, "maps", [i])
        one = FullDTD(InterpolatedRoots(3)).attribute(network, inputs[i : i + 1], TARGETS[i : i + 1], Context(alone))
        torch.testing.assert_close(one[0], together[i])


class Permuted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(12, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(x.permute(0, 2, 3, 1).flatten(1))


def test_refusals(network):
    for method in (TrainFreeDTD(), FullDTD()):
        method.check(network)
        for module in (VGGLike(), Pooled()):
            with pytest.raises(Refusal, match=r"'features_0' of .* is no part of one: lrp_zplus"):
                method.check(classifier(module))
        with pytest.raises(Refusal, match="moves values"):
            method.check(classifier(Permuted(), SIZE))
        with pytest.raises(Refusal, match="set output=logit"):
            method.check(classifier(FullyConnected(), output="probability"))
    with pytest.raises(Refusal, match=r"needs 3.02e\+05 points for each sample"):
        FullDTD().check(classifier(FullyConnected(hidden=90)))
    bent = nn.Sequential(nn.Flatten(), nn.Linear(12, 3), nn.GELU(), nn.Linear(3, 2))
    with pytest.raises(Refusal, match="'_2' is none"):
        FullDTD().check(classifier(bent, SIZE))
    TrainFreeDTD().check(classifier(bent, SIZE))
    with pytest.raises(ValueError, match="did you mean 'zplus'"):
        TrainFreeDTD("zpluss")

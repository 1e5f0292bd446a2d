"""Metrics of paths on networks small enough to be worked out by hand, and as a run asks for them."""

import dataclasses
import json
import math

import pytest
import torch
from torch import nn

from tests.metrics.helpers import evaluated
from xaibench.datasets.base import Batch, Dataset, Example, Samples
from xaibench.errors import Refusal
from xaibench.methods.pathways.selectors import ActivePath, GreedyPath, NeuronMCT, RandomPath, selector
from xaibench.metrics.pathways.path_dead import PathDead
from xaibench.metrics.pathways.path_linearity import PathLinearity
from xaibench.metrics.pathways.path_output import PathOutput
from xaibench.metrics.pathways.path_overlap import PathOverlap, adversarial, overlaps
from xaibench.models.classifier import Classifier
from xaibench.models.preprocessing import Preprocessing
from xaibench.rng import sample_generators


def linear(weights, biases=None):
    layer = nn.Linear(len(weights[0]), len(weights)).double()
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(weights))
        layer.bias.copy_(torch.zeros(len(weights)) if biases is None else torch.tensor(biases))
    return layer


def network(*layers, size=(1, 1, 1), relu=nn.ReLU, **settings):
    """Linear layers with ReLUs between them."""
    parts = [part for layer in layers for part in (layer, relu())]
    return Classifier("net", nn.Sequential(nn.Flatten(), *parts[:-1]), size, **settings)


def batch_of(inputs, targets=None):
    targets = torch.zeros(len(inputs), dtype=torch.int64) if targets is None else targets
    return Batch(tuple(range(len(inputs))), inputs, targets, targets, None, (0,) * len(inputs))


def of_path(metric, net, batch, choose, **context):
    """The metric's columns for a selector, or for a path that is given."""

    def path(inputs, targets, rows, purpose="", beside=None):
        if not hasattr(choose, "path"):
            return [layer[rows] for layer in choose]
        chooser = choose if beside is None else selector(beside, choose.sparsity)
        return chooser.path(net, inputs, targets, sample_generators(0, f"{purpose} {beside}", batch.samples)[rows])

    return evaluated(metric, net, batch, None, path=path, **context)


ONE = torch.ones(1, 1, 1, 1, dtype=torch.float64)


def revived():
    """A, C = relu(x); B = relu(C - 2 A), D = relu(A): B is dead, and lives where A is pruned."""
    return network(linear([[1.0], [1.0]]), linear([[-2.0, 1.0], [1.0, 0.0]]), linear([[5.0, 0.1]]))


def test_dead_neurons_are_counted_by_hand():
    found = of_path(PathDead(), revived(), batch_of(ONE), GreedyPath(0.25, steps=1))  # keeps C, B and D
    assert found["dead"].tolist() == [pytest.approx(1 / 3)]
    assert found["dead_by_layer"].tolist() == [[0, 0.5]] and found["kept_by_layer"].tolist() == [[0.5, 1]]
    assert (found["sparsity"].tolist(), found["network"].tolist()) == ([0.25], [0.25])
    contributing = of_path(PathDead(), revived(), batch_of(ONE), NeuronMCT(0.25))
    assert contributing["dead"].tolist() == [0]


def test_saturated_neurons_are_counted_apart():
    """Of 7, 3, 0 and -1, ReLU6 saturates one and leaves two dead."""
    net = network(linear([[7.0], [3.0], [0.0], [-1.0]]), linear([[1.0] * 4]), relu=nn.ReLU6)
    every = [torch.ones(1, 4, dtype=torch.bool)]
    found = of_path(PathDead(), net, batch_of(ONE), every)
    assert (found["saturated"].item(), found["dead"].item()) == (0.25, 0.5)
    plain = network(linear([[7.0], [3.0], [0.0], [-1.0]]), linear([[1.0] * 4]))
    assert of_path(PathDead(), plain, batch_of(ONE), every)["saturated"].item() == 0
    none = of_path(PathDead(), net, batch_of(ONE), [~layer for layer in every])
    assert none["dead"].isnan().all() and none["sparsity"].item() == 1


def test_the_output_of_a_path_by_hand():
    """Logits (3 a + b, 0) with a = b = 1: without b the probability goes from sigmoid(4) to sigmoid(3)."""
    net = network(linear([[1.0], [1.0]]), linear([[3.0, 1.0], [0.0, 0.0]]))
    found = of_path(PathOutput(), net, batch_of(ONE), [torch.tensor([[True, False]])])
    before, after = (1 / (1 + math.exp(-z)) for z in (4, 3))
    assert found["change"].item() == pytest.approx(1 - after / before, rel=1e-12)
    assert found["change_constant"].item() == 0 and found["class_kept"].item() == 1
    # With biases that say otherwise the class is lost with the neurons.
    against = network(linear([[1.0], [1.0]]), linear([[3.0, 1.0], [0.0, 0.0]], [0.0, 0.5]))
    nothing = of_path(PathOutput(), against, batch_of(ONE), [torch.zeros(1, 2, dtype=torch.bool)])
    assert nothing["class_kept"].item() == 0


def test_overlaps_by_sets():
    draw = torch.Generator().manual_seed(0)
    first, second = ([torch.rand(3, n, generator=draw) < p for n in (7, 20)] for p in (0.5, 0.3))
    found = overlaps(first, second)
    for row in range(3):
        sets = [
            {(layer, k) for layer, values in enumerate(path) for k in torch.nonzero(values[row])[:, 0].tolist()}
            for path in (first, second)
        ]
        assert found["overlap"][row].item() == len(sets[0] & sets[1]) / len(sets[0] | sets[1])
        expected = sum(
            sum(k[0] == layer for k in sets[0]) * sum(k[0] == layer for k in sets[1]) / n
            for layer, n in enumerate((7, 20))
        )
        assert found["chance"][row].item() == pytest.approx(expected / (len(sets[0]) + len(sets[1]) - expected))
        for layer in range(2):
            one, other = ({k for k in members if k[0] == layer} for members in sets)
            assert found["overlap_by_layer"][row, layer].item() == pytest.approx(len(one & other) / len(one | other))


def wide(seed=0):
    torch.manual_seed(seed)
    layers = [nn.Linear(12, 4000).double(), nn.Linear(4000, 400).double(), nn.Linear(400, 5).double()]
    return network(*layers, size=(3, 2, 2))


def test_a_selector_beside_itself_and_beside_chance():
    net, batch = wide(), batch_of(torch.randn(3, 3, 2, 2, dtype=torch.float64))
    assert (of_path(PathOverlap("neuron_mct"), net, batch, NeuronMCT(0.8))["overlap"] == 1).all()
    found = of_path(PathOverlap("pathway_random"), net, batch, RandomPath(0.8))
    # Two random fifths share a 25th, and together have 9 of them.
    assert torch.allclose(found["chance"], torch.full((3,), 1 / 9).double(), rtol=1e-9)
    assert (found["overlap"] - 1 / 9).abs().max() < 0.02 and found["above_chance"].abs().max() < 0.02


class Two(Dataset):
    """Eight images of one pixel, four of each sign."""

    class_names = ("negative", "positive")

    def __len__(self):
        return 8

    def __getitem__(self, index):
        return Example(torch.full((1, 1, 1), 0.1 + 0.1 * index), index // 4)


def by_sign():
    """Logits (-x, x) by relu(-x) and relu(x), for pixels 0.5 of which are 0."""
    layers = linear([[-1.0], [1.0]]), linear([[1.0, -1.0], [-1.0, 1.0]])
    return network(*layers, preprocessing=Preprocessing(mean=(0.45,), std=(1.0,)))


@pytest.mark.parametrize(("other", "overlap"), [("same_class", 1), ("other_class", 0)])
def test_paths_of_other_inputs(other, overlap):
    """Whoever is of one sign is answered by one neuron."""
    net = by_sign()
    data = Samples(Two(), net.preprocessing, range(8), torch.device("cpu"))
    batch = dataclasses.replace(data.load(range(8)), inputs=data.load(range(8)).inputs.double())
    assert net.logits(batch.inputs).argmax(1).tolist() == batch.targets.tolist()
    found = of_path(PathOverlap(other), net, batch, ActivePath(), data=data)
    assert (found["overlap"] == overlap).all()


def test_another_input_is_not_the_sample_itself_and_may_be_absent():
    net, calls = by_sign(), []
    data = Samples(Two(), net.preprocessing, range(8), torch.device("cpu"))
    batch = dataclasses.replace(data.load(range(8)), inputs=data.load(range(8)).inputs.double())

    def path(inputs, targets, rows, purpose="", beside=None):
        calls.append((inputs, targets, purpose))
        return ActivePath().path(net, inputs, targets, [])

    evaluated(PathOverlap("same_class"), net, batch, None, path=path, data=data)
    (own, _, _), (others, classes, purpose) = calls
    assert purpose and (own.flatten() != others.flatten()).all() and torch.equal(classes, batch.targets)
    with torch.no_grad():  # a network that always says 1
        net.module[3].bias.copy_(torch.tensor([0.0, 9.0]))
    found = of_path(PathOverlap("other_class"), net, batch[4:], ActivePath(), data=data)
    assert found["overlap"].isnan().all()


def test_an_adversarial_input_of_a_linear_network_is_the_closest_one():
    """It has gone epsilon |x| along w_t - w_o, and changes the class if that is further than the boundary."""
    torch.manual_seed(3)
    net = Classifier("linear", nn.Sequential(nn.Flatten(), nn.Linear(12, 2)).double(), (3, 2, 2))
    inputs = torch.randn(20, 3, 2, 2, dtype=torch.float64)
    targets = net.logits(inputs).argmax(1)
    moved = adversarial(net, inputs, targets, 0.2, 10)
    weight = net.module[1].weight.detach()
    way = weight[targets] - weight[1 - targets]
    lengths = 0.2 * inputs.flatten(1).norm(dim=1)
    expected = -lengths[:, None] * way / way.norm(dim=1, keepdim=True)
    assert torch.allclose((moved - inputs).flatten(1), expected, rtol=1e-9, atol=1e-12)
    logits = net.logits(inputs)
    margin = (logits.gather(1, targets[:, None]) - logits.gather(1, 1 - targets[:, None]))[:, 0] / way.norm(dim=1)
    changed = net.logits(moved).argmax(1) != targets
    assert torch.equal(changed, margin < lengths) and changed.any() and not changed.all()


def test_the_radius_of_linearity_by_hand():
    """|x| = 1 from the corner of relu(x); relu(2 x - 1) bends at a half; off the path it does not bend at all."""
    net = network(linear([[1.0], [2.0]], [0.0, -1.0]), linear([[1.0, 1.0]]))
    for path, radius in (([[True, True]], 0.5), ([[True, False]], 1.0)):
        found = of_path(PathLinearity(neurons=None), net, batch_of(ONE), [torch.tensor(path)])
        assert found["radius"].item() == radius and found["ratio"].item() == radius / 0.5
        assert found["error"].item() < 1e-12
    six = network(linear([[1.0], [5.0]]), linear([[1.0, 1.0]]), relu=nn.ReLU6)  # 5 x is 1 / 5 from its ceiling
    found = of_path(PathLinearity(neurons=None), six, batch_of(ONE), [torch.ones(1, 2, dtype=torch.bool)])
    assert found["radius"].item() == pytest.approx(0.2)
    nothing = of_path(PathLinearity(), net, batch_of(ONE), [torch.zeros(1, 2, dtype=torch.bool)])
    assert nothing["radius"].isnan().all() and nothing["error"].isnan().all()


def test_some_of_the_neurons_bound_the_radius():
    net, batch = wide(), batch_of(torch.randn(2, 3, 2, 2, dtype=torch.float64))
    few, more, every = (
        of_path(PathLinearity(neurons=count), net, batch, NeuronMCT(0.99))["radius"] for count in (3, 30, None)
    )
    assert (few >= more).all() and (more >= every).all() and (few > every).any()
    assert torch.equal(of_path(PathLinearity(neurons=44), net, batch, NeuronMCT(0.99))["radius"], every)


def test_a_run_scores_the_path_of_the_maps_by_method(xaibench, here):
    """A random path is the one that the map was made by: what it shows nothing of has no gradient either."""
    few = ("metric=path_overlap", "metric.other=pathway_random", "dataset.limit=2")
    assert xaibench("run", "method=pathway_random", *few)[0] == 0
    assert xaibench("run", "method=pathway_greedy", "method.steps=1", "metric=path_dead", "dataset.limit=2")[0] == 0
    cards = [json.loads(path.read_text()) for path in (here / "results" / "scores").rglob("*.json")]
    assert {card["method"] for card in cards} == {"pathway_random", "pathway_greedy"}
    assert not list((here / "cache" / "maps").glob("*/*/*"))  # no map was needed
    code, _, said = xaibench("run", "method=gradient", "metric=path_dead")
    assert code == 2 and "metric=path_dead looks at the path of neurons that a method chooses" in said


def test_the_path_of_a_metric_is_the_path_of_the_map(here):
    from xaibench.config import compose_job
    from xaibench.engine.runner import prepare

    job = compose_job(["method=pathway_random", "metric=path_dead", "dataset.limit=2"])
    scoring = prepare(job, here / "cache")
    batch = scoring.setting.load(list(scoring.setting.samples))
    drawn = []
    method, choose = scoring.maps.method, scoring.maps.method.path
    method.path = lambda *arguments: drawn.append(choose(*arguments)) or drawn[-1]
    scoring.maps.attribute(batch.inputs, batch.targets, batch.samples)
    scoring._path(batch, batch.inputs, batch.targets, slice(0, 2))
    assert all(torch.equal(*layers) for layers in zip(*drawn))
    other = scoring._path(batch, batch.inputs, batch.targets, slice(0, 2), beside="pathway_random")
    assert not torch.equal(other[0], drawn[0][0])


def test_networks_and_inputs_that_have_no_path_or_no_classes_are_refused():
    smooth = Classifier("smooth", nn.Sequential(nn.Flatten(), nn.Linear(1, 2), nn.GELU()).double(), (1, 1, 1))
    for metric in (PathDead(), PathOutput(), PathOverlap(), PathLinearity()):
        with pytest.raises(Refusal, match="need ReLU modules"):
            metric.check(smooth)
    with pytest.raises(Refusal, match=r"metric\.other=same_class: net has no classes"):
        PathOverlap("same_class").check(revived())
    with pytest.raises(ValueError, match="other=neuron_intgrd: did you mean 'neuron_intgrad'"):
        PathOverlap("neuron_intgrd")

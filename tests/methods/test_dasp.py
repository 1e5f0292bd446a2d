"""DASP: exact where it claims to be, and beside Shapley values by brute force."""

import itertools
import math

import pytest
import torch
from torch import nn

from tests.methods.nets import FullyConnected, Linear, VGGLike, classifier, seeded
from tests.methods.test_coalitions import attribute
from xaibench.errors import Refusal
from xaibench.methods.context import Context
from xaibench.methods.removal import dasp
from xaibench.methods.removal._moments import larger, mean_logits
from xaibench.methods.removal.dasp import DASP
from xaibench.methods.removal.exact_shapley import ExactShapley
from xaibench.models.preprocessing import Preprocessing
from xaibench.models.tracing.graph import Graph

ROW = (1, 1, 8)


def of_rows(*layers: nn.Module) -> tuple:
    """A Classifier of layers behind rows of eight features, and three rows."""
    network = nn.Sequential(nn.Flatten(), *layers)
    rows = torch.randn(3, *ROW, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return classifier(network, ROW, preprocessing=Preprocessing(), layers={}, batch_size=50), rows


@pytest.mark.parametrize("sizes", [1, 3, None])
@pytest.mark.parametrize("fill", ["zero", "black", "channel_mean"])
def test_a_linear_network_in_closed_form(fill, sizes):
    """Convolution, mean and linear layer without anything between: sums of w (x - fill) over players, of any sizes."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.AvgPool2d(4), nn.Flatten(), nn.Linear(64, 5))
    network, inputs, targets = classifier(module), seeded(2), torch.tensor([0, 3])
    maps = attribute(DASP(players=9, fill=fill, sizes=sizes), network, inputs, targets)
    torch.testing.assert_close(maps, attribute(ExactShapley(players=9, fill=fill), network, inputs, targets))
    single = classifier(Linear())
    maps = attribute(DASP(players=10**4, sizes=sizes, fill="zero"), single, inputs, targets)
    torch.testing.assert_close(maps[:, 0], (single.module.layer.weight[targets].view_as(inputs) * inputs).sum(1))


def test_moments_of_a_random_coalition_are_those_of_all_coalitions(monkeypatch):
    """Of each player, size, with and without it: mean and variance of the first layer over all subsets of the size."""
    network, rows = of_rows(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2))
    seen = []

    def kept(graph, values, variance):
        seen.append((values[-1], variance))
        return mean_logits(graph, values, variance)

    monkeypatch.setattr(dasp, "mean_logits", kept)
    attribute(DASP(players=8, sizes=None), network, rows[:1], torch.zeros(1, dtype=torch.long))
    means, variances = (torch.cat(one).view(8, 8, 2, 6) for one in zip(*seen))
    layer = network.module[1]
    for player, size in itertools.product(range(8), range(8)):
        others = [other for other in range(8) if other != player]
        subsets = torch.zeros(math.comb(7, size), 8, dtype=torch.float64)
        for row, subset in zip(subsets, itertools.combinations(others, size)):
            row[list(subset)] = 1
        for there in (0, 1):
            subsets[:, player] = there
            values = layer(subsets * rows[0].flatten())
            torch.testing.assert_close(means[player, size, there], values.mean(0))
            torch.testing.assert_close(
                variances[player, size, there], values.var(0, correction=0), rtol=1e-9, atol=1e-12
            )


@pytest.mark.parametrize("other", [(0.0, 0.0), (0.3, 0.25), (-2.0, 4.0), (0.5, 1e-4)])
def test_the_larger_of_two_normal_variables_by_integration(other):
    """The density of a maximum is f1 F2 + f2 F1; of one that is 0 for certain, the values above 0 alone count."""
    mean, variance = torch.tensor([-3.0, -0.4, 0.0, 0.5, 2.5]).double(), torch.tensor([0.5, 1.0, 2.0, 0.01, 9.0])
    others = torch.tensor(other).double()
    grid = torch.linspace(-40, 40, 800_001, dtype=torch.float64)
    found = larger(mean, variance.double(), *others)

    def density(m, v):
        return torch.exp(-((grid - m) ** 2) / (2 * v)) / math.sqrt(2 * math.pi * v)

    for place, (m, v) in enumerate(zip(mean.tolist(), variance.tolist())):
        if others[1] == 0:
            first, second = (torch.trapezoid(grid.clamp(min=0) ** power * density(m, v), grid) for power in (1, 2))
        else:
            below, below_other = (torch.special.ndtr((grid - a) / math.sqrt(b)) for a, b in ((m, v), others.tolist()))
            of_both = density(m, v) * below_other + density(*others.tolist()) * below
            first, second = (torch.trapezoid(grid**power * of_both, grid) for power in (1, 2))
        assert found[0][place].item() == pytest.approx(first.item(), abs=1e-6)
        assert found[1][place].item() == pytest.approx((second - first**2).item(), abs=1e-6)


def test_of_two_certain_variables_the_larger_is_certain():
    mean, variance = larger(
        torch.tensor([1.0, 2.0, 2.0]), torch.zeros(3), torch.tensor([2.0, 1.0, 2.0]), torch.zeros(3)
    )
    assert mean.tolist() == [2, 2, 2] and variance.tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("pooling", "error"),
    [(nn.MaxPool2d(2), 0.04), (nn.MaxPool2d(3), 0.04), (nn.AvgPool2d(2), 0), (nn.AdaptiveAvgPool2d(2), 0)],
)
def test_moments_behind_pooling_are_those_of_draws(pooling, error):
    """Of independent normal values of deviations 0.3 to 1: 200 000 draws, within five of their own errors; what is a
    maximum already is compared with the next value as if it were normal, which costs 0.04 at most. A ReLU behind shows
    the variance in the mean."""
    torch.manual_seed(1)
    module = nn.Sequential(nn.ReLU(), pooling, nn.ReLU(), nn.Flatten())
    network = classifier(module, (2, 6, 6), preprocessing=Preprocessing(), layers={})
    mean, variance = torch.randn(1, 2, 6, 6).double(), torch.rand(1, 2, 6, 6).double() + 0.1
    # The first ReLU stands for the linear part: the draws start behind it.
    graph = Graph.of(network)
    found = mean_logits(graph, [mean, mean], variance)[0]
    draws = mean + variance.sqrt() * torch.randn(200_000, 2, 6, 6, dtype=torch.float64)
    answers = module[1:](draws)
    tolerance = 5 * answers.std(0) / math.sqrt(len(draws)) + error
    assert ((found - answers.mean(0)).abs() <= tolerance).all()
    certain = module[1:](mean)[0]
    assert ((certain - answers.mean(0)).abs() > tolerance).any()


@pytest.mark.parametrize(("depth", "least", "error"), [(1, 0.99, 0.25), (2, 0.98, 0.25)])
def test_near_the_exact_values_of_small_rectified_networks(depth, least, error, monkeypatch):
    """Of one and two hidden layers of ReLUs over eight features, beside all 256 coalitions: correlation of the values,
    the largest error in shares of the largest value, and the sum; half of the sizes do nearly as
    well. Without variances, by passes of mean inputs alone, the error is more than half as large again."""
    without = []
    for seed in range(4):
        network, rows = of_rows(*rectified(depth, seed))
        targets = torch.tensor([0, 1, 2])
        exact = attribute(ExactShapley(players=8), network, rows, targets).flatten(1)
        found = attribute(DASP(players=8, sizes=None), network, rows, targets).flatten(1)
        for one, other in zip(exact, found):
            assert torch.corrcoef(torch.stack([one, other]))[0, 1] > least
        largest, errors = exact.abs().amax(1), (found - exact).abs().amax(1)
        assert (errors <= error * largest).all()
        change = network.scores(rows, targets) - network.scores(torch.zeros_like(rows), targets)
        assert ((found.sum(1) - change).abs() <= error * exact.abs().sum(1)).all()
        fewer = attribute(DASP(players=8, sizes=4), network, rows, targets).flatten(1)
        for one, other in zip(exact, fewer):
            assert torch.corrcoef(torch.stack([one, other]))[0, 1] > 0.9
        with monkeypatch.context() as patch:
            patch.setattr(dasp, "mean_logits", lambda graph, values, _: mean_logits(graph, values, 0 * values[-1]))
            certain = attribute(DASP(players=8, sizes=None), network, rows, targets).flatten(1)
        without.append(((certain - exact).abs().amax(1).mean() / errors.mean()).item())
    assert min(without) > 1.5


def rectified(depth: int, seed: int) -> list[nn.Module]:
    """Linear layers with so many hidden ones, by He's initial weights."""
    torch.manual_seed(seed)
    widths = [8, *[32] * depth, 3]
    layers = [layer for sizes in itertools.pairwise(widths) for layer in (nn.Linear(*sizes), nn.ReLU())][:-1]
    for layer in layers[::2]:
        nn.init.kaiming_normal_(layer.weight)
    return layers


def test_near_the_exact_values_of_a_convolutional_network():
    network, inputs, targets = classifier(VGGLike(), batch_size=64), seeded(4), torch.tensor([0, 1, 2, 3])
    exact = attribute(ExactShapley(players=9), network, inputs, targets)[:, 0]
    found = attribute(DASP(players=9, sizes=None), network, inputs, targets)[:, 0]
    for one, other in zip(exact, found):
        assert torch.corrcoef(torch.stack([one.flatten(), other.flatten()]))[0, 1] > 0.9
    assert attribute(DASP(players=1), network, inputs, targets).shape == (4, 1, 16, 16)


def test_sizes_are_spaced_evenly():
    assert DASP(sizes=None)._sizes(5) == [0, 1, 2, 3, 4]
    assert DASP(sizes=9)._sizes(4) == [0, 1, 2, 3]
    assert DASP(sizes=1)._sizes(9) == [4] and DASP(sizes=4)._sizes(8) == [1, 3, 5, 7]
    assert DASP(players=49, sizes=8).cost(classifier(VGGLike())) == (4 * 49 * 8, 0)
    with pytest.raises(ValueError, match="sizes=0: expected at least 1"):
        DASP(sizes=0)


class Residual(nn.Module):
    """A sum of what was before and behind a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.relu, self.second = nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        hidden = self.relu(self.first(inputs.flatten(1)))
        return hidden + self.second(hidden)


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (Residual(), "'add'.*single chain"),
        (nn.Sequential(nn.Flatten(), nn.Linear(8, 4), nn.Tanh()), "'_2'.*no ReLU"),
        (nn.Sequential(nn.Flatten(), nn.Linear(8, 4), nn.ReLU6()), "'_2'.*saturates at 6"),
        (nn.Sequential(nn.ReLU(), nn.AvgPool2d((1, 3), 1), nn.Flatten()), "'_1'.*windows overlap"),
        (nn.Sequential(nn.MaxPool2d((1, 2), padding=(0, 1)), nn.Flatten()), "'_0'.*beyond the edge"),
        (nn.Sequential(nn.AdaptiveMaxPool2d((1, 2)), nn.Flatten()), "'_0'.*not known"),
        (
            nn.Sequential(nn.ReLU(), nn.Conv2d(1, 1, (1, 3), padding=(0, 1), padding_mode="circular"), nn.Flatten()),
            "'_1'.*repeats values",
        ),
    ],
)
def test_other_networks_are_refused_by_the_name_of_the_layer(module, reason):
    network = classifier(module, ROW, preprocessing=Preprocessing(), layers={})
    with pytest.raises(Refusal, match=f"dasp has no moments of {reason}"):
        DASP().check(network)


def test_a_probability_is_refused():
    with pytest.raises(Refusal, match="set output=logit"):
        DASP().check(classifier(FullyConnected(), output="probability"))


def test_a_background_averages_over_its_samples():
    """Of two samples: the mean of the maps from each."""
    network, rows = of_rows(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2))
    targets = torch.zeros(1, dtype=torch.long)
    method = DASP(players=8, fill="background")
    maps = [
        method.attribute(network, rows[:1], targets, Context(fitted={"references": references}))
        for references in (rows[1:], rows[1:2], rows[2:])
    ]
    torch.testing.assert_close(maps[0], (maps[1] + maps[2]) / 2)

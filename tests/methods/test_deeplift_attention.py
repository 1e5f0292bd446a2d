"""DeepLIFT through attention, gates and normalisation: complete, and its multipliers by the two orders of change."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.methods.nets import classifier, seeded
from tests.methods.transformers import SIZE, Transformer
from xaibench.methods.context import Context
from xaibench.methods.rules.deeplift import DeepLIFT
from xaibench.models.preprocessing import Preprocessing


class Gates(nn.Module):
    """Squeeze-and-excite, groups, root mean squares, lengths and a quotient of two values."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.conv, self.gate, self.head = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 1), nn.Linear(6, 5)
        self.groups, self.squares = nn.GroupNorm(2, 6), nn.RMSNorm(14)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.silu(self.groups(self.conv(x)))
        x = x * torch.sigmoid(self.gate(x.mean((2, 3), keepdim=True)))
        x = self.squares(x) + F.normalize(x, dim=1)
        return self.head(x.mean((2, 3)) / (1 + x.square().mean((2, 3))))


@pytest.mark.parametrize("rule", ["rescale", "reveal_cancel"])
@pytest.mark.parametrize("make", [Transformer, Gates])
def test_maps_sum_to_the_difference_from_the_reference(make, rule):
    network, inputs, targets = classifier(make(), SIZE), seeded(3, SIZE), torch.tensor([0, 3, 4])
    for baseline in ("blur", "zero"):
        method = DeepLIFT(rule, baseline)
        method.check(network)
        maps = method.attribute(network, inputs, targets, Context())
        (start,) = method.baselines.of(network, inputs, Context())
        drop = network.scores(inputs, targets) - network.scores(start, targets)
        torch.testing.assert_close(maps.sum((1, 2, 3)), drop, rtol=1e-6, atol=1e-9)


class Multiplied(nn.Module):
    """The product of the two halves of the input."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x[:, :1] * x[:, 1:]).flatten(1)


def test_factors_share_as_the_two_orders_of_change_do():
    """Which is what Shapley values of the two would be."""
    network, inputs = classifier(Multiplied(), (2, 1, 1), preprocessing=Preprocessing()), seeded(4, (2, 1, 1))
    maps = DeepLIFT(baseline="value", value=0.75).attribute(
        network, inputs, torch.zeros(4, dtype=torch.int64), Context()
    )
    x, y = inputs[:, 0, 0, 0], inputs[:, 1, 0, 0]
    a, b = (
        DeepLIFT(baseline="value", value=0.75).baselines.of(network, inputs, Context())[0][:, i, 0, 0] for i in (0, 1)
    )
    torch.testing.assert_close(maps[:, 0, 0, 0], ((x - a) * b + (x - a) * y) / 2)
    torch.testing.assert_close(maps[:, 1, 0, 0], ((y - b) * a + (y - b) * x) / 2)


class Probabilities(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1).softmax(1)


def test_a_softmax_shares_as_the_two_orders_of_numerator_and_denominator_do():
    """Of e_i / S with e_i = exp(x_i): the numerator's change at the mean of 1/S, the others' through 1/S at the mean of
    e_i, in proportion to their exponentials."""
    network, inputs = classifier(Probabilities(), (1, 1, 4)), seeded(2, (1, 1, 4))
    maps = DeepLIFT().attribute(network, inputs, torch.tensor([2, 0]), Context())
    for x, target, found in zip(inputs.flatten(1), (2, 0), maps.flatten(1)):
        e, e0 = x.exp(), torch.ones(4, dtype=torch.float64)
        through = (e - e0) / (e - e0).sum() * (1 / e.sum() - 1 / e0.sum()) * (e[target] + 1) / 2
        through[target] += (e[target] - 1) * (1 / e.sum() + 1 / e0.sum()) / 2
        torch.testing.assert_close(found, through)


def test_near_the_reference_multipliers_are_the_gradient():
    """Halfway between two points that are nearly the same, every rule is the derivative."""
    network, targets = classifier(Transformer(), SIZE), torch.tensor([0, 3])
    inputs = 1e-5 * seeded(2, SIZE)
    maps = DeepLIFT(baseline="zero").attribute(network, inputs, targets, Context())
    expected = inputs * network.gradient(inputs / 2, targets)
    assert (maps - expected).abs().max() < 1e-5 * expected.abs().max()

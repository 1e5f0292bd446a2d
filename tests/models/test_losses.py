"""The losses of trainings: by hand, beside each other, and of the labels that a training reads."""

import math

import pytest
import torch
from torch import nn

from tests.models.helpers import NORMALISE, Stripes, images_of
from xaibench.datasets.base import Example, Samples
from xaibench.datasets.images import Images
from xaibench.errors import Refusal, UserError
from xaibench.models.losses import Weights, loss_of, right
from xaibench.models.recipe import Recipe
from xaibench.models.stacked import train_stacked
from xaibench.models.train import train

LOGITS = torch.tensor([[0.5, -1.0, 2.0], [0.0, 1.5, -0.5]], dtype=torch.float64)
PRESENT = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])


class Graded(Stripes):
    """Stripes, each with two zones of four levels beside a label that is real: a half more than its class."""

    def __getitem__(self, index: int) -> Example:
        plain = super().__getitem__(index)
        return Example(plain.image, plain.label + 0.5, labels=torch.tensor([plain.label, index % 4]))


def by_hand(beta: float) -> float:
    terms = 0.0
    for logits, labels in zip(LOGITS.tolist(), PRESENT.tolist()):
        for logit, label in zip(logits, labels):
            p = 1 / (1 + math.exp(-logit))
            terms -= beta * label * math.log(p) + (1 - label) * math.log(1 - p)
    return terms / 6


def test_binary_cross_entropy_by_hand_and_weighted_by_absent_over_present():
    assert loss_of(LOGITS, PRESENT, "bce").item() == pytest.approx(by_hand(1.0), abs=1e-12)
    assert loss_of(LOGITS, PRESENT, "weighted_bce").item() == pytest.approx(by_hand(4 / 2), abs=1e-12)


def test_weights_of_one_weight_nothing():
    balanced = torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]])  # three of six
    assert torch.equal(loss_of(LOGITS, balanced, "weighted_bce"), loss_of(LOGITS, balanced, "bce"))
    labels = torch.tensor([0.0, 3.0])
    even = Weights.rarity(torch.tensor([3.0, 0.0, 0.0, 3.0]))  # each value as often as the other
    assert even.weights.tolist() == [1, 1]
    plain = loss_of(LOGITS[:, :1], labels, "squared_error")
    assert torch.equal(loss_of(LOGITS[:, :1], labels, "weighted_mse", weights=even), plain)


def test_an_error_counts_as_its_label_is_rare():
    weights = Weights.rarity(torch.tensor([2.0, 2.0, 2.0, 2.0, 7.0, 9.0, 9.0]))
    assert weights.of(torch.tensor([9.0, 2.0, 7.0])).tolist() == [1 / 2, 1 / 4, 1]
    logits, labels = torch.tensor([[3.0], [8.0]]), torch.tensor([2.0, 9.0])
    assert loss_of(logits, labels, "weighted_mse", weights=weights).item() == pytest.approx((1 / 4 + 1 / 2) / 2)


def test_zones_by_hand():
    # Two zones of three levels: one without an opinion, one nearly sure of level 2.
    logits = torch.tensor([[0.0, 0.0, 0.0, -3.0, 0.0, 4.0]], dtype=torch.float64)
    powers = [math.exp(value) for value in (-3.0, 0.0, 4.0)]
    sure = [power / sum(powers) for power in powers]
    expected = (math.log(3) + abs(0 - 1) + -math.log(sure[2]) + abs(2 - (sure[1] + 2 * sure[2]))) / 2
    labels = torch.tensor([[0.0, 2.0]])
    assert loss_of(logits, labels, "zones").item() == pytest.approx(expected, abs=1e-12)
    assert right(logits, labels, "zones").tolist() == [1.0]
    # The expected level has a gradient where the likeliest one, and so its error, does not move.
    moved = logits.clone().requires_grad_()
    loss_of(moved, labels, "zones").backward()
    assert (moved.grad.abs() > 1e-4).sum() >= 5


def test_how_right_an_answer_is():
    assert right(LOGITS, PRESENT, "bce").tolist() == pytest.approx([2 / 3, 1])
    assert right(torch.tensor([[4.4], [4.6]]), torch.tensor([4.0, 4.0]), "weighted_mse").tolist() == [1, 0]


@pytest.mark.parametrize("loss", ["zones", "weighted_mse"])
def test_a_training_reads_the_labels_that_its_loss_is_of(loss):
    images = Images(Samples(Graded(), NORMALISE, range(50)), vectors=loss == "zones")
    inputs, labels = images.batch(torch.arange(4), torch.zeros(1))
    assert labels.tolist() == ([[0, 0], [1, 1], [0, 2], [1, 3]] if loss == "zones" else [0.5, 1.5, 0.5, 1.5])
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(432, 8 if loss == "zones" else 1))
    first = loss_of(net(inputs), labels, loss).item()
    history = train(net, Recipe(epochs=4, batch_size=10, lr=0.003, optimizer="adam", loss=loss), images)
    assert history["loss"][-1] < 0.7 * first and images.labels.shape == (50, *labels.shape[1:])


def test_what_does_not_fit_is_refused():
    with pytest.raises(UserError, match="expected one"):
        loss_of(LOGITS, torch.zeros(2), "weighted_mse")
    with pytest.raises(UserError, match="expected as many"):
        loss_of(LOGITS, PRESENT[:, :2], "bce")
    with pytest.raises(UserError, match="such as 24"):
        loss_of(LOGITS, torch.zeros(2, 6), "zones")
    with pytest.raises(UserError, match="Stripes have none"):
        Images(Samples(Stripes(), NORMALISE, range(50)), vectors=True)
    recipe = Recipe(epochs=1, batch_size=10, lr=0.1, loss="weighted_bce")
    with pytest.raises(Refusal, match="side by side"):
        train_stacked([nn.Linear(2, 2)], recipe, [images_of()], [0])

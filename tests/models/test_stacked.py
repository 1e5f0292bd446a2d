"""Trainings side by side are the trainings one by one."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from tests.models.helpers import EVERYTHING, images_of, make_net
from xaibench.errors import Refusal, UserError
from xaibench.models.accuracy import accuracy_on
from xaibench.models.recipe import Recipe
from xaibench.models.stacked import train_stacked
from xaibench.models.train import train

# 50 images in batches of 10: 20 steps.
SGD = Recipe(epochs=4, batch_size=10, lr=0.05, momentum=0.9, weight_decay=0.01, schedule="step")


def make_nets(count: int) -> list[nn.Module]:
    nets = []
    for seed in range(count):
        torch.manual_seed(seed)
        # No bias before batch normalisation: its gradient is 0 but for rounding, which Adam blows up.
        net = nn.Sequential(
            nn.Conv2d(3, 4, 3, bias=False),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Conv2d(4, 4, 3),
            nn.Flatten(),
            nn.Linear(256, 2),
        )
        nets.append(net.double())
    return nets


@pytest.mark.parametrize(
    "recipe",
    [SGD, replace(EVERYTHING, batch_size=10), replace(SGD, select="best", batch_norm="folded")],
    ids=["sgd", "adam, augmented", "best, folded"],
)
def test_equals_one_by_one_after_twenty_steps_in_float64(recipe):
    together = make_nets(3)
    images, seeds = images_of(), [5, 6, 7]
    alone = copy.deepcopy(together)
    train_stacked(together, recipe, [images] * 3, seeds, [images] * 3)
    for net, own, seed in zip(alone, together, seeds):
        before = copy.deepcopy(net.state_dict())
        train(net, recipe, images, seed=seed, validation=images)
        for name, tensor in net.state_dict().items():
            torch.testing.assert_close(own.state_dict()[name], tensor, rtol=0, atol=1e-9)
            assert not torch.equal(tensor, before[name])
        assert accuracy_on(own, images) == accuracy_on(net, images)
        assert not own.training and not any(p.requires_grad for p in own.parameters())


def test_refuses_dropout_and_notices_divergence():
    with pytest.raises(Refusal, match="dropout"):
        train_stacked([make_net(), make_net()], SGD, [images_of()] * 2, [0, 1])
    with pytest.raises(UserError, match="diverged"):
        train_stacked(make_nets(2), replace(SGD, lr=1e30), [images_of()] * 2, [0, 1])

"""A network that reads the ten factors of Two4Two off an image: what an audit looks with."""

import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from ...datasets.two4two import Two4Two
from ...datasets.two4two_sampler import CIRCULAR, FACTORS
from ...rng import generator, seed_of

BATCH, RATE = 32, 2e-3


class Observer(nn.Module):
    """Four 3x3 convolutions of stride 2 with ReLUs and two linear layers: images [B,3,S,S] in [0, 1] -> [B,11].

    Outputs: every factor scaled to [0, 1] by its range; of a circular one the sine and the cosine, scaled likewise.
    """

    def __init__(self, side: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for width in (16, 32, 48, 64):
            layers += [nn.Conv2d(channels, width, 3, stride=2, padding=1), nn.ReLU()]
            channels, side = width, -(-side // 2)
        self.layers = nn.Sequential(
            *layers, nn.Flatten(), nn.Linear(channels * side**2, 128), nn.ReLU(), nn.Linear(128, len(places()) + 1)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x - 0.5)


def places() -> dict[str, slice]:
    """Where each factor's outputs are; the circular one has two."""
    found, start = {}, 0
    for name in FACTORS:
        size = 2 if name in CIRCULAR else 1
        found[name] = slice(start, start + size)
        start += size
    return found


def encoded(factors: Mapping[str, np.ndarray]) -> torch.Tensor:
    """Factors [N] each -> what the observer should say, [N,11] float32."""
    columns = []
    for name, factor in FACTORS.items():
        values = factors[name]
        if name in CIRCULAR:
            columns += [(np.sin(values) + 1) / 2, (np.cos(values) + 1) / 2]
        else:
            columns.append((values - factor.low) / (factor.high - factor.low))
    return torch.from_numpy(np.stack(columns, 1)).float()


def observed(side: int, images: int, epochs: int, seed: int) -> dict[str, torch.Tensor]:
    """The weights of an observer trained on so many unbiased scenes of this size, by squared error and Adam with a
    one-cycle rate; whatever their bias, it has then no reason to guess one factor from another."""
    data = Two4Two("train", side=side)
    _, factors = data.scenes(range(images))
    pictures, wanted = data.draw(factors)[0], encoded(factors)
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.default_generator.manual_seed(seed_of("observer", seed))
        net = Observer(side).train()
        optimizer = torch.optim.Adam(net.parameters(), lr=RATE)
        steps = epochs * math.ceil(images / BATCH)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=RATE, total_steps=steps)
        for epoch in range(epochs):
            for batch in torch.randperm(images, generator=generator("observer", seed, epoch)).split(BATCH):
                loss = F.mse_loss(net(pictures[batch].float() / 255), wanted[batch])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
    return {name: tensor.detach() for name, tensor in net.state_dict().items()}

"""Generators of patches, a network or a canvas of its own for each patch, side by side in one batch.

Parameters are [B,n], a row per patch, and nothing mixes rows: a patch is the same whoever is beside it.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch.nn import functional

# Channels of the deep image prior at full, half and quarter size, and of the noise that it starts from.
SCALES, NOISE = (16, 32, 64), 16
SLOPE = 0.2


class Generator(ABC):
    """Patches [B,C,P,P] of pixels in 0 to 1. channels, size: C and P."""

    def __init__(self, channels: int, size: int) -> None:
        self.channels, self.size = channels, size

    @abstractmethod
    def initial(self, generators: Sequence[torch.Generator]) -> tuple[torch.Tensor, torch.Tensor]:
        """What is optimised [B,n], and what it is fed [B,...]: a row from each generator."""

    @abstractmethod
    def patches(self, parameters: torch.Tensor, fed: torch.Tensor) -> torch.Tensor:
        """Patches [B,C,P,P] of parameters [B,n]; differentiable."""


class Pixels(Generator):
    """Every pixel is a parameter, behind a sigmoid: adversarial patches (Brown et al. 2017)."""

    def initial(self, generators: Sequence[torch.Generator]) -> tuple[torch.Tensor, torch.Tensor]:
        count = self.channels * self.size**2
        drawn = torch.stack([0.1 * torch.randn(count, generator=g) for g in generators])
        return drawn, torch.zeros(len(generators))

    def patches(self, parameters: torch.Tensor, fed: torch.Tensor) -> torch.Tensor:
        return parameters.view(-1, self.channels, self.size, self.size).sigmoid()


class DeepImagePrior(Generator):
    """An hourglass network with random weights, fed with fixed noise (Ulyanov et al. 2018).

    Its weights are optimised and not its pixels, which leaves out adversarial patterns. Convolutions of 3 x 3 with
    reflected borders, normalised over the places of a channel (what batch normalisation does to a single scene),
    LeakyReLU 0.2, mean pooling down and bilinear up, a sigmoid at the end; SCALES channels, without skips. (The
    released code of Khakzar et al. 2022 has six scales of up to 128 channels.)
    """

    def _convolutions(self) -> list[tuple[int, int]]:
        """(outputs, inputs) of the convolutions, from the noise to the pixels."""
        down = [NOISE, *SCALES]
        up = [*reversed(SCALES), self.channels]
        return [(after, before) for before, after in (*pairwise(down), *pairwise(up))]

    def initial(self, generators: Sequence[torch.Generator]) -> tuple[torch.Tensor, torch.Tensor]:
        side = -(-self.size // 4) * 4
        noise, rows = [], []
        for generator in generators:
            noise.append(0.1 * torch.rand(NOISE, side, side, generator=generator))
            row = []
            for outputs, inputs in self._convolutions():
                weights = 2 * torch.rand(outputs * inputs * 9, generator=generator) - 1
                row += [weights * (inputs * 9) ** -0.5, torch.ones(outputs), torch.zeros(outputs)]
            rows.append(torch.cat(row))
        return torch.stack(rows), torch.stack(noise)

    def layers(self, parameters: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        """Weights [B,O,I,3,3], scale and shift [B,O] of each convolution, as views of the parameters."""
        shapes = [shape for o, i in self._convolutions() for shape in ((o, i, 3, 3), (o,), (o,))]
        parts = parameters.split([math.prod(shape) for shape in shapes], dim=1)
        views = [part.view(-1, *shape) for part, shape in zip(parts, shapes)]
        return list(zip(views[::3], views[1::3], views[2::3]))

    def patches(self, parameters: torch.Tensor, fed: torch.Tensor) -> torch.Tensor:
        values, layers, down = fed, self.layers(parameters), len(SCALES)
        for number, (weights, scale, shift) in enumerate(layers):
            if 0 < number < down:
                values = functional.avg_pool2d(values, 2)
            elif number > down:
                values = functional.interpolate(values, scale_factor=2, mode="bilinear")
            values = _convolved(values, weights)
            if number < len(layers) - 1:
                values = functional.leaky_relu(_normalised(values, scale, shift), SLOPE)
            else:
                values = values + shift[:, :, None, None]
        return values[..., : self.size, : self.size].sigmoid()


def _convolved(values: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Each row of values [B,I,H,W] with its own weights [B,O,I,3,3] -> [B,O,H,W]."""
    rows, outputs, inputs = weights.shape[:3]
    padded = functional.pad(values, (1, 1, 1, 1), mode="reflect").flatten(0, 1)[None]
    found = functional.conv2d(padded, weights.reshape(rows * outputs, inputs, 3, 3), groups=rows)
    return found.view(rows, outputs, *found.shape[2:])


def _normalised(values: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    """Each channel of each row with mean 0 and deviation 1 over its places, then scaled and shifted."""
    return functional.instance_norm(values) * scale[:, :, None, None] + shift[:, :, None, None]


GENERATORS: dict[str, type[Generator]] = {"deep_image_prior": DeepImagePrior, "pixel": Pixels}

"""Two4Two with a network whose answers are known: what the tests of its metrics share."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from omegaconf import OmegaConf
from torch import nn

from xaibench.datasets.base import Samples
from xaibench.datasets.two4two import Two4Two
from xaibench.datasets.two4two_sampler import FACTORS
from xaibench.models.classifier import Classifier
from xaibench.models.preprocessing import Preprocessing

CONF = Path(__file__).parents[2] / "conf" / "dataset"
STUDY = OmegaConf.to_container(OmegaConf.load(CONF / "two4two.yaml"))["bias"]
SIDE = 32


def study(count: int, split: str = "test") -> tuple[Two4Two, Samples]:
    """The first samples of the study's data, small."""
    dataset = Two4Two(split, STUDY, SIDE)
    return dataset, Samples(dataset, Preprocessing(), range(count))


class KnownFactors(nn.Module):
    """A network that knows the factors of the images that it was shown with them, 0 of others: its logits are linear in
    the factors."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor) -> None:
        super().__init__()
        self.known: dict[bytes, np.ndarray] = {}
        self.head = nn.Linear(len(FACTORS), len(bias)).double()
        self.head.weight.data, self.head.bias.data = weight.double(), bias.double()

    def learn(self, images: torch.Tensor, factors: dict[str, np.ndarray]) -> None:
        for image, values in zip(images, np.stack([factors[name] for name in FACTORS], 1)):
            self.known[image.numpy().tobytes()] = values

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        pixels = (inputs * 255).round().to(torch.uint8)
        factors = [self.known.get(image.numpy().tobytes(), np.zeros(len(FACTORS))) for image in pixels]
        return self.head(torch.from_numpy(np.stack(factors)))


def known_factors(
    dataset: Two4Two, count: int, weight: torch.Tensor, bias: torch.Tensor, changed: Sequence[str] = tuple(FACTORS)
) -> Classifier:
    """A Classifier of `KnownFactors` that knows these images and their partners. changed: in what these differ."""
    module = KnownFactors(weight, bias)
    _, factors = dataset.scenes(range(count))
    for values in (factors, *(dataset.intervened(range(count), name) for name in changed)):
        module.learn(dataset.draw(values)[0], values)
    return Classifier("known", module, (3, SIDE, SIDE), batch_size=7)

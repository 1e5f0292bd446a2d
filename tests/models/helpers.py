"""What trainings are tested with: a small data set, a recipe and a network."""

import torch
from torch import nn

from xaibench.datasets.base import Dataset, Example, Samples
from xaibench.datasets.images import Images
from xaibench.models.preprocessing import Preprocessing
from xaibench.models.recipe import Recipe
from xaibench.rng import generator

NORMALISE = Preprocessing(mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
EVERYTHING = Recipe(epochs=4, batch_size=16, lr=0.01, optimizer="adam", schedule="one_cycle", augment="crop_flip")


class Stripes(Dataset):
    """Noise with a brighter row or column: 50 images [3,12,12] of 2 classes."""

    class_names = ("row", "column")
    fingerprint = "stripes"

    def __init__(self, sizes: tuple[int, ...] = (12,)) -> None:
        self.sizes = sizes

    def __len__(self) -> int:
        return 50

    def __getitem__(self, index: int) -> Example:
        size = self.sizes[index % len(self.sizes)]
        image = torch.rand(3, size, size, generator=generator("stripes", index)) / 2
        image[:, *((slice(None), 5) if index % 2 else (5, slice(None)))] += 0.5
        return Example(image, index % 2)


def samples_of(dataset: Dataset | None = None) -> Samples:
    dataset = dataset or Stripes()
    return Samples(dataset, NORMALISE, range(len(dataset)))


def images_of(dataset: Dataset | None = None) -> Images:
    return Images(samples_of(dataset))


def make_net() -> nn.Module:
    """With everything that has a state or draws: batch normalisation and dropout."""
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.3), nn.Flatten(), nn.Linear(400, 2)
    )

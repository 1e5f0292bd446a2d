"""What the metrics share that read the maps of a whole plane: two pictures over the grid, one for each feature."""

import math

import torch

from ...datasets.base import Dataset
from ...errors import Refusal
from ...models.classifier import Classifier
from ..base import PooledMetric


class SurfaceMetric(PooledMetric):
    """Base class: a world of two features on its grid (`dataset.split=grid` of xor and ring_of_gaussians).

    What a map says at a point is two numbers. Over the grid they are two pictures A_1 and A_2, which the thesis
    (Heurich 2021, chapter 3) compares with each other.
    """

    def check(self, classifier: Classifier) -> None:
        if classifier.input_size != (1, 1, 2):
            size = "x".join(str(side) for side in classifier.input_size)
            raise Refusal(f"surfaces need inputs of two features, 1x1x2: {classifier.name} takes {size} (xor_net does)")

    def check_data(self, dataset: Dataset) -> None:
        if getattr(dataset, "steps", None) is None:
            raise Refusal("surfaces need a regular grid of points: set dataset.split=grid")


def surfaces(maps: torch.Tensor) -> torch.Tensor:
    """Maps [n,1,2] of a grid of n points, row by row -> the pictures [2,N,N] in float64: row x2, column x1."""
    steps = math.isqrt(len(maps))
    return maps.double().reshape(steps, steps, 2).permute(2, 0, 1)

"""Max-sensitivity: how far a map moves when its input hardly does."""

import torch

from ...datasets.base import Batch
from ...methods.context import Context
from ...models.classifier import Classifier
from ..base import Columns, Metric, Statistic


class MaxSensitivity(Metric):
    """The largest of ||map(x + d) - map(x)|| / ||map(x)|| over small random d (Yeh et al. 2019, definition 3.1).

    d is uniform in the cube [-radius, radius]^n; norms are Euclidean, over pixels and channels: maps are read with
    their channels, not as their methods collapse them. The target stays the one explained in x. The largest of a few
    draws estimates the supremum of the definition from below, and more draws give more; `avg_sensitivity` is their
    mean, which does not depend on how many there are.

    A map of zeros has no scale to measure by and is undefined (NaN). (Captum divides by 1 instead, so that a method
    which always says nothing scores a perfect 0.) A method with noise of its own draws it anew for every input, and
    what that moves counts too. The score says nothing about what a map shows: one that ignores its input scores 0.

    draws: perturbed inputs per image, the same for every method. radius: in units of the normalised input.

    Columns: max_sensitivity, avg_sensitivity, from 0 up; ratios of norms.
    """

    statistics = (
        Statistic("max_sensitivity", "lower", "max_sensitivity", low=0, unit="share of the map's norm"),
        Statistic("avg_sensitivity", "lower", "avg_sensitivity", low=0, unit="share of the map's norm"),
    )
    collapse = "none"

    def __init__(self, draws: int = 10, radius: float = 0.02) -> None:
        if draws < 1:
            raise ValueError(f"draws={draws}: expected at least 1")
        if not radius > 0:
            raise ValueError(f"radius={radius}: expected a positive distance, in units of the normalised input")
        self.draws, self.radius = draws, radius

    def explanations(self, classifier: Classifier) -> int:
        return self.draws

    def evaluate(self, classifier: Classifier, batch: Batch, maps: torch.Tensor, context: Context) -> Columns:
        inputs, size = batch.inputs, batch.inputs.shape[1:]
        moved = []
        for draw in range(self.draws):
            noise = torch.stack([2 * torch.rand(size, generator=g) - 1 for g in context.generators]).to(inputs)
            others = context.explain(inputs + self.radius * noise, batch.targets, f"draw {draw}")
            moved.append(_norm(others - maps))
        ratios = torch.stack(moved, dim=1) / _norm(maps)[:, None]
        ratios = ratios.where(_norm(maps)[:, None] > 0, torch.nan)
        return {"max_sensitivity": ratios.amax(1), "avg_sensitivity": ratios.mean(1)}


def _norm(maps: torch.Tensor) -> torch.Tensor:
    return maps.flatten(1).double().norm(dim=1)

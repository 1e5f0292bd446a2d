"""Class sensitivity: does a map change with the class that it explains?"""

from dataclasses import dataclass
from typing import Any

import torch

from ...datasets.base import Batch, Dataset
from ...methods.context import Context
from ...models.classifier import Classifier
from ..base import Columns, Statistic
from ..similarity import SimilarityMetric, further_statistics
from ._other_class import OtherClass


@dataclass(eq=False)
class ClassSensitivity(SimilarityMetric):
    """Similarity of the map of the explained class to the map of another class, on the same image and network.

    A method whose map is the same for any class shows the image, not the class (Nuzzo 2020; Sixt et al. 2020 with a
    random class). The lower the better, and to be held against the floors (see `SimilarityMetric`): noise is lowest,
    and a different map need not be a right one. Hence, where the data set has masks, the share of the positive
    attribution inside the mask of the explained class, for both maps: the first should have more of it there.

    Both maps draw the same noise, so that what differs comes from the class.

    other: which class: `second`, `random` (the metric random_logit) or `fixed:<k>`, see `OtherClass`; a sample of
        which it is the explained class too is undefined.
    The others: see `SimilarityMetric`.

    Columns: ssim, spearman, spearman_abs, hog; ssim_signed, ssim_either_sign, flipped; the floors; with masks
    inside, inside_other and gain, their difference (NaN where a map has no positive values, or the mask
    covers nothing or everything).
    """

    version = 2
    statistics = (Statistic("ssim", "lower", "ssim", low=-1, high=1, unit="SSIM"), *further_statistics())

    other: str = "second"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.other_class = OtherClass(self.other)

    def check(self, classifier: Classifier) -> None:
        super().check(classifier)
        self.other_class.check(classifier)

    def check_data(self, dataset: Dataset) -> None:
        self.other_class.check_data(dataset)

    def statistics_on(self, dataset: Dataset, classifier: Classifier) -> tuple[Statistic, ...]:
        if not dataset.has_masks or dataset.graded_masks:
            return self.statistics
        share: dict[str, Any] = {"unit": "share of the positive attribution"}
        return (
            *self.statistics,
            Statistic("inside", "higher", "inside", low=0, high=1, **share),
            Statistic("inside_other", "lower", "inside_other", low=0, high=1, **share),
            Statistic("gain", "higher", "gain", low=-1, high=1, **share),
        )

    def cost(self, classifier: Classifier) -> tuple[int, int]:
        return (1, 0)

    def explanations(self, classifier: Classifier) -> int:
        return 1

    def evaluate(self, classifier: Classifier, batch: Batch, maps: torch.Tensor, context: Context) -> Columns:
        others, same = self.other_class.maps(classifier, batch, context)
        found = self.similarities(maps, others, context.sign_of_logit)
        columns = self.compared(classifier, batch, maps, found, context)
        if batch.masks is not None and batch.masks.dtype == torch.bool:
            columns["inside"], columns["inside_other"] = (_inside(m, batch.masks) for m in (maps, others))
            columns["gain"] = columns["inside"] - columns["inside_other"]
        return {name: column.masked_fill(same, torch.nan) for name, column in columns.items()}


def _inside(maps: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """The share of the positive attribution of maps [B,H,W] inside masks [B,H,W] -> [B]; NaN without either side."""
    values, masks = maps.flatten(1).double().clamp(min=0), masks.flatten(1)
    total, both_sides = values.sum(1), masks.any(1) & ~masks.all(1)
    return ((values * masks).sum(1) / total).where((total > 0) & both_sides, torch.nan)

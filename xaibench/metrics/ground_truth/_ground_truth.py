"""What the metrics share that hold a map against the ground-truth mask."""

from abc import abstractmethod
from collections.abc import Sequence

import torch

from ...datasets.base import Batch
from ...methods.context import Context
from ...models.classifier import Classifier
from ..base import Columns, Metric
from ..ranking import Collapse, Sign


class GroundTruthMetric(Metric):
    """One number per map and mask, in the column named by its only statistic; the model is not asked.

    An image whose region covers nothing or everything (whose graded mask has one value) has no inside to tell from an
    outside: it is undefined (NaN).
    """

    needs_mask = True

    def __init__(self, collapse: Collapse | None = None, sign: Sign = "signed") -> None:
        self.collapse, self.sign = collapse, sign

    def evaluate(self, classifier: Classifier, batch: Batch, maps: torch.Tensor, context: Context) -> Columns:
        assert batch.masks is not None  # `needs_mask`
        regions = self.regions(batch.masks.to(maps.device)).flatten(1)
        scores = self.score(maps.flatten(1).double(), regions, context.generators)
        both_sides = regions.amax(1) > regions.amin(1)
        return {self.statistics[0].column: scores.where(both_sides, torch.nan)}

    def regions(self, masks: torch.Tensor) -> torch.Tensor:
        """Where a map ought to be large, bool [B,H,W]: the masks as the data set gives them."""
        return masks

    @abstractmethod
    def score(self, maps: torch.Tensor, regions: torch.Tensor, generators: Sequence[torch.Generator]) -> torch.Tensor:
        """Scores [B] of maps [B,N] in float64 against regions [B,N], bool (float32 where
        `reads_graded_masks` takes them); NaN where a map has none."""

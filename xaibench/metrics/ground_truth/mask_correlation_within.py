"""Pearson correlation of the map and the ground-truth mask over the pixels of one region of the image."""

import torch

from ...datasets.base import Batch, Dataset
from ...errors import Refusal, nearest
from ...methods.context import Context
from ...models.classifier import Classifier
from ..base import Columns, Metric, Statistic
from ..ranking import Collapse, Sign


class MaskCorrelationWithin(Metric):
    """As `mask_correlation`, over the pixels of a region alone, such as the lungs of an X-ray.

    A map that knows where the region is, and nothing of what is in it, has a high correlation over the whole image:
    severities are 0 outside of the lungs. Here it has none.

    region: one that the data set has (`regions`). collapse, sign: see `Metric`.

    Columns: mask_correlation_within, in [-1, 1]. A map or a mask that has one value in the region is undefined (NaN).
    """

    needs_mask, reads_graded_masks = True, True
    statistics = (
        Statistic("mask_correlation_within", "higher", "mask_correlation_within", low=-1, high=1, unit="correlation"),
    )

    def __init__(self, region: str = "lungs", collapse: Collapse | None = None, sign: Sign = "signed") -> None:
        self.region, self.collapse, self.sign = region, collapse, sign

    def check_data(self, dataset: Dataset) -> None:
        known = dataset.regions([0]) if hasattr(dataset, "regions") else {}
        if self.region not in known:
            near = nearest(self.region, known) if known else "it has none, as dataset=chest and dataset=brixia do"
            raise Refusal(f"metric.region={self.region}: no region of the data set: {near}")

    def evaluate(self, classifier: Classifier, batch: Batch, maps: torch.Tensor, context: Context) -> Columns:
        assert batch.masks is not None  # `needs_mask`
        inside = context.data.region(self.region, batch.samples).to(maps.device)
        scores = [
            _correlation(one[region].double(), mask[region].double())
            for one, mask, region in zip(maps, batch.masks.to(maps.device), inside)
        ]
        return {"mask_correlation_within": torch.stack(scores)}


def _correlation(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    if len(x) == 0 or x.amax() == x.amin() or y.amax() == y.amin():
        return x.new_tensor(torch.nan)
    x, y = x - x.mean(), y - y.mean()
    return (x * y).sum() / (x.norm() * y.norm())

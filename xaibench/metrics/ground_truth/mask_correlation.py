"""Pearson correlation of the map and the ground-truth mask."""

from collections.abc import Sequence

import torch

from ..base import Statistic
from ._ground_truth import GroundTruthMetric


class MaskCorrelation(GroundTruthMetric):
    """The Pearson correlation over an image's pixels of the map with the mask as 0 and 1 (Khakzar 2022, ch. 8).

    Of a graded mask, with how much each pixel matters. Taken per image, then averaged. A constant map is undefined
    (NaN), as is an image whose mask has one value: it covers nothing or everything.

    collapse, sign: see `Metric`.

    Columns: mask_correlation, in [-1, 1].
    """

    reads_graded_masks = True
    statistics = (Statistic("mask_correlation", "higher", "mask_correlation", low=-1, high=1, unit="correlation"),)

    def score(self, maps: torch.Tensor, regions: torch.Tensor, generators: Sequence[torch.Generator]) -> torch.Tensor:
        constant = maps.amax(1) == maps.amin(1)
        x, y = (values - values.mean(1, keepdim=True) for values in (maps, regions.double()))
        correlation = (x * y).sum(1) / (x.norm(dim=1) * y.norm(dim=1))
        return correlation.where(~constant, torch.nan)

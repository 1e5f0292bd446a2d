"""The bounding box metric of the IBA paper: how many of the most relevant pixels lie in the object's box."""

from collections.abc import Sequence
from typing import Literal

import torch

from ..base import Statistic
from ..ranking import Collapse, Sign, most_relevant
from ._ground_truth import GroundTruthMetric


class BBox(GroundTruthMetric):
    """With a box of n pixels: the share of the n most relevant pixels that lie in the box (Schulz et al. 2020).

    Ties are broken at random, seeded by the sample, so a constant map scores like a random one: the share of the
    image that the box covers. An image whose region covers nothing or everything is undefined (NaN).

    region: `box`, the tight bounding box of the mask, as in the paper; `mask`, the mask itself. The two differ for
        silhouettes, and for images with several boxes, whose mask is their union: the released code takes that.
    collapse, sign: see `Metric`.

    Columns: bbox, in [0, 1].
    """

    statistics = (Statistic("bbox", "higher", "bbox", low=0, high=1, unit="share of the region's size"),)

    def __init__(
        self, region: Literal["box", "mask"] = "box", collapse: Collapse | None = None, sign: Sign = "signed"
    ) -> None:
        super().__init__(collapse, sign)
        self.region = region

    def regions(self, masks: torch.Tensor) -> torch.Tensor:
        return bounding_boxes(masks) if self.region == "box" else masks

    def score(self, maps: torch.Tensor, regions: torch.Tensor, generators: Sequence[torch.Generator]) -> torch.Tensor:
        size = regions.sum(1)
        return (most_relevant(maps, size, generators) & regions).sum(1).double() / size


def bounding_boxes(masks: torch.Tensor) -> torch.Tensor:
    """The smallest upright rectangle around each mask, filled: bool [B,H,W] -> bool [B,H,W]; empty stays empty."""

    def span(along: torch.Tensor) -> torch.Tensor:
        """From the first True of each row to its last."""
        return (along.cumsum(1) > 0) & (along.flip(1).cumsum(1).flip(1) > 0)

    return span(masks.any(2))[:, :, None] & span(masks.any(1))[:, None, :]

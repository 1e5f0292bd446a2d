"""Intersection over union of the thresholded map and the ground-truth mask."""

import math
from collections.abc import Sequence

import torch

from ..base import Statistic
from ..ranking import Collapse, Sign, most_relevant
from ._ground_truth import GroundTruthMetric

RULES = {"max": (0, 1), "percentile": (0, 100), "mean": (0, math.inf)}


class IoU(GroundTruthMetric):
    """Pixels in both the selection and the mask over pixels in either; the mean over images (Khakzar 2022, ch. 8).

    threshold: which pixels of the map are selected. The sources leave it open, and it decides who wins.
        `area`: as many as the mask has, the best ones. The default: it has no constant to tune and does not favour
            sharp or smooth maps; in return it tells the map the size of the object. An image with the share h in the
            mask (`rank_accuracy`) has h / (2 - h), so it is the same comparison on another scale.
        `max:<v>`: of at least v times the map's maximum (class activation maps use 0.2). `mean:<m>`: of at least m
            times the mean. Both look at the positive part of the map; one without has nothing selected and scores 0.
        `percentile:<p>`: the best 100 - p percent of the pixels, at least one.
    Under `area` and `percentile` ties are broken at random, seeded by the sample. An image whose mask covers nothing
    or everything is undefined (NaN).

    collapse, sign: see `Metric`.

    Columns: iou, in [0, 1].
    """

    statistics = (Statistic("iou", "higher", "iou", low=0, high=1, unit="intersection over union"),)

    def __init__(self, threshold: str = "area", collapse: Collapse | None = None, sign: Sign = "signed") -> None:
        super().__init__(collapse, sign)
        self.rule, self.value = _parse(threshold)

    def score(self, maps: torch.Tensor, regions: torch.Tensor, generators: Sequence[torch.Generator]) -> torch.Tensor:
        selected = self._selected(maps, regions.sum(1), generators)
        return (selected & regions).sum(1).double() / (selected | regions).sum(1)

    def _selected(self, maps: torch.Tensor, sizes: torch.Tensor, generators: Sequence[torch.Generator]) -> torch.Tensor:
        if self.rule == "area":
            return most_relevant(maps, sizes, generators)
        if self.rule == "percentile":
            count = max(1, round(maps.shape[1] * (1 - self.value / 100)))
            return most_relevant(maps, torch.full_like(sizes, count), generators)
        positive = maps.clamp(min=0)
        level = positive.amax(1) if self.rule == "max" else positive.mean(1)
        return (positive >= self.value * level[:, None]) & (positive > 0)


def _parse(threshold: str) -> tuple[str, float]:
    """`max:0.5` -> ("max", 0.5)."""
    rule, _, number = threshold.partition(":")
    if threshold == "area":
        return rule, 0.0
    try:
        low, high = RULES[rule]
        value = float(number)
    except (KeyError, ValueError):
        expected = "area, max:<v>, percentile:<p> or mean:<m>, such as max:0.5"
        raise ValueError(f"threshold={threshold}: expected {expected}") from None
    if not low < value < high:
        raise ValueError(f"threshold={threshold}: expected a number between {low} and {high} after '{rule}:'")
    return rule, value

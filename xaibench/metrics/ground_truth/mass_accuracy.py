"""Relevance mass accuracy: the share of the attribution that lies in the mask."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from ..base import Statistic
from ..ranking import Collapse, Sign
from ._ground_truth import GroundTruthMetric


class MassAccuracy(GroundTruthMetric):
    """The sum of the map over the mask divided by its sum over the image (Arras et al. 2022).

    A map without positive values, or more precisely one whose sum is 0, is undefined (NaN), as is an image whose mask
    covers nothing or everything. Robust to nothing: a few extreme pixels decide (Schulz et al. 2020 dropped it for
    that), and a constant on top of the map draws the score to the share of the image that the mask covers.

    sign: `positive` takes positive attribution only, as the definition does; `signed` is the ratio that Quantus
        computes, which leaves [0, 1] as soon as values cancel and is unbounded.
    collapse: see `Metric`.

    Columns: mass_accuracy, in [0, 1] unless `signed`.
    """

    statistics: tuple[Statistic, ...] = (
        Statistic("mass_accuracy", "higher", "mass_accuracy", low=0, high=1, unit="share of the attribution"),
    )

    def __init__(self, collapse: Collapse | None = None, sign: Sign = "positive") -> None:
        super().__init__(collapse, sign)
        if sign == "signed":
            self.statistics = tuple(replace(s, low=None, high=None) for s in self.statistics)

    def score(self, maps: torch.Tensor, regions: torch.Tensor, generators: Sequence[torch.Generator]) -> torch.Tensor:
        total = maps.sum(1)
        return ((maps * regions).sum(1) / total).where(total != 0, torch.nan)

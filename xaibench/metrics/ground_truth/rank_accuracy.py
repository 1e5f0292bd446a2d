"""Relevance rank accuracy: the bounding box metric with the mask itself in place of its box."""

from ..base import Statistic
from ..ranking import Collapse, Sign
from .bbox import BBox


class RankAccuracy(BBox):
    """With a mask of K pixels: the share of the K most relevant pixels that lie in the mask (Arras et al. 2022).

    The same number as `BBox` with `region: mask`, under the name that the field knows it by; ties and undefined images
    as there.

    collapse, sign: see `Metric`.

    Columns: rank_accuracy, in [0, 1].
    """

    statistics = (
        Statistic("rank_accuracy", "higher", "rank_accuracy", low=0, high=1, unit="share of the mask's size"),
    )

    def __init__(self, collapse: Collapse | None = None, sign: Sign = "signed") -> None:
        super().__init__("mask", collapse, sign)

"""Area under the ROC curve of the map as a detector of the mask."""

from collections.abc import Sequence

import torch

from ..base import Statistic
from ..ranking import mid_ranks
from ._ground_truth import GroundTruthMetric


class RocAuc(GroundTruthMetric):
    """The probability that a random pixel of the mask has a larger value than a random one outside, ties half.

    That is the area under the ROC curve over all thresholds (Mann and Whitney 1947), here from the ranks; chance is
    0.5 whatever the mask's size. An image whose mask covers nothing or everything is undefined (NaN).

    collapse, sign: see `Metric`.

    Columns: roc_auc, in [0, 1].
    """

    statistics = (Statistic("roc_auc", "higher", "roc_auc", low=0, high=1, unit="area under the curve"),)

    def score(self, maps: torch.Tensor, regions: torch.Tensor, generators: Sequence[torch.Generator]) -> torch.Tensor:
        inside, outside = regions.sum(1).double(), (~regions).sum(1).double()
        rank_sum = (mid_ranks(maps) * regions).sum(1)
        return (rank_sum - inside * (inside + 1) / 2) / (inside * outside)

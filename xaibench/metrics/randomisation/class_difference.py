"""Class difference: by how much do the maps of two classes of one image differ?"""

import torch

from ...datasets.base import Batch, Dataset
from ...methods.context import Context
from ...models.classifier import Classifier
from ..base import Columns, Metric, Statistic
from ..ranking import Collapse, Sign
from ..similarity import percentile
from ._other_class import OtherClass


class ClassDifference(Metric):
    """Mean over the pixels of |m - m'|, of the normalised maps of the explained class and of another class.

    Sixt 2022, section 4.1: the LRP of a cat and of a dog on one image differ by 0.000371, so that they show neither.
    A map is divided by a percentile of its absolute values and cut off at 1; by default absolute values are compared,
    as in the code of the thesis. Higher is better, from 0; at most 1 for absolute values, 2 for signed ones. It is
    to be held against `shuffled`, the difference of the map from itself with its pixels shuffled: maps with few high
    pixels differ little, whatever they show. Both maps draw the same noise, so that what differs comes from the class.

    other: which class, see `OtherClass`; a sample of which it is the explained class too is undefined.
    percentile: of the absolute values, which becomes 1; in (0, 100]. Where it is 0, the largest value becomes 1.
    collapse, sign: see `Metric`.

    Columns: difference, shuffled, and relative, their ratio (undefined for a map of one value).
    """

    def __init__(
        self,
        other: str = "second",
        percentile: float = 99.5,
        collapse: Collapse | None = None,
        sign: Sign = "absolute",
    ) -> None:
        if not 0 < percentile <= 100:
            raise ValueError(f"percentile={percentile}: expected a number above 0, at most 100")
        self.other, self.percentile, self.collapse, self.sign = OtherClass(other), percentile, collapse, sign
        most = 2 if sign == "signed" else 1
        self.statistics = (
            Statistic("difference", "higher", "difference", low=0, high=most, unit="of the normalised map"),
            Statistic("shuffled", "higher", "shuffled", low=0, high=most, unit="of the normalised map"),
            Statistic("relative", "higher", "relative", low=0, unit="difference / shuffled"),
        )

    def check(self, classifier: Classifier) -> None:
        self.other.check(classifier)

    def check_data(self, dataset: Dataset) -> None:
        self.other.check_data(dataset)

    def cost(self, classifier: Classifier) -> tuple[int, int]:
        return (1, 0)

    def explanations(self, classifier: Classifier) -> int:
        return 1

    def evaluate(self, classifier: Classifier, batch: Batch, maps: torch.Tensor, context: Context) -> Columns:
        others, same = self.other.maps(classifier, batch, context)
        first, second = normalised(maps, self.percentile), normalised(others, self.percentile)
        orders = torch.stack([torch.randperm(first.shape[1], generator=g) for g in context.generators]).to(first.device)
        columns = {
            "difference": (first - second).abs().mean(1),
            "shuffled": (first - first.gather(1, orders)).abs().mean(1),
        }
        columns["relative"] = columns["difference"] / columns["shuffled"].where(columns["shuffled"] > 0, torch.nan)
        return {name: column.masked_fill(same, torch.nan) for name, column in columns.items()}


def normalised(maps: torch.Tensor, percent: float) -> torch.Tensor:
    """Maps [B,H,W] -> float64 [B,H*W] in [-1, 1], 1 being this percentile of the absolute values, or where that is 0
    the largest; a map of zeros stays one."""
    values = maps.flatten(1).double()
    ordered = values.abs().sort(1).values
    scale, most = percentile(ordered, percent), ordered[:, -1:]
    scale = scale.where(scale > 0, most.where(most > 0, 1))
    return (values / scale).clamp(-1, 1)

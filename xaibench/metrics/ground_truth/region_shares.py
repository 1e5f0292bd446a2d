"""Region shares: which of an animal's blocks a map names, and how much it leaves to the wall behind."""

from typing import TYPE_CHECKING, Any, cast

import torch

from ...datasets.base import Batch, Dataset
from ...errors import Refusal
from ...methods.context import Context
from ...models.classifier import Classifier
from ..base import Columns, Metric, Statistic
from ..ranking import Collapse, Sign

if TYPE_CHECKING:
    from ...datasets.two4two import Two4Two

# Which biased factors are to be seen in a region: part of each statistic's name, so that no row is read without it.
SEEN_IN = {
    "animal": "legs+color+shape",
    "moving_legs": "legs+color+shape",
    "spine": "legs+color+shape",
    "fixed_legs": "color+shape",
    "background": "background",
}


class RegionShares(Metric):
    """The share of a map's attribution in each region of a Two4Two image, and that share over the region's area.

    Both pairs of legs look alike, but only the moving one tells the class. So a map of a network that uses the legs
    must name the moving pair more, and one that knows nothing of the network names both alike: the headline is the
    share of the moving legs over that of the fixed ones, about 1 for every map that only looks at the image.

    No map can be asked for more. A biased network may look at colour and shape, which occupy the same pixels, those of
    every block: which of the two it means is not to be seen, and attribution to a fixed leg is no mistake. What only
    the wall shows tells nothing in the study's data. What the network does use, `factor_importance` says. The names of
    the statistics say what is to be seen in a region.

    collapse, sign: see `Metric`; a map without attribution of the sign that is read is undefined (NaN).

    Columns: share_<region> and area_<region>, in [0, 1]. A density is mean share over mean area: 1 for `constant`.
    """

    def __init__(self, collapse: Collapse | None = None, sign: Sign = "positive") -> None:
        self.collapse, self.sign = collapse, sign
        ranged: dict[str, Any] = dict(low=0, high=1) if sign != "signed" else {}
        legs = Statistic(
            "moving_over_fixed:legs",
            direction="higher",
            column="share_moving_legs",
            per="share_fixed_legs",
            unit="share of the moving legs over that of the fixed legs",
        )
        self.statistics = (
            legs,
            *(
                Statistic(
                    f"{kind}_{name}:{seen}",
                    direction="lower" if name == "background" else "higher",
                    column=f"share_{name}",
                    per=per and f"area_{name}",
                    unit=unit,
                    **(ranged if kind == "share" else {}),
                )
                for kind, per, unit in (
                    ("share", None, "share of the attribution"),
                    ("density", "area", "share of the attribution over share of the area"),
                )
                for name, seen in SEEN_IN.items()
            ),
        )

    def check_data(self, dataset: Dataset) -> None:
        if not hasattr(dataset, "regions"):
            raise Refusal("region_shares needs images whose blocks are known: dataset=two4two has them")

    def evaluate(self, classifier: Classifier, batch: Batch, maps: torch.Tensor, context: Context) -> Columns:
        values = maps.flatten(1).double()
        total = values.sum(1)
        columns = {}
        data = context.data
        for name, masks in cast("Two4Two", data.dataset).regions(batch.samples).items():
            mask = torch.stack([data.preprocessing.mask(mask) for mask in masks]).flatten(1).to(maps.device)
            share = (values * mask).sum(1) / total
            columns[f"share_{name}"] = share.where(total != 0, torch.nan)
            columns[f"area_{name}"] = mask.double().mean(1)
        return columns

"""One class-specific feature: does the map of a class that it does not change follow the map of its own?"""

import torch

from ...datasets.base import Batch
from ...methods.context import Context
from ...models.classifier import Classifier
from ..base import Columns, Statistic
from ._scene_metric import AUDIT, SceneMetric, share


class FeatureLeak(SceneMetric):
    """Spearman's correlation over scenes of r_a and r_b, where r is mean attribution inside over outside the patch.

    Khakzar et al. 2022, equations 3 and 10: the patch decides class a and leaves class b as it is. Lower is better;
    below 0 the direction means nothing. Both maps draw the same noise, so that one that does not ask for the class,
    `random` too, has 1; noise drawn anew for each class would have 0, and win. Kept as inside / (inside + outside),
    which has the same ranks and is defined where a map is 0 outside.

    A map of class b that is 0 everywhere (rectified maps) has no ratio: such scenes are undefined and counted as
    `empty_maps`. A method of which few scenes are left has said little.

    For the scenes and the parameters see `SceneMetric`. Columns: own, other: of the maps of a and b.
    """

    scenario = "single"
    statistics = (
        Statistic(
            "feature_leak", "lower", "own", per="other", kind="spearman", low=-1, high=1, unit="rank correlation"
        ),
        *AUDIT,
    )

    def evaluate(self, classifier: Classifier, batch: Batch, maps: torch.Tensor | None, context: Context) -> Columns:
        found, places = self.explained(classifier, context)
        own, other = (_inside(values, places[:, 0]) for values in found)
        return self.audited(context, found, {"own": own, "other": other})


def _inside(maps: torch.Tensor, place: torch.Tensor) -> torch.Tensor:
    """Mean inside over the sum of the means inside and outside [B]; NaN for a map of 0."""
    inside, outside = (
        (maps * where).flatten(1).sum(1) / where.flatten(1).sum(1) for where in (place.double(), 1 - place.double())
    )
    return share(inside, inside + outside)

"""The null feature: how much attribution does a patch get that contributes nothing to the explained class?"""

import torch

from ...datasets.base import Batch
from ...methods.context import Context
from ...models.classifier import Classifier
from ..base import Columns, Statistic
from ._scene_metric import AUDIT, SceneMetric, share, sums


class NullFeature(SceneMetric):
    """Two patches, of which the second activates another class and changes the explained one in no coalition.

    Khakzar et al. 2022, equations 1, 2 and 8. Lower is better. `null_feature`, over the active patch, is how Table 1
    has to be read: sum over the null patch / sum over the active one, the mean over scenes; 1 for a uniform map, up to
    infinity. `null_share_total` is over the whole map (equation 8 as its caption has it; its numerator is printed as
    the active patch), the patch's area for a uniform map. `null_share_union` is over both patches, 1/2 for a uniform
    map.

    For the scenes and the parameters see `SceneMetric`. Columns: over_active, of_total, of_union; NaN where what is
    divided by is 0.
    """

    scenario = "null"
    statistics = (
        Statistic("null_feature", "lower", "over_active", low=0, unit="null patch / active patch"),
        Statistic("null_share_total", "lower", "of_total", low=0, high=1, unit="share of the attribution"),
        Statistic("null_share_union", "lower", "of_union", low=0, high=1, unit="share of both patches"),
        *AUDIT,
    )

    def explanations(self, classifier: Classifier) -> int:
        return 1

    def evaluate(self, classifier: Classifier, batch: Batch, maps: torch.Tensor | None, context: Context) -> Columns:
        (found,), places = self.explained(classifier, context, both=False)
        active, null = sums(found, places[:, 0]), sums(found, places[:, 1])
        columns = {
            "over_active": share(null, active),
            "of_total": share(null, found.flatten(1).sum(1)),
            "of_union": share(null, active + null),
        }
        return self.audited(context, [found], columns)

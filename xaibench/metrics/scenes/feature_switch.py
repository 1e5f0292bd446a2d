"""Two class-specific features: does attribution switch to the other patch with the explained class?"""

import torch

from ...datasets.base import Batch
from ...methods.context import Context
from ...models.classifier import Classifier
from ..base import Columns, Statistic
from ._scene_metric import AUDIT, SceneMetric, share, sums


class FeatureSwitch(SceneMetric):
    """Sum over both patches of min(S_a, S_b), over the sums of S_a on its patch and of S_b on its; lower is better.

    Khakzar et al. 2022, equations 4, 5 and 9: patch a alone decides class a and patch b class b, each whatever the
    other does. 0 for maps that switch completely, 1 for maps that are the same, as those of `random` are, for both draw
    the same noise; noise drawn anew for each class, uniform in [0, 1], would have 2/3.
    The two maps are not normalised: a method whose maps of one class are much the smaller has a low value though the
    shapes be the same.

    For the scenes and the parameters see `SceneMetric`. Column: switch; NaN where both sums are 0.
    """

    scenario = "double"
    statistics = (
        Statistic("feature_switch", "lower", "switch", low=0, high=1, unit="share of the attribution"),
        *AUDIT,
    )

    def evaluate(self, classifier: Classifier, batch: Batch, maps: torch.Tensor | None, context: Context) -> Columns:
        (first, second), places = self.explained(classifier, context)
        shared = sums(torch.minimum(first, second), places.any(1))
        own = sums(first, places[:, 0]) + sums(second, places[:, 1])
        return self.audited(context, [first, second], {"switch": share(shared, own)})

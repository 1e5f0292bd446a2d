"""Saturation: do two patches of a class, each of which suffices, get the same attribution?"""

import torch

from ...datasets.base import Batch
from ...methods.context import Context
from ...models.classifier import Classifier
from ..base import Columns, Statistic
from ._scene_metric import AUDIT, SceneMetric, share, sums


class FeatureSaturation(SceneMetric):
    """Spearman's correlation over scenes of the attribution of two patches, each of which is enough for the class.

    Khakzar et al. 2022, equations 6, 7 and 11: either patch activates the class, and both together no more than one.
    Higher is better. `saturation_imbalance` is the mean of |s1 - s2| / (s1 + s2), 0 for equal patches and 1 where one
    takes all: lower is better, and it is what the correlation is meant to be. A correlation is not equality: patches
    that share 9 to 1 of a total that varies have 1, equal ones of a total that does not vary -1, and methods whose maps
    add up to the output have such totals.

    The patches are pinned to two corners, (5, 5) and (133, 133) of 224 pixels, as in the released code. (Its text has
    the output at a constant; the released code makes it large.)

    For the scenes and the parameters see `SceneMetric`. Columns: first, second: the sums over the patches; imbalance,
    NaN where both are 0.
    """

    scenario = "saturation"
    statistics = (
        Statistic(
            "feature_saturation", "higher", "first", per="second", kind="spearman", low=-1, high=1,
            unit="rank correlation",
        ),
        Statistic("saturation_imbalance", "lower", "imbalance", low=0, high=1, unit="share of both patches"),
        *AUDIT,
    )  # fmt: skip

    def explanations(self, classifier: Classifier) -> int:
        return 1

    def evaluate(self, classifier: Classifier, batch: Batch, maps: torch.Tensor | None, context: Context) -> Columns:
        (found,), places = self.explained(classifier, context, both=False)
        first, second = sums(found, places[:, 0]), sums(found, places[:, 1])
        imbalance = share((first - second).abs(), first.abs() + second.abs())
        return self.audited(context, [found], {"first": first, "second": second, "imbalance": imbalance})

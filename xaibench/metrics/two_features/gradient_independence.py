"""Gradient independence: does the gradient at a pixel depend on the pixel's value?"""

import math

import torch

from ...datasets.base import Batch
from ...errors import Refusal
from ...methods.context import Context
from ...models.classifier import Classifier
from ..base import Columns, Metric, Statistic
from ..ranking import mid_ranks
from ..similarity import pearson


class GradientIndependence(Metric):
    """The correlation of an input's values with the gradient at them, over all pixels and channels (Heurich 2021, 4.2).

    It scores no map but the network. Where the two are independent, the factors of input x gradient and of integrated
    gradients are too: their product is then a noisy picture of the input. The thesis calls one image's 0.013 (Pearson)
    and 0.019 (Spearman) independent; no correlation is not independence, and signs cancel in the mean over images,
    which is why the sizes are given beside it. Values and gradients are those of the normalised input.

    Columns: pearson, spearman, in [-1, 1], undefined (NaN) where input or gradient is constant; pearson_abs,
    spearman_abs, their absolute values.
    """

    reads_maps = False
    statistics = (
        *(
            Statistic(name, "target", name, low=-1, high=1, target=0.0, unit="correlation")
            for name in ("pearson", "spearman")
        ),
        *(
            Statistic(name, "lower", name, low=0, high=1, unit="absolute correlation")
            for name in ("pearson_abs", "spearman_abs")
        ),
    )

    def check(self, classifier: Classifier) -> None:
        values = math.prod(classifier.input_size)
        if values < 3:
            raise Refusal(
                f"gradient_independence: {values} values of {classifier.name}'s input correlate with anything"
            )

    def cost(self, classifier: Classifier) -> tuple[int, int]:
        return (1, 1)

    def evaluate(self, classifier: Classifier, batch: Batch, maps: torch.Tensor | None, context: Context) -> Columns:
        gradients = classifier.gradient(batch.inputs, batch.targets)
        pair = [values.flatten(1).double() for values in (batch.inputs, gradients)]
        constant = torch.stack([values.amax(1) == values.amin(1) for values in pair]).any(0)
        found = {"pearson": pearson(*pair), "spearman": pearson(*map(mid_ranks, pair))}
        found = {name: value.where(~constant, torch.nan) for name, value in found.items()}
        return found | {f"{name}_abs": value.abs() for name, value in found.items()}

"""Sparseness: the Gini index of a map's absolute values."""

from typing import Literal

import torch

from ...datasets.base import Batch
from ...methods.context import Context
from ...models.classifier import Classifier
from ..base import Columns, Metric, Statistic
from ..ranking import Collapse


class Sparseness(Metric):
    """How unequally the attribution is spread over the pixels (Chalasani et al. 2020, section 3; Hurley, Rickard 2009).

    With the n absolute values in rising order, G = sum_k (2 k - n - 1) |a_k| / (n sum_k |a_k|): 0 for a constant map,
    1 - 1/n for a single pixel. The scale of the map does not count, and neither does where its values lie: the score
    says nothing about whether the map is true. A map of zeros is undefined (NaN).

    collapse: see `Metric`; channels are collapsed first. sign: `absolute`, or `positive` to leave out what is negative.

    Columns: sparseness.
    """

    statistics = (Statistic("sparseness", "higher", "sparseness", low=0, high=1, unit="Gini index"),)

    def __init__(self, collapse: Collapse | None = None, sign: Literal["absolute", "positive"] = "absolute") -> None:
        self.collapse, self.sign = collapse, sign

    def evaluate(self, classifier: Classifier, batch: Batch, maps: torch.Tensor, context: Context) -> Columns:
        rising = maps.flatten(1).double().sort(1).values
        n = rising.shape[1]
        weights = torch.arange(1 - n, n, 2, dtype=rising.dtype, device=rising.device)
        # A map of zeros is 0 / 0.
        return {"sparseness": rising @ weights / (n * rising.sum(1))}

"""Complexity: the entropy of the shares of a map's absolute values."""

from typing import Literal

import torch

from ...datasets.base import Batch
from ...methods.context import Context
from ...models.classifier import Classifier
from ..base import Columns, Metric, Statistic
from ..ranking import Collapse


class Complexity(Metric):
    """The entropy of p = |a| / sum |a| over the pixels, in nats (Bhatt et al. 2020, definition 4).

    0 for a single pixel, log(n) for a constant map of n pixels, so maps of different sizes do not compare. The scale
    of the map does not count, and neither does where its values lie: the score says nothing about whether the map is
    true. A map of zeros is undefined (NaN).

    collapse: see `Metric`; channels are collapsed first. sign: `absolute`, or `positive` to leave out what is negative.

    Columns: complexity.
    """

    statistics = (Statistic("complexity", "lower", "complexity", low=0, unit="nats"),)

    def __init__(self, collapse: Collapse | None = None, sign: Literal["absolute", "positive"] = "absolute") -> None:
        self.collapse, self.sign = collapse, sign

    def evaluate(self, classifier: Classifier, batch: Batch, maps: torch.Tensor, context: Context) -> Columns:
        values = maps.flatten(1).double()
        # A map of zeros is 0 / 0.
        return {"complexity": torch.special.entr(values / values.sum(1, keepdim=True)).sum(1)}

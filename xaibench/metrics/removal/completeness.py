"""Completeness: does a map add up to what the output loses when the whole image is replaced?"""

from typing import Any

import torch

from ...datasets.base import Batch
from ...methods.context import Context
from ...models.classifier import Classifier
from ..base import Columns, Statistic
from ._perturbation import Fill, Removal, RemovalMetric, drops


class Completeness(RemovalMetric):
    """|sum of the map - (f(x) - f(fill))|, the axiom's error (Sundararajan et al. 2017, proposition 1).

    Also known as summation to delta (DeepLIFT), efficiency (Shapley), conservation (LRP, with f(x) alone), and as
    Sensitivity-n at all features (Ancona et al. 2018). It means something only for additive methods, whose maps are
    contributions in units of the explained output against the same fill: integrated gradients, DeepLIFT, the Shapley
    methods, on networks without biases input times gradient. Others make no such promise (the scale of a Grad-CAM map
    is arbitrary), and a wrong map may keep it: f(x) - f(fill) put into any one pixel scores 0.

    f is the explained output, the logit unless `output` says otherwise. Channels and pixels are added with their
    signs, whatever a method's own collapse.

    fill: what the replaced image shows: the method's own baseline. sigma: of the blur, for `fill: blur`, in pixels.

    Columns: error, from 0 up, in units of the explained output; relative_error, the same over |f(x) - f(fill)|,
    undefined (NaN) where that is 0 or rounding alone (see `_perturbation.drops`). The statistic of the latter is its
    median: on images that hardly differ from their fill it has no bound.
    """

    statistics = (
        Statistic("completeness_error", "lower", "error", low=0, unit="explained output"),
        Statistic("relative_completeness_error", "lower", "relative_error", kind="median", low=0, unit="share of drop"),
    )
    version = 2
    collapse = "sum"

    def __init__(self, fill: Fill = "zero", sigma: float = 5.0) -> None:
        self.removal = Removal(fill, sigma)
        self.remove_by(self.removal)

    def check(self, classifier: Classifier) -> None:
        self.removal.check(classifier)

    def cost(self, classifier: Classifier) -> tuple[int, int]:
        return 1 + self.removal.passes, 0

    def responses_spec(self) -> dict[str, Any]:
        return self.removal.spec()

    def respond(self, classifier: Classifier, batch: Batch, context: Context) -> dict[str, torch.Tensor]:
        """drop [B]: f(x) - f(fill). differs [B]: whether that is more than rounding."""
        draws = self.removal.draw(context.generators)
        clean = classifier.scores(batch.inputs, batch.targets)
        empty = self.removal.emptied(classifier, batch, draws, context.fitted)
        return {**draws, "drop": clean - empty, "differs": drops(clean, empty[:, None])[:, 0] != 0}

    def evaluate(self, classifier: Classifier, batch: Batch, maps: torch.Tensor, context: Context) -> Columns:
        drop = context.responses["drop"].to(maps.device).double()
        error = (maps.flatten(1).double().sum(1) - drop).abs()
        differs = context.responses["differs"].to(maps.device)
        return {"error": error, "relative_error": (error / drop.abs()).where(differs, torch.nan)}

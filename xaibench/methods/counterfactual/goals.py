"""Where a counterfactual goes, given as words."""

import torch

from ...datasets.base import Samples
from ...errors import UserError, nearest
from ...models.classifier import Classifier
from ...models.invertible import rivals

GOALS = ("flip", "logit:VALUE", "quantile:SHARE")


class Goal:
    """The f that is wanted of images, f being the logit of one class less that of its strongest rival.

    words: `flip`, -f; `logit:VALUE`, that f; `quantile:SHARE`, the other sign than f's, and as large as |f| is at most
        for this share of the images of the fit split.
    Raises ValueError for other words.
    """

    def __init__(self, words: str) -> None:
        self.kind, _, value = words.partition(":")
        try:
            self.value = float(value) if self.kind != "flip" else 0.0
        except ValueError:
            self.value = float("nan")
        known = (self.kind == "flip" and not value) or self.kind in ("logit", "quantile")
        if not known:
            raise ValueError(f"goal={words}: {nearest(words, GOALS)}")
        if not abs(self.value) < float("inf") or (self.kind == "quantile" and not 0 < self.value < 1):
            expected = "a number, such as logit:3" if self.kind == "logit" else "a share between 0 and 1, such as 0.9"
            raise ValueError(f"goal={words}: expected {expected}")

    @property
    def from_data(self) -> bool:
        """Whether there is something to fit."""
        return self.kind == "quantile"

    def wanted(self, value: torch.Tensor, margins: torch.Tensor | None) -> torch.Tensor:
        """The f [B] to go to from f = value [B]. margins: what `margins` returned, for `quantile`."""
        if self.kind == "flip":
            return -value
        if self.kind == "logit":
            return torch.full_like(value, self.value)
        if margins is None:
            raise UserError("goal=quantile needs the margins that its fit measures")
        return -value.sign() * margins.to(value).quantile(self.value)


def margins(classifier: Classifier, samples: Samples) -> torch.Tensor:
    """|f| of each sample [n], between the two largest logits: what a `fit` keeps for `Goal.wanted`."""
    found = []
    for batch in samples:
        logits = classifier.logits(batch.inputs.to(classifier.dtype))
        found.append(rivals(logits, logits.argmax(1))[1].cpu())
    return torch.cat(found)

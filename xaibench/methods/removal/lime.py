"""LIME: a linear model of what the network answers when superpixels are hidden."""

from dataclasses import dataclass

import torch

from ...models.classifier import Classifier
from ..context import Context
from ._coalitions import Coalitions, Segments, counts_of, shares


@dataclass(kw_only=True, eq=False)
class Lime(Coalitions):
    """Coefficients of a weighted ridge regression of v on which players are present: [B,1,H,W], signed.

    Ribeiro et al. 2016, with the settings of the authors' image explainer (`lime.lime_image`): in each sample every
    player is present with probability 1/2, but for the first sample, the image itself; a sample of s of M players
    weighs exp(-d^2 / (2 kernel_width^2)) at the cosine distance d = 1 - sqrt(s / M); the intercept is free. The
    authors' code finds superpixels by quickshift and fills each with its own mean. v, players and how coefficients
    become a map are described in `Coalitions`. In units of the explained output per pixel; maps are not complete.

    An image in which SLIC finds one superpixel alone has nothing to compare: its map is undefined (NaN), so that it is
    excluded and counted.

    samples: coalitions asked, the image itself among them.
    kernel_width: see above. ridge: the penalty on squared coefficients, over the sum of weighted squared errors.
    Raises ValueError for fewer than two samples, a kernel width or a ridge that is not positive.
    """

    version = 2
    segments: Segments = "slic"
    samples: int = 1000
    kernel_width: float = 0.25
    ridge: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.samples < 2:
            raise ValueError(f"samples={self.samples}: expected at least 2")
        if not self.kernel_width > 0:
            raise ValueError(f"kernel_width={self.kernel_width}: expected a positive cosine distance")
        if not self.ridge > 0:
            raise ValueError(f"ridge={self.ridge}: expected a positive penalty")

    def cost(self, classifier: Classifier) -> tuple[int, int]:
        return (self.versions * self.samples, 0)

    def attribute(
        self, classifier: Classifier, inputs: torch.Tensor, targets: torch.Tensor, context: Context
    ) -> torch.Tensor:
        labels = self.labels(classifier, inputs)
        counts = counts_of(labels)
        coalitions = torch.ones(len(inputs), self.samples, max(counts), dtype=torch.bool)
        for sample, (players, generator) in enumerate(zip(counts, context.generators)):
            coalitions[sample, 1:, :players] = self._drawn(players, generator)
        answers = self.answers(classifier, inputs, targets, labels, coalitions, context)
        values = torch.zeros(len(inputs), max(counts), dtype=torch.float64)
        for sample, players in enumerate(counts):
            present = coalitions[sample, :, :players].double()
            values[sample, :players] = self._coefficients(present, answers[sample])
            if players == 1 and self.players > 1:
                values[sample] = torch.nan
        return shares(values, labels, inputs)

    def _drawn(self, players: int, generator: torch.Generator) -> torch.Tensor:
        """Which players [M] are present in each sample but the first, bool [samples - 1,M]."""
        return torch.rand(self.samples - 1, players, generator=generator) < 0.5

    def _coefficients(self, present: torch.Tensor, answers: torch.Tensor) -> torch.Tensor:
        """Coefficients [M] of answers [X] on present players [X,M]."""
        distances = 1 - present.mean(1).sqrt()
        weights = torch.exp(-0.5 * (distances / self.kernel_width) ** 2)
        return ridge_fit(present, weights, answers, self.ridge)


def ridge_fit(features: torch.Tensor, weights: torch.Tensor, answers: torch.Tensor, penalty: float) -> torch.Tensor:
    """Coefficients [M] of a weighted ridge regression of answers [X] on features [X,M], with a free intercept."""
    portions = weights / weights.sum()
    centred = features - portions @ features
    gram = centred.T @ (weights[:, None] * centred)
    gram.diagonal().add_(penalty)
    return torch.linalg.solve(gram, centred.T @ (weights * (answers - portions @ answers)))

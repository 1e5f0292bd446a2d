"""LIME for sentences, as its authors have it."""

from dataclasses import dataclass, field

import torch

from ...errors import Refusal
from ...models.classifier import Classifier
from ._coalitions import Segments
from .lime import Lime, ridge_fit


@dataclass(kw_only=True, eq=False)
class LimeText(Lime):
    """Coefficients of a weighted ridge regression of v on which words are present: [B,1,1,T], signed.

    Ribeiro et al. 2016, with the settings of the authors' text explainer (`lime.lime_text`): the players are the
    different words of a sentence, and one that is there twice goes twice; each sample but the first, the sentence
    itself, lacks a number of words drawn evenly from 1 to all M of them; a sample of s words weighs
    exp(-(100 d)^2 / (2 kernel_width^2)) at the cosine distance d = 1 - sqrt(s / M). Of a first regression on all words
    the `features` largest coefficients say which words a second one is of; the others are 0. v is the explained output
    (the authors explain probabilities: `output=probability`), and where the authors take words out, here the `fill`
    stands in their place, since the other methods' sentences keep their length too.

    A coefficient is shared evenly by the places of its word. A sentence of one word has nothing to compare: undefined
    (NaN).

    samples: sentences asked, that itself among them. features: see above. kernel_width: in hundredths of the distance.
    ridge: the penalty on squared coefficients. Raises ValueError as `Lime`.
    """

    version = 1
    # The players are the words: nothing of these is to be chosen.
    players: int = field(default=10_000, init=False)
    segments: Segments = field(default="grid", init=False)
    sigma: float = field(default=5.0, init=False)
    samples: int = 200
    kernel_width: float = 25.0
    features: int = 20

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.features < 1:
            raise ValueError(f"features={self.features}: expected at least 1")

    def check(self, classifier: Classifier) -> None:
        super().check(classifier)
        if classifier.places != "words":
            raise Refusal(f"lime_text is of words, the inputs of {classifier.name} are {classifier.places}: use lime")

    def labels(self, classifier: Classifier, inputs: torch.Tensor) -> torch.Tensor:
        """The word at each place, int64 [B,1,T]: equal vectors are equal words; numbered as they come, from 0 on."""
        same = (inputs[:, :, 0, :, None] == inputs[:, :, 0, None, :]).all(1)
        first = same.int().argmax(2)
        is_first = first == torch.arange(first.shape[1], device=first.device)
        return (is_first.cumsum(1) - 1).gather(1, first)[:, None]

    def _drawn(self, players: int, generator: torch.Generator) -> torch.Tensor:
        lacking = torch.randint(1, players + 1, (self.samples - 1, 1), generator=generator)
        order = torch.rand(self.samples - 1, players, generator=generator).argsort(1).argsort(1)
        return order >= lacking

    def _coefficients(self, present: torch.Tensor, answers: torch.Tensor) -> torch.Tensor:
        distances = 100 * (1 - present.mean(1).sqrt())
        weights = torch.exp(-0.5 * (distances / self.kernel_width) ** 2)
        found = ridge_fit(present, weights, answers, self.ridge)
        if len(found) <= self.features:
            return found
        chosen = found.abs().topk(self.features).indices
        kept = torch.zeros_like(found)
        kept[chosen] = ridge_fit(present[:, chosen], weights, answers, self.ridge)
        return kept

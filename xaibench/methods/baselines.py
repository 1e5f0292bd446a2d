"""What a method measures from: baselines given by words, or images of the data set."""

from collections.abc import Sequence

import torch

from ..datasets.base import Samples
from ..errors import Refusal, one_of
from ..models.classifier import Classifier
from ..perturb import fills
from .context import Context

BASELINES: tuple[str, ...] = (*fills.FILLS, "zero_normalised", "noise", "reference", "dataset")


class Baselines:
    """One or several baselines of each input.

    words: the fill words (`zero`, also called `zero_normalised`; `blur` with its `sigma`, `value` with its `value`);
        `noise`, uniform pixel values, and `reference`, normal ones around grey (what scenes made from the network lie
        on: `metrics.scenes`), both drawn anew wherever the word occurs; `dataset`, which stands for `references`
        images of the fit split, the same for every input.
    Raises ValueError for another word, for none, and for figures out of range.
    """

    def __init__(self, words: str | Sequence[str], sigma: float, value: float, references: int) -> None:
        self.words = (words,) if isinstance(words, str) else tuple(words)
        if not self.words:
            raise ValueError("baseline=[]: expected at least one word")
        for word in self.words:
            one_of("baseline", word, BASELINES)
        if not sigma > 0:
            raise ValueError(f"sigma={sigma}: expected a positive number of pixels")
        if not 0 <= value <= 1:
            raise ValueError(f"value={value}: expected a pixel value from 0 to 1")
        if references < 1:
            raise ValueError(f"references={references}: expected at least 1 image")
        self.sigma, self.value, self.references = sigma, value, references

    def __len__(self) -> int:
        return sum(self.references if word == "dataset" else 1 for word in self.words)

    @property
    def from_data(self) -> bool:
        """Whether there is something to fit."""
        return "dataset" in self.words

    def fit(self, classifier: Classifier, samples: Samples, generator: torch.Generator) -> dict[str, torch.Tensor]:
        """`references` [n,C,H,W]: images chosen at random among the samples; what a method's `fit` returns."""
        if len(samples.ids) < self.references:
            raise Refusal(
                f"references={self.references}: there are {len(samples.ids)} samples to draw baselines from "
                "(fit.split, fit.limit)"
            )
        chosen = torch.randperm(len(samples.ids), generator=generator)[: self.references]
        return {"references": samples.load([samples.ids[place] for place in chosen.tolist()]).inputs.cpu()}

    def of(self, classifier: Classifier, inputs: torch.Tensor, context: Context) -> list[torch.Tensor]:
        """The baselines of inputs [B,C,H,W], each [B,C,H,W]. `dataset` needs what `fit` returned in the context."""
        found = []
        for word in self.words:
            if word == "dataset":
                if "references" not in context.fitted:
                    raise Refusal("baseline=dataset needs the references that its fit draws")
                found += [reference.expand_as(inputs) for reference in context.fitted["references"].to(inputs)]
            elif word == "noise":
                found.append(fills.noise(inputs, classifier.preprocessing, context.generators))
            elif word == "reference":
                found.append(fills.reference(inputs, classifier.preprocessing, context.generators))
            else:
                word = "zero" if word == "zero_normalised" else word
                found.append(fills.filled(inputs, word, classifier.preprocessing, self.sigma, self.value))
        return found

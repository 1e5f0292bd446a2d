"""What a method measures from: baselines given by words, or images of the data set."""

from collections.abc import Sequence

import torch

from ..datasets.base import Samples
from ..errors import Refusal, one_of
from ..models.classifier import Classifier
from ..models.invertible import Line, invertible
from ..perturb import fills
from ..perturb.background import draw_references
from .context import Context

# f becomes this many times itself: the class turns, or is as much surer as it would turn.
COUNTERFACTUALS = {"counterfactual": -1, "counterfactual_same": 3}
BASELINES: tuple[str, ...] = (*fills.FILLS, "zero_normalised", "noise", "reference", *COUNTERFACTUALS, "dataset")


class Baselines:
    """One or several baselines of each input.

    words: the fill words (`zero`, also called `zero_normalised`; `blur` with its `sigma`, `value` with its `value`);
        `noise`, uniform pixel values, and `reference`, normal ones around grey (what scenes made from the network lie
        on: `metrics.scenes`), both drawn anew wherever the word occurs; `dataset`, which stands for `references`
        images of the fit split, the same for every input; of an invertible network `counterfactual`, the image whose
        logits of the two likeliest classes have changed places, and `counterfactual_same`, that of a step as long the
        other way (Heurich 2021, section 4.2; see `counterfactual.Counterfactual`).
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

    def check(self, classifier: Classifier) -> None:
        """Raise Refusal for words that this network cannot serve."""
        for word in COUNTERFACTUALS:
            if word in self.words:
                invertible(classifier, f"baseline={word}")
        for word in self.words:
            fills.check_fill(word, classifier, "method.baseline")
        if self.from_data and classifier.places == "words":
            raise Refusal("method.baseline=dataset: other sentences have other lengths, and no word for a word")

    @property
    def passes(self) -> int:
        """Forward passes that the baselines of an input take themselves."""
        return 2 * sum(word in COUNTERFACTUALS for word in self.words)

    def fit(self, classifier: Classifier, samples: Samples, generator: torch.Generator) -> dict[str, torch.Tensor]:
        """`references` [n,C,H,W]: images chosen at random among the samples; what a method's `fit` returns."""
        return {"references": draw_references(samples, self.references, generator)}

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
            elif word in COUNTERFACTUALS:
                line = Line.of(classifier, inputs, None, f"baseline={word}")
                found.append(line.at(COUNTERFACTUALS[word] * line.value))
            else:
                word = "zero" if word == "zero_normalised" else word
                found.append(fills.filled(inputs, word, classifier.preprocessing, self.sigma, self.value))
        return found

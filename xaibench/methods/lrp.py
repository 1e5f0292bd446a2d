"""Layer-wise relevance propagation, with any rule for the layers; deep Taylor decomposition and excitation
backpropagation are such rules too."""

from typing import Literal, get_args

import torch
from torch.nn import functional

from ..errors import Refusal, nearest
from ..models.classifier import Classifier
from .modified_backprop import ModifiedBackprop, refuse_probability
from .rules import AffineRule, Box, Composite, Flat, Square, passed_on

First = Literal["same", "square", "flat", "box"]
Start = Literal["logit", "one"]

# How far outside of the box an input may lie: rounding of the normalisation.
SLACK = 1e-4


class LRP(ModifiedBackprop):
    """Relevance of every input value, handed down from the explained logit layer by layer: [B,C,H,W], signed.

    rule: of convolutions, linear layers, batch normalisation that cannot be folded, average pooling and sums (a
        residual connection is a layer [I I] on both inputs). Activations pass relevance on, maximum pooling
        to the largest value.
    dense: of linear layers, if it is another rule.
    first: of the layer that reads the input: `same`, `square` (w-squared, for inputs of any size), `flat`, or `box`
        (z-box, for inputs between the normalised values of black and white).
    start: the relevance handed down: the `logit` itself, so that a negative one turns the map's sign, or `one`.

    Bach et al. 2015; composites: Montavon et al. 2019, Kohlbrenner et al. 2020 (Sixt 2022, section 4.4: LRP_CMP).
    Raises ValueError for another first or start.
    """

    def __init__(
        self, rule: AffineRule, dense: AffineRule | None = None, first: First = "same", start: Start = "logit"
    ) -> None:
        for name, value, choices in (("first", first, get_args(First)), ("start", start, get_args(Start))):
            if value not in choices:
                raise ValueError(f"{name}={value}: {nearest(value, choices)}")
        self.rule, self.dense, self.first, self.start = rule, dense, first, start

    def check(self, classifier: Classifier) -> None:
        refuse_probability(classifier, "layer-wise relevance propagation")
        super().check(classifier)

    def rules(self, classifier: Classifier, inputs: torch.Tensor) -> Composite:
        first = {"same": None, "square": Square(), "flat": Flat()}.get(self.first) or (
            box(classifier, inputs) if self.first == "box" else None
        )
        return Composite(self.rule, passed_on, dense=self.dense, first=first)

    def initial(self, classifier: Classifier, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        chosen = functional.one_hot(targets, logits.shape[1]).to(logits)
        return chosen * logits if self.start == "logit" else chosen


def box(classifier: Classifier, inputs: torch.Tensor) -> Box:
    """The z-box rule between the normalised values of black and white. Raises Refusal for inputs outside of them."""
    channels = torch.zeros(inputs.shape[1], 1, 1, dtype=inputs.dtype, device=inputs.device)
    low, high = (classifier.preprocessing.normalise(channels + value) for value in (0, 1))
    outside = (inputs < low - SLACK) | (inputs > high + SLACK)
    if outside.any():
        raise Refusal(
            f"first=box needs inputs between black and white ({float(low.min()):.4g} to {float(high.max()):.4g} "
            f"normalised), one is {float(inputs[outside][0]):.4g}: set method.first=square"
        )
    return Box(low, high)

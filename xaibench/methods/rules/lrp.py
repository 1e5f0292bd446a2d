"""Layer-wise relevance propagation, with any rule for the layers; deep Taylor decomposition and excitation
backpropagation are such rules too."""

from typing import Literal, get_args

import torch

from ...errors import Refusal, one_of
from ...models.classifier import Classifier
from ...models.tracing.steps import (
    Affine,
    Average,
    Constant,
    Dense,
    Elementwise,
    Normalisation,
    Product,
    Route,
    Rule,
    Softmax,
    Step,
    Sum,
    Tensors,
)
from ..context import Context
from ._attention import AttentionName, Factors, held, of_softmax
from ._modified_backprop import ModifiedBackprop, Start, refuse_probability, target_alone
from .rules import AffineRule, Box, Composite, Epsilon, Flat, Square, passed_on

First = Literal["same", "square", "flat", "box", "image_box"]
Residual = Literal["rule", "proportional", "clipped"]

# How far outside of the box an input may lie: rounding of the normalisation.
SLACK = 1e-4


class LRP(ModifiedBackprop):
    """Relevance of every input value, handed down from the explained logit layer by layer: [B,C,H,W], signed.

    rule: of convolutions, linear layers and batch normalisation that cannot be folded. Activations pass relevance on,
        maximum pooling to the largest value, average pooling in proportion to its inputs (equally under the rules that
        look at weights alone).
    dense: of linear layers, if it is another rule.
    residual: of sums: `rule` (a residual connection is a layer [I I] on both of its inputs: Sixt 2022, section 4.3) or
        `proportional` to the two (zennit's), or `clipped`, as `rule` without what is below 0 (the code of Sixt et al.
        2020, which also cuts off at 1000).
    first: of the layer that reads the input: `same`, `square` (w-squared, for inputs of any size), `flat`, `box`
        (z-box, for inputs between the normalised values of black and white), or `image_box` (z-box between the least
        and the largest value of the image itself, as RAP's released code and Nuzzo 2020 have it).
    start: the relevance handed down: the `logit` itself, so that a negative one turns the map's sign, or `one`.

    Gates and attention are weights of what they let through and get no relevance; a normalisation by the values
    themselves is the affine layer that it is with its deviation held, under LRP-epsilon (see `AttentionLRP`, which can
    do otherwise). Activations that are not 0 at 0 pass relevance on too.

    Bach et al. 2015; composites: Montavon et al. 2019, Kohlbrenner et al. 2020 (Sixt 2022, section 4.4: LRP_CMP).
    Raises ValueError for another word.
    """

    served = (Affine, Elementwise, Route, Constant, Product, Softmax, Normalisation)
    attention: AttentionName = "conservative"
    start: Start

    def __init__(
        self,
        rule: AffineRule,
        dense: AffineRule | None = None,
        residual: Residual = "rule",
        first: First = "same",
        start: Start = "logit",
    ) -> None:
        self.rule, self.dense = rule, dense
        self.residual = one_of("residual", residual, get_args(Residual))
        self.first, self.start = one_of("first", first, get_args(First)), one_of("start", start, get_args(Start))

    @property
    def sign_of_logit(self) -> bool:  # type: ignore[override]  # read-only: it follows from the rules
        """See `Method`. LRP-z and LRP-epsilon with the bias kept are gradient x input (but for epsilon): the logit is
        the denominator of the last layer, and cancels."""
        rules = [rule for rule in (self.rule, self.dense) if rule is not None]
        cancels = all(isinstance(rule, Epsilon) and rule.bias == "kept" for rule in rules)
        return super().sign_of_logit and not cancels

    def check(self, classifier: Classifier) -> None:
        refuse_probability(classifier, "layer-wise relevance propagation")
        super().check(classifier)

    def rules(self, classifier: Classifier, inputs: torch.Tensor, context: Context) -> Composite:
        first: AffineRule | None
        if self.first == "box":
            first = box(classifier, inputs)
        elif self.first == "image_box":
            first = image_box(inputs)
        else:
            first = {"same": None, "square": Square(), "flat": Flat()}[self.first]
        kept = self.rule if isinstance(self.rule, Epsilon) else Epsilon(1e-6, self.rule.bias_kept)
        special: dict[type[Step], Rule] = {
            Elementwise: passed_on,
            Product: Factors(self.attention, kept.epsilon),
            Softmax: of_softmax,
            Normalisation: held(kept),
        }
        if not isinstance(self.rule, Square | Flat):
            special[Average] = Epsilon(0)
        if self.dense is not None:
            special[Dense] = self.dense
        if self.residual == "proportional":
            special[Sum] = Epsilon(0)
        if self.residual == "clipped":
            special[Sum] = self._clipped
        return Composite(self.rule, passed_on, first, special)

    def _clipped(self, step: Affine, inputs: Tensors, output: torch.Tensor, signal: torch.Tensor) -> Tensors:
        return tuple(share.clamp(min=0) for share in self.rule(step, inputs, output, signal))

    def initial(self, classifier: Classifier, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return target_alone(logits, targets, self.start)


def image_box(inputs: torch.Tensor) -> Box:
    """The z-box rule between the least and the largest value of each of the inputs [B,C,H,W]."""
    return Box(inputs.amin((1, 2, 3), keepdim=True), inputs.amax((1, 2, 3), keepdim=True))


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

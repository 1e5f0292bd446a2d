"""Gradients with another rule at the ReLUs: guided backpropagation, DeconvNet, RectGrad."""

import math
from collections.abc import Mapping
from typing import Any

import torch

from ...errors import Refusal
from ...models.classifier import Classifier
from ...models.rectifiers import count_rectifiers
from ...models.tracing.graph import Graph
from ...models.tracing.steps import Rectifier, Rule, Signals, Step, Tensors
from ..context import Context
from ._modified_backprop import ModifiedBackprop, gradient_of_output
from .rules import Composite


class _RectifierRule(ModifiedBackprop):
    """The gradient, but for `rectifier` at every ReLU. All else keeps its derivative, other activations included.

    A ReLU6 is a ReLU with its own derivative: it is open where 0 < x < 6. (Captum's rule leaves ReLU6 alone, which on
    MobileNet is the plain gradient.) It does not matter how a ReLU is written; a network that has one which cannot
    be found, or none at all, is refused: its map would silently be nearly a plain gradient.
    """

    def check(self, classifier: Classifier) -> None:
        found, there = len(Graph.of(classifier).of_kind(Rectifier)), sum(count_rectifiers(classifier))
        if found < there:
            raise Refusal(
                f"{there - found} of the {there} ReLUs of {classifier.name} cannot be given a rule: they are inside of "
                "something that torch.fx does not trace"
            )
        if not found:
            raise Refusal(f"this method needs ReLUs: {classifier.name} has none in its forward pass")

    def rules(self, classifier: Classifier, inputs: torch.Tensor, context: Context) -> Composite:
        return Composite(special={Rectifier: self.rectifier})

    def initial(self, classifier: Classifier, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return gradient_of_output(classifier, logits, targets)

    rectifier: Rule


class GuidedBackprop(_RectifierRule):
    """Gradient in which every ReLU passes back only what is positive: [B,C,H,W], signed.

    Springenberg et al. 2015: at a ReLU y = max(x, 0) the signal R becomes (x > 0) (R > 0) R.
    """

    version = 2

    def rectifier(self, step: Step, inputs: Tensors, output: torch.Tensor, signal: torch.Tensor) -> Signals:
        return step.derivative(inputs, output, signal.clamp(min=0))


class DeconvNet(_RectifierRule):
    """Gradient in which every ReLU passes back what is positive, whether it was open or not: [B,C,H,W], signed.

    Zeiler & Fergus 2014: at a ReLU the signal R becomes (R > 0) R; maximum pooling goes back to the largest value.
    """

    def rectifier(self, step: Step, inputs: Tensors, output: torch.Tensor, signal: torch.Tensor) -> Signals:
        return (signal.clamp(min=0),)


class RectGrad(_RectifierRule):
    """Gradient in which every ReLU passes back only where activation times gradient is among the largest: [B,C,H,W].

    Kim et al. 2019: at a ReLU y the signal R becomes (y R > tau) R where the ReLU is open, with tau the percentile q of
    y R over all units of the layer, for each sample by itself: of n values in order, number 1 + q / 100 (n - 1), cut
    to a whole number, so that the largest one passes even in a small layer.

    q: percent that are cut, 0 to below 100. input: whether the input x takes the last step, in which R becomes
        (x R > 0) x R (Nuzzo 2020, eq. 4.10). Raises ValueError for another percentage.
    """

    added: Mapping[str, Any] = {"input": False}

    def __init__(self, q: float = 98.0, input: bool = False) -> None:
        if not 0 <= q < 100:
            raise ValueError(f"q={q}: expected a percentage from 0 to below 100")
        self.q, self.input = q, input

    def maps(
        self, classifier: Classifier, inputs: torch.Tensor, targets: torch.Tensor, context: Context
    ) -> torch.Tensor:
        arrived = super().maps(classifier, inputs, targets, context)
        return (inputs * arrived).clamp(min=0) if self.input else arrived

    def rectifier(self, step: Step, inputs: Tensors, output: torch.Tensor, signal: torch.Tensor) -> Signals:
        effect = (output * signal).flatten(1)
        rank = 1 + math.floor(self.q / 100 * (effect.shape[1] - 1))
        threshold = effect.kthvalue(rank, dim=1, keepdim=True).values
        kept = (effect > threshold).view_as(signal)
        return step.derivative(inputs, output, signal * kept)

"""Relevance of one class against the others: contrastive LRP and contrastive excitation backpropagation."""

from collections.abc import Callable
from dataclasses import replace

import torch

from ...models.classifier import Classifier
from ...models.cut import INPUT
from ...models.tracing.graph import Graph
from ...models.tracing.steps import Affine, Rule, Step, Tensors
from ..context import Context
from ._modified_backprop import ModifiedBackprop, last_layer, refuse_probability, target_alone
from .lrp import LRP
from .rules import AffineRule, AlphaBeta, Composite


class ContrastiveLRP(ModifiedBackprop):
    """max(0, n(R of the explained logit) - n(R of all others)), n dividing a map by its sum: [B,C,H,W].

    R is the relevance that a rule hands down from these logits, each with its own value (Gu et al. 2018; Sixt et al.
    2020, section 5). The others can sum to nearly 0, and their share is then large.

    rule: of the affine steps, by default z+; all else as in `LRP`.
    positive: whether values below 0 are dropped, as the definition has it; without, the map is signed.
    """

    served = LRP.served

    def __init__(self, rule: AffineRule | None = None, positive: bool = True) -> None:
        self.lrp, self.positive = LRP(AlphaBeta() if rule is None else rule), positive

    def check(self, classifier: Classifier) -> None:
        refuse_probability(classifier, "contrastive LRP")
        super().check(classifier)

    def cost(self, classifier: Classifier) -> tuple[int, int]:
        return (1, 2)

    def rules(self, classifier: Classifier, inputs: torch.Tensor, context: Context) -> Composite:
        return self.lrp.rules(classifier, inputs, context)

    def initial(self, classifier: Classifier, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return self.lrp.initial(classifier, logits, targets)

    def maps(
        self, classifier: Classifier, inputs: torch.Tensor, targets: torch.Tensor, context: Context
    ) -> torch.Tensor:
        graph, rules = Graph.of(classifier), self.rules(classifier, inputs, context)
        values = graph.run(inputs)
        chosen = self.initial(classifier, values[-1], targets)
        of_target, of_others = (graph.back(values, s, rules)[INPUT] for s in (chosen, values[-1] - chosen))
        difference = normalised(of_target) - normalised(of_others)
        return difference.clamp(min=0) if self.positive else difference


class ContrastiveEBP(ModifiedBackprop):
    """Probability of being the winner, less that of being the winner of a network with the last weights negated:
    [B,C,H,W], signed (Zhang et al. 2016, section 3.3; Sixt et al. 2020, section 5).

    The last layer with weights passes on (Z+ - N+) R, Z+ being the rule of excitation backpropagation and N+ the same
    of negated weights; what lies below is excitation backpropagation, from a 1 at the target.
    """

    served = LRP.served

    def check(self, classifier: Classifier) -> None:
        refuse_probability(classifier, "excitation backpropagation")
        super().check(classifier)
        last_layer(classifier)

    def rules(self, classifier: Classifier, inputs: torch.Tensor, context: Context) -> Callable[[Step], Rule]:
        last = last_layer(classifier)
        below = LRP(AlphaBeta()).rules(classifier, inputs, context)
        return lambda step: against_its_negative if step is last else below(step)

    def initial(self, classifier: Classifier, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return target_alone(logits, targets, "one")


def against_its_negative(step: Affine, inputs: Tensors, output: torch.Tensor, signal: torch.Tensor) -> Tensors:
    """The z+ rule of a step, less that of the same step with negated weights."""
    zplus = AlphaBeta()
    negated = zplus(replace(step, weight=-step.weight), inputs, output, signal)
    return tuple(own - other for own, other in zip(zplus(step, inputs, output, signal), negated))


def normalised(maps: torch.Tensor) -> torch.Tensor:
    """Maps [B,C,H,W], each divided by its sum; one that sums to 0 is 0."""
    total = maps.sum((1, 2, 3), keepdim=True)
    return torch.where(total == 0, 0, maps / torch.where(total == 0, 1, total))

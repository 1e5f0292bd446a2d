"""Relevance handed down to every attention of a transformer, and from there along the attentions to the patches."""

from collections.abc import Callable

import torch

from ...errors import Refusal
from ...models.classifier import Classifier
from ...models.tracing.graph import Graph
from ...models.tracing.steps import (
    Affine,
    Average,
    Elementwise,
    Normalisation,
    Other,
    Product,
    Route,
    Rule,
    Scale,
    Signals,
    Softmax,
    Step,
    Sum,
    Tensors,
    derivative,
)
from ..rules._attention import Factors
from ..rules._modified_backprop import gradient_of_output, refuse_probability, target_alone
from ..rules.rules import AlphaBeta, Epsilon, divided, passed_on
from .attention import OfAttention, on_grid, read


class TransformerAttribution(OfAttention):
    """Relevance times gradient at every attention, what is negative left out, followed through all layers: [B,1,H,W].

    Chefer et al. 2021 ("Transformer Interpretability Beyond Attention Visualization", CVPR), eq. 13 and 14: the product
    over layers of I + E_h[(dy/dA * R_A)^+], with the relevance R_A of the attention A by the rules of section 3.1 and
    3.2, from 1 at the explained logit y: a layer with weights hands it to what contributes more than 0 (`AlphaBeta`), a
    sum as `of_sum` says, a matrix product half of it to either factor in proportion (`Factors`), which is what eq. 9
    and 10 make of it, and everything else hands on what it gets. Nothing below the first attention is looked at.

    Serves networks that torch.fx can trace and whose attention is a softmax times a matrix, `MultiheadAttention` or
    written out.
    """

    def cost(self, classifier: Classifier) -> tuple[int, int]:
        """One pass forwards, and backwards one for the gradient and one for the relevance."""
        return (1, 2)

    def check(self, classifier: Classifier) -> None:
        refuse_probability(classifier, "transformer_attribution")
        graph = Graph.of(classifier)
        attentions = _attentions(graph)
        if not attentions:
            raise Refusal(
                f"{classifier.name} has no attention (a softmax times a matrix) to be read: lrp_epsilon, gradcam and "
                "iba serve networks without"
            )
        above = graph.steps[graph.steps.index(attentions[0]) :]
        if other := next((step for step in above if isinstance(step, Other)), None):
            raise Refusal(f"there is no rule for '{other.name}' of {classifier.name}, which is {other.what}")
        values = graph.run(classifier.blank)
        self.refuse_others(classifier, {values[step.sources[0]].shape[-1] for step in attentions})

    def patches(self, classifier: Classifier, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        graph = Graph.of(classifier)
        attentions, values = _attentions(graph), graph.run(inputs)
        gradients: dict[Step, torch.Tensor] = {}
        start = gradient_of_output(classifier, values[-1], targets)
        _descend(graph, values, start, lambda step: derivative, gradients.__setitem__)
        grid, row = read(values[attentions[-1].sources[0]].shape[-1], inputs)

        def follow(step: Step, relevance: torch.Tensor) -> None:
            nonlocal row
            row = row + row @ (gradients.pop(step) * relevance).relu().mean(1)

        _descend(graph, values, target_alone(values[-1], targets, "one"), rule_of, follow)
        return on_grid(row, grid)


def rule_of(step: Step) -> Rule:
    """The rule of each step: see `TransformerAttribution`."""
    if isinstance(step, Sum):
        return of_sum
    if isinstance(step, Scale | Normalisation | Softmax | Elementwise):
        return passed_on
    if isinstance(step, Average):
        return Epsilon(0.0, bias="dropped")
    if isinstance(step, Affine):
        return AlphaBeta(1.0, 0.0)
    return Factors("attnlrp", 0.0) if isinstance(step, Product) else derivative


def of_sum(step: Sum, inputs: Tensors, output: torch.Tensor, signal: torch.Tensor) -> Tensors:
    """Relevance of a sum u + v, as u and v contribute to it, and each scaled to its share of the whole: their totals
    are |sum R_u| and |sum R_v| over |sum R_u| + |sum R_v| of that of the output, each sample's own (eq. 8 to 10)."""
    shares = [(x * divided(signal, output).sum_to_size(x.shape)) for x in inputs]
    totals = [_total(share) for share in shares]
    sizes = torch.stack(totals).abs()
    whole = divided(_total(signal), sizes.sum(0))
    return tuple(share * divided(size * whole, part) for share, part, size in zip(shares, totals, sizes))


def _total(values: torch.Tensor) -> torch.Tensor:
    """The sum of each sample [B,1,...]."""
    return values.sum(tuple(range(1, values.dim())), keepdim=True)


def _attentions(graph: Graph) -> list[Product]:
    """The products of an attention, which is their first factor, with values."""
    return [
        step
        for step in graph.steps
        if isinstance(step, Product) and not step.elementwise and isinstance(_made_by(graph, step.sources[0]), Softmax)
    ]


def _made_by(graph: Graph, place: int) -> Step | None:
    """The step that made a value, what has only moved it aside."""
    step = graph.steps[place - 1] if place else None
    return _made_by(graph, step.sources[0]) if isinstance(step, Route) and step.sources else step


def _descend(
    graph: Graph,
    values: list[torch.Tensor],
    signal: torch.Tensor,
    rule_of: Callable[[Step], Rule],
    look: Callable[[Step, torch.Tensor], None],
) -> None:
    """A backward pass down to the first attention that calls look(step, signal at the attention) at each, from the
    last to the first."""
    attentions = _attentions(graph)
    below = set(graph.steps[: graph.steps.index(attentions[0])])

    def of(step: Step) -> Rule:
        if step in below:
            return lambda step, *_: [None] * len(step.sources)
        rule = rule_of(step)
        if step not in attentions:
            return rule

        def seen(step: Product, inputs: Tensors, output: torch.Tensor, signal: torch.Tensor) -> Signals:
            shares = rule(step, inputs, output, signal)
            look(step, shares[0])
            return shares

        return seen

    graph.back(values, signal, of)

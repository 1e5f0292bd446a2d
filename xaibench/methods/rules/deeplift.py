"""DeepLIFT: differences from a reference instead of derivatives, and its variants."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

import torch

from ...errors import Refusal, one_of
from ...models.classifier import Classifier
from ...models.cut import INPUT, LOGITS
from ...models.tracing.graph import Graph
from ...models.tracing.steps import (
    Affine,
    Constant,
    Elementwise,
    Maximum,
    Normalisation,
    Product,
    Rectifier,
    Route,
    Rule,
    Signals,
    Softmax,
    Step,
    Tensors,
    derivative,
    pulled_back,
)
from ..baselines import Baselines
from ..context import Context
from ._modified_backprop import ModifiedBackprop, gradient_of_output, refuse_probability
from .rules import sides, total

RuleName = Literal["rescale", "reveal_cancel", "ablation"]

# A difference smaller than this is none: the multiplier is the derivative (Captum's threshold).
NONE = 1e-10


class DeepLIFT(ModifiedBackprop):
    """Contribution of every input value to f(x) - f(x'): its difference from the reference x' times its multiplier,
    [B,C,H,W], signed. Of several references the mean is taken; drawn from the data this is DeepSHAP (DeepLiftShap).

    A multiplier is a difference of the output over a difference of a value (Shrikumar et al. 2017), handed down by
    the chain rule: affine steps have their weights, maximum pooling gives the difference to the two places where the
    maxima were (Captum's rule, summed over windows that overlap). For activations the rule says:

    rule: `rescale`, f's difference over its input's. `reveal_cancel`: what positive and negative contributions to the
        input make of f is told apart, by the mean over the two orders in which they may be added. Both are complete:
        a map sums to f(x) - f(x'). `ablation`: `rescale` without terms that cross between positive and negative
        contributions, so that of affine steps only the positive weights count (as the released code of Sixt et al.
        2020 has it; by their text negative contributions keep the negative weights). It is not complete; it is there
        to show what the cross terms are good for.
        Products share a difference as the mean of the two orders in which their factors may change; softmax and
        normalisation by the values themselves are products of what they divide and one over what they divide by; maps
        stay complete.
    baseline: x', one or a list of the words of `baselines`; sigma, value, references: of the words `blur`, `value`
        and `dataset`, see there.
    Raises ValueError for another word and for figures out of range.
    """

    served = (Affine, Elementwise, Product, Softmax, Normalisation, Route, Constant)
    fit_parameters = ("references",)

    def __init__(
        self,
        rule: RuleName = "rescale",
        baseline: list[str] | str = "zero",
        sigma: float = 5.0,
        value: float = 0.5,
        references: int = 10,
    ) -> None:
        kinds = {"rescale": Rescale, "reveal_cancel": RevealCancel, "ablation": Ablation}
        self.multipliers = kinds[one_of("rule", rule, get_args(RuleName))]
        self.baselines = Baselines(baseline, sigma, value, references)
        self.fit = self.baselines.fit if self.baselines.from_data else None

    def check(self, classifier: Classifier) -> None:
        refuse_probability(classifier, "DeepLIFT")
        self.baselines.check(classifier)
        super().check(classifier)

    def cost(self, classifier: Classifier) -> tuple[int, int]:
        return (1 + len(self.baselines) + self.baselines.passes, len(self.baselines))

    def initial(self, classifier: Classifier, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return gradient_of_output(classifier, logits, targets)

    def maps(
        self, classifier: Classifier, inputs: torch.Tensor, targets: torch.Tensor, context: Context
    ) -> torch.Tensor:
        graph, starts = Graph.of(classifier), self.baselines.of(classifier, inputs, context)
        values = graph.run(inputs)
        signal = self.initial(classifier, values[-1], targets)
        total = torch.zeros_like(inputs)
        for start in starts:
            total += (inputs - start) * self.multipliers.between(graph, values, start).back(signal)[INPUT]
        return total / len(starts)

    def rules(self, classifier: Classifier, inputs: torch.Tensor, context: Context) -> "Rescale":
        """The multipliers from the first of the references. Raises Refusal for the baseline `noise`, which is drawn
        for each map."""
        if "noise" in self.baselines.words:
            raise Refusal("baseline=noise is drawn for each map, a signal on its own has none: set another baseline")
        graph, start = Graph.of(classifier), self.baselines.of(classifier, inputs, context)[0]
        return self.multipliers.between(graph, graph.run(inputs), start)

    def propagate(
        self,
        classifier: Classifier,
        inputs: torch.Tensor,
        signals: Sequence[torch.Tensor],
        start: str,
        keep: Iterable[str],
        context: Context,
    ) -> list[dict[str, torch.Tensor]]:
        """As in the base class: signals are multipliers, of positive and of negative contributions alike."""
        rules, keep = self.rules(classifier, inputs, context), tuple(keep)
        return [rules.back(signal, start, keep) for signal in signals]


@dataclass(frozen=True)
class Rescale:
    """The multipliers between inputs and a reference: which rule each step has.

    values: of the inputs' pass through the graph. references: of the reference's, with as many rows or one for all.
    """

    graph: Graph
    values: Sequence[Any]
    references: Sequence[Any]

    @classmethod
    def between(cls, graph: Graph, values: Sequence[Any], start: torch.Tensor) -> "Rescale":
        """From the values of inputs [B,C,H,W] and the references [B,C,H,W].

        One that all share is run on its own: of a constant image the maxima of pooling are ties but for rounding, which
        must not depend on the batch.
        """
        shared = start.stride(0) == 0 or bool((start == start[:1]).all())
        return cls(graph, values, graph.run(start[:1] if shared else start))

    def back(
        self, signal: torch.Tensor, start: str = LOGITS, keep: tuple[str, ...] = (INPUT,)
    ) -> dict[str, torch.Tensor]:
        """Multipliers of the layers `keep` from those [B,...] of the layer `start`, as `Graph.back`."""
        return self.graph.back(self.values, signal, self, start, keep)

    def __call__(self, step: Step) -> Rule:
        if isinstance(step, Affine):
            return self.affine
        if isinstance(step, Elementwise):
            return self.activation
        for kind, rule in ((Product, self.product), (Softmax, self.softmax), (Normalisation, self.normalisation)):
            if isinstance(step, kind):
                return rule
        return self.maximum if isinstance(step, Maximum) else derivative

    def affine(self, step: Affine, inputs: Tensors, output: torch.Tensor, signal: torch.Tensor) -> Signals:
        """The weights."""
        return step.derivative(inputs, output, signal)

    def activation(self, step: Elementwise, inputs: Tensors, output: torch.Tensor, signal: torch.Tensor) -> Tensors:
        """Difference of the output over that of the input."""
        reference = self.reference(step)
        if isinstance(step, Rectifier) and step.ceiling == math.inf:
            # Sums of sizes say the same, and are 0 only where both are 0, which has the derivative 0.
            size = inputs[0].abs().add_(reference.abs().clamp_(min=torch.finfo(reference.dtype).tiny))
            return ((output + step(reference)).mul_(signal).div_(size),)
        (slope,) = step.derivative(inputs, output, signal)
        return (ratio((output - step(reference)).mul_(signal), inputs[0] - reference, slope),)

    def maximum(self, step: Maximum, inputs: Tensors, output: torch.Tensor, signal: torch.Tensor) -> Tensors:
        """What the larger of the two maxima has above the reference's comes from where the input's is; what the
        input's has below the larger one, from where the reference's is."""
        # The reference's maxima, and with them their places, if the step has a `Choice` of them.
        references = tuple(self.references[source] for source in step.sources)
        least = step(*references)
        most = torch.maximum(output, least)
        rise = step.derivative(inputs, output, (most - least).mul_(signal))[0]
        # With places, nobody looks at the values.
        places = [_rows(one, len(output)) for one in references[1:]]
        among = (inputs[0], *places) if places else (references[0].expand_as(inputs[0]),)
        fall = step.derivative(among, least, (output - most).mul_(signal))[0]
        slope = step.derivative(inputs, output, signal)[0]
        return (ratio(rise.add_(fall), inputs[0] - references[0], slope),)

    def product(self, step: Product, inputs: Tensors, output: torch.Tensor, signal: torch.Tensor) -> Tensors:
        """The mean over the orders in which the factors change: the derivative halfway."""
        halfway = tuple((x + self.references[source]) / 2 for x, source in zip(inputs, step.sources))
        return step.derivative(halfway, output, signal)

    def softmax(self, step: Softmax, inputs: Tensors, output: torch.Tensor, signal: torch.Tensor) -> Tensors:
        """Of e / sum(e), e = exp(x): a product of e and one over its sum."""
        x, reference = torch.broadcast_tensors(inputs[0], self.reference(step))
        top = torch.maximum(x, reference).amax(step.dim, keepdim=True)
        e, e0 = (x - top).exp(), (reference - top).exp()
        total, total0 = e.sum(step.dim, keepdim=True), e0.sum(step.dim, keepdim=True)
        through_total = (signal * (e + e0) / 2).sum(step.dim, keepdim=True) / (total * total0)
        of_e = signal * (1 / total + 1 / total0) / 2 - through_total
        return (ratio(of_e * (e - e0), torch.where(x == reference, 0, x - reference), of_e * e),)

    def normalisation(
        self, step: Normalisation, inputs: Tensors, output: torch.Tensor, signal: torch.Tensor
    ) -> Tensors:
        """A product of the centred values and their scale, which follows the average of their squares."""
        c, c0 = torch.broadcast_tensors(step.centred(inputs[0]), step.centred(self.reference(step)))
        spread, spread0 = step.average(c.square()), step.average(c0.square())
        scale, scale0 = step.scale(spread), step.scale(spread0)
        slope = torch.func.jvp(step.scale, (spread,), (torch.ones_like(spread),))[1]
        through_scale = signal * (c + c0) / 2 * ratio(scale - scale0, (spread - spread0).expand_as(scale), slope)
        (of_squares,) = pulled_back(step.average, c, through_scale.sum_to_size(spread.shape))
        return (step.centred(signal * (scale + scale0) / 2 + of_squares * (c + c0)),)

    def reference(self, step: Step) -> torch.Tensor:
        """The reference's value where the step reads its input."""
        return self.references[step.sources[0]]


class Ablation(Rescale):
    """Rescale with the positive weights only, wherever a value differs from its reference."""

    def affine(self, step: Affine, inputs: Tensors, output: torch.Tensor, signal: torch.Tensor) -> Tensors:
        straight = step.transposed(signal, step.weight.clamp(min=0), inputs)
        whole = step.transposed(signal, step.weight, inputs)
        return tuple(
            torch.where(inputs[i] == self.references[source], whole[i], straight[i])
            for i, source in enumerate(step.sources)
        )


class RevealCancel(Rescale):
    """Positive and negative contributions to an activation's input have multipliers of their own.

    They part at the activation and join again at the affine step before it, whose weights tell them apart. In between
    a signal has 2B rows: first the multipliers of the positive contributions, then those of the negative ones. For an
    activation whose input does not come from an affine step, the difference is one contribution: rescale.
    """

    def back(
        self, signal: torch.Tensor, start: str = LOGITS, keep: tuple[str, ...] = (INPUT,)
    ) -> dict[str, torch.Tensor]:
        """As `Rescale.back`. Where the two multipliers differ, that of the difference's sign counts."""
        found = self.graph.back(self.values, torch.cat([signal, signal]), self, start, keep)
        for name, signals in found.items():
            if len(signals) > len(signal):
                place = self.graph.place(name)
                positive, negative = signals.chunk(2)
                found[name] = torch.where(self.values[place] < self.references[place], negative, positive)
        return found

    def __call__(self, step: Step) -> Rule:
        rule = super().__call__(step)
        own = isinstance(step, Affine | Elementwise | Maximum)
        return rule if own else partial(in_halves, rule)

    def affine(self, step: Affine, inputs: Tensors, output: torch.Tensor, signal: torch.Tensor) -> Signals:
        """The weights: of an input that rises, positive ones make positive contributions; of one that falls, negative
        ones. One that stays gets the mean."""
        constant = [source > 0 and isinstance(self.graph.steps[source - 1], Constant) for source in step.sources]
        twice = tuple(x if c else x.new_empty(()).expand(2 * len(x), *x.shape[1:]) for x, c in zip(inputs, constant))
        by_positive = step.transposed(signal, step.weight.clamp(min=0), twice)
        by_negative = step.transposed(signal, step.weight.clamp(max=0), twice)
        found: list[torch.Tensor | None] = []
        for x, source, some, others, c in zip(inputs, step.sources, by_positive, by_negative, constant):
            if c:
                found.append(None)
                continue
            rising = some[: len(x)] + others[len(x) :]
            falling = some[len(x) :] + others[: len(x)]
            way = (x - self.references[source]).sign()
            found.append((rising * (1 + way) + falling * (1 - way)).div(2).repeat(2, *[1] * (x.dim() - 1)))
        return tuple(found)

    def activation(self, step: Elementwise, inputs: Tensors, output: torch.Tensor, signal: torch.Tensor) -> Tensors:
        """What each kind of contributions makes of the output: the mean of coming first and of coming second."""
        source = self.graph.steps[step.sources[0] - 1] if step.sources[0] else None
        if not isinstance(source, Affine):
            return self.as_one(super().activation, step, inputs, output, signal)
        reference = self.reference(step)
        up, down = self.contributions(source)
        none, all_of_them = step(reference), output
        only_up, only_down = step(reference + up), step(reference + down)
        slope = step.derivative(inputs, output, torch.ones_like(output))[0]
        risen = ratio((only_up - none + all_of_them - only_down) / 2, up, slope)
        fallen = ratio((only_down - none + all_of_them - only_up) / 2, down, slope)
        positive, negative = signal.chunk(2)
        return (torch.cat([positive * risen, negative * fallen]),)

    def maximum(self, step: Maximum, inputs: Tensors, output: torch.Tensor, signal: torch.Tensor) -> Tensors:
        return self.as_one(super().maximum, step, inputs, output, signal)

    def as_one(self, rule: Rule, step: Step, inputs: Tensors, output: torch.Tensor, signal: torch.Tensor) -> Tensors:
        """A rule for a difference that is one contribution, of its own sign."""
        positive, negative = signal.chunk(2)
        chosen = torch.where(output < step(self.reference(step)), negative, positive)
        (found,) = rule(step, inputs, output, chosen)
        return (torch.cat([found, found]),)

    def contributions(self, step: Affine) -> Tensors:
        """The positive and the negative contributions to the difference that an affine step's output has."""
        differences = tuple(self.values[source] - self.references[source] for source in step.sources)
        positive, negative = step.weight.clamp(min=0), step.weight.clamp(max=0)
        up, down = (sides(differences, *weights) for weights in ((positive, negative), (negative, positive)))
        return total(step, up), total(step, down)


def ratio(change: torch.Tensor, of: torch.Tensor, slope: torch.Tensor) -> torch.Tensor:
    """change / of; the slope where nothing changes. `change` is used up."""
    quotient = change.div_(of) if change.shape == of.shape else change / of
    # What `torch.where` would say, in three operations that a CPU does many values at a time: the first leaves nothing
    # of a quotient where `of` is within NONE of 0, the second nothing of the slope where it is not.
    found = torch.ops.aten.hardshrink_backward(quotient, of, NONE)
    return found + torch.ops.aten.hardtanh_backward(slope, of, -NONE, NONE)


def _rows(chosen: Tensors, count: int) -> Tensors:
    """Maxima and places of one row for all as of `count` rows."""
    return tuple(values.expand(count, *values.shape[1:]) for values in chosen)


def in_halves(rule: Rule, step: Step, inputs: Tensors, output: torch.Tensor, signal: torch.Tensor) -> Signals:
    """A rule for signals of B rows applied to the two halves of one of 2B."""
    halves = (rule(step, inputs, output, half) for half in signal.chunk(2))
    return tuple(None if first is None else torch.cat([first, second]) for first, second in zip(*halves))

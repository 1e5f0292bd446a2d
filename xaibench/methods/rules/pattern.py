"""PatternNet and PatternAttribution: the backward pass through what makes a neuron fire, estimated from data."""

from collections.abc import Callable
from functools import partial
from typing import Literal, cast, get_args

import torch

from ...datasets.base import Samples
from ...errors import Refusal, one_of
from ...models.classifier import Classifier
from ...models.tracing.graph import Graph
from ...models.tracing.steps import Activation, Affine, Convolution, Dense, Rule, Step, Tensors, derivative
from ..base import Fitted
from ..context import Context
from ._modified_backprop import ModifiedBackprop, Start, refuse_probability, target_alone
from .rules import passed_on

Estimator = Literal["linear", "positive", "unconditional"]

# The share of a neuron's mean square that its variance must be, or nothing is known of what it responds to.
LEAST_VARIANCE = 1e-10


class PatternNet(Fitted, ModifiedBackprop):
    """The signal that the explained logit found in the input: [B,C,H,W], signed.

    A backward pass in which convolutions and linear layers have their patterns A in place of their weights W
    (Kindermans et al. 2018). A neuron's pattern is a = cov(x, w x) / (w cov(x, w x)): the direction of the input along
    which its output varies, w a = 1. Everything else has its derivative.

    estimator: the covariances over all inputs (`linear`), or over those for which the neuron's output is above 0
        (`positive`, the positive one of the two-component estimator; the mean of w x is over these as well, as in
        Sixt 2022, which leaves the bias out of the condition). `unconditional`: as `positive`, with the mean of w x
        over all inputs (the authors' code, github.com/pikinder/nn-patterns, `CombinedPatternComputer`): no covariance
        any more, and another direction.
    masked: whether ReLUs that were closed let nothing through, as in the original; otherwise activations pass all on,
        as in the analysis of Sixt 2022, chapter 4.
    start: the `logit` itself, or `one`.
    Raises ValueError for another estimator or start.
    """

    start: Start
    fit_parameters = ("estimator",)

    def __init__(self, estimator: Estimator = "positive", masked: bool = True, start: Start = "logit") -> None:
        self.estimator, self.masked = one_of("estimator", estimator, get_args(Estimator)), masked
        self.start = one_of("start", start, get_args(Start))

    def check(self, classifier: Classifier) -> None:
        refuse_probability(classifier, "a pattern method")
        super().check(classifier)

    def fit(self, classifier: Classifier, samples: Samples, generator: torch.Generator) -> dict[str, torch.Tensor]:
        """The pattern of each convolution and linear layer, of the shape of its weights; 0 for a neuron that never
        varied."""
        graph = Graph.of(classifier)
        positive, unconditional = self.estimator != "linear", self.estimator == "unconditional"
        moments = {step: Moments(step, positive, unconditional) for step in graph.of_kind(Convolution, Dense)}
        for batch in samples:
            for part in classifier.chunks(len(batch.inputs)):
                values = graph.run(batch.inputs[part].to(classifier.dtype))
                for step, moment in moments.items():
                    moment.update(values[step.sources[0]])
        return {step.name: moment.pattern().to(classifier.dtype).cpu() for step, moment in moments.items()}

    def rules(self, classifier: Classifier, inputs: torch.Tensor, context: Context) -> Callable[[Step], Rule]:
        if not context.fitted:
            raise Refusal("there are no patterns: they are what this method's fit estimates")
        patterns = {name: pattern.to(inputs) for name, pattern in context.fitted.items()}
        activation = derivative if self.masked else passed_on

        def rule_of(step: Step) -> Rule:
            if step.name in patterns:
                return partial(backwards, self.weight(cast(Affine, step), patterns[step.name]))
            return activation if isinstance(step, Activation) else derivative

        return rule_of

    def weight(self, step: Affine, pattern: torch.Tensor) -> torch.Tensor:
        """What stands in for the weights of a step."""
        return pattern

    def initial(self, classifier: Classifier, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return target_alone(logits, targets, self.start)


class PatternAttribution(PatternNet):
    """How much each input value's signal contributed to the explained logit: [B,C,H,W], signed.

    As PatternNet, with the products W A, element by element, in place of the weights.
    """

    def weight(self, step: Affine, pattern: torch.Tensor) -> torch.Tensor:
        return step.weight * pattern


def backwards(
    weight: torch.Tensor, step: Affine, inputs: Tensors, output: torch.Tensor, signal: torch.Tensor
) -> Tensors:
    """A step's derivative, had it this weight."""
    return step.transposed(signal, weight, inputs)


class Moments:
    """Sums over samples and places of what a layer reads: of x, of w x and of their product, for each of its neurons.

    A neuron of a convolution reads patches, but their sums need none: the sum over all places of patch times g is the
    derivative with respect to the weights, from the signal g. In float64.

    positive: only where the neuron's output, its bias included, is above 0. unconditional: but for the mean of w x.
    """

    def __init__(self, step: Affine, positive: bool, unconditional: bool = False) -> None:
        self.step, self.positive, self.unconditional = step, positive, unconditional
        self.weight = step.weight.double()
        self.bias = 0 if step.bias is None else step.bias.double()
        self.x, self.product = torch.zeros_like(self.weight), torch.zeros_like(self.weight)
        self.count = self.y = self.count_of_y = torch.zeros((), dtype=torch.float64)

    def update(self, x: torch.Tensor) -> None:
        """Take in inputs [B,C,...] of the layer."""
        with torch.enable_grad():
            weight = self.weight.clone().requires_grad_(True)
            along = self.step.linear((x.double(),), weight)
        y = along.detach()
        counted = (y + self.bias > 0).double() if self.positive else torch.ones_like(y)
        (of_x,) = torch.autograd.grad(along, weight, counted, retain_graph=True)
        (of_product,) = torch.autograd.grad(along, weight, counted * y)
        self.x, self.product = self.x + of_x, self.product + of_product
        of_y = torch.ones_like(y) if self.unconditional else counted
        self.count = self.count + self._by_neuron(counted)
        self.count_of_y, self.y = self.count_of_y + self._by_neuron(of_y), self.y + self._by_neuron(of_y * y)

    def pattern(self) -> torch.Tensor:
        """cov(x, w x) / (w cov(x, w x)) for each neuron, in the shape of the weights."""
        count, count_of_y = (self._like_weight(n).clamp(min=1) for n in (self.count, self.count_of_y))
        product = self.product / count
        covariance = product - self.x / count * self._like_weight(self.y) / count_of_y
        variance, square = self._through(covariance), self._through(product)
        known = variance.abs() > LEAST_VARIANCE * square  # below 0 for `unconditional` alone
        return torch.where(known, covariance / torch.where(known, variance, 1), 0)

    def _by_neuron(self, values: torch.Tensor) -> torch.Tensor:
        """The sum over samples and places [K] of values [B,K,h,w], or [...,K] of a linear layer."""
        neurons = 1 if isinstance(self.step, Convolution) else values.dim() - 1
        return values.sum([axis for axis in range(values.dim()) if axis != neurons])

    def _like_weight(self, by_neuron: torch.Tensor) -> torch.Tensor:
        return by_neuron.view(-1, *[1] * (self.weight.dim() - 1))

    def _through(self, x: torch.Tensor) -> torch.Tensor:
        """w x for each neuron, of x in the shape of the weights."""
        return self._like_weight((self.weight * x).flatten(1).sum(1))

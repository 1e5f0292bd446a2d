"""The gradient of the explained output, its absolute value, and its product with the input."""

from collections.abc import Iterable, Sequence

import torch

from ...models.classifier import Classifier
from ...models.tracing.graph import Graph
from ...models.tracing.steps import derivative
from ..base import Method
from ..context import Context


class Gradient(Method):
    """Gradient of the explained output with respect to the input: [B,C,H,W], signed, in output per input unit.

    Baehrens et al. 2010; called "sensitivity" or "vanilla gradient".
    """

    sign_of_logit = False

    def attribute(
        self, classifier: Classifier, inputs: torch.Tensor, targets: torch.Tensor, context: Context
    ) -> torch.Tensor:
        return classifier.gradient(inputs, targets)

    def propagate(
        self,
        classifier: Classifier,
        inputs: torch.Tensor,
        signals: Sequence[torch.Tensor],
        start: str,
        keep: Iterable[str],
        context: Context,
    ) -> list[dict[str, torch.Tensor]]:
        """The ordinary backward pass of each signal; see `modified_backprop.ModifiedBackprop.propagate`."""
        graph = Graph.of(classifier)
        values = graph.run(inputs)
        return [graph.back(values, signal, lambda step: derivative, start, keep) for signal in signals]


class Saliency(Method):
    """Absolute gradient, [B,C,H,W], never negative; ranking metrics take the largest channel.

    Simonyan et al. 2014, section 3.1: M_ij = max_c |w_ijc|. The channels are kept here and collapsed by the reader.
    """

    sign_of_logit = False

    collapse = "max_abs"

    def attribute(
        self, classifier: Classifier, inputs: torch.Tensor, targets: torch.Tensor, context: Context
    ) -> torch.Tensor:
        return classifier.gradient(inputs, targets).abs()


class InputXGradient(Method):
    """The normalised input times its gradient, elementwise: [B,C,H,W], signed, in units of the output.

    Shrikumar et al. 2016 ("Not just a black box"). A map sums to the first-order change of the output from zero input.
    """

    sign_of_logit = False

    def attribute(
        self, classifier: Classifier, inputs: torch.Tensor, targets: torch.Tensor, context: Context
    ) -> torch.Tensor:
        return inputs * classifier.gradient(inputs, targets)

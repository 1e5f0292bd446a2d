"""Methods whose map is one backward pass by rules of their own."""

from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch.nn import functional

from ...errors import Refusal
from ...models.classifier import Classifier
from ...models.cut import INPUT
from ...models.tracing.graph import Graph
from ...models.tracing.steps import (
    Activation,
    Affine,
    Constant,
    Convolution,
    Dense,
    Elementwise,
    Normalisation,
    Other,
    Product,
    Route,
    Rule,
    Softmax,
    Step,
)
from ..base import Method
from ..context import Context

Start = Literal["logit", "one"]
# Kinds of steps that not every method has a rule for, in words.
WORDS: dict[type[Step], str] = {
    Elementwise: "an activation that is not 0 at 0",
    Product: "a product of two values that both depend on the input",
    Softmax: "a softmax",
    Normalisation: "a normalisation by the values themselves",
}


class ModifiedBackprop(Method):
    """One forward pass, and one backward pass in which each step of the network has a rule: [B,C,H,W], signed.

    A network that torch.fx cannot trace, or with a step that the method has no rule for, is refused.

    served: the kinds of steps that it has a rule for. start: `logit` where the backward pass starts from the value of
        the explained logit.
    """

    served: tuple[type[Step], ...] = (Affine, Activation, Route, Constant)
    start: Start | None = None

    @property
    def sign_of_logit(self) -> bool:  # type: ignore[override]  # read-only: it follows from the rules
        """See `Method`: rules are linear in the signal, so that the logit's sign is that of everything below it."""
        return self.start == "logit"

    @abstractmethod
    def rules(self, classifier: Classifier, inputs: torch.Tensor, context: Context) -> Callable[[Step], Rule]:
        """The rule of each step, for inputs [B,C,H,W]."""

    @abstractmethod
    def initial(self, classifier: Classifier, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """The signal at the logits [B,K] from which the backward pass starts."""

    def check(self, classifier: Classifier) -> None:
        others = [step for step in Graph.of(classifier).steps if not isinstance(step, self.served)]
        if others:
            first = others[0]
            what = first.what if isinstance(first, Other) else WORDS[type(first)]
            activations = "activations" if issubclass(Elementwise, self.served) else "activations that are 0 at 0"
            products = ", products, softmax and normalisation" if issubclass(Product, self.served) else ""
            raise Refusal(
                f"there is no rule for '{first.name}' of {classifier.name}, which is {what}\n"
                "there are rules for convolutions and linear layers, batch normalisation by kept statistics, pooling, "
                f"sums, concatenation, reshaping, and {activations}{products}"
            )

    def attribute(
        self, classifier: Classifier, inputs: torch.Tensor, targets: torch.Tensor, context: Context
    ) -> torch.Tensor:
        maps = []
        for part in classifier.chunks(len(inputs)):
            of_part = replace(context, generators=context.generators[part])
            maps.append(self.maps(classifier, inputs[part], targets[part], of_part))
        return torch.cat(maps)

    def maps(
        self, classifier: Classifier, inputs: torch.Tensor, targets: torch.Tensor, context: Context
    ) -> torch.Tensor:
        """The maps of one batch, of whose samples the context has the generators."""
        graph = Graph.of(classifier)
        values = graph.run(inputs)
        signal = self.initial(classifier, values[-1], targets)
        return graph.back(values, signal, self.rules(classifier, inputs, context))[INPUT]

    def propagate(
        self,
        classifier: Classifier,
        inputs: torch.Tensor,
        signals: Sequence[torch.Tensor],
        start: str,
        keep: Iterable[str],
        context: Context,
    ) -> list[dict[str, torch.Tensor]]:
        """For each of the signals [B,...] at the output of the layer `start`, what arrives at the layers `keep`.

        What the convergence analysis (metric `csc`) looks at; one forward pass for all signals.
        """
        graph = Graph.of(classifier)
        values, rules = graph.run(inputs), self.rules(classifier, inputs, context)
        return [graph.back(values, signal, rules, start, keep) for signal in signals]


def last_layer(classifier: Classifier) -> Step:
    """The last convolution or linear layer, which some methods treat unlike the others; refuses where there is none."""
    layers = Graph.of(classifier).of_kind(Convolution, Dense)
    if not layers:
        raise Refusal(f"{classifier.name} has neither a convolution nor a linear layer to start from")
    return layers[-1]


def gradient_of_output(classifier: Classifier, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Gradient of the explained output with respect to the logits [B,K]: where gradient-like methods start."""
    with torch.enable_grad():
        logits = logits.detach().requires_grad_(True)
        return torch.autograd.grad(classifier.select(logits, targets).sum(), logits)[0]


def target_alone(logits: torch.Tensor, targets: torch.Tensor, start: Start = "logit") -> torch.Tensor:
    """The relevance [B,K] of logits of which one is explained: its own value, so that a negative one turns the map's
    sign, or 1; and nothing for the others."""
    chosen = functional.one_hot(targets, logits.shape[1]).to(logits)
    return chosen * logits if start == "logit" else chosen


def refuse_probability(classifier: Classifier, name: str) -> None:
    """Raise Refusal where a probability or a difference of logits is explained: relevance is handed down from one."""
    if classifier.explains_probability:
        raise Refusal(f"{name} hands a logit down, a probability has no such parts: set output=logit")
    if classifier.rival is not None:
        raise Refusal(f"{name} hands one logit down, not the difference of two: set target=fixed:<class>")

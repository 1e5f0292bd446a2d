"""Deep Taylor decomposition with its roots: what the closed-form rules of `lrp` are said to be derived from.

Sixt & Landgraf 2022 (A rigorous study of the deep Taylor decomposition; Sixt 2022, chapter 5). Layer l is
f_l(a) = activation(W a + b). The relevance of a neuron is decomposed by a first-order Taylor expansion at a root, a
point at which it is (nearly) gone. The train-free decomposition writes down the roots of linear functions; the full one
expands the relevance function itself, which is recursive, and is exponential in the depth.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch.nn import functional

from ...errors import Refusal, one_of
from ...models.classifier import Classifier
from ...models.tracing.graph import Graph
from ...models.tracing.steps import Activation, Affine, Constant, Dense, Rectifier, Route, Step, Tensors
from ..base import Method
from ..context import Context
from ._modified_backprop import ModifiedBackprop, refuse_probability, target_alone
from .rules import AffineRule, Composite, passed_on

RootName = Literal["zplus", "gamma", "square", "zero"]
Function = Callable[[torch.Tensor], torch.Tensor]

# Most points at which the full decomposition of one sample may ask for a gradient: a few seconds of a processor.
MOST_POINTS = 200_000


class TrainFreeRoots(AffineRule):
    """The rule of linear layers in train-free DTD: R_i = sum_j w_ij (a_i - root_ij), the ReLU left out.

    Neuron j has the root a - t v with t = R_j / (w_j v); one with w_j v = 0 has none, and its relevance is lost. Biases
    do not occur (Sixt & Landgraf 2022, algorithm 2).

    root: v is `zplus`, a where w >= 0, else 0; `gamma`, a (1 + gamma) where w >= 0, else a; `square`, w;
        `zero`, a itself, so that the root is 0 where R_j = w_j a. Their closed forms are LRP's rules without biases.
    Raises ValueError for another root, or gamma below 0.
    """

    def __init__(self, root: RootName = "zplus", gamma: float = 1.0) -> None:
        if gamma < 0:
            raise ValueError(f"gamma={gamma}: expected 0 or more")
        self.root, self.gamma = one_of("root", root, get_args(RootName)), gamma

    def roots(self, weight: torch.Tensor, values: torch.Tensor, relevance: torch.Tensor) -> torch.Tensor:
        """[B,K,C]: the root for each of K neurons, from weights [K,C], values [B,C] and relevance [B,K]."""
        a, open_to = values[:, None], (weight >= 0).to(values)
        way = {
            "zplus": a * open_to,
            "gamma": a * (1 + self.gamma * open_to),
            "square": weight.expand(len(values), -1, -1),
            "zero": a.expand(-1, len(weight), -1),
        }[self.root]
        total = (weight * way).sum(2)
        steps = torch.where(total == 0, 0, relevance / torch.where(total == 0, 1, total))
        return a - steps[..., None] * way

    def __call__(self, step: Affine, inputs: Tensors, output: torch.Tensor, signal: torch.Tensor) -> Tensors:
        (values,) = inputs
        return ((step.weight * (values[:, None] - self.roots(step.weight, values, signal))).sum(1),)


class TrainFreeDTD(ModifiedBackprop):
    """Relevance by train-free deep Taylor decomposition, root by root, from the logit: [B,C,H,W], signed.

    root, gamma: see `TrainFreeRoots`. For fully connected networks; the same numbers for any network come from
    lrp_zplus (inputs of 0 and more), lrp_gamma, lrp_wsquare and lrp_zero with `bias: dropped`.
    """

    start = "logit"

    def __init__(self, root: RootName = "zplus", gamma: float = 1.0) -> None:
        self.rule = TrainFreeRoots(root, gamma)

    def check(self, classifier: Classifier) -> None:
        refuse_probability(classifier, "deep Taylor decomposition")
        dense_layers(classifier)

    def rules(self, classifier: Classifier, inputs: torch.Tensor, context: Context) -> Composite:
        return Composite(self.rule, passed_on)

    def initial(self, classifier: Classifier, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return target_alone(logits, targets)


@dataclass(frozen=True)
class Layer:
    """a -> activation(W a + b), of points [N,C]."""

    weight: torch.Tensor
    bias: torch.Tensor
    activation: Function | None = None

    def linear(self, points: torch.Tensor) -> torch.Tensor:
        return functional.linear(points, self.weight, self.bias)

    def __call__(self, points: torch.Tensor) -> torch.Tensor:
        return self.linear(points) if self.activation is None else self.activation(self.linear(points))


def dense_layers(classifier: Classifier) -> list[Layer]:
    """A fully connected network as its layers. Raises Refusal for any other."""
    graph, last = Graph.of(classifier), 0
    layers: list[Layer] = []
    for place, step in enumerate(graph.steps, 1):
        if isinstance(step, Constant):
            continue
        moving = [source for source in step.sources if not source or not isinstance(graph.steps[source - 1], Constant)]
        if moving != [last] or not _appended(layers, step):
            raise _not_dense(classifier, step.name)
        last = place
    # A route may do more than flatten.
    probe = classifier.probe(2)
    points = probe.flatten(1)
    for layer in layers:
        points = layer(points)
    if not layers or not torch.allclose(points, graph.run(probe)[-1], rtol=1e-3, atol=1e-5):
        raise _not_dense(classifier, "a step that moves values")
    return layers


def _appended(layers: list[Layer], step: Step) -> bool:
    """Adds the next step of a chain to its layers; False if it can be no part of one."""
    if isinstance(step, Dense):
        bias = step.weight.new_zeros(len(step.weight)) if step.bias is None else step.bias
        layers.append(Layer(step.weight, bias))
    elif isinstance(step, Activation) and layers and layers[-1].activation is None:
        layers[-1] = replace(layers[-1], activation=step.function)
    else:
        return isinstance(step, Route)
    return True


def _not_dense(classifier: Classifier, what: str) -> Refusal:
    return Refusal(
        f"explicit roots are for chains of linear layers, and '{what}' of {classifier.name} is no part of one: "
        "lrp_zplus, lrp_gamma and lrp_wsquare are the closed forms for any network"
    )


class RootFinder(ABC):
    """Where the relevance of each neuron of a layer is expanded.

    candidates: how many points it evaluates for each point that it is asked about.
    """

    candidates: int = 0

    @abstractmethod
    def __call__(
        self, points: torch.Tensor, relevance: Function, layers: Sequence[Layer], generator: torch.Generator
    ) -> torch.Tensor:
        """Roots [N,K,C] for points [N,C].

        relevance: [M,C] -> [M,K], that of the layer's K outputs as a function of its input. layers: the layer and all
        above it. A root that depends on its point by autograd does so in the decomposition as well.
        """


class InterpolatedRoots(RootFinder):
    """Roots within the linear region of a ReLU network, found on straight ways from the point to random others.

    Each way ends at its goal or just before the border of the region, which is known exactly: activations are affine
    along it. Of these ends and the point itself, a neuron gets the one at which its relevance is nearest to 0. They are
    constants to the decomposition (what Sixt & Landgraf's proposition 2 speaks of). Goals are |N(0, I)| times the
    root mean square of the point, so that activations stay 0 or more.

    directions: ways from each point. Raises ValueError below 1.
    """

    MARGIN = 1e-3  # the share of the way to the border that is left

    def __init__(self, directions: int = 20) -> None:
        if directions < 1:
            raise ValueError(f"directions={directions}: expected at least 1")
        self.directions = self.candidates = directions

    def __call__(
        self, points: torch.Tensor, relevance: Function, layers: Sequence[Layer], generator: torch.Generator
    ) -> torch.Tensor:
        points = points.detach()
        count, size = points.shape
        goals = torch.randn(count, self.directions, size, generator=generator).abs().to(points)
        ways = goals * points.square().mean(1).sqrt()[:, None, None] - points[:, None]
        reach = (1 - self.MARGIN) * until_the_border(layers, points, ways)
        ends = points[:, None] + reach.clamp(max=1)[..., None] * ways
        ends = torch.cat([points[:, None], ends], 1)
        left = relevance(ends.flatten(0, 1)).detach().view(count, self.directions + 1, -1)
        best = left.abs().argmin(1)
        return ends.gather(1, best[..., None].expand(-1, -1, size))


def until_the_border(layers: Sequence[Layer], points: torch.Tensor, ways: torch.Tensor) -> torch.Tensor:
    """[N,n]: how far along ways [N,n,C] from points [N,C] the ReLUs of the layers stay as they are; may be inf."""
    reach = points.new_full(ways.shape[:2], math.inf)
    for layer in layers:
        points, ways = layer.linear(points), ways @ layer.weight.T
        if layer.activation is not None:
            is_open = (points > 0)[:, None]
            turns = torch.where(is_open, ways < 0, ways > 0)
            distance = torch.where(turns, -points[:, None] / torch.where(turns, ways, 1), math.inf)
            reach = torch.minimum(reach, distance.amin(2))
            ways, points = ways * is_open, layer.activation(points)
    return reach


class FullDTD(Method):
    """Relevance by the recursive Taylor decomposition, from the logit: [B,C,H,W], signed.

    The relevance of layer l's input is R^l(a) = sum_j dR_j^(l+1)(f_l(.))/da at root_j, times (a - root_j), where
    R^(l+1) is that same function of the layer above, decomposed anew at every root (Sixt & Landgraf 2022, definition
    3); at the top it is the explained logit. Derivatives are autograd's, those of roots that move with their point
    included.

    finder: of the roots, by default `InterpolatedRoots`.

    For small fully connected networks: a sample is decomposed at the product of (neurons + candidates) over the layers.
    """

    sign_of_logit = True

    def __init__(self, finder: RootFinder | None = None) -> None:
        self.finder = InterpolatedRoots() if finder is None else finder

    def check(self, classifier: Classifier) -> None:
        refuse_probability(classifier, "deep Taylor decomposition")
        layers = dense_layers(classifier)
        for step in Graph.of(classifier).of_kind(Activation):
            if not isinstance(step, Rectifier) or step.ceiling < math.inf:
                raise Refusal(
                    f"full DTD needs the linear regions of ReLUs, and '{step.name}' is none: use dtd_train_free"
                )
        points, _ = self.cost(classifier)
        if points > MOST_POINTS:
            raise Refusal(
                f"full DTD of {classifier.name} needs {points:.3g} points for each sample ({len(layers)} layers, "
                f"exponential in their number), at most {MOST_POINTS}: use dtd_train_free, or a smaller network"
            )

    def cost(self, classifier: Classifier) -> tuple[int, int]:
        points = math.prod(len(layer.weight) + self.finder.candidates for layer in dense_layers(classifier))
        return (points, points)

    def attribute(
        self, classifier: Classifier, inputs: torch.Tensor, targets: torch.Tensor, context: Context
    ) -> torch.Tensor:
        layers = dense_layers(classifier)
        found = [
            decomposed(layers, one.flatten()[None], int(target), self.finder, generator)
            for one, target, generator in zip(inputs, targets, context.generators)
        ]
        return torch.cat(found).view_as(inputs)


def decomposed(
    layers: Sequence[Layer],
    points: torch.Tensor,
    output: int,
    finder: RootFinder,
    generator: torch.Generator,
) -> torch.Tensor:
    """The relevance [N,C] of points [N,C] at the input of the first layer, by recursive Taylor decomposition of one
    output of the last."""

    def relevance(level: int, points: torch.Tensor) -> torch.Tensor:
        if level == len(layers):
            return points * functional.one_hot(torch.tensor(output), points.shape[1]).to(points)

        def above(points: torch.Tensor) -> torch.Tensor:
            return relevance(level + 1, layers[level](points))

        roots = finder(points, above, layers[level:], generator)
        at = roots.flatten(0, 1)
        at = at if at.requires_grad else at.requires_grad_(True)
        of_neurons = above(at).view(*roots.shape[:2], -1).diagonal(dim1=1, dim2=2)
        (slope,) = torch.autograd.grad(of_neurons.sum(), at, create_graph=True)
        return (slope.view_as(roots) * (points[:, None] - roots)).sum(1)

    with torch.enable_grad():
        return relevance(0, points).detach()

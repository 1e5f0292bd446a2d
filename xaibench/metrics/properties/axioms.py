"""Axioms: dummy, linearity, implementation invariance and sensitivity, on networks that are made to ask for them."""

import math
from collections.abc import Callable
from dataclasses import replace

import torch

from ...datasets.base import Batch
from ...errors import Refusal
from ...methods.context import Context
from ...models.classifier import Classifier
from ...models.randomise import Randomisation, blocks, randomised
from ...rng import generator
from ..base import Columns, Metric, Statistic
from ._networks import Blind, Saturated, Sum, rewritten, within

# Of the network and of its copy with random weights.
A, B = 2.0, -0.7
# The answers of two networks are those of one function if they differ by less, as a share of the largest.
SAME = 1e-3


class Axioms(Metric):
    """How far a method breaks four axioms (Sundararajan et al. 2017; Heurich 2021, section 2.2), each on a network of
    its own; the fifth, completeness, is the metric `completeness`.

    dummy: the network gets 0 in the place of the left quarter of the input, so that nothing there can matter. The
        largest size of the map there, as a share of its largest anywhere.
    linearity: a f + b g with a = 2, b = -0.7, f the network and g its copy with random weights. The norm of
        A(a f + b g) - (a A(f) + b A(g)), as a share of the norms of its three terms, added.
    invariance: the network with every linear layer and convolution as the sum of two, of weights W + V and -V, V random
        and as large as W: the same function. The norm of A(f') - A(f), as a share of the norms of both, added. A method
        that this does not move, such as DeepLIFT, may be moved by another identity.
    sensitivity: the network 1 - relu(1 - x) of the value x at one place, where the input is 2; elsewhere it is 0.
        It differs from the baseline 0 in that place alone, and its answer is 1 instead of 0: the place must not get 0.
        Whether its largest size over the channels is above a millionth (1 or 0).

    Maps are read with their channels, signed, and all draw the same noise. dummy, linearity and invariance are from 0
    (kept, but for rounding: 1e-6 or so in single precision) to 1, sensitivity is a share of samples. An axiom whose
    network the method refuses is undefined (NaN): so is a map of zeros for the first three. Methods that fit something
    (statistics of a layer, patterns) are refused: nothing is fitted to these networks.

    seed: of the random weights and of V.
    """

    statistics = (
        Statistic("dummy", "lower", "dummy", low=0, high=1, unit="share of the largest value"),
        Statistic("linearity", "lower", "linearity", low=0, high=1, unit="share of the norms"),
        Statistic("invariance", "lower", "invariance", low=0, high=1, unit="share of the norms"),
        Statistic("sensitivity", "higher", "sensitivity", kind="proportion", low=0, high=1, unit="share of samples"),
    )
    collapse = "none"
    own_networks = True

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def check(self, classifier: Classifier) -> None:
        if classifier.input_size[2] < 2:
            raise Refusal(f"metric=axioms blinds the left of an input, and that of {classifier.name} is one place wide")
        classifier.refuse_torchscript()

    def explanations(self, classifier: Classifier) -> int:
        return 5

    def evaluate(self, classifier: Classifier, batch: Batch, maps: torch.Tensor, context: Context) -> Columns:
        def explained(network: Classifier, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
            return context.explain(inputs, targets, "", network=network)

        found = {
            "dummy": lambda: self._dummy(classifier, batch, explained),
            "linearity": lambda: self._linearity(classifier, batch, maps, explained),
            "invariance": lambda: self._invariance(classifier, batch, maps, explained),
            "sensitivity": lambda: self._sensitivity(classifier, batch, explained),
        }
        return {name: _or_undefined(score, len(maps)) for name, score in found.items()}

    def _dummy(self, classifier: Classifier, batch: Batch, explained: "Explained") -> torch.Tensor:
        width = math.ceil(batch.inputs.shape[3] / 4)
        blind = within(classifier, Blind(classifier.module, width), "network")
        sizes = explained(blind, batch.inputs, batch.targets).double().abs()
        return _share(sizes[..., :width].flatten(1).amax(1), sizes.flatten(1).amax(1))

    def _linearity(
        self, classifier: Classifier, batch: Batch, maps: torch.Tensor, explained: "Explained"
    ) -> torch.Tensor:
        state = Randomisation("cascade", blocks(classifier, 1)[0], self.seed)
        other = randomised(classifier, state)
        both = within(classifier, Sum(classifier.module, other.module, A, B), "first")
        terms = [A * maps, B * explained(other, batch.inputs, batch.targets)]
        found = explained(both, batch.inputs, batch.targets)
        return _share(_norm(found - terms[0] - terms[1]), _norm(found) + _norm(terms[0]) + _norm(terms[1]))

    def _invariance(
        self, classifier: Classifier, batch: Batch, maps: torch.Tensor, explained: "Explained"
    ) -> torch.Tensor:
        other = rewritten(classifier, generator("axioms", self.seed))
        if other is None:
            raise Refusal(f"{classifier.name} has no linear layer and no convolution to be written differently")
        with torch.no_grad():
            answers = [network.logits(batch.inputs).double() for network in (classifier, other)]
        if (answers[0] - answers[1]).abs().max() > SAME * answers[0].abs().max():
            raise Refusal(
                f"{classifier.name} answers otherwise where its layers are sums of two: it reads their weights"
            )
        found = explained(other, batch.inputs, batch.targets)
        return _share(_norm(found - maps), _norm(found) + _norm(maps))

    def _sensitivity(self, classifier: Classifier, batch: Batch, explained: "Explained") -> torch.Tensor:
        _, _, height, width = batch.inputs.shape
        place = (height // 2, width // 2)
        module = Saturated(place, classifier.outputs).to(batch.inputs)
        network = replace(classifier, module=module, layers={}, class_names=(), rival=None)
        inputs = torch.zeros_like(batch.inputs)
        inputs[:, :, place[0], place[1]] = 2
        found = explained(network, inputs, torch.zeros_like(batch.targets))
        return (found[:, :, place[0], place[1]].abs().amax(1) > 1e-6).double()


Explained = Callable[[Classifier, torch.Tensor, torch.Tensor], torch.Tensor]


def _or_undefined(score: Callable[[], torch.Tensor], samples: int) -> torch.Tensor:
    """A score, or NaN for each sample where the method or the network refuses what the axiom asks for."""
    try:
        return score().cpu()
    except Refusal:
        return torch.full((samples,), torch.nan, dtype=torch.float64)


def _norm(maps: torch.Tensor) -> torch.Tensor:
    return maps.flatten(1).double().norm(dim=1)


def _share(part: torch.Tensor, whole: torch.Tensor) -> torch.Tensor:
    return torch.where(whole > 0, part / whole, torch.nan)

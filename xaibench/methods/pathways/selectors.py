"""Pathway gradients by how the path is chosen: contribution, pruning, distillation, chance, activity."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, get_args

import torch
from torch.nn import functional

from ...errors import Refusal, one_of
from ...models.classifier import Classifier
from ..gradients.integrated_gradients import Quadrature, points
from ._pathway_neurons import Neurons, altered, contributions, integrated_contributions, observe
from .pathway import OffPath, Pathway, like, log, strongest

Initial = Literal["ones", "random"]
Schedule = Literal["thinning", "released"]


class NeuronMCT(Pathway):
    """Pathway gradient of the neurons with the largest marginal contribution |a df/da|, by first-order Taylor.

    Khakzar et al. 2021, eq. 3. A neuron that is dead for the input, a = 0, contributes exactly 0 and is never chosen.

    sparsity: share of neurons left out, over the whole network; the thesis has 0.9 for VGG-16, 0.7 for ResNet-50.
    signed: rank by a df/da instead of its absolute value.
    off_path, opening: see `Pathway`.
    """

    def __init__(
        self, sparsity: float = 0.9, signed: bool = False, off_path: OffPath = "constant", opening: int = 1
    ) -> None:
        super().__init__(off_path, opening)
        self.sparsity, self.signed = _share(sparsity), signed

    def path(
        self,
        classifier: Classifier,
        inputs: torch.Tensor,
        targets: torch.Tensor,
        generators: Sequence[torch.Generator],
    ) -> Neurons:
        return strongest(_ranked(contributions(classifier, inputs, targets), self.signed), self.sparsity)


class NeuronIntGrad(Pathway):
    """Pathway gradient of the neurons with the largest integrated gradients from zero activations.

    Khakzar et al. 2021, eq. 4, with the whole layer of a neuron scaled together, which makes the contributions of a
    layer add up to what the output loses without it. (As printed, each neuron alone is scaled, which does not. The
    released code accumulates its scales beyond 1.) Dead neurons contribute exactly 0.

    steps, quadrature: of the integral, see `integrated_gradients`; the thesis takes 50, and every layer takes its own.
    sparsity, signed: as for NeuronMCT. The thesis prints the signed score and the released code takes the absolute.
    off_path, opening: see `Pathway`.
    """

    def __init__(
        self,
        sparsity: float = 0.9,
        steps: int = 50,
        quadrature: Quadrature = "riemann_middle",
        signed: bool = False,
        off_path: OffPath = "constant",
        opening: int = 1,
    ) -> None:
        super().__init__(off_path, opening)
        self.sparsity, self.points, self.steps, self.signed = _share(sparsity), points(quadrature, steps), steps, signed

    def cost(self, classifier: Classifier) -> tuple[int, int]:
        """One pass per step and layer, one to see the layers, and one in the path network."""
        passes = self.steps * _layers(classifier) + 1
        return (passes + 1, passes)

    def path(
        self,
        classifier: Classifier,
        inputs: torch.Tensor,
        targets: torch.Tensor,
        generators: Sequence[torch.Generator],
    ) -> Neurons:
        scores = integrated_contributions(classifier, inputs, targets, *self.points)
        return strongest(_ranked(scores, self.signed), self.sparsity)


class GreedyPath(Pathway):
    """Pathway gradient of what greedy pruning leaves: "pathological", for it finds irrelevant paths by design.

    Khakzar et al. 2021, algorithm 1. Round by round, the neurons with the smallest |a df/da| in the network pruned so
    far (pruned neurons are 0) are pruned as well, but none with exactly 0: a dead neuron stays until pruning others
    has revived it. The thesis does not say how many go at a time, which the `schedule` does; the sparsity that was
    reached is logged.

    sparsity: share of neurons to prune. steps: rounds; of `thinning` at most.
    schedule: `thinning`: a round takes `rate` of the neurons that score and lets none return; what is pruned is as
        sparse as asked, unless the rounds end before, or so many score 0 that nothing is left to prune. `released`, of
        the released code: in round k of `steps`, every neuron is pruned that scores more than 0 and at most the
        quantile k / steps x `sparsity` over all neurons, for which those that score 0 count as the highest; all others
        are on the path, those that were pruned before among them, for a pruned neuron scores 0. What remains has a
        sparsity of its own. (The code always makes 99 rounds by a hundredth, whatever sparsity is reported.)
    rate: of `thinning`, the share of the scoring neurons that a round prunes.
    prune_zero: of `thinning`, prune neurons that score 0 like any other; these then go first.
    off_path, opening: see `Pathway`; pruning itself always sets neurons to 0.
    """

    added: ClassVar[Mapping[str, Any]] = {"schedule": "thinning"}

    def __init__(
        self,
        sparsity: float = 0.9,
        steps: int = 99,
        rate: float = 0.1,
        prune_zero: bool = False,
        off_path: OffPath = "constant",
        opening: int = 1,
        schedule: Schedule = "thinning",
    ) -> None:
        super().__init__(off_path, opening)
        self.schedule = one_of("schedule", schedule, get_args(Schedule))
        if steps < 1:
            raise ValueError(f"steps={steps}: expected at least 1")
        if not 0 < rate <= 1:
            raise ValueError(f"rate={rate}: expected a share in (0, 1]")
        self.sparsity, self.steps, self.rate, self.prune_zero = _share(sparsity), steps, rate, prune_zero

    def cost(self, classifier: Classifier) -> tuple[int, int]:
        return (2 + self.steps, 1 + self.steps)

    def path(
        self,
        classifier: Classifier,
        inputs: torch.Tensor,
        targets: torch.Tensor,
        generators: Sequence[torch.Generator],
    ) -> Neurons:
        _, neurons = observe(classifier, inputs)
        path = [torch.ones_like(layer, dtype=torch.bool) for layer in neurons]
        for done in range(1, self.steps + 1):
            scores = torch.cat([s.abs().flatten(1) for s in contributions(classifier, inputs, targets, path)], 1)
            kept = torch.cat([layer.flatten(1) for layer in path], 1)
            left = self._thinned(scores, kept) if self.schedule == "thinning" else self._released(scores, done)
            path = like(left, path)
        reached = 1 - torch.cat([layer.flatten(1) for layer in path], 1).double().mean(1)
        said = "greedy pruning (%s) reached a sparsity of %.4f on average, %.4f at least, of %.4f"
        log.info(said, self.schedule, float(reached.mean()), float(reached.min()), self.sparsity)
        return path

    def _thinned(self, scores: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
        """What is left [B,N] of what is kept [B,N] after a round by scores [B,N]."""
        count = scores.shape[1]
        candidates = kept if self.prune_zero else kept & (scores > 0)
        left = kept.sum(1, keepdim=True) - (count - round(self.sparsity * count))
        quota = (self.rate * candidates.sum(1, keepdim=True)).ceil().long().minimum(left)
        weakest = scores.masked_fill(~candidates, torch.inf).argsort(dim=1, stable=True)
        goes = torch.arange(count, device=scores.device) < quota
        return kept & ~torch.zeros_like(kept).scatter(1, weakest, goes)

    def _released(self, scores: torch.Tensor, done: int) -> torch.Tensor:
        """What is left [B,N] after round `done`, the first being 1, by scores [B,N]."""
        place = max(math.ceil(self.sparsity * done / self.steps * scores.shape[1]), 1)
        ranked = scores.where(scores > 0, scores.amax(1, keepdim=True))
        return (scores == 0) | (scores > ranked.kthvalue(place, dim=1, keepdim=True).values)


class RoutedPath(Pathway):
    """Pathway gradient of the neurons with the largest gates of distillation-guided routing.

    Wang et al. 2018 (Interpret neural networks by identifying critical data routing paths), as Khakzar et al. 2021
    use it, with a gate >= 0 on every neuron: stochastic gradient descent on the cross-entropy between the
    softmax outputs of the network and of the gated network, plus gamma times the sum of the gates. Of all steps at
    which the predicted class is that of the network, the gates with the least loss count. Gates are clamped to
    [0, 100]. Where no step keeps the class, gamma is divided by ten, up to `tries` times. Of gates that tie at the
    threshold none is taken unless all fit.

    sparsity: share of neurons left out. initial: gates start at 1 (`ones`) or uniform in [0, 1] (`random`).
    gamma, steps, learning_rate, momentum, tries: the thesis gives none; these are the released code's.
    off_path, opening: see `Pathway`.
    """

    def __init__(
        self,
        sparsity: float = 0.9,
        initial: Initial = "ones",
        gamma: float = 0.01,
        steps: int = 1000,
        learning_rate: float = 0.01,
        momentum: float = 0.9,
        tries: int = 100,
        off_path: OffPath = "constant",
        opening: int = 1,
    ) -> None:
        super().__init__(off_path, opening)
        one_of("initial", initial, get_args(Initial))
        for name, value in (("steps", steps), ("tries", tries)):
            if value < 1:
                raise ValueError(f"{name}={value}: expected at least 1")
        if gamma < 0:
            raise ValueError(f"gamma={gamma}: expected 0 or more")
        if learning_rate <= 0:
            raise ValueError(f"learning_rate={learning_rate}: expected a positive number")
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum={momentum}: expected a number in [0, 1)")
        self.sparsity, self.initial, self.gamma, self.steps = _share(sparsity), initial, gamma, steps
        self.learning_rate, self.momentum, self.tries = learning_rate, momentum, tries

    def check(self, classifier: Classifier) -> None:
        super().check(classifier)
        if classifier.outputs == 1:
            raise Refusal(f"pathway_dgr keeps the probabilities of classes: {classifier.name} has one output")

    def cost(self, classifier: Classifier) -> tuple[int, int]:
        """Of one try: one pass to see the layers and the answer, one per step, and one in the path network."""
        return (2 + self.steps, 1 + self.steps)

    def path(
        self,
        classifier: Classifier,
        inputs: torch.Tensor,
        targets: torch.Tensor,
        generators: Sequence[torch.Generator],
    ) -> Neurons:
        logits, neurons = observe(classifier, inputs)
        initial = [self._initial(layer, generators) for layer in neurons]
        best = [gate.clone() for gate in initial]
        left = torch.arange(len(inputs), device=inputs.device)
        for attempt in range(self.tries):
            start = [gate[left] for gate in initial]
            gates, found = self._route(classifier, inputs[left], logits[left], start, self.gamma / 10**attempt)
            for kept, new in zip(best, gates):
                kept[left] = new
            left = left[~found]
            if not len(left):
                break
        else:
            log.warning("%d of %d routings never kept the predicted class", len(left), len(inputs))
        return strongest(best, self.sparsity, strict=True)

    def _initial(self, layer: torch.Tensor, generators: Sequence[torch.Generator]) -> torch.Tensor:
        if self.initial == "ones":
            return torch.ones_like(layer)
        draws = [torch.rand(layer.shape[1:], generator=generator) for generator in generators]
        return torch.stack(draws).to(layer)

    def _route(
        self, classifier: Classifier, inputs: torch.Tensor, logits: torch.Tensor, gates: Neurons, gamma: float
    ) -> tuple[Neurons, torch.Tensor]:
        """The best gates [B,...] of each layer, and whether a step kept the class [B] (if none: the last gates)."""
        gates = [gate.clone().requires_grad_(True) for gate in gates]
        best, best_loss = gates, logits.new_full((len(logits),), torch.inf)
        optimizer = torch.optim.SGD(gates, self.learning_rate, self.momentum)

        def gated(layer: int, output: torch.Tensor) -> torch.Tensor:
            return output * gates[layer]

        for _ in range(self.steps):
            with torch.enable_grad(), altered(classifier.module, gated):
                answers = classifier.module(inputs)
                wanted = classifier.probabilities(logits)
                losses = functional.cross_entropy(classifier.softmax_logits(answers), wanted, reduction="none")
                losses = losses + gamma * sum(gate.abs().flatten(1).sum(1) for gate in gates)
            better = (answers.argmax(1) == logits.argmax(1)) & (losses < best_loss)
            best_loss = torch.where(better, losses.detach(), best_loss)
            # Who has not kept the class yet has the gates of the last step.
            replace = better | best_loss.isinf()
            best = [torch.where(_rows(replace, gate), gate.detach(), kept.detach()) for gate, kept in zip(gates, best)]
            for gate, gradient in zip(gates, torch.autograd.grad(losses.sum(), gates)):
                gate.grad = gradient
            optimizer.step()
            with torch.no_grad():
                for gate in gates:
                    gate.clamp_(0, 100)
        return best, best_loss.isfinite()


class RandomPath(Pathway):
    """Pathway gradient of a random path: in each layer the same share of neurons, drawn per sample.

    sparsity: share of neurons left out of each layer, as in the released code of Khakzar et al. 2021.
    off_path, opening: see `Pathway`.
    """

    def __init__(self, sparsity: float = 0.9, off_path: OffPath = "constant", opening: int = 1) -> None:
        super().__init__(off_path, opening)
        self.sparsity = _share(sparsity)

    def cost(self, classifier: Classifier) -> tuple[int, int]:
        return (2, 1)

    def path(
        self,
        classifier: Classifier,
        inputs: torch.Tensor,
        targets: torch.Tensor,
        generators: Sequence[torch.Generator],
    ) -> Neurons:
        _, neurons = observe(classifier, inputs)
        return [self._drawn(layer, generators) for layer in neurons]

    def _drawn(self, layer: torch.Tensor, generators: Sequence[torch.Generator]) -> torch.Tensor:
        count = layer[0].numel()
        keep = max(round((1 - self.sparsity) * count), 1)
        drawn = torch.zeros(len(layer), count, dtype=torch.bool)
        for row, generator in zip(drawn, generators):
            row[torch.randperm(count, generator=generator)[:keep]] = True
        return drawn.view_as(layer).to(layer.device)


class ActivePath(Pathway):
    """Pathway gradient of all neurons that are active for the input, a > 0; the others are dead.

    With `constant` it is the gradient: no gradient passes a dead ReLU anyway. off_path, opening: see `Pathway`.
    """

    def cost(self, classifier: Classifier) -> tuple[int, int]:
        return (2, 1)

    def path(
        self,
        classifier: Classifier,
        inputs: torch.Tensor,
        targets: torch.Tensor,
        generators: Sequence[torch.Generator],
    ) -> Neurons:
        return [layer > 0 for layer in observe(classifier, inputs)[1]]


SELECTORS: dict[str, type[Pathway]] = {
    "neuron_mct": NeuronMCT,
    "neuron_intgrad": NeuronIntGrad,
    "pathway_dgr": RoutedPath,
    "pathway_greedy": GreedyPath,
    "pathway_random": RandomPath,
    "pathway_active": ActivePath,
}


def selector(name: str, sparsity: float | None = None) -> Pathway:
    """The selector of a name, one of SELECTORS, with its defaults, at a sparsity (None: its own; of all active neurons
    there is none to choose)."""
    kind = SELECTORS[name]
    return kind() if sparsity is None or kind is ActivePath else kind(sparsity=sparsity)  # type: ignore[call-arg]


def _share(sparsity: float) -> float:
    if not 0 <= sparsity < 1:
        raise ValueError(f"sparsity={sparsity}: expected a share of neurons in [0, 1)")
    return sparsity


def _ranked(scores: Neurons, signed: bool) -> Neurons:
    return scores if signed else [score.abs() for score in scores]


def _layers(classifier: Classifier) -> int:
    return len(observe(classifier, classifier.blank)[1])


def _rows(values: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Values [B] so that they broadcast over a tensor [B,...]."""
    return values.view(-1, *[1] * (like.dim() - 1))

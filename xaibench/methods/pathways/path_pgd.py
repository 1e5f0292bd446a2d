"""Adversarial perturbation restricted to a path: what has to change in the input for the path to answer less."""

from collections.abc import Sequence

import torch

from ...errors import one_of
from ...models.classifier import Classifier
from ..context import Context
from . import selectors
from ._pathway_neurons import Neurons
from .pathway import OffPath, Pathway, path_alone


class PathPGD(Pathway):
    """|x' - x| of the input x' that projected gradient descent finds in the path network: [B,C,H,W], not negative.

    Khakzar 2022, chapter 5 (perturbation restricted to the critical path): the explained output of the network in which
    the path's neurons alone move is made small within an L2 ball, and pixels that have to change are what the path
    looks at. The path is that of x. A step is `step` of the radius along the negative gradient, of length 1; after it,
    x' is taken back into the ball. Nothing keeps x' between black and white. In units of the normalised input.

    selector: who chooses the path, one of `selectors.SELECTORS`, with its defaults. sparsity: its share of neurons left
        out (of `pathway_active` there is none to choose).
    epsilon: the radius as a share of the norm of x. (The released code has 500 and steps of 25, in what seem to be
        pixel values of 0 to 255 of a whole photograph: a share of about 0.01.)
    step: as a share of the radius. steps: how many.
    off_path: what becomes of the other neurons, see `Pathway`; `constant` keeps the values that they have for x.
    Raises ValueError for another word and figures out of range.
    """

    def __init__(
        self,
        selector: str = "neuron_mct",
        sparsity: float = 0.9,
        epsilon: float = 0.01,
        step: float = 0.05,
        steps: int = 50,
        off_path: OffPath = "constant",
    ) -> None:
        super().__init__(off_path)
        for name, value in (("epsilon", epsilon), ("step", step)):
            if not value > 0:
                raise ValueError(f"{name}={value}: expected a positive share")
        if steps < 1:
            raise ValueError(f"steps={steps}: expected at least 1")
        self.selector = selectors.selector(one_of("selector", selector, selectors.SELECTORS), sparsity)
        self.sparsity, self.epsilon, self.step, self.steps = sparsity, epsilon, step, steps

    def check(self, classifier: Classifier) -> None:
        self.selector.check(classifier)

    def cost(self, classifier: Classifier) -> tuple[int, int]:
        """What the path takes (the selector's map less its gradient), a look at the constants, and the steps."""
        forwards, backwards = self.selector.cost(classifier)
        return (forwards + self.steps, backwards - 1 + self.steps)

    def path(
        self,
        classifier: Classifier,
        inputs: torch.Tensor,
        targets: torch.Tensor,
        generators: Sequence[torch.Generator],
    ) -> Neurons:
        return self.selector.path(classifier, inputs, targets, generators)

    def attribute(
        self, classifier: Classifier, inputs: torch.Tensor, targets: torch.Tensor, context: Context
    ) -> torch.Tensor:
        maps = []
        for part in classifier.chunks(len(inputs)):
            x, classes = inputs[part], targets[part]
            path = self.path(classifier, x, classes, context.generators[part])
            with path_alone(classifier, x, path, self.off_path)():
                maps.append(self._moved(classifier, x, classes).abs())
        return torch.cat(maps)

    def _moved(self, classifier: Classifier, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """x' - x [B,C,H,W] of at most `batch_size` inputs of the network as it is."""
        radius, way = self.epsilon * norms(inputs), torch.zeros_like(inputs)
        for _ in range(self.steps):
            gradient = classifier.gradient(inputs + way, targets)
            way = within(way - self.step * radius * gradient / norms(gradient).clamp(min=1e-30), radius)
        return way


def norms(values: torch.Tensor) -> torch.Tensor:
    """Euclidean norms of values [B,C,H,W] -> [B,1,1,1]."""
    return values.flatten(1).norm(dim=1).view(-1, 1, 1, 1)


def within(way: torch.Tensor, radius: torch.Tensor) -> torch.Tensor:
    """Ways [B,C,H,W], those longer than the radius [B,1,1,1] made as long."""
    return way * (radius / norms(way).clamp(min=1e-30)).clamp(max=1)

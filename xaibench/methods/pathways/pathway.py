"""Pathway gradients: the gradient of the part of a ReLU network that is critical for one input."""

import logging
from abc import abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Literal, get_args

import torch
from torch.nn import functional

from ...errors import one_of
from ...models.classifier import Classifier
from ..base import Method
from ..context import Context
from ._pathway_neurons import Neurons, altered, observe, require_neurons

log = logging.getLogger(__name__)

OffPath = Literal["constant", "zero"]


class Pathway(Method):
    """Gradient of the path network with respect to the input: [B,C,H,W], signed, in output per input unit.

    Khakzar et al. 2021 (Neural response interpretation through the lens of critical pathways). A path is a set of
    neurons, ReLU outputs, chosen for each input by a subclass (`selectors`). Places of a feature map are neurons of
    their own, and each call of a ReLU module has its own.

    off_path: what becomes of the other neurons. `constant` (thesis): each keeps the value that it has for this input,
        so that the path network gives the same output, all its activations are as they were, and no gradient
        passes them. `zero` (released code): they are 0, so that what comes later is no longer as it was, and path
        neurons may die.
    opening: side of the square of a morphological opening (erosion, then dilation) of the largest absolute value over
        the channels, which removes peaks smaller than the square: [B,1,H,W], not negative. 1 leaves the gradient as
        it is. The thesis's smoothed variants (*) do not say their side.
    Raises ValueError for another word and for an even or negative side.

    Ranking metrics take the largest absolute value over the channels: the sign of a gradient does not say what a
    pixel speaks for. (The thesis takes the value of largest magnitude; its released code ranks it with its sign.)
    """

    sign_of_logit = False

    collapse = "max_abs"

    def __init__(self, off_path: OffPath = "constant", opening: int = 1) -> None:
        one_of("off_path", off_path, get_args(OffPath))
        if opening < 1 or opening % 2 == 0:
            raise ValueError(f"opening={opening}: expected an odd number of pixels, 1 for none")
        self.off_path, self.opening = off_path, opening

    @abstractmethod
    def path(
        self,
        classifier: Classifier,
        inputs: torch.Tensor,
        targets: torch.Tensor,
        generators: Sequence[torch.Generator],
    ) -> Neurons:
        """Which neurons are on the path of each of at most `batch_size` inputs: bool [B,...] per call of a ReLU."""

    def check(self, classifier: Classifier) -> None:
        require_neurons(classifier)

    def cost(self, classifier: Classifier) -> tuple[int, int]:
        return (2, 2)

    def attribute(
        self, classifier: Classifier, inputs: torch.Tensor, targets: torch.Tensor, context: Context
    ) -> torch.Tensor:
        maps = []
        for part in classifier.chunks(len(inputs)):
            path = self.path(classifier, inputs[part], targets[part], context.generators[part])
            maps.append(path_gradient(classifier, inputs[part], targets[part], path, self.off_path))
        gradients = torch.cat(maps)
        if blank := int((gradients.flatten(1) == 0).all(1).sum()):
            log.warning("%d of %d paths do not reach from input to output: their maps are 0", blank, len(inputs))
        return gradients if self.opening == 1 else opened(gradients.abs().amax(1, keepdim=True), self.opening)


def path_gradient(
    classifier: Classifier, inputs: torch.Tensor, targets: torch.Tensor, path: Neurons, off_path: OffPath = "constant"
) -> torch.Tensor:
    """Gradient [B,C,H,W] of the explained output of the path network; at most `batch_size` inputs."""

    def restrict(layer: int, output: torch.Tensor) -> torch.Tensor:
        if off_path == "zero":
            return output * path[layer]
        return torch.where(path[layer], output, output.detach())

    with altered(classifier.module, restrict):
        return classifier.gradient(inputs, targets)


def path_alone(
    classifier: Classifier, inputs: torch.Tensor, path: Neurons, off_path: OffPath = "constant"
) -> Callable[[], AbstractContextManager[None]]:
    """A context, to be entered as often as wanted, in which the path's neurons alone move, whatever the network sees:
    the others keep the values that they have for `inputs`, at most `batch_size`, or are 0."""
    others = observe(classifier, inputs)[1]
    if off_path == "zero":
        others = [torch.zeros_like(layer) for layer in others]
    return lambda: altered(classifier.module, lambda call, output: torch.where(path[call], output, others[call]))


def strongest(scores: Neurons, sparsity: float, strict: bool = False) -> Neurons:
    """The path of the neurons with the highest scores in the whole network, for each sample on its own.

    With N neurons and k = round((1 - sparsity) N), at least 1, the threshold is the k-th largest score, and the path
    has the neurons that reach it: k, or more where scores tie at the threshold. A neuron that scores 0 or less is
    never on the path: where fewer than k score more, the path is shorter, and that is logged. strict: of scores that
    tie at the threshold none is taken, if taking all would exceed k.
    """
    flat = torch.cat([layer.flatten(1) for layer in scores], 1)
    count = flat.shape[1]
    keep = max(round((1 - sparsity) * count), 1)
    threshold = flat.kthvalue(count - keep + 1, dim=1, keepdim=True).values
    chosen = (flat >= threshold) & (flat > 0)
    if strict:
        chosen &= (flat > threshold) | (chosen.sum(1, keepdim=True) <= keep)
    sizes = chosen.sum(1)
    if short := int((sizes < keep).sum()):
        said = "%d of %d paths are shorter than %d of %d neurons: no more score above 0%s (shortest: %d)"
        log.info(said, short, len(flat), keep, count, " and apart" if strict else "", int(sizes.min()))
    return like(chosen, scores)


def like(flat: torch.Tensor, layers: Neurons) -> Neurons:
    """A row per sample over all neurons [B,N], cut into the shapes of the layers."""
    pieces = flat.split([layer[0].numel() for layer in layers], dim=1)
    return [piece.view_as(layer) for piece, layer in zip(pieces, layers)]


def opened(maps: torch.Tensor, side: int) -> torch.Tensor:
    """Morphological opening of maps [B,C,H,W] by a square: what lies outside of a map constrains nothing."""
    eroded = -functional.max_pool2d(-maps, side, stride=1, padding=side // 2)
    return functional.max_pool2d(eroded, side, stride=1, padding=side // 2)

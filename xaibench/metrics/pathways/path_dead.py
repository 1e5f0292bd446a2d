"""Dead neurons on the path: how much of what a selector calls critical does nothing for the input?"""

import math

import torch

from ...datasets.base import Batch
from ...methods.context import Context
from ...methods.pathways._pathway_neurons import ceilings, observe, require_neurons
from ...models.classifier import Classifier
from ..base import Columns, Metric, Statistic
from ._shares import counts, joined, share


class PathDead(Metric):
    """The share of a path's neurons that are dead, a = 0, in the original network for the input.

    Khakzar et al. 2021, section 5: pruning finds paths of neurons that were dead (greedy 69 %, DGR 8 % of VGG-16 at
    90 % sparsity), contributions find none by definition. A random path has the dead share of the network, `network`.
    Lower is better; 0 to 1.

    A ReLU6 at 6 has no gradient either but is not dead: `saturated` is the share of those, a part of its own.

    Columns: dead, saturated, and sparsity, the share of all neurons that is off the path, which is what was asked for
    or what a selector has reached; network, the share of all neurons that is dead. Curves over the calls of ReLUs in
    the order of a pass, numbered from 1: dead_by_layer, and kept_by_layer, the share of the layer that is on the path.
    NaN where a path, or its part of a layer, is empty.
    """

    reads_maps = False
    reads_paths = 1
    x_label = "ReLU call"
    statistics = (
        Statistic("path_dead", "lower", "dead", low=0, high=1, unit="share of the path"),
        Statistic("path_saturated", "lower", "saturated", low=0, high=1, unit="share of the path"),
        Statistic("path_sparsity", "higher", "sparsity", low=0, high=1, unit="share of all neurons"),
    )

    def check(self, classifier: Classifier) -> None:
        require_neurons(classifier)

    def cost(self, classifier: Classifier) -> tuple[int, int]:
        return (1, 0)

    def axes(self, classifier: Classifier) -> dict[str, torch.Tensor]:
        calls = torch.arange(1, len(ceilings(classifier)) + 1)
        return {"dead_by_layer": calls, "kept_by_layer": calls}

    def evaluate(self, classifier: Classifier, batch: Batch, maps: torch.Tensor | None, context: Context) -> Columns:
        parts = [self._part(classifier, batch, part, context) for part in classifier.chunks(len(batch.inputs))]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def _part(self, classifier: Classifier, batch: Batch, part: slice, context: Context) -> Columns:
        path = context.path(batch.inputs[part], batch.targets[part], part)
        _, neurons = observe(classifier, batch.inputs[part])
        dead = [on & (values <= 0) for on, values in zip(path, neurons)]
        full = [on & (values >= most) for on, values, most in zip(path, neurons, ceilings(classifier))]
        size = counts(path)
        whole = size.new_tensor([math.prod(layer.shape[1:]) for layer in path])
        return {
            "dead": share(counts(dead).sum(1), size.sum(1)),
            "saturated": share(counts(full).sum(1), size.sum(1)),
            "sparsity": 1 - share(size.sum(1), whole.sum()),
            "network": (joined(neurons) <= 0).double().mean(1),
            "dead_by_layer": share(counts(dead), size),
            "kept_by_layer": share(size, whole),
        }

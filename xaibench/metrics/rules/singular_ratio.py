"""Singular ratio: is what a method does between two layers close to a matrix of rank 1?"""

import math

import torch

from ...datasets.base import Batch
from ...errors import Refusal
from ...methods.context import Context
from ...models.classifier import Classifier
from ...models.cut import LOGITS, output_shape
from ...models.tracing.graph import Graph
from ..base import Columns, Metric, Statistic

# Most values of the layer where the unit vectors start: each is a backward pass.
LARGEST = 1024


class SingularRatio(Metric):
    """sigma_1 / sigma_2 of the derivation matrix that takes the relevance at one layer to that at a lower one.

    Sixt et al. 2020 name it as the costly alternative to `csc`. The rows are what arrives at `layer` from each unit
    vector at `start`, by the method's rules for the image. If the first singular value is far above the second, all
    that is handed down is one vector times a number. For a method that is not linear in the relevance, such as guided
    backpropagation, the rows are those of the unit vectors all the same.

    start: a layer (alias, module path, `logits`) of at most 1024 values, or it is refused. layer: one below it; null
        takes the first convolution's output (see `Graph.trunk`).

    Columns: ratio, from 1, lower is better, undefined where nothing arrives; a matrix of rank 1 has 1 over the machine
    precision of float64, 4.5e15. digits, its logarithm to base 10.
    """

    reads_maps = False
    propagates = True
    statistics = (
        Statistic("ratio", "lower", "ratio", kind="median", low=1, unit="sigma_1 / sigma_2", tolerance=0.05),
        Statistic("digits", "lower", "digits", low=0, unit="log10"),
    )

    def __init__(self, start: str = LOGITS, layer: str | None = None) -> None:
        self.start, self.layer = start, layer

    def check(self, classifier: Classifier) -> None:
        size = math.prod(output_shape(classifier, self.start))
        if not 2 <= size <= LARGEST:
            raise Refusal(f"metric.start={self.start} has {size} values in {classifier.name}: expected 2 to {LARGEST}")
        graph, below = Graph.of(classifier), self._below(classifier)
        if graph.place(below) >= graph.place(self.start):
            raise Refusal(f"metric.layer={below} is not below metric.start={self.start} in {classifier.name}")

    def cost(self, classifier: Classifier) -> tuple[int, int]:
        return (1, math.prod(output_shape(classifier, self.start)))

    def evaluate(self, classifier: Classifier, batch: Batch, maps: torch.Tensor | None, context: Context) -> Columns:
        shape, below, ratios = output_shape(classifier, self.start), self._below(classifier), []
        units = torch.eye(math.prod(shape)).view(-1, *shape).to(batch.inputs)
        # One image at a time: a row of each unit vector is what has to fit into memory.
        for image in batch.inputs.split(1):
            arrived = context.propagate(image, units.split(1), self.start, [below])
            matrix = torch.stack([signals[below].flatten() for signals in arrived]).double()
            first, second = torch.linalg.svdvals(matrix)[:2]
            ratio = first / torch.maximum(second, first * torch.finfo(first.dtype).eps)
            ratios.append(ratio.where(first > 0, torch.nan))
        ratio = torch.stack(ratios)
        return {"ratio": ratio, "digits": ratio.log10()}

    def _below(self, classifier: Classifier) -> str:
        trunk = Graph.of(classifier).trunk()
        if self.layer is None and not trunk:
            raise Refusal(
                f"singular_ratio: no layer of the main path of {classifier.name} has a name: set metric.layer="
            )
        return self.layer or trunk[0]

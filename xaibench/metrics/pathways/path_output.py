"""The path alone: does the network answer as before if only the path's neurons work?"""

import torch

from ...datasets.base import Batch
from ...methods.context import Context
from ...methods.pathways._pathway_neurons import Neurons, altered, observe, require_neurons
from ...models.classifier import Classifier, predicted
from ..base import Columns, Metric, Statistic


class PathOutput(Metric):
    """|p' - p| / p of the explained output, p with the whole network and p' with the path alone; lower is better.

    The objective of pruning, Phi(x; m a) in Khakzar et al. 2021, eq. 1: the other neurons are 0 (`path_output`). With
    the other neurons at the values that they have for the input (`path_output_constant`), where the pathway gradient is
    taken, p' is p whatever the path: 0 by construction, and anything else is an error of the network's arithmetic.

    p is the probability of the explained class, by the released code; of a network without classes its output. A
    network whose neurons are 0 still answers by its biases: an empty path has a change, too, that of `pathway_random`
    at a high sparsity.

    Columns: change, change_constant (NaN where p is 0); class_kept, whether the path alone still puts the network's own
    class first (of a network of one output, on the same side of its cut).
    """

    reads_maps = False
    reads_paths = 1
    statistics = (
        Statistic("path_output", "lower", "change", low=0, unit="of the output"),
        Statistic("path_class_kept", "higher", "class_kept", kind="proportion", low=0, high=1, unit="share of inputs"),
        Statistic("path_output_constant", "lower", "change_constant", low=0, unit="of the output"),
    )

    def check(self, classifier: Classifier) -> None:
        require_neurons(classifier)

    def cost(self, classifier: Classifier) -> tuple[int, int]:
        return (3, 0)

    def evaluate(self, classifier: Classifier, batch: Batch, maps: torch.Tensor | None, context: Context) -> Columns:
        parts = [self._part(classifier, batch, part, context) for part in classifier.chunks(len(batch.inputs))]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def _part(self, classifier: Classifier, batch: Batch, part: slice, context: Context) -> Columns:
        inputs, targets = batch.inputs[part], batch.targets[part]
        path = context.path(inputs, targets, part)
        logits, constants = observe(classifier, inputs)
        zero = path_logits(classifier, inputs, path, [torch.zeros_like(layer) for layer in constants])
        constant = path_logits(classifier, inputs, path, constants)
        output = "probability" if classifier.has_classes else None
        before, after, same = (
            classifier.select(answer, targets, output).double() for answer in (logits, zero, constant)
        )
        size = before.abs().where(before != 0, torch.nan)
        return {
            "change": (after - before).abs() / size,
            "change_constant": (same - before).abs() / size,
            "class_kept": (predicted(zero) == predicted(logits)).double(),
        }


@torch.no_grad()
def path_logits(classifier: Classifier, inputs: torch.Tensor, path: Neurons, others: Neurons) -> torch.Tensor:
    """Logits [B,K] of at most `batch_size` inputs where the neurons off the path have the values of `others`."""
    with altered(classifier.module, lambda call, output: torch.where(path[call], output, others[call])):
        return classifier.module(inputs)

"""Overlap of paths: with another selector's for the same input, or with the path of another input."""

import torch

from ...datasets.base import Batch
from ...errors import Refusal, one_of
from ...methods.context import Context
from ...methods.pathways._pathway_neurons import Neurons, ceilings, require_neurons
from ...methods.pathways.path_pgd import norms, within
from ...methods.pathways.selectors import SELECTORS, selector
from ...models.classifier import Classifier, predicted
from ..base import Columns, Metric, Statistic
from ._shares import counts, joined, share

INPUTS = ("same_class", "other_class", "adversarial")
# How often to draw again where another image of the class is wanted. One class in a thousand images still fails.
TRIES = 100


class PathOverlap(Metric):
    """The Jaccard index of two paths, |e and e'| / |e or e'| over all neurons: 0 to 1.

    Khakzar et al. 2021, section 5 (between selectors); Wang et al. 2018 and Qiu et al. 2019, whom it cites, between
    inputs.

    other: whose path is the second one.
        A selector (`neuron_mct`, `neuron_intgrad`, `pathway_dgr`, `pathway_greedy`, `pathway_random`,
        `pathway_active`): its choice for the same input with its defaults, at the sparsity of the method. Higher.
        `same_class`: the method's choice for another image of the split that the network gives the explained class.
        Higher. `other_class`: for one to which it gives another class, that class explained. Lower. The image is the
        sample's own draw; undefined where none is found.
        `adversarial`: for the input moved by at most `epsilon` times its norm, away from the explained class (gradient
        descent of `steps` normalised steps in the L2 ball), with the class that the network then gives explained.
        Lower: a critical path of another answer is another path. Undefined where the class has not changed.
    epsilon, steps: of `adversarial`.

    Two paths overlap by chance: `chance` is the expected index if the second one were as many neurons of each layer,
    chosen at random (expectations of both counts, divided). Paths of two sizes cannot have an index of 1.

    Columns: overlap; chance; above_chance, the difference. The curve overlap_by_layer over the calls of ReLUs in the
    order of a pass, from 1; NaN where both paths are empty.
    """

    reads_maps = False
    x_label = "ReLU call"

    def __init__(self, other: str = "neuron_intgrad", epsilon: float = 0.1, steps: int = 10) -> None:
        self.other = one_of("other", other, (*SELECTORS, *INPUTS))
        if not epsilon > 0:
            raise ValueError(f"epsilon={epsilon}: expected a positive share of the input's norm")
        if steps < 1:
            raise ValueError(f"steps={steps}: expected at least 1")
        self.epsilon, self.steps = epsilon, steps
        self.reads_paths = 1 if other in SELECTORS else 2
        better = "lower" if other in ("other_class", "adversarial") else "higher"
        self.statistics = (
            Statistic("path_overlap", better, "overlap", low=0, high=1, unit="Jaccard index"),
            Statistic("path_overlap_above_chance", better, "above_chance", low=-1, high=1, unit="Jaccard index"),
        )

    def check(self, classifier: Classifier) -> None:
        require_neurons(classifier)
        if self.other in SELECTORS:
            selector(self.other).check(classifier)
        elif classifier.outputs == 1 or not classifier.has_classes:
            raise Refusal(f"metric.other={self.other}: {classifier.name} has no classes to tell inputs apart by")

    def cost(self, classifier: Classifier) -> tuple[int, int]:
        if self.other in SELECTORS:
            return selector(self.other).cost(classifier)
        return (self.steps + 1, self.steps) if self.other == "adversarial" else (1, 0)

    def axes(self, classifier: Classifier) -> dict[str, torch.Tensor]:
        return {"overlap_by_layer": torch.arange(1, len(ceilings(classifier)) + 1)}

    def evaluate(self, classifier: Classifier, batch: Batch, maps: torch.Tensor | None, context: Context) -> Columns:
        parts = [self._part(classifier, batch, part, context) for part in classifier.chunks(len(batch.inputs))]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def _part(self, classifier: Classifier, batch: Batch, part: slice, context: Context) -> Columns:
        inputs, targets = batch.inputs[part], batch.targets[part]
        path = context.path(inputs, targets, part)
        if self.other in SELECTORS:
            columns = overlaps(path, context.path(inputs, targets, part, beside=self.other))
            found = torch.ones_like(targets, dtype=torch.bool)
        else:
            others, classes, found = self._others(classifier, batch, part, context)
            columns = overlaps(path, context.path(others, classes, part, "other input"))
        return {
            name: column.masked_fill(~found.view(-1, *[1] * (column.dim() - 1)), torch.nan)
            for name, column in columns.items()
        }

    def _others(
        self, classifier: Classifier, batch: Batch, part: slice, context: Context
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Other inputs [B,C,H,W], the classes [B] to explain in them, and whether there is one [B]."""
        inputs, targets = batch.inputs[part], batch.targets[part]
        if self.other == "adversarial":
            others = adversarial(classifier, inputs, targets, self.epsilon, self.steps)
            classes = predicted(classifier.logits(others))
            return others, classes, classes != targets
        others, classes, found = inputs.clone(), targets.clone(), torch.zeros_like(targets, dtype=torch.bool)
        for _ in range(TRIES):
            # Each sample proposes from its own generator until it has one: who else is in the batch changes nothing.
            lacking = torch.nonzero(~found)[:, 0].tolist()
            if not lacking:
                break
            size, generators = len(context.data.dataset), context.generators[part]
            ids = [int(torch.randint(size, (), generator=generators[row])) for row in lacking]
            images = context.data.load(ids).inputs.to(inputs)
            for row, number, image, answer in zip(lacking, ids, images, predicted(classifier.logits(images))):
                itself = number == batch.samples[part][row]
                if (answer == targets[row]) == (self.other == "same_class") and not itself:
                    others[row], classes[row], found[row] = image, answer, True
        return others, classes, found


def overlaps(first: Neurons, second: Neurons) -> Columns:
    """The index of two paths, overall and by layer, and what it is by chance."""
    both, either = (
        [torch.logical_and(*pair) for pair in zip(first, second)],
        [torch.logical_or(*pair) for pair in zip(first, second)],
    )
    sizes = counts(first), counts(second)
    places = sizes[0].new_tensor([layer[0].numel() for layer in first])
    expected = (sizes[0].double() * sizes[1] / places).sum(1)
    overlap = share(joined(both).sum(1), joined(either).sum(1))
    chance = share(expected, sizes[0].sum(1) + sizes[1].sum(1) - expected)
    return {
        "overlap": overlap,
        "chance": chance,
        "above_chance": overlap - chance,
        "overlap_by_layer": share(counts(both), counts(either)),
    }


def adversarial(
    classifier: Classifier, inputs: torch.Tensor, targets: torch.Tensor, epsilon: float, steps: int
) -> torch.Tensor:
    """Inputs [B,C,H,W] moved by at most epsilon |x| to where the log-probability of the targets is lower."""
    radius = epsilon * norms(inputs)
    moved = inputs
    for _ in range(steps):
        x = moved.detach().requires_grad_(True)
        with torch.enable_grad():
            logits = classifier.softmax_logits(classifier.module(x))
            total = logits.log_softmax(1).gather(1, targets[:, None]).sum()
        (gradient,) = torch.autograd.grad(total, x)
        step = 2.5 / steps * radius * gradient / norms(gradient).clamp(min=1e-30)
        moved = inputs + within(moved - inputs - step, radius)
    return moved

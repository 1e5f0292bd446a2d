"""Bottleneck capacity: how much information IBA keeps, and what the network still recognises with it."""

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch

from ...datasets.base import Batch
from ...methods.bottleneck._bottleneck import LAYER, Optimisation, noise_share, require_layer, require_loss
from ...methods.bottleneck.iba import IBA, Solution
from ...methods.context import Context
from ...models.classifier import Classifier
from ...rng import draw_seeds, from_seeds
from ..base import Columns, Metric, Statistic


@dataclass(kw_only=True, eq=False)
class BottleneckCapacity(Optimisation, Metric):
    """Information kept and accuracy with the per-sample bottleneck in force, over beta (Schulz et al. 2020, Table 4).

    It scores no map but the network and the bottleneck's parameters: maps are not looked at. For every beta the
    masks are found anew, with the same noise, and the network is then run with each mask and `copies` draws of noise.

    Information is L_I / k, the mean over the k features of the layer, in nats. (At the start, alpha = 5, the closed
    form is about 5.0 for standardised features; the thesis prints 2.500, half of it, for reasons unknown. Compare how
    it falls with beta.)

    betas: of the sweep. beta: the one of the statistics. layer and the others: as for `IBA`.

    Columns: information, top1, top5 at `beta` (shares of noisy copies); clean_top1, clean_top5 of the network
    as it is; initial_information; and over `betas` information_curve, top1_curve, top5_curve. top5 counts
    among as many classes as there are, if fewer.
    """

    betas: tuple[float, ...] = (0.01, 0.1, 1.0, 10.0, 100.0)
    layer: str = LAYER

    x_label = "beta"
    reads_maps = False
    fit_parameters = ("layer",)
    statistics = (
        Statistic("information", "lower", "information", low=0, unit="nats per feature"),
        Statistic("bottleneck_top1", "higher", "top1", low=0, high=1, unit="share of noisy copies"),
        Statistic("bottleneck_top5", "higher", "top5", low=0, high=1, unit="share of noisy copies"),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.betas or min(self.betas) < 0:
            raise ValueError(f"betas={list(self.betas)}: expected at least one number of 0 or more")
        shared = {field.name: getattr(self, field.name) for field in dataclasses.fields(Optimisation)}
        self.iba = IBA(layer=self.layer, **shared)

    def check(self, classifier: Classifier) -> None:
        require_layer(classifier, self.layer, "metric.layer")
        require_loss(classifier, "cross_entropy")

    def cost(self, classifier: Classifier) -> tuple[int, int]:
        forwards, backwards = self.iba.cost(classifier)
        masks = len({*self.betas, self.beta})
        return (1 + masks * (forwards + self.copies), masks * backwards)

    def axes(self, classifier: Classifier) -> dict[str, torch.Tensor]:
        betas = torch.tensor(self.betas, dtype=torch.float64)
        return dict.fromkeys(("information_curve", "top1_curve", "top5_curve"), betas)

    def fit(self, classifier: Classifier, samples: Any, generator: torch.Generator) -> dict[str, torch.Tensor]:
        """The moments of the layer, as for `IBA`."""
        return self.iba.fit(classifier, samples, generator)

    def evaluate(self, classifier: Classifier, batch: Batch, maps: torch.Tensor | None, context: Context) -> Columns:
        """Columns, see above. fitted: what `fit` returned."""
        seeds = draw_seeds(context.generators)
        found = {}
        for beta in {*self.betas, self.beta}:
            # Every beta draws the same noise, so that a difference between two is beta's.
            draws = from_seeds(seeds)
            iba = dataclasses.replace(self.iba, beta=beta)
            solutions = iba.solve(classifier, batch.inputs, batch.targets, draws, context.fitted)
            groups = [self._measure(classifier, solution, batch.targets, draws) for solution in solutions]
            found[beta] = {name: torch.cat([group[name] for group in groups]) for name in groups[0]}
        clean1, clean5 = _top(classifier.logits(batch.inputs), batch.targets)
        columns = {"clean_top1": clean1, "clean_top5": clean5, **found[self.beta]}
        for name in ("information", "top1", "top5"):
            columns[f"{name}_curve"] = torch.stack([found[beta][name] for beta in self.betas], dim=1)
        return columns

    @torch.no_grad()
    def _measure(
        self, classifier: Classifier, solution: Solution, targets: torch.Tensor, draws: list[torch.Generator]
    ) -> dict[str, torch.Tensor]:
        """Information and accuracy of a few images with their final masks in force, one value each."""
        targets, draws = targets[solution.rows], draws[solution.rows]
        at_once = max(1, classifier.batch_size // len(targets))
        top1, top5 = torch.zeros_like(targets, dtype=torch.float64), torch.zeros_like(targets, dtype=torch.float64)
        for start in range(0, self.copies, at_once):
            copies = min(at_once, self.copies - start)
            z = solution.bottleneck.sample(solution.noise, copies, draws)
            logits = solution.cut.behind(z, solution.features, copies)
            hits1, hits5 = _top(logits, targets.repeat_interleave(copies))
            top1 += hits1.view(-1, copies).sum(1) / self.copies
            top5 += hits5.view(-1, copies).sum(1) / self.copies
        initial = torch.full_like(solution.noise, self.initial)
        untouched = noise_share(initial, self.smoothing, solution.bottleneck.grid)
        return {
            "information": solution.information.flatten(1).mean(1),
            "initial_information": solution.bottleneck.information(untouched).flatten(1).mean(1),
            "top1": top1,
            "top5": top5,
        }


def _top(logits: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Whether the target is the first, and among the first five [N], as 0 and 1."""
    best = logits.topk(min(5, logits.shape[1]), dim=1).indices == targets[:, None]
    return best[:, 0].double(), best.any(1).double()

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

# What there is at each beta.
CURVES = ("information", "top1", "top5", "probability")


@dataclass(kw_only=True, eq=False)
class BottleneckCapacity(Optimisation, Metric):
    """Information kept and accuracy with the per-sample bottleneck in force, over beta (Schulz et al. 2020, Table 4).

    It scores no map but the network and the bottleneck's parameters: maps are not looked at. For every beta the
    masks are found anew, with the same noise, and the network is then run with each mask and `copies` draws of noise.

    Information is L_I / k, the mean over the k features of the layer, in nats. (At the start, alpha = 5, the closed
    form is about 5.0 for standardised features; the thesis prints 2.500, half of it, for reasons unknown. Compare how
    it falls with beta.)

    betas: of the sweep. beta: the one of the statistics. layer and the others: as for `IBA`.

    Columns: information, top1, top5, probability at `beta` (shares of noisy copies, and the target's mean
    probability over them, p(y | x, beta) of figure 4); clean_top1, clean_top5, clean_probability of the network as it
    is; initial_information, initial_top1, initial_top5, initial_probability with the mask as it starts; and over
    `betas` information_curve, top1_curve, top5_curve, probability_curve. top5 counts among as many classes as there
    are, if fewer.
    """

    version = 2

    betas: tuple[float, ...] = (0.01, 0.1, 1.0, 10.0, 100.0)
    layer: str = LAYER

    x_label = "beta"
    reads_maps = False
    fit_parameters = ("layer",)
    statistics = (
        Statistic("information", "lower", "information", low=0, unit="nats per feature"),
        Statistic("bottleneck_top1", "higher", "top1", low=0, high=1, unit="share of noisy copies"),
        Statistic("bottleneck_top5", "higher", "top5", low=0, high=1, unit="share of noisy copies"),
        Statistic("bottleneck_probability", "higher", "probability", low=0, high=1, unit="probability"),
        Statistic("initial_top1", "higher", "initial_top1", low=0, high=1, unit="share of noisy copies"),
        Statistic("initial_top5", "higher", "initial_top5", low=0, high=1, unit="share of noisy copies"),
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
        return (1 + self.copies + masks * (forwards + self.copies), masks * backwards)

    def axes(self, classifier: Classifier) -> dict[str, torch.Tensor]:
        betas = torch.tensor(self.betas, dtype=torch.float64)
        return dict.fromkeys((f"{name}_curve" for name in CURVES), betas)

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
            solutions = list(iba.solve(classifier, batch.inputs, batch.targets, draws, context.fitted))
            measured = [self._measure(classifier, one, one.noise, batch.targets, draws) for one in solutions]
            found[beta] = _joined(measured)
        draws = from_seeds(seeds)
        starts = [self._measure(classifier, one, self._start(one), batch.targets, draws) for one in solutions]
        answers = _answers(classifier, classifier.logits(batch.inputs), batch.targets)
        columns = {f"clean_{name}": column for name, column in answers.items()}
        columns |= {f"initial_{name}": column for name, column in _joined(starts).items()}
        columns |= found[self.beta]
        for name in CURVES:
            columns[f"{name}_curve"] = torch.stack([found[beta][name] for beta in self.betas], dim=1)
        return columns

    def _start(self, solution: Solution) -> torch.Tensor:
        """The share of noise before the first step, whatever beta."""
        initial = torch.full_like(solution.noise, self.initial)
        return noise_share(initial, self.smoothing, solution.bottleneck.grid)

    @torch.no_grad()
    def _measure(
        self,
        classifier: Classifier,
        solution: Solution,
        noise: torch.Tensor,
        targets: torch.Tensor,
        draws: list[torch.Generator],
    ) -> dict[str, torch.Tensor]:
        """Information and answers of a few images with a share of noise in their features, one value each."""
        targets, draws = targets[solution.rows], draws[solution.rows]
        at_once = max(1, classifier.batch_size // len(targets))
        found = {name: torch.zeros_like(targets, dtype=torch.float64) for name in CURVES[1:]}
        for start in range(0, self.copies, at_once):
            copies = min(at_once, self.copies - start)
            z = solution.bottleneck.sample(noise, copies, draws)
            logits = solution.cut.behind(z, solution.features, copies)
            for name, column in _answers(classifier, logits, targets.repeat_interleave(copies)).items():
                found[name] += column.view(-1, copies).sum(1) / self.copies
        return {"information": solution.bottleneck.information(noise).flatten(1).mean(1), **found}


def _joined(groups: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    return {name: torch.cat([group[name] for group in groups]) for name in groups[0]}


def _answers(classifier: Classifier, logits: torch.Tensor, targets: torch.Tensor) -> dict[str, torch.Tensor]:
    """Whether the target is the first, and among the first five, as 0 and 1, and its probability [N]."""
    best = logits.topk(min(5, logits.shape[1]), dim=1).indices == targets[:, None]
    probability = classifier.select(logits, targets, "probability").double()
    return {"top1": best[:, 0].double(), "top5": best.any(1).double(), "probability": probability}

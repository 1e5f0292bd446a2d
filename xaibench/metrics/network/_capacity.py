"""How much information a bottleneck keeps, and what the network still recognises behind it, over beta."""

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from ...datasets.base import Batch
from ...methods.bottleneck._bottleneck import LAYER, Masking, noise_share
from ...methods.bottleneck.iba import Solution
from ...methods.context import Context
from ...models.classifier import Classifier
from ...rng import draw_seeds, from_seeds
from ..base import Columns, Metric, Statistic

# What there is at each beta.
CURVES = ("information", "top1", "top5", "probability")


@dataclass(kw_only=True, eq=False)
class Capacity(Masking, Metric):
    """The columns of a row of Table 4 (Schulz et al. 2020), whoever finds the masks.

    betas: of the sweep. beta: the one of the statistics. layer: of the bottleneck. copies: noisy ones of each image.

    Columns: information, top1, top5, probability at `beta` (shares of noisy copies, and the target's mean
    probability over them, p(y | x, beta) of figure 4); clean_top1, clean_top5, clean_probability of the network as it
    is; initial_information, initial_top1, initial_top5, initial_probability with the mask as it starts; and over
    `betas` information_curve, top1_curve, top5_curve, probability_curve. top5 counts among as many classes as there
    are, if fewer.
    """

    betas: tuple[float, ...] = (0.01, 0.1, 1.0, 10.0, 100.0)
    layer: str = LAYER
    copies: int = 10

    x_label = "beta"
    reads_maps = False
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

    @property
    def all_betas(self) -> list[float]:
        """Those of the sweep and the one of the statistics, each once."""
        return list(dict.fromkeys((*self.betas, self.beta)))

    def axes(self, classifier: Classifier) -> dict[str, torch.Tensor]:
        betas = torch.tensor(self.betas, dtype=torch.float64)
        return dict.fromkeys((f"{name}_curve" for name in CURVES), betas)

    @abstractmethod
    def solutions(
        self,
        classifier: Classifier,
        batch: Batch,
        beta: float,
        draws: Sequence[torch.Generator],
        fitted: Mapping[str, torch.Tensor],
    ) -> Iterator[Solution]:
        """The bottlenecks of a batch with the masks of this beta, a few images at a time."""

    def evaluate(self, classifier: Classifier, batch: Batch, maps: torch.Tensor | None, context: Context) -> Columns:
        """Columns, see above. fitted: what `fit` returned."""
        seeds = draw_seeds(context.generators)
        found = {}
        for beta in self.all_betas:
            # Every beta draws the same noise, so that a difference between two is beta's.
            draws = from_seeds(seeds)
            solutions = list(self.solutions(classifier, batch, beta, draws, context.fitted))
            found[beta] = _joined([self._measure(classifier, s, s.noise, batch.targets, draws) for s in solutions])
        draws = from_seeds(seeds)
        starts = [self._measure(classifier, s, self._start(s), batch.targets, draws) for s in solutions]
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

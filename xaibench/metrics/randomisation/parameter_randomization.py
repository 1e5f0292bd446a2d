"""Parameter randomisation: does a map change when the network's layers are made new?"""

from dataclasses import dataclass, replace
from typing import Literal

import torch

from ...datasets.base import Batch
from ...job import Job
from ...methods.context import Context
from ...models.classifier import Classifier
from ...models.randomise import BatchNorm, Init, Mode, Randomisation, blocks
from ..base import Columns, Statistic
from ..similarity import EITHER, MEASURES, SimilarityMetric, averaged, further_statistics

# SSIM from which a map counts as unchanged.
SAME = 1 - 1e-6
# What has a curve over the steps.
CURVES = (*MEASURES, *EITHER)


@dataclass(eq=False)
class ParameterRandomization(SimilarityMetric):
    """Similarity of a map to the maps of the same image and target by networks with randomised layers.

    Adebayo et al. 2018: what does not change with the parameters cannot explain what they have learned. The verdict of
    Nuzzo 2020 is a failure if the map stays as it is (SSIM 1) while the topmost layer is random: `unchanged` is the
    share of such images. The score itself is the mean SSIM over all randomised steps, the lower the better; it is to
    be held against the floors, which no method can fall far below (see `SimilarityMetric`). A low score is needed, and
    proves nothing: noise has it too. `sobel` and `constant`, which never ask the network, have 1 everywhere.

    mode: see `Randomisation`. `cascade` and `independent` go from the top of the network to the bottom, `bottom_up`
        the other way; each step is one block. blocks: at most so many, the topmost of one layer.
    seeds: randomisations per step, 0, 1, ...; similarities are averaged over them. init, batch_norm: see
        `Randomisation`.
    target: `original` explains in every network the class that is explained in the trained one; `predicted` the class
        that each network itself predicts (Khakzar 2022, chapter 4).
    The others: see `SimilarityMetric`.

    Columns: ssim, spearman, spearman_abs, hog, ssim_signed, ssim_either_sign, means over the steps; flipped;
    first, the SSIM of the first step; unchanged, 0 or 1; the floors; seed_std, the standard deviation of SSIM over the
    seeds, mean over the steps; and the curves of all that is a mean over the steps, over the number of the step, from 1
    (the network as it was trained is no step). The curve of seed_std is `ssim_seed_std_curve`; one seed has none.
    """

    version = 3
    x_label = "randomised blocks"
    statistics = (
        Statistic("ssim", "lower", "ssim", low=-1, high=1, unit="SSIM, mean over the steps"),
        Statistic("ssim_first", "lower", "first", low=-1, high=1, unit="SSIM after the first step"),
        Statistic("unchanged", "lower", "unchanged", kind="proportion", low=0, high=1, unit="share of images"),
        *further_statistics(),
    )

    mode: Mode = "cascade"
    blocks: int = 8
    seeds: int = 3
    init: Init = "he_normal"
    batch_norm: BatchNorm = "reset"
    target: Literal["original", "predicted"] = "original"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("blocks", "seeds"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: expected a positive number")

    def needs(self, job: Job, classifier: Classifier) -> dict[str, Job]:
        """The Jobs of the randomised networks, by their weights state."""
        names = [str(state) for states in self._steps(classifier) for state in states]
        return {name: replace(job, weights_state=name, target=self.target) for name in names}

    def axes(self, classifier: Classifier) -> dict[str, torch.Tensor]:
        steps = torch.arange(1, len(self._steps(classifier)) + 1)
        drawn = (*CURVES, "ssim_seed_std") if self.seeds > 1 else CURVES
        return {f"{name}_curve": steps for name in drawn}

    def evaluate(self, classifier: Classifier, batch: Batch, maps: torch.Tensor, context: Context) -> Columns:
        steps, by_seed = [], []
        for states in self._steps(classifier):
            found = [self.similarities(maps, context.others[str(state)], context.sign_of_logit) for state in states]
            steps.append(averaged(found))
            by_seed.append(torch.stack([similarity["ssim"] for similarity in found]))
        curves = {name: torch.stack([step[name] for step in steps], dim=1) for name in CURVES}
        columns = {name: curve.mean(1) for name, curve in curves.items()}
        columns |= {f"{name}_curve": curve for name, curve in curves.items()}
        columns |= {"first": by_seed[0].mean(0), "unchanged": (by_seed[0].amin(0) >= SAME).double()}
        if self.seeds > 1:
            columns["ssim_seed_std_curve"] = torch.stack([values.std(0) for values in by_seed], dim=1)
            columns["seed_std"] = columns["ssim_seed_std_curve"].mean(1)
        return self.compared(classifier, batch, maps, columns, context)

    def _steps(self, classifier: Classifier) -> list[list[Randomisation]]:
        """The states of every step, one per seed."""
        names = blocks(classifier, self.blocks)
        if self.mode != "bottom_up":
            names.reverse()
        return [
            [Randomisation(self.mode, name, seed, self.init, self.batch_norm) for seed in range(self.seeds)]
            for name in names
        ]

"""Sensitivity-n: do the sums of a map over sets of features follow what the output loses without them?"""

import functools
import math
from typing import Any, Literal

import torch
from torch.nn import functional

from ... import rng
from ...datasets.base import Batch
from ...errors import Refusal
from ...methods.context import Context
from ...models.classifier import Classifier
from ...perturb.perturbed import masked
from ..base import Columns, Statistic
from ..ranking import Collapse, Sign, tile_grid
from ._perturbation import Fill, Removal, RemovalMetric, check_tile, drops

# Values of bool and double matrices that exist at a time, to bound the memory of large images.
PART = 2**22


class SensitivityN(RemovalMetric):
    """The correlation over random sets T of n features between sum_T of the map and f(x) - f(x without T).

    Ancona et al. 2018, definition 5: per image and n the Pearson correlation over the sets, of the explained output
    (the logit, unless `output` says otherwise). The score is the mean over n of an image's correlations, and its
    mean over images; the curve over n is in correlation_curve. 1 for the exact map of a linear model at every n, 0
    in expectation for a random map, the negated score for a negated map. Any positive factor leaves it as it is.

    Where all sums or all drops of an image are equal, or all drops are rounding (see `_perturbation.drops`), the
    correlation is undefined at this n, and with it the image's score: it is excluded and counted. A constant map is
    undefined on every image. (A released code puts 0 for it, which lifts flat maps above those that are wrong; a mean
    over the n that are left would choose the easier n for sparse maps.)

    The sets belong to the sample, not to the method under test. One family of sets is drawn from a fixed seed; each
    image sees it through its own random renaming of the features, so each of its sets is uniformly random among
    those of its size, without replacement. What the model answers is shared by all methods, and a method's sums are
    one matrix product. (InputIBA shows all images the same sets. The IBA paper's code draws pixels with replacement
    and takes one correlation over all sets of all images.)

    tile: side of a feature in pixels: 1, or square tiles; those cut off by the far edges are features too. All
        channels of a feature are removed together.
    points: how many values of n. sizes: `log`, evenly spaced logarithms from 1 to `largest`, or `percent`, evenly
        spaced up to `largest`; both are rounded to whole features, and each n occurs once. (Of sentences, which
        differ in length, each percentage has its sets, as in InputIBA's code: in a short one several have the same n.)
    largest: the largest n, as a share of the features. At all features there is one set: nothing correlates.
    sets: index sets for each n.
    fill: what a removed feature shows. sigma: of the blur, for `fill: blur`, in pixels.
    collapse, sign: see `Metric`.

    Columns: sensitivity_n; correlation_curve, over n as a share of the features.
    """

    version = 2
    x_label = "share of features removed"
    statistics = (
        Statistic("sensitivity_n", "higher", "sensitivity_n", low=-1, high=1, unit="mean over n of Pearson's r"),
    )

    def __init__(
        self,
        tile: int = 1,
        points: int = 16,
        sizes: Literal["log", "percent"] = "log",
        largest: float = 0.8,
        sets: int = 100,
        fill: Fill = "zero",
        sigma: float = 5.0,
        collapse: Collapse | None = None,
        sign: Sign = "signed",
    ) -> None:
        if tile < 1:
            raise ValueError(f"tile={tile}: expected a positive number of pixels")
        if points < 1:
            raise ValueError(f"points={points}: expected at least 1")
        if not 0 < largest < 1:
            raise ValueError(f"largest={largest}: expected a share of the features, between 0 and 1")
        if sets < 3:
            raise ValueError(f"sets={sets}: expected at least 3; any two points lie on a line")
        self.tile, self.points, self.sizes, self.largest, self.sets = tile, points, sizes, largest, sets
        self.removal = Removal(fill, sigma)
        self.remove_by(self.removal)
        self.collapse, self.sign = collapse, sign

    def check(self, classifier: Classifier) -> None:
        self.removal.check(classifier)
        check_tile(self.tile, classifier)
        if classifier.places == "words" and self.sizes == "log":
            raise Refusal(
                f"metric.sizes=log: the sentences that {classifier.name} reads differ in length, and with it the "
                "values of n: set metric.sizes=percent"
            )
        if self._features(classifier) < 2:
            height, width = classifier.input_size[1:]
            raise Refusal(f"tile={self.tile}: an input of {height}x{width} pixels would be a single feature")

    def cost(self, classifier: Classifier) -> tuple[int, int]:
        return 1 + len(self._counts(classifier)) * self.sets * self.removal.passes, 0

    def responses_spec(self) -> dict[str, Any]:
        names = ("tile", "points", "sizes", "largest", "sets")
        return {**self.removal.spec(), **{name: getattr(self, name) for name in names}}

    def respond(self, classifier: Classifier, batch: Batch, context: Context) -> dict[str, torch.Tensor]:
        """renaming_seed [B]: of each image's renaming. drops [B, points * sets]: f(x) - f(x without each set)."""
        inputs, (height, width) = batch.inputs, batch.inputs.shape[2:]
        draws = self.removal.draw(context.generators)
        seeds = rng.draw_seeds(context.generators)
        family = self._family(classifier).to(inputs.device)
        of_pixel = _features_of_pixels(height, width, self.tile).to(inputs.device)
        names = _renamings(seeds, family.shape[1]).to(inputs.device)[:, of_pixel]

        def mask(sample: int, part: slice, out: torch.Tensor) -> None:
            out.copy_(family[part][:, names[sample]].view_as(out))

        removes = [one.of(classifier, batch, draws) for one in self.removal.versions(context.fitted)]
        clean = classifier.scores(inputs, batch.targets)
        answers = [masked(classifier, inputs, remove, mask, len(family), batch.targets) for remove in removes]
        without = torch.stack(answers).mean(0)
        lost = drops(clean.repeat_interleave(len(family) // self.sets), without.reshape(-1, self.sets))
        return {**draws, "renaming_seed": seeds, "drops": lost.view_as(without)}

    def axes(self, classifier: Classifier) -> dict[str, torch.Tensor]:
        if classifier.places == "words":
            shares = torch.arange(1, self.points + 1, dtype=torch.float64) / self.points
            return {"correlation_curve": self.largest * shares}
        counts = torch.tensor(self._counts(classifier), dtype=torch.float64)
        return {"correlation_curve": counts / self._features(classifier)}

    def evaluate(self, classifier: Classifier, batch: Batch, maps: torch.Tensor, context: Context) -> Columns:
        family = self._family(classifier).to(maps.device)
        values = functional.avg_pool2d(maps[:, None].double(), self.tile, ceil_mode=True, divisor_override=1).flatten(1)
        # Sets of one size: a constant taken off every feature changes no correlation, and a constant map is exactly 0.
        values = values - values.amin(1, keepdim=True)
        names = _renamings(context.responses["renaming_seed"], family.shape[1]).to(maps.device)
        renamed = torch.empty_like(values).scatter_(1, names, values)
        rows = max(1, PART // family.shape[1])
        sums = torch.cat([renamed @ part.double().T for part in family.split(rows)], dim=1)
        lost = context.responses["drops"].to(sums)
        shape = len(maps), -1, self.sets
        curve = _pearson(sums.view(shape), lost.view(shape))
        return {"sensitivity_n": curve.mean(1), "correlation_curve": curve}

    def _features(self, classifier: Classifier) -> int:
        return math.prod(tile_grid(*classifier.input_size[1:], self.tile))

    def _counts(self, classifier: Classifier) -> list[int]:
        """The values of n: ascending, at least 1 and at most all features but one; of words one for each point."""
        features = self._features(classifier)
        end = self.largest * features
        if self.sizes == "log":
            grid = torch.linspace(0, math.log(max(end, 1)), self.points, dtype=torch.float64).exp().tolist()
        else:
            grid = [end * step / self.points for step in range(1, self.points + 1)]
        counts = [min(max(round(n), 1), features - 1) for n in grid]
        return counts if classifier.places == "words" else sorted(set(counts))

    def _family(self, classifier: Classifier) -> torch.Tensor:
        return _index_sets(self._features(classifier), tuple(self._counts(classifier)), self.sets)


@functools.lru_cache(maxsize=1)
def _index_sets(features: int, counts: tuple[int, ...], sets: int) -> torch.Tensor:
    """The family, bool [len(counts) * sets, features]: for each n in `counts`, `sets` random sets of n features."""
    generator = rng.generator("sensitivity_n", features)
    family = torch.zeros(len(counts) * sets, features, dtype=torch.bool)
    for row, members in enumerate(family):
        members[torch.randperm(features, generator=generator)[: counts[row // sets]]] = True
    return family


def _renamings(seeds: torch.Tensor, features: int) -> torch.Tensor:
    """Each image's own permutation of the features, [B,N]: what each of its features is called in the family."""
    return torch.stack([torch.randperm(features, generator=g) for g in rng.from_seeds(seeds)])


def _features_of_pixels(height: int, width: int, tile: int) -> torch.Tensor:
    """The feature that each pixel belongs to, row by row: [H*W]."""
    across = tile_grid(height, width, tile)[1]
    return (torch.arange(height)[:, None] // tile * across + torch.arange(width) // tile).flatten()


def _pearson(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Pearson's correlation along the last dimension; NaN where x or y is constant up to rounding."""

    def standardised(values: torch.Tensor) -> torch.Tensor:
        centred = values - values.mean(-1, keepdim=True)
        norm = centred.norm(dim=-1, keepdim=True)
        constant = norm <= 1e-12 * values.norm(dim=-1, keepdim=True)
        return (centred / norm).masked_fill(constant, torch.nan)

    return (standardised(x) * standardised(y)).sum(-1).clamp(-1, 1)

"""Region perturbation: how fast the target's probability falls while regions are replaced by noise."""

from dataclasses import KW_ONLY, dataclass, replace
from typing import Any

import torch

from ...datasets.base import Batch
from ...errors import Refusal
from ...methods.context import Context
from ...models.classifier import Classifier
from ..base import Columns, Statistic
from ..ranking import places, tile_grid
from ._perturbation import Fill, PathMetric, check_tile, curve


@dataclass(eq=False)
class RegionPerturbation(PathMetric):
    """The area over the perturbation curve while the first L regions of the map's order are replaced.

    Samek et al. 2017: AOPC = 1 / (L + 1) <sum over k = 0..L of f(x) - f(x without k regions)>, most
    relevant first (MoRF), where a region shows values drawn at random. Higher is better. aopc_lerf is the same with
    the least relevant first (lower is better), and abpc = aopc - aopc_lerf the area between the two curves: 0 in
    expectation for a random map, the negated area for a negated map. aopc itself is far from 0 for a random map.

    Nothing is normalised: unlike the degradation score, it weighs an image by the probability that it can lose, and
    it sees the L first regions only.

    tile: side of a region in pixels; regions rank by the mean of the map. Take one that divides the image's side:
        slivers at the far edges are means of few pixels, so noisy maps put them first and last, where they lose
        little (at 64 pixels, 9 leaves 15 slivers of 64 regions).
    regions: L, at most as many as the image has.
    draws: how often both paths are run, each with noise of its own; curves are means over them. The noise belongs to
        the sample: every method meets the same. A fill that is not random has one draw.
    fill: the definition is `noise`, uniform pixel values. The others: see `PathMetric`.

    Columns: morf, lerf (the two areas), difference = morf - lerf; clean (f on the original); morf_curve and
    lerf_curve (f), over the share of regions replaced, from 0.
    """

    x_label = "share of regions replaced"
    statistics = (
        Statistic("aopc", "higher", "morf", low=-1, high=1, unit="probability"),
        Statistic("aopc_lerf", "lower", "lerf", low=-1, high=1, unit="probability"),
        Statistic("abpc", "higher", "difference", low=-1, high=1, unit="probability"),
    )

    tile: int = 9
    regions: int = 100
    draws: int = 1
    _: KW_ONLY
    fill: Fill = "noise"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tile < 1:
            raise ValueError(f"tile={self.tile}: expected a positive number of pixels")
        if self.regions < 1:
            raise ValueError(f"regions={self.regions}: expected at least 1")
        if self.draws < 1:
            raise ValueError(f"draws={self.draws}: expected at least 1")
        self.draws = self.draws if self.removal.draw([torch.Generator()]) else 1
        if self.output == "logit":
            morf, lerf, gap = (replace(s, low=None, high=None, unit="logit") for s in self.statistics)
            self.statistics = (morf, lerf, gap)

    def check(self, classifier: Classifier) -> None:
        super().check(classifier)
        check_tile(self.tile, classifier)
        if self._total(classifier) < 2:
            height, width = classifier.input_size[1:]
            raise Refusal(f"tile={self.tile}: an input of {height}x{width} pixels would be a single region")

    def cost(self, classifier: Classifier) -> tuple[int, int]:
        return 1 + 2 * len(self._counts(classifier)) * self.draws * self.removal.passes, 0

    def responses_spec(self) -> dict[str, Any]:
        return {**super().responses_spec(), "draws": self.draws}

    def respond(self, classifier: Classifier, batch: Batch, context: Context) -> dict[str, torch.Tensor]:
        """clean: the target's output on the original; and the seeds [B, draws] of a random fill."""
        draws = [self.removal.draw(context.generators) for _ in range(self.draws)]
        seeds = {name: torch.stack([draw[name] for draw in draws], dim=1) for name in draws[0]}
        return {**seeds, "clean": classifier.scores(batch.inputs, batch.targets, self.output)}

    def axes(self, classifier: Classifier) -> dict[str, torch.Tensor]:
        counts = torch.tensor([0, *self._counts(classifier)], dtype=torch.float64)
        return dict.fromkeys(("morf_curve", "lerf_curve"), counts / self._total(classifier))

    def evaluate(self, classifier: Classifier, batch: Batch, maps: torch.Tensor, context: Context) -> Columns:
        inputs, targets = batch.inputs, batch.targets
        order = places(maps.to(inputs.device), context.generators, self.tile)
        most_first = self._counts(classifier)
        # With the k least relevant regions replaced, the first ones of the order are kept.
        kept = [self._total(classifier) - count for count in most_first]
        clean = context.responses["clean"].to(inputs)
        seeds = {name: column for name, column in context.responses.items() if name != "clean"}
        morf, lerf = [], []
        for draw in range(self.draws):
            drawn = {name: column[:, draw] for name, column in seeds.items()}
            for removal in self.removal.versions(context.fitted):
                remove = removal.of(classifier, batch, drawn)
                morf.append(curve(classifier, inputs, remove, order, most_first, targets, self.output))
                lerf.append(curve(classifier, inputs, remove, order, kept, targets, self.output, keep=True))
        columns = {"clean": clean}
        for name, curves in (("morf", morf), ("lerf", lerf)):
            path = torch.cat([clean[:, None], torch.stack(curves).mean(0)], dim=1)
            columns |= {f"{name}_curve": path, name: clean - path.mean(1)}
        return columns | {"difference": columns["morf"] - columns["lerf"]}

    def _total(self, classifier: Classifier) -> int:
        down, across = tile_grid(*classifier.input_size[1:], self.tile)
        return down * across

    def _counts(self, classifier: Classifier) -> list[int]:
        """How many regions are replaced at each step after the original."""
        return list(range(1, min(self.regions, self._total(classifier)) + 1))

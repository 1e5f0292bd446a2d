"""Degradation: the area between least-relevant-first and most-relevant-first removal of image tiles."""

from dataclasses import KW_ONLY, dataclass

import torch

from ...datasets.base import Batch
from ...errors import Refusal
from ...methods.context import Context
from ...models.classifier import Classifier
from ..base import Columns, Statistic
from ..ranking import places, tile_grid
from ._perturbation import Fill, PathMetric, check_tile, counts_of, curve, drops


@dataclass(eq=False)
class Degradation(PathMetric):
    """Tiles are replaced one after another, most relevant first (MoRF) or least relevant first (LeRF).

    A good map makes the target's probability fall at once under MoRF and stay under LeRF. The score is that of
    Schulz et al. 2020: the area between the curves of s = (p - b) / (t1 - b), where t1 is the data set's mean top-1
    probability on the originals and b its mean probability of the target on fully degraded images. Rows hold raw
    probabilities; the statistics divide the means, since normalising each image by itself would blow up those that
    the model is unsure of. A perfect score is near 1, a random map's is 0, a negated map's the negated score.

    The x axis is the fraction of tiles removed, from 0 to 1 with both ends, and areas are trapezoids on it. (The
    released code takes the plain mean of about 100 points: with X points its LeRF - MoRF is ours times (X - 1) / X.)

    tile: side of a square tile in pixels. Tiles rank by their mean (full ones therefore as by their sum), those cut
        off by the far edges included. MoRF and LeRF are one order read from both ends.
    steps: number of equal steps along the path, rounded to whole tiles; None removes one tile at a time.
    fill: the papers say "a constant", their code is the image's mean per channel.
    The others: see `PathMetric`.

    An image whose range is rounding alone (see `_perturbation.drops`) counts with a range of 0 and is marked in
    `rounding`; where that is so of all, the model answers the fill as it answers the images, and the statistics are
    undefined.

    Columns: morf, lerf (raw areas, in units of the output), area = lerf - morf; top1 (largest output on the
    original), degraded (the target's output once everything is removed), range = top1 - degraded; rounding
    (0 or 1); morf_above and lerf_above, which are morf and lerf less degraded; morf_curve and lerf_curve.
    """

    version = 2
    x_label = "share of tiles removed"
    statistics = (
        Statistic("degradation", "higher", "area", per="range", unit="(p - b) / (t1 - b)"),
        Statistic("morf", "lower", "morf_above", per="range", unit="(p - b) / (t1 - b)"),
        Statistic("lerf", "higher", "lerf_above", per="range", unit="(p - b) / (t1 - b)"),
    )

    tile: int = 8
    steps: int | None = 100
    _: KW_ONLY
    fill: Fill = "channel_mean"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tile < 1:
            raise ValueError(f"tile={self.tile}: expected a positive number of pixels")
        if self.steps is not None and self.steps < 1:
            raise ValueError(f"steps={self.steps}: expected a positive number of steps, or null for one tile at a time")

    def check(self, classifier: Classifier) -> None:
        super().check(classifier)
        check_tile(self.tile, classifier)
        if self._counts(classifier)[-1] < 2:
            height, width = classifier.input_size[1:]
            raise Refusal(f"tile={self.tile}: an input of {height}x{width} pixels would be a single tile")

    def cost(self, classifier: Classifier) -> tuple[int, int]:
        # Both ends are shared by the two paths.
        return 1 + (2 * (len(self._counts(classifier)) - 2) + 1) * self.removal.passes, 0

    def respond(self, classifier: Classifier, batch: Batch, context: Context) -> dict[str, torch.Tensor]:
        """clean: the target's output on the original; top1: the largest; degraded: the target's on the fill."""
        logits = classifier.logits(batch.inputs)
        outputs = classifier.probabilities(logits) if self.output == "probability" else logits
        draws = self.removal.draw(context.generators)
        return {
            **draws,
            "clean": classifier.select(logits, batch.targets, self.output),
            "top1": outputs.amax(-1),
            "degraded": self.removal.emptied(classifier, batch, draws, context.fitted, self.output),
        }

    def axes(self, classifier: Classifier) -> dict[str, torch.Tensor]:
        counts = torch.tensor(self._counts(classifier), dtype=torch.float64)
        return dict.fromkeys(("morf_curve", "lerf_curve"), counts / counts[-1])

    def evaluate(self, classifier: Classifier, batch: Batch, maps: torch.Tensor, context: Context) -> Columns:
        inputs, inner = batch.inputs, self._counts(classifier)[1:-1]
        removes = [one.of(classifier, batch, context.responses) for one in self.removal.versions(context.fitted)]
        order = places(maps.to(inputs.device), context.generators, self.tile)
        clean, top1, degraded = (context.responses[name].to(inputs) for name in ("clean", "top1", "degraded"))

        def path(counts: list[int], keep: bool) -> torch.Tensor:
            scores = [
                curve(classifier, inputs, remove, order, counts, batch.targets, self.output, keep) for remove in removes
            ]
            return torch.cat([clean[:, None], torch.stack(scores).mean(0), degraded[:, None]], dim=1)

        morf_curve = path(inner, keep=False)
        # With the k least relevant tiles removed, the first tiles - k of the order are kept.
        lerf_curve = path([self._counts(classifier)[-1] - count for count in inner], keep=True)
        x = self.axes(classifier)["morf_curve"].to(inputs)
        morf, lerf = torch.trapezoid(morf_curve, x), torch.trapezoid(lerf_curve, x)
        span = drops(top1, degraded[:, None])[:, 0]
        return {
            "morf": morf,
            "lerf": lerf,
            "area": lerf - morf,
            "top1": top1,
            "degraded": degraded,
            "range": span,
            "rounding": ((span == 0) & (top1 != degraded)).double(),
            "morf_above": morf - degraded,
            "lerf_above": lerf - degraded,
            "morf_curve": morf_curve,
            "lerf_curve": lerf_curve,
        }

    def _counts(self, classifier: Classifier) -> list[int]:
        down, across = tile_grid(*classifier.input_size[1:], self.tile)
        return counts_of(down * across, self.steps)

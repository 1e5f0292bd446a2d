"""ROAD: removal of the most and the least relevant pixels, which a linear imputer infers from their neighbours."""

from dataclasses import replace
from typing import Any, Literal

import torch

from ...datasets.base import Batch
from ...errors import Refusal
from ...methods.context import Context
from ...models.classifier import Classifier
from ..base import Columns, Metric, Statistic
from ..ranking import Collapse, Sign, places
from ._perturbation import Removal, check_output, curve


class Road(Metric):
    """The target's output after a share of the pixels is removed, most (MoRF) or least relevant first (LeRF).

    Remove And Debias (Rong et al. 2022): a pixel filled with one colour shows where it was removed, and the shape of
    the removed region alone can give the class away. ROAD fills it with what its neighbours say (`imputer`) plus
    noise of 0.01 of the pixel range, the same noise for every method. Pixels are removed with all their channels,
    exactly round(share * H * W) of them: where a map has ties, as below a ReLU, a random order seeded by the sample
    decides.

    The paper reports the curves of MoRF and LeRF. The headline, as pytorch-grad-cam's `ROADCombined`, is the mean over
    the shares of (LeRF - MoRF) / 2: above 0 for a map that finds what the model uses, 0 on average for a random one,
    and the negated score for a negated map. `morf` and `lerf` are plain means over the shares.

    percentages: of the pixels, rising, between 0 and 100.
    output: `probability` (softmax), `logit`, or `accuracy`: 1 where the target is the model's prediction, else 0, whose
        mean is the accuracy that the paper shows (with `target: label`).
    collapse, sign: see `Metric`.

    Columns: road, morf, lerf; morf_curve and lerf_curve, over the share of pixels removed.
    """

    x_label = "share of pixels removed"
    statistics: tuple[Statistic, ...] = (
        Statistic("road", "higher", "road", low=-0.5, high=0.5, unit="half the difference of outputs"),
        Statistic("morf", "lower", "morf", low=0, high=1, unit="output"),
        Statistic("lerf", "higher", "lerf", low=0, high=1, unit="output"),
    )

    def __init__(
        self,
        percentages: tuple[float, ...] = (10.0, 20.0, 30.0, 40.0, 50.0, 60.0, 70.0, 80.0, 90.0),
        output: Literal["probability", "logit", "accuracy"] = "probability",
        collapse: Collapse | None = None,
        sign: Sign = "signed",
    ) -> None:
        rising = all(low < high for low, high in zip((0, *percentages), (*percentages, 100)))
        if not percentages or not rising:
            raise ValueError(f"percentages={list(percentages)}: expected rising numbers between 0 and 100")
        self.percentages, self.output = tuple(percentages), output
        self.removal = Removal("linear")
        self.collapse, self.sign = collapse, sign
        if output == "logit":
            self.statistics = tuple(replace(s, low=None, high=None) for s in self.statistics)

    def check(self, classifier: Classifier) -> None:
        check_output(self.output, classifier)
        classifier.require_pictures("road infers a removed pixel from those around it")
        counts, (height, width) = self._counts(classifier), classifier.input_size[1:]
        if len({0, *counts, height * width}) < len(counts) + 2:
            raise Refusal(f"percentages={list(self.percentages)}: too close for an input of {height}x{width} pixels")

    def cost(self, classifier: Classifier) -> tuple[int, int]:
        return 2 * len(self.percentages), 0

    def responses_spec(self) -> dict[str, Any]:
        return self.removal.spec()

    def respond(self, classifier: Classifier, batch: Batch, context: Context) -> dict[str, torch.Tensor]:
        """The seed of each image's noise."""
        return self.removal.draw(context.generators)

    def axes(self, classifier: Classifier) -> dict[str, torch.Tensor]:
        _, height, width = classifier.input_size
        counts = torch.tensor(self._counts(classifier), dtype=torch.float64)
        return dict.fromkeys(("morf_curve", "lerf_curve"), counts / (height * width))

    def evaluate(self, classifier: Classifier, batch: Batch, maps: torch.Tensor, context: Context) -> Columns:
        remove = self.removal.of(classifier, batch, context.responses)
        order = places(maps.to(batch.inputs.device), context.generators)
        counts, pixels = self._counts(classifier), order[0].numel()

        def path(counts: list[int], keep: bool) -> torch.Tensor:
            return curve(classifier, batch.inputs, remove, order, counts, batch.targets, self.output, keep)

        morf_curve = path(counts, keep=False)
        lerf_curve = path([pixels - count for count in counts], keep=True)
        morf, lerf = morf_curve.mean(1), lerf_curve.mean(1)
        return {
            "road": (lerf - morf) / 2,
            "morf": morf,
            "lerf": lerf,
            "morf_curve": morf_curve,
            "lerf_curve": lerf_curve,
        }

    def _counts(self, classifier: Classifier) -> list[int]:
        _, height, width = classifier.input_size
        return [round(percentage / 100 * height * width) for percentage in self.percentages]

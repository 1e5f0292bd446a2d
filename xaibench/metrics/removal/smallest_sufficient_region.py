"""Smallest sufficient region: does the network recognise the class in the tightest crop around the salient region?"""

from typing import Literal

import torch
from torch.nn import functional

from ...datasets.base import Batch
from ...errors import Refusal
from ...methods.context import Context
from ...models.classifier import Classifier
from ...perturb.perturbed import perturbed
from ..base import Columns, Metric, Statistic
from ..ranking import Collapse

SMALLEST = 0.05  # areas below this share of the image count as this: the definition's constant


class SmallestSufficientRegion(Metric):
    """The saliency metric of Dabkowski and Gal 2017: s = log(max(a, 0.05)) - log(p); lower is better.

    The salient region's bounding box covers the share a of the image; p is the target's softmax probability for the
    image cropped to that box and resized (bilinearly, each side by itself) to the network's input. Nothing is filled
    in, but the object appears larger than in training. A map that selects the whole image, such as a constant one,
    scores -log(p) of the original: a map is of use if it is below `constant` in the leaderboard. The least possible
    value is log(0.05) = -3.0.

    The headline is the mean over the images. -log(p) has no upper bound, so that a few crops in which the class is
    lost decide it; `median` is the same column's median. One far pixel above the threshold blows the box up, and then
    the score is that of the whole image. How a map becomes a region is an option here:

    threshold, of: a pixel is salient if it is at least `threshold` times the map's maximum (`of: max`; boxes around
        CAMs take 0.2, Zhou et al. 2016) or times its mean (`of: mean`; Zhang et al. 2018 make boxes so).
    sign: `positive` (negative values are 0) or `absolute`. collapse: see `Metric`.

    A map without a positive value has no salient region: undefined (NaN). So has one where no pixel reaches the
    threshold, which takes `of: mean`. A probability of 0 counts as the smallest number of its type.

    Columns: smallest_sufficient_region, area (a), probability (p).
    """

    statistics = tuple(
        Statistic(name, "lower", "smallest_sufficient_region", kind=kind, low=-3.0, unit="log area - log p")
        for name, kind in (("smallest_sufficient_region", "mean"), ("median", "median"))
    )

    def __init__(
        self,
        threshold: float = 0.2,
        of: Literal["max", "mean"] = "max",
        collapse: Collapse | None = None,
        sign: Literal["positive", "absolute"] = "positive",
    ) -> None:
        if not threshold > 0 or (of == "max" and threshold > 1):
            expected = "a share of the maximum, above 0 and at most 1" if of == "max" else "a positive multiple"
            raise ValueError(f"threshold={threshold}: expected {expected}")
        self.threshold, self.of = threshold, of
        self.collapse, self.sign = collapse, sign

    def check(self, classifier: Classifier) -> None:
        classifier.require_pictures("smallest_sufficient_region enlarges a crop to the size of the picture")
        if not classifier.has_classes:
            raise Refusal(f"smallest_sufficient_region: {classifier.name} has no classes, hence no probability")

    def cost(self, classifier: Classifier) -> tuple[int, int]:
        return 1, 0

    def evaluate(self, classifier: Classifier, batch: Batch, maps: torch.Tensor, context: Context) -> Columns:
        inputs = batch.inputs
        boxes, defined = self._boxes(maps.to(inputs.device))
        corners = boxes.tolist()

        def paint(sample: int, part: slice, out: torch.Tensor) -> None:
            top, bottom, left, right = corners[sample]
            crop = inputs[sample, None, :, top:bottom, left:right]
            out.copy_(functional.interpolate(crop, inputs.shape[2:], mode="bilinear", align_corners=False))

        probability = perturbed(classifier, inputs, 1, paint, batch.targets, "probability")[:, 0]
        top, bottom, left, right = boxes.to(inputs).unbind(1)
        area = (bottom - top) * (right - left) / (inputs.shape[2] * inputs.shape[3])
        smallest = torch.finfo(probability.dtype).tiny
        columns = {
            "smallest_sufficient_region": area.clamp(min=SMALLEST).log() - probability.clamp(min=smallest).log(),
            "area": area,
            "probability": probability,
        }
        return {name: column.where(defined, torch.nan) for name, column in columns.items()}

    def _boxes(self, maps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The bounding boxes (top, bottom, left, right) [B,4], ends excluded, of maps [B,H,W], and which are defined.

        An undefined box is the whole image.
        """
        values = maps.flatten(1)
        level = values.amax(1) if self.of == "max" else values.double().mean(1)
        region = maps >= self.threshold * level[:, None, None]
        region &= (level > 0)[:, None, None]
        defined = region.flatten(1).any(1)
        region |= ~defined[:, None, None]
        sides = []
        for lines in (region.any(2), region.any(1)):
            lines = lines.int()
            sides += [lines.argmax(1), lines.shape[1] - lines.flip(1).argmax(1)]
        return torch.stack(sides, 1), defined

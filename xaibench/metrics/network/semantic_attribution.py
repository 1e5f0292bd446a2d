"""Semantic attribution: of what the unit that contributes most to an answer is a detector."""

from collections.abc import Sequence
from typing import Any

import torch

from ...datasets.base import Batch, Dataset, Samples
from ...methods.context import Context
from ...methods.gradients.integrated_gradients import Quadrature, points
from ...methods.gradients.semantic_attribution import contributions, sizes, whole
from ...models.classifier import Classifier
from ..base import Columns, Metric, Statistic
from ._dissection import Order, detected, dissected, others, unions
from .network_dissection import NetworkDissection
from .quality import slugs


class SemanticAttribution(Metric):
    """What the top units of a population of images know (Khakzar 2022, section 9.2): it scores no map.

    The top unit of an image is the one that the method `semantic_attribution` shows: with the largest sum over places
    of |integrated contribution| to the explained output. Units have the concepts that `network_dissection` finds them
    to be detectors of, here on the images of the fit split.

    known                 share of the images whose top unit is a detector
    present               of these, the share that show the top unit's concept
    present_other_image   of the same images, the share of those where another image of the split shows it: what
                          `present` would be if the top unit had nothing to do with the image
    top_share             the top unit's part in the sum of all units' sizes
    gap                   |sum of the contributions - (f(a) - f(0))| / |f(a) - f(0)|: the error of the integral
    top_<concept>         share of the images whose top unit is a detector of the concept

    layer, quantile, level, order, concepts: as for `network_dissection`. steps, quadrature: as for the method.

    Columns: those named, and unit, the number of the top unit. `present` of an image whose top unit is no detector is
    NaN.
    """

    reads_maps = False
    fit_parameters = ("layer", "quantile", "order", "concepts")

    def __init__(
        self,
        layer: str = "last_conv",
        quantile: float = 0.005,
        level: float = 0.04,
        order: Order = "upsample",
        concepts: Sequence[str] | None = None,
        steps: int = 20,
        quadrature: Quadrature = "riemann_middle",
    ) -> None:
        self.dissection = NetworkDissection(layer, quantile, level, order, concepts)
        self.steps, self.points = steps, points(quadrature, steps)

    def check(self, classifier: Classifier) -> None:
        self.dissection.check(classifier)

    def check_data(self, dataset: Dataset) -> None:
        self.dissection.check_data(dataset)

    def statistics_on(self, dataset: Dataset, classifier: Classifier) -> tuple[Statistic, ...]:
        share: dict[str, Any] = dict(kind="proportion", low=0, high=1)
        names = slugs(self.dissection.concepts_of(dataset))
        return (
            Statistic("known", "higher", "known", unit="share of images", **share),
            Statistic("present", "higher", "present", unit="share of images whose top unit is a detector", **share),
            Statistic("present_other_image", "lower", "present_other_image", unit="as present", **share),
            Statistic("top_share", "higher", "top_share", low=0, high=1, unit="share of the contributions"),
            Statistic("gap", "lower", "gap", low=0, unit="share of the change"),
            *(Statistic(f"top_{name}", "higher", f"top_{k}", unit="share of images", **share)
              for k, name in enumerate(names)),
        )  # fmt: skip

    def cost(self, classifier: Classifier) -> tuple[int, int]:
        return (3 + self.steps, self.steps)

    def fit(self, classifier: Classifier, samples: Samples, generator: torch.Generator) -> dict[str, torch.Tensor]:
        """`iou` [C,K] of every concept and unit on these samples; 0 with a concept that none of them shows."""
        threshold, names = self.dissection.thresholds(classifier, samples), self.dissection.concepts_of(samples.dataset)
        within = torch.zeros(len(names), len(threshold), dtype=torch.float64, device=threshold.device)
        either = torch.zeros_like(within)
        for batch in samples:
            masks = samples.concepts(batch.samples, names)
            layer, order = self.dissection.layer, self.dissection.order
            marked, (inside,) = dissected(classifier, layer, threshold, batch, [masks], order)
            within += inside.double().sum(0)
            either += unions(inside, marked, masks.flatten(2).sum(2)).double().sum(0)
        return {"iou": within / either.clamp_min(1)}

    def evaluate(self, classifier: Classifier, batch: Batch, maps: torch.Tensor | None, context: Context) -> Columns:
        names, layer = self.dissection.concepts_of(context.data.dataset), self.dissection.layer
        inputs = batch.inputs.to(classifier.dtype)
        found = contributions(classifier, layer, inputs, batch.targets, self.points).double()
        size = sizes(found)
        unit = size.argmax(1)
        concept = detected(context.fitted["iou"], self.dissection.level).to(unit.device)[unit]
        known = concept >= 0
        another = others(batch.samples, len(context.data.dataset), context.generators)
        shown, elsewhere = (
            context.data.concepts(ids, names).flatten(2).any(2).gather(1, concept.clamp_min(0)[:, None])[:, 0]
            for ids in (batch.samples, another)
        )
        change = whole(classifier, layer, inputs, batch.targets).double()
        return {
            "unit": unit,
            "known": known,
            "present": torch.where(known, shown.double(), torch.nan),
            "present_other_image": torch.where(known, elsewhere.double(), torch.nan),
            "top_share": size.amax(1) / size.sum(1),
            "gap": (found.sum((1, 2, 3)) - change).abs() / change.abs(),
            **{f"top_{k}": concept == k for k in range(len(names))},
        }

"""Network dissection: how many units of a layer are detectors of a concept."""

from collections.abc import Sequence
from typing import Any, get_args

import torch

from ...datasets.base import Batch, Dataset, Samples
from ...errors import one_of
from ...methods.context import Context
from ...models.classifier import Classifier
from ...models.cut import feature_shape
from ..base import Columns, Metric, Statistic, Units
from ._dissection import Order, Tops, chosen, dissected, made_new, others, thresholds
from .quality import slugs

# Images of each unit that a report shows.
PICTURES = 5
# The tables of the network itself, and those of the two controls: (what it is called, inside, marked, area).
NETWORK = ("", "inside", "marked", "area")
CONTROLS = (
    ("_random_weights", "inside_random_weights", "marked_random_weights", "area"),
    ("_other_masks", "inside_other_masks", "marked", "area_other_masks"),
)


class NetworkDissection(Metric):
    """Which units of a layer mark the pixels of which concept (Bau et al. 2017; Khakzar 2022, section 9.2).

    A unit's threshold T is such that its activation is above it at a share `quantile` of all places of all images of
    the fit split. In an image that is scored it marks the pixels where its feature map, enlarged to the input, is above
    T. IoU of a unit and a concept: of the images that show the concept, the sum of the pixels that both have by the
    sum of those that either has. A unit is a detector of the concept with which its IoU is largest, if above `level`.

    detectors              number of units that are detectors, out of all the layer has; only comparisons of like layers
                           mean something, since `quantile` and `level` change it
    variety                number of concepts that have a detector
    best_iou               mean over the concepts of the largest IoU that a unit has with it
    *_random_weights       the same with all weights of the network drawn anew, and thresholds of its own
    *_other_masks          the same with every image's concepts taken from another image of the split: what a unit gets
                           for being somewhere, not for being at the concept
    detectors_<concept>    how many of the detectors are the concept's
    best_iou_<concept>     the largest IoU of a unit with it
    ceiling_<concept>      what that cannot exceed, since no unit marks more pixels than the largest does. Where it is
                           below `level` the concept can have no detector

    layer: an alias or module path of feature maps. quantile: of the places that lie above a unit's threshold. level:
    the IoU that makes a detector. order: `upsample` enlarges and then compares, as the formulas have it; `threshold`
    compares first, so that a unit marks whole places. concepts: which of the data set's; null for all. seed: of the
    random weights.

    Columns: concepts (how many of them an image shows). Tables per image, in pixels: inside [C,K], marked [K], area
    [C], and those of the controls.
    """

    reads_maps = False
    fit_parameters = ("layer", "quantile", "seed")

    def __init__(
        self,
        layer: str = "last_conv",
        quantile: float = 0.005,
        level: float = 0.04,
        order: Order = "upsample",
        concepts: Sequence[str] | None = None,
        seed: int = 0,
    ) -> None:
        one_of("order", order, get_args(Order))
        for name, value in (("quantile", quantile), ("level", level)):
            if not 0 < value < 1:
                raise ValueError(f"{name}={value}: expected a share between 0 and 1")
        self.layer, self.quantile, self.level, self.order = layer, quantile, level, order
        self.concepts, self.seed = None if concepts is None else tuple(concepts), seed

    def check(self, classifier: Classifier) -> None:
        feature_shape(classifier, self.layer)

    def check_data(self, dataset: Dataset) -> None:
        self.concepts_of(dataset)

    def statistics_on(self, dataset: Dataset, classifier: Classifier) -> tuple[Statistic, ...]:
        units = feature_shape(classifier, self.layer)[0]
        names = slugs(self.concepts_of(dataset))
        found = []
        for suffix, inside, marked, area in (NETWORK, *CONTROLS):
            for kind, most, unit in (
                ("detectors", units, "units"),
                ("variety", len(names), "concepts"),
                ("best_iou", 1, "IoU"),
            ):
                read: dict[str, Any] = {"column": inside, "per": marked, "units": Units(self.level, area)}
                found.append(Statistic(kind + suffix, "higher", kind=kind, low=0, high=most, unit=unit, **read))
        for concept, name in enumerate(names):
            for kind, most, unit in (("detectors", units, "units"), ("best_iou", 1, "IoU"), ("ceiling", 1, "IoU")):
                read = {"column": "inside", "per": "marked", "units": Units(self.level, "area", concept)}
                found.append(Statistic(f"{kind}_{name}", "higher", kind=kind, low=0, high=most, unit=unit, **read))
        return tuple(found)

    def cost(self, classifier: Classifier) -> tuple[int, int]:
        return (2, 0)

    def fit(self, classifier: Classifier, samples: Samples, generator: torch.Generator) -> dict[str, torch.Tensor]:
        """`thresholds` [K] of the network's units, `thresholds_random_weights` [K] of the control's, and, to look at,
        `top_images` [K,PICTURES], those in which a unit is highest, with its maps there, `top_maps` [K,PICTURES,h,w].
        """
        tops = Tops(PICTURES)
        return {
            "thresholds": thresholds(classifier, self.layer, samples, self.quantile, tops),
            "thresholds_random_weights": self.thresholds(made_new(classifier, self.seed), samples),
            "top_images": tops.images.T,
            "top_maps": tops.maps.transpose(0, 1),
        }

    def thresholds(self, classifier: Classifier, samples: Samples) -> torch.Tensor:
        """T [K], the threshold of every unit of a network."""
        return thresholds(classifier, self.layer, samples, self.quantile)

    def evaluate(self, classifier: Classifier, batch: Batch, maps: torch.Tensor | None, context: Context) -> Columns:
        names = self.concepts_of(context.data.dataset)
        masks = context.data.concepts(batch.samples, names)
        other = context.data.concepts(others(batch.samples, len(context.data.dataset), context.generators), names)
        threshold, random = (context.fitted[name] for name in ("thresholds", "thresholds_random_weights"))
        marked, inside = dissected(classifier, self.layer, threshold, batch, [masks, other], self.order)
        control = made_new(classifier, self.seed)
        control_marked, control_inside = dissected(control, self.layer, random, batch, [masks], self.order)
        area = masks.flatten(2).sum(2)
        return {
            "concepts": (area > 0).sum(1),
            "area": area,
            "marked": marked,
            "inside": inside[0],
            "inside_other_masks": inside[1],
            "area_other_masks": other.flatten(2).sum(2),
            "inside_random_weights": control_inside[0],
            "marked_random_weights": control_marked,
        }

    def concepts_of(self, dataset: Dataset) -> tuple[str, ...]:
        """The concepts that are looked for, see `chosen`."""
        return chosen(dataset, self.concepts)

"""Multi-layer information bottleneck attribution: what several depths agree on."""

import math
from dataclasses import dataclass, fields
from typing import Literal

import torch
from torch.nn import functional as F

from ...datasets.base import Samples
from ...errors import one_of
from ...models.classifier import Classifier
from ..context import Context
from ._bottleneck import LAYER, estimate, require_layer, require_loss
from .iba import IBA, PerSample


@dataclass(kw_only=True, eq=False)
class IBAMultilayer(PerSample):
    """The product of thresholded IBA maps of several layers (Khakzar 2022, chapter 8, eq. 5), or their sum.

    layers: from early to late. combine: `product`, or `sum` (an ablation of the released code) of the maps, each
        divided by its L2 norm, so that every layer weighs the same; thresholds play no part in it.
    thresholds: one per layer, in multiples of the map's own root mean square; null keeps
        that map continuous, in bits per pixel. The thesis thresholds all of them and states no value; the released
        code keeps the first one and cuts the maps, divided by their L2 norm, at 0.006 of 224x224 pixels, which is
        0.006 * 224 = 1.344 root mean squares at every size.
    The other parameters as for `IBA`, the same for every layer. Each layer's noise is drawn after that of the layer
    before it.
    """

    layers: tuple[str, ...] = (f"{LAYER}_early", LAYER, f"{LAYER}_late")
    thresholds: tuple[float | None, ...] = (None, 1.344, 1.344)
    combine: Literal["product", "sum"] = "product"

    fit_parameters = ("layers",)
    added = {"combine": "product"}

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("combine", self.combine, ("product", "sum"))
        if not self.layers or len(self.layers) != len(self.thresholds):
            names, values = len(self.layers), len(self.thresholds)
            raise ValueError(f"layers has {names} names and thresholds {values} values: one each")
        if any(threshold is not None and threshold < 0 for threshold in self.thresholds):
            raise ValueError(f"thresholds={list(self.thresholds)}: expected values of 0 or more, or null")
        shared = {field.name: getattr(self, field.name) for field in fields(PerSample)}
        self.parts = [IBA(layer=layer, **shared) for layer in self.layers]

    def check(self, classifier: Classifier) -> None:
        for layer in self.layers:
            require_layer(classifier, layer, "method.layers")
        require_loss(classifier, self.loss)

    def cost(self, classifier: Classifier) -> tuple[int, int]:
        forwards, backwards = zip(*(part.cost(classifier) for part in self.parts))
        return (sum(forwards), sum(backwards))

    def fit(self, classifier: Classifier, samples: Samples, generator: torch.Generator) -> dict[str, torch.Tensor]:
        """The moments of every layer, in one pass over the samples."""
        return estimate(classifier, self.layers, samples)

    def attribute(
        self, classifier: Classifier, inputs: torch.Tensor, targets: torch.Tensor, context: Context
    ) -> torch.Tensor:
        maps = [part.attribute(classifier, inputs, targets, context) for part in self.parts]
        if self.combine == "sum":
            return torch.stack([normalised(one) for one in maps]).sum(0)
        return torch.stack([agreement(one, threshold) for one, threshold in zip(maps, self.thresholds)]).prod(0)


def normalised(maps: torch.Tensor) -> torch.Tensor:
    """Maps [B,1,H,W], each divided by its L2 norm; one without any information stays 0."""
    return F.normalize(maps.flatten(1), dim=1, eps=torch.finfo(maps.dtype).tiny).view_as(maps)


def agreement(maps: torch.Tensor, threshold: float | None) -> torch.Tensor:
    """Maps [B,1,H,W] -> 1 where a map reaches `threshold` times its root mean square, else 0; null changes nothing.

    A map without any information reaches nothing.
    """
    if threshold is None:
        return maps
    norms = maps.flatten(1).norm(dim=1).view(-1, 1, 1, 1) / math.sqrt(maps[0].numel())
    return ((maps >= threshold * norms) & (norms > 0)).to(maps)

"""Multi-layer information bottleneck attribution: what several depths agree on."""

import math
from typing import Any, Literal

import torch

from ...models.classifier import Classifier
from ..base import Fitted
from ._bottleneck import LAYER, Loss, estimate, require_layer, require_loss
from .iba import IBA


class IBAMultilayer(Fitted):
    """The product of thresholded IBA maps of several layers (Khakzar 2022, chapter 8, eq. 5).

    layers: from early to late. thresholds: one per layer, in multiples of the map's own root mean square; null keeps
        that map continuous, in bits per pixel. The thesis thresholds all of them and states no value; the released
        code keeps the first one and cuts the maps, divided by their L2 norm, at 0.006 of 224x224 pixels, which is
        0.006 * 224 = 1.344 root mean squares at every size.
    The other parameters as for `IBA`, the same for every layer. Each layer's noise is drawn after that of the layer
    before it.
    """

    fit_parameters = ("layers",)

    def __init__(
        self,
        layers: list[str] = (f"{LAYER}_early", LAYER, f"{LAYER}_late"),
        thresholds: list[float | None] = (None, 1.344, 1.344),
        beta: float = 10.0,
        steps: int = 10,
        learning_rate: float = 1.0,
        copies: int = 10,
        smoothing: float = 1.0,
        initial: float = 5.0,
        min_std: float = 0.01,
        min_active: float = 0.01,
        channels: Literal["sum", "max"] = "sum",
        loss: Loss = "cross_entropy",
        value: float | None = None,
    ) -> None:
        if not layers or len(layers) != len(thresholds):
            raise ValueError(f"layers has {len(layers)} names and thresholds {len(thresholds)} values: one each")
        if any(threshold is not None and threshold < 0 for threshold in thresholds):
            raise ValueError(f"thresholds={list(thresholds)}: expected values of 0 or more, or null")
        self.layers, self.thresholds, self.loss = tuple(layers), tuple(thresholds), loss
        shared = (beta, steps, learning_rate, copies, smoothing, initial, min_std, min_active, channels, loss, value)
        self.parts = [IBA(layer, *shared) for layer in layers]

    def check(self, classifier: Classifier) -> None:
        for layer in self.layers:
            require_layer(classifier, layer, "method.layers")
        require_loss(classifier, self.loss)

    def cost(self, classifier: Classifier) -> tuple[int, int]:
        forwards, backwards = zip(*(part.cost(classifier) for part in self.parts))
        return (sum(forwards), sum(backwards))

    def fit(self, classifier: Classifier, samples: Any, generator: torch.Generator) -> dict[str, torch.Tensor]:
        """The moments of every layer, in one pass over the samples."""
        return estimate(classifier, self.layers, samples)

    def attribute(
        self,
        classifier: Classifier,
        inputs: torch.Tensor,
        targets: torch.Tensor,
        generators: list[torch.Generator],
        fitted: dict[str, torch.Tensor],
        labels: torch.Tensor | None = None,
        **context: Any,
    ) -> torch.Tensor:
        product = torch.ones_like(inputs[:, :1])
        for part, threshold in zip(self.parts, self.thresholds):
            maps = part.attribute(classifier, inputs, targets, generators, fitted, labels)
            product = product * agreement(maps, threshold)
        return product


def agreement(maps: torch.Tensor, threshold: float | None) -> torch.Tensor:
    """Maps [B,1,H,W] -> 1 where a map reaches `threshold` times its root mean square, else 0; null changes nothing.

    A map without any information reaches nothing.
    """
    if threshold is None:
        return maps
    norms = maps.flatten(1).norm(dim=1).view(-1, 1, 1, 1) / math.sqrt(maps[0].numel())
    return ((maps >= threshold * norms) & (norms > 0)).to(maps)

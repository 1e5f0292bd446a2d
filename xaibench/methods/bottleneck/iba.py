"""Information bottleneck attribution, the per-sample bottleneck."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from ...datasets.base import Samples
from ...errors import Refusal, one_of
from ...models.classifier import Classifier
from ...models.cut import Cut, Features
from ...models.tokens import token_grid
from ..base import Fitted
from ..context import Context
from ._bottleneck import (
    LAYER,
    Bottleneck,
    Loss,
    Optimisation,
    bits_per_pixel,
    estimate,
    find_mask,
    layer_noise,
    mean_mask,
    noise_share,
    prediction_losses,
    require_layer,
    require_loss,
)


@dataclass(frozen=True)
class Solution:
    """The bottlenecks of a few images, solved. rows: which ones. noise [b,C,H,W]: the final masks' shares of noise.

    cut and features let the part of the network behind the layer be run again with these masks in force.
    """

    rows: slice
    bottleneck: Bottleneck
    noise: torch.Tensor
    cut: Cut
    features: Features

    @property
    def information(self) -> torch.Tensor:
        """Information that the final masks let through, per feature, in nats [b,C,H,W]."""
        return self.bottleneck.information(self.noise)


@dataclass(kw_only=True, eq=False)
class PerSample(Optimisation, Fitted):
    """The parameters of IBA at any number of layers, besides those of the mask and its optimisation.

    channels: `sum` (theses) or `max` over channels (Heurich 2021).
    loss: what keeps the prediction, see `bottleneck.prediction_losses`; all but the cross entropies are for networks
        with a scalar output. value: what a scalar output aims at by `squared_error` and `binary_cross_entropy`; null
        for each sample's own label.
    """

    sign_of_logit = False

    channels: Literal["sum", "max"] = "sum"
    loss: Loss = "cross_entropy"
    value: float | None = None


@dataclass(kw_only=True, eq=False)
class OneLayer(PerSample):
    """The bottleneck at one layer: how its mask is found.

    layer: an alias or module path; `input` puts the bottleneck on the image itself.
    """

    layer: str = LAYER

    kind = Bottleneck
    sign = 1.0  # of the prediction loss in what is minimised
    fit_parameters = ("layer",)

    def check(self, classifier: Classifier) -> None:
        require_layer(classifier, self.layer)
        require_loss(classifier, self.loss)

    def cost(self, classifier: Classifier) -> tuple[int, int]:
        """One pass up to the layer, then steps x copies of the part behind it, counted as whole passes."""
        passes = self.steps * self.copies
        return (1 + passes + (self.loss == "deviation"), passes)

    def fit(self, classifier: Classifier, samples: Samples, generator: torch.Generator) -> dict[str, torch.Tensor]:
        """Mean, standard deviation and share of non-zero values of every feature of the layer."""
        return estimate(classifier, [self.layer], samples)

    def solve(
        self,
        classifier: Classifier,
        inputs: torch.Tensor,
        targets: torch.Tensor,
        generators: Sequence[torch.Generator],
        fitted: Mapping[str, torch.Tensor],
        labels: torch.Tensor | None = None,
    ) -> Iterator[Solution]:
        """The final masks, for as many images at a time as fit into a batch with their copies.

        labels [B]: what `squared_error` without `value` aims at.
        """
        cut = Cut(classifier, self.layer, inputs[:1])
        images = max(1, classifier.batch_size // self.copies)
        for start in range(0, len(inputs), images):
            rows = slice(start, start + images)
            with torch.no_grad():
                features = cut.before(inputs[rows])
                goal = self._goal(classifier, cut, features, targets[rows], None if labels is None else labels[rows])
            bottleneck = self.bottleneck(features.values, fitted, inputs.shape[2:])

            def losses(
                z: torch.Tensor,
                copies: int,
                features: Features = features,
                rows: slice = rows,
                goal: torch.Tensor = goal,
            ) -> torch.Tensor:
                logits = cut.behind(z, features, copies)
                repeated = targets[rows].repeat_interleave(copies)
                goals = goal.repeat_interleave(copies)
                return self.sign * prediction_losses(self.loss, classifier, logits, repeated, goals)

            with torch.enable_grad():
                alpha = find_mask(bottleneck, losses, self, generators[rows], classifier.batch_size)
            noise = noise_share(alpha, self.smoothing, bottleneck.grid)
            yield Solution(rows, bottleneck, noise, cut, features)

    def bottleneck(self, features: torch.Tensor, fitted: Mapping[str, torch.Tensor], size: Sequence[int]) -> Bottleneck:
        """The noise that goes with the layer's statistics; features of inputs of this size (H,W)."""
        grid = token_grid(features.shape[1], size) if features.dim() == 3 else None
        return layer_noise(self.kind, features, fitted, self.layer, self.min_std, self.min_active, grid)

    def _goal(
        self,
        classifier: Classifier,
        cut: Cut,
        features: Features,
        targets: torch.Tensor,
        labels: torch.Tensor | None,
    ) -> torch.Tensor:
        """What the output is compared with, one value per image; 0 for a loss that compares it with nothing."""
        scalar = self.loss == "binary_cross_entropy" and classifier.outputs == 1
        if self.loss == "deviation":
            # A copy, since a network may write into what it gets.
            return classifier.select(cut.behind(features.values.clone(), features), targets, "raw")
        if self.value is None and (self.loss == "squared_error" or scalar):
            if labels is None:
                raise Refusal("method.value=null aims at the labels, and these inputs have none: set a number")
            return labels.to(features.values)
        return features.values.new_full((len(targets),), self.value or 0.0)


@dataclass(kw_only=True, eq=False)
class IBA(OneLayer):
    """Per-sample information bottleneck (Schulz et al. 2020, section 3; Sixt 2022, chapter 3).

    Noise is added to the features R of one layer, and the mask lambda is found that hides most of R while the
    prediction of the target stays: min CE + beta L_I.

    map: `bits`, the information of the final mask, in bits per input pixel, >= 0: its sum is the number of bits that
        pass the layer. `mask` (Khakzar 2022, section 6.2): the final mask itself, the mean of lambda over the channels,
        enlarged bilinearly, in [0, 1]; `channels` plays no part in it.
    layer: an alias or module path; `input` puts the bottleneck on the image itself. At a transformer's tokens the
        class token gets noise as well; the map shows the patches.
    The other parameters: see `Masking`, `Optimisation` and `PerSample`.
    """

    map: Literal["bits", "mask"] = "bits"

    added = {"map": "bits"}

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("map", self.map, ("bits", "mask"))

    def attribute(
        self, classifier: Classifier, inputs: torch.Tensor, targets: torch.Tensor, context: Context
    ) -> torch.Tensor:
        solutions = self.solve(classifier, inputs, targets, context.generators, context.fitted, context.labels)
        size = inputs.shape[2:]
        if self.map == "mask":
            return torch.cat([mean_mask(solution.noise, size) for solution in solutions])
        return torch.cat([bits_per_pixel(s.information, size, self.channels) for s in solutions])

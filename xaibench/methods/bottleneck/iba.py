"""Information bottleneck attribution, the per-sample bottleneck."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch

from ...errors import Refusal
from ...models.classifier import Classifier
from ...models.cut import Cut, Features
from ..base import Fitted
from ._bottleneck import (
    LAYER,
    Bottleneck,
    Loss,
    Optimisation,
    bits_per_pixel,
    estimate,
    find_mask,
    layer_noise,
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


class IBA(Fitted):
    """Per-sample information bottleneck (Schulz et al. 2020, section 3; Sixt 2022, chapter 3).

    Noise is added to the features R of one layer, and the mask lambda is found that hides most of R while the
    prediction of the target stays: min CE + beta L_I. The map is the information of the final mask, in bits per
    input pixel, >= 0: its sum is the number of bits that pass the layer.

    layer: an alias or module path; `input` puts the bottleneck on the image itself.
    beta: weight of the information per feature, L_I / k, so that `beta: 10` is the theses' "10/k" times the sum.
    steps, learning_rate: of Adam on alpha. copies: noisy copies per step.
    smoothing: sigma in features of the Gaussian inside lambda = blur(sigmoid(alpha)); 0 turns it off.
    initial: where alpha starts; 5 lets nearly everything through (lambda = 0.993).
    min_std: least standard deviation of a feature. min_active: features other than 0 in at most this share of the
        fitted samples are taken out. (The paper's own code has neither, and estimates behind a ReLU with mean 0 and
        the deviation of the non-zero values; these two are the later library's. The thesis does not say.)
    channels: `sum` (theses) or `max` over channels (Heurich 2021).
    loss: what keeps the prediction, see `bottleneck.prediction_losses`; all but `cross_entropy` are for networks
        with a scalar output. value: the output that `squared_error` aims at; null for each sample's own label.
    """

    kind: type[Bottleneck] = Bottleneck
    sign = 1.0  # of the prediction loss in what is minimised

    fit_parameters = ("layer",)

    def __init__(
        self,
        layer: str = LAYER,
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
        if min_std <= 0:
            raise ValueError(f"min_std={min_std}: expected a positive number")
        if not 0 <= min_active < 1:
            raise ValueError(f"min_active={min_active}: expected a share in [0, 1)")
        self.settings = Optimisation(beta, steps, learning_rate, copies, smoothing, initial)
        self.layer, self.min_std, self.min_active = layer, min_std, min_active
        self.channels, self.loss, self.value = channels, loss, value

    def check(self, classifier: Classifier) -> None:
        require_layer(classifier, self.layer)
        require_loss(classifier, self.loss)

    def cost(self, classifier: Classifier) -> tuple[int, int]:
        """One pass up to the layer, then steps x copies of the part behind it, counted as whole passes."""
        passes = self.settings.steps * self.settings.copies
        return (1 + passes + (self.loss == "deviation"), passes)

    def fit(self, classifier: Classifier, samples: Any, generator: torch.Generator) -> dict[str, torch.Tensor]:
        """Mean, standard deviation and share of non-zero values of every feature of the layer."""
        return estimate(classifier, [self.layer], samples)

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
        solutions = self.solve(classifier, inputs, targets, generators, fitted, labels)
        size = inputs.shape[2:]
        return torch.cat([bits_per_pixel(s.information, size, self.channels) for s in solutions])

    def solve(
        self,
        classifier: Classifier,
        inputs: torch.Tensor,
        targets: torch.Tensor,
        generators: list[torch.Generator],
        fitted: dict[str, torch.Tensor],
        labels: torch.Tensor | None = None,
    ) -> Iterator[Solution]:
        """The final masks, for as many images at a time as fit into a batch with their copies.

        labels [B]: what `squared_error` without `value` aims at.
        """
        settings = self.settings
        cut = Cut(classifier, self.layer, inputs[:1])
        images = max(1, classifier.batch_size // settings.copies)
        for start in range(0, len(inputs), images):
            rows = slice(start, start + images)
            with torch.no_grad():
                features = cut.before(inputs[rows])
                goal = self._goal(classifier, cut, features, targets[rows], None if labels is None else labels[rows])
            bottleneck = self.bottleneck(features.values, fitted)

            def losses(z: torch.Tensor, copies: int, features=features, rows=rows, goal=goal) -> torch.Tensor:
                logits = cut.behind(z, features, copies)
                repeated = targets[rows].repeat_interleave(copies)
                goals = goal.repeat_interleave(copies)
                return self.sign * prediction_losses(self.loss, classifier, logits, repeated, goals)

            with torch.enable_grad():
                alpha = find_mask(bottleneck, losses, settings, generators[rows], classifier.batch_size)
            yield Solution(rows, bottleneck, noise_share(alpha, settings.smoothing), cut, features)

    def bottleneck(self, features: torch.Tensor, fitted: dict[str, torch.Tensor]) -> Bottleneck:
        """The noise that goes with the layer's statistics."""
        return layer_noise(self.kind, features, fitted, self.layer, self.min_std, self.min_active)

    def _goal(
        self,
        classifier: Classifier,
        cut: Cut,
        features: Features,
        targets: torch.Tensor,
        labels: torch.Tensor | None,
    ) -> torch.Tensor:
        """What the output is compared with, one value per image; 0 for a loss that compares it with nothing."""
        if self.loss == "deviation":
            # A copy, since a network may write into what it gets.
            return classifier.select(cut.behind(features.values.clone(), features), targets, "raw")
        if self.loss == "squared_error" and self.value is None:
            if labels is None:
                raise Refusal("method.value=null aims at the labels, and these inputs have none: set a number")
            return labels.to(features.values)
        return features.values.new_full((len(targets),), self.value or 0.0)

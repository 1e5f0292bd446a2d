"""Real-time saliency: a network that is trained to emit the mask of a class in one pass."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from ...datasets.base import Samples
from ...errors import one_of
from ...models.classifier import Classifier
from ...models.cut import activations
from ...perturb.fills import FILLS, Fill, check_fill, filled
from ..base import Fitted
from ..bottleneck._bottleneck import (
    LAYER,
    SURE,
    estimate,
    require,
    require_loss,
    require_maps,
    require_positive,
    seeded,
)
from ..bottleneck.iba_readout import restored, stacked, standardised, trained
from ..context import Context

MASKER = "masker."


@dataclass(kw_only=True, eq=False)
class RealTimeSaliency(Fitted):
    """The mask of a class that a network emits which was trained on the fit split: [B,1,H,W] from 0 to 1.

    Dabkowski & Gal 2017. For a mask m, with p the explained class's softmax probability and x(m) the image where m is 1
    and its fill where it is 0, the loss of an image and its label is

        smoothness TV(m) + area mean(m) - log p(x(m)) + destroy p(x(1 - m))^power

    with TV the squares of differences between neighbours, over the number of pixels. What the mask shows keeps the
    class, what it leaves takes it away, and it is small and smooth. The masker reads layers of the explained network,
    whose weights stay as they are. The last of them is let through where its features point along a vector of the
    class, sigmoid(features . vector), which is learnt; all are stacked at the size of the first, and 1x1 convolutions
    with a ReLU between them make the mask's logit of each place, enlarged bilinearly.

    It is a small masker: the paper has a U-Net on a ResNet-50, draws the fill anew for each image, and is also shown
    classes that an image does not have. The weights of the loss are ours, for `shapes`.

    readouts: what is read, layers with feature maps. width: hidden channels.
    fill: what the image is replaced by, one of the fill words; `blur` is itself under a Gaussian of `sigma` pixels.
    smoothness, area, destroy, power: of the loss, see above. epochs, batch_size, learning_rate: of Adam.
    min_std: least deviation of a feature, which is standardised by its mean and deviation over the fit split.
    Raises ValueError for figures out of range and another word.
    """

    sign_of_logit = False

    readouts: tuple[str, ...] = (LAYER, "last_conv")
    width: int = 32
    fill: Fill = "blur"
    sigma: float = 10.0
    smoothness: float = 1.0
    area: float = 3.0
    destroy: float = 5.0
    power: float = 0.3
    epochs: int = 10
    batch_size: int = 16
    learning_rate: float = 3e-3
    min_std: float = 0.01

    def __post_init__(self) -> None:
        if not self.readouts:
            raise ValueError("readouts=[]: expected at least one layer")
        one_of("fill", self.fill, FILLS)
        require(self, 0, "smoothness", "area", "destroy")
        require(self, 1, "width", "epochs", "batch_size")
        require_positive(self, "sigma", "power", "learning_rate", "min_std")

    def check(self, classifier: Classifier) -> None:
        classifier.require_pictures("real_time_saliency makes masks of pixels")
        check_fill(self.fill, classifier, "method.fill")
        for layer in self.readouts:
            require_maps(classifier, layer, "real_time_saliency", "method.readouts")
        require_loss(classifier, "cross_entropy")

    def cost(self, classifier: Classifier) -> tuple[int, int]:
        """One pass per map; training is not counted."""
        return (1, 0)

    def fit(self, classifier: Classifier, samples: Samples, generator: torch.Generator) -> dict[str, torch.Tensor]:
        """Moments of the layers, and the weights of the trained masker, `masker.<name>`."""
        fitted = estimate(classifier, self.readouts, samples)
        widths = [len(fitted[f"{layer}.mean"]) for layer in self.readouts]
        masker = seeded(lambda: Masker(widths, self.width, classifier.outputs), generator)

        def loss(inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
            return self.loss(
                classifier, inputs, targets, self._masks(classifier, masker, fitted, inputs, targets)
            ).sum()

        trained(masker, classifier, samples, generator, self, loss)
        return fitted | {MASKER + name: tensor.cpu() for name, tensor in masker.state_dict().items()}

    def loss(
        self, classifier: Classifier, inputs: torch.Tensor, targets: torch.Tensor, masks: torch.Tensor
    ) -> torch.Tensor:
        """The loss of each of at most `batch_size` images [B,C,H,W] under a mask [B,1,H,W]: [B]; differentiable."""
        fills = filled(inputs, self.fill, classifier.preprocessing, self.sigma)
        kept, left = (
            classifier.softmax_logits(classifier.module(torch.lerp(fills, inputs, shown))).log_softmax(1)
            for shown in (masks, 1 - masks)
        )
        log_kept, log_left = (logs.gather(1, targets[:, None])[:, 0] for logs in (kept, left))
        variation = sum(masks.diff(dim=dim).square().flatten(1).sum(1) for dim in (2, 3)) / masks[0].numel()
        destroyed = log_left.exp().clamp(min=SURE) ** self.power
        return self.smoothness * variation + self.area * masks.flatten(1).mean(1) - log_kept + self.destroy * destroyed

    def attribute(
        self, classifier: Classifier, inputs: torch.Tensor, targets: torch.Tensor, context: Context
    ) -> torch.Tensor:
        widths = [len(context.fitted[f"{layer}.mean"]) for layer in self.readouts]
        masker = restored(
            classifier,
            context.fitted,
            MASKER,
            lambda own: Masker(widths, self.width, len(own["classes.weight"])),
        )
        with torch.no_grad():
            masks = [
                self._masks(classifier, masker, context.fitted, inputs[part], targets[part])
                for part in classifier.chunks(len(inputs))
            ]
        return torch.cat(masks)

    def _masks(
        self,
        classifier: Classifier,
        masker: nn.Module,
        fitted: Mapping[str, torch.Tensor],
        inputs: torch.Tensor,
        targets: torch.Tensor,
    ) -> torch.Tensor:
        """The masks [B,1,H,W] of at most `batch_size` images."""
        seen = activations(classifier, self.readouts, inputs)
        logits = masker(standardised(fitted, seen, self.readouts, self.min_std), targets)
        return functional.interpolate(logits, inputs.shape[2:], mode="bilinear", align_corners=False).sigmoid()


class Masker(nn.Module):
    """From readouts [B,c,h,w] of several layers and classes [B] to the logits of a mask [B,1,H,W], as large as the
    first of them. widths: c of each. width: hidden channels. classes: how many there are."""

    def __init__(self, widths: Sequence[int], width: int, classes: int) -> None:
        super().__init__()
        self.classes = nn.Embedding(classes, widths[-1])
        nn.init.normal_(self.classes.weight, std=widths[-1] ** -0.5)
        self.layers = nn.Sequential(nn.Conv2d(sum(widths), width, 1), nn.ReLU(), nn.Conv2d(width, 1, 1))

    def forward(self, readouts: Sequence[torch.Tensor], targets: torch.Tensor) -> torch.Tensor:
        *others, last = readouts
        gate = torch.einsum("bchw,bc->bhw", last, self.classes(targets))[:, None].sigmoid()
        logits: torch.Tensor = self.layers(stacked([*others, last * gate], readouts[0].shape[2:]))
        return logits

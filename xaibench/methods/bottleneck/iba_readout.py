"""Readout information bottleneck attribution: a network that predicts the mask in one pass."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeVar, cast

import torch
from torch import nn
from torch.nn import functional as F

from ...datasets.base import Samples
from ...errors import Refusal
from ...models.classifier import Classifier
from ...models.cut import Cut, activations, output_shape
from ..base import Fitted
from ..context import Context
from ._bottleneck import (
    LAYER,
    Bottleneck,
    Masking,
    bits_per_pixel,
    estimate,
    layer_noise,
    noise_share,
    require,
    require_loss,
    require_maps,
    require_positive,
    seeded,
)

READOUT = "readout."
Network = TypeVar("Network", bound=nn.Module)


@dataclass(kw_only=True, eq=False)
class Readout(Masking):
    """How the readout network is built and trained, for the method and for what measures its bottleneck.

    layer: where the bottleneck is. The paper: conv2_3 of ResNet-50 (layer1), conv3_1 of VGG-16 (features.10).
    readouts: what is read, `logits` included. The paper: layer1 to layer4 and fc; features 10, 17, 24, 28 and fc.
    epochs: 10 (the thesis's Table 3; its text says 20).
    learning_rate: 1e-5 is for the 1.3 million images of ImageNet and moves little on small data.
    batch_size: images per step. bound: alpha is kept in [-bound, bound].
    The other parameters: see `Masking`. The readouts are standardised with mean and deviation, as the library does; the
        paper's own code divides by the deviation only.
    """

    where = "method.layer"  # what sets the layer, in a refusal

    learning_rate: float = 1e-5
    layer: str = LAYER
    readouts: tuple[str, ...] = (LAYER, "last_conv", "logits")
    epochs: int = 10
    batch_size: int = 16
    bound: float = 5.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.readouts:
            raise ValueError("readouts=[]: expected at least one layer")
        require(self, 1, "epochs", "batch_size")
        require_positive(self, "bound")

    def check(self, classifier: Classifier) -> None:
        classifier.require_pictures("the readout's convolutions look at pixels around each")
        require_maps(classifier, self.layer, "iba_readout", self.where)
        for readout in self.readouts:
            if len(shape := output_shape(classifier, readout)) not in (1, 3):
                raise Refusal(f"readout '{readout}' of {classifier.name} is of shape {shape}: expected [C,H,W] or [C]")
        require_loss(classifier, "cross_entropy")

    def train(
        self,
        classifier: Classifier,
        samples: Samples,
        generator: torch.Generator,
        fitted: Mapping[str, torch.Tensor],
    ) -> dict[str, torch.Tensor]:
        """Weights of the readout network after training, `readout.<name>`. fitted: the moments of `all_layers`."""
        width = sum(len(fitted[f"{name}.mean"]) for name in self.readouts)
        network = seeded(lambda: readout_network(width, len(fitted[f"{self.layer}.mean"])), generator)
        with torch.no_grad():
            last = cast(nn.Conv2d, network[-1])
            last.weight.mul_(1e-3)
            cast(torch.Tensor, last.bias).fill_(self.initial)
        cut = None

        def loss(inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
            nonlocal cut
            cut = cut or Cut(classifier, self.layer, inputs[:1])
            return self._loss(classifier, cut, network, fitted, inputs, targets, generator)

        trained(network, classifier, samples, generator, self, loss)
        return {READOUT + name: tensor.cpu() for name, tensor in network.state_dict().items()}

    def mask(
        self, network: nn.Module, fitted: Mapping[str, torch.Tensor], seen: Mapping[str, torch.Tensor]
    ) -> tuple[Bottleneck, torch.Tensor]:
        """The bottleneck of a few images and the share of noise that the readout network gives it."""
        features = seen[self.layer]
        read = standardised(fitted, seen, self.readouts, self.min_std)
        alpha = network(stacked(read, features.shape[2:])).clamp(-self.bound, self.bound)
        noise = noise_share(alpha, self.smoothing)
        return layer_noise(Bottleneck, features, fitted, self.layer, self.min_std, self.min_active), noise

    def _loss(
        self,
        classifier: Classifier,
        cut: Cut,
        network: nn.Module,
        fitted: Mapping[str, torch.Tensor],
        inputs: torch.Tensor,
        targets: torch.Tensor,
        generator: torch.Generator,
    ) -> torch.Tensor:
        """Cross entropy + beta * mean information, summed over the images."""
        bottleneck, noise = self.mask(network, fitted, activations(classifier, self.all_layers, inputs))
        with torch.no_grad():
            features = cut.before(inputs)
        z = bottleneck.sample(noise, 1, [generator] * len(inputs))
        logits = classifier.softmax_logits(cut.behind(z, features))
        prediction = F.cross_entropy(logits, targets, reduction="sum")
        return prediction + self.beta * bottleneck.information(noise).flatten(1).mean(1).sum()

    @property
    def all_layers(self) -> list[str]:
        """The bottleneck's layer and those that are read."""
        return list(dict.fromkeys((self.layer, *self.readouts)))


@dataclass(kw_only=True, eq=False)
class IBAReadout(Readout, Fitted):
    """Readout bottleneck (Schulz et al. 2020, section 3.3): lambda is predicted from several layers of a clean pass.

    The readouts are standardised, resized to the bottleneck's size and stacked; three 1x1 convolutions with ReLU
    between them (n inputs -> n/2 -> 2c -> c channels) give alpha, which the same noise, smoothing and map as in
    `IBA` follow. They are trained with IBA's loss on the labels of the fit split, one noisy copy per image, and start
    at alpha = `initial` everywhere. After that a map is one pass of the network, without any noise.

    channels: the map is their `sum` or their `max`.
    The other parameters: see `Readout` and `Masking`.
    """

    sign_of_logit = False

    channels: Literal["sum", "max"] = "sum"

    def cost(self, classifier: Classifier) -> tuple[int, int]:
        """One pass per map; training is not counted."""
        return (1, 0)

    def fit(self, classifier: Classifier, samples: Samples, generator: torch.Generator) -> dict[str, torch.Tensor]:
        """Moments of all layers, and the weights of the trained readout network."""
        fitted = estimate(classifier, self.all_layers, samples)
        return fitted | self.train(classifier, samples, generator, fitted)

    def attribute(
        self, classifier: Classifier, inputs: torch.Tensor, targets: torch.Tensor, context: Context
    ) -> torch.Tensor:
        network = trained_network(classifier, context.fitted)
        maps = []
        with torch.no_grad():
            for part in classifier.chunks(len(inputs)):
                seen = activations(classifier, self.all_layers, inputs[part])
                bottleneck, noise = self.mask(network, context.fitted, seen)
                maps.append(bits_per_pixel(bottleneck.information(noise), inputs.shape[2:], self.channels))
        return torch.cat(maps)


def standardised(
    fitted: Mapping[str, torch.Tensor], seen: Mapping[str, torch.Tensor], layers: Sequence[str], min_std: float
) -> list[torch.Tensor]:
    """What a few images show at the layers, [B,C,h,w] each ([B,C,1,1] where there are no places), less their means and
    over their deviations, both of `estimate`."""
    found = []
    for name in layers:
        mean, std = (fitted[f"{name}.{moment}"].to(seen[name]) for moment in ("mean", "std"))
        values = (seen[name] - mean) / std.clamp_min(min_std)
        found.append(values[..., None, None] if values.dim() == 2 else values)
    return found


def stacked(readouts: Sequence[torch.Tensor], size: Sequence[int]) -> torch.Tensor:
    """Readouts [B,C,h,w] enlarged to one size, their channels one after the other."""
    enlarged = [F.interpolate(values, size=tuple(size), mode="bilinear", align_corners=False) for values in readouts]
    return torch.cat(enlarged, dim=1)


class Training(Protocol):
    """How a readout network is trained. batch_size: images per step of Adam."""

    epochs: int
    batch_size: int
    learning_rate: float


def trained(
    network: nn.Module,
    classifier: Classifier,
    samples: Samples,
    generator: torch.Generator,
    training: Training,
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
) -> None:
    """Train a network that reads a classifier, in place, by Adam on the samples and their labels.

    loss: of at most `classifier.batch_size` inputs and labels, summed over them. generator: of the order.
    """
    network.to(classifier.device, classifier.dtype)
    adam = torch.optim.Adam(network.parameters(), lr=training.learning_rate)
    for _ in range(training.epochs):
        order = torch.randperm(len(samples.ids), generator=generator).tolist()
        for start in range(0, len(order), training.batch_size):
            batch = samples.load([samples.ids[i] for i in order[start : start + training.batch_size]])
            inputs, targets = batch.inputs.to(classifier.dtype), batch.targets
            adam.zero_grad()
            for part in classifier.chunks(len(inputs)):
                loss(inputs[part], targets[part]).div(len(inputs)).backward()
            adam.step()


def trained_network(classifier: Classifier, weights: Mapping[str, torch.Tensor]) -> nn.Sequential:
    """The readout network with the weights of `Readout.train`, ready to be asked for this classifier's masks."""
    return restored(
        classifier,
        weights,
        READOUT,
        lambda own: readout_network(own["0.weight"].shape[1], own["4.weight"].shape[0]),
    )


def restored(
    classifier: Classifier,
    weights: Mapping[str, torch.Tensor],
    prefix: str,
    make: Callable[[Mapping[str, torch.Tensor]], Network],
) -> Network:
    """The network that `make` builds for its weights, those whose names begin with `prefix`, on the classifier's
    device and with them in it."""
    own = {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}
    with torch.device("meta"):  # no initial weights: they would draw from the global generator
        network = make(own)
    network.load_state_dict(own, assign=True)
    return network.to(classifier.device, classifier.dtype)


def readout_network(width: int, features: int) -> nn.Sequential:
    """Three 1x1 convolutions from `width` stacked readouts to alpha of `features` channels."""
    return nn.Sequential(
        nn.Conv2d(width, max(width // 2, 1), 1),
        nn.ReLU(),
        nn.Conv2d(max(width // 2, 1), 2 * features, 1),
        nn.ReLU(),
        nn.Conv2d(2 * features, features, 1),
    )

"""The information bottleneck seen from the image: noised features, run backwards through an invertible network."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, cast

import torch

from ...errors import Refusal, first_line
from ...models.classifier import Classifier
from ...models.invertible import invertible
from ..context import Context
from ._bottleneck import require, require_layer
from .iba import OneLayer, Solution


@dataclass(kw_only=True, eq=False)
class IBAInverted(OneLayer):
    """What the noise of IBA does to the image (Heurich 2021, section 4.3): maps [B,C,H,W] of images decoded from it.

    The mask of IBA is found at an inner layer of an invertible network, noised features Z_k are drawn with it, and
    x_k = decode(Z_k) with the channels that the image's own pass let leave before the layer. A pixel that every x_k has
    alike is one whose information the mask lets through, so that nothing has to be resized.

    statistic: `std`, minus the standard deviation (divided by `samples`) of x_k, so that what is kept ranks first;
        `mean`, the mean of x_k, a picture in which kept regions stay legible.
    samples: of x_k. They are streamed: memory does not grow with them.
    mask: `found` by IBA, or, as its control, `constant`: one share of noise for all features of an image, by which as
        many bits pass as by the mask that was found.
    The other parameters: see `OneLayer`; `channels` plays no part. (The thesis has beta 50 at layer 40 of 351, before
    the first fade-out, and does not state the number of samples.)
    Refused for networks without inverse, and for layers from which they cannot be decoded.
    """

    beta: float = 50.0
    layer: str = "bottleneck_early"
    statistic: Literal["std", "mean"] = "std"
    samples: int = 32
    mask: Literal["found", "constant"] = "found"

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, 1, "samples")

    def check(self, classifier: Classifier) -> None:
        super().check(classifier)
        shape = require_layer(classifier, self.layer)
        kept = invertible(classifier, "method=iba_inverted").encode(classifier.blank)[1]
        try:
            self._decoder(classifier)(classifier.blank.new_zeros(1, *shape), kept)
        except (ValueError, RuntimeError) as error:
            why = f"{classifier.name} decodes nothing from there: {first_line(error)}"
            raise Refusal(f"method.layer={self.layer}: {why}") from error

    def cost(self, classifier: Classifier) -> tuple[int, int]:
        forwards, backwards = super().cost(classifier)
        return (forwards + 1 + self.samples, backwards)

    def attribute(
        self, classifier: Classifier, inputs: torch.Tensor, targets: torch.Tensor, context: Context
    ) -> torch.Tensor:
        network, decode = invertible(classifier, "method=iba_inverted"), self._decoder(classifier)
        maps = []
        for solution in self.solve(classifier, inputs, targets, context.generators, context.fitted, context.labels):
            with torch.no_grad():
                kept = network.encode(inputs[solution.rows])[1]
                mean, std = self._moments(classifier, solution, decode, kept, context.generators[solution.rows])
            maps.append(mean if self.statistic == "mean" else -std)
        return torch.cat(maps)

    def _moments(
        self,
        classifier: Classifier,
        solution: Solution,
        decode: "Decoder",
        kept: Sequence[torch.Tensor],
        generators: Sequence[torch.Generator],
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and standard deviation [b,C,H,W] of the decoded samples, by Welford's update."""
        noise = solution.noise if self.mask == "found" else constant_noise(solution)
        at_once = max(1, classifier.batch_size // len(noise))
        mean, squares, count = torch.zeros(()), torch.zeros(()), 0
        for start in range(0, self.samples, at_once):
            copies = min(at_once, self.samples - start)
            z = solution.bottleneck.sample(noise, copies, generators)
            images = decode(z, [tensor.repeat_interleave(copies, 0) for tensor in kept])
            for image in images.unflatten(0, (len(noise), copies)).unbind(1):
                count += 1
                step = image - mean
                mean = mean + step / count
                squares = squares + step * (image - mean)
        return mean, (squares / count).sqrt()

    def _decoder(self, classifier: Classifier) -> "Decoder":
        """From values of the layer, and what left the flow, to images."""
        network, path = classifier.module, classifier.layers.get(self.layer, self.layer)
        decode_from = getattr(network, "decode_from", None)
        if decode_from is None:
            raise Refusal(f"method=iba_inverted needs `decode_from`, which {classifier.name} does not have")
        return lambda values, kept: cast(torch.Tensor, decode_from(path, values, kept))


Decoder = Callable[[torch.Tensor, Sequence[torch.Tensor]], torch.Tensor]


def constant_noise(solution: Solution, halvings: int = 60) -> torch.Tensor:
    """One share of noise for all features of an image [b,C,H,W], by which as many bits pass as by the mask found.

    The information falls as the share grows from 0 to 1, so that halving its logarithm's range finds it.
    """
    wanted = solution.information.flatten(1).sum(1)
    shape = (-1, *[1] * (solution.noise.ndim - 1))
    low = torch.full_like(wanted, torch.finfo(wanted.dtype).tiny).log()
    high = torch.zeros_like(wanted)
    for _ in range(halvings):
        middle = (low + high) / 2
        noise = middle.exp().view(shape).expand_as(solution.noise)
        more = solution.bottleneck.information(noise).flatten(1).sum(1) > wanted
        low, high = torch.where(more, middle, low), torch.where(more, high, middle)
    return high.exp().view(shape).expand_as(solution.noise)

"""Meaningful perturbation: the smallest, smooth part of an image whose blurring takes the class's probability."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch.nn import functional

from ...errors import Refusal, one_of
from ...models.classifier import Classifier
from ...perturb.fills import FILLS, Fill, blurred, filled
from ...perturb.perturbed import perturbed
from ..base import Method
from ..context import Context

# The discs that masks start from, in shares of the image's longer side: of 224 pixels, the authors' steps of 5 to 170,
# blurred by 10. The last one covers an image to its corners.
RADII, EDGE = [5 * step / 224 for step in range(1, 35)], 10 / 224
# What a disc may leave of what the probability is above that of the fill.
LEFT = 0.01


class MeaningfulPerturbation(Method):
    """1 - m for the mask m that minimises p(x where m, its fill elsewhere) + l1 |1 - m| + tv TV(m): [B,1,H,W], [0, 1].

    Fong & Vedaldi 2017, eq. 4, with the settings of the authors' code: Adam on a coarse mask, clamped to [0, 1] after
    each step and enlarged by bilinear interpolation and a Gaussian; |1 - m| is the sum over the coarse mask, TV the
    sum of |difference|^tv_power over its neighbours. p is the softmax probability of the target whatever `output` is
    explained: the weights are meant for it. Values are shares of a pixel that are taken away.

    A mask starts as the authors' does: without the smallest blurred disc in the middle of the image that takes 99
    percent of what the probability is above that of the fill (without the largest, if none does), each shown as the
    optimisation shows it: on the coarse grid, enlarged. Where a mask is 1, the image itself, a softmax near 1 has no
    slope: Adam would find nothing to do, and the map would be 0.

    fill: what replaces the image, one of the fill words; `blur` is the input itself under a Gaussian of `sigma`
        pixels.
    spacing: pixels between the values of the coarse mask. smoothing: deviation of the Gaussian on the enlarged mask.
    l1, tv, tv_power: see above.
    steps, learning_rate: of Adam; each step is one pass forwards and backwards.
    jitter: at each step the image moves against the mask by up to so many pixels down and to the right, drawn for each
        sample; its edges are repeated outwards.
    Raises ValueError for values that make no sense.
    """

    version = 2
    sign_of_logit = False

    def __init__(
        self,
        fill: Fill = "blur",
        sigma: float = 10.0,
        spacing: int = 8,
        smoothing: float = 5.0,
        l1: float = 1e-4,
        tv: float = 1e-2,
        tv_power: float = 3.0,
        steps: int = 300,
        learning_rate: float = 0.1,
        jitter: int = 4,
    ) -> None:
        one_of("fill", fill, FILLS)
        for name, value in (("sigma", sigma), ("smoothing", smoothing), ("learning_rate", learning_rate)):
            if not value > 0:
                raise ValueError(f"{name}={value}: expected more than 0")
        for name, value in (("spacing", spacing), ("steps", steps), ("tv_power", tv_power)):
            if value < 1:
                raise ValueError(f"{name}={value}: expected at least 1")
        for name, value in (("l1", l1), ("tv", tv), ("jitter", jitter)):
            if value < 0:
                raise ValueError(f"{name}={value}: expected 0 or more")
        self.fill, self.sigma, self.spacing, self.smoothing = fill, sigma, spacing, smoothing
        self.l1, self.tv, self.tv_power = l1, tv, tv_power
        self.steps, self.learning_rate, self.jitter = steps, learning_rate, jitter

    def check(self, classifier: Classifier) -> None:
        if not classifier.has_classes or classifier.outputs == 1:
            raise Refusal(f"meaningful_perturbation lowers a class's probability, {classifier.name} has none")
        classifier.require_pictures("meaningful_perturbation blurs masks and pictures")
        _, height, width = classifier.input_size
        if max(height, width) <= self.spacing:
            name, size = classifier.name, f"{height}x{width} pixels"
            raise Refusal(
                f"meaningful_perturbation: spacing={self.spacing} leaves one value for {name}'s input of {size}"
            )

    def cost(self, classifier: Classifier) -> tuple[int, int]:
        return (1 + len(RADII) + self.steps, self.steps)

    def attribute(
        self, classifier: Classifier, inputs: torch.Tensor, targets: torch.Tensor, context: Context
    ) -> torch.Tensor:
        masks = [
            self._masks(classifier, inputs[part], targets[part], context.generators[part])
            for part in classifier.chunks(len(inputs))
        ]
        return 1 - torch.cat(masks)

    def _masks(
        self,
        classifier: Classifier,
        inputs: torch.Tensor,
        targets: torch.Tensor,
        generators: Sequence[torch.Generator],
    ) -> torch.Tensor:
        """The enlarged mask [R,1,H,W] of each of R inputs."""
        height, width = inputs.shape[2:]
        fills = filled(inputs, self.fill, classifier.preprocessing, self.sigma)
        enlarge = Enlargement.of((height, width), self.spacing, self.smoothing, inputs)
        coarse = self._start(classifier, enlarge, inputs, fills, targets).requires_grad_(True)
        images = torch.stack([inputs, fills], dim=1)
        images = functional.pad(images.flatten(1, 2), (0, self.jitter, 0, self.jitter), "replicate")
        # Adam treats each value by itself: samples do not meet.
        optimizer = torch.optim.Adam([coarse], self.learning_rate)
        for _ in range(self.steps):
            places = [torch.randint(self.jitter + 1, (2,), generator=g).tolist() for g in generators]
            moved = [image[:, top : top + height, left : left + width] for image, (top, left) in zip(images, places)]
            image, fill = torch.stack(moved).chunk(2, dim=1)
            with torch.enable_grad():
                shown = torch.lerp(fill, image, enlarge(coarse))
                kept = classifier.select(classifier.module(shown), targets, "probability").sum()
                loss = kept + self.l1 * (1 - coarse).abs().sum() + self.tv * self._variation(coarse)
            (coarse.grad,) = torch.autograd.grad(loss, coarse)
            optimizer.step()
            coarse.data.clamp_(0, 1)
        return enlarge(coarse.detach())

    def _start(
        self,
        classifier: Classifier,
        enlarge: "Enlargement",
        inputs: torch.Tensor,
        fills: torch.Tensor,
        targets: torch.Tensor,
    ) -> torch.Tensor:
        """The coarse mask [R,1,h,w] that each of R inputs starts from."""
        starts = 1 - functional.interpolate(discs(*inputs.shape[2:]).to(inputs), enlarge.grid, mode="nearest-exact")
        taken = 1 - enlarge(starts)

        def paint(sample: int, part: slice, out: torch.Tensor) -> None:
            torch.lerp(inputs[sample], fills[sample], taken[part], out=out)

        found = perturbed(classifier, inputs, len(taken), paint, targets, "probability")
        without, least = found[:, 1:], found[:, -1:]
        enough = without - least <= LEFT * (found[:, :1] - least)
        enough[:, -1] = True
        # The first; `argmax` of booleans is not promised to be it.
        chosen = enough.to(torch.uint8).cumsum(1).eq(0).sum(1) + 1
        return starts[chosen]

    def _variation(self, coarse: torch.Tensor) -> torch.Tensor:
        return cast(torch.Tensor, sum(coarse.diff(dim=dim).abs().pow(self.tv_power).sum() for dim in (2, 3)))


@dataclass(frozen=True)
class Enlargement:
    """Bilinear interpolation of coarse masks to an image's size, and a Gaussian: along each side one matrix."""

    down: torch.Tensor
    across: torch.Tensor

    @classmethod
    def of(cls, size: Sequence[int], spacing: int, smoothing: float, like: torch.Tensor) -> "Enlargement":
        """To images of `size`, from values `spacing` pixels apart. smoothing: of the Gaussian. like: type, device."""

        def matrix(side: int) -> torch.Tensor:
            values = torch.eye(-(-side // spacing), dtype=like.dtype, device=like.device)
            lines = functional.interpolate(values[:, None, :, None], (side, 1), mode="bilinear", align_corners=False)
            return blurred(lines, smoothing)[:, 0, :, 0].T.contiguous()

        return cls(*(matrix(side) for side in size))

    @property
    def grid(self) -> list[int]:
        """The size of coarse masks."""
        return [self.down.shape[1], self.across.shape[1]]

    def __call__(self, coarse: torch.Tensor) -> torch.Tensor:
        """Coarse masks [R,1,h,w] -> [R,1,H,W]."""
        return self.down @ coarse @ self.across.T


def discs(height: int, width: int) -> torch.Tensor:
    """What is taken of the pixels of an image, from 0 to 1: nothing, then blurred discs in its middle by rising radius:
    [1 + len(RADII),1,H,W]."""
    side = max(height, width)
    down, across = (torch.arange(size, dtype=torch.float64) - (size - 1) / 2 for size in (height, width))
    squares = down[:, None] ** 2 + across**2
    masks = torch.stack([(squares <= (radius * side) ** 2).double() for radius in RADII])[:, None]
    return torch.cat([torch.zeros_like(masks[:1]), blurred(masks, EDGE * side)])

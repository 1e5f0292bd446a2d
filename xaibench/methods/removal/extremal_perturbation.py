"""Extremal perturbations: the smooth mask of a given area that keeps, or takes, the most of the explained output."""

import math
from collections.abc import Iterator
from typing import Literal, get_args

import torch
from torch.nn import functional

from ...errors import Refusal, one_of
from ...models.classifier import Classifier
from ...perturb.fills import FILLS, Fill, blurred, filled
from ..base import Method
from ..context import Context

Variant = Literal["preserve", "delete", "dual"]

# 1 / T of the smooth maximum.
COLDNESS = 20.0
# Products of parameters and kernels that exist at a time: what a processor's caches hold.
PART = 2**18
# Values of a mask that differ by less are level.
TIE = 1e-4
# The largest blur, at 224 pixels.
BLUR = 20 / 224


class ExtremalPerturbation(Method):
    """The mask of a given area through which the explained output is largest, by gradient ascent: [B,1,H,W] in [0, 1].

    Fong, Patrick & Vedaldi 2019, with the algorithm and settings of the authors' library (TorchRay,
    `extremal_perturbation`): a coarse grid of parameters in [0, 1] becomes a smooth mask by a maximum-convolution with
    a radial kernel (eq. 9, `SmoothMask`); the mask says how much of the image is left of its perturbation; SGD with
    momentum maximises f - weight * mean((sort(mask) - r)^2), where r has the wanted share of ones and else zeros, and
    the weight grows with every step. As there, the mask extends beyond the image by a margin, and its area is a share
    of both; the step size and the weight are meant for logits. Values are shares of the image left, not of the
    output: maps are not complete.

    areas: shares of the area; the map is the mean of their masks. The thesis's EHR takes 0.1, as TorchRay does by
        default; the released InputIBA code takes 0.3.
    variant: `preserve` shows what is inside the mask, `delete` hides it and makes f small, `dual` does both and takes
        the difference (twice the passes).
    fill: what replaces the image. `blur`: `levels` Gaussians from `sigma` pixels down to none, between which the mask
        interpolates (`sigma: null` is 20 pixels at 224, and in proportion). Another fill word: a linear fade to it.
    spacing: pixels between parameters; null is a 32nd of the shorter side, rounded up: TorchRay's 7 at 224.
    width: of the kernel, in spacings; TorchRay's 21 pixels are 3 spacings.
    steps, learning_rate, momentum: of SGD; each step is one pass forwards and backwards.
    area_weight, area_growth: the weight above at the first step, and the factor from one step to the next.
    flip: every second step shows the image mirrored.
    Raises ValueError for values that make no sense.
    """

    sign_of_logit = False

    def __init__(
        self,
        areas: tuple[float, ...] = (0.1,),
        variant: Variant = "preserve",
        fill: Fill = "blur",
        sigma: float | None = None,
        levels: int = 8,
        spacing: int | None = None,
        width: float = 3.0,
        steps: int = 800,
        learning_rate: float = 0.01,
        momentum: float = 0.9,
        area_weight: float = 300.0,
        area_growth: float = 1.0035,
        flip: bool = True,
    ) -> None:
        if not areas or not all(0 < area < 1 for area in areas):
            raise ValueError(f"areas={list(areas)}: expected one or more shares between 0 and 1")
        one_of("variant", variant, get_args(Variant))
        one_of("fill", fill, FILLS)
        for name, value in (("sigma", sigma), ("spacing", spacing)):
            if value is not None and not value > 0:
                raise ValueError(f"{name}={value}: expected a positive number of pixels, or null")
        for name, value in (("width", width), ("learning_rate", learning_rate), ("area_growth", area_growth)):
            if not value > 0:
                raise ValueError(f"{name}={value}: expected more than 0")
        if levels < 2:
            raise ValueError(f"levels={levels}: expected at least 2, the blurred image and the image itself")
        if steps < 1:
            raise ValueError(f"steps={steps}: expected at least 1")
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum={momentum}: expected 0 or more and less than 1")
        if area_weight < 0:
            raise ValueError(f"area_weight={area_weight}: expected 0 or more")
        self.areas, self.variant, self.fill, self.sigma, self.levels = tuple(areas), variant, fill, sigma, levels
        self.spacing, self.width, self.steps, self.learning_rate = spacing, width, steps, learning_rate
        self.momentum, self.area_weight, self.area_growth, self.flip = momentum, area_weight, area_growth, flip

    def check(self, classifier: Classifier) -> None:
        classifier.require_pictures("extremal_perturbation blurs masks and pictures")
        _, height, width = classifier.input_size
        reach = self.width * _spacing(self.spacing, (height, width))
        if min(height, width) < reach:
            name, size = classifier.name, f"{height}x{width} pixels"
            raise Refusal(f"extremal_perturbation: masks are smooth over {reach:g} pixels, {name}'s input has {size}")

    def cost(self, classifier: Classifier) -> tuple[int, int]:
        passes = self.steps * len(self.areas) * (2 if self.variant == "dual" else 1)
        return (passes, passes)

    def attribute(
        self, classifier: Classifier, inputs: torch.Tensor, targets: torch.Tensor, context: Context
    ) -> torch.Tensor:
        # One row for each area of each image. A batch of rows is followed to the end, then the next.
        count = len(self.areas)
        masks = []
        for rows in classifier.chunks(len(inputs) * count):
            samples = torch.arange(rows.start, rows.stop, device=inputs.device) // count
            areas = [self.areas[row % count] for row in range(rows.start, rows.stop)]
            masks.append(self._masks(classifier, inputs[samples], targets[samples], areas))
        return torch.cat(masks).view(len(inputs), count, *inputs.shape[2:]).mean(1, keepdim=True)

    def _masks(
        self, classifier: Classifier, inputs: torch.Tensor, targets: torch.Tensor, areas: list[float]
    ) -> torch.Tensor:
        """The mask of each of R inputs at the area of each: [R,H,W]."""
        smooth = SmoothMask(tuple(inputs.shape[2:]), self.spacing, self.width, inputs)
        pyramid = self._pyramid(classifier, inputs)
        values = torch.ones(len(inputs), *smooth.grid, dtype=inputs.dtype, device=inputs.device)
        speed, weight = None, self.area_weight
        for step in range(self.steps):
            mask, total = smooth.forward(values)
            mirrored = self.flip and step % 2 == 0
            inside = smooth.crop(mask)
            slope = torch.zeros_like(mask)
            if self.variant != "delete":
                smooth.crop(slope).add_(_reward(classifier, pyramid, inside, targets, mirrored))
            if self.variant != "preserve":
                # Less of the reward for hiding: a change of the mask changes what is left the other way.
                smooth.crop(slope).add_(_reward(classifier, pyramid, 1 - inside, targets, mirrored))
            descent = weight * area_gradient(mask, areas) - slope
            gradient = smooth.backward(values, mask, total, descent)
            speed = gradient if speed is None else self.momentum * speed + (1 - self.momentum) * gradient
            values = (values - self.learning_rate * speed).clamp(0, 1)
            weight *= self.area_growth
        return inside

    def _pyramid(self, classifier: Classifier, inputs: torch.Tensor) -> torch.Tensor:
        """Versions of inputs [R,C,H,W] from nothing left to the input itself: [R,L,C,H,W]."""
        if self.fill != "blur":
            return torch.stack([filled(inputs, self.fill, classifier.preprocessing), inputs], dim=1)
        largest = BLUR * min(inputs.shape[2:]) if self.sigma is None else self.sigma
        steps = range(self.levels - 1)
        return torch.stack([*(blurred(inputs, largest * (1 - i / len(steps))) for i in steps), inputs], dim=1)


def _reward(
    classifier: Classifier, pyramid: torch.Tensor, left: torch.Tensor, targets: torch.Tensor, mirrored: bool
) -> torch.Tensor:
    """The gradient of the explained output with respect to `left` [R,H,W], how much is left of each pixel."""
    levels = pyramid.shape[1]
    height = left * (levels - 1)
    below = height.floor().clamp(max=levels - 2)
    index = below.long()[:, None, None].expand(-1, -1, *pyramid.shape[2:])
    lower = pyramid.gather(1, index)[:, 0]
    rise = pyramid.gather(1, index + 1)[:, 0] - lower
    shown = torch.addcmul(lower, rise, (height - below)[:, None])
    gradient = classifier.gradient(shown.flip(3), targets).flip(3) if mirrored else classifier.gradient(shown, targets)
    return (levels - 1) * (gradient * rise).sum(1)


def area_gradient(masks: torch.Tensor, areas: list[float]) -> torch.Tensor:
    """The gradient [R,H,W] of mean((sort(m) - r)^2) with respect to masks m, where r has a share of ones at its end.

    Pixels that are level with the one where r turns from 0 to 1, within TIE, are no more to be raised than each other:
    each takes its part of the ones that are left for them. (All masks begin level. To sort them by their rounding
    errors, as the authors' code does, makes a different mask of every batch size and device.)
    """
    flat = masks.flatten(1)
    size = flat.shape[1]
    wanted = torch.empty_like(flat)
    for mask, area, out in zip(flat, areas, wanted):
        zeros = int(size * (1 - area))
        turn = mask.kthvalue(zeros + 1).values
        above, level = mask > turn + TIE, (mask - turn).abs() <= TIE
        out.copy_(above + level * ((size - zeros - above.sum()) / level.sum()).clamp(0, 1))
    return (2 / size * (flat - wanted)).view_as(masks)


def _spacing(spacing: int | None, size: tuple[int, ...]) -> int:
    """Pixels between parameters of a mask of this size; see ExtremalPerturbation."""
    return spacing or math.ceil(min(size) / 32)


class SmoothMask:
    """Masks that are smooth whatever their parameters: m(u) = smax over v of k(|u - v|) p(v), Fong et al. 2019, eq. 9.

    smax is the mean weighted by exp(20 k p); k falls from 1, within half a width, as a Gaussian; v are the places of a
    grid of parameters p [R,h,w]. Masks [R,*outer] reach a width beyond the image on all sides (`crop` takes it off).

    spacing: pixels between parameters, or None, see ExtremalPerturbation. width: of the kernel in spacings.
    like: its type and device.
    """

    def __init__(self, size: tuple[int, ...], spacing: int | None, width: float, like: torch.Tensor) -> None:
        spacing = _spacing(spacing, size)
        sigma = width * spacing
        self.size, self.spacing, self.margin = size, spacing, round(sigma)
        # The parameters within reach of a pixel: so many on each side.
        reach = 1 + math.ceil(sigma / spacing)
        self.padding = 1 + math.ceil(2 * sigma / spacing)
        self.window = 2 * reach + 1
        self.grid = tuple(math.ceil(side / spacing) for side in size)
        self.blocks = tuple(side + 2 * (self.padding - reach) for side in self.grid)
        self.outer = tuple(spacing * (side - 1) + 1 for side in self.blocks)
        # Pixels at the same place in their block of spacing x spacing see their neighbours at the same distances.
        place = torch.arange(spacing, dtype=like.dtype, device=like.device)
        neighbour = torch.arange(self.window, dtype=like.dtype, device=like.device)
        offset = place - sigma - spacing * (neighbour[:, None] - self.padding)
        distance = torch.sqrt(offset[:, None, :, None] ** 2 + offset[None, :, None, :] ** 2) / sigma
        kernel = torch.exp(-2 * (distance - 0.5).clamp(min=0) ** 2)
        self.kernel = kernel.view(-1, 1, spacing, 1, spacing)

    def crop(self, mask: torch.Tensor) -> torch.Tensor:
        """The part of a mask [R,*outer] that lies on the image: a view [R,H,W]."""
        (height, width), margin = self.size, self.margin
        return mask[:, margin : margin + height, margin : margin + width]

    def forward(self, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Masks of parameters [R,h,w], and the sums of their weights, which `backward` wants back."""
        weighted = total = torch.zeros((), dtype=values.dtype, device=values.device)
        for _, _, product in self._products(values):
            weight = torch.exp(COLDNESS * product)
            total = total + weight.sum(1)
            weighted = weighted + weight.mul_(product).sum(1)
        mask = (weighted / total).flatten(3).flatten(1, 2)
        return mask[:, : self.outer[0], : self.outer[1]].contiguous(), total

    def backward(
        self, values: torch.Tensor, mask: torch.Tensor, total: torch.Tensor, slope: torch.Tensor
    ) -> torch.Tensor:
        """The gradient [R,h,w] with respect to the parameters of what has the gradient `slope` at their masks."""
        # The derivative of the maximum m = sum(a e^20a) / sum(e^20a) is e^20a / sum(e^20a) * (1 + 20 (a - m)).
        share = (self._blocks(slope) / total)[:, None]
        rest = 1 - COLDNESS * self._blocks(mask)[:, None]
        gradient = values.new_empty(len(values), self.window**2, *self.blocks)
        for part, kernel, product in self._products(values):
            weight = torch.exp(COLDNESS * product).mul_(share)
            gradient[:, part] = weight.mul_(product.mul_(COLDNESS).add_(rest)).mul_(kernel).sum((3, 5))
        return functional.fold(gradient.flatten(2), self.grid, self.window, padding=self.padding)[:, 0]

    def _products(self, values: torch.Tensor) -> Iterator[tuple[slice, torch.Tensor, torch.Tensor]]:
        """k p for some neighbours of every pixel after the other: which ones, k [n,1,spacing,1,spacing], and k p as
        [R,n,rows,spacing,columns,spacing]."""
        near = functional.unfold(values[:, None], self.window, padding=self.padding)
        near = near.view(len(values), -1, self.blocks[0], 1, self.blocks[1], 1)
        count = max(1, PART // (len(values) * math.prod(self.blocks) * self.spacing**2))
        for start in range(0, self.window**2, count):
            part = slice(start, start + count)
            yield part, self.kernel[part], near[:, part] * self.kernel[part]

    def _blocks(self, image: torch.Tensor) -> torch.Tensor:
        """[R,*outer] -> [R,rows,spacing,columns,spacing], filled up with zeros."""
        height, width = (self.spacing * side for side in self.blocks)
        image = functional.pad(image, (0, width - image.shape[2], 0, height - image.shape[1]))
        return image.view(len(image), self.blocks[0], self.spacing, self.blocks[1], self.spacing)

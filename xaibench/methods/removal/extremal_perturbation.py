"""Extremal perturbations: the smooth mask of a given area that keeps, or takes, the most of the explained output."""

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import torch
from torch.nn import functional

from ...errors import Refusal, one_of
from ...models.classifier import Classifier
from ...perturb.fills import FILLS, Fill, blurred, filled
from ..base import Method
from ..context import Context
from ..pathways.pathway import path_alone
from ..pathways.selectors import SELECTORS, selector

Variant = Literal["preserve", "delete", "dual"]

# Selectors that draw nothing: each area's mask is within the same path.
WITHIN = tuple(name for name in SELECTORS if name != "pathway_random")

# 1 / T of the smooth maximum.
COLDNESS = 20.0
# Of R masks, with a = k p: 20a e^20a and e^20a of each parameter at each distance [L,h*w,2R], and of each pixel the sum
# of the latter.
Weights = tuple[torch.Tensor, torch.Tensor]

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
    within: which part of the network a mask may use (Khakzar 2022, chapter 4), one of WITHIN; null is all of it. Masks
        that are optimised find inputs to which neurons answer that were silent for the image. `pathway_active` keeps
        those at 0; another selector of paths (`selectors`) keeps every neuron that is not on the path at the value that
        it has for the image, or for the mirrored one. It needs ReLU modules. sparsity: of the path.
    Raises ValueError for values that make no sense.
    """

    added: ClassVar[Mapping[str, Any]] = {"within": None, "sparsity": 0.9}
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
        within: str | None = None,
        sparsity: float = 0.9,
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
        self.selector = None if within is None else selector(one_of("within", within, WITHIN), sparsity)
        self.areas, self.variant, self.fill, self.sigma, self.levels = tuple(areas), variant, fill, sigma, levels
        self.spacing, self.width, self.steps, self.learning_rate = spacing, width, steps, learning_rate
        self.momentum, self.area_weight, self.area_growth, self.flip = momentum, area_weight, area_growth, flip

    def check(self, classifier: Classifier) -> None:
        if self.selector is not None:
            self.selector.check(classifier)
        classifier.require_pictures("extremal_perturbation blurs masks and pictures")
        _, height, width = classifier.input_size
        reach = self.width * _spacing(self.spacing, (height, width))
        if min(height, width) < reach:
            name, size = classifier.name, f"{height}x{width} pixels"
            raise Refusal(f"extremal_perturbation: masks are smooth over {reach:g} pixels, {name}'s input has {size}")

    def cost(self, classifier: Classifier) -> tuple[int, int]:
        passes = self.steps * len(self.areas) * (2 if self.variant == "dual" else 1)
        if self.selector is None:
            return (passes, passes)
        # What the path takes (the selector's map less its gradient), and a look at the other neurons.
        forwards, backwards = self.selector.cost(classifier)
        looks = len(self.areas) * (2 if self.flip else 1)
        return (passes + looks * forwards, passes + looks * (backwards - 1))

    def attribute(
        self, classifier: Classifier, inputs: torch.Tensor, targets: torch.Tensor, context: Context
    ) -> torch.Tensor:
        # One row for each area of each image. A batch of rows is followed to the end, then the next.
        count = len(self.areas)
        smooth = SmoothMask(tuple(inputs.shape[2:]), self.spacing, self.width, inputs)
        masks = []
        for rows in classifier.chunks(len(inputs) * count):
            samples = torch.arange(rows.start, rows.stop, device=inputs.device) // count
            areas = [self.areas[row % count] for row in range(rows.start, rows.stop)]
            masks.append(self._masks(classifier, smooth, inputs[samples], targets[samples], areas))
        return torch.cat(masks).view(len(inputs), count, *inputs.shape[2:]).mean(1, keepdim=True)

    def _masks(
        self,
        classifier: Classifier,
        smooth: "SmoothMask",
        inputs: torch.Tensor,
        targets: torch.Tensor,
        areas: list[float],
    ) -> torch.Tensor:
        """The mask of each of R inputs at the area of each: [R,H,W]."""
        pyramid = self._pyramid(classifier, inputs)
        part = [self._part(classifier, inputs.flip(3) if way else inputs, targets) for way in range(1 + self.flip)]
        values = torch.ones(len(inputs), *smooth.grid, dtype=inputs.dtype, device=inputs.device)
        speed, weight = None, self.area_weight
        for step in range(self.steps):
            mask, weights = smooth.forward(values)
            mirrored = self.flip and step % 2 == 0
            inside = smooth.crop(mask)
            slope = torch.zeros_like(mask)
            with part[mirrored]():
                if self.variant != "delete":
                    smooth.crop(slope).add_(_reward(classifier, pyramid, inside, targets, mirrored))
                if self.variant != "preserve":
                    # Less of the reward for hiding: a change of the mask changes what is left the other way.
                    smooth.crop(slope).add_(_reward(classifier, pyramid, 1 - inside, targets, mirrored))
            descent = weight * area_gradient(mask, areas) - slope
            gradient = smooth.backward(mask, weights, descent)
            speed = gradient if speed is None else self.momentum * speed + (1 - self.momentum) * gradient
            values = (values - self.learning_rate * speed).clamp(0, 1)
            weight *= self.area_growth
        return inside

    def _part(
        self, classifier: Classifier, inputs: torch.Tensor, targets: torch.Tensor
    ) -> Callable[[], AbstractContextManager[None]]:
        """The context in which the network is the part that `within` says, for these inputs."""
        if self.selector is None:
            return nullcontext
        return path_alone(classifier, inputs, self.selector.path(classifier, inputs, targets, []))

    def _pyramid(self, classifier: Classifier, inputs: torch.Tensor) -> torch.Tensor:
        """Versions of inputs [R,C,H,W] from nothing left to the input itself, as `_reward` reads them: each pixel of
        each version but the last and what the next one has above it, [R,L-1,H,W,2C]."""
        if self.fill != "blur":
            versions = [filled(inputs, self.fill, classifier.preprocessing), inputs]
        else:
            largest = BLUR * min(inputs.shape[2:]) if self.sigma is None else self.sigma
            steps = range(self.levels - 1)
            versions = [*(blurred(inputs, largest * (1 - i / len(steps))) for i in steps), inputs]
        pyramid = torch.stack(versions, dim=1).movedim(2, 4)
        return torch.cat([pyramid[:, :-1], pyramid.diff(dim=1)], dim=4)


def _reward(
    classifier: Classifier, pyramid: torch.Tensor, left: torch.Tensor, targets: torch.Tensor, mirrored: bool
) -> torch.Tensor:
    """The gradient of the explained output with respect to `left` [R,H,W], how much is left of each pixel."""
    count, steps, *size, _ = pyramid.shape
    height = left * steps
    below = height.floor().clamp(max=steps - 1)
    version = torch.arange(0, count * steps, steps, device=left.device).view(-1, 1, 1) + below.long()
    pixels = math.prod(size)
    place = version.flatten(1) * pixels + torch.arange(pixels, device=left.device)
    shown_at = pyramid.view(count * steps * pixels, -1).index_select(0, place.flatten())
    lower, rise = shown_at.view(count, *size, 2, -1).permute(3, 0, 4, 1, 2)
    shown = torch.addcmul(lower, rise, (height - below)[:, None])
    gradient = classifier.gradient(shown.flip(3), targets).flip(3) if mirrored else classifier.gradient(shown, targets)
    return steps * (gradient * rise).sum(1)


def area_gradient(masks: torch.Tensor, areas: list[float]) -> torch.Tensor:
    """The gradient [R,H,W] of mean((sort(m) - r)^2) with respect to masks m, where r has a share of ones at its end.

    Pixels that are level with the one where r turns from 0 to 1, within TIE, are no more to be raised than each other:
    each takes its part of the ones that are left for them. (All masks begin level. To sort them by their rounding
    errors, as the authors' code does, makes a different mask of every batch size and device.)
    """
    flat = masks.flatten(1)
    size = flat.shape[1]
    zeros = [int(size * (1 - area)) for area in areas]
    turn = torch.stack([mask.kthvalue(count + 1, keepdim=True).values for mask, count in zip(flat, zeros)])
    above, level = flat > turn + TIE, (flat - turn).abs() <= TIE
    ones = torch.tensor([size - count for count in zeros], device=flat.device)[:, None]
    share = ((ones - above.sum(1, keepdim=True)) / level.sum(1, keepdim=True)).clamp(0, 1)
    wanted = torch.where(level, share.to(flat), above.to(flat))
    return (2 / size * (flat - wanted)).view_as(masks)


def _spacing(spacing: int | None, size: tuple[int, ...]) -> int:
    """Pixels between parameters of a mask of this size; see ExtremalPerturbation."""
    return spacing or math.ceil(min(size) / 32)


class SmoothMask:
    """Masks that are smooth whatever their parameters: m(u) = smax over v of k(|u - v|) p(v), Fong et al. 2019, eq. 9.

    smax is the mean weighted by exp(20 k p); k falls from 1, within half a width, as a Gaussian; v are the places of a
    grid of parameters p [R,h,w]. Masks [R,*outer] reach a width beyond the image on all sides (`crop` takes it off).

    Pixels see the parameters in their window at few different distances: exp(20 k p) is taken once for each k and
    parameter, instead of for each pixel and parameter, and pixels add up what they see.

    spacing: pixels between parameters, or None, see ExtremalPerturbation. width: of the kernel in spacings.
    like: its type and device.
    """

    def __init__(self, size: tuple[int, ...], spacing: int | None, width: float, like: torch.Tensor) -> None:
        spacing = _spacing(spacing, size)
        sigma = width * spacing
        self.size, self.spacing, self.margin = size, spacing, round(sigma)
        # The parameters within reach of a pixel: so many on each side; beyond the grid they are 0.
        reach = 1 + math.ceil(sigma / spacing)
        padding = 1 + math.ceil(2 * sigma / spacing)
        self.grid = tuple(math.ceil(side / spacing) for side in size)
        self.outer = tuple(spacing * (side + 2 * (padding - reach) - 1) + 1 for side in self.grid)
        # Pixels at one place in their block of spacing x spacing see their window at the same distances.
        window = torch.arange(2 * reach + 1) - padding
        offset = torch.arange(spacing)[:, None] - sigma - spacing * window
        distance = torch.sqrt(_pairs(torch.add, *[offset.double().square()] * 2)) / sigma
        kernel = torch.exp(-2 * (distance - 0.5).clamp(min=0) ** 2)
        values, level = kernel.round(decimals=14).unique(return_inverse=True)
        # Of each pixel, and of each parameter in its window: at which distance, which one, whether it is there.
        pixels = [torch.arange(side, dtype=torch.int32) for side in self.outer]
        blocks = [u.div(spacing, rounding_mode="floor")[:, None] + window.int() for u in pixels]
        there = _pairs(torch.logical_and, *((v >= 0) & (v < side) for v, side in zip(blocks, self.grid)))
        place = _pairs(torch.add, (pixels[0] % spacing * spacing)[:, None], (pixels[1] % spacing)[:, None])[:, 0]
        seen = level.int()[place] * math.prod(self.grid) + _pairs(torch.add, blocks[0] * self.grid[1], blocks[1])
        inside = there.flatten().nonzero()[:, 0]
        pixel, seen = inside.div(there.shape[1], rounding_mode="floor").int(), seen.flatten()[inside]
        self.kernel = (COLDNESS * values).to(like).view(-1, 1, 1)
        self.outside = (~there).sum(1, keepdim=True).to(like)
        # What each pixel sees, and by which pixels each parameter is seen at each distance.
        self.seen = Sums.of(pixel, seen, len(there), like.device)
        by = seen.argsort(stable=True)
        self.seen_by = Sums.of(seen[by], pixel[by], len(values) * math.prod(self.grid), like.device)

    def crop(self, mask: torch.Tensor) -> torch.Tensor:
        """The part of a mask [R,*outer] that lies on the image: a view [R,H,W]."""
        (height, width), margin = self.size, self.margin
        return mask[:, margin : margin + height, margin : margin + width]

    def forward(self, values: torch.Tensor) -> tuple[torch.Tensor, Weights]:
        """Masks of parameters [R,h,w], and what `backward` wants back."""
        own = values.flatten(1).T
        # 20 k p and 1: of each parameter what its weight is multiplied with, for both of the sums.
        product = torch.addcmul(
            torch.cat([torch.zeros_like(own), torch.ones_like(own)], 1),
            self.kernel,
            torch.cat([own, torch.zeros_like(own)], 1),
        )
        table = (self.kernel * own.repeat(1, 2)).exp_().mul_(product)
        weighted, total = self.seen(table.flatten(0, 1)).chunk(2, dim=1)
        total = total + self.outside  # of parameters that are 0 the weight is 1
        mask = weighted / (COLDNESS * total)
        return mask.T.reshape(len(values), *self.outer), (table, total)

    def backward(self, mask: torch.Tensor, weights: Weights, slope: torch.Tensor) -> torch.Tensor:
        """The gradient [R,h,w] with respect to the parameters of what has the gradient `slope` at their masks."""
        # The derivative of the maximum m = sum(a e^20a) / sum(e^20a) is e^20a / sum(e^20a) * (1 + 20 (a - m)).
        table, total = weights
        share = slope.flatten(1).T / (COLDNESS * total)
        shares = self.seen_by(torch.cat([share, share * (1 - COLDNESS * mask.flatten(1).T)], 1))
        rise = torch.tensordot(self.kernel.flatten(), shares.view_as(table).mul_(table), 1)
        return rise.unflatten(1, (2, -1)).sum(1).T.reshape(-1, *self.grid)


@dataclass(frozen=True)
class Sums:
    """Sums of rows: of those `rows` from each of `starts` to the next.

    It is a product with a sparse matrix of ones.
    """

    rows: torch.Tensor
    starts: torch.Tensor

    @classmethod
    def of(cls, sums: torch.Tensor, rows: torch.Tensor, count: int, device: torch.device) -> "Sums":
        """To the sum with each number of `sums` [n], rising and below `count`, goes the row with that of `rows` [n]."""
        members = torch.bincount(sums, minlength=count)
        return cls(rows.to(device), (members.cumsum(0) - members).to(rows.dtype).to(device))

    def __call__(self, table: torch.Tensor) -> torch.Tensor:
        """Rows [m,c] -> sums [count,c]."""
        return functional.embedding_bag(self.rows, table, self.starts, mode="sum")


def _pairs(combine: Callable[..., torch.Tensor], down: torch.Tensor, across: torch.Tensor) -> torch.Tensor:
    """What `combine` makes of values of the rows [H,n] and of the columns [W,n] of an image: [H*W,n*n]."""
    return combine(down[:, None, :, None], across[None, :, None, :]).flatten(2).flatten(0, 1)

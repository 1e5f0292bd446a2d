"""Infidelity: the squared error of a map as a prediction of what the output loses under perturbations."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Literal, get_args

import torch
from torch.nn import functional

from ... import rng
from ...datasets.base import Batch
from ...errors import one_of
from ...methods.context import Context
from ...models.classifier import Classifier
from ...perturb.perturbed import masked, perturbed
from ..base import Columns, Statistic
from ._perturbation import Fill, Removal, RemovalMetric, drops

Perturbation = Literal["square", "gaussian"]
Span = tuple[torch.Tensor, torch.Tensor]


class Infidelity(RemovalMetric):
    """The mean over perturbations I of (I . a - (f(x) - f(x - I)))^2, for a map a of the explained output f.

    Yeh et al. 2019, definition 2.1. 0 for the exact map of a linear model; a map of zeros scores the mean squared
    drop, which `unexplained` divides by: there 0 is perfect, and 1 no better than no map.

    A map is read in the unit that its perturbation has, as in the authors' code. `square`: a square of pixels is
    removed, I . a is the sum of the map over it, so values are contributions to the output (integrated gradients,
    input_x_gradient, occlusion). `gaussian`: noise in the input's units, I . a is the inner product over pixels and
    channels, so values are slopes (gradient, smoothgrad); a map of one value per pixel has this slope in each of the
    channels. Maps are read with their channels, not as their methods collapse them. (Captum also pairs slopes with
    removal: that is `square` on the map times the input.)

    perturbation: see above. `square` draws uniformly from all squares of 1 to `largest` pixels a side that lie
        within the image; the authors go through all of them, on images of 28 pixels with sides up to 10. `gaussian`
        draws independent values N(0, noise^2). (The authors' code draws a noisy replacement of the whole image.)
    draws: perturbations of each image. They belong to the sample: every method meets the same.
    largest: of a square, its side as a share of the image's shorter side. fill: what a removed pixel shows. sigma:
        of the blur, for `fill: blur`, in pixels.
    noise: standard deviation of the gaussian, in units of the normalised input. As it goes to 0 the gradient becomes
        exact; where it is so large that the output's drop has little to do with its direction, all maps score alike.
    normalize: multiply each image's map by the factor that fits best, E[I.a drop] / E[(I.a)^2], before. The
        authors' code always does, Captum's default does not. Most maps have units of their own (bits, shares, a
        maximum of 1), whose scale would otherwise be all that is measured. The factor may be negative, so a negated
        map then scores as the map does; a map of zeros has none and scores as above.

    Columns: infidelity (squared units of the output), power (the mean squared drop; 0 for an image of which all drops
    are rounding, see `_perturbation.drops`).
    """

    statistics: tuple[Statistic, ...] = (
        Statistic("infidelity", "lower", "infidelity", low=0, unit="output^2"),
        Statistic("unexplained", "lower", "infidelity", per="power", low=0, high=1, unit="share of squared drops"),
    )
    version = 2
    collapse = "none"

    def __init__(
        self,
        perturbation: Perturbation = "square",
        draws: int = 100,
        largest: float = 0.36,
        fill: Fill = "zero",
        sigma: float = 5.0,
        noise: float = 0.02,
        normalize: bool = True,
    ) -> None:
        one_of("perturbation", perturbation, get_args(Perturbation))
        if draws < 1:
            raise ValueError(f"draws={draws}: expected at least 1")
        if not 0 < largest <= 1:
            raise ValueError(f"largest={largest}: expected a share of the image's side, up to 1")
        if not noise > 0:
            raise ValueError(f"noise={noise}: expected a positive standard deviation")
        self.perturbation, self.draws, self.largest, self.noise = perturbation, draws, largest, noise
        self.removal, self.normalize = Removal(fill, sigma), normalize
        self.remove_by(self.removal)
        if not normalize:
            self.statistics = tuple(replace(s, high=None) for s in self.statistics)

    def check(self, classifier: Classifier) -> None:
        self.removal.check(classifier)

    def cost(self, classifier: Classifier) -> tuple[int, int]:
        return 1 + self.draws * (1 if self.perturbation == "gaussian" else self.removal.passes), 0

    def responses_spec(self) -> dict[str, Any]:
        if self.perturbation == "gaussian":
            drawn: dict[str, Any] = {"noise": self.noise}
        else:
            drawn = {"largest": self.largest, **self.removal.spec()}
        return {"perturbation": self.perturbation, "draws": self.draws, **drawn}

    def respond(self, classifier: Classifier, batch: Batch, context: Context) -> dict[str, torch.Tensor]:
        """draw_seed [B]: of each image's perturbations. drops [B, draws]: f(x) - f(x - I)."""
        inputs, targets, fill_draws = batch.inputs, batch.targets, {}
        seeds = rng.draw_seeds(context.generators)
        if self.perturbation == "gaussian":

            def paint(sample: int, part: slice, out: torch.Tensor) -> None:
                for image, noise in zip(out, self._noises(seeds[sample], part, inputs[sample])):
                    torch.sub(inputs[sample], noise, out=image)

            changed = perturbed(classifier, inputs, self.draws, paint, targets)
        else:
            fill_draws = self.removal.draw(context.generators)
            rows, columns = self._squares(seeds, *inputs.shape[2:])
            down, across = (
                _covered(rows, inputs.shape[2], inputs.device),
                _covered(columns, inputs.shape[3], inputs.device),
            )

            def mask(sample: int, part: slice, out: torch.Tensor) -> None:
                out.copy_(down[sample, part, None, :, None] & across[sample, part, None, None, :])

            removes = [one.of(classifier, batch, fill_draws) for one in self.removal.versions(context.fitted)]
            answers = [masked(classifier, inputs, remove, mask, self.draws, targets) for remove in removes]
            changed = torch.stack(answers).mean(0)
        clean = classifier.scores(inputs, targets)
        return {**fill_draws, "draw_seed": seeds, "drops": drops(clean, changed)}

    def evaluate(self, classifier: Classifier, batch: Batch, maps: torch.Tensor, context: Context) -> Columns:
        """maps [B,C,H,W] or [B,1,H,W], not collapsed."""
        lost = context.responses["drops"].to(maps.device).double()
        maps, seeds = maps.double(), context.responses["draw_seed"].cpu()
        if self.perturbation == "gaussian":
            predicted = self._with_noises(batch.inputs, maps, seeds)
        else:
            predicted = self._over_squares(maps, seeds)
        if self.normalize:
            energy = predicted.square().mean(1, keepdim=True)
            fit = (predicted * lost).mean(1, keepdim=True) / energy
            predicted = (fit * predicted).where(energy > 0, 0.0)
        return {"infidelity": (predicted - lost).square().mean(1), "power": lost.square().mean(1)}

    def _with_noises(self, inputs: torch.Tensor, maps: torch.Tensor, seeds: torch.Tensor) -> torch.Tensor:
        """I . a [B, draws] of gaussian perturbations."""
        every = slice(0, self.draws)
        rows = [
            [(noise * slopes).sum() for noise in self._noises(seed, every, image)]
            for seed, image, slopes in zip(seeds, inputs, maps)
        ]
        return torch.stack([torch.stack(row) for row in rows])

    def _over_squares(self, maps: torch.Tensor, seeds: torch.Tensor) -> torch.Tensor:
        """I . a [B, draws] of squares: four places of a table of the sums of all pixels above and to the left."""
        height, width = maps.shape[2:]
        table = functional.pad(maps.sum(1).cumsum(1).cumsum(2), (1, 0, 1, 0)).flatten(1)
        (top, bottom), (left, right) = self._squares(seeds, height, width)

        def corner(row: torch.Tensor, column: torch.Tensor) -> torch.Tensor:
            return table.gather(1, (row * (width + 1) + column).to(table.device))

        return corner(bottom, right) - corner(top, right) - corner(bottom, left) + corner(top, left)

    def _noises(self, seed: torch.Tensor, part: slice, like: torch.Tensor) -> Iterator[torch.Tensor]:
        """The gaussian perturbations `part` of one image [C,H,W], each from a generator of its own."""
        for generator in rng.from_seeds(seed + torch.arange(part.start, part.stop)):
            yield self.noise * torch.randn(like.shape, generator=generator).to(like)

    def _squares(self, seeds: torch.Tensor, height: int, width: int) -> tuple[Span, Span]:
        """The squares of each image: their rows and their columns, each as (first, last + 1) of shape [B, draws]."""
        sides = torch.arange(1, max(1, round(self.largest * min(height, width))) + 1)
        places = (height - sides + 1) * (width - sides + 1)
        ends = places.cumsum(0)
        numbers = [torch.randint(int(ends[-1]), (self.draws,), generator=g) for g in rng.from_seeds(seeds)]
        number = torch.stack(numbers)
        which = torch.searchsorted(ends, number, right=True)
        side, place = sides[which], number - (ends - places)[which]
        top, left = place // (width - side + 1), place % (width - side + 1)
        return (top, top + side), (left, left + side)


def _covered(span: Span, length: int, device: torch.device) -> torch.Tensor:
    """Which of `length` rows or columns lie in each span of shape [...]: bool [..., length]."""
    first, end = (edge.to(device)[..., None] for edge in span)
    at = torch.arange(length, device=device)
    return (first <= at) & (at < end)

"""SmoothGrad, SmoothGrad-squared and VarGrad: moments of a gradient method's maps around the input."""

from dataclasses import replace
from typing import Any, Literal, get_args

import torch

from ... import rng
from ...errors import one_of
from ...models.classifier import Classifier
from ..base import Method
from ..context import Context
from ..copies import pieces_of, repeated, rows_of_copies
from .gradient import Gradient

Aggregate = Literal["mean", "square", "variance"]
Unit = Literal["range", "input"]


def spread(inputs: torch.Tensor, noise: float, unit: str) -> torch.Tensor:
    """The standard deviation [B,1,1,1] of noise: a share of each input's own range, or the same in units of inputs."""
    if unit == "input":
        return torch.full_like(inputs[:, :1, :1, :1], noise)
    return noise * (inputs.amax((1, 2, 3), keepdim=True) - inputs.amin((1, 2, 3), keepdim=True))


class SmoothGrad(Method):
    """A moment of a method's maps over noisy copies x + N(0, s^2) of the input: shaped and collapsed as its maps.

    samples: noisy copies of each input.
    noise: s, in the `unit` named: `range`, a fraction of the input's own range, max(x) - min(x) over all channels; or
        `input`, the same number for every normalised input (Captum's `stdevs`).
    aggregate: `mean` of the maps (SmoothGrad, signed; Smilkov et al. 2017), mean of their `square`
        (SmoothGrad-squared; Hooker et al. 2019), or their `variance` (VarGrad; Adebayo et al. 2018,
        "Local explanation methods..."), the population's (divided by n), as in Captum.
    method: what is applied to the copies, by default the gradient. One that draws at random draws anew for each copy.
    Raises ValueError for no copies (variance: fewer than two), negative noise, another aggregate or unit, or a method
    that has maps of the data set's own samples only.
    """

    fit_parameters = ("method",)

    def __init__(
        self,
        samples: int = 50,
        noise: float = 0.15,
        aggregate: Aggregate = "mean",
        unit: Unit = "range",
        method: Method | None = None,
    ) -> None:
        one_of("aggregate", aggregate, get_args(Aggregate))
        one_of("unit", unit, get_args(Unit))
        fewest = 2 if aggregate == "variance" else 1
        if samples < fewest:
            raise ValueError(f"samples={samples}: expected at least {fewest} for aggregate={aggregate}")
        if noise < 0:
            raise ValueError(f"noise={noise}: expected a fraction of the input's range, 0 or more")
        self.samples, self.noise, self.aggregate, self.unit = samples, noise, aggregate, unit
        self.method = method = Gradient() if method is None else method
        if method.own_samples_only:
            raise ValueError(f"method={type(method).__name__}: it has no maps of noisy copies")
        self.collapse, self.needs_mask, self.fit = method.collapse, method.needs_mask, method.fit
        # Squares and variances have no sign.
        self.sign_of_logit = method.sign_of_logit if aggregate == "mean" else False

    def check(self, classifier: Classifier) -> None:
        self.method.check(classifier)

    def cost(self, classifier: Classifier) -> tuple[int, int]:
        forwards, backwards = self.method.cost(classifier)
        return (self.samples * forwards, self.samples * backwards)

    def attribute(
        self, classifier: Classifier, inputs: torch.Tensor, targets: torch.Tensor, context: Context
    ) -> torch.Tensor:
        std = spread(inputs, self.noise, self.unit)
        within = rng.offspring(context.generators, self.samples)

        def noisy(part: slice) -> torch.Tensor:
            noise = torch.stack([torch.randn(inputs.shape[1:], generator=g) for g in context.generators[part]])
            return inputs[part] + std[part] * noise.to(inputs)

        mean: Any = None
        squares: Any = None
        for pieces in rows_of_copies(classifier, len(inputs), self.samples):
            of_copies = replace(
                context,
                generators=[within[sample][copy] for copy, part in pieces for sample in range(part.start, part.stop)],
                samples=[sample for _, part in pieces for sample in context.samples[part]],
                labels=None if context.labels is None else repeated(context.labels, pieces),
                masks=None if context.masks is None else repeated(context.masks, pieces),
            )
            copies = torch.cat([noisy(part) for _, part in pieces])
            maps = self.method.attribute(classifier, copies, repeated(targets, pieces), of_copies)
            if mean is None:
                mean, squares = (maps.new_zeros(len(inputs), *maps.shape[1:]) for _ in range(2))
            for copy, part, one in pieces_of(maps, pieces):
                # Welford's update: the variance of nearly equal maps does not drown in cancellation.
                before = one - mean[part]
                mean[part] += before / (copy + 1)
                squares[part] += one**2 if self.aggregate == "square" else before * (one - mean[part])
        return mean if self.aggregate == "mean" else squares / self.samples

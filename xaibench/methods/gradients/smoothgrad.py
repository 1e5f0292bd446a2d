"""SmoothGrad, SmoothGrad-squared and VarGrad: moments of a gradient method's maps around the input."""

import inspect
from typing import Any, Literal, get_args

import torch

from ... import rng
from ...errors import one_of
from ...models.classifier import Classifier
from ..base import Method
from ..copies import pieces_of, rows_of_copies
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
    Raises ValueError for no copies (variance: fewer than two), negative noise or another aggregate or unit.
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
        self.collapse, self.needs_mask = method.collapse, getattr(method, "needs_mask", False)
        self.fit = getattr(method, "fit", None)

    def check(self, classifier: Classifier) -> None:
        self.method.check(classifier)

    def cost(self, classifier: Classifier) -> tuple[int, int]:
        forwards, backwards = self.method.cost(classifier)
        return (self.samples * forwards, self.samples * backwards)

    def attribute(
        self,
        classifier: Classifier,
        inputs: torch.Tensor,
        targets: torch.Tensor,
        generators: list[torch.Generator],
        labels: torch.Tensor | None = None,
        masks: torch.Tensor | None = None,
        fitted: dict[str, torch.Tensor] | None = None,
        **context: Any,
    ) -> torch.Tensor:
        std = spread(inputs, self.noise, self.unit)
        within = rng.offspring(generators, self.samples)
        wanted = inspect.signature(self.method.attribute).parameters
        of_samples = {"labels": labels, "masks": masks}
        of_samples = {name: rows for name, rows in of_samples.items() if name in wanted and rows is not None}
        context = {"fitted": fitted} if "fitted" in wanted else {}

        def noisy(part: slice) -> torch.Tensor:
            noise = torch.stack([torch.randn(inputs.shape[1:], generator=g) for g in generators[part]])
            return inputs[part] + std[part] * noise.to(inputs)

        mean = squares = None
        for pieces in rows_of_copies(classifier, len(inputs), self.samples):
            maps = self.method.attribute(
                classifier,
                torch.cat([noisy(part) for _, part in pieces]),
                torch.cat([targets[part] for _, part in pieces]),
                [within[sample][copy] for copy, part in pieces for sample in range(part.start, part.stop)],
                **{name: torch.cat([rows[part] for _, part in pieces]) for name, rows in of_samples.items()},
                **context,
            )
            if mean is None:
                mean, squares = (maps.new_zeros(len(inputs), *maps.shape[1:]) for _ in range(2))
            for copy, part, one in pieces_of(maps, pieces):
                # Welford's update: the variance of nearly equal maps does not drown in cancellation.
                before = one - mean[part]
                mean[part] += before / (copy + 1)
                squares[part] += one**2 if self.aggregate == "square" else before * (one - mean[part])
        return mean if self.aggregate == "mean" else squares / self.samples

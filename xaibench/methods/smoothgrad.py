"""SmoothGrad, SmoothGrad-squared and VarGrad: moments of the gradient around the input."""

from typing import Any, Literal, get_args

import torch

from ..errors import nearest
from ..models.classifier import Classifier
from .base import Method
from .copies import over_copies

Aggregate = Literal["mean", "square", "variance"]


class SmoothGrad(Method):
    """A moment of the gradient over noisy copies x + N(0, s^2) of the input: [B,C,H,W].

    samples: noisy copies of each input.
    noise: s as a fraction of the input's own range, max(x) - min(x) over all channels.
    aggregate: `mean` of the gradients (SmoothGrad, signed; Smilkov et al. 2017), mean of their `square`
        (SmoothGrad-squared; Hooker et al. 2019), or their `variance` (VarGrad; Adebayo et al. 2018,
        "Local explanation methods..."), the population's (divided by n), as in Captum.
    Raises ValueError for no copies (variance: fewer than two), negative noise or another aggregate.
    """

    def __init__(self, samples: int = 50, noise: float = 0.15, aggregate: Aggregate = "mean") -> None:
        if aggregate not in get_args(Aggregate):
            raise ValueError(f"aggregate={aggregate}: {nearest(aggregate, get_args(Aggregate))}")
        fewest = 2 if aggregate == "variance" else 1
        if samples < fewest:
            raise ValueError(f"samples={samples}: expected at least {fewest} for aggregate={aggregate}")
        if noise < 0:
            raise ValueError(f"noise={noise}: expected a fraction of the input's range, 0 or more")
        self.samples, self.noise, self.aggregate = samples, noise, aggregate

    def cost(self, classifier: Classifier) -> tuple[int, int]:
        return (self.samples, self.samples)

    def attribute(
        self,
        classifier: Classifier,
        inputs: torch.Tensor,
        targets: torch.Tensor,
        generators: list[torch.Generator],
        **context: Any,
    ) -> torch.Tensor:
        spread = self.noise * (inputs.amax((1, 2, 3), keepdim=True) - inputs.amin((1, 2, 3), keepdim=True))

        def noisy(copy: int, part: slice) -> torch.Tensor:
            noise = torch.stack([torch.randn(inputs.shape[1:], generator=g) for g in generators[part]])
            return inputs[part] + spread[part] * noise.to(inputs)

        mean, squares = torch.zeros_like(inputs), torch.zeros_like(inputs)
        for copy, part, gradient in over_copies(classifier, targets, self.samples, noisy, classifier.gradient):
            # Welford's update: the variance of nearly equal gradients does not drown in cancellation.
            before = gradient - mean[part]
            mean[part] += before / (copy + 1)
            squares[part] += gradient**2 if self.aggregate == "square" else before * (gradient - mean[part])
        return mean if self.aggregate == "mean" else squares / self.samples

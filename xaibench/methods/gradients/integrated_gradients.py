"""Integrated gradients: the gradient along the straight path from a baseline, times the way."""

from typing import Literal, get_args

import numpy as np
import torch

from ...errors import one_of
from ...models.classifier import Classifier
from ..base import Method
from ..baselines import Baselines
from ..context import Context
from ..copies import over_copies

Quadrature = Literal["riemann_right", "riemann_left", "riemann_middle", "riemann_trapezoid", "gausslegendre"]
Factor = Literal["product", "average_gradient", "difference"]


class IntegratedGradients(Method):
    """(x - x') times the integral over a in [0, 1] of the gradient at x' + a (x - x'): [B,C,H,W], signed.

    Sundararajan et al. 2017, eq. 1; the default quadrature is their eq. 3. In units of the explained output, and
    complete: up to the error of the quadrature a map sums to f(x) - f(x'). Of several baselines the mean is taken.

    steps: points of the quadrature, each one gradient.
    baseline: x', one or a list of the words of `baselines`; `blur` is the input itself under a Gaussian of `sigma`
        pixels, `value` is the pixel value `value`, `dataset` stands for `references` images of the fit split.
    sigma, value, references: of these baselines.
    quadrature: where the points lie and what they weigh, see `points`.
    factor: the `product`, or one of its two factors as a map of its own (Heurich 2021): the `average_gradient` on the
        path (which the released code of the information bottleneck calls integrated gradients), or the `difference`
        x - x', which asks the network nothing.
    Raises ValueError for another word, for no steps (trapezoid: fewer than two) and for figures out of range.
    """

    sign_of_logit = False

    fit_parameters = ("references",)

    def __init__(
        self,
        steps: int = 50,
        baseline: list[str] | str = "zero",
        quadrature: Quadrature = "riemann_right",
        factor: Factor = "product",
        sigma: float = 5.0,
        value: float = 0.5,
        references: int = 10,
    ) -> None:
        one_of("factor", factor, get_args(Factor))
        self.points, self.steps, self.factor = points(quadrature, steps), steps, factor
        self.baselines = Baselines(baseline, sigma, value, references)
        self.fit = self.baselines.fit if self.baselines.from_data else None

    def check(self, classifier: Classifier) -> None:
        self.baselines.check(classifier)

    def cost(self, classifier: Classifier) -> tuple[int, int]:
        passes = 0 if self.factor == "difference" else self.steps * len(self.baselines)
        return (passes + self.baselines.passes, passes)

    def attribute(
        self, classifier: Classifier, inputs: torch.Tensor, targets: torch.Tensor, context: Context
    ) -> torch.Tensor:
        starts = self.baselines.of(classifier, inputs, context)
        total, integral = torch.zeros_like(inputs), torch.zeros_like(inputs)
        if self.factor == "difference":
            for start in starts:
                total += inputs - start
            return total / len(starts)
        places, weights = self.points

        def on_the_path(copy: int, part: slice) -> torch.Tensor:
            which, step = divmod(copy, self.steps)
            start = starts[which][part]
            return start + places[step] * (inputs[part] - start)

        copies = self.steps * len(starts)
        for copy, part, gradient in over_copies(classifier, targets, copies, on_the_path, classifier.gradient):
            which, step = divmod(copy, self.steps)
            integral[part] += weights[step] * gradient
            if step == self.steps - 1:
                way = inputs[part] - starts[which][part] if self.factor == "product" else 1
                total[part] += way * integral[part]
                integral[part] = 0
        return total / len(starts)


def points(quadrature: str, steps: int) -> tuple[list[float], list[float]]:
    """Places in [0, 1] and weights that sum to 1.

    Riemann sums take `steps` equal intervals, each at its right end, left end or middle. The trapezoid rule takes
    `steps` points, both ends among them. (Captum 0.9 divides its sum by `steps` where there are `steps - 1`
    intervals, and so returns (steps - 1) / steps of the integral.) gausslegendre is exact for polynomials of
    degree 2 * steps - 1. Raises ValueError for another word and for too few steps.
    """
    one_of("quadrature", quadrature, get_args(Quadrature))
    fewest = 2 if quadrature == "riemann_trapezoid" else 1
    if steps < fewest:
        raise ValueError(f"steps={steps}: expected at least {fewest} for quadrature={quadrature}")
    if quadrature == "gausslegendre":
        nodes, weights = np.polynomial.legendre.leggauss(steps)
        return ((1 + nodes) / 2).tolist(), (weights / 2).tolist()
    # Spaced by torch.linspace, as Captum does: the gradient of a ReLU network jumps, so that two paths whose points
    # differ in the last bit can differ in the second digit.
    if quadrature == "riemann_trapezoid":
        gap = 1 / (steps - 1)
        return torch.linspace(0, 1, steps).tolist(), [gap / 2, *[gap] * (steps - 2), gap / 2]
    first = {"riemann_right": 1.0, "riemann_left": 0.0, "riemann_middle": 0.5}[quadrature] / steps
    return torch.linspace(first, first + 1 - 1 / steps, steps).tolist(), [1 / steps] * steps

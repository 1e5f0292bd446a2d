"""Integrated gradients: the gradient along the straight path from a baseline, times the way."""

from typing import Any, Literal, get_args

import numpy as np
import torch

from ..errors import nearest
from ..fills import FILLS, Fill, filled
from ..models.classifier import Classifier
from .base import Method
from .copies import over_copies

Quadrature = Literal["riemann_right", "riemann_left", "riemann_middle", "riemann_trapezoid", "gausslegendre"]


class IntegratedGradients(Method):
    """(x - x') times the integral over a in [0, 1] of the gradient at x' + a (x - x'): [B,C,H,W], signed.

    Sundararajan et al. 2017, eq. 1; the default quadrature is their eq. 3. In units of the explained output, and
    complete: up to the error of the quadrature a map sums to f(x) - f(x').

    steps: points of the quadrature, each one gradient.
    baseline: x', one of the fill words; `blur` is the input itself under a Gaussian of `sigma` pixels.
    quadrature: where the points lie and what they weigh, see `points`.
    Raises ValueError for another word, for no steps (trapezoid: fewer than two) and for a sigma that is not positive.
    """

    def __init__(
        self,
        steps: int = 50,
        baseline: Fill = "zero",
        quadrature: Quadrature = "riemann_right",
        sigma: float = 5.0,
    ) -> None:
        if baseline not in FILLS:
            raise ValueError(f"baseline={baseline}: {nearest(baseline, FILLS)}")
        if quadrature not in get_args(Quadrature):
            raise ValueError(f"quadrature={quadrature}: {nearest(quadrature, get_args(Quadrature))}")
        fewest = 2 if quadrature == "riemann_trapezoid" else 1
        if steps < fewest:
            raise ValueError(f"steps={steps}: expected at least {fewest} for quadrature={quadrature}")
        if sigma <= 0:
            raise ValueError(f"sigma={sigma}: expected a positive number of pixels")
        self.steps, self.baseline, self.quadrature, self.sigma = steps, baseline, quadrature, sigma

    def cost(self, classifier: Classifier) -> tuple[int, int]:
        return (self.steps, self.steps)

    def attribute(
        self,
        classifier: Classifier,
        inputs: torch.Tensor,
        targets: torch.Tensor,
        generators: list[torch.Generator],
        **context: Any,
    ) -> torch.Tensor:
        baselines = filled(inputs, self.baseline, classifier.preprocessing, self.sigma)
        way = inputs - baselines
        places, weights = points(self.quadrature, self.steps)

        def on_the_path(step: int, part: slice) -> torch.Tensor:
            return baselines[part] + places[step] * way[part]

        integral = torch.zeros_like(inputs)
        for step, part, gradient in over_copies(classifier, targets, self.steps, on_the_path, classifier.gradient):
            integral[part] += weights[step] * gradient
        return way * integral


def points(quadrature: str, steps: int) -> tuple[list[float], list[float]]:
    """Places in [0, 1] and weights that sum to 1.

    Riemann sums take `steps` equal intervals, each at its right end, left end or middle. The trapezoid rule takes
    `steps` points, both ends among them. (Captum 0.9 divides its sum by `steps` where there are `steps - 1`
    intervals, and so returns (steps - 1) / steps of the integral.) gausslegendre is exact for polynomials of
    degree 2 * steps - 1.
    """
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

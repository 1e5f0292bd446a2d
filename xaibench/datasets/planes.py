"""Worlds of two features: classes are Gaussians in the plane, so that the best classifier is known in closed form.

Heurich 2021, chapter 3. A point is an input [1,1,2]: its coordinates are two places, not two channels.
"""

import math
from abc import abstractmethod

import torch

from ..errors import UserError, nearest
from ..rng import generator
from .base import Dataset, Example

VERSION = 1  # raised when any point changes
SIZES = {"train": 10_000, "validation": 2_000, "test": 10_000}


class Plane(Dataset):
    """Points drawn from Gaussians around given centres, or the regular grid on which maps become pictures.

    split: `train` (10 000 points), `validation` (2 000) and `test` (10 000) are draws, as many from each centre, and
        are not cut to the domain; a point's label is that of its centre. `grid:N` is N x N points that cover the
        domain, ends included, row by row: ids run along x1, rows along rising x2; `grid` is `grid:200`. There the
        label is that of the nearest centre, which is what the best classifier answers.
    generator_seed: another value is another draw.

    centres [n,2]; labels [n]: the class of each centre. sigma: standard deviation per axis. domain: (low, high) of both
    axes of the grid. steps: points per axis of the grid, None of a drawn split.
    """

    centres: torch.Tensor
    labels: tuple[int, ...]
    sigma: float
    domain: tuple[float, float]

    def __init__(self, split: str = "test", generator_seed: int = 0) -> None:
        self.steps = _steps(split)
        self.points, centre = self._grid(self.steps) if self.steps else self._draw(split, generator_seed)
        self._labels = [self.labels[index] for index in centre.tolist()]
        self.class_names = tuple(str(label) for label in sorted(set(self.labels)))
        self.fingerprint = f"{type(self).__name__}-{VERSION}:generator_seed={generator_seed}:split={split}"

    def __len__(self) -> int:
        return len(self.points)

    def __getitem__(self, index: int) -> Example:
        point = self.points[index]
        return Example(point.view(1, 1, 2), self._labels[index], self.importance(point).view(1, 2))

    @abstractmethod
    def importance(self, points: torch.Tensor) -> torch.Tensor:
        """How much each feature matters at points [...,2], the world's truth: [...,2] from 0 up."""

    @abstractmethod
    def bayes_accuracy(self) -> float:
        """The accuracy on drawn points that no classifier exceeds."""

    def _draw(self, split: str, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        count = SIZES[split]
        centre = torch.arange(count) % len(self.centres)
        noise = torch.randn(count, 2, generator=generator(type(self).__name__, seed, split))
        return self.centres[centre] + self.sigma * noise, centre

    def _grid(self, steps: int) -> tuple[torch.Tensor, torch.Tensor]:
        axis = torch.linspace(*self.domain, steps)
        points = torch.cartesian_prod(axis, axis).flip(1)
        return points, torch.cdist(points, self.centres).argmin(1)


class Xor(Plane):
    """The noisy exclusive or: sigma 0.2 around the corners of the unit square, class 1 where one coordinate is 1.

    Its truth, as Heurich 2021 states it case by case: the nearer one coordinate is to 0.5, the less the other one
    tells. In closed form G1 = 2 |x2 - 0.5| and G2 = 2 |x1 - 0.5|, the absolute gradient of x1 + x2 - 2 x1 x2.
    """

    has_masks, graded_masks = True, True
    centres = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    labels = (0, 1, 1, 0)
    sigma = 0.2
    domain = (0.0, 1.0)

    def importance(self, points: torch.Tensor) -> torch.Tensor:
        return 2 * (points.flip(-1) - 0.5).abs()

    def bayes_accuracy(self) -> float:
        """1 - 2 p (1 - p): right where neither or both coordinates crossed 0.5, each with probability p."""
        crossed = 0.5 * math.erfc(0.5 / self.sigma / math.sqrt(2))
        return 1 - 2 * crossed * (1 - crossed)


class RingOfGaussians(Plane):
    """Five classes, sigma 0.45 around five points equally far apart on a circle of radius 1.8, the first at angle 0.

    Its truth in Heurich 2021 is that both coordinates matter equally, everywhere; he judges it insufficient. The best
    logits are linear, mu_c . x / sigma^2.
    """

    has_masks, graded_masks = True, True
    radius = 1.8
    centres = radius * torch.tensor([[math.cos(2 * math.pi * c / 5), math.sin(2 * math.pi * c / 5)] for c in range(5)])
    labels = tuple(range(5))
    sigma = 0.45
    domain = (-4.0, 4.0)

    def importance(self, points: torch.Tensor) -> torch.Tensor:
        return torch.ones_like(points)

    def bayes_accuracy(self) -> float:
        """The share of a class's Gaussian in the wedge of directions within pi / 5 of its centre's, by quadrature.

        At angle t a Gaussian at distance r from the origin has the density (phi(r / sigma) + c phi(s) Phi(c)) / phi(0)
        / sqrt(2 pi) with c = r cos(t) / sigma, s = r sin(t) / sigma: the integral over the distance in closed form.
        """
        angle = torch.linspace(-math.pi / 5, math.pi / 5, 2001, dtype=torch.float64)
        along, across = (self.radius / self.sigma * part for part in (angle.cos(), angle.sin()))
        normal = torch.distributions.Normal(torch.zeros((), dtype=torch.float64), 1.0)
        far = math.exp(-0.5 * (self.radius / self.sigma) ** 2) / (2 * math.pi)
        density = far + along * normal.log_prob(across).exp() * normal.cdf(along)
        return float(torch.trapezoid(density, angle))


class SignalDistractor(Dataset):
    """Points x = y a_s + e a_d + noise, of which the label y is to be told (Kindermans et al. 2018, section 3).

    The signal's direction a_s = (1, 0) is along the first feature; the distractor's, a_d = (1, 1), along both. y, e and
    the noise of each feature are drawn from Gaussians, of deviation 1, 1 and `noise`. To tell y, a linear network
    must read the second feature, which says nothing of y, to cancel the distractor: its weights are `weights()`, and
    what they find in a point is the signal, y a_s. The mask is where the signal is: the first feature.

    split, generator_seed: as of a `Plane`, without its grid.
    """

    has_masks = True
    signal, distractor = torch.tensor([1.0, 0.0]), torch.tensor([1.0, 1.0])

    def __init__(self, split: str = "test", noise: float = 0.1, generator_seed: int = 0) -> None:
        if split not in SIZES:
            raise UserError(f"dataset.split={split}: {nearest(split, SIZES)}")
        if not 0 <= noise < math.inf:
            raise UserError(f"dataset.noise={noise}: expected a standard deviation, 0 or more")
        drawn = torch.randn(SIZES[split], 4, generator=generator("SignalDistractor", generator_seed, split))
        self.noise, self.values = noise, drawn[:, 0]
        self.points = drawn[:, :1] * self.signal + drawn[:, 1:2] * self.distractor + noise * drawn[:, 2:]
        self.fingerprint = f"SignalDistractor-{VERSION}:generator_seed={generator_seed}:split={split}:noise={noise}"

    def __len__(self) -> int:
        return len(self.points)

    def __getitem__(self, index: int) -> Example:
        return Example(self.points[index].view(1, 1, 2), float(self.values[index]), (self.signal > 0).view(1, 2))

    def weights(self) -> torch.Tensor:
        """Those of the linear network with the least squared error: cov(x)^-1 cov(x, y) [2]; (1, -1) without noise."""
        covariance = sum(torch.outer(part, part) for part in (self.signal, self.distractor))
        return torch.linalg.solve(covariance + self.noise**2 * torch.eye(2), self.signal)


def _steps(split: str) -> int | None:
    """Points per axis of a grid, None for a drawn split. Raises UserError for any other word."""
    if split in SIZES:
        return None
    word, _, steps = split.partition(":")
    if word != "grid":
        raise UserError(f"dataset.split={split}: {nearest(split, [*SIZES, 'grid'])}")
    if not steps:
        return 200
    if not steps.isdecimal() or int(steps) < 2:
        raise UserError(f"dataset.split={split}: expected at least two points per axis, such as grid:51")
    return int(steps)

"""RISE: the average of random masks, each weighted by what the network answers to the image seen through it."""

import math
from collections.abc import Callable, Sequence

import torch
from torch.nn import functional

from ...errors import one_of
from ...models.classifier import Classifier
from ...perturb.fills import FILLS, Fill, check_fill, filled
from ...perturb.perturbed import masked, replacing
from ..base import Method
from ..context import Context

# Masks that exist at a time when they are added up. Independent of the batch size, and with it the order of the sum.
PART = 64


class Rise(Method):
    """1 / (N p) times the sum over N random masks m of f(x through m) m: [B,1,H,W], never negative if f is not.

    Petsiuk et al. 2018, eq. 6, with the masks of section 3.2: cells of a coarse grid are open with probability p; the
    grid is enlarged bilinearly to one cell more than the image, and cropped at a random place. (Within half a cell of
    its edge the enlarged grid is constant across; the authors' code mirrors it there.) In units of the explained
    output. The normalisation estimates the mean of f over the masks through which a pixel is seen; so a
    constant added to f lifts the whole map, and its pattern drowns in the noise of few masks. The authors explain
    probabilities (`output=probability`), which are near 0 for most masks.

    samples: N, masks per image; the authors took 4000 (VGG-16) and 8000 (ResNet-50).
    cells: of the coarse grid along each side. probability: p.
    fill: what a closed mask shows, one of the fill words; `blur` is the input itself under a Gaussian of `sigma`
        pixels.
    Raises ValueError for no samples or cells, a p that is not between 0 and 1, another word and a sigma that is not
    positive.
    """

    sign_of_logit = False

    def __init__(
        self, samples: int = 4000, cells: int = 7, probability: float = 0.5, fill: Fill = "zero", sigma: float = 5.0
    ) -> None:
        if samples < 1:
            raise ValueError(f"samples={samples}: expected at least 1 mask")
        if cells < 1:
            raise ValueError(f"cells={cells}: expected at least 1")
        if not 0 < probability <= 1:
            raise ValueError(f"probability={probability}: expected more than 0 and up to 1")
        one_of("fill", fill, FILLS)
        if not sigma > 0:
            raise ValueError(f"sigma={sigma}: expected a positive number of pixels")
        self.samples, self.cells, self.probability, self.fill, self.sigma = samples, cells, probability, fill, sigma

    def check(self, classifier: Classifier) -> None:
        check_fill(self.fill, classifier, "method.fill")

    def cost(self, classifier: Classifier) -> tuple[int, int]:
        return (self.samples, 0)

    def attribute(
        self, classifier: Classifier, inputs: torch.Tensor, targets: torch.Tensor, context: Context
    ) -> torch.Tensor:
        masks = self._masks(context.generators, inputs)

        def mask(sample: int, part: slice, out: torch.Tensor) -> None:
            out.copy_(1 - masks(sample, part))

        fills = filled(inputs, self.fill, classifier.preprocessing, self.sigma)
        answers = masked(classifier, inputs, replacing(inputs, fills), mask, self.samples, targets)
        maps = torch.zeros_like(inputs[:, :1])
        for sample, weights in enumerate(answers / (self.samples * self.probability)):
            for start in range(0, self.samples, PART):
                part = slice(start, start + PART)
                maps[sample] += torch.tensordot(weights[part], masks(sample, part), dims=1)
        return maps

    def _masks(self, generators: Sequence[torch.Generator], like: torch.Tensor) -> Callable[[int, slice], torch.Tensor]:
        """The masks of B images as a function of the image and which of them: -> [n,1,H,W] from 0 (closed) to 1 (open).

        Enlarging and cropping are linear along each side, so a mask is R G C^T of its grid G, and only grids and
        places are kept.
        """
        down, across = (self._windows(side, like) for side in like.shape[2:])
        shape = (self.samples, self.cells, self.cells)
        drawn = [
            (
                torch.rand(shape, generator=generator) < self.probability,
                *(torch.randint(len(windows), (self.samples,), generator=generator) for windows in (down, across)),
            )
            for generator in generators
        ]
        grids, tops, lefts = (torch.stack(column).to(like.device) for column in zip(*drawn))

        def masks(sample: int, part: slice) -> torch.Tensor:
            rows, columns = down[tops[sample, part]], across[lefts[sample, part]]
            return (rows @ grids[sample, part].to(like) @ columns.mT)[:, None]

        return masks

    def _windows(self, side: int, like: torch.Tensor) -> torch.Tensor:
        """Bilinear weights [cell,side,cells] of the pixels of each crop, along one side; `cell` places to crop at."""
        cell = math.ceil(side / self.cells)
        one_hot = torch.eye(self.cells, dtype=like.dtype, device=like.device)[None]
        enlarged = functional.interpolate(one_hot, (self.cells + 1) * cell, mode="linear", align_corners=False)[0]
        return enlarged.T.unfold(0, side, 1)[:cell].mT

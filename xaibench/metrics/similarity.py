"""How alike two maps of one image are: what the metrics share that change the network or the class, not the image."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from skimage.feature import hog
from torch.nn import functional as F

from ..datasets.base import Batch
from ..errors import Refusal
from ..methods.context import Context
from ..methods.controls.controls import Sobel
from ..models.classifier import Classifier
from .base import Columns, Metric, Statistic
from .ranking import Collapse, Sign, collapse, mid_ranks

Scaling = Literal["min_max", "max_abs"]
# SSIM of the maps as they are, and the greater of that and of the SSIM with the negative map: one of the two is `ssim`.
EITHER = ("ssim_signed", "ssim_either_sign")
MEASURES = ("ssim", "spearman", "spearman_abs", "hog")
FLOORS = ("floor_shuffled", "floor_noise", "floor_edges", "floor_input")
CELLS = 3  # cells along a side of a block of HOG, scikit-image's default


@dataclass(kw_only=True, eq=False)
class SimilarityMetric(Metric):
    """Base class: the similarity of two maps by four measures, and what maps that have nothing in common score.

    ssim: mean structural similarity (Wang et al. 2004) over uniform windows, as scikit-image defines it, of maps that
        are clipped and scaled. spearman, spearman_abs: the rank correlation of the maps, of their absolute values.
    hog: Pearson's correlation of scikit-image's histograms of oriented gradients (9 directions, blocks of 3 x 3
        cells), of the maps as SSIM gets them.
    A map without any contrast has nothing in common with one that has some: its correlations are 0, and scaled it is 0
    everywhere; two such maps are alike, 1. Equal maps are 1 by every measure, exactly.

    The level of SSIM says little by itself: two unrelated maps with a few high peaks are alike in being flat, and a
    map that multiplies by the input looks like another that does. Hence the floors, SSIM of the map with itself
    shuffled, with normal noise, with the edges of the image (the control `sobel`), and with |x|, the sum over the
    channels of the normalised input's absolute values (|x - x'| for the baseline `zero`).

    The parameters are keyword-only, so that a subclass (`@dataclass(eq=False)`) has its own before them:
    window: side of SSIM's windows in pixels, odd. data_range: its L, 1 for maps in [0, 1], 2 for maps in [-1, 1].
    clip: percentiles beyond which a map is cut off; [0, 100] leaves it whole. Where they coincide, in a map that is
        mostly one value, it is left whole too.
    scaling: `min_max` to [0, 1], `max_abs` by the largest absolute value to [-1, 1], which keeps zero where it is.
    flip_max: compare with the negative map too, and take the greater: `true`, `false`, or `auto`, for methods that
        declare that the logit's sign turns their maps (`Method.sign_of_logit`). That is what Sixt 2022 (chapters 3 and
        4) does for such rules; of methods whose sign means something it only raises the score. `ssim_signed` and
        `ssim_either_sign` stand in the rows whatever it says, and `flipped` (0 or 1) says which is `ssim`.
    hog_cell: side of a cell of HOG in pixels. collapse, sign: see `Metric`.
    """

    window: int = 5
    data_range: float = 1.0
    clip: tuple[float, ...] = (1.0, 99.0)
    scaling: Scaling = "min_max"
    flip_max: bool | Literal["auto"] = "auto"
    hog_cell: int = 8
    collapse: Collapse | None = None
    sign: Sign = "signed"

    def __post_init__(self) -> None:
        if self.window < 3 or self.window % 2 == 0:
            raise ValueError(f"window={self.window}: expected an odd number of pixels, at least 3")
        if not self.data_range > 0:
            raise ValueError(f"data_range={self.data_range}: expected a positive number, 1 for maps in [0, 1]")
        if len(self.clip) != 2 or not 0 <= self.clip[0] < self.clip[1] <= 100:
            raise ValueError(f"clip={list(self.clip)}: expected two rising percentiles, such as [1,99]")
        if self.hog_cell < 1:
            raise ValueError(f"hog_cell={self.hog_cell}: expected a positive number of pixels")

    def check(self, classifier: Classifier) -> None:
        side = min(classifier.input_size[1:])
        if side < self.window:
            raise Refusal(f"metric.window={self.window}: {classifier.name} has maps of only {side} pixels")
        if side < CELLS * self.hog_cell:
            raise Refusal(
                f"metric.hog_cell={self.hog_cell}: {classifier.name} has maps of {side} pixels, not {CELLS} cells"
            )

    def flips(self, sign_of_logit: bool | None) -> bool:
        """Whether the negative map counts too, for a method that declares this of its maps."""
        return sign_of_logit is True if self.flip_max == "auto" else self.flip_max

    def similarities(
        self, maps: torch.Tensor, others: torch.Tensor, sign_of_logit: bool | None = None
    ) -> dict[str, torch.Tensor]:
        """MEASURES and EITHER of maps and others [B,H,W] -> float64 [B] each; NaN where one of the two is not
        finite."""
        found = self._one_way(maps, others)
        signed, turned = found["ssim"], self._ssim(maps, -others)
        if self.flips(sign_of_logit):
            flipped = self._one_way(maps, -others)
            found = {name: torch.maximum(value, flipped[name]) for name, value in found.items()}
        found |= dict(zip(EITHER, (signed, torch.maximum(signed, turned))))
        finite = (maps + others).isfinite().flatten(1).all(1)
        return {name: value.where(finite, torch.nan) for name, value in found.items()}

    def floors(
        self,
        classifier: Classifier,
        batch: Batch,
        maps: torch.Tensor,
        generators: Sequence[torch.Generator],
        sign_of_logit: bool | None = None,
    ) -> dict[str, torch.Tensor]:
        """FLOORS: the SSIM of maps [B,H,W] with maps that know nothing of the network -> float64 [B] each."""
        size = maps[0].numel()
        shuffles = torch.stack([torch.randperm(size, generator=g) for g in generators]).to(maps.device)
        noise = torch.stack([torch.randn(maps.shape[1:], generator=g) for g in generators]).to(maps)
        unrelated = (
            maps.flatten(1).gather(1, shuffles).view_as(maps),
            collapse(noise[:, None], "sum", self.sign),
            Sobel().attribute(classifier, batch.inputs, batch.targets, Context())[:, 0].to(maps),
            batch.inputs.abs().sum(1).to(maps),
        )
        signs = (1, -1) if self.flips(sign_of_logit) else (1,)
        return {
            name: torch.stack([self._ssim(maps, sign * other) for sign in signs]).amax(0)
            for name, other in zip(FLOORS, unrelated)
        }

    def compared(
        self,
        classifier: Classifier,
        batch: Batch,
        maps: torch.Tensor,
        similarities: Mapping[str, torch.Tensor],
        context: Context,
    ) -> Columns:
        """The columns that all these metrics have: `similarities` [B], the floors, and `flipped` [B]."""
        flipped = torch.full((len(maps),), float(self.flips(context.sign_of_logit)), dtype=torch.float64)
        floors = self.floors(classifier, batch, maps, context.generators, context.sign_of_logit)
        return {**similarities, **floors, "flipped": flipped.to(maps.device)}

    def _ssim(self, maps: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
        """The SSIM of maps [B,H,W] after clipping and scaling."""
        return ssim(self.scaled(maps), self.scaled(others), self.window, self.data_range)

    def scaled(self, maps: torch.Tensor) -> torch.Tensor:
        """Maps [B,H,W] clipped and scaled, in float64; a map of one value is 0 everywhere."""
        values = maps.flatten(1).double()
        ordered = values.sort(1).values
        low, high = (percentile(ordered, percent) for percent in self.clip)
        flat = low == high
        low, high = ordered[:, :1].where(flat, low), ordered[:, -1:].where(flat, high)
        values = values.clamp(low, high)
        if self.scaling == "min_max":
            values, size = values - low, high - low
        else:
            size = torch.maximum(low.abs(), high.abs())
        return (values / size).where(low < high, 0).view_as(maps)

    def _one_way(self, maps: torch.Tensor, others: torch.Tensor) -> dict[str, torch.Tensor]:
        pair = self.scaled(maps), self.scaled(others)
        ranked = [mid_ranks(m.flatten(1)) for m in (maps, others)]
        ranked_abs = [mid_ranks(m.flatten(1).abs()) for m in (maps, others)]
        return {
            "ssim": ssim(*pair, self.window, self.data_range),
            "spearman": pearson(*ranked),
            "spearman_abs": pearson(*ranked_abs),
            "hog": pearson(*(self._hog(m) for m in pair)),
        }

    def _hog(self, maps: torch.Tensor) -> torch.Tensor:
        """scikit-image's features of scaled maps -> [B,F]; it takes one image at a time, on the CPU."""
        size = (self.hog_cell, self.hog_cell)
        return torch.from_numpy(np.stack([hog(m, pixels_per_cell=size) for m in maps.cpu().numpy()])).to(maps)


def further_statistics() -> tuple[Statistic, ...]:
    """How the measures other than SSIM and the floors are read. Unrelated maps correlate with 0, either way."""
    return (
        *(
            Statistic(name, "target", name, low=-1, high=1, target=0.0, unit="correlation")
            for name in MEASURES
            if name != "ssim"
        ),
        *(Statistic(name, "lower", name, low=-1, high=1, unit="SSIM") for name in FLOORS),
    )


def ssim(maps: torch.Tensor, others: torch.Tensor, window: int, data_range: float) -> torch.Tensor:
    """Mean structural similarity of maps [B,H,W] -> [B], in [-1, 1] (Wang et al. 2004, eq. 13 with K1 = .01, K2 = .03).

    Uniform windows that lie within the map, unbiased variances: scikit-image's `structural_similarity` with
    `win_size=window`. Equal maps give exactly 1.
    """

    def mean(values: torch.Tensor) -> torch.Tensor:
        return F.avg_pool2d(values[:, None], window, stride=1)[:, 0]

    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    unbiased = window**2 / (window**2 - 1)
    a, b = mean(maps), mean(others)
    variance_a = unbiased * (mean(maps * maps) - a * a)
    variance_b = unbiased * (mean(others * others) - b * b)
    covariance = unbiased * (mean(maps * others) - a * b)
    similar = (2 * a * b + c1) * (2 * covariance + c2)
    return (similar / ((a * a + b * b + c1) * (variance_a + variance_b + c2))).flatten(1).mean(1)


def pearson(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Pearson's correlation of rows [B,N] -> [B]; 0 where one row is constant, 1 where both are."""
    constant_a, constant_b = (x.amax(1) == x.amin(1) for x in (a, b))
    a, b = (x - x.mean(1, keepdim=True) for x in (a, b))
    found = (a * b).sum(1) / ((a * a).sum(1) * (b * b).sum(1)).sqrt()
    return found.where(~(constant_a | constant_b), (constant_a & constant_b).to(found))


def averaged(found: Sequence[Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """The mean of several `similarities`, by measure."""
    return {name: torch.stack([similarity[name] for similarity in found]).mean(0) for name in found[0]}


def percentile(ordered: torch.Tensor, percent: float) -> torch.Tensor:
    """numpy's linear percentile of sorted rows [B,N] -> [B,1]."""
    place = (ordered.shape[1] - 1) * percent / 100
    below, above = math.floor(place), math.ceil(place)
    return torch.lerp(ordered[:, below], ordered[:, above], place - below)[:, None]

"""Masked Pearson: how alike a map's two features are, where the network is sure and where it is not."""

import math
from collections.abc import Callable
from typing import Literal, get_args

import torch

from ...errors import one_of
from ..base import Columns, Statistic
from ..ranking import Collapse, Sign
from ._surface import SurfaceMetric, surfaces

Align = Literal["none", "rot90", "rot270", "transpose"]

# Each is applied to the picture of the second feature, whose rows run along rising x2 and columns along rising x1.
ALIGNMENTS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "none": lambda picture: picture,
    "rot90": lambda picture: picture.rot90(1),
    "rot270": lambda picture: picture.rot90(3),
    "transpose": lambda picture: picture.T,
}


class MaskedPearson(SurfaceMetric):
    """Pearson's correlation of A_1 and A_2 over two parts of the grid (Heurich 2021, eq. 3.4).

    A_1, A_2: see `SurfaceMetric`. C is where the network is sure, f < low or f > high; DB is the rest, around its
    decision boundaries. f is a scalar network's output, otherwise the probability of the explained class. Over C
    the pictures are compared as they are; over DB the second one is turned first, and the choice of the turn decides
    the sign: by `rot90` and `rot270` the gradient of an ideal exclusive or scores -1 and +1. Which one the thesis
    took is not known, and none gives the signs of its whole row (docs/worlds.md). The one that belongs to a function
    which is the same with its features swapped is `transpose`.

    (The thesis prints a sum where eq. 3.4 needs a product, and "and" where C needs "or".)

    low, high: bounds of f. align: the alignment that `rho_boundary` takes; all four are given beside it.
    collapse, sign: see `Metric`.

    Columns: rho_sure, rho_boundary, and rho_boundary_none, _rot90, _rot270, _transpose, in [-1, 1], undefined (NaN)
    where a picture is constant; for reading them n_sure, n_boundary, the points of the two parts, and std_sure_1, _2,
    std_boundary_1, _2, the standard deviations there: on the plateaus of a gradient they are next to 0, and the
    correlation says little.
    """

    statistics = tuple(
        Statistic(name, "higher", name, kind="repeats", low=-1, high=1, unit="correlation")
        for name in ("rho_sure", "rho_boundary", *(f"rho_boundary_{align}" for align in ALIGNMENTS))
    )

    def __init__(
        self,
        align: Align = "rot90",
        low: float = 0.2,
        high: float = 0.8,
        collapse: Collapse | None = None,
        sign: Sign = "signed",
    ) -> None:
        one_of("align", align, get_args(Align))
        if not low < high:
            raise ValueError(f"low={low}, high={high}: expected low below high")
        self.align, self.low, self.high, self.collapse, self.sign = align, low, high, collapse, sign

    def pool(self, maps: torch.Tensor, outputs: torch.Tensor) -> Columns:
        first, second = surfaces(maps)
        f = outputs.reshape(first.shape)
        sure = (f < self.low) | (f > self.high)
        found = {"rho_sure": _pearson(first[sure], second[sure])}
        for name, turned in ALIGNMENTS.items():
            found[f"rho_boundary_{name}"] = _pearson(first[~sure], turned(second)[~sure])
        found["rho_boundary"] = found[f"rho_boundary_{self.align}"]
        for part, where in (("sure", sure), ("boundary", ~sure)):
            found[f"n_{part}"] = where.sum()
            for number, picture in enumerate((first, second), 1):
                values = picture[where]
                found[f"std_{part}_{number}"] = (values - values.mean()).square().mean().sqrt()
        return found


def _pearson(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Of values [n] and [n], which should be finite; NaN where one is constant or there are fewer than two."""
    if len(a) < 2 or a.amax() == a.amin() or b.amax() == b.amin():
        return torch.tensor(math.nan)
    a, b = a - a.mean(), b - b.mean()
    return (a @ b) / (a.norm() * b.norm())

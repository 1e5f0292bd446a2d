"""Dimensional difference: how unequally a map treats the two features of a plane world."""

import torch

from ..base import Columns, Statistic
from ..ranking import Collapse, Sign
from ._surface import SurfaceMetric, surfaces

# Of maps in float32, in units of their largest value.
ROUNDING = 1e-6


class DimDiff(SurfaceMetric):
    """The mean over the grid of D = |A_1 - A_2|, scaled to [0, 1] by its extremes there (Heurich 2021, eqs. 3.1-3.3).

    A_1, A_2: see `SurfaceMetric`. The thesis prints the sum over the grid divided by the number of steps per axis,
    which grows with that number; both are given. A map that treats both features alike everywhere has no difference,
    and neither has one whose difference is the same everywhere: both are 0, the best value, which `constant` takes.
    (So is a range of D below a millionth of the largest attribution; the thesis adds an epsilon that it does not give.)
    The thesis rejects the metric: it ignores structure, and its winner is not the method that looks right.

    collapse, sign: see `Metric`.

    Columns: dim_diff, the mean, in [0, 1]; dim_diff_sum, as printed.
    """

    statistics = (
        Statistic("dim_diff", "lower", "dim_diff", kind="repeats", low=0, high=1, unit="share of the range of D"),
        Statistic("dim_diff_sum", "lower", "dim_diff_sum", kind="repeats", low=0, unit="mean times points per axis"),
    )

    def __init__(self, collapse: Collapse | None = None, sign: Sign = "signed") -> None:
        self.collapse, self.sign = collapse, sign

    def pool(self, maps: torch.Tensor, outputs: torch.Tensor) -> Columns:
        first, second = surfaces(maps)
        difference = (first - second).abs()
        low, high = difference.aminmax()
        # Two equal pictures differ by rounding, which the scaling would blow up to the whole range.
        rounding = ROUNDING * maps.abs().amax()
        alike = high - low <= rounding
        mean = torch.zeros_like(high) if alike else ((difference - low) / (high - low)).mean()
        return {"dim_diff": mean, "dim_diff_sum": mean * len(first)}

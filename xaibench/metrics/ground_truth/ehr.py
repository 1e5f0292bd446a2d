"""Effective heat ratio: how much of the heat over rising thresholds lies in the object's region."""

from collections.abc import Sequence
from typing import Literal

import torch

from ..base import Statistic
from ..ranking import Collapse, Sign
from ._ground_truth import GroundTruthMetric


class EHR(GroundTruthMetric):
    """Effective heat ratio (Zhang et al. 2021, InputIBA; Khakzar 2022, ch. 6), with the readings of its released code.

    Pixels under `base_threshold` count as 0. At quantile q of the values that survive, with t the smaller of that
    quantile and 0.99 of the maximum, the ratio is the sum of the map over the region's pixels of at least t, divided
    by the number of pixels of at least t anywhere. EHR is the area under the ratios over q from 0 to 1 (trapezoids).
    A map that is 1 in the region and 0 elsewhere has 1; a wide halo of low heat costs more than under rank metrics.
    A map of which nothing survives has 0. An image whose region covers nothing or everything is undefined (NaN).

    The quantiles are those of the surviving pixels: over all pixels, as the text has it, the perfect map of its own
    figure 11 would have 0.44.

    scale: how a map comes to [0, 1], which the definition takes for granted and on which everything depends. `max`
        divides by the map's maximum, so that maps in any unit can be compared. `none` takes the values as they are,
        for maps that are in [0, 1] by construction; then a faint map scores low (a perfect one of heat 0.25 has 0.25,
        as in figure 11 c), and a map with a value above 1 is undefined (NaN).
    weight_by_heat: False counts pixels of the region instead of summing their heat.
    base_threshold: in units of the scaled map. quantiles: how many, 0 and 1 included.
    collapse, sign: see `Metric`. Negative values never survive.

    Columns: ehr, in [0, 1].
    """

    statistics = (Statistic("ehr", "higher", "ehr", low=0, high=1, unit="heat per selected pixel"),)

    def __init__(
        self,
        scale: Literal["max", "none"] = "max",
        weight_by_heat: bool = True,
        base_threshold: float = 0.1,
        quantiles: int = 11,
        collapse: Collapse | None = None,
        sign: Sign = "positive",
    ) -> None:
        super().__init__(collapse, sign)
        if not 0 < base_threshold < 1:
            raise ValueError(f"base_threshold={base_threshold}: expected a number between 0 and 1")
        if quantiles < 2:
            raise ValueError(f"quantiles={quantiles}: expected at least 2")
        self.scale, self.weight_by_heat = scale, weight_by_heat
        self.base_threshold, self.quantiles = base_threshold, quantiles

    def score(self, maps: torch.Tensor, regions: torch.Tensor, generators: Sequence[torch.Generator]) -> torch.Tensor:
        peak = maps.amax(1, keepdim=True)
        if self.scale == "max":
            maps = maps / peak.where(peak > 0, 1)
        survives = maps >= self.base_threshold
        heat = maps.where(survives, 0)
        survivors = survives.sum(1, keepdim=True)
        ratios = torch.stack([self._ratio(heat, regions, t) for t in self._thresholds(heat, survivors)], dim=1)
        area = torch.trapezoid(ratios, dx=1 / (self.quantiles - 1)).where(survivors[:, 0] > 0, 0)
        return area if self.scale == "max" else area.where(peak[:, 0] <= 1, torch.nan)

    def _thresholds(self, heat: torch.Tensor, survivors: torch.Tensor) -> list[torch.Tensor]:
        """The threshold [B,1] of each quantile, interpolated linearly between the survivors."""
        ordered, steps = heat.sort(dim=1).values, self.quantiles - 1
        first, last = heat.shape[1] - survivors, heat.shape[1] - 1  # survivors are the end of the order
        thresholds = []
        for step in range(self.quantiles):
            # Whole numbers: 0.1 * 3 * 10 is not 3, and would raise the threshold above a pixel that is the quantile.
            place = step * (survivors - 1).clamp(min=0)
            lower = (first + place // steps).clamp(max=last)
            upper = (lower + 1).clamp(max=last)
            weight = (place % steps).double() / steps
            quantile = torch.lerp(ordered.gather(1, lower), ordered.gather(1, upper), weight)
            thresholds.append(torch.minimum(quantile, 0.99 * ordered[:, -1:]))
        return thresholds

    def _ratio(self, heat: torch.Tensor, regions: torch.Tensor, threshold: torch.Tensor) -> torch.Tensor:
        selected = heat >= threshold
        amount = heat if self.weight_by_heat else torch.ones_like(heat)
        return (amount * (selected & regions)).sum(1) / selected.sum(1)

"""Which of its two factors integrated gradients looks like: the way from the baseline, or the gradient on it."""

import dataclasses

import torch

from ...build import TARGET, locate
from ...datasets.base import Batch
from ...errors import Refusal
from ...job import Job
from ...methods.context import Context
from ...methods.gradients.integrated_gradients import IntegratedGradients
from ...models.classifier import Classifier
from ..base import Columns, Metric, Statistic

FACTORS = ("difference", "average_gradient")


class IGDecomposition(Metric):
    """The mean distance of a map of integrated gradients from each of its factors (Heurich 2021, 4.2).

    IG = P^B P^I, the `difference` x - x' times the `average_gradient` on the path. Map and factors are scaled, since
    their units differ, and compared pixel by pixel; the thesis does not say how it scales, so both usual ways are
    given: by the largest absolute value, and to [0, 1] by the extremes. The ratio is the mean distance from the
    gradient over that from the difference. At 1 both are equally far (the thesis's zero baseline), below 1 the map
    looks more like the gradient; it is large where the map is little more than x - x' (the thesis has 77 for a
    counterfactual baseline, which needs an invertible network). Run it over `method.baseline`. The factors' maps are
    cached like any others.

    Only for method integrated_gradients. Channels are collapsed first, in all three alike.

    Columns: difference_abs_max, average_gradient_abs_max, difference_min_max, average_gradient_min_max, from 0 (to 2
    and to 1); undefined (NaN) where a map or a factor is constant, as x - x' is where input and baseline agree.
    """

    statistics = tuple(
        Statistic(f"ratio_{scaling}", "target", f"average_gradient_{scaling}", f"difference_{scaling}", target=1.0)
        for scaling in ("abs_max", "min_max")
    )
    collapse = "sum"

    def needs(self, job: Job, classifier: Classifier) -> dict[str, Job]:
        """The two factors of the same maps. Raises Refusal for another method, and for a factor alone."""
        is_own = locate(job.method_spec[TARGET], "method") is IntegratedGradients
        if not is_own or job.method_spec.get("factor", "product") != "product":
            raise Refusal(f"ig_decomposition takes integrated gradients apart, not method={job.method}")
        return {
            factor: dataclasses.replace(job, method_spec={**job.method_spec, "factor": factor}) for factor in FACTORS
        }

    def evaluate(self, classifier: Classifier, batch: Batch, maps: torch.Tensor, context: Context) -> Columns:
        columns = {}
        for factor in FACTORS:
            pair = [values.flatten(1).double() for values in (maps, context.others[factor])]
            constant = torch.stack([values.amax(1) == values.amin(1) for values in pair]).any(0)
            for scaling, scaled in (("abs_max", _by_abs_max), ("min_max", _by_extremes)):
                distance = (scaled(pair[0]) - scaled(pair[1])).abs().mean(1)
                columns[f"{factor}_{scaling}"] = distance.where(~constant, torch.nan)
        return columns


def _by_abs_max(maps: torch.Tensor) -> torch.Tensor:
    return maps / maps.abs().amax(1, keepdim=True)


def _by_extremes(maps: torch.Tensor) -> torch.Tensor:
    low, high = maps.amin(1, keepdim=True), maps.amax(1, keepdim=True)
    return (maps - low) / (high - low)

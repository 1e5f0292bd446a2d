"""What a metric is to xaibench: per-sample columns, and how they become the numbers of a leaderboard."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ..datasets.base import Batch, Dataset
from ..models.classifier import Classifier


@dataclass(frozen=True)
class Statistic:
    """One number of the leaderboard, as a declaration: it is aggregated later, from files, without this metric.

    name: its name. direction: `higher` or `lower` is better, or `target` (closest to `target` is best).
    column: the per-sample column it averages. per: a second column; then the value is mean(column) / mean(per),
        and the bootstrap resamples both together (degradation's b and t1).
    kind: `mean` (bootstrap interval), `proportion` (Wilson), `repeats` (few repeats: t interval), `median`, or
        `r_squared` (of the least-squares line through column over `per`).
    low, high: the range that the definition allows, or None. unit: such as `probability x fraction removed`.
    tolerance: the absolute change below which `check` never calls a regression.
    """

    name: str
    direction: str
    column: str
    per: str | None = None
    kind: str = "mean"
    low: float | None = None
    high: float | None = None
    unit: str = ""
    target: float | None = None
    tolerance: float = 0.005


class Measure:
    """What every metric declares, with defaults. Constructor arguments are the parameters.

    version: bumped when the numbers change; part of every key.
    statistics: what the leaderboard shows. The first one is the headline.
    needs_mask: whether the data set must have ground-truth masks, of regions.
    reads_maps: False for a metric that looks at no map: `maps` is None, and its scores belong to the model and no
        method, unless `evaluate` names `propagate`.
    collapse: None takes the method's own; otherwise one of `metrics.ranking.COLLAPSES`.
    sign: how the collapsed map is read: `signed`, `absolute` or `positive`.
    x_label: what the axis of its curves counts, for figures.
    """

    version: int = 1
    statistics: tuple[Statistic, ...] = ()
    needs_mask: bool = False
    reads_maps: bool = True
    collapse: str | None = None
    sign: str = "signed"
    x_label: str = ""

    def check(self, classifier: Classifier) -> None:
        """Raise `Refusal`, before any work, if this network cannot be scored."""

    def check_data(self, dataset: Dataset) -> None:
        """Raise `Refusal`, before any work, if this data set lacks what the definition needs (`needs_mask` apart)."""

    def cost(self, classifier: Classifier) -> tuple[int, int]:
        """Nominal (forward, backward) passes per sample, from the definition."""
        return (0, 0)

    def axes(self, classifier: Classifier) -> dict[str, torch.Tensor]:
        """The x axis of every curve that `evaluate` returns, by column name."""
        return {}


class Metric(Measure, ABC):
    """A metric that scores one sample after the other; any class with these attributes will do."""

    def explanations(self, classifier: Classifier) -> int:
        """How many further maps per sample `evaluate` asks `explain` for."""
        return 0

    def needs(self, job: Any) -> dict[str, Any]:
        """Further maps of the same samples that `evaluate` reads, by a name of the metric's own: variants of the
        cell's Job (`dataclasses.replace(job, ...)`), such as other weights (`Job.weights_state`, and the target
        `original` for that of the cell). They are cached like any other maps. A `needs` that names `classifier`
        receives the network."""
        return {}

    def respond(
        self, classifier: Classifier, batch: Batch, generators: list[torch.Generator]
    ) -> dict[str, torch.Tensor]:
        """What the model answers whatever the method: named [B,...] tensors, cached once per model and data set.

        A metric whose `respond` names `data` receives the `datasets.base.Samples`, as in `evaluate`.
        """
        return {}

    def responses_spec(self) -> dict[str, Any]:
        """The parameters that `respond` depends on: part of the key of its artefact."""
        return {}

    @abstractmethod
    def evaluate(
        self,
        classifier: Classifier,
        batch: Batch,
        maps: torch.Tensor,
        responses: Mapping[str, torch.Tensor],
        generators: list[torch.Generator],
    ) -> dict[str, torch.Tensor]:
        """Columns: name -> [B] (a raw value per sample) or [B,X] (a curve, with its axis in `axes`).

        maps [B,H,W] are collapsed, signed as `sign` says, and finite. One sample is scored without looking at the
        others. NaN marks a value that is undefined for this sample: it is excluded, counted and named.

        A metric that names further parameters receives them. `fitted`: what its `fit` returned (see
        `methods.base.Fitted`). `others`: name -> [B,H,W], the maps that `needs` named, and `other_logits`: name ->
        [B,K], what their networks answer to their inputs. `explain(inputs, targets, purpose, masks)` -> [B,H,W]: the
        method's maps of other inputs or targets, one per sample of the batch; another `purpose` means other random
        draws, '' those of `maps`; masks [B,H,W] default to the batch's. `propagate(inputs, signals, start, keep)`:
        what the method's rules make of signals at a layer (see `ModifiedBackprop.propagate`); a method without is
        refused. `data`: the `datasets.base.Samples` from which other samples can be loaded.
        """


class PooledMetric(Measure, ABC):
    """A metric defined over all maps of a split at once; any class with these attributes will do.

    Its scores have one row for the data set, and its statistics no interval (kind `repeats`, of which there is one).
    It is refused where a limit or filter leaves samples out.
    """

    @abstractmethod
    def pool(self, maps: torch.Tensor, outputs: torch.Tensor) -> dict[str, torch.Tensor]:
        """Columns: name -> scalar tensor; NaN marks one that is undefined.

        maps [n,H,W] in the order of the data set, collapsed and signed as `sign` says. outputs [n]: the network's
        scalar output, or the probability of the explained class.
        """

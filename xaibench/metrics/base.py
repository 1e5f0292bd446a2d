"""What a metric is to xaibench: per-sample columns, and how they become the numbers of a leaderboard."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch

from ..datasets.base import Batch, Dataset, Samples
from ..job import Job
from ..methods.context import Context
from ..models.classifier import Classifier

# What `evaluate` returns: name -> [B], a value per sample, [B,X], a curve, or [B,...], a table.
Columns = dict[str, torch.Tensor]


# Kinds of statistics about two columns.
OF_TWO = ("r_squared", "spearman", "determination", "roc_auc", "average_precision")


@dataclass(frozen=True)
class Units:
    """What a statistic about the units of a layer needs besides its columns: see `scores.units`.

    Args:
        level: The IoU above which a unit is a detector.
        area: The column [B,C] of the pixels of each concept.
        concept: Which of the C concepts it is about; None for all of them.
    """

    level: float
    area: str
    concept: int | None = None


@dataclass(frozen=True)
class Statistic:
    """One number of the leaderboard, as a declaration: it is aggregated later, from files, without this metric.

    Args:
        name: Its name.
        direction: `higher` or `lower` is better, or `target` (closest to `target` is best).
        column: The per-sample column it averages.
        per: A second column; then the value is mean(column) / mean(per), and the bootstrap resamples both together
            (degradation's b and t1).
        kind: `mean` (bootstrap interval), `proportion` (Wilson), `repeats` (few repeats: t interval), `median`, one of
            OF_TWO, a number about a column and `per` (see `scores.statistics.statistic`), or one of `scores.units`,
            about the units of a layer.
        low: The lower end of the range that the definition allows, or None.
        high: The upper end of it, or None.
        unit: Such as `probability x fraction removed`.
        target: The best value, if the direction is `target`.
        tolerance: The absolute change below which `check` never calls a regression.
        units: Of a kind that is about units: what it needs besides.
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
    units: Units | None = None

    def __post_init__(self) -> None:
        if self.kind in OF_TWO and self.per is None:
            raise ValueError(f"statistic {self.name}: kind={self.kind} needs `per`, the other column that it is about")


class Measure:
    """What every metric declares, with defaults. Constructor arguments are the parameters.

    Attributes:
        kind: What it is given: one sample after the other (`Metric`), all maps of a split at once (`PooledMetric`), or
            the accuracies of networks that were retrained (`Roar`).
        version: Bumped when the numbers change; part of every key.
        statistics: What the leaderboard shows, see `statistics_on`. The first one is the headline.
        needs_mask: Whether the data set must have ground-truth masks, of regions.
        reads_graded_masks: Whether masks may say how much each pixel matters, instead of marking a region.
        reads_maps: False for a metric that looks at no map: `maps` is None, and its scores belong to the model and no
            method, unless it `propagates`, asks for paths or has inputs of its own explained (`explanations`).
        propagates: Whether `evaluate` calls `context.propagate`; a method without rules for layers is refused.
        reads_paths: How many paths of neurons `evaluate` asks the method for with `context.path`, each in about the
            passes of a map; a method without `path` is refused.
        reads_other_logits: Whether `evaluate` reads `context.other_logits`.
        own_networks: Whether `evaluate` has networks of its own explained; a method that fits something is refused.
        fit: None, or a function `fit(classifier, samples, generator)` as `methods.base.Fitted` has it: what it returns
            is kept once per model and data set, and handed to `evaluate` as `context.fitted`.
        fit_parameters: The constructor's parameters that `fit` depends on (None: all).
        responses_read_fit: Whether `respond` reads `context.fitted` too.
        collapse: None takes the method's own; otherwise one of `metrics.ranking.COLLAPSES`.
        sign: How the collapsed map is read: `signed`, `absolute` or `positive`.
        x_label: What the axis of its curves counts, for figures.
    """

    kind: Literal["per_sample", "pooled", "retraining"]
    version: int = 1
    statistics: tuple[Statistic, ...] = ()
    needs_mask: bool = False
    reads_graded_masks: bool = False
    reads_maps: bool = True
    propagates: bool = False
    reads_paths: int = 0
    reads_other_logits: bool = False
    own_networks: bool = False
    fit: Callable[[Classifier, Samples, torch.Generator], dict[str, torch.Tensor]] | None = None
    fit_parameters: tuple[str, ...] | None = None
    responses_read_fit: bool = False
    collapse: str | None = None
    sign: str = "signed"
    x_label: str = ""

    def check(self, classifier: Classifier) -> None:
        """Refuse, before any work, a network that cannot be scored.

        Args:
            classifier: The network.

        Raises:
            Refusal: If this network cannot be scored.
        """

    def check_data(self, dataset: Dataset) -> None:
        """Refuse, before any work, a data set that cannot be scored.

        Args:
            dataset: The data set.

        Raises:
            Refusal: If this data set lacks what the definition needs (`needs_mask` apart).
        """

    def statistics_on(self, dataset: Dataset, classifier: Classifier) -> tuple[Statistic, ...]:
        """The statistics of this data set and network, where they depend on them.

        Args:
            dataset: The data set.
            classifier: The network.

        Returns:
            What the leaderboard shows, the headline first.
        """
        return self.statistics

    def cost(self, classifier: Classifier) -> tuple[int, int]:
        """What a score costs, from the definition.

        Args:
            classifier: The network.

        Returns:
            Nominal (forward, backward) passes per sample.
        """
        return (0, 0)

    def axes(self, classifier: Classifier) -> dict[str, torch.Tensor]:
        """Where the values of curves lie.

        Args:
            classifier: The network.

        Returns:
            The x axis of every curve that `evaluate` returns, by column name.
        """
        return {}


class Metric(Measure, ABC):
    """A metric that scores one sample after the other; any class with these attributes will do."""

    kind = "per_sample"

    def explanations(self, classifier: Classifier) -> int:
        """How many further maps `evaluate` asks for.

        Args:
            classifier: The network.

        Returns:
            Calls of `context.explain` per sample; with 0 it has none to ask.
        """
        return 0

    def needs(self, job: Job, classifier: Classifier) -> dict[str, Job]:
        """Further maps of the same samples that `evaluate` reads. They are cached like any other maps.

        Args:
            job: That of the cell.
            classifier: The network.

        Returns:
            By a name of the metric's own, variants of the cell's Job (`dataclasses.replace(job, ...)`), such as other
            weights (`Job.weights_state`, and the target `original` for that of the cell).

        Raises:
            Refusal: For a Job that cannot be scored.
        """
        return {}

    def respond(self, classifier: Classifier, batch: Batch, context: Context) -> dict[str, torch.Tensor]:
        """What the model answers whatever the method, cached once per model and data set.

        Args:
            classifier: The network.
            batch: The samples.
            context: Of it there are `generators` and `data`, and `fitted` if `responses_read_fit`.

        Returns:
            Named [B,...] tensors.
        """
        return {}

    def at_once(self, classifier: Classifier) -> int:
        """How many samples `respond` gains from seeing together.

        Args:
            classifier: The network.

        Returns:
            The least size of a block of responses, 1 by default. Blocks are otherwise as small as a kill should lose; a
            metric that wants larger ones hands rows over as they are made, by `context.keep`.
        """
        return 1

    def responses_spec(self) -> dict[str, Any]:
        """What the key of the responses is made of.

        Returns:
            The parameters that `respond` depends on: part of the key of its artefact.
        """
        return {}

    @abstractmethod
    def evaluate(self, classifier: Classifier, batch: Batch, maps: torch.Tensor, context: Context) -> Columns:
        """Scores of a batch of maps. One sample is scored without looking at the others.

        Args:
            classifier: The network.
            batch: The samples.
            maps: [B,H,W], collapsed, signed as `sign` says, and finite; None where the metric reads none.
            context: What else there is.

        Returns:
            Columns: name -> [B] (a raw value per sample), [B,X] (a curve, with its axis in `axes`) or [B,...] without
            an axis (a table, which statistics about units read). NaN marks a value that is undefined for this sample:
            it is excluded, counted and named.
        """


class PooledMetric(Measure, ABC):
    """A metric defined over all maps of a split at once; any class with these attributes will do.

    Its scores have one row for the data set, and its statistics no interval (kind `repeats`, of which there is one).
    It is refused where a limit or filter leaves samples out.
    """

    kind = "pooled"

    @abstractmethod
    def pool(self, maps: torch.Tensor, outputs: torch.Tensor) -> Columns:
        """Scores of all maps at once.

        Args:
            maps: [n,H,W] in the order of the data set, collapsed and signed as `sign` says.
            outputs: [n], the network's scalar output, or the probability of the explained class.

        Returns:
            Columns: name -> scalar tensor; NaN marks one that is undefined.
        """

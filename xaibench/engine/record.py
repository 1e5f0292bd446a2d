"""What the result files say of a scored Job besides the numbers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..metrics.base import Measure, Metric
from ..models.classifier import Classifier
from ..scores.score_files import Record
from ..store.keys import canonical, digest
from . import keys
from .device import peak_memory
from .maps import Maps
from .setting import Setting
from .stage import Fit, Stage
from .training import UNTRAINED

# The method of scores that belong to the model.
NO_METHOD = "none"


@dataclass(frozen=True)
class Plan:
    """What a run would do. rows: per stage (kind, key, samples there, samples missing, nominal passes to do)."""

    title: str
    rows: Sequence[tuple[str, str, int, int, int]]


def title(setting: Setting) -> str:
    """The Job for people."""
    job = setting.job
    return f"{job.model} x {job.dataset} x {job.method} x {job.metric}"


def planned(stage: Stage, passes: int) -> tuple[str, str, int, int, int]:
    """A row of a Plan. passes: of a sample."""
    missing = len(stage.artefact.missing(stage.order))
    key = UNTRAINED if after_training(stage) else stage.artefact.key
    return stage.kind, key, len(stage.order) - missing, missing, missing * passes


def after_training(stage: Any) -> bool:
    """Whether a stage depends on weights that are to be trained first: it has its key after that."""
    own = isinstance(stage, Stage | Fit) and UNTRAINED in canonical(stage.artefact.spec)
    return own or any(map(after_training, stage.reads))


def record(
    setting: Setting,
    maps: Maps | None,
    metric: Measure,
    scores: Stage,
    *,
    stages: Sequence[Any],
    metric_cost: tuple[int, int],
    seconds: Mapping[str, float],
    others: Sequence[tuple[str, str]] = (),
    repeats: bool = False,
    sample_key: str | None = None,
) -> Record:
    """Everything but the numbers that the result files say.

    maps: None for scores of the model, which have no method. stages: what this run may have computed. others: name and
    key of the further maps that were read, in their order. repeats, sample_key: for rows that are no samples.
    """
    job = setting.job
    labels = {
        name: getattr(job, name)
        for name in ("model", "dataset", "method", "metric", "method_variant", "metric_variant", "results")
    }
    if maps is None:
        labels |= {"method": NO_METHOD, "method_variant": job.run_variant}
    return Record(
        **labels,
        samples=tuple(scores.order),
        filtered=setting.filtered,
        statistics=metric.statistics_on(setting.dataset, setting.classifier),
        axes={name: axis.tolist() for name, axis in metric.axes(setting.classifier).items()},
        keys={
            "model_key": digest(setting.base["model"]),
            "data_key": digest(setting.base["data"]),
            "map_key": maps.key if maps else "",
            "metric_key": digest(keys.metric(metric, job.metric_spec)),
            # Everything the numbers depend on, for scores that read no maps too: seed, target, fit.
            "numbers_key": scores.artefact.key,
            "sample_key": sample_key or digest(list(setting.samples)),
        },
        computed=any(stage.seconds for stage in stages),
        repeats=repeats,
        details={
            "collapse": collapse_of(metric, maps) if maps and explains(metric, setting.network.trained) else None,
            "sign": metric.sign if explains(metric, setting.network.trained) else None,
            "sign_of_logit": declared_sign(maps) if maps else None,
            "method_cost": maps.method.cost(setting.classifier) if maps else (0, 0),
            "metric_cost": metric_cost,
            "others": [list(other) for other in others],
            "tuned_on": job.tuned_on if maps else (),
            "seconds": dict(seconds),
            "peak_memory_bytes": peak_memory(setting.device),
            "device": str(setting.device),
            "threads": torch.get_num_threads(),
            "x_label": metric.x_label,
            "left_out": dict(setting.dataset.left_out),
            "config": job.config,
            "command": job.command,
        },
    )


def declared_sign(maps: Maps) -> bool | str:
    """What the method declares as `sign_of_logit`, or that it declares nothing."""
    sign = maps.method.sign_of_logit
    return "undeclared" if sign is None else sign


def explains(metric: Measure, network: Classifier) -> bool:
    """Whether a metric scores maps: those of the samples, or of inputs that it makes."""
    return metric.reads_maps or (isinstance(metric, Metric) and metric.explanations(network) > 0)


def collapse_of(metric: Measure, maps: Maps) -> str:
    """How channels become one value per pixel: as the metric says, else as the method does."""
    return metric.collapse or maps.method.collapse


def seconds_of(stages: Sequence[Stage]) -> dict[str, float]:
    """The seconds that all runs together have spent on artefacts, by kind."""
    seconds: dict[str, float] = {}
    for stage in stages:
        seconds[stage.kind] = seconds.get(stage.kind, 0.0) + stage.artefact.manifest().get("seconds", 0.0)
    return seconds

"""Scoring all maps of a split at once."""

from collections.abc import Sequence

import numpy as np
import torch

from ..methods.base import Method
from ..metrics.base import PooledMetric
from ..scores.score_files import OK, Record
from . import keys
from .checks import check
from .maps import Maps, constant
from .record import collapse_of, planned, record, seconds_of, title
from .setting import Setting
from .stage import Arrays, Filled


class Pooled:
    """The stages of a Job whose metric reads all maps at once: its scores have one row."""

    def __init__(self, setting: Setting, metric: PooledMetric, method: Method) -> None:
        job = setting.job
        self.setting, self.metric = setting, metric
        check(setting, method, metric)
        self.maps = Maps(setting, method)
        self.how = collapse_of(metric, self.maps)
        scored = {"metric": keys.metric(metric, job.metric_spec), "maps": self.maps.key, "collapse": self.how}
        names = (*setting.names, job.metric, job.method)
        self.scores = setting.stage(
            "scores", names, scored, [0], self._score, reads=[self.maps.stage], reads_all=True, size=1
        )

    @property
    def title(self) -> str:
        """The Job for people."""
        return title(self.setting)

    @property
    def every_maps(self) -> list[Maps]:
        """Those that there are."""
        return [self.maps]

    @property
    def stages(self) -> list[Filled]:
        """From top to bottom; the scores last."""
        return [*self.maps.stage.reads, self.maps.stage, self.scores]

    def _score(self, repeats: Sequence[int]) -> Arrays:
        everything = sorted(self.setting.samples)
        maps, _ = self.maps.collapsed(everything, self.how, self.metric.sign)
        outputs = self.maps.stage.rows(everything)["logit" if self.setting.network.outputs == 1 else "probability"]
        with self.scores.timed():
            pooled = self.metric.pool(maps, torch.from_numpy(outputs).to(self.setting.device))
        if not np.isfinite(outputs).all():  # of a network that answers nothing there is nothing to say
            pooled = {name: torch.full_like(value, torch.nan) for name, value in pooled.items()}
        return {
            "status": np.array([OK]),
            "constant_maps": constant(maps).sum(keepdims=True),
            **{name: value.double().cpu().numpy()[None] for name, value in pooled.items()},
        }

    # ---- for people ----------------------------------------------------------------------------------------------

    def work(self) -> dict[str, int]:
        """How much there is of each kind, for progress."""
        return {"maps": len(self.setting.samples), "scores": 1}

    def plan(self) -> list[tuple[str, str, int, int, int]]:
        """The rows of a Plan."""
        network = self.setting.classifier
        costs = ((self.maps.stage, self.maps.method.cost), (self.scores, self.metric.cost))
        return [planned(stage, sum(cost(network))) for stage, cost in costs]

    def forget(self) -> None:
        """Remove the maps and the scores, for `runner.reuse=force`."""
        self.maps.stage.artefact.remove()
        self.scores.artefact.remove()

    def record(self) -> Record:
        """Everything but the numbers that the result files say: one row, of the data set."""
        own = (self.maps.stage, self.scores)
        return record(
            self.setting,
            self.maps,
            self.metric,
            self.scores,
            stages=own,
            metric_cost=self.metric.cost(self.setting.classifier),
            seconds=seconds_of(own),
            repeats=True,
        )

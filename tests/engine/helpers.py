"""Jobs taken apart: their stages, filled or not, without the command line."""

from pathlib import Path

from xaibench.config import compose_job
from xaibench.engine.maps import Maps
from xaibench.engine.runner import fill, prepare
from xaibench.engine.scoring import PerSample
from xaibench.engine.stage import Arrays, Stage


def prepared(folder: Path, *overrides: str) -> PerSample:
    """The stages of a Job with its cache in `folder`; nothing is computed."""
    return prepare(compose_job(list(overrides)), folder / "cache")


def rows_of(scoring: PerSample, stage: Stage | None = None) -> Arrays:
    """All rows of a stage (None: the scores), after filling it and what it reads."""
    stage = stage or scoring.scores
    fill(scoring.stages[: scoring.stages.index(stage) + 1])
    return stage.rows(stage.order)


def explained(maps: Maps):
    """The maps of all samples, made now, past the cache."""
    batch = maps.setting.load(maps.setting.samples)
    return maps.attribute(batch.inputs, batch.targets, maps.setting.samples)

"""How a run goes: a Job is a list of stages, from top to bottom, filled block by block.

    logits     what the network answers to the samples                   shared by every method and metric
    fit        what the method estimates once                            shared by every metric
    maps       the method's maps of the samples                          shared by every metric
    responses  what the network answers to changed inputs                shared by every method
    scores     the metric's columns                                      -> results/scores/...

Each is an artefact of the cache that reads those above it. What is there is read, what is missing is computed and kept:
to have a block of scores, the stages that lack what it needs are filled in this order. A metric that pools all maps has
one block; one that retrains networks has trainings in the place of responses, and maps of several splits.
"""

import contextlib
import dataclasses
import functools
import logging
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from .. import interrupt
from ..build import build, sourceless, with_defaults
from ..errors import Elsewhere, UserError, about, first_line
from ..job import Job
from ..methods.base import Method
from ..metrics.base import Measure, Metric
from ..models.classifier import Classifier
from ..scores import score_files
from ..scores.score_files import Outcome, Record
from . import finished
from .device import begin_peak, synchronise
from .kept import Kept
from .pooled import Pooled
from .record import Plan as Plan
from .retraining import Retrained, Trainings
from .scoring import PerSample
from .setting import Setting
from .stage import Report, ahead, needed, silent

log = logging.getLogger(__name__)

# Inputs of the pass that is timed for a forecast, and the seconds from which on one is given.
TIMED, WORTH_SAYING = 16, 30
# How a metric scores, by the kind that it declares.
SCORINGS = {"per_sample": PerSample, "pooled": Pooled, "retraining": Retrained}
# Shows the work of a run, title and how much there is of each kind, while it is being done.
Progress = Callable[[str, Mapping[str, int]], contextlib.AbstractContextManager[Report]]


@contextlib.contextmanager
def no_progress(title: str, work: Mapping[str, int]) -> Iterator[Report]:
    """The Progress that shows nothing."""
    yield silent


def run(job: Job, progress: Progress = no_progress, kept: Kept | None = None, wait: bool = True) -> Outcome | Plan:
    """One cell of the benchmark: writes its rows and says where; with `runner.plan=true`, what it would do.

    kept: what earlier cells of a sweep have loaded. wait: for other processes that are at something it needs.
    Raises UserError (a Refusal, for a pairing that cannot work) before any work, CacheError on a full disk, and without
    `wait` Elsewhere, when what was free has been done.
    """
    with _cache_folder(job) as root:
        if job.runner.plan:
            return _planned(job, root, kept)
        scoring = prepare(job, root, kept)
        if job.runner.reuse == "force":
            scoring.forget()
        begin_peak(scoring.setting.device)
        if done := finished.find(scoring.scores.artefact, _record(scoring)):
            return done
        with progress(scoring.title, scoring.work()) as report:
            # A sweep has its own estimate, from the cells that are done.
            if kept is None and (said := forecast(scoring)):
                log.info(said)
            # What is made anew is so once, and not once more for having been left.
            if not fill(scoring.stages, report, wait or job.runner.reuse == "force"):
                raise Elsewhere(f"{scoring.title}: another process is at it")
        for stage in scoring.stages:
            stage.finish()
        record = _record(scoring)
        outcome = score_files.write(record, scoring.scores.rows(scoring.scores.order))
        finished.note(scoring.scores.artefact, record, outcome)
        return outcome


def _record(scoring: PerSample | Pooled | Retrained) -> Record:
    """What the result files say besides the numbers, the code that made the artefacts included."""
    sources = set().union(*(stage.sources() for stage in scoring.stages))
    return dataclasses.replace(scoring.record(), sources=tuple(sorted(sources)))


def _planned(job: Job, root: Path, kept: Kept | None) -> Plan:
    """What a run would do. Nothing is trained, fitted or fetched to find out."""
    try:
        scoring = prepare(dataclasses.replace(job, dataset_spec=_offline(job.dataset_spec)), root, kept)
    except UserError as error:
        if not job.dataset_spec.get("download") or "download" not in str(error):
            raise
        raise UserError(f"{first_line(error)}\nrunner.plan=true downloads nothing; without it the run does") from error
    networks = [scoring.setting.network, *(maps.setting.network for maps in scoring.every_maps)]
    trainings = dict.fromkeys(network.training for network in networks if network.training)
    return Plan(scoring.title, [*trainings, *scoring.plan()])


def _offline(spec: Mapping[str, Any]) -> dict[str, Any]:
    return {**spec, "download": False} if spec.get("download") else dict(spec)


def forecast(scoring: PerSample | Pooled | Retrained) -> str:
    """What a run will take: its passes, by one pass of the whole network here, which says too much where a method runs
    a part of it, and too little of what it does besides; and its trainings, by a few steps of one. '' below half a
    minute."""
    passes = sum(missing for kind, *_, missing in scoring.plan() if kind != Trainings.kind)
    setting = scoring.setting
    seconds = passes * setting.within_memory(lambda: _seconds_of_pass(setting.network.trained)) if passes else 0.0
    said = f"{passes:,} passes, {about(seconds)} if each is of the whole network" if seconds >= WORTH_SAYING else ""
    trainings = scoring.trainings.forecast() if isinstance(scoring, Retrained) else ""
    work = ", then ".join(filter(None, [said, trainings]))
    return f"{scoring.title}: {work}" if work else ""


@torch.no_grad()
def _seconds_of_pass(classifier: Classifier) -> float:
    """Of one input, in a batch as large as the network's own, but for the time that is worth spending on it."""
    batch = classifier.blank.expand(min(classifier.batch_size, TIMED), *classifier.blank.shape[1:])
    took = []
    for _ in range(4):  # the first passes of a shape take many times as long as those that follow
        started = time.perf_counter()
        classifier.module(batch)
        synchronise(classifier.device)
        took.append(time.perf_counter() - started)
    return min(took) / len(batch)


def prepare(job: Job, root: Path, kept: Kept | None = None) -> PerSample | Pooled | Retrained:
    """A Job's stages, after everything that cannot work has been refused."""
    metric = build(job.metric_spec, "metric")
    if not isinstance(metric, Measure):
        metric = with_defaults(metric, Metric)
    method = with_defaults(build(job.method_spec, "method"), Method)
    return SCORINGS[metric.kind](Setting(job, root, kept or Kept()), metric, method)


def fill(stages: Sequence[Any], report: Report = silent, wait: bool = True) -> bool:
    """Fill the last stage, and of those above it what its blocks lack. Blocks that other processes are at are left to
    them first, and waited for at the end; without `wait` they are left, and the answer is False."""
    scores = stages[-1]
    waiting = list(scores.blocks()) if scores.misses(scores.order) else []
    for waits in (False, True)[: 1 + wait]:
        waiting = [block for block in ahead(waiting, scores.expect) if not _fill_block(stages, block, waits, report)]
    return not waiting


def _fill_block(stages: Sequence[Any], block: Sequence[int], wait: bool, report: Report) -> bool:
    """Whether a block is there; False if another process is at something it needs, and `wait` is false."""
    missing = needed(stages, block)
    if not missing:
        report(stages[-1].kind, len(block))
    for stage, samples in missing:
        interrupt.check()
        report(stage.kind, 0)  # what is going on now
        if not stage.fill(samples, wait, report):
            return False
    return True


@functools.cache
def _say_once(said: str) -> None:
    log.warning(said)


@contextlib.contextmanager
def _cache_folder(job: Job) -> Iterator[Path]:
    """The cache; for `runner.reuse=never`, and for classes without a source to know them by, a temporary one."""
    specs = {"model": job.model_spec, "dataset": job.dataset_spec, "method": job.method_spec, "metric": job.metric_spec}
    lost = [name for where, spec in specs.items() for name in sourceless(spec, where)]
    if lost:
        _say_once(f"{', '.join(lost)}: no source file, so that a change would go unseen: nothing is cached")
    if job.runner.reuse != "never" and not lost:
        if job.cache.exists() and not job.cache.is_dir():
            raise UserError(f"paths.cache={job.cache}: it is a file, expected a folder")
        yield job.cache
        return
    with tempfile.TemporaryDirectory(prefix="xaibench-") as folder:
        yield Path(folder)

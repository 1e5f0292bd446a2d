"""How a run goes: what has to exist for a Job, what of it is missing, do it, resume it, write the rows.

    samples  the first `limit` of a seeded permutation that pass the filter
    maps     the method's maps of them, see `explanations`            shared by every metric
    replies  what the model answers whatever the method               shared by every method
    scores   the metric's columns                                     -> results/scores/...

Each is an artefact of the cache. Asking for scores asks for the maps they need, and so on up: what is there is read,
what is missing is computed and kept.
"""

import contextlib
import dataclasses
import functools
import inspect
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .. import rng
from ..build import TARGET, build, locate
from ..datasets.base import Batch
from ..errors import Refusal
from ..job import Job
from ..metrics.base import Metric
from ..metrics.ranking import collapse
from ..models.classifier import Classifier
from ..report import terminal
from ..scores import score_files
from ..scores.score_files import BOOKKEEPING, OK, Outcome
from ..store.cache import digest
from . import keys
from .device import peak_memory
from .explanations import Explanations
from .retraining import Retraining
from .stage import Arrays, Stage

# The method of scores that belong to the model.
NO_METHOD = "none"


def run(job: Job) -> Outcome | None:
    """One cell of the benchmark: writes its rows and says where; None for `runner.plan=true`, which only shows.

    Raises UserError (a Refusal, for a pairing that cannot work) before any work, and CacheError on a full disk.
    """
    with _cache_folder(job) as root:
        cell = _kind_of_cell(job)(job, root)
        if job.runner.plan:
            terminal.plan(cell.title, cell.plan())
            return None
        if job.runner.reuse == "force":
            cell.forget()
        with terminal.progress(cell.title, cell.work()) as report:
            for explanations in (cell, *cell.all_explanations):
                explanations.report = report
            cell.announce()
            cell.scores.fill_all()
        for stage in cell.own_stages:
            stage.finish(cell.seconds[stage.artefact.kind])
        for explanations in cell.all_explanations:
            explanations.maps.finish(explanations.seconds["maps"])
            explanations.logits.finish(0.0)
        return score_files.write(cell.record(), cell.scores.rows(cell.scores.order))


def _kind_of_cell(job: Job) -> "type[Cell]":
    """By what the metric has: it is asked for maskings, for all maps at once, or for one sample after the other."""
    metric = locate(job.metric_spec[TARGET], "metric")
    if hasattr(metric, "maskings"):
        return RetrainingCell
    return PooledCell if hasattr(metric, "pool") else Cell


@contextlib.contextmanager
def _cache_folder(job: Job) -> Iterator[Path]:
    """The cache; for `runner.reuse=never` a temporary one."""
    if job.runner.reuse != "never":
        yield job.cache
        return
    with tempfile.TemporaryDirectory(prefix="xaibench-") as folder:
        yield Path(folder)


class Cell(Explanations):
    """Explanations and a metric: the stages through which a Job's numbers come into being."""

    def __init__(self, job: Job, root: Path) -> None:
        self.title = f"{job.model} x {job.dataset} x {job.method} x {job.metric}"
        self.metric: Metric = build(job.metric_spec, "metric")
        super().__init__(job, root)
        self.seconds |= {"responses": 0.0, "scores": 0.0}
        self.check_masks(f"metric={job.metric}", self.metric)
        if getattr(self.metric, "needs_mask", False) and self.dataset.graded_masks:
            raise Refusal(f"metric={job.metric} needs a region: the truth of dataset={job.dataset} is graded")
        self.metric.check(self.classifier)
        self.metric.check_data(self.dataset)
        self.others: dict[str, Explanations] = {}
        self.add_stages()

    def add_stages(self) -> None:
        """The maps of other Jobs that the metric reads, the replies, and the scores."""
        job = self.job
        self._wanted = inspect.signature(self.metric.evaluate).parameters
        if "explain" in self._wanted and "samples" in inspect.signature(self.method.attribute).parameters:
            raise Refusal(f"metric={job.metric} explains inputs of its own, which method={job.method} has no maps of")
        if "propagate" in self._wanted and not hasattr(self.method, "propagate"):
            raise Refusal(
                f"metric={job.metric} sends signals back through the network by a method's rules for its layers, and "
                f"method={job.method} has none; gradient, guided_backprop and the lrp_* methods have"
            )
        context = {"classifier": self.classifier}
        wanted = inspect.signature(self.metric.needs).parameters
        others = self.metric.needs(job, **{name: value for name, value in context.items() if name in wanted})
        self.others = {name: self._other(other) for name, other in others.items()}

        self.metric_fit = self.fit_of(self.metric, job.metric, job.metric_spec)
        names = (*self.names, job.metric)
        replied = self.explained | {"metric": keys.replies(self.metric, job.metric_spec)}
        self.replies = self.stage("responses", names, replied, self.samples, self._compute_replies, self.metric.cost)
        scored = {
            "metric": keys.metric(self.metric, job.metric_spec),
            "fit": self.metric_fit and self.metric_fit.artefact.key,
            "seed": job.seed,
        }
        if self.others:
            scored["others"] = {name: other.maps.artefact.key for name, other in self.others.items()}
        # The key of its maps is that of a method, whether or not there are maps.
        scored |= {"maps": self.maps.artefact.key} if self.scores_method else self.explained
        if self.metric.reads_maps:
            scored["collapse"] = self.how
        by = job.method if self.scores_method else NO_METHOD
        self.scores = self.stage("scores", (*names, by), scored, self.samples, self._compute_scores, self._scores_cost)

    def _other(self, job: Job) -> Explanations:
        """The maps of another Job. Of other weights they are kept collapsed: only this kind of metric reads them."""
        if job.weights_state == self.job.weights_state:
            return Explanations(job, self.root, self.samples)
        kept = None if self.how == "none" else self.how
        return Explanations(job, self.root, self.samples, like=self, collapsed=kept)

    def announce(self) -> None:
        """Say what long work lies ahead."""

    @property
    def own_stages(self) -> tuple[Stage, ...]:
        """The stages that are the metric's."""
        return self.replies, self.scores

    @property
    def all_explanations(self) -> list[Explanations]:
        """Everything with maps that this cell reads."""
        return [self, *self.others.values()]

    def work(self) -> dict[str, int]:
        """How much there is of each kind, for progress."""
        return {"maps": len(self.samples) * len(self.all_explanations), "scores": len(self.samples)}

    @property
    def scores_method(self) -> bool:
        """Whether the numbers belong to the method: the metric reads its maps, or propagates by its rules. Those of a
        metric that does neither belong to the model."""
        return self.metric.reads_maps or "propagate" in self._wanted

    @property
    def how(self) -> str:
        """The collapse of channels: the metric's, else the method's own."""
        return self.metric.collapse or self.method.collapse

    # ---- the stages: samples -> columns --------------------------------------------------------------------------

    def _compute_scores(self, samples: Sequence[int]) -> Arrays:
        status = np.full(len(samples), OK)
        maps, others = None, {}
        if self.metric.reads_maps:
            maps, status = self.collapsed(samples, self.how, self.metric.sign)
        for name, other in self.others.items():
            others[name], other_status = other.collapsed(samples, self.how, self.metric.sign)
            status = np.where(status == OK, other_status, status)
        columns: Arrays = {"status": status}
        usable = status == OK
        chosen = [sample for sample, good in zip(samples, usable) if good]
        if not chosen:
            return columns
        rows = torch.from_numpy(usable).to(self.device)
        batch, replies = self.load(chosen), self._replies_of(chosen)
        context: dict[str, Any] = {
            "explain": functools.partial(self._explain, batch),
            "propagate": self.propagate,
            "others": {name: other[rows] for name, other in others.items()},
            "data": self.loader,
        }
        if "other_logits" in self._wanted:
            context["other_logits"] = {name: other.logits_of(chosen) for name, other in self.others.items()}
        if self.metric_fit is not None:
            context["fitted"] = self.fitted(self.metric_fit)
        generators = rng.sample_generators(self.job.seed, "metric", chosen)
        with self.timed("scores"):
            computed = self.metric.evaluate(
                self.classifier,
                batch,
                None if maps is None else maps[rows],
                replies,
                generators,
                **{name: value for name, value in context.items() if name in self._wanted},
            )
        for name, tensor in computed.items():
            values = tensor.detach().cpu().numpy().astype(np.float64)
            columns[name] = np.full((len(samples), *values.shape[1:]), np.nan)
            columns[name][usable] = values
        return columns

    def _explain(
        self,
        batch: Batch,
        inputs: torch.Tensor,
        targets: torch.Tensor,
        purpose: str,
        masks: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """What a metric's `evaluate` receives as `explain`, with the batch that it scores."""
        masks = batch.masks if masks is None else masks
        maps = self.attribute(inputs, targets, batch.samples, f"method {purpose}".strip(), masks, batch.labels)
        return collapse(maps, self.how, self.metric.sign)

    def _compute_replies(self, samples: Sequence[int]) -> Arrays:
        generators = rng.sample_generators(self.job.seed, "response", samples)
        batch = self.load(samples)
        wants_data = "data" in inspect.signature(self.metric.respond).parameters
        context = {"data": self.loader} if wants_data else {}
        with self.timed("responses"):
            replies = self.metric.respond(self.classifier, batch, generators, **context)
        return {name: tensor.cpu().numpy() for name, tensor in replies.items()}

    # ---- what a stage asks of another ----------------------------------------------------------------------------

    def _replies_of(self, samples: Sequence[int]) -> dict[str, torch.Tensor]:
        if type(self.metric).respond is Metric.respond:
            return {}
        rows = self.replies.rows(samples)
        return {
            name: torch.from_numpy(array).to(self.device) for name, array in rows.items() if name not in BOOKKEEPING
        }

    def _scores_cost(self, classifier: Classifier) -> tuple[int, int]:
        """Nominal (forward, backward) passes of `evaluate` per sample, the maps that `explain` makes included."""
        further = self.metric.explanations(classifier)
        pairs = zip(self.metric.cost(classifier), self.method.cost(classifier))
        forwards, backwards = (own + further * of_map for own, of_map in pairs)
        return forwards, backwards

    @property
    def _metric_cost(self) -> tuple[int, int]:
        """Nominal passes per sample of the whole metric, those of the maps that it needs of others included."""
        own = self._scores_cost(self.classifier)
        others = [other.method.cost(other.learned) for other in self.others.values()]
        forwards, backwards = (sum(passes) for passes in zip(own, *others))
        return forwards, backwards

    # ---- for people ----------------------------------------------------------------------------------------------

    def plan(self) -> list[tuple[str, str, int, int, int]]:
        """What each stage has: (kind, key, samples there, samples missing, nominal passes still to do)."""
        rows = []
        stages = [(other.maps, other.method.cost) for other in self.others.values()]
        if self.metric.reads_maps:
            stages.insert(0, (self.maps, self.method.cost))
        for stage, cost in (*stages, (self.scores, self._scores_cost)):
            missing = len(stage.artefact.missing(stage.order))
            passes = missing * sum(cost(self.classifier))
            rows.append((stage.artefact.kind, stage.artefact.key, len(stage.order) - missing, missing, passes))
        return rows

    def forget(self) -> None:
        """Remove the maps, those by other weights included, and scores of this job, for `runner.reuse=force`."""
        for explanations in (self, *(other for other in self.others.values() if other.like is not None)):
            explanations.maps.artefact.remove()
        self.scores.artefact.remove()

    def record(self) -> score_files.Record:
        """Everything but the numbers that the result files say."""
        job = self.job
        labels = {
            name: getattr(job, name)
            for name in ("model", "dataset", "method", "metric", "method_variant", "metric_variant", "results")
        }
        if not self.scores_method:
            labels |= {"method": NO_METHOD, "method_variant": job.run_variant}
        return score_files.Record(
            **labels,
            samples=tuple(self.samples),
            filtered=self.filtered,
            statistics=self.metric.statistics,
            axes={name: axis.tolist() for name, axis in self.metric.axes(self.classifier).items()},
            keys={
                "model_key": digest(self.base["model"]),
                "data_key": digest(self.base["data"]),
                "map_key": self.maps.artefact.key if self.scores_method else "",
                "metric_key": digest(keys.metric(self.metric, job.metric_spec)),
                # Everything the numbers depend on, for scores that read no maps too: seed, target, fit.
                "numbers_key": self.scores.artefact.key,
                "sample_key": digest(list(self.samples)),
            },
            computed=any(self.seconds.values()),
            details={
                "collapse": self.how if self.metric.reads_maps else None,
                "sign": self.metric.sign if self.metric.reads_maps else None,
                "method_cost": self.method.cost(self.classifier) if self.scores_method else (0, 0),
                "metric_cost": self._metric_cost,
                # In the order of the steps; the keys of the JSON are sorted.
                "others": [[name, other.maps.artefact.key] for name, other in self.others.items()],
                "tuned_on": job.tuned_on if self.scores_method else (),
                "seconds": {
                    stage.artefact.kind: stage.artefact.manifest().get("seconds", 0.0)
                    for stage in (self.maps, *self.own_stages)
                },
                "peak_memory_bytes": peak_memory(self.device),
                "device": str(self.device),
                "threads": torch.get_num_threads(),
                "x_label": self.metric.x_label,
                "config": job.config,
                "command": job.command,
            },
        )


class PooledCell(Cell):
    """A cell whose metric reads all maps at once: its scores have one row."""

    def add_stages(self) -> None:
        """The scores alone, one block of one row."""
        job = self.job
        if len(self.samples) < len(self.dataset):
            raise Refusal(f"metric={job.metric} is defined over the whole split: set dataset.limit=null and no filter")
        scored = {
            "metric": keys.metric(self.metric, job.metric_spec),
            "maps": self.maps.artefact.key,
            "collapse": self.how,
        }
        names = (*self.names, job.metric, job.method)
        self.scores = self.stage("scores", names, scored, [0], self._compute_scores, size=1)

    @property
    def own_stages(self) -> tuple[Stage, ...]:
        """The scores."""
        return (self.scores,)

    def work(self) -> dict[str, int]:
        """How much there is of each kind, for progress."""
        return {"maps": len(self.samples), "scores": 1}

    def _compute_scores(self, repeats: Sequence[int]) -> Arrays:
        self.maps.fill_all()  # leaving to other processes what they are at
        everything = sorted(self.samples)
        maps, _ = self.collapsed(everything, self.how, self.metric.sign)
        outputs = self.maps.rows(everything)["logit" if self.outputs == 1 else "probability"]
        with self.timed("scores"):
            found = self.metric.pool(maps, torch.from_numpy(outputs).to(self.device))
        columns = {name: np.array([value.item()], dtype=np.float64) for name, value in found.items()}
        return {"status": np.array([OK]), **columns}

    def _scores_cost(self, classifier: Classifier) -> tuple[int, int]:
        return self.metric.cost(classifier)

    def record(self) -> score_files.Record:
        """One row, of the data set."""
        return dataclasses.replace(super().record(), samples=tuple(self.scores.order), repeats=True)


class RetrainingCell(Cell):
    """A cell whose metric retrains networks: its scores have a row per repeat, its maps are those of several splits."""

    def add_stages(self) -> None:
        """The trainings, and the scores made from them."""
        job = self.job
        self.retraining = Retraining(self, self.metric)
        scored = {"metric": keys.metric(self.metric, job.metric_spec), "trainings": self.retraining.keys}
        names, repeats = (*self.names, job.metric, job.method), list(range(self.metric.repeats))
        self.scores = self.stage("scores", names, scored, repeats, self._compute_scores, size=1)

    def announce(self) -> None:
        """Say how long the trainings will take."""
        self.retraining.announce()

    @property
    def own_stages(self) -> tuple[Stage, ...]:
        """The scores alone: nothing is asked of the network that is explained."""
        return (self.scores,)

    @property
    def all_explanations(self) -> list[Explanations]:
        """Those of the splits."""
        return list(self.retraining.explained.values())

    def work(self) -> dict[str, int]:
        """How much there is to do of each kind."""
        return self.retraining.work()

    @property
    def _metric_cost(self) -> tuple[int, int]:
        """Nominal (forward, backward) passes of all trainings together."""
        each = self.retraining.passes // 3 * len(self.retraining.keys)
        return each, each

    def _compute_scores(self, repeats: Sequence[int]) -> Arrays:
        found = [self.metric.evaluate(self.retraining.accuracies(repeat)) for repeat in repeats]
        columns = {name: torch.stack([row[name] for row in found]).numpy() for name in found[0]}
        return {"status": np.full(len(repeats), OK), **columns}

    def plan(self) -> list[tuple[str, str, int, int, int]]:
        """As `Cell.plan`; a step of training counts as three passes of an image."""
        rows = []
        for part in self.all_explanations:
            missing = len(part.maps.artefact.missing(part.samples))
            passes = missing * sum(self.method.cost(self.classifier))
            rows.append(("maps", part.maps.artefact.key, len(part.samples) - missing, missing, passes))
        total, missing = len(self.retraining.keys), len(self.retraining.missing)
        rows.append(("trainings", self.scores.artefact.key, total - missing, missing, missing * self.retraining.passes))
        return rows

    def forget(self) -> None:
        """Remove the maps, trainings and scores of this job."""
        self.retraining.forget()
        self.scores.artefact.remove()

    def record(self) -> score_files.Record:
        """A row per repeat instead of per sample."""
        record = super().record()
        test = self.retraining.explained["test"]
        parts = [part.maps.artefact.manifest().get("seconds", 0.0) for part in self.all_explanations]
        seconds = {"maps": sum(parts)}
        return dataclasses.replace(
            record,
            samples=tuple(self.scores.order),
            repeats=True,
            filtered=test.filtered,
            keys={
                **record.keys,
                "map_key": test.maps.artefact.key,
                "sample_key": digest({"samples": list(test.samples), "repeats": self.metric.repeats}),
            },
            details={**record.details, "seconds": {**record.details["seconds"], **seconds}},
        )

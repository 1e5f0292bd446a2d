"""Scoring sample by sample: what most metrics do."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch

from .. import rng
from ..build import build, with_defaults
from ..datasets.base import Batch
from ..errors import Refusal
from ..methods.base import Method
from ..methods.context import Context
from ..methods.pathways._pathway_neurons import Neurons
from ..metrics.base import Columns, Metric
from ..metrics.ranking import collapse
from ..models.classifier import Classifier
from ..scores.score_files import BOOKKEEPING, NONFINITE_LOGITS, OK, Record
from . import keys
from .checks import check, check_setting
from .maps import Maps, constant
from .record import NO_METHOD, collapse_of, explains, planned, record, seconds_of, title
from .setting import Setting
from .stage import Arrays, Filled, Fit


class PerSample:
    """The stages of a Job whose metric scores one sample after the other.

    logits, fit, maps: the method's (see `Setting`, `Maps`), and the same of the other Jobs that the metric reads;
    responses: what the network answers whatever the method; scores: the metric's columns.
    """

    def __init__(self, setting: Setting, metric: Metric, method: Method) -> None:
        job = setting.job
        self.setting, self.metric = setting, metric
        check(setting, method, metric)
        self.maps = Maps(setting, method)
        self.how = collapse_of(metric, self.maps)
        wanted = metric.needs(job, setting.classifier)
        self.others = {name: self._other(setting.of(other)) for name, other in wanted.items()}
        self.fit: Fit | None = setting.fit_of(metric, job.metric, job.metric_spec)
        names = (*setting.names, job.metric)
        responded: dict[str, Any] = setting.explained | {"metric": keys.responses(metric, job.metric_spec)}
        read: list[Filled] = [*setting.reads]
        if self.fit and metric.responses_read_fit:
            responded["fit"] = self.fit.artefact.key
            read.append(self.fit)
        self.responses = setting.stage(
            "responses",
            names,
            responded,
            setting.samples,
            self._respond,
            reads=read,
            passes=metric.cost,
            least=metric.at_once,
        )
        scored = {
            "metric": keys.metric(metric, job.metric_spec),
            "fit": self.fit and self.fit.artefact.key,
            "seed": job.seed,
        }
        if self.others:
            scored["others"] = {name: other.key for name, other in self.others.items()}
        # The key of its maps is that of a method, whether or not there are maps.
        scored |= {"maps": self.maps.key} if self.scores_method else setting.explained
        if self.explains:
            scored["collapse"] = self.how
        by = job.method if self.scores_method else NO_METHOD
        self.scores = setting.stage(
            "scores", (*names, by), scored, setting.samples, self._score, reads=self._reads(), passes=self._passes
        )

    @property
    def title(self) -> str:
        """The Job for people."""
        return title(self.setting)

    @property
    def stages(self) -> list[Filled]:
        """From top to bottom; the scores last."""
        above = [stage for maps in self.every_maps for stage in (*maps.stage.reads, maps.stage)]
        answers = [other.setting.logits for other in self.others.values() if self.metric.reads_other_logits]
        stages = [self.setting.logits, *self.setting.reads, *answers, *above, self.fit, self.responses, self.scores]
        return list(dict.fromkeys(stage for stage in stages if stage is not None))

    @property
    def every_maps(self) -> list[Maps]:
        """Those of the method, and of the other Jobs that the metric reads."""
        return [self.maps, *self.others.values()]

    @property
    def scores_method(self) -> bool:
        """Whether the numbers belong to the method: the metric reads its maps, has it explain inputs of its own,
        propagates by its rules or asks for its paths. Those of a metric that does none of it belong to the model."""
        return self.explains or self.metric.propagates or self.metric.reads_paths > 0

    @property
    def explains(self) -> bool:
        """Whether maps are scored, see `record.explains`."""
        return explains(self.metric, self.setting.network.trained)

    def _other(self, setting: Setting) -> Maps:
        """The maps of another Job. Of other weights they are kept collapsed: only this kind of metric reads them."""
        job, method = self.setting.job, with_defaults(build(setting.job.method_spec, "method"), Method)
        if setting.job.weights_state == job.weights_state:
            check_setting(setting)
            method.check(setting.network.trained)
            return Maps(setting, method)
        if method.own_samples_only:
            raise Refusal(f"metric={job.metric} explains other networks, which method={job.method} has no maps of")
        return Maps(setting, method, kept_collapsed=None if self.how == "none" else self.how)

    def _reads(self) -> list[Filled | None]:
        """What scores are made from."""
        reads: list[Filled | None] = [self.setting.logits, *self.setting.reads, self.fit]
        if self._has_responses:
            reads.append(self.responses)
        if self.metric.reads_maps:
            reads.append(self.maps.stage)
        elif self.scores_method:
            reads.append(self.maps.fit)
        for other in self.others.values():
            reads.append(other.stage)
            if self.metric.reads_other_logits:
                reads.append(other.setting.logits)
        if self.metric.explanations(self.setting.network.trained):
            reads.append(self.maps.fit)
        return reads

    # ---- samples -> columns --------------------------------------------------------------------------------------

    def _score(self, samples: Sequence[int]) -> Arrays:
        setting, metric = self.setting, self.metric
        status = np.full(len(samples), OK)
        maps, others = None, {}
        if metric.reads_maps:
            maps, status = self.maps.collapsed(samples, self.how, metric.sign)
        for name, other in self.others.items():
            others[name], other_status = other.collapsed(samples, self.how, metric.sign)
            status = np.where(status == OK, other_status, status)
        finite = setting.logits_of(samples).isfinite().all(1).cpu().numpy()
        status = np.where(finite, status, NONFINITE_LOGITS)
        columns: Arrays = {"status": status}
        if maps is not None:
            ragged = setting.network.trained.places == "words"
            columns["constant_maps"] = constant(maps, setting.load(samples).valid if ragged else None)
        usable = status == OK
        chosen = [sample for sample, good in zip(samples, usable) if good]
        if not chosen:
            return columns
        rows = torch.from_numpy(usable).to(setting.device)
        batch = setting.load(chosen)
        read = None if maps is None else maps[rows]
        beside = Context(
            responses=self._responses_of(chosen),
            others={name: other[rows] for name, other in others.items()},
            other_logits=self._other_logits(chosen),
        )
        if batch.is_alike:
            computed = self._evaluate(batch, read, beside)
        else:
            computed = self._evaluate_alike(batch, read, beside)
        for name, tensor in computed.items():
            values = tensor.detach().cpu().numpy().astype(np.float64)
            columns[name] = np.full((len(samples), *values.shape[1:]), np.nan)
            columns[name][usable] = values
        return columns

    def _evaluate(self, batch: Batch, maps: torch.Tensor | None, beside: Context) -> Columns:
        """The metric's columns of a batch that is alike and of their maps [B,H,W]. beside: what else was computed of
        these samples before."""
        setting = self.setting
        context = dataclasses.replace(
            beside,
            generators=rng.sample_generators(setting.job.seed, "metric", batch.samples),
            fitted=setting.fitted(self.fit, batch.questions),
            explain=functools.partial(self._explain, batch),
            propagate=functools.partial(self.maps.propagate, questions=batch.questions),
            path=functools.partial(self._path, batch),
            data=setting.split.samples,
            sign_of_logit=self.maps.method.sign_of_logit,
        )
        read, classifier = cast(torch.Tensor, maps), setting.classifier.sized(batch.inputs).asked(batch.questions)
        with self.scores.timed():
            return self.metric.evaluate(classifier, batch, read, context)

    def _evaluate_alike(self, batch: Batch, maps: torch.Tensor | None, beside: Context) -> Columns:
        """As `_evaluate`, of inputs that differ in size or in what is asked of them. Curves of smaller ones have fewer
        points: they are read, in straight lines from point to point, where those of the largest size have theirs."""
        axes, found = self.metric.axes(self.setting.classifier), []
        for rows, part in batch.alike():
            height, width = part.inputs.shape[2:]
            of_part = Context(
                responses={name: column[rows] for name, column in beside.responses.items()},
                others={name: other[rows, ..., :height, :width] for name, other in beside.others.items()},
                other_logits={name: logits[rows] for name, logits in beside.other_logits.items()},
            )
            columns = self._evaluate(part, None if maps is None else maps[rows, ..., :height, :width], of_part)
            own = self.metric.axes(self.setting.classifier.sized(part.inputs))
            for name in axes.keys() & columns.keys():
                columns[name] = _read_at(columns[name], own[name], axes[name])
            found.append((rows, columns))
        return _in_order(found)

    def _respond(self, samples: Sequence[int]) -> Arrays:
        batch = self.setting.load(samples)
        with self.responses.timed():
            responses = _in_order([(rows, self._respond_to(part)) for rows, part in batch.alike()])
        return _arrays(responses)

    def _respond_to(self, batch: Batch) -> dict[str, torch.Tensor]:
        def keep(rows: Sequence[int], responses: Mapping[str, torch.Tensor]) -> None:
            self.responses.keep([batch.samples[row] for row in rows], _arrays(responses))

        generators = rng.sample_generators(self.setting.job.seed, "response", batch.samples)
        fitted = self.setting.fitted(self.fit if self.metric.responses_read_fit else None, batch.questions)
        context = Context(generators=generators, fitted=fitted, keep=keep, data=self.setting.split.samples)
        classifier = self.setting.classifier.sized(batch.inputs).asked(batch.questions)
        return self.metric.respond(classifier, batch, context)

    def _explain(
        self,
        batch: Batch,
        inputs: torch.Tensor,
        targets: torch.Tensor,
        purpose: str,
        masks: torch.Tensor | None = None,
        questions: torch.Tensor | None = None,
        network: Classifier | None = None,
    ) -> torch.Tensor:
        """What a metric's `evaluate` receives as `explain`, with the batch that it scores."""
        questions = batch.questions if questions is None else questions
        masks = batch.masks if masks is None else masks
        explained = dataclasses.replace(batch, inputs=inputs, targets=targets, masks=masks, questions=questions)
        purpose = f"method {purpose}".strip()
        found = [(rows, {"maps": self.maps.of(part, purpose, network)}) for rows, part in explained.alike()]
        return collapse(_in_order(found)["maps"].to(inputs.device), self.how, self.metric.sign)

    def _path(
        self,
        batch: Batch,
        inputs: torch.Tensor,
        targets: torch.Tensor,
        rows: slice,
        purpose: str = "",
        beside: str | None = None,
    ) -> Neurons:
        """What a metric's `evaluate` receives as `path`, with the batch that it scores."""
        purpose, questions = f"method {purpose}".strip(), batch.questions
        return self.maps.path(inputs, targets, batch.samples[rows], purpose=purpose, beside=beside, questions=questions)

    @property
    def _has_responses(self) -> bool:
        return type(self.metric).respond is not Metric.respond

    def _responses_of(self, samples: Sequence[int]) -> dict[str, torch.Tensor]:
        rows = self.responses.rows(samples) if self._has_responses else {}
        return {
            name: torch.from_numpy(array).to(self.setting.device)
            for name, array in rows.items()
            if name not in BOOKKEEPING
        }

    def _other_logits(self, samples: Sequence[int]) -> dict[str, torch.Tensor]:
        if not self.metric.reads_other_logits:
            return {}
        return {name: other.setting.logits_of(samples) for name, other in self.others.items()}

    # ---- for people ----------------------------------------------------------------------------------------------

    def work(self) -> dict[str, int]:
        """How much there is of each kind, for progress."""
        samples = len(self.setting.samples)
        return {"maps": samples * (1 + len(self.others)), "scores": samples}

    def plan(self) -> list[tuple[str, str, int, int, int]]:
        """The rows of a Plan."""
        network = self.setting.classifier
        every_maps = [*([self.maps] if self.metric.reads_maps else []), *self.others.values()]
        rows = [planned(maps.stage, sum(maps.method.cost(network))) for maps in every_maps]
        return [*rows, planned(self.scores, sum(self._passes(network)))]

    def forget(self) -> None:
        """Remove the maps, those by other weights included, and the scores, for `runner.reuse=force`."""
        for maps in (self.maps, *self.others.values()):
            if maps is self.maps or maps.kept_collapsed is not None:
                maps.stage.artefact.remove()
        self.scores.artefact.remove()

    def record(self) -> Record:
        """Everything but the numbers that the result files say."""
        own = (self.maps.stage, self.responses, self.scores)
        others = [other.method.cost(other.setting.network.trained) for other in self.others.values()]
        forwards, backwards = (sum(cost) for cost in zip(self._passes(self.setting.classifier), *others))
        return record(
            self.setting,
            self.maps if self.scores_method else None,
            self.metric,
            self.scores,
            stages=own,
            metric_cost=(forwards, backwards),
            seconds=seconds_of(own),
            others=[(name, other.key) for name, other in self.others.items()],
        )

    def _passes(self, network: Classifier) -> tuple[int, int]:
        """Nominal (forward, backward) passes of `evaluate` per sample, the maps and paths that it asks for included."""
        further = self.metric.explanations(network) + self.metric.reads_paths
        pairs = zip(self.metric.cost(network), self.maps.method.cost(network))
        forwards, backwards = (own + further * of_map for own, of_map in pairs)
        return forwards, backwards


def _arrays(responses: Mapping[str, torch.Tensor]) -> Arrays:
    return {name: tensor.cpu().numpy() for name, tensor in responses.items()}


def _in_order(found: Sequence[tuple[torch.Tensor, Mapping[str, torch.Tensor]]]) -> dict[str, torch.Tensor]:
    """The columns of the parts of a batch, with the rows that they are of, as those of the batch."""
    if len(found) == 1:
        return dict(found[0][1])
    order = torch.cat([rows for rows, _ in found]).argsort()
    names = found[0][1]
    return {name: torch.cat([columns[name].cpu() for _, columns in found])[order] for name in names}


def _read_at(curves: torch.Tensor, own: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Curves [B,X] with their points at `own` [X], read at `wanted` [Y], in straight lines between them -> [B,Y]."""
    if own.shape == wanted.shape and torch.equal(own, wanted):
        return curves
    x, points = wanted.numpy(), own.numpy()
    return torch.from_numpy(np.stack([np.interp(x, points, curve) for curve in curves.double().cpu().numpy()]))

"""How a run goes: what has to exist for a Job, what of it is missing, do it, resume it, write the rows.

    samples  the first `limit` of a seeded permutation that pass the filter
    logits   the model's outputs for them                             shared by every method and metric
    fit      what the method estimates once                           shared by every metric
    maps     the method's maps of the samples and their targets       shared by every metric
    replies  what the model answers whatever the method               shared by every method
    scores   the metric's columns                                     -> results/scores/...

Each is an artefact of the cache. Asking for scores asks for the maps they need, and so on up: what is there is read,
what is missing is computed and kept.
"""

import contextlib
import dataclasses
import functools
import inspect
import logging
import resource
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from . import keys, provenance, results, rng, show
from .build import build
from .cache import SHARD_SAMPLES, Artefact, digest
from .config import Job
from .datasets.base import Batch, Dataset, Samples
from .errors import Refusal, UserError, XaibenchError
from .methods.base import Method
from .metrics.base import Metric
from .metrics.ranking import collapse
from .models.loading import check_input, load_classifier
from .results import BOOKKEEPING, NONFINITE_MAP, OK, Outcome
from .stage import Arrays, Stage
from .training import split_samples, trained_weights

log = logging.getLogger(__name__)

# A block costs about half a minute at most on two CPU cores, so that a kill loses no more than that. For input_iba on
# the bundled network that is one image.
BLOCK_FLOPS = 5e11
# The method of scores that belong to the model.
NO_METHOD = "none"


def run(job: Job) -> Outcome | None:
    """One cell of the benchmark: writes its rows and says where; None for `runner.plan=true`, which only shows.

    Raises UserError (a Refusal, for a pairing that cannot work) before any work, and CacheError on a full disk.
    """
    with _cache_folder(job) as root:
        cell = Cell(job, root)
        if job.runner.plan:
            show.plan(cell.title, cell.plan())
            return None
        if job.runner.reuse == "force":
            cell.forget()
        with show.progress(cell.title, len(cell.samples)) as cell.report:
            cell.scores.fill_all()
        for stage in (cell.logits, cell.replies, cell.maps, cell.scores):
            stage.finish(cell.seconds.get(stage.artefact.kind, 0.0))
        return results.write(cell.record(), cell.scores.rows(cell.samples))


@contextlib.contextmanager
def _cache_folder(job: Job) -> Iterator[Path]:
    """The cache; for `runner.reuse=never` a temporary one."""
    if job.runner.reuse != "never":
        yield job.cache
        return
    with tempfile.TemporaryDirectory(prefix="xaibench-") as folder:
        yield Path(folder)


class Cell:
    """A Job's objects, and the stages through which its numbers come into being."""

    def __init__(self, job: Job, root: Path) -> None:
        self.job, self.root = job, root
        self.title = f"{job.model} x {job.dataset} x {job.method} x {job.metric}"
        self.seconds = {"maps": 0.0, "scores": 0.0}
        self.report: Callable[[str, int], None] = lambda kind, done: None

        self.device = find_device(job.runner.device)
        self.dataset: Dataset = build(job.dataset_spec, "dataset")
        self.method: Method = build(job.method_spec, "method")
        self.metric: Metric = build(job.metric_spec, "metric")
        self.classifier = load_classifier(
            job.model,
            job.model_spec,
            output=job.output,
            device=self.device,
            trained=lambda: trained_weights(job, root, self.device),
        )
        automatic = default_batch_size(self.classifier.input_size, self.device)
        self.classifier.batch_size = job.runner.batch_size or automatic
        self.loader = Samples(self.dataset, self.classifier.preprocessing, (), self.device)
        self._check_pairing()

        self.base = {
            "model": keys.model(self.classifier),
            "data": keys.data(self.dataset, job.dataset_spec),
        }
        names = (job.model, job.dataset)
        explained = {**self.base, "explained": keys.explained(job)}
        everything = self._permutation()
        self.logits = self._stage("responses", (*names, "logits"), self.base, everything, self._compute_logits)
        self.samples, self.filtered = self._select(everything)
        if not self._filters:
            self.logits.order = self.samples

        self.fits = {
            job.method: self._fit_artefact(self.method, job.method, job.method_spec),
            job.metric: self._fit_artefact(self.metric, job.metric, job.metric_spec),
        }
        mapped = explained | {
            "method": keys.method(self.method, job.method_spec),
            "fit": self.fits[job.method] and self.fits[job.method].key,
        }
        replied = explained | {"metric": keys.replies(self.metric, job.metric_spec)}
        self.maps = self._stage("maps", (*names, job.method), mapped, self.samples, self._compute_maps, self.method)
        self.replies = self._stage("responses", (*names, job.metric), replied, self.samples, self._compute_replies)
        scored = {
            "metric": keys.metric(self.metric, job.metric_spec),
            "fit": self.fits[job.metric] and self.fits[job.metric].key,
            "seed": job.seed,
        }
        # A metric that scores the model reads no maps: its numbers belong to no method.
        scored |= {"maps": self.maps.artefact.key, "collapse": self.how} if self.metric.reads_maps else explained
        by = job.method if self.metric.reads_maps else NO_METHOD
        self.scores = self._stage(
            "scores", (*names, job.metric, by), scored, self.samples, self._compute_scores, self.metric
        )

    @property
    def how(self) -> str:
        """The collapse of channels: the metric's, else the method's own."""
        return self.metric.collapse or self.method.collapse

    # ---- the stages: samples -> columns --------------------------------------------------------------------------

    def _compute_scores(self, samples: Sequence[int]) -> Arrays:
        maps = self.maps.rows(samples) if self.metric.reads_maps else None
        status = np.full(len(samples), OK) if maps is None else maps["status"]
        columns: Arrays = {"status": status}
        usable = status == OK
        chosen = [sample for sample, good in zip(samples, usable) if good]
        if not chosen:
            return columns
        batch, replies = self._load(chosen), self._replies_of(chosen)
        collapsed = None
        if maps is not None:
            raw = torch.from_numpy(maps["maps"][usable]).to(self.device)
            collapsed = collapse(raw, self.how, self.metric.sign)
        generators = rng.sample_generators(self.job.seed, "metric", chosen)
        fitted = {} if self.fits[self.job.metric] is None else {"fitted": self._fitted(self.metric, self.job.metric)}
        started = time.perf_counter()
        computed = self.metric.evaluate(self.classifier, batch, collapsed, replies, generators, **fitted)
        for name, tensor in computed.items():
            values = tensor.detach().cpu().numpy().astype(np.float64)
            columns[name] = np.full((len(samples), *values.shape[1:]), np.nan)
            columns[name][usable] = values
        self.seconds["scores"] += time.perf_counter() - started
        return columns

    def _compute_maps(self, samples: Sequence[int]) -> Arrays:
        batch = self._load(samples)
        logits, targets = self._logits_of(samples), batch.targets[:, None]
        context = {"masks": batch.masks, "samples": batch.samples}
        if self.fits[self.job.method] is not None:
            context["fitted"] = self._fitted(self.method, self.job.method)
        wanted = inspect.signature(self.method.attribute).parameters
        started = time.perf_counter()
        maps = self.method.attribute(
            self.classifier,
            batch.inputs,
            batch.targets,
            rng.sample_generators(self.job.seed, "method", samples),
            **{name: value for name, value in context.items() if name in wanted},
        ).detach()
        self.seconds["maps"] += time.perf_counter() - started
        _check_maps(self.job.method, maps, batch.inputs)
        columns = {
            "maps": maps.float(),
            "target": batch.targets,
            "logit": logits.gather(1, targets)[:, 0].float(),
            "probability": logits.softmax(-1).gather(1, targets)[:, 0].float(),
            "status": torch.where(maps.isfinite().all(dim=3).all(dim=2).all(dim=1), OK, NONFINITE_MAP),
        }
        return {name: tensor.cpu().numpy() for name, tensor in columns.items()}

    def _compute_replies(self, samples: Sequence[int]) -> Arrays:
        generators = rng.sample_generators(self.job.seed, "response", samples)
        replies = self.metric.respond(self.classifier, self._load(samples), generators)
        return {name: tensor.cpu().numpy() for name, tensor in replies.items()}

    def _compute_logits(self, samples: Sequence[int]) -> Arrays:
        return {"logits": self.classifier.logits(self._decoded(tuple(samples)).inputs).cpu().numpy()}

    # ---- what a stage asks of another ----------------------------------------------------------------------------

    def _replies_of(self, samples: Sequence[int]) -> dict[str, torch.Tensor]:
        if type(self.metric).respond is Metric.respond:
            return {}
        rows = self.replies.rows(samples)
        return {
            name: torch.from_numpy(array).to(self.device) for name, array in rows.items() if name not in BOOKKEEPING
        }

    def _logits_of(self, samples: Sequence[int]) -> torch.Tensor:
        return torch.from_numpy(self.logits.rows(samples)["logits"]).to(self.device)

    def _load(self, samples: Sequence[int]) -> Batch:
        """Samples with the targets that are explained."""
        batch = self._decoded(tuple(samples))
        if self.job.target == "predicted":
            return dataclasses.replace(batch, targets=self._logits_of(samples).argmax(-1))
        if self.job.target.startswith("fixed:"):
            return dataclasses.replace(batch, targets=torch.full_like(batch.labels, int(self.job.target[6:])))
        return batch

    @functools.cached_property
    def _decoded(self) -> Callable[[tuple[int, ...]], Batch]:
        """Decoded samples. The last two blocks stay in memory, for the stages that follow and check them."""
        return functools.lru_cache(maxsize=2)(self.loader.load)

    def _checksums(self, samples: Sequence[int]) -> np.ndarray:
        return np.asarray(self._decoded(tuple(samples)).crc, dtype=np.uint32)

    def _fitted(self, worker: Method | Metric, name: str) -> dict[str, torch.Tensor]:
        """What a method's or metric's `fit` returned: from the cache, or made now by whoever claims it first."""
        artefact = self.fits[name]
        arrays = artefact.load_whole("fit")
        if arrays is None:
            if self.job.runner.reuse == "only-cache":
                raise UserError(f"runner.reuse=only-cache: {artefact.folder} is missing; use runner.reuse=missing")
            artefact.create(self._provenance())
            with artefact.claim("fit"):
                arrays = artefact.load_whole("fit")
                if arrays is None:
                    samples = self._fit_samples(name)
                    log.info("fitting %s on %d samples of %s", name, len(samples), self.job.fit.split)
                    state = worker.fit(self.classifier, samples, rng.generator(self.job.fit.seed, "fit"))
                    arrays = {key: tensor.detach().cpu().numpy() for key, tensor in state.items()}
                    artefact.save_whole("fit", arrays)
            artefact.tidy()
        return {key: torch.from_numpy(array).to(self.device) for key, array in arrays.items()}

    # ---- setting up ----------------------------------------------------------------------------------------------

    def _check_pairing(self) -> None:
        """Refuse what cannot work, before any work."""
        job, classes = self.job, len(self.dataset.class_names)
        if len(self.dataset) == 0:
            raise UserError(f"dataset={job.dataset}: this split has no samples")
        for name, worker in ((f"metric={job.metric}", self.metric), (f"method={job.method}", self.method)):
            if getattr(worker, "needs_mask", False) and not self.dataset.has_masks:
                raise Refusal(f"{name} needs ground-truth masks, dataset={job.dataset} has none (shapes has)")
        self.outputs = check_input(self.classifier, self.loader.load([0]).inputs[0], classes)
        if job.target.startswith("fixed:") and int(job.target[6:]) >= self.outputs:
            raise UserError(f"target={job.target}: {job.model} has classes 0 to {self.outputs - 1}")
        self.method.check(self.classifier)
        self.metric.check(self.classifier)

    @property
    def _filters(self) -> bool:
        return self.job.selection.filter.correct or self.job.selection.filter.min_probability > 0

    def _permutation(self) -> list[int]:
        return rng.permutation(len(self.dataset), self.job.selection.seed)

    def _select(self, permutation: list[int]) -> tuple[list[int], dict[str, int]]:
        """The first `limit` samples that pass the filter, and how many were passed over, by reason."""
        limit = self.job.selection.limit or len(permutation)
        if not self._filters:
            return permutation[:limit], {}
        kept: list[int] = []
        passed_over = {"not correct": 0, "probability too low": 0}
        for block in self.logits.blocks():
            logits, batch = self._logits_of(block), self._load(block)
            correct = (logits.argmax(-1) == batch.labels).tolist()
            probability = logits.softmax(-1).gather(1, batch.targets[:, None])[:, 0].tolist()
            for sample, is_correct, p in zip(block, correct, probability):
                if len(kept) == limit:
                    return kept, passed_over
                if self.job.selection.filter.correct and not is_correct:
                    passed_over["not correct"] += 1
                elif p < self.job.selection.filter.min_probability:
                    passed_over["probability too low"] += 1
                else:
                    kept.append(sample)
        if not kept:
            raise UserError(f"dataset.filter={dataclasses.asdict(self.job.selection.filter)} leaves no sample")
        return kept, passed_over

    def _stage(self, kind, names, spec, order, compute, by: Method | Metric | None = None) -> Stage:
        return Stage(
            artefact=Artefact(self.root, kind, names, spec),
            order=order,
            size=lambda: SHARD_SAMPLES if by is None else self._block_size(by),
            compute=compute,
            provenance=self._provenance(),
            checksums=None if kind == "scores" else self._checksums,
            only_cache=self.job.runner.reuse == "only-cache",
            report=lambda kind, done: self.report(kind, done),
        )

    def _fit_artefact(self, worker: Method | Metric, name: str, spec: dict[str, Any]) -> Artefact | None:
        if not hasattr(worker, "fit"):
            return None
        samples = self._fit_samples(name)
        data = keys.data(samples.dataset, {**self.job.dataset_spec, "split": self.job.fit.split})
        fitted = keys.fit(worker, spec, self.job, data, list(samples.ids))
        names = (self.job.model, self.job.dataset, name)
        return Artefact(self.root, "fits", names, {"model": self.base["model"], **fitted})

    def _fit_samples(self, name: str) -> Samples:
        fit, loader = self.job.fit, self.loader
        try:
            return split_samples(
                self.job.dataset_spec, fit.split, fit.limit, fit.seed, loader.preprocessing, loader.device
            )
        except UserError as error:
            hint = f"{name} is fitted on fit.split={fit.split}; set another, such as fit.split=test"
            raise UserError(f"{error}\n{hint}") from error

    def _block_size(self, worker: Method | Metric) -> int:
        """Samples per block: 64, fewer where one of them takes long."""
        forwards, backwards = worker.cost(self.classifier)
        flops = self._forward_flops * max(1, forwards + 2 * backwards)
        return int(min(max(BLOCK_FLOPS // max(flops, 1), 1), SHARD_SAMPLES))

    @functools.cached_property
    def _forward_flops(self) -> int:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            self.classifier.module(torch.zeros(1, *self.classifier.input_size, device=self.device))
        return counter.get_total_flops()

    def _provenance(self) -> dict[str, object]:
        return {"versions": provenance.versions(), "commit": provenance.commit(), "device": str(self.device)}

    # ---- for people ----------------------------------------------------------------------------------------------

    def plan(self) -> list[tuple[str, str, int, int, int]]:
        """What each stage has: (kind, key, samples there, samples missing, nominal passes still to do)."""
        rows = []
        stages = ((self.maps, self.method), (self.scores, self.metric))
        for stage, worker in stages if self.metric.reads_maps else stages[1:]:
            missing = len(stage.artefact.missing(self.samples))
            passes = missing * sum(worker.cost(self.classifier))
            rows.append((stage.artefact.kind, stage.artefact.key, len(self.samples) - missing, missing, passes))
        return rows

    def forget(self) -> None:
        """Remove the maps and scores of this job, for `runner.reuse=force`."""
        self.maps.artefact.remove()
        self.scores.artefact.remove()

    def record(self) -> results.Record:
        """Everything but the numbers that the result files say."""
        job = self.job
        labels = {
            name: getattr(job, name)
            for name in ("model", "dataset", "method", "metric", "method_variant", "metric_variant", "results")
        }
        if not self.metric.reads_maps:
            labels |= {"method": NO_METHOD, "method_variant": job.run_variant}
        return results.Record(
            **labels,
            samples=tuple(self.samples),
            filtered=self.filtered,
            statistics=self.metric.statistics,
            axes={name: axis.tolist() for name, axis in self.metric.axes(self.classifier).items()},
            keys={
                "model_key": digest(self.base["model"]),
                "data_key": digest(self.base["data"]),
                "map_key": self.maps.artefact.key if self.metric.reads_maps else "",
                "metric_key": digest(keys.metric(self.metric, job.metric_spec)),
                # Everything the numbers depend on, for scores that read no maps too: seed, target, fit.
                "numbers_key": self.scores.artefact.key,
            },
            computed=any(self.seconds.values()),
            details={
                "collapse": self.how if self.metric.reads_maps else None,
                "sign": self.metric.sign if self.metric.reads_maps else None,
                "method_cost": self.method.cost(self.classifier) if self.metric.reads_maps else (0, 0),
                "metric_cost": self.metric.cost(self.classifier),
                "tuned_on": job.tuned_on if self.metric.reads_maps else (),
                "seconds": {
                    stage.artefact.kind: stage.artefact.manifest().get("seconds", 0.0)
                    for stage in (self.maps, self.scores)
                },
                "peak_memory_bytes": peak_memory(self.device),
                "device": str(self.device),
                "threads": torch.get_num_threads(),
                "config": job.config,
            },
        )


def peak_memory(device: torch.device) -> int:
    """Bytes: of the device's allocator on CUDA, else the peak resident size of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def find_device(name: str) -> torch.device:
    """`auto`, or a torch device name, as a device with kernels that give the same numbers every time."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0].partition(". ")[0]
        raise UserError(f"runner.device={name}: not available here ({reason}); use auto or cpu") from error
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    return device


def default_batch_size(input_size: tuple[int, int, int], device: torch.device) -> int:
    """Inputs per call of the network. On a CPU few enough that their activations stay in its caches: 32 of 64x64
    pixels, 8 of 224x224 (measured by scripts/bench.py; 64 of 64x64 take 1.6 times as long each)."""
    pixels = input_size[1] * input_size[2]
    if device.type == "cuda":
        return min(max(2**26 // pixels, 8), 256)
    return min(max(2**17 // pixels, 8), 64)


def _check_maps(name: str, maps: torch.Tensor, inputs: torch.Tensor) -> None:
    channels = (1, inputs.shape[1])
    if maps.ndim != 4 or maps.shape[1] not in channels or maps[:, :1].shape != inputs[:, :1].shape:
        raise XaibenchError(
            f"method={name} returned maps of shape {list(maps.shape)} for inputs of shape {list(inputs.shape)}: "
            "expected [B,C,H,W] or [B,1,H,W]"
        )

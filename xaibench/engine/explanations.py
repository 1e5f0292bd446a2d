"""What is explained, and its explanations: one model on one split of a data set, by one method.

    logits   the model's outputs for the samples                      shared by every method and metric
    fit      what the method estimates once                           shared by every metric
    maps     the method's maps of the samples and their targets       shared by every metric

Each is an artefact of the cache: what is there is read, what is missing is computed and kept.
"""

import contextlib
import dataclasses
import functools
import inspect
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from .. import rng
from ..build import build
from ..datasets.base import Batch, Dataset, Samples
from ..errors import Refusal, UserError, XaibenchError
from ..job import ORIGINAL, Job
from ..methods.base import Method
from ..metrics.base import Metric
from ..metrics.ranking import collapse
from ..models.classifier import Classifier, predicted
from ..models.loading import check_input, load_classifier
from ..models.randomise import PERMUTED_LABELS, Randomisation, is_randomised, randomised
from ..scores.score_files import NONFINITE_MAP, OK
from ..store import provenance
from ..store.cache import SHARD_SAMPLES, Artefact
from . import keys
from .device import default_batch_size, find_device
from .stage import Arrays, Stage
from .training import split_samples, trained_weights

log = logging.getLogger(__name__)

# A block costs about half a minute at most on two CPU cores, so that a kill loses no more than that. For input_iba on
# the bundled network that is one image.
BLOCK_FLOPS = 5e11
# Values of the inputs of a block up to which it may have more than SHARD_SAMPLES.
SHARD_VALUES = 2**13


class Explanations:
    """The objects of a Job that its maps need, and the stages through which the maps come into being.

    Raises UserError (a Refusal, for a pairing that cannot work) before any work.
    """

    def __init__(
        self,
        job: Job,
        root: Path,
        samples: list[int] | None = None,
        like: "Explanations | None" = None,
        collapsed: str | None = None,
    ) -> None:
        """samples: the ids to explain; None selects them as the job says.

        like: explanations of the same model and data by other weights. Data, decoded images and the trained network
        are theirs, and so are the targets of `target=original`. collapsed: keep nothing but maps, collapsed in this
        way, [B,1,H,W]: what the network answers is not asked for them.
        """
        self.job, self.root, self.like, self.kept_collapsed = job, root, like, collapsed
        self.seconds = {"maps": 0.0}
        self.report: Callable[[str, int], None] = lambda kind, done: None

        self.device = find_device(job.runner.device)
        self.method: Method = build(job.method_spec, "method")
        if like is None:
            self.dataset: Dataset = build(job.dataset_spec, "dataset")
            self.learned = self._load_network()
            self.loader = Samples(self.dataset, self.learned.preprocessing, (), self.device)
            self._recent: deque[Batch] = deque(maxlen=2)
            self._samples_to_fit: Samples | None = None
            self._check_pairing()
        else:
            self.dataset, self.loader, self._recent = like.dataset, like.loader, like._recent
            self.outputs = like.outputs
            self.learned = self._load_network() if job.weights_state.startswith(PERMUTED_LABELS) else like.learned
            if "samples" in inspect.signature(self.method.attribute).parameters:
                raise Refusal(f"metric={job.metric} explains other networks, which method={job.method} has no maps of")

        self.base = {
            "model": keys.model(self.learned, job.weights_state),
            "data": keys.data(self.dataset, job.dataset_spec),
        }
        self.names = (job.model, job.dataset)
        self.explained = {**self.base, "explained": keys.explained(job)}
        if job.target == ORIGINAL:
            self.explained["explained"] = dict(like.explained["explained"])
            if like.job.target == "predicted":
                self.explained["explained"]["predicted_by"] = like.base["model"]
        everything = rng.permutation(len(self.dataset), job.selection.seed)
        self.logits = self.stage("responses", (*self.names, "logits"), self.base, everything, self._compute_logits)
        self.samples, self.filtered = self._select(everything) if samples is None else (samples, {})
        if samples is not None or not self._filters:
            self.logits.order = self.samples

        self.fit = self.fit_of(self.method, job.method, job.method_spec)
        self._fitted_here, self._fitted_there = (
            functools.lru_cache(maxsize=1)(lambda one: one.fitted(one.fit)) for _ in range(2)
        )
        mapped = self.explained | {
            "method": keys.method(self.method, job.method_spec),
            "fit": self.fit and self.fit.artefact.key,
        }
        if collapsed is not None:
            mapped["collapsed"] = collapsed
        self.maps = self.stage(
            "maps", (*self.names, job.method), mapped, self.samples, self._compute_maps, self.method.cost
        )

    # ---- the network ---------------------------------------------------------------------------------------------

    @property
    def classifier(self) -> Classifier:
        """The network that is explained. Of randomised ones the last is kept in memory, and made when it is needed."""
        if not is_randomised(self.job.weights_state):
            return self.learned
        return (self.like or self)._randomised(self.job.weights_state)

    @functools.cached_property
    def _randomised(self) -> Callable[[str], Classifier]:
        return functools.lru_cache(maxsize=1)(lambda state: randomised(self.learned, Randomisation.parse(state)))

    def _load_network(self) -> Classifier:
        job = self.job
        classifier = load_classifier(
            job.model,
            job.model_spec,
            output=job.output,
            device=self.device,
            trained=lambda: trained_weights(job, self.root, self.device),
        )
        automatic = default_batch_size(classifier.input_size, self.device)
        classifier.batch_size = job.runner.batch_size or automatic
        return classifier

    # ---- maps ----------------------------------------------------------------------------------------------------

    def attribute(
        self,
        inputs: torch.Tensor,
        targets: torch.Tensor,
        samples: Sequence[int],
        purpose: str = "method",
        masks: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The method's maps [B,C or 1,H,W] of any inputs [B,C,H,W]; each draws from its sample's generator.

        purpose: other words give other draws. masks [B,H,W]: what the targets are about in these inputs. labels [B]:
        of the samples.
        """
        context: dict[str, Any] = {"labels": labels, "masks": masks, "samples": samples}
        if self.fit is not None:
            context["fitted"] = self._state
        wanted = inspect.signature(self.method.attribute).parameters
        maps = self.method.attribute(
            self.classifier,
            inputs,
            targets,
            rng.sample_generators(self.job.seed, purpose, samples),
            **{name: value for name, value in context.items() if name in wanted},
        ).detach()
        _check_maps(self.job.method, maps, inputs)
        return maps.float()

    def propagate(
        self, inputs: torch.Tensor, signals: Sequence[torch.Tensor], start: str, keep: Sequence[str]
    ) -> list[dict[str, torch.Tensor]]:
        """For each of the signals [B,...] at the output of the layer `start`, what arrives at the layers `keep` by the
        method's rules for inputs [B,C,H,W]; see `methods.modified_backprop`."""
        wanted = inspect.signature(self.method.propagate).parameters
        fitted = {"fitted": self._state} if self.fit is not None and "fitted" in wanted else {}
        return self.method.propagate(self.classifier, inputs, signals, start, keep, **fitted)

    def collapsed(self, samples: Sequence[int], how: str, sign: str) -> tuple[torch.Tensor, np.ndarray]:
        """The maps of these samples as [B,H,W], and whether each is finite: its status [B]."""
        rows = self.maps.rows(samples)
        return collapse(torch.from_numpy(rows["maps"]).to(self.device), how, sign), rows["status"]

    def _compute_maps(self, samples: Sequence[int]) -> Arrays:
        batch = self.load(samples)
        if self.fit is not None:
            self._state  # noqa: B018 (fitted here, so that its time is not the maps')
        with self.timed("maps"):
            maps = self.attribute(batch.inputs, batch.targets, samples, masks=batch.masks, labels=batch.labels)
        if self.kept_collapsed is not None:
            maps = collapse(maps, self.kept_collapsed)[:, None]
        columns = {
            "maps": maps,
            "target": batch.targets,
            "status": torch.where(maps.isfinite().all(dim=3).all(dim=2).all(dim=1), OK, NONFINITE_MAP),
        }
        if self.kept_collapsed is None:
            logits, targets = self.logits_of(samples), batch.targets[:, None]
            columns["logit"] = logits.gather(1, targets)[:, 0].float()
            columns["probability"] = logits.softmax(-1).gather(1, targets)[:, 0].float()
        return {name: tensor.cpu().numpy() for name, tensor in columns.items()}

    @contextlib.contextmanager
    def timed(self, kind: str) -> Iterator[None]:
        """Counts the seconds of what it encloses as those of a kind of artefact."""
        started = time.perf_counter()
        yield
        self.seconds[kind] += time.perf_counter() - started

    def _compute_logits(self, samples: Sequence[int]) -> Arrays:
        return {"logits": self.classifier.logits(self._decoded(samples).inputs).cpu().numpy()}

    # ---- samples -------------------------------------------------------------------------------------------------

    def logits_of(self, samples: Sequence[int]) -> torch.Tensor:
        """The model's logits [B,K] for samples."""
        return torch.from_numpy(self.logits.rows(samples)["logits"]).to(self.device)

    def load(self, samples: Sequence[int]) -> Batch:
        """Samples with the targets that are explained."""
        if self.job.target == ORIGINAL:
            return self.like.load(samples)
        batch = self._decoded(samples)
        if self.outputs == 1:
            return dataclasses.replace(batch, targets=torch.zeros_like(batch.labels, dtype=torch.int64))
        if self.job.target == "predicted":
            return dataclasses.replace(batch, targets=self.logits_of(samples).argmax(-1))
        if self.job.target.startswith("fixed:"):
            return dataclasses.replace(batch, targets=torch.full_like(batch.labels, int(self.job.target[6:])))
        return batch

    def _decoded(self, samples: Sequence[int]) -> Batch:
        """Decoded samples. The last two blocks stay in memory, for the stages that follow and check them, or parts."""
        for batch in self._recent:
            places = {sample: place for place, sample in enumerate(batch.samples)}
            if places.keys() >= set(samples):
                return _take(batch, [places[sample] for sample in samples])
        self._recent.append(self.loader.load(samples))
        return self._recent[-1]

    def _checksums(self, samples: Sequence[int]) -> np.ndarray:
        return np.asarray(self._decoded(samples).crc, dtype=np.uint32)

    # ---- what is fitted once -------------------------------------------------------------------------------------

    def fit_of(self, worker: Method | Metric, name: str, spec: dict[str, Any]) -> "Fit | None":
        """Where what a method or metric fits is kept; None if it fits nothing."""
        if getattr(worker, "fit", None) is None:
            return None
        samples = self._fit_samples(name)
        data = keys.data(samples.dataset, {**self.job.dataset_spec, "split": self.job.fit.split})
        fitted = keys.fit(worker, spec, self.job, data, list(samples.ids))
        return Fit(
            worker, name, Artefact(self.root, "fits", (*self.names, name), {"model": self.base["model"], **fitted})
        )

    def fitted(self, fit: "Fit") -> dict[str, torch.Tensor]:
        """What a method's or metric's `fit` returned: from the cache, or made now by whoever claims it first."""
        artefact = fit.artefact
        arrays = artefact.load_whole("fit")
        if arrays is None:
            if self.job.runner.reuse == "only-cache":
                raise UserError(f"runner.reuse=only-cache: {artefact.folder} is missing; use runner.reuse=missing")
            artefact.create(self.made_by())
            with artefact.claim("fit"):
                arrays = artefact.load_whole("fit")
                if arrays is None:
                    samples = self._fit_samples(fit.name)
                    log.info("fitting %s on %d samples of %s", fit.name, len(samples), self.job.fit.split)
                    state = fit.worker.fit(self.classifier, samples, rng.generator(self.job.fit.seed, "fit"))
                    arrays = {key: tensor.detach().cpu().numpy() for key, tensor in state.items()}
                    artefact.save_whole("fit", arrays)
            artefact.tidy()
        return {key: torch.from_numpy(array).to(self.device) for key, array in arrays.items()}

    @property
    def _state(self) -> dict[str, torch.Tensor]:
        """What the method fitted to the network that is explained; of other weights, the last is kept in memory."""
        return (self._fitted_here if self.like is None else self.like._fitted_there)(self)

    def _fit_samples(self, name: str) -> Samples:
        if self.like is not None:
            return self.like._fit_samples(name)
        if self._samples_to_fit is None:
            self._samples_to_fit = self._choose_fit_samples(name)
        return self._samples_to_fit

    def _choose_fit_samples(self, name: str) -> Samples:
        fit, loader = self.job.fit, self.loader
        try:
            return split_samples(
                self.job.dataset_spec, fit.split, fit.limit, fit.seed, loader.preprocessing, loader.device
            )
        except UserError as error:
            hint = f"{name} is fitted on fit.split={fit.split}; set another, such as fit.split=test"
            raise UserError(f"{error}\n{hint}") from error

    # ---- setting up ----------------------------------------------------------------------------------------------

    def _check_pairing(self) -> None:
        """Refuse what cannot work, before any work."""
        job, classes = self.job, len(self.dataset.class_names)
        if len(self.dataset) == 0:
            raise UserError(f"dataset={job.dataset}: this split has no samples")
        self.check_masks(f"method={job.method}", self.method)
        first = self.loader.load([0])
        self.outputs = check_input(self.classifier, first.inputs[0], classes)
        if first.labels.is_floating_point() and self.outputs > 1:
            raise UserError(f"dataset={job.dataset} has real labels, {job.model} {self.outputs} outputs: expected 1")
        if job.target.startswith("fixed:") and int(job.target[6:]) >= self.outputs:
            raise UserError(f"target={job.target}: {job.model} has classes 0 to {self.outputs - 1}")
        self.method.check(self.classifier)

    def check_masks(self, name: str, worker: Method | Metric) -> None:
        """Refuse a method or metric that needs masks where there are none."""
        if getattr(worker, "needs_mask", False) and not self.dataset.has_masks:
            raise Refusal(f"{name} needs ground-truth masks, dataset={self.job.dataset} has none (shapes has)")

    @property
    def _filters(self) -> bool:
        return self.job.selection.filter.correct or self.job.selection.filter.min_probability > 0

    def _select(self, permutation: list[int]) -> tuple[list[int], dict[str, int]]:
        """The first `limit` samples that pass the filter, and how many were passed over, by reason."""
        limit = self.job.selection.limit or len(permutation)
        if not self._filters:
            return permutation[:limit], {}
        kept: list[int] = []
        passed_over = {"not correct": 0, "probability too low": 0}
        for block in self.logits.blocks():
            logits, batch = self.logits_of(block), self.load(block)
            correct = (predicted(logits) == batch.labels).tolist()
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

    def stage(
        self, kind: str, names: Sequence[str], spec: dict[str, Any], order, compute, cost=None, size=None
    ) -> Stage:
        """An artefact with a row per sample of `order`. cost: the passes that a sample takes, as `Method.cost`; from
        it follows how many samples make a block, unless `size` says so."""
        return Stage(
            artefact=Artefact(self.root, kind, names, spec),
            order=order,
            size=lambda: size or (self._most_samples if cost is None else self._block_size(*cost(self.learned))),
            compute=compute,
            provenance=self.made_by(),
            checksums=None if kind == "scores" else self._checksums,
            only_cache=self.job.runner.reuse == "only-cache",
            report=lambda kind, done: self.report(kind, done),
        )

    def _block_size(self, forwards: int, backwards: int) -> int:
        """Samples per block: fewer than the most where one of them takes long."""
        flops = self._forward_flops * max(1, forwards + 2 * backwards)
        return int(min(max(BLOCK_FLOPS // max(flops, 1), 1), self._most_samples))

    @property
    def _most_samples(self) -> int:
        """Of a block: 64; of points of a plane, of which 64 would be mostly overhead, thousands."""
        return max(SHARD_SAMPLES, SHARD_VALUES // math.prod(self.learned.input_size))

    @functools.cached_property
    def _forward_flops(self) -> int:
        if self.like is not None:
            return self.like._forward_flops
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            self.learned.module(self.learned.blank)
        return counter.get_total_flops()

    def made_by(self) -> dict[str, object]:
        """Versions, commit and device, for the artefacts' spec.json."""
        return {"versions": provenance.versions(), "commit": provenance.commit(), "device": str(self.device)}


@dataclasses.dataclass(frozen=True)
class Fit:
    """A method or metric with something to fit, its name, and the artefact that keeps what it fitted."""

    worker: Method | Metric
    name: str
    artefact: Artefact


def _take(batch: Batch, places: list[int]) -> Batch:
    """Some samples of a batch."""
    return Batch(
        samples=tuple(batch.samples[place] for place in places),
        inputs=batch.inputs[places],
        labels=batch.labels[places],
        targets=batch.targets[places],
        masks=None if batch.masks is None else batch.masks[places],
        crc=tuple(batch.crc[place] for place in places),
    )


def _check_maps(name: str, maps: torch.Tensor, inputs: torch.Tensor) -> None:
    channels = (1, inputs.shape[1])
    if maps.ndim != 4 or maps.shape[1] not in channels or maps[:, :1].shape != inputs[:, :1].shape:
        raise XaibenchError(
            f"method={name} returned maps of shape {list(maps.shape)} for inputs of shape {list(inputs.shape)}: "
            "expected [B,C,H,W] or [B,1,H,W]"
        )

"""What all cells of a model and a data set share: the network, the decoded data, the samples and the logits."""

import dataclasses
import functools
import json
import logging
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from .. import rng
from ..build import build
from ..datasets.base import Batch, Dataset, HasQuestions, Row, Samples
from ..errors import UserError, first_line
from ..job import ORIGINAL, TRAINED, Job, classes_of
from ..methods.base import Method
from ..metrics.base import Metric
from ..models.classifier import Classifier, predicted
from ..models.flops import forward_flops
from ..models.loading import check_input, load_classifier, names_file
from ..models.preprocessing import Preprocessing
from ..models.probe import PROBE, Findings, adapted, probe
from ..models.randomise import Randomisation, is_randomised, randomised
from ..store import provenance
from ..store.cache import Artefact
from . import keys
from .device import block_size, default_batch_size, find_device, ran_out_of_memory
from .kept import Kept
from .stage import Arrays, Filled, Fit, Stage
from .training import UNTRAINED, Untrained, trained_weights

log = logging.getLogger(__name__)
T = TypeVar("T")

# Bytes of decoded inputs of one split that stay in memory.
DECODED = 2**29


class Network:
    """A trained network, and what becomes of it under the weights states that metrics ask for.

    training: of a plan, the row of the training that has to come first; the network has random weights until then.
    """

    def __init__(self, trained: Classifier, training: tuple[str, str, int, int, int] | None = None) -> None:
        self.trained, self.training = trained, training
        # Of randomised ones the last is kept in memory.
        self._taken: dict[tuple[Any, ...], int] = {}
        self._randomised = functools.lru_cache(maxsize=1)(lambda state: randomised(trained, Randomisation.parse(state)))

    def at(self, state: str) -> Classifier:
        """The network in a weights state; one that is not a `Randomisation` has been trained so."""
        return self._randomised(state) if is_randomised(state) else self.trained

    def halve(self, said: str) -> None:
        """Half as many inputs per call from now on, since memory ran out, as `said`. Raises UserError at one."""
        trained = self.trained
        if trained.batch_size == 1:
            raise UserError(f"{trained.name}: memory runs out with one input per call ({said}); use runner.device=cpu")
        trained.batch_size //= 2
        self._randomised.cache_clear()
        log.warning("memory ran out (%s): %s gets %d inputs per call", said, trained.name, trained.batch_size)

    def takes(self, image: torch.Tensor, classes: int) -> int:
        """As `check_input`, which is asked once for every size of an image and number of classes."""
        asked = (*image.shape, classes)
        if asked not in self._taken:
            self._taken[asked] = check_input(self.trained, image, classes)
        return self._taken[asked]

    @functools.cached_property
    def outputs(self) -> int:
        """How many outputs K it has."""
        return self.trained.outputs

    @functools.cached_property
    def forward_flops(self) -> int:
        """Of one forward pass of one input."""
        return forward_flops(self.trained)


class Split:
    """One split of a data set, decoded as a network takes it; the last DECODED bytes of inputs stay in memory.

    What is expected next is decoded while the present batch is computed.
    """

    def __init__(self, dataset: Dataset, preprocessing: Preprocessing, device: torch.device) -> None:
        self.dataset = dataset
        self.samples = Samples(dataset, preprocessing, (), device)
        self._decoded: OrderedDict[int, Batch] = OrderedDict()
        self._expected: dict[int, Future[Row]] = {}

    def expect(self, samples: Sequence[int]) -> None:
        """Begin to decode the samples that will be loaded next, instead of others that were expected."""
        before = self._expected
        absent = [sample for sample in samples if sample not in self._decoded and sample not in before]
        self._expected = {sample: before[sample] for sample in samples if sample in before}
        self._expected |= zip(absent, self.samples.begin(absent))

    def load(self, samples: Sequence[int]) -> Batch:
        """Samples as a batch whose targets are the labels. Its tensors are the caller's own."""
        absent = [sample for sample in samples if sample not in self._decoded]
        if absent:
            unexpected = [sample for sample in absent if sample not in self._expected]
            begun = self._expected | dict(zip(unexpected, self.samples.begin(unexpected)))
            batch = self.samples.batch(absent, [begun[sample] for sample in absent])
            self._expected = {sample: row for sample, row in self._expected.items() if sample not in absent}
            self._decoded |= {sample: batch[place : place + 1] for place, sample in enumerate(absent)}
        loaded = Batch.joined([self._decoded[sample] for sample in samples])
        most = max(DECODED // max(loaded.inputs[0].nbytes, 1), len(samples))
        while len(self._decoded) > most:
            self._decoded.popitem(last=False)
        return loaded


class Setting:
    """A network and one split of a data set, as a Job names them, with the targets that are explained.

    samples: the ids to explain; None selects them as the job says. original: the setting whose targets
    `target=original` stands for, of the same data by the network that the Job it belongs to explains.
    """

    def __init__(
        self,
        job: Job,
        root: Path,
        kept: Kept,
        samples: Sequence[int] | None = None,
        original: "Setting | None" = None,
    ) -> None:
        self.job, self.root, self.kept, self.original = job, root, kept, original
        self.device = find_device(job.runner.device)
        self.network = kept.get("network", self._network_name(), self._load_network)
        self.preprocessing = self.network.trained.preprocessing
        self.split = self._split_of(job.dataset_spec)
        self.dataset = self.split.dataset
        self.names = (job.model, job.dataset)
        self.base = {
            "model": keys.model(self.network.trained, job.weights_state),
            "data": keys.data(self.dataset, job.dataset_spec),
        }
        self.explained = {**self.base, "explained": keys.explained(job)}
        if job.target == ORIGINAL:
            assert original is not None
            self.explained["explained"] = dict(original.explained["explained"])
            if original.job.target == "predicted":
                self.explained["explained"]["predicted_by"] = original.base["model"]
        self._given = samples

    def of(self, job: Job) -> "Setting":
        """The setting of another Job over the same samples: by other weights, of other targets, by another network."""
        return Setting(job, self.root, self.kept, self.samples, original=self)

    @property
    def _rival(self) -> int | None:
        """The class that the explained one is set against, by `target=contrast:a,b`."""
        if self.job.target == ORIGINAL:
            assert self.original is not None
            return self.original._rival
        named = classes_of(self.job.target)
        return named[1] if len(named) == 2 else None

    # ---- the network ---------------------------------------------------------------------------------------------

    @property
    def classifier(self) -> Classifier:
        """The network that is explained, made when it is needed."""
        return self.network.at(self.job.weights_state)

    def _network_name(self) -> dict[str, Any]:
        """What a loaded network depends on."""
        job, weights = self.job, self.job.model_spec.get("weights")
        name: dict[str, Any] = {
            "name": job.model,
            "spec": job.model_spec,
            "output": job.output,
            "rival": self._rival,
            "device": str(self.device),
        }
        name |= {"batch_size": job.runner.batch_size, "plan": job.runner.plan}
        if weights == "recipe":  # one for each weights state that is trained
            state = TRAINED if is_randomised(job.weights_state) else job.weights_state
            name |= {"trained_on": {**job.dataset_spec, "split": None}, "state": state, "root": str(self.root)}
        elif isinstance(weights, str) and names_file(weights) and Path(weights).is_file():
            stat = Path(weights).stat()
            name["file"] = [stat.st_size, stat.st_mtime_ns, stat.st_ino]
        return name

    def _load_network(self) -> Network:
        job, training = self.job, None

        def load(spec: Mapping[str, Any]) -> Classifier:
            trained = functools.partial(trained_weights, job, self.root, self.device)
            return load_classifier(job.model, spec, output=job.output, device=self.device, trained=trained)

        arch, weights = job.model_spec.get("arch"), job.model_spec.get("weights")
        named = arch and isinstance(weights, str) and weights not in ("random", "recipe") and not names_file(weights)
        try:
            if job.runner.plan and named and not _is_downloaded(str(arch), str(weights)):
                raise Untrained(("weights", f"a download of {weights}", 0, 1, 0))
            classifier = load(job.model_spec)
        except Untrained as planned:
            training, classifier = planned.row, load({**job.model_spec, "weights": "random"})
            classifier.weights_digest, classifier.weights_state = UNTRAINED, "trained"
        classifier.rival = self._rival
        automatic = default_batch_size(classifier.input_size, self.device)
        classifier.batch_size = job.runner.batch_size or automatic
        by_recipe = job.model_spec.get("weights") == "recipe"
        return Network(adapted(classifier, self._probed(classifier), by_recipe=by_recipe), training)

    def _probed(self, classifier: Classifier) -> Findings:
        """What a probe says of the network: once for its weights, kept in the cache."""
        known = {"definition": dict(classifier.definition), "weights": classifier.weights_digest}
        spec = {"probe": PROBE, **known, "input_size": list(classifier.input_size)}
        artefact = Artefact(self.root, "probes", (self.job.model,), spec)
        arrays = artefact.load_whole("findings")
        if arrays is not None:
            return Findings(**json.loads(arrays["findings"].tobytes()))
        findings = probe(classifier)
        if findings.outputs and not (self.job.runner.plan or self.only_cache):
            artefact.create(self.made_by())
            text = json.dumps(asdict(findings)).encode()
            artefact.save_whole("findings", {"findings": np.frombuffer(text, dtype=np.uint8)})
        return findings

    # ---- the data ------------------------------------------------------------------------------------------------

    @functools.cached_property
    def logits(self) -> Stage:
        """The network's outputs for the samples, or for as many as the filter looks at."""
        order = self._permutation if self._filters and self._given is None else self.samples
        return self.stage("responses", (*self.names, "logits"), self.base, order, self._compute_logits)

    @property
    def samples(self) -> Sequence[int]:
        """The ids of the samples that are explained."""
        return self._selected[0]

    @property
    def filtered(self) -> dict[str, int]:
        """How many samples the filter passed over, by reason."""
        return self._selected[1]

    def logits_of(self, samples: Sequence[int]) -> torch.Tensor:
        """The network's logits [B,K] for samples."""
        return torch.from_numpy(self.logits.rows(samples)["logits"]).to(self.device)

    def load(self, samples: Sequence[int]) -> Batch:
        """Samples with the targets that are explained. Those of `target=predicted` are read from `logits`."""
        if self.job.target == ORIGINAL:
            assert self.original is not None
            return self.original.load(samples)
        batch = self.split.load(samples)
        if self.network.outputs == 1:
            return dataclasses.replace(batch, targets=torch.zeros_like(batch.labels, dtype=torch.int64))
        if self.job.target == "predicted":
            return dataclasses.replace(batch, targets=self.logits_of(samples).argmax(-1))
        if named := classes_of(self.job.target):
            return dataclasses.replace(batch, targets=torch.full_like(batch.labels, named[0]))
        return batch

    @property
    def reads(self) -> tuple[Stage, ...]:
        """The stages that `load` reads."""
        if self.job.target == ORIGINAL:
            assert self.original is not None
            return self.original.reads
        return (self.logits,) if self.job.target == "predicted" and self.network.outputs > 1 else ()

    def _split_of(self, spec: Mapping[str, Any]) -> Split:
        """A split of the data set, shared with the other cells."""
        name = {
            "spec": spec,
            "preprocessing": dataclasses.asdict(self.preprocessing),
            "device": str(self.device),
        }
        return self.kept.get("split", name, lambda: Split(build(spec, "dataset"), self.preprocessing, self.device))

    @functools.cached_property
    def _permutation(self) -> list[int]:
        return rng.permutation(len(self.dataset), self.job.selection.seed)

    @property
    def _filters(self) -> bool:
        return self.job.selection.filter.correct or self.job.selection.filter.min_probability > 0

    @functools.cached_property
    def _selected(self) -> tuple[Sequence[int], dict[str, int]]:
        """The first `limit` samples that pass the filter, and how many were passed over, by reason."""
        if self._given is not None:
            return self._given, {}
        limit = self.job.selection.limit or len(self._permutation)
        if not self._filters or self.network.training:  # what passes the filter, nobody knows before
            return self._permutation[:limit], {}
        wanted = self.job.selection.filter
        kept: list[int] = []
        passed_over = {"not correct": 0, "probability too low": 0}
        for block in self.logits.blocks():
            if self.logits.misses(block):
                self.logits.fill(block)
            logits, batch = self.logits_of(block), self.load(block)
            correct = (predicted(logits) == batch.labels).tolist()
            finite = logits.isfinite().all(-1).tolist()
            probability = self.classifier.probabilities(logits).gather(1, batch.targets[:, None])[:, 0].tolist()
            for sample, is_finite, is_correct, p in zip(block, finite, correct, probability):
                if len(kept) == limit:
                    return kept, passed_over
                if not is_finite:
                    passed_over["logits not finite"] = passed_over.get("logits not finite", 0) + 1
                elif wanted.correct and not is_correct:
                    passed_over["not correct"] += 1
                elif p < wanted.min_probability:
                    passed_over["probability too low"] += 1
                else:
                    kept.append(sample)
        if not kept:
            raise UserError(f"dataset.filter={dataclasses.asdict(wanted)} leaves no sample")
        return kept, passed_over

    def _compute_logits(self, samples: Sequence[int]) -> Arrays:
        parts = list(self.split.load(samples).alike())
        logits = torch.cat([self.classifier.asked(part.questions).logits(part.inputs) for _, part in parts])
        return {"logits": logits.cpu()[torch.cat([rows for rows, _ in parts]).argsort()].numpy()}

    def _checksums(self, samples: Sequence[int]) -> np.ndarray:
        return np.asarray(self.split.load(samples).crc, dtype=np.uint32)

    # ---- what is fitted once -------------------------------------------------------------------------------------

    def fit_of(self, estimator: Method | Metric, name: str, spec: dict[str, Any]) -> Fit | None:
        """What a method or metric fits to this network, or, of one made random with `fit.refit=false`, to the trained
        one; None if it fits nothing."""
        estimate = estimator.fit
        if estimate is None:
            return None
        state = self.job.weights_state
        if not self.job.fit.refit and is_randomised(state):
            state = TRAINED
        samples = self._fit_samples(name)
        data = keys.data(samples.dataset, {**self.job.dataset_spec, "split": self.job.fit.split})
        fitted = keys.fit(estimator, spec, self.job, data, list(samples.ids))

        def make() -> Arrays:
            log.info("fitting %s on %d samples of %s", name, len(samples), self.job.fit.split)

            def of(part: Samples, questions: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
                return self.within_memory(
                    lambda: estimate(
                        self.network.at(state).asked(questions), part, rng.generator(self.job.fit.seed, "fit")
                    )
                )

            dataset = samples.dataset
            if not isinstance(dataset, HasQuestions):
                return {key: tensor.detach().cpu().numpy() for key, tensor in of(samples).items()}
            # One for each question, from the samples that ask it: to a method every question is a network of its own.
            return {
                f"{place}:{key}": tensor.detach().cpu().numpy()
                for place, question in enumerate(dataset.questions)
                for key, tensor in of(samples.asking(place), question[None]).items()
            }

        model = keys.model(self.network.trained, state)
        artefact = Artefact(self.root, "fits", (*self.names, name), {"model": model, **fitted})
        return Fit(artefact, make, self.made_by(), self.only_cache)

    def fitted(self, fit: Fit | None, questions: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        """What was fitted, on the device; nothing for None. Of many networks the last few are kept in memory.

        questions: [b,Q], all the same: what was fitted to the network that is asked this one.
        """
        if fit is None:
            return {}

        def read() -> dict[str, torch.Tensor]:
            if (arrays := fit.arrays()) is None:  # gone since it was made: `cache prune`
                fit.fill(self.samples)
                arrays = fit.arrays() or {}
            return {key: torch.from_numpy(array).to(self.device) for key, array in arrays.items()}

        found = self.kept.get("fit", {"key": fit.artefact.key, "folder": str(fit.artefact.folder)}, read)
        if questions is None or not isinstance(self.dataset, HasQuestions):
            return found
        place = int((self.dataset.questions.to(questions) == questions[0]).all(1).nonzero()[0])
        return {key.removeprefix(f"{place}:"): tensor for key, tensor in found.items() if key.startswith(f"{place}:")}

    def _fit_samples(self, name: str) -> Samples:
        fit = self.job.fit
        try:
            dataset = self._split_of({**self.job.dataset_spec, "split": fit.split}).dataset
        except UserError as error:
            hint = f"{name} is fitted on fit.split={fit.split}; set another, such as fit.split=test"
            raise UserError(f"{error}\n{hint}") from error
        ids = rng.permutation(len(dataset), fit.seed)[: fit.limit]
        return Samples(dataset, self.preprocessing, ids, self.device)

    # ---- stages --------------------------------------------------------------------------------------------------

    def stage(
        self,
        kind: str,
        names: Sequence[str],
        spec: Mapping[str, Any],
        order: Sequence[int],
        compute: Callable[[Sequence[int]], Arrays],
        *,
        reads: Sequence[Filled | None] = (),
        reads_all: bool = False,
        passes: Callable[[Classifier], tuple[int, int]] | None = None,
        least: Callable[[Classifier], int] | None = None,
        size: int | None = None,
    ) -> Stage:
        """An artefact with a row per sample of `order`. passes: (forward, backward) that a sample takes, from which
        follows how many samples make a block; None is next to nothing. least: of a block, see `Metric.at_once`. size:
        instead of that, for rows that are no samples."""
        return Stage(
            artefact=Artefact(self.root, kind, names, spec),
            order=order,
            size=lambda: size or self._block_size(passes, least),
            compute=lambda samples: self.within_memory(lambda: compute(samples)),
            device=self.device,
            provenance=self.made_by(),
            reads=tuple(stage for stage in reads if stage is not None),
            reads_all=reads_all,
            checksums=None if kind == "scores" else self._checksums,
            expect=None if size else self.split.expect,
            only_cache=self.only_cache,
        )

    def within_memory(self, compute: Callable[[], T]) -> T:
        """What `compute` returns, tried again with smaller calls of the network as long as memory runs out."""
        while True:
            try:
                return compute()
            except Exception as error:
                if not ran_out_of_memory(error):
                    raise
                said = first_line(error)
            self.network.halve(said)  # here, where nothing holds what was computed any more

    @property
    def only_cache(self) -> bool:
        """Whether nothing may be computed."""
        return self.job.runner.reuse == "only-cache"

    def made_by(self) -> dict[str, object]:
        """Versions, sources, commit and device, for the artefacts' spec.json."""
        return provenance.made_by(self.device)

    def _block_size(
        self, passes: Callable[[Classifier], tuple[int, int]] | None, least: Callable[[Classifier], int] | None
    ) -> int:
        """Samples per block, see `block_size`."""
        network, flops = self.network.trained, 0.0
        if passes:
            forwards, backwards = passes(network)
            flops = self.network.forward_flops * max(1, forwards + 2 * backwards)
        return max(block_size(flops, network.input_size, self.device), least(network) if least else 1)


def _is_downloaded(arch: str, weights: str) -> bool:
    from ..models import torchvision_nets  # which is slow to import, and seldom needed

    return torchvision_nets.is_downloaded(arch, weights)

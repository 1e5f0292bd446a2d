"""What can change a number, as specs: the one place that decides what a cache key covers.

Everything that can change the numbers is in, and nothing that cannot: no batch size, device, path or progress.
"""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from ..build import SOURCE, TARGET, describe, frozen_name, is_spec, locate, source_of
from ..datasets.base import Dataset
from ..job import Job
from ..methods.base import Method
from ..metrics.base import Measure, Metric
from ..models.classifier import Classifier
from ..models.fitting import Fitting
from ..models.loading import names_file
from ..models.recipe import Recipe
from ..store.files import existing
from ..store.memo import contents

Spec = dict[str, Any]

# Where data lies, how it got there and what was chosen of it is not what it is: the fingerprint covers the content.
_LOCATION = ("root", "download", "classes", "boxes", "max_box", "sort", "unreadable", "path")


def model(classifier: Classifier, state: str = "trained") -> Spec:
    """The network, its weights and what it makes of an image. state: what has become of the classifier's weights."""
    spec = {
        "definition": dict(classifier.definition),
        "weights": classifier.weights_digest,
        "weights_state": classifier.weights_state if state == "trained" else state,
        "preprocessing": asdict(classifier.preprocessing),
        "input_size": list(classifier.input_size),
    }
    return spec | ({"adapted": dict(classifier.adapted)} if classifier.adapted else {})


def data(dataset: Dataset, spec: Mapping[str, Any]) -> Spec:
    """One split of a data set: its parameters and the fingerprint of its content."""
    return {**_contents(spec, "dataset", bool(dataset.fingerprint)), "fingerprint": dataset.fingerprint}


def explained(job: Job) -> Spec:
    """What is explained, and the seed of whatever is random."""
    return {"target": job.target, "output": job.output, "seed": job.seed}


def method(attribution: Method, spec: Mapping[str, Any]) -> Spec:
    """A method, its parameters and version; for one that reads a file, the file's fingerprint."""
    fingerprint = getattr(attribution, "fingerprint", None)
    described = _contents(spec, "method", fingerprint is not None)
    described |= {"version": attribution.version}
    return described | ({"fingerprint": fingerprint()} if fingerprint else {})


def fit(estimator: Method | Measure, spec: Mapping[str, Any], job: Job, fit_data: Spec, samples: list[int]) -> Spec:
    """What a method or metric estimates, and the samples it does so from.

    One whose fit depends on some of its parameters only says so with `fit_parameters`.
    """
    described = {**_versioned(describe(spec, "fit")), "version": estimator.version}
    if estimator.fit_parameters is not None:
        kept = (TARGET, SOURCE, "version", *estimator.fit_parameters)
        described = {name: value for name, value in described.items() if name in kept}
    return {"worker": described, "data": fit_data, "samples": samples, "seed": job.fit.seed}


def metric(scoring: Measure, spec: Mapping[str, Any]) -> Spec:
    """A metric, its parameters and version. Methods are ranked together where this is the same, so the collapse that
    a method brings along is not part of it."""
    return {**describe(spec, "metric"), "version": scoring.version}


def responses(scoring: Metric, spec: Mapping[str, Any]) -> Spec:
    """What the responses of the network depend on, of a metric."""
    named = {TARGET: frozen_name(spec[TARGET]), **source_of(spec, "metric")}
    return {**named, "version": scoring.version, **scoring.responses_spec()}


def recipe(training: Recipe | Fitting, spec: Mapping[str, Any]) -> Spec:
    """A recipe's parameters, of a file of initial weights its content; of a class from outside also name and code."""
    outside, described = source_of(spec, "model.recipe"), training.described()
    if training.initial is not None and names_file(training.initial):
        path = existing(training.initial, "model.recipe.initial")
        described["initial"] = next(iter(contents(path.parent, [path]).values()))
    return {**described, **({TARGET: spec[TARGET], **outside} if outside else {})}


def _contents(spec: Mapping[str, Any], where: str, has_fingerprint: bool) -> Spec:
    described = _versioned(describe(spec, where))
    return {k: v for k, v in described.items() if not (has_fingerprint and k in _LOCATION)}


def _versioned(described: Spec) -> Spec:
    """The specifications nested in a description with the versions of what they name: a method within a method."""
    nested = {name: _versioned(value) for name, value in described.items() if is_spec(value)}
    for name, value in nested.items():
        version = getattr(locate(value[TARGET], name), "version", None)
        nested[name] = value if version is None else {**value, "version": version}
    return described | nested

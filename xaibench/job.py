"""What is asked for, as plain data: one frozen Job per cell of a benchmark. Nothing here knows how it is done."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal


@dataclass(frozen=True)
class FitSelection:
    """Which samples a method estimates from: `split`, at most `limit` of them (None: all), chosen by `seed`.

    refit: whether it estimates anew where a metric makes weights random; if not, what was fitted to the trained ones.
    """

    split: str = "train"
    limit: int | None = 1000
    seed: int = 0
    refit: bool = True


@dataclass(frozen=True)
class Runner:
    """How to run; nothing here may change a number."""

    batch_size: int | None = None
    device: str = "auto"
    reuse: Literal["missing", "force", "only-cache", "never"] = "missing"
    plan: bool = False
    classes: Literal["match", "any"] = "match"
    cells_per_task: int | None = None
    worker: int = 0


@dataclass(frozen=True)
class Paths:
    """Folders of the HDF5 cache and of the results."""

    cache: str = "cache"
    results: str = "results"


@dataclass(frozen=True)
class Filter:
    """Which samples count: classified `correct`ly only; with at least `min_probability` for the target."""

    correct: bool = False
    min_probability: float = 0.0


@dataclass(frozen=True)
class Selection:
    """The first `limit` samples, after the filter, of a permutation seeded by `seed` (None: all of them)."""

    limit: int | None = None
    seed: int = 0
    filter: Filter = Filter()


# The keys of a data set's configuration that choose samples of it.
SELECTION = tuple(field.name for field in fields(Selection))

# The weights state of a network that is explained as it is.
TRAINED = "trained"
# The target of explanations by other weights: the class that the Job they belong to explains.
ORIGINAL = "original"


def classes_of(target: str) -> tuple[int, ...]:
    """The classes that a target names: one for `fixed:a`, two for `contrast:a,b`, none for the others."""
    kind, _, classes = target.partition(":")
    return tuple(int(k) for k in classes.split(",")) if kind in ("fixed", "contrast") else ()


@dataclass(frozen=True)
class Job:
    """One cell of a benchmark as plain data and labels; the runner builds the objects.

    model, dataset, method, metric: labels for people. *_spec: specifications for `build`. *_variant: what was
    overridden, as `key=value` text, '' if nothing was; run_variant is the part of seed, target and output. tuned_on:
    the metrics that the method's yaml says it was tuned on. config, command: the whole resolved configuration, and the
    command line of this one cell, for provenance.
    weights_state: `trained`, or what metrics ask for: a `models.randomise.Randomisation`, or `permuted_labels:SEED`.
    """

    model: str
    dataset: str
    method: str
    metric: str
    method_variant: str
    run_variant: str
    metric_variant: str
    tuned_on: tuple[str, ...]
    model_spec: dict[str, Any]
    dataset_spec: dict[str, Any]
    method_spec: dict[str, Any]
    metric_spec: dict[str, Any]
    selection: Selection
    fit: FitSelection
    runner: Runner
    seed: int
    target: str
    output: str
    cache: Path
    results: Path
    config: dict[str, Any]
    command: str
    weights_state: str = TRAINED

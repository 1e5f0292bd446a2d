"""Score files: the tidy rows of one cell, the curves beside them, and the JSON that says where they come from."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from ..store import provenance
from ..store.cache import SCHEMA, digest, pack, safe_name
from ..store.files import write_atomically

# Statuses of a sample. In HDF5 they are these numbers, in CSV the words of STATUS.
OK, NONFINITE_MAP, NONFINITE_LOGITS = 0, 1, 2
STATUS = {OK: "ok", NONFINITE_MAP: "nonfinite_map", NONFINITE_LOGITS: "nonfinite_logits"}
UNDEFINED = "undefined"
COLUMNS = ("schema", "model", "dataset", "method", "metric", "statistic", "x", "sample", "repeat", "status", "value")
# Columns of an artefact that are not what it is about.
BOOKKEEPING = ("sample", "status", "target", "input_crc32")


@dataclass(frozen=True)
class Record:
    """Everything but the numbers about one cell: labels, keys, samples, declarations, costs.

    samples: the ids of the rows; with `repeats`, the numbers of the repeats of a metric over the whole data set.
    computed: whether this run computed anything, or only read what was there.
    """

    model: str
    dataset: str
    method: str
    metric: str
    method_variant: str
    metric_variant: str
    results: Path
    samples: tuple[int, ...]
    filtered: Mapping[str, int]
    statistics: Sequence[Any]
    axes: Mapping[str, Sequence[float]]
    keys: Mapping[str, str]
    computed: bool
    repeats: bool = False
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """The files of one finished cell: tidy `rows` (CSV) and `card` (JSON)."""

    rows: Path
    card: Path


def write(record: Record, columns: Mapping[str, np.ndarray]) -> Outcome:
    """Write the CSV, the JSON and, where there are curves, the HDF5 of one cell; each whole or not at all.

    columns: name -> [n] or [n,X] in the order of record.samples, with `status`. The CSV is a function of the numbers
    alone: the same numbers give the same bytes.
    """
    score_key = digest(dict(record.keys))
    folder = record.results / "scores" / safe_name(record.model) / safe_name(record.dataset) / safe_name(record.metric)
    stem = folder / f"{safe_name(record.method)}-{score_key}"
    order = np.argsort(record.samples)
    columns = {name: values[order] for name, values in columns.items()}
    samples = np.asarray(record.samples)[order]

    curves = {name: values for name, values in columns.items() if values.ndim == 2}
    if curves:
        axes = {f"{name}_x": np.asarray(record.axes[name], dtype=np.float64) for name in curves}
        attributes = {"key": score_key, "schema": SCHEMA}
        write_atomically(stem.with_suffix(".h5"), pack({"sample": samples, **curves, **axes}, attributes))
    lines = [",".join(COLUMNS)]
    labels = [str(SCHEMA), *(_quoted(text) for text in (record.model, record.dataset, record.method, record.metric))]
    lines += [",".join([*labels, *row]) for row in _rows(record, samples, columns)]
    rows = stem.with_suffix(".csv")
    write_atomically(rows, "\n".join(lines) + "\n")

    card = {
        "schema": SCHEMA,
        "model": record.model,
        "dataset": record.dataset,
        "method": record.method,
        "method_variant": record.method_variant,
        "metric": record.metric,
        "metric_variant": record.metric_variant,
        "keys": {**record.keys, "score_key": score_key},
        "n": len(samples),
        "excluded": _excluded(columns),
        "filtered": dict(record.filtered),
        "statistics": [asdict(statistic) for statistic in record.statistics],
        **record.details,
        "versions": provenance.versions(),
        "commit": provenance.commit(),
    }
    path = stem.with_suffix(".json")
    # A run that only read the cache has no costs to tell: the card of the run that paid them stays.
    if record.computed or not path.exists():
        _remove_superseded(folder, safe_name(record.method), card)
        write_atomically(path, json.dumps(card, indent=1, sort_keys=True, allow_nan=False) + "\n")
    return Outcome(rows, path)


def _rows(record: Record, samples: np.ndarray, columns: Mapping[str, np.ndarray]) -> Iterator[list[str]]:
    """(statistic, x, sample, repeat, status, value) of every sample's scalars, then of every curve's mean and band."""
    statuses = columns["status"]
    for name in sorted(set(columns).difference(BOOKKEEPING)):
        values = columns[name]
        if values.ndim == 1:
            for sample, status, value in zip(samples, statuses, values):
                word = STATUS[int(status)] if status != OK or math.isfinite(value) else UNDEFINED
                place = ["-1", str(sample)] if record.repeats else [str(sample), ""]
                yield [name, "", *place, word, number(value) if word == "ok" else ""]
            continue
        finite = values[np.isfinite(values).all(axis=1)]
        for statistic, curve in _bands(name, finite, record.repeats).items():
            for x, value in zip(record.axes[name], curve):
                yield [statistic, number(x), "-1", "", "ok", number(value)]


def _bands(name: str, curves: np.ndarray, repeats: bool) -> dict[str, np.ndarray]:
    """The mean curve and its 95 % band: 1.96 standard errors, Student's t for repeats; nothing without samples."""
    if not len(curves):
        return {}
    mean, n = curves.mean(axis=0), len(curves)
    width = float(stats.t.ppf(0.975, n - 1)) if repeats and n > 1 else 1.96
    half = width * curves.std(axis=0, ddof=1) / math.sqrt(n) if n > 1 else np.zeros_like(mean)
    return {name: mean, f"{name}_low": mean - half, f"{name}_high": mean + half}


def _excluded(columns: Mapping[str, np.ndarray]) -> dict[str, int]:
    """How many samples were left out because of their map, by reason. (Undefined values are counted by statistic.)"""
    counts = {STATUS[code]: int((columns["status"] == code).sum()) for code in STATUS if code != OK}
    return {reason: count for reason, count in counts.items() if count}


def _remove_superseded(folder: Path, method: str, card: Mapping[str, Any]) -> None:
    """Remove the files of the same cell under an older version of the code: they answer the same question."""
    for path in folder.glob(f"{method}-*.json"):
        try:
            other = json.loads(path.read_text())
        except (OSError, ValueError):
            continue
        if other["keys"]["score_key"] != card["keys"]["score_key"] and _question(other) == _question(card):
            for suffix in (".json", ".csv", ".h5"):
                path.with_suffix(suffix).unlink(missing_ok=True)


def _question(card: Mapping[str, Any]) -> list[Any]:
    names = ("method", "method_variant", "metric_variant")
    keys = ("model_key", "data_key", "sample_key")
    return [*(card[name] for name in names), *(card["keys"].get(key) for key in keys)]


def number(value: float) -> str:
    """The fixed format of a number in score files; '' for an undefined one."""
    return f"{value:.9g}" if math.isfinite(value) else ""


def _quoted(text: str) -> str:
    return '"' + text.replace('"', '""') + '"' if any(c in text for c in ',"\n') else text

"""Score files: the tidy rows of one cell, the curves beside them, and the JSON that says where they come from."""

import contextlib
import functools
import hashlib
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from scipy import special

from ..errors import first_line
from ..store import provenance
from ..store.files import safe_name, write_atomically, write_error
from ..store.keys import digest
from ..store.shards import SCHEMA, pack
from ..trust import no_formula

# Statuses of a sample. In HDF5 they are these numbers, in CSV the words of STATUS.
OK, NONFINITE_MAP, NONFINITE_LOGITS = 0, 1, 2
STATUS = {OK: "ok", NONFINITE_MAP: "nonfinite_map", NONFINITE_LOGITS: "nonfinite_logits"}
UNDEFINED = "undefined"
COLUMNS = ("schema", "model", "dataset", "method", "metric", "statistic", "x", "sample", "repeat", "status", "value")
# Columns of an artefact that are not what it is about.
BOOKKEEPING = ("sample", "status", "target", "input_crc32", "constant_maps")


@dataclass(frozen=True)
class Record:
    """Everything but the numbers about one cell: labels, keys, samples, declarations, costs.

    samples: the ids of the rows; with `repeats`, the numbers of the repeats of a metric over the whole data set.
    computed: whether this run computed anything, or only read what was there. sources: the digests of our code that
    made the artefacts (`provenance.sources`), one if all were made by the same.
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
    sources: Sequence[str] = ()
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """The files of one finished cell: tidy `rows` (CSV) and `card` (JSON)."""

    rows: Path
    card: Path


def write(record: Record, columns: Mapping[str, np.ndarray]) -> Outcome:
    """Write the CSV, the JSON and, where there are curves, the HDF5 of one cell; each whole or not at all.

    columns: name -> [n], [n,X] or, without an axis, [n,...] in the order of record.samples, with `status`, and
    `constant_maps` where they were counted: how many maps of a row have one value only, and rank nothing. The CSV is a
    function of the numbers alone: the same numbers give the same bytes. The card has the number of
    constant maps, and the digests of both files.
    """
    score_key, found = digest(dict(record.keys)), outcome(record)
    rows, path = found.rows, found.card
    order = np.argsort(record.samples)
    counted = columns.get("constant_maps", np.zeros(0, dtype=np.int64))
    # Scores from a cache that did not count them yet, or counted some.
    constant = int(counted.sum()) if len(counted) == len(order) else None
    columns = {name: values[order] for name, values in columns.items() if name != "constant_maps"}
    samples = np.asarray(record.samples)[order]

    # Curves have an axis, and their means are rows; tables have none, and statistics that read them.
    wide = {name: values for name, values in columns.items() if values.ndim > 1}
    tables = [name for name in wide if name not in record.axes]
    if wide:
        axes = {f"{name}_x": np.asarray(record.axes[name], dtype=np.float64) for name in wide if name not in tables}
        attributes = {"key": score_key, "schema": SCHEMA}
        packed = pack({"sample": samples, **wide, **axes}, attributes, compressed=tables)
        _write_changed(rows.with_suffix(".h5"), packed)
    columns = {name: values for name, values in columns.items() if name not in tables}
    lines = [",".join(COLUMNS)]
    labels = [str(SCHEMA), *(_quoted(text) for text in (record.model, record.dataset, record.method, record.metric))]
    lines += [",".join([*labels, *row]) for row in _rows(record, samples, columns)]
    text = ("\n".join(lines) + "\n").encode()
    _write_changed(rows, text)

    card = {
        "schema": SCHEMA,
        "model": record.model,
        "dataset": record.dataset,
        "method": record.method,
        "method_variant": record.method_variant,
        "metric": record.metric,
        "metric_variant": record.metric_variant,
        "keys": {**record.keys, "score_key": score_key},
        "files": {".csv": sha256(text), **({".h5": sha256(packed)} if wide else {})},
        "sources": list(record.sources),
        "n": len(samples),
        "excluded": _excluded(columns),
        "constant_maps": constant,
        "filtered": dict(record.filtered),
        "statistics": [asdict(statistic) for statistic in record.statistics],
        **record.details,
        "versions": provenance.versions(),
        "commit": provenance.commit(),
    }
    before = _read(path)
    if record.computed or before is None or _keys(before) != card["keys"]:
        _remove_superseded(path, card)
    else:
        # A run that only read the cache has no costs to tell: the card of the run that paid them stays.
        card = {**before, "files": card["files"], "sources": card["sources"]}
    _write_changed(path, (json.dumps(card, indent=1, sort_keys=True, allow_nan=False) + "\n").encode())
    return found


def outcome(record: Record) -> Outcome:
    """Where the files of a cell are, written or not."""
    folder = record.results / "scores" / safe_name(record.model) / safe_name(record.dataset) / safe_name(record.metric)
    stem = f"{safe_name(record.method)}-{digest(dict(record.keys))}"
    return Outcome(folder / f"{stem}.csv", folder / f"{stem}.json")


def are_written(files: Outcome, card: str) -> bool:
    """Whether the card has this digest, and the files beside it those that it says."""
    try:
        data = files.card.read_bytes()
        stated = json.loads(data)["files"] if sha256(data) == card else {}
        found = {suffix: sha256(files.card.with_suffix(suffix).read_bytes()) for suffix in stated}
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return bool(stated) and found == stated


def sha256(data: bytes) -> str:
    """The digest of a file's content, as its card has it."""
    return hashlib.sha256(data).hexdigest()


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
    width = float(special.stdtrit(n - 1, 0.975)) if repeats and n > 1 else 1.96
    half = width * curves.std(axis=0, ddof=1) / math.sqrt(n) if n > 1 else np.zeros_like(mean)
    return {name: mean, f"{name}_low": mean - half, f"{name}_high": mean + half}


def _excluded(columns: Mapping[str, np.ndarray]) -> dict[str, int]:
    """How many samples were left out because of their map, by reason. (Undefined values are counted by statistic.)"""
    counts = {STATUS[code]: int((columns["status"] == code).sum()) for code in STATUS if code != OK}
    return {reason: count for reason, count in counts.items() if count}


def _write_changed(path: Path, data: bytes) -> None:
    """Write a file unless it is that already: a cell that is asked for again leaves its files as they are."""
    with contextlib.suppress(OSError):
        if path.read_bytes() == data:
            return
    write_atomically(path, data)


# Beside score files: a line for each, the digest of the question that it answers and its name.
ANSWERS = ".answers"


def _remove_superseded(path: Path, card: Mapping[str, Any]) -> None:
    """Remove the files of the same cell under an older version of the code: they answer the same question.

    Cards are read once in their life, not by every further cell of their folder.
    """
    question, known = digest(_question(card)), _answered(path.parent).up_to_date()
    for name in [name for name, asked in known.items() if asked == question and name != path.stem]:
        for suffix in (".json", ".csv", ".h5"):
            path.with_name(name + suffix).unlink(missing_ok=True)
    if known.get(path.stem) != question:
        _note_answers(path.with_name(ANSWERS), {path.stem: question})


class _Answered:
    """Which question each card of a folder answers, as far as this process has read what is noted there."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.path = folder, folder / ANSWERS
        self._asked: dict[str, str] = {}
        self._file, self._read = 0, 0  # of what is read: the file's inode, and how many bytes

    def up_to_date(self) -> Mapping[str, str]:
        """The digest of the question by the card's name without the suffix.

        What has been added to the notes since the last time is read, and no more; the folder is listed the first time
        alone, and when its notes have been removed: cards without a note are of runs before that.
        """
        if not self._read_on():
            names = [name[:-5] for name in os.listdir(self.folder) if name.endswith(".json") and name[0] != "."]
            cards = {name: _read(self.folder / f"{name}.json") for name in names if name not in self._asked}
            found = {name: digest(_question(card)) for name, card in cards.items() if card is not None}
            if found:
                _note_answers(self.path, found)
            self._asked |= found
        return self._asked

    def _read_on(self) -> bool:
        """Read what has been added to the notes, or all of them if they are other ones -> whether they are the same."""
        try:
            with open(self.path, "rb") as file:
                now = os.fstat(file.fileno())
                same = self._file == now.st_ino and self._read <= now.st_size
                if not same:
                    self._asked, self._file, self._read = {}, now.st_ino, 0
                file.seek(self._read)
                whole, _, _ = file.read().rpartition(b"\n")
        except FileNotFoundError:
            self._asked, self._file, self._read = {}, 0, 0
            return False
        self._read += len(whole)
        lines = (line.split(" ", 1) for line in whole.decode(errors="replace").splitlines())
        self._asked |= {parts[1]: parts[0] for parts in lines if len(parts) == 2}
        return same


_answered = functools.lru_cache(maxsize=256)(_Answered)


def _note_answers(path: Path, answers: Mapping[str, str]) -> None:
    # Added in one go, on lines of its own: several processes write score files of one folder.
    try:
        with open(path, "ab", buffering=0) as file:
            file.write("".join(f"\n{question} {name}\n" for name, question in answers.items()).encode())
    except OSError as error:
        raise write_error(path, error) from error


def _question(card: Mapping[str, Any]) -> list[Any]:
    names = ("method", "method_variant", "metric_variant")
    keys = ("model_key", "data_key", "sample_key")
    return [*(card.get(name) for name in names), *(_keys(card).get(key) for key in keys)]


def _read(path: Path) -> dict[str, Any] | None:
    """A card; None if it is absent or no card."""
    try:
        card = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return card if isinstance(card, dict) else None


def _keys(card: Mapping[str, Any]) -> dict[str, Any]:
    return card["keys"] if isinstance(card.get("keys"), dict) else {}


# ---- cells that have not finished ------------------------------------------------------------------------------------

LABELS = ("model", "dataset", "method", "method_variant", "metric", "metric_variant")
UNFINISHED = ".unfinished-"


@dataclass(frozen=True)
class Unfinished:
    """A cell that failed or was killed: any rows there are of it are an earlier run's. labels: those of LABELS that are
    known. said: why."""

    labels: Mapping[str, str]
    said: str

    def covers(self, labels: Mapping[str, str]) -> bool:
        """Whether rows with these labels are of this cell. Rows of the model alone (method `none`) are everyone's."""
        known = dict(self.labels)
        if labels.get("method") == "none":
            known = {name: value for name, value in known.items() if not name.startswith("method")}
            if "metric" not in known:
                return False
        return all(labels.get(name) == value for name, value in known.items())


@contextlib.contextmanager
def unfinished(results: Path, labels: Mapping[str, str]) -> Iterator[None]:
    """While a cell runs, a hidden file says so. It goes when the cell is done: where one failed, or its process died,
    it stays, and nobody takes the rows of an earlier run for this one's."""
    path = results / "scores" / safe_name(labels["model"]) / safe_name(labels["dataset"]) / safe_name(labels["metric"])
    note = path / f"{UNFINISHED}{digest(dict(labels))}.json"
    _note(note, labels, "it began and did not end")
    try:
        yield
    except BaseException as error:
        _note(note, labels, first_line(error))
        raise
    note.unlink(missing_ok=True)
    for other in (results / "scores").glob(f"{UNFINISHED}*.json"):
        if all(found.covers(labels) for found in _notes([other])):
            other.unlink(missing_ok=True)


def note_failed(results: Path, labels: Mapping[str, str], error: Exception) -> None:
    """As `unfinished` leaves it, of all cells with these labels: what they share cannot be imported."""
    _note(results / "scores" / f"{UNFINISHED}{digest(dict(labels))}.json", labels, first_line(error))


def read_unfinished(results: Path) -> list[Unfinished]:
    """The cells below results/scores whose last run did not end well."""
    return list(_notes(sorted((results / "scores").rglob(f"{UNFINISHED}*.json"))))


def _note(path: Path, labels: Mapping[str, str], said: str) -> None:
    # Not synced: it is for readers of this machine, and every cell of a sweep writes one.
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"labels": dict(labels), "said": said}) + "\n")
    except OSError as error:
        raise write_error(path, error) from error


def _notes(paths: Iterable[Path]) -> Iterator[Unfinished]:
    for path in paths:
        found = _read(path) or {}
        if isinstance(found.get("labels"), dict):
            yield Unfinished(found["labels"], str(found.get("said", "")))


def number(value: float) -> str:
    """The fixed format of a number in score files; '' for an undefined one."""
    return f"{value:.9g}" if math.isfinite(value) else ""


def _quoted(text: str) -> str:
    text = no_formula(text)
    return '"' + text.replace('"', '""') + '"' if any(c in text for c in ',"\r\n') else text

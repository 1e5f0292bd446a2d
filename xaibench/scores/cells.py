"""Score files read and checked: a card, columns by sample or by repeat, and curves."""

import contextlib
import csv
import functools
import io
import json
import math
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd

from ..errors import UserError, first_line, nearest
from ..store.shards import SCHEMA, CorruptShard, unpack
from . import score_files

IDENTITY = ("model", "dataset", "method", "method_variant", "metric", "metric_variant", "statistic")
# Which labels do not tell: the weights and the images. Absent from leaderboards of earlier versions.
KEYED = ("model_key", "data_key")
# The files of a cell: rows, card, and the curves of each sample.
SUFFIXES = (".csv", ".json", ".h5")


@dataclass(frozen=True)
class Curve:
    """A curve of a score file: its mean over samples or repeats and the ends of the 95 % band, each [X] over x [X]."""

    x: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


@dataclass(frozen=True)
class Cell:
    """One score file: its card (the JSON), its columns, indexed by sample, or by repeat, and its curves by name."""

    card: Mapping[str, Any]
    columns: pd.DataFrame
    curves: Mapping[str, Curve] = field(default_factory=dict)
    path: Path | None = None

    def tables(self) -> dict[str, np.ndarray]:
        """What lies beside the rows, by sample as `columns` are: curves and tables, [n,...] each.

        Raises Damaged if that cannot be read.
        """
        assert self.path is not None  # as read
        beside = self.path.with_suffix(".h5")
        try:
            return unpack(beside.read_bytes(), self.card["keys"]["score_key"])
        except (OSError, CorruptShard) as error:
            raise Damaged(self.path, f"{beside.name} beside it: {first_line(error)}", self.card) from error

    @property
    def folders(self) -> tuple[str, str]:
        """The model and the data set as folders are named after them, whatever people are shown (`told_apart`)."""
        return _folders(self.card)


@dataclass(frozen=True)
class Summary:
    """What a leaderboard needs of a score file, without its rows (`summary.summarised`).

    card: the parts of the cell's card that tables show. estimates: statistic -> (value, low, high, n), as
    `statistics.estimate` has them, of the samples for which it is defined; under other names, as `summary.common_name`
    makes them, of the samples that several cells have in common. undefined: statistic -> the other samples; None if
    none is defined.
    """

    card: Mapping[str, Any]
    estimates: Mapping[str, Sequence[float]]
    undefined: Mapping[str, Sequence[int] | None]
    path: Path | None = None


AnyCell = TypeVar("AnyCell", bound=Cell | Summary)


def _folders(card: Mapping[str, Any]) -> tuple[str, str]:
    model, dataset = card.get("folders") or (card["model"], card["dataset"])
    return model, dataset


class Damaged(UserError):
    """A score file that is not as a run wrote it. path: the CSV; card: what its JSON says, as far as it can be read."""

    def __init__(self, path: Path, why: str, card: Mapping[str, Any] | None = None) -> None:
        self.path, self.why, self.card = path, why, card or {}
        command = self.card.get("command")
        super().__init__(f"{path}: {why}\nrun again: {command or 'its cell, after deleting it with its .json'}")

    @property
    def labels(self) -> dict[str, str]:
        """Those of IDENTITY less the statistic, from the card, or, without the variants, from where the file lies."""
        if all(name in self.card for name in IDENTITY[:-1]):
            return {name: str(self.card[name]) for name in IDENTITY[:-1]}
        model, dataset, metric, file = self.path.parts[-4:]
        return {"model": model, "dataset": dataset, "method": file.rpartition("-")[0], "metric": metric}


def read_cells(results: Path, files: Iterable[Path] | None = None) -> list[Cell]:
    """The score files below results/scores, or the given CSV files. Raises Damaged for the first that is not sound."""
    cells, damaged = read_sound(results, files)
    if damaged:
        raise damaged[0]
    return cells


def read_sound(results: Path, files: Iterable[Path] | None = None) -> tuple[list[Cell], list[Damaged]]:
    """As `read_cells`: those that are as a run wrote them, and what is wrong with the others."""
    if files is None:
        files = (results / "scores" / f"{stem}.csv" for stem in found_below(results / "scores"))
    cells, damaged = [], []
    for path in sorted(set(files)):
        try:
            cells.append(read_cell(path))
        except Damaged as error:
            damaged.append(error)
    cells, twice = one_answer_each(cells)
    return cells, [*damaged, *twice]


def found_below(scores: Path) -> dict[str, dict[str, os.stat_result]]:
    """Every cell below a folder of score files: its path there without a suffix -> what the system says of its files,
    by suffix. Sorted as paths are."""
    found: dict[str, dict[str, os.stat_result]] = {}
    folders = [""]
    while folders:
        below = folders.pop()
        with contextlib.suppress(FileNotFoundError, NotADirectoryError), os.scandir(scores / below) as entries:
            for entry in entries:
                stem, dot, ending = entry.name.rpartition(".")
                if entry.is_dir():
                    folders.append(f"{below}{entry.name}/")
                elif stem and dot + ending in SUFFIXES and stem[0] != ".":
                    with contextlib.suppress(FileNotFoundError):  # replaced, or removed, by a run
                        found.setdefault(below + stem, {})[dot + ending] = entry.stat()
    with_rows = {stem: files for stem, files in found.items() if files.keys() & {".csv", ".json"}}
    return dict(sorted(with_rows.items(), key=lambda item: item[0].split("/")))


def one_answer_each(cells: Sequence[AnyCell]) -> tuple[list[AnyCell], list[Damaged]]:
    """Without the cells of two files that answer one question: a run removes the older one, so that one of them was
    put there by hand."""
    asked: dict[tuple[str, ...], list[AnyCell]] = defaultdict(list)
    for cell in cells:
        keys = (str(cell.card["keys"].get(name, "")) for name in (*KEYED, "sample_key"))
        asked[*(cell.card[name] for name in IDENTITY[:-1]), *keys].append(cell)
    damaged = []
    for same in asked.values():
        for cell, other in zip(same, [*same[1:], same[0]]) if len(same) > 1 else ():
            assert cell.path is not None and other.path is not None  # as read
            damaged.append(Damaged(cell.path, f"{other.path.name} answers the same question: delete both", cell.card))
    twice = {id(cell) for same in asked.values() if len(same) > 1 for cell in same}
    return [cell for cell in cells if id(cell) not in twice], damaged


def read_cell(path: Path, contents: Mapping[str, bytes] | None = None) -> Cell:
    """One score file and its card. Raises Damaged, which names it, for one that is not as a run wrote it.

    That is what the digests in its card say; of files that older versions wrote without them, what can be seen: rows
    that are missing, there twice, or no rows.
    contents: of its files by suffix, as far as they have been read already.
    """
    known = contents or {}

    def read(suffix: str) -> bytes:
        return known[suffix] if suffix in known else path.with_suffix(suffix).read_bytes()

    try:
        card = json.loads(read(".json"))
    except (OSError, ValueError) as error:
        raise Damaged(path, f"its .json cannot be read ({first_line(error)})") from error
    if not isinstance(card, dict) or not _is_card(card):
        raise Damaged(path, "its .json is no card of a score file")
    if card["schema"] != SCHEMA:
        raise Damaged(path, f"schema {card['schema']} is not {SCHEMA}", card)
    try:
        data = read(path.suffix)
        _check_digests(path, card, read)
        return Cell(card, *_columns_and_curves(data, card), path)
    except OSError as error:
        raise Damaged(path, f"it cannot be read ({error.strerror or error})", card) from error
    except (ValueError, TypeError, KeyError) as error:
        raise Damaged(path, f"it is not what a run writes ({first_line(error)})", card) from error


def _is_card(card: Mapping[str, Any]) -> bool:
    """Whether a card has what a leaderboard needs of it."""
    kinds = {"schema": int, "n": int, "keys": dict, "statistics": list, "method_cost": list, "seconds": dict}
    kinds |= dict.fromkeys(IDENTITY[:-1], str)
    if not all(isinstance(card.get(name), kind) for name, kind in kinds.items()):
        return False
    names = ("name", "direction", "target", "column", "per", "kind", "tolerance")
    has_keys = all(name in card["keys"] for name in (*KEYED, "map_key", "metric_key", "sample_key"))
    return has_keys and all(isinstance(s, dict) and all(name in s for name in names) for s in card["statistics"])


def _check_digests(path: Path, card: Mapping[str, Any], read: Callable[[str], bytes]) -> None:
    """Raise Damaged if the file, or the curves beside it, are not what the card says; older cards say nothing."""
    for suffix, stated in card.get("files", {}).items():
        beside = path.with_suffix(suffix)
        try:
            content = read(suffix)
        except FileNotFoundError:
            raise Damaged(path, f"{beside.name} beside it is gone", card) from None
        if score_files.sha256(content) != stated:
            what = "it" if suffix == path.suffix else f"{beside.name} beside it"
            raise Damaged(path, f"{what} is not what a run wrote: another digest than in its .json", card)


def _columns_and_curves(data: bytes, card: Mapping[str, Any]) -> tuple[pd.DataFrame, dict[str, Curve]]:
    """What a score file holds. Raises ValueError for rows that no run writes.

    Read by the csv module: files are small and many, and most of what pandas takes for one is its own start.
    """
    rows = _fields(data)
    values = [float(text) if status == "ok" else math.nan for status, text in zip(rows["status"], rows["value"])]
    if np.isnan(values).sum() > len(values) - rows["status"].count("ok"):
        raise ValueError("a row is ok and has no number")
    scalars: dict[str, dict[int, float]] = defaultdict(dict)
    curves: dict[str, list[tuple[float, float]]] = defaultdict(list)
    ids, count = list(map(int, rows["sample"])), 0
    # Rows of samples, or of the repeats of a metric over the whole data set; the others are means of curves.
    for name, x, sample, repeat, value in zip(rows["statistic"], rows["x"], ids, rows["repeat"], values):
        if sample >= 0 or repeat:
            scalars[name][sample if sample >= 0 else int(repeat)] = value
            count += 1
        else:
            curves[name].append((float(x), value))
    samples = sorted(set().union(*scalars.values()))
    if samples and count != card["n"] * len(scalars):
        raise ValueError(f"{count} rows of {len(scalars)} columns: expected {card['n']} of each")
    if any(len(column) < len(samples) for column in scalars.values()) or count > len(samples) * len(scalars):
        raise ValueError("a row is missing or there twice")
    names = sorted(scalars)
    # One array for all: a column at a time, pandas takes several times as long.
    columns = np.array([list(map(scalars[name].__getitem__, samples)) for name in names], dtype=float)
    index = _row_index(tuple(samples), "sample" if max(ids, default=-1) >= 0 else "repeat")
    values_of = columns.reshape(len(names), len(samples)).T
    table = pd.DataFrame(values_of, index=index, columns=_column_index(tuple(names)), copy=False)
    return table, _curves(curves)


# Files of one metric have the same rows and columns: to make an index takes as long as to read a file.
@functools.lru_cache(maxsize=16)
def _row_index(ids: tuple[int, ...], name: str) -> pd.Index:
    return pd.Index(np.array(ids, dtype=np.int64), name=name)


@functools.lru_cache(maxsize=16)
def _column_index(names: tuple[str, ...]) -> pd.Index:
    return pd.Index(names)


def _fields(data: bytes) -> dict[str, Sequence[str]]:
    """The columns of a score file as text. Raises ValueError for what is no such table."""
    try:
        head, *rows = filter(None, csv.reader(io.StringIO(data.decode(), newline="")))
    except csv.Error as error:
        raise ValueError(str(error)) from error
    if lacking := [name for name in score_files.COLUMNS if name not in head]:
        raise ValueError(f"no column {', '.join(lacking)}")
    if other := set(map(len, rows)) - {len(head)}:
        raise ValueError(f"a row has {min(other)} fields: expected {len(head)}")
    return dict(zip(head, zip(*rows))) if rows else dict.fromkeys(head, ())


def _curves(rows: Mapping[str, list[tuple[float, float]]]) -> dict[str, Curve]:
    """Curves by name, from the (x, value) of their means and bands."""
    found = {}
    for name in rows:
        if f"{name}_low" in rows and f"{name}_high" in rows:
            (x, mean), low, high = (np.array(rows[name]).T, rows[f"{name}_low"], rows[f"{name}_high"])
            found[name] = Curve(x, mean, np.array(low)[:, 1], np.array(high)[:, 1])
    return found


def told_apart(cells: Sequence[AnyCell]) -> list[AnyCell]:
    """For people: the cells, with the key behind a model's or data set's name where two go by it."""
    changed = list(cells)
    for label, key in zip(("model", "dataset"), KEYED):
        keys: dict[tuple[str, str], set[str]] = defaultdict(set)
        for cell in cells:
            keys[cell.card["model"], cell.card["dataset"]].add(cell.card["keys"][key])
        for place, cell in enumerate(cells):
            if len(keys[cell.card["model"], cell.card["dataset"]]) > 1:
                named = {
                    "folders": list(_folders(cell.card)),
                    label: f"{cell.card[label]} [{cell.card['keys'][key][:6]}]",
                }
                changed[place] = replace(changed[place], card={**changed[place].card, **named})
    return changed


def comparable(cells: Sequence[AnyCell]) -> list[list[AnyCell]]:
    """The cells in groups of equal model, data, metric and samples: those that may be ranked together."""
    groups: dict[tuple[str, ...], list[AnyCell]] = defaultdict(list)
    for cell in cells:
        keys = cell.card["keys"]
        groups[keys["model_key"], keys["data_key"], keys["metric_key"], keys["sample_key"]].append(cell)
    return list(groups.values())


def select_cells(cells: Sequence[AnyCell], filters: Mapping[str, Sequence[str]]) -> list[AnyCell]:
    """The cells with one of the wanted values under each name of their cards. Raises UserError for a value that never
    occurs."""
    for name, wanted in filters.items():
        check_present(name, wanted, (cell.card[name] for cell in cells))
        cells = [cell for cell in cells if cell.card[name] in wanted]
    return list(cells)


def check_present(name: str, wanted: Sequence[str], values: Iterable[str]) -> None:
    """Raises UserError, with the nearest, for a wanted value that is not among the values."""
    present = sorted(set(values))
    for value in wanted:
        if value not in present:
            raise UserError(f"--{name} {value}: no result has it; {nearest(value, present) or 'there are none'}")

"""The leaderboard: a pure function of the score files. One row per model x data set x method x metric x statistic."""

import io
import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ..errors import UserError, nearest
from ..store.cache import SCHEMA
from ..store.files import write_atomically
from . import score_files, statistics

COLUMNS = (
    "schema", "model", "dataset", "method", "method_variant", "metric", "metric_variant", "statistic", "direction",
    "target", "value", "ci_low", "ci_high", "n", "excluded", "rank", "forwards", "backwards", "method_key",
    "metric_key", "sample_key",
)  # fmt: skip
COST_COLUMNS = (
    "schema", "model", "dataset", "method", "method_variant", "metric", "metric_variant", "map_seconds",
    "score_seconds", "peak_memory_bytes", "device", "threads", "n", "method_key", "metric_key", "sample_key",
)  # fmt: skip
# Of `table`, for people; not in the file.
TUNED, FEW = "tuned", "few"
IDENTITY = ("model", "dataset", "method", "method_variant", "metric", "metric_variant", "statistic")
# Which values of a statistic are better, for people.
ARROWS = {"higher": "↑", "lower": "↓", "target": "→"}
# Above this share of excluded samples a cell is also given on the samples that all methods have.
MANY_EXCLUDED = 0.05
COMMON = "@common"


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


def read_cells(results: Path, files: Iterable[Path] | None = None) -> list[Cell]:
    """The score files below results/scores, or the given CSV files. Raises UserError for one that cannot be read."""
    paths = sorted((results / "scores").rglob("*.csv")) if files is None else sorted(set(files))
    return [read_cell(path) for path in paths]


def read_cell(path: Path) -> Cell:
    """One score file and its card."""
    try:
        card = json.loads(path.with_suffix(".json").read_text())
        rows = pd.read_csv(path, keep_default_na=False, dtype={"value": str, "x": str})
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: it cannot be read with its .json ({error}); delete both and run again") from error
    if lacking := [name for name in score_files.COLUMNS if name not in rows]:
        raise UserError(f"{path}: it has no column {', '.join(lacking)}; delete it with its .json and run again")
    if card.get("schema") != SCHEMA:
        raise UserError(f"{path}: schema {card.get('schema')} is not {SCHEMA}; run again with this version")
    # Rows of samples, or of the repeats of a metric over the whole data set; the others are means of curves.
    scalar = (rows["sample"] >= 0) | (rows["repeat"].astype(str) != "")
    index = "sample" if (rows["sample"] >= 0).any() else "repeat"
    rows["value"] = pd.to_numeric(rows["value"].where(rows["status"] == "ok"), errors="coerce")
    columns = rows[scalar].pivot(index=index, columns="statistic", values="value")
    return Cell(card, columns, _curves(rows[~scalar]), path)


def _curves(rows: pd.DataFrame) -> dict[str, Curve]:
    """Curves by name, from the rows of their means and bands."""
    by_name = {name: part for name, part in rows.groupby("statistic", sort=False)}
    found = {}
    for name, part in by_name.items():
        band = by_name.get(f"{name}_low"), by_name.get(f"{name}_high")
        if all(end is not None for end in band):
            values = (part.to_numpy(dtype=float) for part in (part["x"], *(p["value"] for p in (part, *band))))
            found[name] = Curve(*values)
    return found


def table(cells: Sequence[Cell]) -> pd.DataFrame:
    """The rows of the leaderboard, sorted, with ranks among the cells of equal model, data, metric and samples.

    Besides COLUMNS, for people: `tuned`, whether the method says that its parameters were chosen by this metric, and
    `few`, whether the interval rests on too few samples.
    """
    rows = [row for group in comparable(cells) for row in _group_rows(group)]
    frame = pd.DataFrame(rows, columns=[*COLUMNS, TUNED, FEW])
    return frame.sort_values([*IDENTITY, "sample_key", "method_key"], kind="stable", ignore_index=True)


def headlines(cells: Sequence[Cell]) -> pd.DataFrame:
    """The rows of `table` of the metrics' first statistics."""
    frame, first = table(cells), {(cell.card["metric"], cell.card["statistics"][0]["name"]) for cell in cells}
    return frame[[pair in first for pair in zip(frame["metric"], frame["statistic"])]]


def comparable(cells: Sequence[Cell]) -> list[list[Cell]]:
    """The cells in groups of equal model, data, metric and samples: those that may be ranked together."""
    groups: dict[tuple[str, ...], list[Cell]] = defaultdict(list)
    for cell in cells:
        keys = cell.card["keys"]
        groups[keys["model_key"], keys["data_key"], keys["metric_key"], keys["sample_key"]].append(cell)
    return list(groups.values())


def without_seed(variant: str) -> str:
    """A method's variant less its seed: what reruns under other seeds have in common."""
    return ",".join(part for part in variant.split(",") if not part.startswith("seed="))


def is_rerun(method: str, variant: str, among: Iterable[Mapping[str, Any]]) -> bool:
    """Whether a row or card repeats, under another seed, one that is there: no further method, and ranked nowhere."""
    first = without_seed(variant)
    return first != variant and any(row["method"] == method and row["method_variant"] == first for row in among)


def _group_rows(group: Sequence[Cell]) -> list[dict[str, Any]]:
    """Rows of the cells that are comparable, one statistic after the other."""
    rows = []
    for statistic in group[0].card["statistics"]:
        defined = [finite(cell, statistic) for cell in group]
        ranked = [_row(cell, statistic, kept, "") for cell, kept in zip(group, defined)]
        rows += _rank(ranked, statistic)
        if any(len(kept) < (1 - MANY_EXCLUDED) * cell.card["n"] for cell, kept in zip(group, defined)):
            common = set.intersection(*(set(kept) for kept in defined))
            if not common:
                continue
            ranked = [
                _row(cell, statistic, [sample for sample in kept if sample in common], COMMON)
                for cell, kept in zip(group, defined)
            ]
            rows += _rank(ranked, statistic)
    return rows


def finite(cell: Cell, statistic: Mapping[str, Any]) -> list[int]:
    """The samples for which the statistic's columns are defined."""
    names = [name for name in (statistic["column"], statistic["per"]) if name]
    if any(name not in cell.columns for name in names):
        return []
    return cell.columns.index[np.isfinite(cell.columns[names].to_numpy()).all(axis=1)].tolist()


def _row(cell: Cell, statistic: Mapping[str, Any], samples: list[int], suffix: str) -> dict[str, Any]:
    card, columns = cell.card, cell.columns
    column = columns.loc[samples, statistic["column"]].to_numpy() if samples else np.empty(0)
    per = columns.loc[samples, statistic["per"]].to_numpy() if samples and statistic["per"] else None
    found = statistics.estimate(column, per, statistic["kind"])
    return {
        "schema": SCHEMA,
        **{name: card[name] for name in IDENTITY[:-1]},
        "statistic": statistic["name"] + suffix,
        "direction": statistic["direction"],
        "target": statistic["target"],
        "value": found.value,
        "ci_low": found.low,
        "ci_high": found.high,
        "n": found.n,
        "excluded": card["n"] - found.n,
        "forwards": card["method_cost"][0],
        "backwards": card["method_cost"][1],
        "method_key": card["keys"]["map_key"],
        "metric_key": card["keys"]["metric_key"],
        "sample_key": card["keys"]["sample_key"],
        TUNED: card["metric"] in card.get("tuned_on", ()),
        FEW: statistics.few(found.n, statistic["kind"]),
    }


def _rank(rows: list[dict[str, Any]], statistic: Mapping[str, Any]) -> list[dict[str, Any]]:
    """1 for the best; equal values share the better rank; an undefined value and a rerun have none."""
    values = np.array([row["value"] for row in rows], dtype=float)
    again = [is_rerun(row["method"], row["method_variant"], rows) for row in rows]
    values[again] = math.nan
    ranks = statistics.places(badness(values, statistic["direction"], statistic["target"]))
    return [{**row, "rank": None if np.isnan(rank) else int(rank)} for row, rank in zip(rows, ranks)]


def badness(values: Any, direction: str, target: float | None) -> Any:
    """What makes one value worse than another: smaller is better, whatever the direction of the statistic."""
    if direction == "target":
        return np.abs(values - target)
    return values if direction == "lower" else -values


def costs(cells: Sequence[Cell]) -> pd.DataFrame:
    """What each cell took, beside the same keys."""
    rows = [
        {
            "schema": SCHEMA,
            **{name: cell.card[name] for name in IDENTITY[:-1]},
            "map_seconds": cell.card["seconds"]["maps"],
            "score_seconds": cell.card["seconds"]["scores"],
            **{name: cell.card[name] for name in ("peak_memory_bytes", "device", "threads", "n")},
            "method_key": cell.card["keys"]["map_key"],
            "metric_key": cell.card["keys"]["metric_key"],
            "sample_key": cell.card["keys"]["sample_key"],
        }
        for cell in cells
    ]
    frame = pd.DataFrame(rows, columns=COST_COLUMNS)
    return frame.sort_values([*IDENTITY[:-1], "sample_key", "method_key"], kind="stable", ignore_index=True)


def write(results: Path, cells: Sequence[Cell] | None = None) -> pd.DataFrame:
    """Write results/leaderboard.csv and cost.csv from the score files (or `cells`, all of them); the leaderboard."""
    cells = read_cells(results) if cells is None else cells
    frame = table(cells)
    write_atomically(results / "leaderboard.csv", to_csv(frame))
    write_atomically(results / "cost.csv", to_csv(costs(cells)))
    return frame


def to_csv(frame: pd.DataFrame) -> str:
    """Byte-stable CSV: fixed order, six significant digits, LF, empty for what is undefined."""
    return frame.drop(columns=[TUNED, FEW], errors="ignore").to_csv(
        index=False, float_format="%.6g", lineterminator="\n"
    )


def read_csv(path: Path) -> pd.DataFrame:
    """A leaderboard file. Raises UserError if it is absent or not one."""
    try:
        return read_text(path.read_text())
    except FileNotFoundError as error:
        raise UserError(f"{path}: there is no such leaderboard; `xaibench leaderboard` writes one") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: it cannot be read as a leaderboard ({error})") from error


def read_text(text: str) -> pd.DataFrame:
    """A leaderboard from its CSV text. Raises ValueError if it is not one."""
    strings = {name: str for name in (*IDENTITY, "direction", "method_key", "metric_key", "sample_key")}
    undefined = dict.fromkeys(("value", "ci_low", "ci_high", "target", "rank"), "")
    frame = pd.read_csv(io.StringIO(text), dtype=strings, keep_default_na=False, na_values=undefined)
    missing = [name for name in COLUMNS if name not in frame]
    if missing:
        raise ValueError(f"no column {', '.join(missing[:4])}")
    return frame


def select(frame: pd.DataFrame, filters: Mapping[str, Sequence[str]]) -> pd.DataFrame:
    """The rows with one of the wanted values in each named column. Raises UserError for a value that never occurs."""
    for column, wanted in filters.items():
        check_present(column, wanted, frame[column])
        frame = frame[frame[column].isin(list(wanted))]
    return frame


def select_cells(cells: Sequence[Cell], filters: Mapping[str, Sequence[str]]) -> list[Cell]:
    """As `select`, of the cells with one of the wanted values under each name of their cards."""
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

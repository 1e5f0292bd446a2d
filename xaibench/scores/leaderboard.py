"""The leaderboard: a pure function of the score files. One row per model x data set x method x metric x statistic."""

import io
import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ..errors import UserError, first_line, nearest
from ..store.cache import SCHEMA
from ..store.files import write_atomically
from ..trust import no_formula
from . import score_files, statistics

# Of leaderboard.csv and cost.csv; those of schema 1 have no model_key and data_key, and are read too.
BOARD = 2
COLUMNS = (
    "schema", "model", "dataset", "method", "method_variant", "metric", "metric_variant", "statistic", "direction",
    "target", "value", "ci_low", "ci_high", "n", "excluded", "rank", "forwards", "backwards", "model_key", "data_key",
    "method_key", "metric_key", "sample_key",
)  # fmt: skip
# Which labels do not tell: the weights and the images. Absent from leaderboards of earlier versions.
KEYED = ("model_key", "data_key")
COST_COLUMNS = (
    "schema", "model", "dataset", "method", "method_variant", "metric", "metric_variant", "map_seconds",
    "score_seconds", "peak_memory_bytes", "device", "threads", "n", "model_key", "data_key", "method_key", "metric_key",
    "sample_key",
)  # fmt: skip
# Of `table`, for people; not in the file.
TUNED, FEW, CONSTANT = "tuned", "few", "constant_maps"
# What a file, which does not have them, is shown with.
UNMARKED: dict[str, Any] = {TUNED: False, FEW: False, CONSTANT: 0}
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

    @property
    def folders(self) -> tuple[str, str]:
        """The model and the data set as folders are named after them, whatever people are shown (`told_apart`)."""
        model, dataset = self.card.get("folders") or (self.card["model"], self.card["dataset"])
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
        found = (path for path in (results / "scores").rglob("*") if path.suffix in (".csv", ".json"))
        files = (path.with_suffix(".csv") for path in found if not path.name.startswith("."))
    cells, damaged = [], []
    for path in sorted(set(files)):
        try:
            cells.append(read_cell(path))
        except Damaged as error:
            damaged.append(error)
    # Two files that answer one question: a run removes the older one, so that one of them was put there by hand.
    asked: dict[tuple[str, ...], list[Cell]] = defaultdict(list)
    for cell in cells:
        keys = (str(cell.card["keys"].get(name, "")) for name in (*KEYED, "sample_key"))
        asked[*(cell.card[name] for name in IDENTITY[:-1]), *keys].append(cell)
    for same in asked.values():
        for cell, other in zip(same, [*same[1:], same[0]]) if len(same) > 1 else ():
            assert cell.path is not None and other.path is not None  # as read
            damaged.append(Damaged(cell.path, f"{other.path.name} answers the same question: delete both", cell.card))
    twice = {id(cell) for same in asked.values() if len(same) > 1 for cell in same}
    return [cell for cell in cells if id(cell) not in twice], damaged


def read_cell(path: Path) -> Cell:
    """One score file and its card. Raises Damaged, which names it, for one that is not as a run wrote it.

    That is what the digests in its card say; of files that older versions wrote without them, what can be seen: rows
    that are missing, there twice, or no rows.
    """
    try:
        card = json.loads(path.with_suffix(".json").read_text())
    except (OSError, ValueError) as error:
        raise Damaged(path, f"its .json cannot be read ({first_line(error)})") from error
    if not isinstance(card, dict) or not _is_card(card):
        raise Damaged(path, "its .json is no card of a score file")
    if card["schema"] != SCHEMA:
        raise Damaged(path, f"schema {card['schema']} is not {SCHEMA}", card)
    try:
        data = path.read_bytes()
        _check_digests(path, card, data)
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


def _check_digests(path: Path, card: Mapping[str, Any], data: bytes) -> None:
    """Raise Damaged if the file, or the curves beside it, are not what the card says; older cards say nothing."""
    for suffix, stated in card.get("files", {}).items():
        beside = path.with_suffix(suffix)
        try:
            content = data if suffix == path.suffix else beside.read_bytes()
        except FileNotFoundError:
            raise Damaged(path, f"{beside.name} beside it is gone", card) from None
        if score_files.sha256(content) != stated:
            what = "it" if suffix == path.suffix else f"{beside.name} beside it"
            raise Damaged(path, f"{what} is not what a run wrote: another digest than in its .json", card)


def _columns_and_curves(data: bytes, card: Mapping[str, Any]) -> tuple[pd.DataFrame, dict[str, Curve]]:
    """What a score file holds. Raises ValueError for rows that no run writes."""
    rows = pd.read_csv(io.BytesIO(data), keep_default_na=False, dtype={"value": str, "x": str})
    if lacking := [name for name in score_files.COLUMNS if name not in rows]:
        raise ValueError(f"no column {', '.join(lacking)}")
    is_ok = rows["status"] == "ok"
    rows["value"] = pd.to_numeric(rows["value"].where(is_ok), errors="coerce")
    if (is_ok & rows["value"].isna()).any():
        raise ValueError("a row is ok and has no number")
    # Rows of samples, or of the repeats of a metric over the whole data set; the others are means of curves.
    scalar = (rows["sample"] >= 0) | (rows["repeat"].astype(str) != "")
    index = "sample" if (rows["sample"] >= 0).any() else "repeat"
    columns = rows[scalar].pivot(index=index, columns="statistic", values="value")
    if len(columns) and int(scalar.sum()) != card["n"] * columns.shape[1]:
        raise ValueError(f"{int(scalar.sum())} rows of {columns.shape[1]} columns: expected {card['n']} of each")
    return columns, _curves(rows[~scalar])


def told_apart(cells: Sequence[Cell]) -> list[Cell]:
    """For people: the cells, with the key behind a model's or data set's name where two go by it."""
    changed = list(cells)
    for label, key in zip(("model", "dataset"), KEYED):
        keys: dict[tuple[str, str], set[str]] = defaultdict(set)
        for cell in cells:
            keys[cell.card["model"], cell.card["dataset"]].add(cell.card["keys"][key])
        for place, cell in enumerate(cells):
            if len(keys[cell.card["model"], cell.card["dataset"]]) > 1:
                card = {
                    **changed[place].card,
                    "folders": list(cell.folders),
                    label: f"{cell.card[label]} [{cell.card['keys'][key][:6]}]",
                }
                changed[place] = replace(changed[place], card=card)
    return changed


def labels_told_apart(frame: pd.DataFrame) -> pd.DataFrame:
    """As `told_apart`, of the rows of a leaderboard file."""
    changed = frame.copy()
    for label, key in zip(("model", "dataset"), KEYED):
        several = frame.groupby(["model", "dataset"])[key].transform("nunique") > 1
        named = frame[label] + " [" + frame[key].str[:6] + "]"
        changed[label] = frame[label].where(~several, named)
    return changed


def _curves(rows: pd.DataFrame) -> dict[str, Curve]:
    """Curves by name, from the rows of their means and bands."""
    by_name = {str(name): part for name, part in rows.groupby("statistic", sort=False)}
    found = {}
    for name, part in by_name.items():
        low, high = by_name.get(f"{name}_low"), by_name.get(f"{name}_high")
        if low is not None and high is not None:
            columns = (part["x"], part["value"], low["value"], high["value"])
            found[name] = Curve(*(column.to_numpy(dtype=float) for column in columns))
    return found


def table(cells: Sequence[Cell]) -> pd.DataFrame:
    """The rows of the leaderboard, sorted, with ranks among the cells of equal model, data, metric and samples.

    Besides COLUMNS, for people: `tuned`, whether the method says that its parameters were chosen by this metric, and
    `few`, whether the interval rests on too few samples.
    """
    rows = [row for group in comparable(cells) for row in _group_rows(group)]
    frame = pd.DataFrame(rows, columns=[*COLUMNS, TUNED, FEW, CONSTANT])
    return frame.sort_values([*IDENTITY, *KEYED, "sample_key", "method_key"], kind="stable", ignore_index=True)


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
        "schema": BOARD,
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
        **{name: card["keys"][name] for name in KEYED},
        "method_key": card["keys"]["map_key"],
        "metric_key": card["keys"]["metric_key"],
        "sample_key": card["keys"]["sample_key"],
        TUNED: card["metric"] in card.get("tuned_on", ()),
        FEW: statistics.few(found.n, statistic["kind"]),
        CONSTANT: card.get("constant_maps") or 0,
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
            "schema": BOARD,
            **{name: cell.card[name] for name in IDENTITY[:-1]},
            "map_seconds": cell.card["seconds"]["maps"],
            "score_seconds": cell.card["seconds"]["scores"],
            **{name: cell.card[name] for name in ("peak_memory_bytes", "device", "threads", "n")},
            **{name: cell.card["keys"][name] for name in KEYED},
            "method_key": cell.card["keys"]["map_key"],
            "metric_key": cell.card["keys"]["metric_key"],
            "sample_key": cell.card["keys"]["sample_key"],
        }
        for cell in cells
    ]
    frame = pd.DataFrame(rows, columns=COST_COLUMNS)
    return frame.sort_values([*IDENTITY[:-1], *KEYED, "sample_key", "method_key"], kind="stable", ignore_index=True)


def write(results: Path, cells: Sequence[Cell]) -> None:
    """Write results/leaderboard.csv and cost.csv of all its cells."""
    frame = table(cells)
    write_atomically(results / "leaderboard.csv", to_csv(frame))
    write_atomically(results / "cost.csv", to_csv(costs(cells)))


def to_csv(frame: pd.DataFrame) -> str:
    """Byte-stable CSV: fixed order, six significant digits, LF, empty for what is undefined; no text is a formula."""
    frame = frame.drop(columns=[TUNED, FEW, CONSTANT], errors="ignore")
    texts = [str(name) for name in frame if any(isinstance(value, str) for value in frame[name])]
    return frame.assign(**{name: frame[name].map(_no_formula) for name in texts}).to_csv(
        index=False, float_format="%.6g", lineterminator="\n"
    )


def _no_formula(value: Any) -> Any:
    return no_formula(value) if isinstance(value, str) else value


def read_csv(path: Path) -> pd.DataFrame:
    """A leaderboard file. Raises UserError if it is absent or not one."""
    try:
        return read_text(path.read_text())
    except FileNotFoundError as error:
        raise UserError(f"{path}: there is no such leaderboard; `xaibench leaderboard` writes one") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: it cannot be read as a leaderboard ({error})") from error


def read_text(text: str) -> pd.DataFrame:
    """A leaderboard from its CSV text; keys that older versions did not write are ''. Raises ValueError if it is not
    one."""
    strings = {name: str for name in (*IDENTITY, "direction", *KEYED, "method_key", "metric_key", "sample_key")}
    undefined = dict.fromkeys(("value", "ci_low", "ci_high", "target", "rank"), "")
    frame = pd.read_csv(io.StringIO(text), dtype=strings, keep_default_na=False, na_values=undefined)
    missing = [name for name in COLUMNS if name not in frame and name not in KEYED]
    if missing:
        raise ValueError(f"no column {', '.join(missing[:4])}")
    later = [schema for schema in frame["schema"].unique() if schema not in range(1, BOARD + 1)]
    if later:
        raise ValueError(f"schema {later[0]}: this xaibench reads up to {BOARD}, another version wrote it")
    for name in KEYED:
        if name not in frame:
            frame[name] = ""
    for name in IDENTITY:  # as `to_csv` wrote them
        frame[name] = frame[name].str.replace(r"^'(?=[=+\-@\t\r])", "", regex=True)
    for name in ("target", "value", "ci_low", "ci_high", "n", "excluded"):
        frame[name] = pd.to_numeric(frame[name])
    cut = frame[["n", "excluded"]].isna().any(axis=1) | ~frame["direction"].isin(list(ARROWS))
    cut |= frame["sample_key"].isna() | (frame["sample_key"] == "")
    if cut.any():
        raise ValueError(f"line {int(cut.argmax()) + 2} is cut short or no row of a leaderboard")
    return frame[[*COLUMNS, *(name for name in frame if name not in COLUMNS)]]


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

"""The leaderboard: a pure function of the score files. One row per model x data set x method x metric x statistic."""

import csv
import io
import math
import operator
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ..errors import UserError
from ..store.files import write_atomically
from ..trust import no_formula
from . import statistics
from .cells import IDENTITY as IDENTITY
from .cells import KEYED as KEYED
from .cells import Cell as Cell
from .cells import Curve as Curve
from .cells import Damaged as Damaged
from .cells import Summary
from .cells import check_present as check_present
from .cells import comparable as comparable
from .cells import read_cell as read_cell
from .cells import read_cells as read_cells
from .cells import read_sound as read_sound
from .cells import select_cells as select_cells
from .cells import told_apart as told_apart
from .summary import MANY_EXCLUDED as MANY_EXCLUDED
from .summary import UNDECLARED, common_name, summarised
from .summary import finite as finite

# Of leaderboard.csv and cost.csv; those of schema 1 have no model_key and data_key, and are read too.
BOARD = 2
# The metric of the network itself, beside which a leaderboard is to be read.
QUALITY = "quality"
COLUMNS = (
    "schema", "model", "dataset", "method", "method_variant", "metric", "metric_variant", "statistic", "direction",
    "target", "value", "ci_low", "ci_high", "n", "excluded", "rank", "forwards", "backwards", "model_key", "data_key",
    "method_key", "metric_key", "sample_key",
)  # fmt: skip
COST_COLUMNS = (
    "schema", "model", "dataset", "method", "method_variant", "metric", "metric_variant", "map_seconds",
    "score_seconds", "peak_memory_bytes", "device", "threads", "n", "model_key", "data_key", "method_key", "metric_key",
    "sample_key",
)  # fmt: skip
# Of `table`, for people; not in the file.
TUNED, FEW, CONSTANT = "tuned", "few", "constant_maps"
# What a file, which does not have them, is shown with.
UNMARKED: dict[str, Any] = {TUNED: False, FEW: False, CONSTANT: 0}
# Which values of a statistic are better, for people.
ARROWS = {"higher": "↑", "lower": "↓", "target": "→"}
COMMON = "@common"
Row = dict[str, Any]


def labels_told_apart(frame: pd.DataFrame) -> pd.DataFrame:
    """As `told_apart`, of the rows of a leaderboard file."""
    changed = frame.copy()
    for label, key in zip(("model", "dataset"), KEYED):
        several = frame.groupby(["model", "dataset"])[key].transform("nunique") > 1
        named = frame[label] + " [" + frame[key].str[:6] + "]"
        changed[label] = frame[label].where(~several, named)
    return changed


def table(cells: Sequence[Cell | Summary]) -> pd.DataFrame:
    """The rows of the leaderboard, sorted, with ranks among the cells of equal model, data, metric and samples.

    Besides COLUMNS, for people: `tuned`, whether the method says that its parameters were chosen by this metric, and
    `few`, whether the interval rests on too few samples.
    """
    return pd.DataFrame(rows(cells), columns=[*COLUMNS, TUNED, FEW, CONSTANT])


def rows(cells: Sequence[Cell | Summary]) -> list[Row]:
    """The rows of `table`."""
    contests = [contest for group in comparable(summarised(cells)) for contest in _contests(group)]
    found = [row for contest in _ranked(contests) for row in contest]
    return sorted(found, key=operator.itemgetter(*IDENTITY, *KEYED, "sample_key", "method_key"))


def headlines(cells: Sequence[Cell | Summary]) -> pd.DataFrame:
    """The rows of `table` of the metrics' first statistics."""
    frame, first = table(cells), {(cell.card["metric"], cell.card["statistics"][0]["name"]) for cell in cells}
    return frame[[pair in first for pair in zip(frame["metric"], frame["statistic"])]]


def without_seed(variant: str) -> str:
    """A method's variant less its seed: what reruns under other seeds have in common."""
    return ",".join(part for part in variant.split(",") if not part.startswith("seed="))


def is_rerun(method: str, variant: str, among: Set[tuple[str, str]]) -> bool:
    """Whether a method with its variant repeats, under another seed, one of the others: no further method, and ranked
    nowhere."""
    first = without_seed(variant)
    return first != variant and (method, first) in among


def _contests(group: Sequence[Summary]) -> Iterator[list[Row]]:
    """The rows, still without ranks, of each statistic of cells that are comparable: those that are ranked together."""
    labels = [_labels(cell.card) for cell in group]
    for statistic in group[0].card["statistics"]:
        name = statistic["name"]
        yield [_row(cell, own, statistic, name, "") for cell, own in zip(group, labels)]
        common = common_name(group, name)
        if common is not None:
            yield [_row(cell, own, statistic, common, COMMON) for cell, own in zip(group, labels)]


def _labels(card: Mapping[str, Any]) -> Row:
    """What all rows of a cell have."""
    return {
        "schema": BOARD,
        **{name: card[name] for name in IDENTITY[:-1]},
        "forwards": card["method_cost"][0],
        "backwards": card["method_cost"][1],
        **_keys(card),
        TUNED: card["metric"] in card.get("tuned_on", ()),
        CONSTANT: card.get("constant_maps") or 0,
    }


def _row(cell: Summary, labels: Row, statistic: Mapping[str, Any], name: str, suffix: str) -> Row:
    """The row of a cell, with the estimate of this name."""
    value, low, high, defined = cell.estimates.get(name, UNDECLARED)
    n = int(defined)
    return {
        **labels,
        "statistic": statistic["name"] + suffix,
        "direction": statistic["direction"],
        "target": statistic["target"],
        "value": value,
        "ci_low": low,
        "ci_high": high,
        "n": n,
        "excluded": cell.card["n"] - n,
        FEW: statistics.few(n, statistic["kind"]),
    }


def _keys(card: Mapping[str, Any]) -> dict[str, str]:
    """The keys that a row has."""
    keys = card["keys"]
    named = {"method_key": keys["map_key"], "metric_key": keys["metric_key"], "sample_key": keys["sample_key"]}
    return {**{name: keys[name] for name in KEYED}, **named}


def _ranked(contests: Sequence[list[Row]]) -> Sequence[list[Row]]:
    """The rows with their ranks: 1 for the best; equal values share the better rank; an undefined value and a rerun
    have none. Contests of one size are ranked in one go."""
    by_size: dict[int, list[list[Row]]] = defaultdict(list)
    for contest in contests:
        by_size[len(contest)].append(contest)
    for alike in by_size.values():
        for contest, ranks in zip(alike, statistics.places(np.stack([_competing(contest) for contest in alike]))):
            for row, rank in zip(contest, ranks):
                row["rank"] = None if np.isnan(rank) else int(rank)
    return contests


def _competing(contest: Sequence[Row]) -> np.ndarray:
    """What is ranked in a contest, smaller is better; NaN for reruns."""
    methods = [(row["method"], row["method_variant"]) for row in contest]
    among = set(methods)
    values = np.array([row["value"] for row in contest], dtype=float)
    values[[is_rerun(*method, among) for method in methods]] = math.nan
    return badness(values, contest[0]["direction"], contest[0]["target"])


def badness(values: Any, direction: str, target: float | None) -> Any:
    """What makes one value worse than another: smaller is better, whatever the direction of the statistic."""
    if direction == "target":
        return np.abs(values - target)
    return values if direction == "lower" else -values


def costs(cells: Sequence[Cell | Summary]) -> pd.DataFrame:
    """What each cell took, beside the same keys."""
    return pd.DataFrame(_cost_rows(cells), columns=COST_COLUMNS)


def _cost_rows(cells: Sequence[Cell | Summary]) -> list[Row]:
    found = [
        {
            "schema": BOARD,
            **{name: cell.card[name] for name in IDENTITY[:-1]},
            "map_seconds": cell.card["seconds"]["maps"],
            "score_seconds": cell.card["seconds"]["scores"],
            **{name: cell.card[name] for name in ("peak_memory_bytes", "device", "threads", "n")},
            **_keys(cell.card),
        }
        for cell in cells
    ]
    return sorted(found, key=operator.itemgetter(*IDENTITY[:-1], *KEYED, "sample_key", "method_key"))


def write(results: Path, cells: Sequence[Cell | Summary]) -> None:
    """Write results/leaderboard.csv and cost.csv of all its cells."""
    write_atomically(results / "leaderboard.csv", _csv(COLUMNS, rows(cells)))
    write_atomically(results / "cost.csv", _csv(COST_COLUMNS, _cost_rows(cells)))


def to_csv(frame: pd.DataFrame) -> str:
    """A table as byte-stable CSV: fixed order, six significant digits, LF, empty for what is undefined; no text is a
    formula."""
    frame = frame.drop(columns=[TUNED, FEW, CONSTANT], errors="ignore")
    names = [str(name) for name in frame]
    return _csv(names, [dict(zip(names, values)) for values in zip(*(frame[name].tolist() for name in frame))])


def _csv(names: Sequence[str], rows: Sequence[Row]) -> str:
    """As `to_csv`. Not by way of a frame, which takes several times as long as the rest of a leaderboard of 10 000
    cells."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(names)
    writer.writerows(zip(*(_texts(list(map(operator.itemgetter(name), rows))) for name in names)))
    return text.getvalue()


def _texts(values: Sequence[Any]) -> list[str]:
    """A column as text. One with a fraction or with a gap has six significant digits throughout, as in pandas."""
    kinds = set(map(type, values))
    if any(issubclass(kind, str) for kind in kinds):
        text = {v: no_formula(v) if isinstance(v, str) else "" if v is None or v != v else str(v) for v in set(values)}
        return [text[value] for value in values]
    if all(issubclass(kind, int) for kind in kinds):
        return list(map(str, values))
    return ["" if value is None or value != value else f"{value:.6g}" for value in values]


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


def qualities(shown: Sequence[Summary], known: Sequence[Summary]) -> list[str]:
    """How good each network is on its data set, in words: for every pair among the cells shown, the headline of its
    `quality` cell among those known, of the most samples; where there is none, the command that makes one."""
    pairs = {(cell.card["keys"]["model_key"], cell.card["keys"]["data_key"]): cell.card for cell in reversed(shown)}
    found: dict[tuple[str, str], Summary] = {}
    for cell in sorted((cell for cell in known if cell.card["metric"] == QUALITY), key=lambda cell: cell.card["n"]):
        found[cell.card["keys"]["model_key"], cell.card["keys"]["data_key"]] = cell
    return [_quality(card, found.get(keys)) for keys, card in sorted(pairs.items(), key=lambda pair: _names(pair[1]))]


def _names(card: Mapping[str, Any]) -> tuple[str, str]:
    return card["model"], card["dataset"]


def _quality(card: Mapping[str, Any], cell: Summary | None) -> str:
    model, dataset = _names(card)
    if cell is None:
        chosen = " dataset.".join(dataset.partition(" [")[0].split(","))
        command = f"xaibench run metric={QUALITY} model={model.partition(' [')[0]} dataset={chosen}"
        return f"{model} on {dataset}: how good it is has not been measured ({command})"
    name = cell.card["statistics"][0]["name"]
    value, low, high, n = cell.estimates[name]
    return f"{model} on {dataset}: {name} {value:.3f} ({low:.3f} to {high:.3f}), {n:.0f} samples"


def select(frame: pd.DataFrame, filters: Mapping[str, Sequence[str]]) -> pd.DataFrame:
    """The rows with one of the wanted values in each named column. Raises UserError for a value that never occurs."""
    for column, wanted in filters.items():
        check_present(column, wanted, frame[column])
        frame = frame[frame[column].isin(list(wanted))]
    return frame

"""The gate: two leaderboards row by row. What got worse, what is new, missing or not comparable.

A row's tolerance is an absolute floor (the statistic's own). Where the maps were drawn anew (their keys differ: another
seed, another version of the method) and the baseline holds reruns under other seeds, it is at least what one more such
rerun would exceed in FALSE_ALARMS of all checks. It is never the interval over
samples: that says how far other samples would move the value, while here both sides see the same ones.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import special

from ..errors import NotComparable, UserError, first_line, nearest
from ..store import provenance
from .leaderboard import COMMON, IDENTITY, KEYED, Cell, Damaged, badness, without_seed
from .score_files import Unfinished
from .statistics import tied

FLOOR = 0.005
# How many checks of nothing but other seeds may call a regression in any row. 5 % is what is promised: the rest is for
# statistics of few samples, which are not normal (scripts/gate.py: 6.7 % at a level of 5 %, 4.6 % at this one).
FALSE_ALARMS = 0.03
# Reruns that it takes to speak of a spread.
RERUNS = 3
# How far a sample's value may move and count as unchanged, as a share of it: score files have nine digits.
UNCHANGED = 1e-6
# Marks as asv has them: worse, better, the same, new, missing, not comparable; and failed: no number of this run's.
WORSE, BETTER, SAME, NEW, MISSING, INCOMPARABLE, FAILED = "-", "+", "=", "*", "!", "x", "#"
OK, REGRESSED, NOTHING_COMPARED = 0, 1, 3
# A row's identity (the columns IDENTITY) and the digest of its samples.
Key = tuple[tuple[str, ...], str]


@dataclass(frozen=True)
class Compared:
    """One row: its identity, the mark, both values, the tolerance, and why where that is not plain.

    direction: which values are better, as the statistic says.
    changed: how many samples moved by more than UNCHANGED, where both sides have per-sample rows; else None.
    """

    identity: tuple[str, ...]
    mark: str
    before: float | None = None
    after: float | None = None
    tolerance: float | None = None
    changed: int | None = None
    why: str = ""
    direction: str = ""


def check(
    before: pd.DataFrame,
    after: pd.DataFrame,
    floors: Mapping[str, float] | None = None,
    *,
    samples_before: Mapping[Key, pd.Series] | None = None,
    samples_after: Mapping[Key, pd.Series] | None = None,
    failed: Sequence[Damaged | Unfinished] = (),
) -> list[Compared]:
    """Every row of either leaderboard, compared; sorted by identity.

    floors: what `floors` returns; FLOOR where a row is not named. samples_*: what `per_sample` returns.
    Rows are matched by identity and samples. A row whose metric or samples are others is not comparable, whatever
    its value; rows that only the new side has, or that have no value in the baseline, are listed as new. Reruns under
    other seeds, which the baseline holds for the spread, need not be run again. A row of other weights or other data is
    compared, and says so. Rows of what `failed` are not compared: they are damaged, or an earlier run's.
    """
    spread, old, new = _allowed(before), _by_key(before), _by_key(after)
    compared, met = [], set(old)
    for key, then in old.items():
        identity, samples = key
        unseeded, value, direction = _without_seed(identity), float(then["value"]), str(then["direction"])
        tolerance = (floors or {}).get(_name(identity), FLOOR)
        if why := _why_failed(identity, failed):
            met.update(other for other in new if other[0] == identity)
            compared.append(Compared(identity, FAILED, value, tolerance=tolerance, why=why, direction=direction))
        elif key in new:
            if then["method_key"] != new[key]["method_key"]:
                tolerance = max(tolerance, spread.get(unseeded, 0.0))
            changed = _changed((samples_before or {}).get(key), (samples_after or {}).get(key))
            compared.append(_judged(identity, then, new[key], tolerance, changed))
        elif unseeded == identity or (unseeded, samples) not in old:
            others = [other for other in new if other[0] == identity]
            met.update(others)
            mark, why = (INCOMPARABLE, "other samples") if others else (MISSING, "")
            compared.append(Compared(identity, mark, value, tolerance=tolerance, why=why, direction=direction))
    for key, row in new.items():
        if key not in met:
            compared.append(Compared(key[0], NEW, after=float(row["value"]), direction=str(row["direction"])))
    return sorted(compared, key=lambda row: row.identity)


def _judged(
    identity: tuple[str, ...], then: pd.Series, now: pd.Series, tolerance: float, changed: int | None
) -> Compared:
    """A row that both sides have."""
    values, direction = (float(then["value"]), float(now["value"])), str(then["direction"])
    if np.isnan(values[0]) and not np.isnan(values[1]):
        return Compared(identity, NEW, *values, tolerance, why="no value in the baseline", direction=direction)
    if then["metric_key"] != now["metric_key"] or then["direction"] != now["direction"]:
        return Compared(identity, INCOMPARABLE, *values, tolerance, why="the metric changed", direction=direction)
    mark, why = _judge(then, *values, tolerance), _others(then, now)
    if now["excluded"] > then["excluded"] and mark in (SAME, BETTER):
        excludes = f"excludes {int(now['excluded'])} samples, was {int(then['excluded'])}"
        mark, why = WORSE, "; ".join(filter(None, (excludes, why)))
    return Compared(identity, mark, *values, tolerance, changed, why, direction)


def _others(then: pd.Series, now: pd.Series) -> str:
    """What of the network and the data is not what it was, as far as the baseline says: old ones have no such keys."""
    names = {"model_key": "other weights", "data_key": "other data"}
    return ", ".join(said for key, said in names.items() if then[key] and then[key] != now[key])


def _why_failed(identity: tuple[str, ...], failed: Sequence[Damaged | Unfinished]) -> str:
    """Why there is no number to compare; '' if there may be."""
    labels = dict(zip(IDENTITY[:-1], identity))
    for found in failed:
        if isinstance(found, Unfinished) and found.covers(labels):
            return f"its last run failed: {found.said}"
        if isinstance(found, Damaged) and all(labels[name] == value for name, value in found.labels.items()):
            return f"{found.path.name}: {found.why}"
    return ""


def exit_code(compared: list[Compared]) -> int:
    """1 if a row got worse, failed or is missing; 3 if nothing was compared or a row is not comparable; else 0."""
    marks = [row.mark for row in compared]
    some = any(row.mark in (SAME, BETTER) and row.before is not None and np.isfinite(row.before) for row in compared)
    if WORSE in marks or FAILED in marks or (MISSING in marks and some):
        return REGRESSED
    return NOTHING_COMPARED if INCOMPARABLE in marks or not some else OK


def refuse_ambiguous(before: pd.DataFrame, baseline: Path, cells: Sequence[Cell]) -> None:
    """Raise NotComparable where it cannot be said which row answers for which: a baseline with two rows of one identity
    and sample set; results with two networks or two data sets under the labels of a row of the baseline."""
    names = [*IDENTITY, "sample_key"]
    twice = before[before.duplicated(names, keep="first")]
    if len(twice):
        row = twice.iloc[0]
        what = " · ".join(str(row[name]) for name in IDENTITY if row[name])
        raise NotComparable(f"{baseline}: two rows of {what}\nkeep the one that the results are to be held against")
    asked = {tuple(str(row[name]) for name in IDENTITY[:-1]) for _, row in before.iterrows()}
    found: dict[tuple[str, ...], Cell] = {}
    for cell in cells:
        labels = tuple(cell.card[name] for name in IDENTITY[:-1])
        first = found.setdefault(labels, cell)
        other = [key for key in KEYED if first.card["keys"][key] != cell.card["keys"][key]]
        if labels in asked and other:
            what = "other weights" if other == ["model_key"] else "another data set" if len(other) == 1 else "both"
            said = f"{first.path} and {cell.path}: one identity, {what}".replace("both", "other weights and data")
            raise NotComparable(f"{said}\ndelete the files of the one that is not meant, or use another paths.results")


def refuse_other_sources(before: pd.DataFrame, cells: Sequence[Cell]) -> None:
    """Raise NotComparable if a row of the baseline would be compared with numbers that other code of xaibench made.

    Cards that older versions wrote do not say what made them, and pass.
    """
    asked = {tuple(str(row[name]) for name in IDENTITY[:-1]) for _, row in before.iterrows()}
    other = [
        cell
        for cell in cells
        if tuple(cell.card[name] for name in IDENTITY[:-1]) in asked
        and cell.card.get("sources", [provenance.sources()]) != [provenance.sources()]
    ]
    if other:
        made, more = ", ".join(other[0].card["sources"]), f" and {len(other) - 1} more" if len(other) > 1 else ""
        raise NotComparable(
            f"{other[0].path}{more}: made by other code of xaibench ({made}) than runs here ({provenance.sources()})\n"
            "compute anew: run with runner.reuse=force, or with a paths.cache and paths.results that are empty"
        )


def per_sample(cells: list[Cell]) -> dict[Key, pd.Series]:
    """(identity, sample key) -> the per-sample values of the statistic's column."""
    found = {}
    for cell in cells:
        for statistic in cell.card["statistics"]:
            identity = (*(str(cell.card[name]) for name in IDENTITY[:-1]), statistic["name"])
            if statistic["column"] in cell.columns:
                found[identity, cell.card["keys"]["sample_key"]] = cell.columns[statistic["column"]]
    return found


def floors(cells: list[Cell], overrides: Mapping[str, float] | None = None) -> dict[str, float]:
    """`metric.statistic` -> the absolute tolerance that the metric declares, or the overrides'.

    overrides: by `metric.statistic`, or by the statistic's name under every metric. Raises UserError for a name that
    no row has.
    """
    declared = {f"{c.card['metric']}.{s['name']}": s["tolerance"] for c in cells for s in c.card["statistics"]}
    overrides = overrides or {}
    known = [*declared, *(name.split(".", 1)[1] for name in declared)]
    for name in overrides:
        if cells and name not in known:
            raise UserError(f"tolerance of {name}: no row has it; {nearest(name, known)}")
    found = {n: overrides.get(n, overrides.get(n.split(".", 1)[1], floor)) for n, floor in declared.items()}
    return {name + suffix: floor for name, floor in found.items() for suffix in ("", COMMON)}


def read_tolerances(path: Path) -> dict[str, float]:
    """Overrides from a yaml file of `metric.statistic: number` lines. Raises UserError for anything else."""
    import yaml

    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        return {str(name): tolerance(value) for name, value in found.items()}
    except (OSError, ValueError, TypeError, AttributeError, yaml.YAMLError) as error:
        raise UserError(f"{path}: expected lines such as `degradation.morf: 0.01` ({first_line(error)})") from error


def tolerance(value: Any) -> float:
    """A tolerance as a number. Raises ValueError for what allows everything or nothing: NaN, infinity, less than 0."""
    number = float(value)
    if not 0 <= number < np.inf:
        raise ValueError(f"{value}: expected a number that is not negative")
    return number


def scores_beside(leaderboard: Path) -> Path | None:
    """The results folder that a leaderboard file lies in, if its score files are there too."""
    return leaderboard.parent if (leaderboard.parent / "scores").is_dir() else None


def _by_key(frame: pd.DataFrame) -> dict[Key, pd.Series]:
    return {(tuple(str(row[n]) for n in IDENTITY), str(row["sample_key"])): row for _, row in frame.iterrows()}


def _without_seed(identity: tuple[str, ...]) -> tuple[str, ...]:
    return (*identity[:3], without_seed(identity[3]), *identity[4:])


def _name(identity: tuple[str, ...]) -> str:
    return f"{identity[IDENTITY.index('metric')]}.{identity[-1]}"


def rerun_tolerance(reruns: np.ndarray, rows: int) -> np.ndarray:
    """How much worse than the baseline one more run may be, given the values of reruns [k,...] under other seeds.

    The difference of two runs scatters by sqrt(2) standard deviations, and these are known from k runs only: hence
    Student's t. Its level is shared among all rows that vary, so that FALSE_ALARMS holds for the whole check.
    """
    level = 1 - FALSE_ALARMS / rows
    return special.stdtrit(len(reruns) - 1, level) * np.sqrt(2) * reruns.std(axis=0, ddof=1)


def _allowed(frame: pd.DataFrame) -> dict[tuple[str, ...], float]:
    """Identity -> `rerun_tolerance`, of what the frame has at least RERUNS finite reruns of, not all equal."""
    reruns: dict[tuple[str, ...], list[float]] = {}
    for (identity, _), row in _by_key(frame).items():
        if identity != _without_seed(identity):
            reruns.setdefault(_without_seed(identity), []).append(float(row["value"]))
    finite = {identity: np.array(values)[np.isfinite(values)] for identity, values in reruns.items()}
    varying = {key: values for key, values in finite.items() if len(values) >= RERUNS and np.ptp(values) > 0}
    return {identity: float(rerun_tolerance(values, len(varying))) for identity, values in varying.items()}


def _judge(then: pd.Series, before: float, after: float, tolerance: float) -> str:
    if np.isnan(after):
        return SAME if np.isnan(before) else WORSE
    if np.isnan(before):
        return BETTER
    gain = float(np.subtract(*(badness(value, then["direction"], then["target"]) for value in (before, after))))
    # A change by the tolerance itself is within it, whatever rounding makes of the difference.
    if abs(gain) <= tolerance or tied(abs(gain), tolerance) or tied(before, after):
        return SAME
    return BETTER if gain > 0 else WORSE


def _changed(before: pd.Series | None, after: pd.Series | None) -> int | None:
    if before is None or after is None:
        return None
    before, after = before.align(after)
    typical = np.nanmedian(np.abs(before)) if before.notna().any() else 0.0
    same = tied(before, after, typical, UNCHANGED) | (before.isna() & after.isna()).to_numpy()
    return int((~same).sum())

"""The gate: two leaderboards row by row. What got worse, what is new, missing or not comparable.

A row's tolerance is an absolute floor (the statistic's own). Where the maps were drawn anew (their keys differ: another
seed, another version of the method) and the baseline holds reruns under other seeds, it is at least what one more such
rerun would exceed in FALSE_ALARMS of all checks. It is never the interval over
samples: that says how far other samples would move the value, while here both sides see the same ones.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from ..errors import UserError, first_line, nearest
from .leaderboard import COMMON, IDENTITY, Cell, badness, without_seed

FLOOR = 0.005
# How many checks of nothing but other seeds may call a regression in any row. 5 % is what is promised: the rest is for
# statistics of few samples, which are not normal (scripts/gate.py: 6.7 % at a level of 5 %, 4.6 % at this one).
FALSE_ALARMS = 0.03
# Reruns that it takes to speak of a spread.
RERUNS = 3
# Marks as asv has them: worse, better, the same, new, missing, not comparable.
WORSE, BETTER, SAME, NEW, MISSING, INCOMPARABLE = "-", "+", "=", "*", "!", "x"
OK, REGRESSED, NOTHING_COMPARED = 0, 1, 3
# A row's identity (the columns IDENTITY) and the digest of its samples.
Key = tuple[tuple[str, ...], str]


@dataclass(frozen=True)
class Compared:
    """One row: its identity, the mark, both values, the tolerance, and why where that is not plain.

    direction: which values are better, as the statistic says.
    changed: how many samples moved by more than 1e-6, where both sides have per-sample rows; else None.
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
) -> list[Compared]:
    """Every row of either leaderboard, compared; sorted by identity.

    floors: what `floors` returns; FLOOR where a row is not named. samples_*: what `per_sample` returns.
    Rows are matched by identity and samples. A row whose metric or samples are others is not comparable, whatever
    its value; rows that only the new side has are listed as new. Reruns under other seeds, which the baseline holds
    for the spread, need not be run again.
    """
    spread, old, new = _allowed(before), _by_key(before), _by_key(after)
    compared, met = [], set(old)
    for key, then in old.items():
        identity, samples = key
        unseeded, value, direction = _without_seed(identity), float(then["value"]), str(then["direction"])
        tolerance = (floors or {}).get(_name(identity), FLOOR)
        if key in new:
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
    if then["metric_key"] != now["metric_key"] or then["direction"] != now["direction"]:
        return Compared(identity, INCOMPARABLE, *values, tolerance, why="the metric changed", direction=direction)
    mark, why = _judge(then, *values, tolerance), ""
    if now["excluded"] > then["excluded"] and mark in (SAME, BETTER):
        mark, why = WORSE, f"excludes {int(now['excluded'])} samples, was {int(then['excluded'])}"
    return Compared(identity, mark, *values, tolerance, changed, why, direction)


def exit_code(compared: list[Compared]) -> int:
    """1 if a row got worse or is missing; 3 if nothing was compared or a row is not comparable; else 0."""
    marks = [row.mark for row in compared]
    if WORSE in marks or (MISSING in marks and any(mark in (SAME, BETTER) for mark in marks)):
        return REGRESSED
    if INCOMPARABLE in marks or not any(mark in (SAME, BETTER) for mark in marks):
        return NOTHING_COMPARED
    return OK


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
        return {str(name): float(value) for name, value in found.items()}
    except (OSError, ValueError, TypeError, AttributeError, yaml.YAMLError) as error:
        raise UserError(f"{path}: expected lines such as `degradation.morf: 0.01` ({first_line(error)})") from error


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
    return stats.t.ppf(level, len(reruns) - 1) * np.sqrt(2) * reruns.std(axis=0, ddof=1)


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
    if abs(gain) <= tolerance:
        return SAME
    return BETTER if gain > 0 else WORSE


def _changed(before: pd.Series | None, after: pd.Series | None) -> int | None:
    if before is None or after is None:
        return None
    before, after = before.align(after)
    same = np.isclose(before, after, rtol=1e-6, atol=1e-6, equal_nan=True)
    return int((~same).sum())

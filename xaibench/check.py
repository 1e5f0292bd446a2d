"""The gate: two leaderboards row by row. What got worse, what is new, missing or not comparable.

A row's tolerance is the larger of an absolute floor (the statistic's own) and three times the spread of reruns under
other seeds, where the baseline holds such reruns. It is never the interval over samples: that says how far other
samples would move the value, while here both sides see the same ones.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from .leaderboard import COMMON, IDENTITY, Cell, without_seed

FLOOR = 0.005
SPREADS = 3.0
# Marks as asv has them: worse, better, the same, new, missing, not comparable.
WORSE, BETTER, SAME, NEW, MISSING, INCOMPARABLE = "-", "+", "=", "*", "!", "x"
OK, REGRESSED, NOTHING_COMPARED = 0, 1, 3
# A row's identity (the columns IDENTITY) and the digest of its samples.
Key = tuple[tuple[str, ...], str]


@dataclass(frozen=True)
class Compared:
    """One row: its identity, the mark, both values, the tolerance, and why where that is not plain.

    changed: how many samples moved by more than 1e-6, where both sides have per-sample rows; else None.
    """

    identity: tuple[str, ...]
    mark: str
    before: float | None = None
    after: float | None = None
    tolerance: float | None = None
    changed: int | None = None
    why: str = ""


def compare(
    before: pd.DataFrame,
    after: pd.DataFrame,
    floors: Mapping[str, float] | None = None,
    samples_before: Mapping[Key, pd.Series] | None = None,
    samples_after: Mapping[Key, pd.Series] | None = None,
) -> list[Compared]:
    """Every row of either leaderboard, compared; sorted by identity.

    floors: statistic -> absolute tolerance, FLOOR where it is not named. samples_*: what `per_sample` returns.
    Rows are matched by identity and samples. A row whose metric or samples are others is not comparable, whatever
    its value; rows that only the new side has are listed as new.
    """
    spread = _spreads(before)
    new = _by_key(after)
    compared, met = [], set()
    for key, then in _by_key(before).items():
        identity, _ = key
        tolerance = max((floors or {}).get(identity[-1], FLOOR), SPREADS * spread.get(_without_seed(identity), 0.0))
        now = new.get(key)
        if now is None:
            others = [other for other in new if other[0] == identity]
            mark, why = (INCOMPARABLE, "other samples") if others else (MISSING, "")
            met.update(others)
            compared.append(Compared(identity, mark, float(then["value"]), tolerance=tolerance, why=why))
            continue
        met.add(key)
        values = (float(then["value"]), float(now["value"]))
        if then["metric_key"] != now["metric_key"] or then["direction"] != now["direction"]:
            compared.append(Compared(identity, INCOMPARABLE, *values, tolerance, why="the metric changed"))
            continue
        mark, why = _judge(then, *values, tolerance), ""
        if now["excluded"] > then["excluded"] and mark in (SAME, BETTER):
            mark, why = WORSE, f"excludes {int(now['excluded'])} samples, was {int(then['excluded'])}"
        changed = _changed((samples_before or {}).get(key), (samples_after or {}).get(key))
        compared.append(Compared(identity, mark, *values, tolerance, changed, why))
    compared += [Compared(key[0], NEW, after=float(row["value"])) for key, row in new.items() if key not in met]
    return sorted(compared, key=lambda row: row.identity)


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


def floors(cells: list[Cell]) -> dict[str, float]:
    """Statistic -> the absolute tolerance that its metric declares."""
    return {s["name"] + suffix: s["tolerance"] for c in cells for s in c.card["statistics"] for suffix in ("", COMMON)}


def scores_beside(leaderboard: Path) -> Path | None:
    """The results folder that a leaderboard file lies in, if its score files are there too."""
    return leaderboard.parent if (leaderboard.parent / "scores").is_dir() else None


def _by_key(frame: pd.DataFrame) -> dict[Key, pd.Series]:
    return {(tuple(str(row[n]) for n in IDENTITY), str(row["sample_key"])): row for _, row in frame.iterrows()}


def _without_seed(identity: tuple[str, ...]) -> tuple[str, ...]:
    return (*identity[:3], without_seed(identity[3]), *identity[4:])


def _spreads(frame: pd.DataFrame) -> dict[tuple[str, ...], float]:
    """Identity without its seed -> the standard deviation over reruns under different seeds (at least three)."""
    by_seed: dict[tuple[str, ...], dict[str, float]] = {}
    for _, row in frame.iterrows():
        identity = tuple(str(row[name]) for name in IDENTITY)
        by_seed.setdefault(_without_seed(identity), {})[identity[3]] = float(row["value"])
    return {k: float(np.nanstd(list(v.values()), ddof=1)) for k, v in by_seed.items() if len(v) >= 3}


def _judge(then: pd.Series, before: float, after: float, tolerance: float) -> str:
    if np.isnan(after):
        return SAME if np.isnan(before) else WORSE
    if np.isnan(before):
        return BETTER
    gain = {"higher": after - before, "lower": before - after}.get(then["direction"])
    if gain is None:
        target = float(then["target"])
        gain = abs(before - target) - abs(after - target)
    if abs(gain) <= tolerance:
        return SAME
    return BETTER if gain > 0 else WORSE


def _changed(before: pd.Series | None, after: pd.Series | None) -> int | None:
    if before is None or after is None:
        return None
    before, after = before.align(after)
    same = np.isclose(before, after, rtol=1e-6, atol=1e-6, equal_nan=True)
    return int((~same).sum())

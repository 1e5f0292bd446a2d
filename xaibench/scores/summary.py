"""What a leaderboard needs of a score file, without its rows: estimates by statistic, and who is undefined where."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ..store.keys import digest
from . import statistics, units
from .cells import IDENTITY, Cell, Summary, comparable, read_cell

# Above this share of excluded samples a cell is also given on the samples that all methods have.
MANY_EXCLUDED = 0.05
# The estimate of a statistic that a card does not declare, though comparable ones do.
UNDECLARED = (math.nan, math.nan, math.nan, 0)
# Of a card, what tables show: the rest is for the page of a report, which reads it again.
SHOWN = (
    "schema", *IDENTITY[:-1], "keys", "n", "method_cost", "tuned_on", "constant_maps", "seconds", "peak_memory_bytes",
    "device", "threads", "folders",
)  # fmt: skip


def summarised(cells: Sequence[Cell | Summary]) -> list[Summary]:
    """The summaries of cells, with what a table needs of the samples that they have in common."""
    found = [cell if isinstance(cell, Summary) else summary(cell) for cell in cells]
    cell_of = {id(one): cell for one, cell in zip(found, cells) if isinstance(cell, Cell)}
    added = with_common(found, lambda one: cell_of.get(id(one)) or read_again(one))
    return [added.get(id(one), one) for one in found]


def summary(cell: Cell) -> Summary:
    """The summary of one cell, by itself."""
    card = {name: cell.card[name] for name in SHOWN if name in cell.card} | {"statistics": cell.card["statistics"]}
    estimates, undefined, columns, ids = {}, {}, _columns(cell), cell.columns.index.to_numpy()
    kept = {s["name"]: _finite(columns, s, len(cell.columns)) for s in cell.card["statistics"]}
    estimated = _estimated(columns, [(s, kept[s["name"]]) for s in cell.card["statistics"]])
    for name, rows in kept.items():
        estimates[name] = estimated[name]
        undefined[name] = ids[~rows].tolist() if rows.any() else None
    return Summary(card, estimates, undefined, cell.path)


def read_again(one: Summary) -> Cell:
    """The cell of a summary, under the names that the summary goes by. Raises Damaged as `read_cell`."""
    assert one.path is not None  # as read
    cell = read_cell(one.path)
    return replace(cell, card={**cell.card, **one.card})


def with_common(summaries: Sequence[Summary], read: Callable[[Summary], Cell]) -> dict[int, Summary]:
    """By id, the summaries that lack an estimate on the samples which the comparable cells have in common, with it.

    read: the cell of a summary; only of those that lack one.
    """
    added: dict[int, Summary] = {}
    for group in comparable(summaries):
        for statistic in group[0].card["statistics"]:
            name = common_name(group, statistic["name"])
            lacking = [one for one in group if name is not None and name not in one.estimates]
            if not lacking:
                continue
            left_out = _left_out(group, statistic["name"])
            for one in lacking:
                cell = read(one)
                kept = finite(cell, statistic) & ~cell.columns.index.isin(left_out)
                before = added.get(id(one), one)
                estimate = _estimated(_columns(cell), [(statistic, kept)])[statistic["name"]]
                added[id(one)] = replace(before, estimates={**before.estimates, str(name): estimate})
    return added


def common_name(group: Sequence[Summary], statistic: str) -> str | None:
    """The name of the estimates on the samples that comparable cells have in common: it says which these are.

    None if no cell excludes more than MANY_EXCLUDED, or nothing is in common.
    """
    defined = [one.estimates.get(statistic, UNDECLARED)[3] for one in group]
    if not any(n < (1 - MANY_EXCLUDED) * one.card["n"] for n, one in zip(defined, group)):
        return None
    if any(one.undefined.get(statistic) is None for one in group):
        return None
    left_out = _left_out(group, statistic)
    return f"{statistic}@{digest(left_out)}" if len(left_out) < group[0].card["n"] else None


def finite(cell: Cell, statistic: Mapping[str, Any]) -> np.ndarray:
    """For which of its rows [n] the statistic's columns are defined."""
    return _finite(_columns(cell), statistic, len(cell.columns))


def _columns(cell: Cell) -> dict[str, np.ndarray]:
    """A cell's columns [n] by name: of a frame each access costs as much as an estimate. And its tables [n,...], if a
    statistic reads some."""
    columns = dict(zip(cell.columns.columns, np.ascontiguousarray(cell.columns.to_numpy().T)))
    return columns | (cell.tables() if any(s["kind"] in units.KINDS for s in cell.card["statistics"]) else {})


def _finite(columns: Mapping[str, np.ndarray], statistic: Mapping[str, Any], n: int) -> np.ndarray:
    names = _names(statistic)
    if any(name not in columns for name in names):
        return np.zeros(n, dtype=bool)
    return np.logical_and.reduce([np.isfinite(columns[name]).reshape(n, -1).all(axis=1) for name in names])


def _names(statistic: Mapping[str, Any]) -> list[str]:
    """The columns that a statistic reads."""
    if statistic["kind"] in units.KINDS:
        return list(units.tables_of(statistic))
    return [name for name in (statistic["column"], statistic["per"]) if name]


def _left_out(group: Sequence[Summary], statistic: str) -> list[int]:
    """The samples for which the statistic of some of these cells is undefined."""
    return sorted(set().union(*(one.undefined[statistic] or () for one in group)))


def _estimated(
    columns: Mapping[str, np.ndarray], wanted: Sequence[tuple[Mapping[str, Any], np.ndarray]]
) -> dict[str, tuple[float, float, float, int]]:
    """The estimates of statistics, each on some of a cell's rows, a mask [n], by name."""
    found: dict[str, statistics.Estimate] = {}
    of_units = [(statistic, kept) for statistic, kept in wanted if statistic["kind"] in units.KINDS]
    if of_units:  # together, since they share the draws
        rows = np.logical_and.reduce([kept for _, kept in of_units])
        tables = {name: columns[name][rows] for statistic, _ in of_units for name in _names(statistic) if rows.any()}
        found |= units.estimates(tables, [statistic for statistic, _ in of_units])
    for statistic, kept in wanted:
        if statistic["kind"] not in units.KINDS:
            column = columns[statistic["column"]][kept] if kept.any() else np.empty(0)
            per = columns[statistic["per"]][kept] if kept.any() and statistic["per"] else None
            found[statistic["name"]] = statistics.estimate(column, per, statistic["kind"])
    return {name: (one.value, one.low, one.high, one.n) for name, one in found.items()}

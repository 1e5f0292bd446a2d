"""What the page's tables say: rows of the leaderboard, and methods x metrics at a glance."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
from omegaconf import OmegaConf

from ..build import build
from ..errors import XaibenchError
from ..listing import CONF
from ..scores import leaderboard, paired
from ..scores.leaderboard import ARROWS, COMMON, MANY_EXCLUDED, UNMARKED, Cell
from ..scores.rank import Comparison, Contestant, Overall

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Board:
    """All results of one model on one data set.

    frame: its rows of the leaderboard, with `headline`. The rest is there where the score files are: without them
    (a leaderboard.csv alone) there is nothing to resample, and nothing to draw curves of.
    """

    model: str
    dataset: str
    frame: pd.DataFrame
    cells: Sequence[Cell] = ()
    comparisons: Sequence[Comparison] = ()
    overall: Overall | None = None

    @property
    def name(self) -> str:
        """For headings."""
        return f"{self.model} on {self.dataset}"

    def headlines(self) -> list[pd.DataFrame]:
        """The rows of each metric's first statistic, on the largest set of samples, of methods (not of the model)."""
        rows = self.frame[self.frame["headline"] & (self.frame["method"] != "none")]
        found = []
        for _, of_metric in rows.groupby(["metric", "metric_variant"], sort=True):
            largest = max(of_metric.groupby("sample_key", sort=True), key=lambda part: part[1]["n"].max())[1]
            found.append(largest)
        return found

    def comparison(self, row: Row) -> Comparison | None:
        """The comparison that a row of the leaderboard belongs to."""
        for found in self.comparisons:
            same = (found.metric, found.metric_variant, found.statistic)
            if same == (row["metric"], row["metric_variant"], row["statistic"]):
                return found
        return None


def records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows of a frame, whose columns have words for names."""
    return cast("list[dict[str, Any]]", frame.to_dict("records"))


def boards(cells: Sequence[Cell], comparisons: Sequence[Comparison], overalls: Sequence[Overall]) -> list[Board]:
    """A board per model and data set of score files."""
    frame = leaderboard.table(cells)
    first = {(cell.card["metric"], cell.card["metric_variant"]): cell.card["statistics"][0]["name"] for cell in cells}
    frame["headline"] = [
        first[metric, variant] == statistic
        for metric, variant, statistic in zip(frame["metric"], frame["metric_variant"], frame["statistic"])
    ]
    found = []
    for (model, dataset), rows in frame.groupby(["model", "dataset"], sort=True):
        place = (str(model), str(dataset))
        found.append(
            Board(
                *place,
                rows,
                [cell for cell in cells if (cell.card["model"], cell.card["dataset"]) == place],
                [c for c in comparisons if (c.model, c.dataset) == place],
                next((view for view in overalls if (view.model, view.dataset) == place), None),
            )
        )
    return found


def boards_of_file(frame: pd.DataFrame) -> list[Board]:
    """A board per model and data set of a leaderboard.csv, which does not say what statistic comes first."""
    first = {
        metric: _first_statistic(str(metric), sorted(set(rows["statistic"])))
        for metric, rows in frame.groupby("metric")
    }
    frame = frame.assign(headline=frame["statistic"] == frame["metric"].map(first), **UNMARKED)
    groups = frame.groupby(["model", "dataset"], sort=True)
    return [Board(str(model), str(dataset), rows) for (model, dataset), rows in groups]


def _first_statistic(metric: str, present: Sequence[str]) -> str:
    """The headline of a metric of ours with its default parameters; of another one, what bears its name, or the
    first."""
    path = CONF / "metric" / f"{Path(metric).name}.yaml"  # a name in a file that may be a stranger's
    try:
        declared = [s.name for s in build(cast(Row, OmegaConf.to_container(OmegaConf.load(path))), "metric").statistics]
    except (OSError, XaibenchError):
        declared = [metric]
    return next((name for name in declared if name in present), present[0])


# ---- methods x metrics -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Glance:
    """Methods x the headlines of metrics. columns, rows: for the page's template.

    wide: the columns in which at least half of the methods are ranked. means: mean rank of the methods that all of
    these rank, or as the comparisons have it.
    """

    columns: list[dict[str, Any]]
    rows: list[dict[str, Any]]
    means: Mapping[Contestant, float]
    wide: list[int]


def glance(board: Board) -> Glance:
    """The best methods at the top, by their mean rank over the metrics that rank all methods."""
    columns: list[dict[str, Any]] = []
    cells_of: dict[Contestant, dict[int, dict[str, Any]]] = defaultdict(dict)
    for number, rows in enumerate(board.headlines()):
        comparison = board.comparison(records(rows)[0])
        columns.append(_column(rows, comparison))
        for contestant, cell in _cells(rows, comparison).items():
            cells_of[contestant][number] = cell
    ranks = {
        contestant: {n: cell["rank"] for n, cell in cells.items() if cell["rank"]}
        for contestant, cells in cells_of.items()
    }
    wide = [n for n in range(len(columns)) if sum(n in found for found in ranks.values()) >= len(ranks) / 2]
    if board.overall is not None:
        means = dict(zip(board.overall.contestants, board.overall.mean_ranks.tolist()))
    else:
        means = _mean_ranks(ranks, wide)
    lines = [
        {"method": one, "mean": means.get(one), "cells": [cells_of[one].get(n) for n in range(len(columns))]}
        for one in sorted(cells_of, key=lambda one: (means.get(one, np.inf), str(one)))
    ]
    return Glance(columns, lines, means, wide)


def _column(rows: pd.DataFrame, comparison: Comparison | None) -> dict[str, Any]:
    """The head of a metric's column."""
    first = rows.iloc[0]
    return {
        "name": named(first["metric"], first["metric_variant"]),
        "statistic": first["statistic"],
        "arrow": ARROWS[first["direction"]],
        "n": int(rows["n"].max()),
        "controls": list(map(str, comparison.winning_controls)) if comparison else [],
        "cannot_tell": bool(comparison and comparison.cannot_tell),
    }


def _cells(rows: pd.DataFrame, comparison: Comparison | None) -> dict[Contestant, dict[str, Any]]:
    """The cells of a metric's column."""
    best, worst = _as_good_as_the_best(comparison), rows["rank"].max()
    cells = {}
    for row, shown in zip(records(rows), _numbers(rows, "value")):
        contestant, ranked = Contestant.of(row), not pd.isna(row["rank"])
        cells[contestant] = {
            "value": shown,
            "rank": int(row["rank"]) if ranked else None,
            # From 1 for the best to 0 for the last.
            "share": 1 - (row["rank"] - 1) / max(worst - 1, 1) if ranked else 0.0,
            "best": contestant in best,
        }
    return cells


def _as_good_as_the_best(comparison: Comparison | None) -> set[Contestant]:
    """The methods proper that are not told apart from the best one; none if that is all of them: it says nothing."""
    if comparison is None:
        return set()
    rivals = [at for at in comparison.order if comparison.contestants[at].is_rival]
    found = {comparison.contestants[at] for at in rivals if not comparison.differ[at, rivals[0]]}
    return found if len(found) < len(rivals) else set()


def _mean_ranks(ranks: Mapping[Contestant, Mapping[int, int]], wide: Sequence[int]) -> dict[Contestant, float]:
    """Of the methods that all of these metrics rank; equal ones share the mean of their ranks."""
    complete = {one: [found[n] for n in wide] for one, found in ranks.items() if all(n in found for n in wide)}
    if not wide or not complete:
        return {}
    means = paired.ranks(np.array(list(complete.values())).T).mean(axis=0)
    return dict(zip(complete, means.tolist()))


# ---- the leaderboard -------------------------------------------------------------------------------------------------


def leaderboard_rows(board: Board) -> list[dict[str, Any]]:
    """The rows of the leaderboard as the page shows them: metric by metric, best first."""
    found = []
    cards = {_identity(cell.card, cell.card["keys"]): cell.card["keys"]["score_key"] for cell in board.cells}
    groups = ["metric", "metric_variant", "sample_key", "further", "statistic"]
    for (*_, statistic), rows in board.frame.assign(further=~board.frame["headline"]).groupby(groups, sort=True):
        rows = rows.sort_values("rank", kind="stable")
        shown = zip(*(_numbers(rows, name) for name in ("value", "ci_low", "ci_high")))
        low, high = _extent(rows)
        comparison = board.comparison(records(rows)[0])
        letters = dict(zip(comparison.contestants, comparison.letters)) if comparison else {}
        for row, (value, ci_low, ci_high) in zip(records(rows), shown):
            contestant = Contestant.of(row)
            share = row["excluded"] / max(row["n"] + row["excluded"], 1)
            found.append(
                {
                    **row,
                    "label": contestant,
                    "metric_name": named(row["metric"], row["metric_variant"]),
                    "statistic": str(statistic).removesuffix(COMMON),
                    "common": str(statistic).endswith(COMMON),
                    "arrow": ARROWS[row["direction"]],
                    "rank": None if pd.isna(row["rank"]) else int(row["rank"]),
                    "shown": value,
                    "interval": f"{ci_low} to {ci_high}" if ci_low else "",
                    "bar": _bar(row, low, high),
                    "flagged": share > MANY_EXCLUDED,
                    "group": letters.get(contestant, ""),
                    "card": cards.get(_identity(row, row)),
                }
            )
    return found


def _identity(card: Row, keys: Row) -> tuple[str, ...]:
    """What a result file's card and a row of the leaderboard have in common."""
    names = ("model", "dataset", "method", "method_variant", "metric", "metric_variant")
    map_key = keys["map_key"] if "map_key" in keys else keys["method_key"]
    of_both = ("model_key", "data_key", "metric_key", "sample_key")
    return (*(card[name] for name in names), map_key, *(keys[name] for name in of_both))


def _extent(rows: pd.DataFrame) -> tuple[float, float]:
    """The ends of the axis that the bars of comparable rows share."""
    values = rows[["value", "ci_low", "ci_high"]].to_numpy(dtype=float)
    values = values[np.isfinite(values)]
    return (float(values.min()), float(values.max())) if len(values) else (0.0, 1.0)


def _bar(row: Row, low: float, high: float) -> dict[str, float] | None:
    """Where the value and its interval lie on the axis, in percent; None for what is undefined."""
    if pd.isna(row["value"]):
        return None
    ends = [row["value"] if pd.isna(row[name]) else row[name] for name in ("ci_low", "value", "ci_high")]
    left, at, right = (round(100 * (end - low) / ((high - low) or 1.0), 1) for end in ends)
    return {"left": left, "at": at, "width": round(right - left, 1)}


def named(metric: str, variant: str) -> str:
    """A metric with its overrides."""
    return f"{metric} ({variant})" if variant else metric


def _numbers(rows: pd.DataFrame, name: str) -> list[str]:
    """A column of comparable rows as text: as many decimals as show three digits of its largest value."""
    values = rows[name].to_numpy(dtype=float)
    largest = np.abs(values[np.isfinite(values)]).max(initial=0.0)
    decimals = 3 if largest == 0 else 3 - math.ceil(math.log10(largest))
    if decimals > 6:
        return ["" if np.isnan(value) else f"{value:.2e}".replace("-", "−") for value in values]
    decimals = max(decimals, 0)
    # The last term makes -0 a 0; a true minus sign is as wide as a digit.
    texts = (f"{round(value, decimals) + 0.0:.{decimals}f}" for value in values)
    return [text.replace("nan", "").replace("-", "−") for text in texts]

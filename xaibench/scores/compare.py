"""Numbers that were published, and ours beside them: the same methods under the same statistic, on other networks.

xaibench/scores/published/EXPERIMENT.csv holds what a table prints: method, method_variant (as in leaderboards), model,
metric, statistic, reading (what the metric was told of the map, such as collapse=max_abs, if that is not our default),
value. The comments at its head say where it is from and what is not the same here, and what verdicts are coded as.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from ..errors import UserError, nearest

FOLDER = Path(__file__).parent / "published"
# Fewer methods in common than this say nothing about an order.
FEWEST = 3
# What is ours alone: the published rows say nothing of it, and it makes no other method.
OURS = ("fit.", "seed=")
WHO = ["metric", "statistic", "method", "method_variant"]
HERE = ["model", "dataset", "metric_variant"]


@dataclass(frozen=True)
class Published:
    """A published table: `facts` (source, table, data, n, differs ...) and its rows."""

    experiment: str
    facts: Mapping[str, str]
    rows: pd.DataFrame

    @property
    def words(self) -> dict[float, str]:
        """What its values stand for where it prints verdicts and no numbers, as in `words: 0 passes, 1 fails`."""
        parts = [part.split(maxsplit=1) for part in self.facts.get("words", "").split(",") if part]
        return {float(value): word.strip() for value, word in parts}


def experiments() -> list[str]:
    """The experiments with published numbers."""
    return sorted(path.stem for path in FOLDER.glob("*.csv"))


def read(experiment: str) -> Published:
    """The published numbers of an experiment. Raises UserError, with the nearest, if there are none."""
    path = FOLDER / f"{experiment}.csv"
    if experiment not in experiments():
        raise UserError(f"compare {experiment}: no published numbers; {nearest(experiment, experiments())}")
    facts: dict[str, str] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        key, _, value = line.lstrip("# ").partition(":")
        facts[key] = value.strip()
    rows = pd.read_csv(path, comment="#", keep_default_na=False, dtype={"value": float})
    return Published(experiment, facts, rows)


def beside(published: Published, board: pd.DataFrame) -> pd.DataFrame:
    """A row per published number and setting of ours (model, data set, metric's variant) that has the method.

    Columns: `published_model` and `published`, then ours as in the leaderboard; published numbers without one of ours
    keep a row, in which ours is NaN. Where we have the published reading of a map, it stands in for our default.
    `as_read`: whether the map was read as published.
    """
    ours = board[[*WHO, *HERE, "value", "ci_low", "ci_high", "n"]].copy()
    split = [str(variant).split(",") for variant in ours["method_variant"]]
    ours["method_variant"] = [",".join(part for part in variant if not part.startswith(OURS)) for variant in split]
    theirs = published.rows.rename(columns={"model": "published_model", "value": "published"})
    frame = theirs.merge(ours, on=WHO, how="left")
    variants = [str(variant).split(",") for variant in frame["metric_variant"].astype(object).fillna("")]
    frame["as_read"] = [reading in variant for reading, variant in zip(frame["reading"], variants)]
    rest = [",".join(p for p in variant if p != reading) for reading, variant in zip(frame["reading"], variants)]
    frame["metric_variant"] = frame["metric_variant"].where(~frame["as_read"], rest)
    frame = frame.sort_values("as_read", ascending=False, kind="stable")
    frame = frame.drop_duplicates([*WHO, "published_model", *HERE]).sort_index()
    return frame.assign(as_read=frame["as_read"] | (frame["reading"] == ""))


def agreement(frame: pd.DataFrame) -> pd.DataFrame:
    """Spearman's rank correlation of `beside`, for each published model and setting of ours with FEWEST methods that
    were read as published; `ordered` of the `pairs` of methods that differ there have the same order here."""
    from scipy import stats  # takes a second to import

    rows = []
    groups = ["metric", "statistic", "published_model", *HERE]
    for labels, part in frame[frame["as_read"]].dropna(subset="value").groupby(groups, sort=True):
        if len(part) >= FEWEST and min(np.ptp(part["value"]), np.ptp(part["published"])) > 0:
            correlation = float(stats.spearmanr(part["value"], part["published"]).statistic)
            columns = part[["published", "value"]].to_numpy().T
            signs = np.sign([np.subtract.outer(column, column) for column in columns])
            pairs = {"ordered": int((signs[0] * signs[1] > 0).sum()) // 2, "pairs": int((signs[0] != 0).sum()) // 2}
            found = {"correlation": correlation, "methods": len(part), **pairs}
            rows.append({**dict(zip(groups, labels)), **found})
    return pd.DataFrame(rows, columns=[*groups, "correlation", "methods", "ordered", "pairs"])

"""Which orders of a published table hold here: only where the paired interval of the two methods excludes 0.

    xaibench run -m experiment=model_features
    python scripts/published_orders.py model_features --results results

Per statistic and model: the pairs of methods that both have, whose order here is the published one, is its opposite,
or is open, because the 95 % percentile interval of the difference has 0 in it, both resampled on the same samples.
"""

import argparse
import itertools
from pathlib import Path

import numpy as np
import pandas as pd

from xaibench.scores import compare, leaderboard, statistics
from xaibench.scores.leaderboard import Cell

LEVELS = (0.025, 0.975)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", choices=compare.experiments())
    parser.add_argument("--results", type=Path, default=Path("results"))
    options = parser.parse_args()
    for row in orders(compare.read(options.experiment).rows, leaderboard.read_cells(options.results)):
        holds, opposite = ("; ".join(f"{one} < {other}" for one, other in row[name]) for name in ("holds", "opposite"))
        print(f"{row['statistic']}, {row['model']}: {len(row['holds'])} hold, {len(row['opposite'])} are the opposite, "
              f"{row['open']} open\n  hold: {holds or 'none'}\n  opposite: {opposite or 'none'}")  # fmt: skip


def orders(published: pd.DataFrame, cells: list[Cell]) -> list[dict[str, object]]:
    """A row per published statistic and model that we have methods of: pairs (less, more) as they are here."""
    found = []
    for (metric, name, model), rows in published.groupby(["metric", "statistic", "model"], sort=False):
        values = {(row.method, row.method_variant): row.value for row in rows.itertuples()}
        own = {(c.card["method"], c.card["method_variant"]): c for c in cells if c.card["metric"] == metric}
        shared = [contestant for contestant in values if contestant in own]
        if len(shared) < 2:
            continue
        statistic = next(one for one in own[shared[0]].card["statistics"] if one["name"] == name)
        columns = [matrix([own[contestant] for contestant in shared], statistic[key]) for key in ("column", "per")]
        defined = np.isfinite(np.concatenate([column for column in columns if column is not None], 1)).all(1)
        columns = [None if column is None else column[defined] for column in columns]
        drawn = statistics.resampled(*columns, statistic["kind"])
        row = {"statistic": name, "model": model, "holds": [], "opposite": [], "open": 0}
        for a, b in itertools.combinations(range(len(shared)), 2):
            low, high = np.nanquantile(drawn[:, a] - drawn[:, b], LEVELS)
            theirs = values[shared[a]] - values[shared[b]]
            if low <= 0 <= high:
                row["open"] += theirs != 0
            elif theirs != 0:
                less, more = (a, b) if high < 0 else (b, a)
                row["holds" if (high < 0) == (theirs < 0) else "opposite"].append((shared[less][0], shared[more][0]))
        found.append(row)
    return found


def matrix(cells: list[Cell], column: str | None) -> np.ndarray | None:
    """A column of each cell: [samples,cells]; None without one."""
    return None if column is None else np.stack([cell.columns[column].to_numpy() for cell in cells], axis=1)


if __name__ == "__main__":
    main()

"""Which orders of methods on one network survive on another: metric by metric, of the methods that both have.

    xaibench run -m experiment=shapes
    xaibench run -m experiment=shapes_vit
    python scripts/network_orders.py smallcnn smallvit --results results

Two tables in Markdown. The headline of each metric on the one network and on the other, method by method. And pairs of
methods: an order is decided on a network where the paired 95 % percentile interval of the difference excludes 0; of
those that are decided on both, how many are the same and how many reversed. Kendall's tau-b is of the values, whether
they are decided or not.
"""

import argparse
import itertools
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from scipy.stats import kendalltau

from xaibench.scores import leaderboard, statistics
from xaibench.scores.leaderboard import Cell

LEVELS = (0.025, 0.975)


@dataclass
class Orders:
    """Of one metric: the values of the methods on both networks, and their pairs (less, more), by what became of them.

    decided: how many pairs are decided on the one network, and on the other, whatever they are there.
    """

    metric: str
    direction: str
    values: dict[str, tuple[float, float]]
    same: list[tuple[str, str]] = field(default_factory=list)
    reversed: list[tuple[str, str]] = field(default_factory=list)
    decided: tuple[int, int] = (0, 0)

    @property
    def tau(self) -> float:
        """Kendall's tau-b of the two orders of values."""
        return float(kendalltau(*zip(*self.values.values())).statistic)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("one")
    parser.add_argument("other")
    parser.add_argument("--results", type=Path, default=Path("results"))
    options = parser.parse_args()
    found = orders(leaderboard.read_cells(options.results), options.one, options.other)
    methods = list(dict.fromkeys(method for row in found for method in row.values))
    print(f"| method | {' | '.join(row.metric for row in found)} |\n|{'---|' * (len(found) + 1)}")
    for method in methods:
        shown = ["{:.3f} / {:.3f}".format(*row.values[method]) if method in row.values else "" for row in found]
        print(f"| {method} | {' | '.join(shown)} |")
    print(f"\n| metric | tau | same | reversed | decided on {options.one}, on {options.other} | of | reversed pairs |")
    print("|---|---|---|---|---|---|---|")
    for row in found:
        of, pairs = len(row.values) * (len(row.values) - 1) // 2, "; ".join(f"{a} < {b}" for a, b in row.reversed)
        decided = "{}, {}".format(*row.decided)
        print(f"| {row.metric} | {row.tau:.2f} | {len(row.same)} | {len(row.reversed)} | {decided} | {of} | {pairs} |")


def orders(cells: list[Cell], one: str, other: str) -> list[Orders]:
    """Of the headline of each metric that two networks have methods in common under; pairs as on the one network."""
    found = []
    for metric in dict.fromkeys(cell.card["metric"] for cell in cells):
        by_network: list[dict[str, Cell]] = [
            {_contestant(cell): cell for cell in cells if (cell.card["metric"], cell.card["model"]) == (metric, model)}
            for model in (one, other)
        ]
        shared = [contestant for contestant in by_network[0] if contestant in by_network[1]]
        if len(shared) < 2:
            continue
        statistic = by_network[0][shared[0]].card["statistics"][0]
        drawn, values = zip(*(_measured([own[name] for name in shared], statistic) for own in by_network))
        shown = {name: pair for name, pair in zip(shared, zip(*values)) if np.isfinite(pair).all()}
        row, decided = Orders(metric, statistic["direction"], shown), [0, 0]
        for a, b in itertools.combinations(range(len(shared)), 2):
            signs = [_sign(draws[:, a] - draws[:, b]) for draws in drawn]
            decided = [count + (sign != 0) for count, sign in zip(decided, signs)]
            if all(signs):
                pair = (shared[a], shared[b]) if signs[0] < 0 else (shared[b], shared[a])
                (row.same if signs[0] == signs[1] else row.reversed).append(pair)
        row.decided = (decided[0], decided[1])
        found.append(row)
    return found


def _measured(cells: list[Cell], statistic: dict[str, str]) -> tuple[np.ndarray, np.ndarray]:
    """Draws [n,methods] of a statistic and its values [methods], on the samples on which all are defined. NaN for a
    method without any."""
    names = [statistic[key] for key in ("column", "per")]
    columns = [name and np.stack([cell.columns[name].to_numpy() for cell in cells], axis=1) for name in names]
    here = [column for column in columns if column is not None]
    has = np.all([np.isfinite(column).any(0) for column in here], 0)
    defined = np.all([np.isfinite(column[:, has]).all(1) for column in here], 0)
    drawn, values = (np.full((count, len(cells)), np.nan) for count in (statistics.RESAMPLES, 1))
    kept = [None if column is None else column[defined][:, has] for column in columns]
    drawn[:, has] = statistics.resampled(*kept, statistic["kind"])
    values[:, has] = statistics.statistic(*kept, statistic["kind"])
    return drawn, values[0]


def _sign(differences: np.ndarray) -> int:
    """The sign of a difference, or 0 where it is open."""
    if not np.isfinite(differences).any():
        return 0
    low, high = np.nanquantile(differences, LEVELS)
    return 0 if low <= 0 <= high else int(np.sign(low))


def _contestant(cell: Cell) -> str:
    variant = cell.card["method_variant"]
    return f"{cell.card['method']} ({variant})" if variant else cell.card["method"]


if __name__ == "__main__":
    main()

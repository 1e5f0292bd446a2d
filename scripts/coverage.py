"""How often the 95 % intervals hold the truth, by number of samples and distribution: the table of docs/statistics.md.

python scripts/coverage.py [--trials 4000]     (a quarter of an hour of one core)
"""

import argparse
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from xaibench.scores import statistics

PAGE = Path(__file__).parent.parent / "docs" / "statistics.md"
BEGIN, END = "<!-- coverage: made by scripts/coverage.py -->\n", "<!-- /coverage -->\n"
SIZES = (5, 10, 20, 48, 100, 300, 1000)
REPEATS = (3, 5, 10)


@dataclass(frozen=True)
class World:
    """A distribution of columns with a known truth: draw(random, shape) -> the column and its denominator, or None."""

    name: str
    kind: str
    truth: float
    draw: Callable[[np.random.Generator, tuple[int, int]], tuple[np.ndarray, np.ndarray | None]]


def ratio(random: np.random.Generator, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """As the degradation score: an area is a share (from -1 to 1) of the range of the model's answers."""
    span = random.beta(5, 1.5, shape)
    return span * (2 * random.beta(4, 2, shape) - 1), span


def rare(random: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """Seven of ten samples score nothing."""
    return random.beta(2, 3, shape) * (random.random(shape) < 0.3)


WORLDS = (
    World("mean of normal", "mean", 0.0, lambda r, s: (r.normal(size=s), None)),
    World("mean of beta(2, 8): scores near 0", "mean", 0.2, lambda r, s: (r.beta(2, 8, s), None)),
    World("mean of beta(0.3, 0.3): all or nothing", "mean", 0.5, lambda r, s: (r.beta(0.3, 0.3, s), None)),
    World("mean, 70 % zeros", "mean", 0.3 * 0.4, lambda r, s: (rare(r, s), None)),
    World("mean of lognormal(0, 1): heavy tail", "mean", float(np.exp(0.5)), lambda r, s: (r.lognormal(size=s), None)),
    World("ratio of means, as degradation", "mean", 2 * 4 / 6 - 1, ratio),
    World("median of lognormal(0, 1)", "median", 1.0, lambda r, s: (r.lognormal(size=s), None)),
    World("proportion 0.5 (Wilson)", "proportion", 0.5, lambda r, s: (1.0 * (r.random(s) < 0.5), None)),
    World("proportion 0.9 (Wilson)", "proportion", 0.9, lambda r, s: (1.0 * (r.random(s) < 0.9), None)),
)
RETRAINED = World("mean of normal repeats (t)", "repeats", 0.0, lambda r, s: (r.normal(size=s), None))


def coverage(world: World, n: int, trials: int, seed: int = 0, bootstrap: str = "bca") -> float:
    """The share of trials whose interval holds the truth."""
    columns, per = world.draw(np.random.default_rng([seed, n]), (trials, n))
    pers: Iterable[np.ndarray | None] = [None] * trials if per is None else per
    found = (statistics.estimate(column, under, world.kind, bootstrap) for column, under in zip(columns, pers))
    return float(np.mean([estimate.low <= world.truth <= estimate.high for estimate in found]))


def table(trials: int) -> str:
    """Markdown: a row per world, a column per number of samples; for means the percentile bootstrap beside it."""
    rows = ["| interval | " + " | ".join(f"n = {n}" for n in SIZES) + " |", "|---" + "|---:" * len(SIZES) + "|"]
    for world in WORLDS:
        bootstraps = {"mean": ("bca", "percentile"), "median": ("bca",)}.get(world.kind, ("",))
        for bootstrap in bootstraps:
            cells = [f"{100 * coverage(world, n, trials, bootstrap=bootstrap):.1f}" for n in SIZES]
            rows.append(f"| {world.name}{f', {bootstrap}' if bootstrap else ''} | " + " | ".join(cells) + " |")
            print(rows[-1], flush=True)
    repeats = [f"{100 * coverage(RETRAINED, n, trials):.1f} (n = {n})" for n in REPEATS]
    rows.append(f"| {RETRAINED.name} | " + " | ".join(repeats + [""] * (len(SIZES) - len(REPEATS))) + " |")
    return "\n".join(rows) + "\n"


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--trials", type=int, default=4000)
    made = table(parser.parse_args().trials)
    text = PAGE.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n{made}\n{END}{rest.split(END)[1]}", encoding="utf-8")

"""From per-sample columns to a value with an interval: pure functions on numpy arrays."""

import math
from dataclasses import dataclass

import numpy as np
from scipy import stats

RESAMPLES = 2000
CONFIDENCE = 0.95
PART = 2**22  # drawn values at a time, to bound the memory


@dataclass(frozen=True)
class Estimate:
    """A statistic with its 95 % interval and the number of samples it rests on (NaN where it is undefined)."""

    value: float
    low: float
    high: float
    n: int


def estimate(column: np.ndarray, per: np.ndarray | None, kind: str) -> Estimate:
    """The statistic of finite columns [n] (`per` the denominator's, for a ratio of means) and its interval.

    kind: `mean` and `median` take the percentile bootstrap, numerator and denominator resampled together;
    `proportion` Wilson's interval; `repeats` Student's t. Seeded: the same columns give the same interval.
    """
    n = len(column)
    if n == 0:
        return Estimate(math.nan, math.nan, math.nan, 0)
    if kind == "proportion":
        interval = stats.binomtest(round(float(column.sum())), n).proportion_ci(CONFIDENCE, method="wilson")
        return Estimate(float(column.mean()), float(interval.low), float(interval.high), n)
    if kind == "repeats":
        value, half = float(column.mean()), math.nan
        if n > 1:
            half = float(stats.t.ppf(0.5 + CONFIDENCE / 2, n - 1) * column.std(ddof=1) / math.sqrt(n))
        return Estimate(value, value - half, value + half, n)
    value = float(_statistic(column[None], None if per is None else per[None], kind)[0])
    if n == 1:
        return Estimate(value, math.nan, math.nan, n)
    low, high = np.percentile(_resampled(column, per, kind), [50 - 50 * CONFIDENCE, 50 + 50 * CONFIDENCE])
    return Estimate(value, float(low), float(high), n)


def _resampled(column: np.ndarray, per: np.ndarray | None, kind: str) -> np.ndarray:
    """The statistic of RESAMPLES draws with replacement, in parts that bound the memory.

    The draws depend on n alone, so that the intervals of methods on the same samples are comparable.
    """
    n = len(column)
    random, part = np.random.default_rng(0), max(1, PART // n)
    found = []
    for start in range(0, RESAMPLES, part):
        draws = random.integers(0, n, size=(min(part, RESAMPLES - start), n))
        found.append(_statistic(column[draws], None if per is None else per[draws], kind))
    return np.concatenate(found)


def _statistic(column: np.ndarray, per: np.ndarray | None, kind: str) -> np.ndarray:
    """Rows [r,n] -> [r]."""
    if kind == "median":
        return np.median(column, axis=1)
    if per is None:
        return column.mean(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return column.mean(axis=1) / per.mean(axis=1)

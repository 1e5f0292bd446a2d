"""From per-sample columns to a value with an interval: pure functions on numpy arrays."""

import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from scipy import special

RESAMPLES = 2000
CONFIDENCE = 0.95
# The shares of draws below the ends of a percentile interval.
ENDS = (0.5 - CONFIDENCE / 2, 0.5 + CONFIDENCE / 2)
# Below this many samples a bootstrap interval is too narrow to be trusted (docs/statistics.md has the coverage).
FEW = 30
PART = 2**22  # drawn values at a time, to bound the memory
SHORT = 1000  # up to this many samples draws are kept as floating-point numbers too
KEPT = 2**27  # bytes of draws that are kept for the next column of the same length
# Values closer than this share of the larger one are equal: what float64 sums in another order leave of them. Around 0
# there is no such share: there it is this share of what the values beside it typically are.
TIED, ZERO = 1e-9, 1e-12
BOOTSTRAPPED = ("mean", "median", "r_squared", "spearman", "determination", "roc_auc", "average_precision")
# Of these the statistic without each sample in turn has no closed form: their interval is of percentiles.
THRESHOLDED = ("roc_auc", "average_precision")
# Those that are no mean and no ratio of means.
OTHERWISE = ("median", "r_squared", "spearman", "determination", *THRESHOLDED)


@dataclass(frozen=True)
class Estimate:
    """A statistic with its 95 % interval and the number of samples it rests on (NaN where it is undefined).

    interval: how the interval was made: `bca`, `percentile`, `basic`, `wilson`, `t`; `equal` if all values are the
    same, so that nothing is known of their spread; `none` where there are too few.
    """

    value: float
    low: float
    high: float
    n: int
    interval: str = "none"


def estimate(
    column: np.ndarray, per: np.ndarray | None, kind: str, bootstrap: Literal["bca", "percentile"] = "bca"
) -> Estimate:
    """The statistic of finite columns [n] (`per` the denominator's, for a ratio of means) and its interval.

    kind: `mean`, `median`, `r_squared`, `spearman` and `determination` take the bootstrap, both columns resampled
    together, bias-corrected and accelerated (Efron 1987) or by percentiles; `roc_auc` and `average_precision` by
    percentiles; `proportion` takes Wilson's interval; `repeats` Student's t. Seeded: the same columns give the same
    interval. A statistic that is not defined is NaN, and so are the ends where one of its draws, or the statistic
    without one of the samples, is not.
    """
    n = len(column)
    if n == 0:
        return Estimate(math.nan, math.nan, math.nan, 0)
    if kind == "proportion":
        from scipy import stats  # takes a second to import

        interval = stats.binomtest(round(float(column.sum())), n).proportion_ci(CONFIDENCE, method="wilson")
        return Estimate(float(column.mean()), float(interval.low), float(interval.high), n, "wilson")
    if kind == "repeats":
        value = float(column.mean())
        if n == 1:
            return Estimate(value, math.nan, math.nan, n)
        half = float(special.stdtrit(n - 1, 0.5 + CONFIDENCE / 2) * column.std(ddof=1) / math.sqrt(n))
        return Estimate(value, value - half, value + half, n, "t")
    value = float(statistic(column, per, kind))
    if not math.isfinite(value):  # a ratio to a mean of 0
        return Estimate(math.nan, math.nan, math.nan, n)
    if n == 1:
        return Estimate(value, math.nan, math.nan, n)
    if np.ptp(column) == 0 and (per is None or np.ptp(per) == 0):
        return Estimate(value, value, value, n, "equal")
    drawn = resampled(column[:, None], None if per is None else per[:, None], kind)[:, 0]
    if kind in THRESHOLDED:
        bootstrap = "percentile"
    left_out = _left_out(column, per, kind) if bootstrap == "bca" else drawn
    if not (np.isfinite(drawn).all() and np.isfinite(left_out).all()):  # some draws have a mean of 0 to divide by
        return Estimate(value, math.nan, math.nan, n)
    levels = np.array(ENDS)
    if bootstrap == "bca":
        levels = _bca_levels(levels, value, drawn, left_out)
    low, high = _quantiles(drawn, levels)
    return Estimate(value, low, high, n, bootstrap)


def few(n: int, kind: str) -> bool:
    """Whether an interval of this kind over n samples is narrower than it says. Wilson's and t are made for few."""
    return kind in BOOTSTRAPPED and n < FEW


def statistic(column: np.ndarray, per: np.ndarray | None, kind: str) -> np.ndarray:
    """Columns [n,...] -> [...]: the median, the mean, the ratio of means, or one of

    r_squared           how much of the column's variance the least-squares line over `per` explains, 0 for a column
                        that does not vary
    spearman            the correlation of its ranks with those of `per`, NaN where one of the two does not vary
    determination       1 - mean of the column (squared errors) / variance of `per` (what was to be found)
    roc_auc             area under the ROC curve of the column's values [n], where `per` is 1 for what they should find
                        and 0 for the rest; ties count half
    average_precision   of the same: precision at every threshold, weighted by the recall gained there
    """
    if kind == "median":
        return np.median(column, axis=0)
    if kind == "spearman":
        assert per is not None  # it has one
        from scipy import stats  # takes a second to import

        return _correlation(stats.rankdata(column, axis=0), stats.rankdata(per, axis=0), np.ones(len(column)))
    if kind == "r_squared":
        return _r_squared([term.sum(axis=0) for term in _moments(column, per)])
    if kind == "determination":
        return _determination([term.sum(axis=0) for term in _moments(column, per)], column.mean(axis=0))
    if kind in THRESHOLDED:
        return _thresholded(np.ones((1, len(column))), column, per, kind)[0]
    return column.mean(axis=0) if per is None else _ratio(column.mean(axis=0), per.mean(axis=0))


def resampled(columns: np.ndarray, per: np.ndarray | None, kind: str) -> np.ndarray:
    """The statistic of columns [n,m] in RESAMPLES draws of n samples with replacement -> [RESAMPLES,m].

    The draws depend on n alone: all columns of one length see the same ones, so that what is resampled is comparable.
    """
    found = []
    if kind not in OTHERWISE and len(columns) <= SHORT:
        times = _kept_times(len(columns))
        return times @ columns / len(columns) if per is None else _ratio(times @ columns, times @ per)
    for counts in draws(len(columns)):
        if kind == "median":
            found.append(np.stack([_medians(counts, column) for column in columns.T], axis=1))
        elif kind == "spearman":
            assert per is not None
            pairs = zip(columns.T, per.T)
            found.append(np.stack([_drawn_spearman(counts, *pair) for pair in pairs], axis=1))
        elif kind == "r_squared":
            found.append(_r_squared([counts.astype(np.float64) @ term for term in _moments(columns, per)]))
        elif kind == "determination":
            times = counts.astype(np.float64)
            errors = times @ columns / len(columns)
            found.append(_determination([times @ term for term in _moments(columns, per)], errors))
        elif kind in THRESHOLDED:
            assert per is not None  # as `Statistic` asks
            found.append(np.stack([_thresholded(counts, c, p, kind) for c, p in zip(columns.T, per.T)], axis=1))
        else:
            times = counts.astype(np.float64)
            found.append(times @ columns / len(columns) if per is None else _ratio(times @ columns, times @ per))
    return np.concatenate(found)


def draws(n: int) -> Iterator[np.ndarray]:
    """How often each of n samples is drawn, [r,n] in parts that bound the memory; RESAMPLES rows in all."""
    if RESAMPLES * n > KEPT:
        yield from _new_draws(n)
        return
    counts, part = _kept_draws(n), max(1, PART // n)
    yield from (counts[start : start + part] for start in range(0, RESAMPLES, part))


@functools.lru_cache(maxsize=2)
def _kept_draws(n: int) -> np.ndarray:
    return np.concatenate(list(_new_draws(n)))


@functools.lru_cache(maxsize=2)
def _kept_times(n: int) -> np.ndarray:
    """The draws as factors of sums."""
    return _kept_draws(n).astype(np.float64)


def _new_draws(n: int) -> Iterator[np.ndarray]:
    random, part = np.random.default_rng(0), max(1, PART // n)
    for start in range(0, RESAMPLES, part):
        rows = min(part, RESAMPLES - start)
        drawn = random.integers(0, n, size=(rows, n)) + n * np.arange(rows)[:, None]
        # A sample is drawn more than 255 times of n in no universe: bytes will do.
        yield np.bincount(drawn.ravel(), minlength=rows * n).reshape(rows, n).astype(np.uint8)


def _medians(counts: np.ndarray, column: np.ndarray) -> np.ndarray:
    """The median of each draw: where the counts of the sorted values pass the half."""
    order, n = np.argsort(column, kind="stable"), len(column)
    kind = np.uint8 if n < 2**8 else np.int16 if n < 2**15 else np.int32
    reached: np.ndarray = np.zeros(len(counts), dtype=kind)
    middle: np.ndarray = np.zeros((2, len(counts)), dtype=kind)
    half = np.array([[(n + 1) // 2], [n // 2 + 1]], dtype=kind)
    # Value after value, all draws at once: several times as fast as sums along each draw.
    for times in np.ascontiguousarray(counts.T)[order]:
        reached += times
        middle += reached < half
    return column[order][middle].mean(axis=0)


def _left_out(column: np.ndarray, per: np.ndarray | None, kind: str) -> np.ndarray:
    """The statistic without each sample in turn, in closed form: [n] (the jackknife)."""
    n = len(column)
    if kind == "spearman":
        assert per is not None
        kept = ~np.eye(n, dtype=bool)
        return np.array([statistic(column[rest], per[rest], kind) for rest in kept])
    if kind == "r_squared":
        return _r_squared([term.sum() - term for term in _moments(column, per)])
    if kind == "determination":
        moments = [term.sum() - term for term in _moments(column, per)]
        return _determination(moments, (column.sum() - column) / (n - 1))
    if kind != "median":
        rest = column.sum() - column
        return rest / (n - 1) if per is None else _ratio(rest, per.sum() - per)
    order = np.argsort(column, kind="stable")
    values, place = column[order], np.empty(n, dtype=int)
    place[order] = np.arange(n)
    # The two middle places (equal if n - 1 is odd) of the values without the one at `place`.
    middle = ((n - 2) // 2, (n - 1) // 2)
    return np.mean([values[np.where(place > at, at, at + 1)] for at in middle], axis=0)


def _bca_levels(levels: np.ndarray, value: float, drawn: np.ndarray, left_out: np.ndarray) -> np.ndarray:
    """The quantiles of the draws at which the bias-corrected and accelerated interval ends (Efron 1987, eq. 2.3)."""
    # Draws that equal the value but for rounding count half, as in scipy.
    equal = np.abs(drawn - value) <= 1e-12 * abs(value)
    share = (((drawn < value) & ~equal).sum() + equal.sum() / 2) / len(drawn)
    bias = special.ndtri(np.clip(share, 1 / len(drawn), 1 - 1 / len(drawn)))
    influence = left_out.mean() - left_out
    spread = (influence**2).sum() ** 1.5
    acceleration = (influence**3).sum() / (6 * spread) if spread > 0 else 0.0
    shifted = bias + special.ndtri(levels)
    return special.ndtr(bias + shifted / (1 - acceleration * shifted))


def _quantiles(drawn: np.ndarray, levels: np.ndarray) -> list[float]:
    """np.quantile of finite values, to the bit; its generality takes three times as long, thousands of times."""
    drawn, found = np.sort(drawn), []
    for place in levels * (len(drawn) - 1):
        at = int(place)
        low, high, share = float(drawn[at]), float(drawn[min(at + 1, len(drawn) - 1)]), float(place - at)
        step = high - low
        found.append(high - step * (1 - share) if share >= 0.5 else low + step * share)
    return found


def _moments(column: np.ndarray, per: np.ndarray | None) -> list[np.ndarray]:
    """What, summed over samples, gives the line through a column over `per`: each term is of the column's shape."""
    assert per is not None  # `r_squared` has one
    x, y = per - per.mean(axis=0), column - column.mean(axis=0)
    return [np.ones_like(y), x, y, x * x, y * y, x * y]


def _r_squared(sums: Sequence[np.ndarray]) -> np.ndarray:
    """The squared correlation from sums over samples; NaN where x does not vary, 0 where only y does not."""
    n, x, y, xx, yy, xy = sums
    spread_x, spread_y = n * xx - x * x, n * yy - y * y
    explained = _ratio((n * xy - x * y) ** 2, spread_x * spread_y)
    return np.where(spread_x <= 1e-12 * n * xx, np.nan, np.where(spread_y <= 1e-12 * n * yy, 0.0, explained))


def _determination(sums: Sequence[np.ndarray], errors: np.ndarray) -> np.ndarray:
    """1 - mean squared error / variance of x, from the sums of `_moments`; NaN where x does not vary."""
    n, x, _, xx, _, _ = sums
    variance = xx / n - (x / n) ** 2
    return np.where(variance <= 1e-12 * xx / n, np.nan, 1 - _ratio(errors, variance))


def _thresholded(counts: np.ndarray, scores: np.ndarray, wanted: np.ndarray | None, kind: str) -> np.ndarray:
    """The area under the ROC curve, or the average precision, of scores [n] of which `wanted` [n] is 1 or 0, in draws
    that have each sample so many times [r,n] -> [r]; NaN where a draw has none that is wanted, or (area) no other."""
    assert wanted is not None  # as `Statistic` asks
    order = np.argsort(-scores, kind="stable")
    ends = np.append(np.diff(scores[order]) != 0, True)  # a threshold lies between different scores
    times = counts[:, order].astype(np.float64)
    hits = (times * wanted[order]).cumsum(axis=1)[:, ends]
    misses = (times * (1 - wanted[order])).cumsum(axis=1)[:, ends]
    before = np.concatenate([np.zeros_like(hits[:, :1]), hits[:, :-1]], axis=1)
    all_hits, all_misses = hits[:, -1], misses[:, -1]
    if kind == "roc_auc":
        gained = np.diff(misses, axis=1, prepend=0.0)
        return _ratio((gained * (hits + before) / 2).sum(axis=1), all_hits * all_misses)
    with np.errstate(divide="ignore", invalid="ignore"):
        precision = np.where(hits + misses > 0, hits / (hits + misses), 0.0)
    return _ratio(((hits - before) * precision).sum(axis=1), all_hits)


def _drawn_spearman(counts: np.ndarray, column: np.ndarray, per: np.ndarray) -> np.ndarray:
    """Spearman's correlation in draws [r,n] that say how often each of n samples is there: [r]."""
    times = counts.astype(np.float64)
    return _correlation(_drawn_ranks(times, column).T, _drawn_ranks(times, per).T, times.T)


def _drawn_ranks(times: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The mean rank that each of n values has in draws [r,n] of so many copies of each: [r,n]."""
    _, groups = np.unique(values, return_inverse=True)
    of_groups = times @ np.eye(groups.max() + 1)[groups]
    ranks = of_groups.cumsum(axis=1) - (of_groups - 1) / 2
    return ranks[:, groups]


def _correlation(x: np.ndarray, y: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Pearson's correlation over the first axis of x and y [n,...] with weights [n,...]; NaN where one is constant."""
    times = times.reshape(times.shape + (1,) * (x.ndim - times.ndim))
    total = times.sum(axis=0)
    x, y = (values - (times * values).sum(axis=0) / total for values in (x, y))
    spread = (times * x * x).sum(axis=0) * (times * y * y).sum(axis=0)
    return _ratio((times * x * y).sum(axis=0), np.sqrt(np.where(spread > 1e-12, spread, np.nan)))


def tied(one: Any, other: Any, typical: Any = 0.0, within: float = TIED) -> np.ndarray:
    """Whether values are equal but for rounding, whatever their unit: the one rule of ranks, tables and the gate.

    typical: the size of the values that they stand among, by which a rounded 0 is known. NaN equals nothing.
    """
    one, other = np.asarray(one, dtype=float), np.asarray(other, dtype=float)
    with np.errstate(invalid="ignore"):
        gap = np.abs(one - other)
        near = gap <= np.maximum(within * np.maximum(np.abs(one), np.abs(other)), ZERO * np.asarray(typical))
    return (one == other) | (near & np.isfinite(gap))


def places(badness: np.ndarray, method: Literal["min", "average"] = "min") -> np.ndarray:
    """Rows [...,m] -> ranks from 1 for the least bad; equal values (`tied`) share one, NaN has NaN.

    method: `min`, the better of the places that they fill (1, 1, 1, 4), as every table shows it; `average`, their mean
    (2, 2, 2, 4), as means and tests of ranks need it.
    """
    badness = np.asarray(badness, dtype=float)
    order = np.argsort(badness, axis=-1, kind="stable")
    ordered = np.take_along_axis(badness, order, axis=-1)
    sizes = np.where(np.isfinite(badness), np.abs(badness), 0.0)
    typical = np.median(sizes, axis=-1, keepdims=True)
    steps = ~tied(ordered[..., 1:], ordered[..., :-1], typical)
    edge = np.ones_like(ordered[..., :1], dtype=bool)
    place = np.arange(1.0, badness.shape[-1] + 1)
    # Of each run of equals the first place, and the last.
    first = np.maximum.accumulate(np.where(np.concatenate([edge, steps], axis=-1), place, 0), axis=-1)
    ranked = first
    if method == "average":
        ends = np.where(np.concatenate([steps, edge], axis=-1), place, np.inf)
        ranked = (first + np.minimum.accumulate(ends[..., ::-1], axis=-1)[..., ::-1]) / 2
    unordered = np.empty_like(ranked)
    np.put_along_axis(unordered, order, ranked, axis=-1)
    return np.where(np.isnan(badness), np.nan, unordered)


def _ratio(over: np.ndarray, under: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        return over / under

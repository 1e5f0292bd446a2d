"""Tests between methods on the same samples, and what many of them mean together: pure functions on numpy arrays.

Columns are [n,m]: n samples (or repeats) of m methods.
"""

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from scipy import special

from .statistics import CONFIDENCE, places, statistic

ALPHA = 1 - CONFIDENCE
SWAPS = 10_000
# Holm multiplies the smallest p by the number of pairs: it has to stay well below ALPHA for the pairs to be told apart.
SWAPS_PER_PAIR = 40
EXACT = 13  # up to this many samples every way of swapping is tried
BLOCKS = 1000  # more samples than this are exchanged in so many blocks
PART = 2**18  # numbers at a time, to stay within the processor's cache

Badness = Callable[[np.ndarray], np.ndarray]


def swap_test(columns: np.ndarray, per: np.ndarray | None, kind: str, badness: Badness) -> np.ndarray:
    """Two-sided p of every pair of methods [m,m] under a random exchange of the two methods within each sample.

    The tested quantity is the leaderboard's: the difference of badness(statistic), be it a mean, a ratio of means or a
    median. If neither method is better, the exchange changes nothing in distribution (Fisher's paired randomisation
    test; for a mean it flips the signs of the differences). All exchanges up to EXACT samples, else seeded draws of
    them, counting the observed one (Phipson and Smyth 2010). Samples that are exchanged in blocks leave the test as
    valid: such exchanges are a subgroup of all.
    """
    if len(columns) > BLOCKS and kind != "median":
        columns, per = _blocks(columns), None if per is None else _blocks(per)
    n, methods = columns.shape
    pairs = _pairs(methods)
    observed = _gap(columns, per, pairs, kind, badness)
    reached, total = np.zeros(len(pairs)), 0
    for signs in _signs(n, max(SWAPS, SWAPS_PER_PAIR * len(pairs)), PART // max(n, len(pairs), 1)):
        gaps = np.abs(_swapped_gaps(signs, columns, per, pairs, kind, badness))
        # As large as the observed one, but for rounding.
        reached += (gaps >= np.abs(observed) * (1 - 1e-9) - 1e-12 * gaps.max(axis=0)).sum(axis=0)
        total += len(signs)
    return _square(reached / total, pairs, methods)


def t_test(columns: np.ndarray, badness: Badness) -> np.ndarray:
    """Two-sided p [m,m] of the paired t test over repeats: too few of them to exchange, alike enough to be normal."""
    n, methods = columns.shape
    pairs = _pairs(methods)
    if n < 2:
        return np.ones((methods, methods))
    difference = badness(columns)[:, pairs[:, 0]] - badness(columns)[:, pairs[:, 1]]
    mean, error = difference.mean(axis=0), difference.std(axis=0, ddof=1) / np.sqrt(n)
    # Equal in every repeat: no difference; different by the same in every repeat: no doubt.
    t = np.divide(mean, error, out=np.where(mean == 0, 0.0, np.inf), where=error > 0)
    return _square(2 * special.stdtr(n - 1, -np.abs(t)), pairs, methods)


def holm(p: np.ndarray) -> np.ndarray:
    """Holm's step-down correction of p [k]: the chance of any false difference stays below ALPHA."""
    order, k = np.argsort(p, kind="stable"), len(p)
    stepped = np.minimum(1, np.maximum.accumulate(p[order] * (k - np.arange(k))))
    corrected = np.empty(k)
    corrected[order] = stepped
    return corrected


def holm_pairs(p: np.ndarray) -> np.ndarray:
    """Holm's correction over all pairs of a symmetric matrix [m,m]; the diagonal is 1."""
    pairs = _pairs(len(p))
    return _square(holm(p[pairs[:, 0], pairs[:, 1]]), pairs, len(p))


def ranks(badness: np.ndarray) -> np.ndarray:
    """Rows [...,m] -> ranks from 1 for the least bad, for means and tests of ranks: equal values share the mean."""
    return places(badness, "average")


def friedman(ranked: np.ndarray) -> float:
    """p of the hypothesis that ranks [n,m] within samples owe nothing to the method (with the correction for ties)."""
    n, methods = ranked.shape
    expected = (methods + 1) / 2
    spread = ((ranked - expected) ** 2).sum()
    if spread == 0:
        return 1.0
    between = n * ((ranked.mean(axis=0) - expected) ** 2).sum()
    return float(special.chdtrc(methods - 1, n * (methods - 1) * between / spread))


def critical_difference(methods: int, n: int) -> float:
    """Nemenyi's: mean ranks over n samples that lie further apart than this differ (Demsar 2006)."""
    return float(_studentized_range(methods) / np.sqrt(2) * np.sqrt(methods * (methods + 1) / (6 * n)))


@functools.cache
def _studentized_range(methods: int) -> float:
    from scipy import stats  # takes a second to import

    return float(stats.studentized_range.ppf(CONFIDENCE, methods, np.inf))


def kendalls_w(ranked: np.ndarray) -> float:
    """Kendall's W of the ranks [judges,m]: 1 if all rank alike, about 1 / judges if by chance. Ties corrected."""
    judges, methods = ranked.shape
    totals = ranked.sum(axis=0)
    ties = sum(((counts**3 - counts).sum()) for counts in (np.unique(row, return_counts=True)[1] for row in ranked))
    most = judges**2 * (methods**3 - methods) - judges * ties
    return float(12 * ((totals - totals.mean()) ** 2).sum() / most) if most else float("nan")


def correlations(ranked: np.ndarray) -> np.ndarray:
    """Spearman's correlation between the ranks of each pair of judges [judges,m] -> [judges,judges]; NaN for one that
    ranks all alike."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.corrcoef(ranked)


def groups(order: Sequence[int] | np.ndarray, differ: np.ndarray) -> list[list[int]]:
    """The largest groups without a pair that differs [m,m], each along `order` (best first): two methods share a group
    if, and only if, they are not told apart. A group of one differs from all others.

    A test can tell apart two neighbours and not the two around them, so that a group need not be a run along the order.
    Insert and absorb (Piepho 2004, J. Comput. Graph. Stat. 13:456).
    """
    found = [frozenset(range(len(order)))]  # of places along the order
    for one, other in itertools.combinations(range(len(order)), 2):
        if not differ[order[one], order[other]]:
            continue
        split = [group - {place} for group in found if {one, other} <= group for place in (one, other)]
        kept = [group for group in found if not {one, other} <= group]
        for group in sorted(split, key=len, reverse=True):
            if not any(group <= larger for larger in kept):
                kept.append(group)
        found = kept
    return [[order[place] for place in group] for group in sorted(map(sorted, found))]


def _pairs(methods: int) -> np.ndarray:
    """Every pair once: [pairs,2]."""
    return np.array(list(itertools.combinations(range(methods), 2)), dtype=int).reshape(-1, 2)


def _signs(n: int, wanted: int, part: int) -> Iterator[np.ndarray]:
    """Rows of -1 (exchange) and 1 (keep), [r,n] in parts of `part` rows; the first is the observed one."""
    if n <= EXACT:
        yield np.array(list(itertools.product((1.0, -1.0), repeat=n)))
        return
    random, rows = np.random.default_rng(0), max(1, part)
    yield np.ones((1, n))
    for start in range(0, wanted, rows):
        yield random.integers(0, 2, size=(min(rows, wanted - start), n)) * 2.0 - 1


def _blocks(columns: np.ndarray) -> np.ndarray:
    """[n,m] -> [BLOCKS,m] with the same mean; neighbours, who may be alike, go to different blocks."""
    return np.stack([columns[start::BLOCKS].sum(axis=0) for start in range(BLOCKS)]) * (BLOCKS / len(columns))


def _gap(columns: np.ndarray, per: np.ndarray | None, pairs: np.ndarray, kind: str, badness: Badness) -> np.ndarray:
    bad = badness(statistic(columns, per, kind))
    return bad[pairs[:, 0]] - bad[pairs[:, 1]]


def _swapped_gaps(
    signs: np.ndarray,
    columns: np.ndarray,
    per: np.ndarray | None,
    pairs: np.ndarray,
    kind: str,
    badness: Badness,
) -> np.ndarray:
    """The gap of every pair [pairs] in every exchange [r] -> [r,pairs]."""
    if kind == "median":
        found = np.empty((len(signs), len(pairs)))
        kept = np.ascontiguousarray(signs.T) > 0
        members = np.concatenate([kept, ~kept]).astype(np.int16 if len(kept) < 2**14 else np.int32)
        for at, (one, other) in enumerate(pairs):
            first, second = _exchanged_medians(members, np.concatenate([columns[:, one], columns[:, other]]))
            found[:, at] = badness(first) - badness(second)
        return found

    def means(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Of the first and of the second method of each pair: half the sum, and half the exchanged difference."""
        one, other = values[:, pairs[:, 0]], values[:, pairs[:, 1]]
        # Of each method alone: there are far fewer of them than pairs.
        signed = signs @ (values / (2 * len(values)))
        middle, half = (one + other).mean(axis=0) / 2, signed[:, pairs[:, 0]] - signed[:, pairs[:, 1]]
        return middle + half, middle - half

    first, second = means(columns)
    if per is not None:
        under_first, under_second = means(per)
        with np.errstate(divide="ignore", invalid="ignore"):
            first, second = first / under_first, second / under_second
    return badness(first) - badness(second)


def _exchanged_medians(members: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The medians of both methods of a pair in every exchange: [2,r].

    values [2n]: of the one method, then of the other; members [2n,r]: whether the first method has each value. Value
    after value, smallest first, all exchanges at once: sorting each takes many times as long.
    """
    n, order, kind = len(values) // 2, np.argsort(values, kind="stable"), members.dtype
    halves = np.array([(n + 1) // 2, n // 2 + 1], dtype=kind)[:, None, None]
    # No median lies among the first values, which are of fewer samples than half.
    fresh = np.zeros(2 * n, dtype=bool)
    fresh[np.unique(order % n, return_index=True)[1]] = True
    first = int(np.searchsorted(np.cumsum(fresh), (n + 1) // 2))
    reached = np.empty((2, members.shape[1]), dtype=kind)
    reached[0] = members[order[:first]].sum(axis=0)
    places = np.full((2, *reached.shape), first, dtype=kind)
    for passed, place in enumerate(order[first:], start=first + 1):
        reached[0] += members[place]
        np.subtract(kind.type(passed), reached[0], out=reached[1])
        below = reached < halves
        if passed > n and not below.any():
            break
        places += below
    return np.asarray(values[order][places].sum(axis=0) / 2)


def _square(values: np.ndarray, pairs: np.ndarray, methods: int) -> np.ndarray:
    square = np.ones((methods, methods))
    square[pairs[:, 0], pairs[:, 1]] = square[pairs[:, 1], pairs[:, 0]] = values
    return square

"""The tests of a study with people, as plain functions of numbers; scipy's where it has them.

The battery is that of Sixt 2022, chapter 6. A test that the data leave undefined (no spread at all, too few people) has
p = NaN, never a verdict.
"""

import math
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from scipy import stats

from ..scores import paired

# Of a directed test: that the first group is higher ("greater"), or lower ("less").
Alternative = Literal["two-sided", "greater", "less"]
# The same in the words of a plan: a condition is expected to be higher, or lower, than the baseline.
DIRECTIONS: Mapping[str, Alternative] = {"higher": "greater", "lower": "less"}


@dataclass(frozen=True)
class Found:
    """What a test found: its statistic, p in [0,1] (NaN: undefined), and the effect size r in [0,1] where there is one.

    n: how many people, or answers, it is about.
    """

    statistic: float
    p: float
    n: int
    r: float = math.nan


def mcnemar(first: np.ndarray, second: np.ndarray, alternative: Alternative = "two-sided") -> Found:
    """McNemar's exact test of two questions answered by the same people, each bool [n]: right or not.

    The statistic is b, who has the first right alone; with c, who has the second right alone, p is that of b out of
    b + c fair coins. "greater": the first is right more often. Undefined where b + c = 0: nobody differs.
    """
    b, c = int((first & ~second).sum()), int((second & ~first).sum())
    p = stats.binomtest(b, b + c, alternative=alternative).pvalue if b + c else math.nan
    return Found(b, float(p), len(first))


def rank_sum(one: np.ndarray, other: np.ndarray, alternative: Alternative = "two-sided") -> Found:
    """Wilcoxon's rank-sum test of two groups, [n] and [m]; "greater": the first is higher.

    The statistic is Z of the normal approximation, corrected for ties and not for continuity, positive where the first
    is higher; the effect size is r = |Z| / sqrt(n + m) (Rosenthal 1991). Undefined where all values are the same.
    """
    size = len(one) + len(other)
    found = stats.mannwhitneyu(one, other, use_continuity=False, alternative=alternative, method="asymptotic")
    ties = stats.tiecorrect(stats.rankdata(np.concatenate([one, other])))
    if ties == 0:
        return Found(math.nan, math.nan, size)
    spread = math.sqrt(ties * len(one) * len(other) * (size + 1) / 12)
    z = (float(found.statistic) - len(one) * len(other) / 2) / spread
    return Found(z, float(found.pvalue), size, abs(z) / math.sqrt(size))


def shapiro(values: np.ndarray) -> Found:
    """Shapiro and Wilk's test of normality of values [n]: W. Undefined for fewer than three, or all the same."""
    if len(values) < 3 or np.ptp(values) == 0:
        return Found(math.nan, math.nan, len(values))
    found = stats.shapiro(values)
    return Found(float(found.statistic), float(found.pvalue), len(values))


def kruskal(groups: Sequence[np.ndarray]) -> Found:
    """Kruskal and Wallis's test of groups, corrected for ties: H. Undefined where all values are the same."""
    return _of_groups(stats.kruskal, groups)


def levene(groups: Sequence[np.ndarray]) -> Found:
    """Levene's test of equal variances, about the means as he has it: W."""
    return _of_groups(stats.levene, groups, center="mean")


def anova(groups: Sequence[np.ndarray]) -> Found:
    """One-way analysis of variance: F, of equal variances."""
    return _of_groups(stats.f_oneway, groups)


def welch(groups: Sequence[np.ndarray]) -> Found:
    """Welch's analysis of variance (1951): F, of variances that differ. Undefined where a group has no variance."""
    return _of_groups(stats.f_oneway, groups, equal_var=False)


def _of_groups(test: Callable[..., Any], groups: Sequence[np.ndarray], **options: object) -> Found:
    size = sum(map(len, groups))
    if len(groups) < 2 or min(map(len, groups)) < 2 or np.ptp(np.concatenate(groups)) == 0:
        return Found(math.nan, math.nan, size)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a group without spread, whose result is not finite
        found = test(*groups, **options)
    statistic, p = float(found.statistic), float(found.pvalue)
    return Found(statistic, p, size) if math.isfinite(statistic) else Found(math.nan, math.nan, size)


def cohens_kappa(one: Sequence[str], other: Sequence[str]) -> float:
    """Cohen's kappa (1960) of two annotators' labels of the same people: 1 where they agree on all, 0 as by chance.

    NaN where both gave one label only, the same: chance alone agrees on all.
    """
    labels = sorted({*one, *other})
    first, second = (np.array([[label == known for known in labels] for label in given]) for given in (one, other))
    agreed = (first & second).any(axis=1).mean()
    by_chance = float(first.mean(axis=0) @ second.mean(axis=0))
    return float((agreed - by_chance) / (1 - by_chance)) if by_chance < 1 else math.nan


def krippendorffs_alpha(units: Sequence[Sequence[str]]) -> float:
    """Krippendorff's alpha (2004) of nominal labels: 1 where coders agree on all units, 0 as by chance.

    units: the labels that each unit was given, by as many coders as there were; those of one coder alone count nothing.
    NaN where there is one label only, or no unit with two.
    """
    counted = [Counter(labels) for labels in units if len(labels) > 1]
    total = sum(counted, Counter())
    size = total.total()
    by_chance = size**2 - sum(count**2 for count in total.values())
    if not by_chance:
        return math.nan
    differ = sum(
        (labels.total() ** 2 - sum(count**2 for count in labels.values())) / (labels.total() - 1) for labels in counted
    )
    return 1 - (size - 1) * differ / by_chance


def bonferroni(p: Sequence[float]) -> list[float]:
    """Bonferroni's correction of p [k]; what is undefined stays so, and counts as one of the k."""
    return [min(1.0, value * len(p)) if value == value else math.nan for value in p]


def holm(p: Sequence[float]) -> list[float]:
    """Holm's step-down correction (1979) of p [k]; what is undefined stays so, and counts as one of the k."""
    values = np.asarray(p, dtype=float)
    corrected = paired.holm(np.where(np.isnan(values), 1.0, values)) if len(values) else values
    return np.where(np.isnan(values), math.nan, corrected).tolist()

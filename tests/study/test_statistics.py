"""The tests of a study, against the thesis's numbers, scipy, statsmodels and closed forms."""

import math

import numpy as np
import pytest
from scipy import stats as scipy_stats

from xaibench.study import statistics

# How many answered right, in Sixt 2022, table 2: legs, color, background, shape, rotation.
INN, BASE = ((62, 51, 49, 56, 44), 62), ((61, 42, 68, 66, 50), 71)


def answers(right: int, of: int) -> np.ndarray:
    return np.arange(of) < right


def discordant(b: int, c: int) -> tuple[np.ndarray, np.ndarray]:
    """Answers to two questions of b people with the first alone right, c with the second alone, and 4 with both."""
    first = np.array([True] * b + [False] * c + [True] * 4)
    second = np.array([False] * b + [True] * c + [True] * 4)
    return first, second


def scores(seed: int, sizes=(14, 20, 9), centres=(2.0, 2.5, 4.0)) -> list[np.ndarray]:
    generator = np.random.default_rng(seed)
    return [generator.normal(c, 1 + c / 4, n) for n, c in zip(sizes, centres)]


def with_ties(seed: int) -> list[np.ndarray]:
    return [np.round(group).clip(0, 5) / 5 for group in scores(seed)]


@pytest.mark.parametrize(
    ("b", "c", "two_sided"), [(16, 0, 2 * 0.5**16), (10, 5, 0.3017578125), (5, 10, 0.3017578125), (3, 3, 1.0)]
)
def test_mcnemar_is_the_exact_binomial(b, c, two_sided):
    """The study's 16 to 0 is 3.05e-5, 10 to 5 is .3018; and statsmodels agrees."""
    contingency = pytest.importorskip("statsmodels.stats.contingency_tables")
    first, second = discordant(b, c)
    found = statistics.mcnemar(first, second)
    assert found.p == pytest.approx(two_sided, rel=1e-12) and found.statistic == b and found.n == b + c + 4
    table = [[4, b], [c, 0]]
    assert found.p == pytest.approx(min(1, contingency.mcnemar(table, exact=True).pvalue), rel=1e-12)
    if b > c:
        assert statistics.mcnemar(first, second, "greater").p == pytest.approx(two_sided / 2, rel=1e-12)
        assert statistics.mcnemar(first, second, "less").p > 0.5


def test_mcnemar_of_people_who_never_differ_has_no_verdict():
    assert math.isnan(statistics.mcnemar(*discordant(0, 0)).p)


@pytest.mark.parametrize("alternative", ["two-sided", "greater", "less"])
def test_rank_sum_by_its_formula(alternative):
    """Z from the rank sum W and the variance with ties written out; p from it; r = |Z| / sqrt(N)."""
    one, other, _ = with_ties(0)
    pooled = np.concatenate([one, other])
    size = len(pooled)
    ranks = [(pooled < v).sum() + ((pooled == v).sum() + 1) / 2 for v in pooled]
    tied = sum(t**3 - t for t in np.unique(pooled, return_counts=True)[1])
    variance = len(one) * len(other) / 12 * (size + 1 - tied / (size * (size - 1)))
    z = (sum(ranks[: len(one)]) - len(one) * (size + 1) / 2) / math.sqrt(variance)
    found = statistics.rank_sum(one, other, alternative)
    upper = 0.5 * math.erfc(z / math.sqrt(2))
    p = {"two-sided": math.erfc(abs(z) / math.sqrt(2)), "greater": upper, "less": 1 - upper}[alternative]
    assert (found.statistic, found.p, found.r) == pytest.approx((z, p, abs(z) / math.sqrt(size)), rel=1e-10)


def test_the_study_s_effect_size_and_p_belong_together():
    """r = .091 of 133 people is Z = 1.05 and one-sided .147; three times that is the reported .441."""
    z = 0.091 * math.sqrt(133)
    assert 3 * scipy_stats.norm.sf(z) == pytest.approx(0.441, abs=5e-4)
    # The statistic of `rank_sum` is that Z: the same p comes back from it.
    one, other, _ = with_ties(3)
    found = statistics.rank_sum(one, other, "greater")
    assert found.p == pytest.approx(scipy_stats.norm.sf(math.copysign(found.r, found.statistic) * math.sqrt(found.n)))


def test_attributes_of_the_thesis_s_counts():
    """Sixt 2022, section 6.4: color and background .033 by Holm over eight tests. From the table's counts the rank sums
    give .0022 for legs, .0039 for color, .0032 for background: eight times color is .031."""
    p = [
        statistics.rank_sum(answers(a, INN[1]), answers(b, BASE[1])).p for a, b in zip(INN[0], BASE[0])
    ]  # legs, color, background, shape, rotation
    assert p[:3] == pytest.approx([0.0022, 0.0039, 0.0032], abs=5e-5)
    assert 8 * p[1] == pytest.approx(0.033, abs=0.003)
    assert min(p[3:]) > 0.5  # reported as 1


def test_tests_of_groups_beside_statsmodels_and_formulas():
    oneway = pytest.importorskip("statsmodels.stats.oneway")
    for groups in (scores(1), with_ties(1)):
        welch, anova = (oneway.anova_oneway(groups, use_var=kind) for kind in ("unequal", "equal"))
        assert statistics.welch(groups).p == pytest.approx(welch.pvalue, rel=1e-9)
        assert statistics.welch(groups).statistic == pytest.approx(welch.statistic, rel=1e-9)
        assert statistics.anova(groups).p == pytest.approx(anova.pvalue, rel=1e-9)
        # Levene's W is the F of the distances from the means.
        distances = oneway.anova_oneway([abs(group - group.mean()) for group in groups], use_var="equal")
        assert statistics.levene(groups).p == pytest.approx(distances.pvalue, rel=1e-9)
        assert statistics.kruskal(groups).statistic == pytest.approx(kruskal_by_hand(groups), rel=1e-10)
        assert statistics.shapiro(groups[1]).p == scipy_stats.shapiro(groups[1]).pvalue


def kruskal_by_hand(groups) -> float:
    """H (Kruskal and Wallis 1952): the F-like ratio of sums of squares of ranks, which ties need no correction for."""
    ranks = scipy_stats.rankdata(np.concatenate(groups))
    parts = np.split(ranks, np.cumsum([len(group) for group in groups])[:-1])
    between = sum(len(part) * (part.mean() - ranks.mean()) ** 2 for part in parts)
    return (len(ranks) - 1) * between / ((ranks - ranks.mean()) ** 2).sum()


def test_welch_by_its_formula():
    """Welch (1951), equation 22, term by term: independent of scipy and statsmodels."""
    groups = scores(5)
    n, mean, variance = (np.array([f(g) for g in groups]) for f in (len, np.mean, lambda g: g.var(ddof=1)))
    w, k = n / variance, len(groups)
    grand = (w * mean).sum() / w.sum()
    lack = ((1 - w / w.sum()) ** 2 / (n - 1)).sum()
    f = (w * (mean - grand) ** 2).sum() / (k - 1) / (1 + 2 * (k - 2) / (k**2 - 1) * lack)
    found = statistics.welch(groups)
    assert found.statistic == pytest.approx(f, rel=1e-10)
    assert found.p == pytest.approx(scipy_stats.f.sf(f, k - 1, (k**2 - 1) / (3 * lack)), rel=1e-10)


def test_kappa_by_hand_and_beside_statsmodels():
    """20 and 15 agreed of 50, marginals 25/25 and 30/20: (.7 - .5) / (1 - .5)."""
    one = ["yes"] * 25 + ["no"] * 25
    other = ["yes"] * 20 + ["no"] * 5 + ["yes"] * 10 + ["no"] * 15
    assert statistics.cohens_kappa(one, other) == pytest.approx(0.4, rel=1e-12)
    rater = pytest.importorskip("statsmodels.stats.inter_rater")
    generator = np.random.default_rng(0)
    words = np.array(["include", "unsure", "exclude"])
    one = words[generator.integers(0, 3, 40)]
    other = np.where(generator.random(40) < 0.6, one, words[generator.integers(0, 3, 40)])
    table = np.array([[((one == a) & (other == b)).sum() for b in words] for a in words])
    expected = rater.cohens_kappa(table, return_results=False)
    assert statistics.cohens_kappa(one.tolist(), other.tolist()) == pytest.approx(expected, rel=1e-12)
    assert math.isnan(statistics.cohens_kappa(["include"] * 3, ["include"] * 3))


def test_alpha_of_krippendorffs_own_example():
    """Four observers of twelve units, some missing: .743 (Krippendorff 2011, Computing Krippendorff's alpha)."""
    observers = ["123321412...", "1233224125.3", ".3332342251.", "12332441251."]
    units = [[labels[unit] for labels in observers if labels[unit] != "."] for unit in range(12)]
    assert statistics.krippendorffs_alpha(units) == pytest.approx(0.743, abs=5e-4)


def test_alpha_of_two_coders_is_scotts_pi_of_a_small_sample():
    """1 - alpha = (1 - pi) (2n - 1) / 2n, where both have coded all n units."""
    generator = np.random.default_rng(1)
    one, other = generator.integers(0, 3, (2, 15))
    other[:9] = one[:9]
    shares = np.bincount([*one, *other]) / 30
    pi = ((one == other).mean() - (shares**2).sum()) / (1 - (shares**2).sum())
    found = statistics.krippendorffs_alpha([[str(a), str(b)] for a, b in zip(one, other)])
    assert 1 - found == pytest.approx((1 - pi) * 29 / 30, rel=1e-12)
    assert statistics.krippendorffs_alpha([["a", "a"], ["b", "b"], ["a"]]) == 1
    assert math.isnan(statistics.krippendorffs_alpha([["a", "a"], ["b"]]))


def test_corrections_beside_statsmodels_with_a_gap_counted():
    multitest = pytest.importorskip("statsmodels.stats.multitest")
    p = [0.0022, 0.9, 0.0039, 0.04, 0.0032]
    for correct in (statistics.holm, statistics.bonferroni):
        expected = multitest.multipletests(p, method=correct.__name__)[1]
        assert correct(p) == pytest.approx(expected)
        gap = correct([*p, math.nan])
        assert math.isnan(gap[-1]) and gap[:5] == pytest.approx(
            multitest.multipletests([*p, 1.0], method=correct.__name__)[1][:5]
        )
    assert statistics.holm([]) == [] == statistics.bonferroni([])


@pytest.mark.parametrize("test", [statistics.kruskal, statistics.levene, statistics.anova, statistics.welch])
def test_groups_without_spread_have_no_verdict(test):
    same = [np.full(5, 0.8), np.full(6, 0.8)]
    assert math.isnan(test(same).p) and math.isnan(test([np.array([1.0]), np.array([0.0, 1.0])]).p)


def test_one_group_without_spread_is_no_verdict_of_welch():
    assert math.isnan(statistics.welch([np.ones(5), np.array([0.2, 0.4, 0.6])]).p)
    assert math.isnan(statistics.rank_sum(np.ones(4), np.ones(5)).p)
    assert math.isnan(statistics.shapiro(np.ones(9)).p) and math.isnan(statistics.shapiro(np.array([0.0, 1.0])).p)

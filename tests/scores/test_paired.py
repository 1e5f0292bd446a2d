"""Tests between methods, against scipy, brute force and published tables."""

import itertools

import numpy as np
import pytest
from scipy import stats as scipy_stats

from xaibench.scores import paired


@pytest.fixture
def random():
    return np.random.default_rng(7)


def higher(values):
    return -values


def to_target(values):
    return np.abs(values - 0.4)


@pytest.mark.parametrize(("kind", "ratio"), [("mean", False), ("mean", True), ("median", False)])
@pytest.mark.parametrize("badness", [higher, to_target])
def test_all_exchanges_one_after_the_other(kind, ratio, badness, random):
    columns = random.uniform(size=(7, 3)) + np.array([0.0, 0.2, 0.5])
    per = random.uniform(0.5, 1.5, size=(7, 3)) if ratio else None

    def score(method):
        value = np.median(columns_[:, method]) if kind == "median" else columns_[:, method].mean()
        return badness(value / per_[:, method].mean() if ratio else value)

    expected = np.ones((3, 3))
    for one, other in ((0, 1), (0, 2), (1, 2)):
        gaps = []
        for exchanged in itertools.product((False, True), repeat=7):
            columns_, per_ = columns.copy(), None if per is None else per.copy()
            for row in np.flatnonzero(exchanged):
                for array in (columns_, per_) if ratio else (columns_,):
                    array[row, [one, other]] = array[row, [other, one]]
            gaps.append(abs(score(one) - score(other)))
        expected[one, other] = expected[other, one] = np.mean(np.array(gaps) >= gaps[0] - 1e-12)
    np.testing.assert_allclose(paired.swap_test(columns, per, kind, badness), expected)


def test_a_mean_is_scipys_permutation_test(random):
    columns = random.normal(size=(60, 2)) + np.array([0.0, 0.2])
    theirs = scipy_stats.permutation_test(
        (columns[:, 0], columns[:, 1]), lambda x, y, axis: (x - y).mean(axis), permutation_type="samples",
        n_resamples=20000, vectorized=True, rng=1,
    )  # fmt: skip
    assert 0.01 < theirs.pvalue < 0.5
    assert paired.swap_test(columns, None, "mean", higher)[0, 1] == pytest.approx(theirs.pvalue, abs=0.01)


def test_binary_columns_have_mcnemars_exact_test():
    columns = np.array([[1, 0]] * 9 + [[0, 1]] * 2 + [[1, 1], [0, 0]], dtype=float)
    exact = scipy_stats.binomtest(2, 11).pvalue
    assert paired.swap_test(columns, None, "proportion", higher)[0, 1] == pytest.approx(exact)


def test_parts_change_nothing(monkeypatch, random):
    columns = random.normal(size=(40, 4))
    whole = paired.swap_test(columns, None, "mean", higher)
    monkeypatch.setattr(paired, "PART", 4000)
    np.testing.assert_array_equal(paired.swap_test(columns, None, "mean", higher), whole)


def test_blocks_keep_the_quantity_and_the_answer(monkeypatch, random):
    columns, per = random.normal(size=(1500, 2)) + np.array([1.0, 1.06]), random.uniform(0.5, 1.5, size=(1500, 2))
    np.testing.assert_allclose(paired._blocks(columns).mean(axis=0), columns.mean(axis=0))
    p = [paired.swap_test(columns, under, "mean", higher)[0, 1] for under in (None, per)]
    monkeypatch.setattr(paired, "BLOCKS", 2000)
    assert p == pytest.approx(
        [paired.swap_test(columns, under, "mean", higher)[0, 1] for under in (None, per)], abs=0.1
    )


def test_many_methods_can_still_be_told_apart(random):
    """The smallest p that the draws allow survives Holm over all pairs."""
    columns = random.normal(size=(40, 26)) + 5 * np.arange(26)
    p = paired.holm_pairs(paired.swap_test(columns, None, "mean", higher))
    assert p[np.triu_indices(26, 1)].max() < 0.03


def test_repeats_have_the_paired_t_test(random):
    columns = random.normal(size=(4, 3)) + np.array([0.0, 1.0, 2.0])
    p = paired.t_test(columns, higher)
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert p[one, other] == pytest.approx(scipy_stats.ttest_rel(columns[:, one], columns[:, other]).pvalue)
    same = np.stack([columns[:, 0], columns[:, 0], columns[:, 0] + 1], axis=1)
    assert paired.t_test(same, higher)[0] == pytest.approx([1, 1, 0], abs=1e-12)
    assert (paired.t_test(columns[:1], higher) == 1).all()


def test_friedman_is_scipys_with_ties_and_kendalls_w_follows_from_it(random):
    ranked = paired.ranks(random.integers(0, 4, size=(30, 5)).astype(float))
    theirs = scipy_stats.friedmanchisquare(*ranked.T)
    assert paired.friedman(ranked) == pytest.approx(theirs.pvalue)
    assert paired.kendalls_w(ranked) == pytest.approx(theirs.statistic / (30 * 4))
    assert paired.kendalls_w(np.tile([1.0, 2.0, 3.0], (4, 1))) == pytest.approx(1)
    assert paired.friedman(np.full((5, 3), 2.0)) == 1


def test_the_critical_difference_is_demsars():
    """Demsar 2006: table 5(a), and his example of four classifiers on fourteen data sets."""
    table = [1.960, 2.343, 2.569, 2.728, 2.850, 2.949, 3.031, 3.102, 3.164]
    for methods, q in enumerate(table, start=2):
        found = paired.critical_difference(methods, 14) / np.sqrt(methods * (methods + 1) / (6 * 14))
        assert found == pytest.approx(q, abs=0.0011)
    assert paired.critical_difference(4, 14) == pytest.approx(1.25, abs=0.005)


def test_correlations_are_spearmans(random):
    ranked = paired.ranks(random.integers(0, 6, size=(3, 8)).astype(float))
    np.testing.assert_allclose(paired.correlations(ranked), scipy_stats.spearmanr(ranked, axis=1).statistic)


def test_groups_are_the_largest_without_a_difference():
    differ = np.zeros((4, 4), dtype=bool)
    for one, other in ((0, 2), (0, 3), (1, 3)):
        differ[one, other] = differ[other, one] = True
    assert paired.groups([0, 1, 2, 3], differ) == [[0, 1], [1, 2], [2, 3]]
    assert paired.groups([0, 1, 2, 3], np.zeros((4, 4), dtype=bool)) == [[0, 1, 2, 3]]
    assert paired.groups([2, 0, 1, 3], ~np.eye(4, dtype=bool)) == [[2], [0], [1], [3]]
    # Only the two in the middle are told apart: no run along the order holds the ends with either.
    differ = np.zeros((4, 4), dtype=bool)
    differ[1, 2] = differ[2, 1] = True
    assert paired.groups([0, 1, 2, 3], differ) == [[0, 1, 3], [0, 2, 3]]

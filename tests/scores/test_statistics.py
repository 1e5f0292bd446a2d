"""Estimates and intervals against scipy and closed forms; the leaderboard's ranks."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats as scipy_stats
from sklearn import metrics

from tests.cells import cell
from xaibench.scores import leaderboard, statistics

RNG = np.random.default_rng(5)
COLUMN = RNG.gamma(2.0, size=80)
PER = RNG.uniform(0.5, 1.5, size=80)


def ratio(over, under, axis):
    return over.mean(axis) / under.mean(axis)


def r_squared(y, x, axis):
    """Of the least-squares line: one less the residuals' share of the variance."""
    y, x = (values - values.mean(axis, keepdims=True) for values in (y, x))
    slope = (x * y).sum(axis, keepdims=True) / (x * x).sum(axis, keepdims=True)
    return 1 - ((y - slope * x) ** 2).sum(axis) / (y**2).sum(axis)


def determination(errors, labels, axis):
    return 1 - errors.mean(axis) / labels.var(axis)


def spearman(y, x, axis):
    y, x = (scipy_stats.rankdata(values, axis=axis) for values in (y, x))
    y, x = (values - values.mean(axis, keepdims=True) for values in (y, x))
    return (x * y).sum(axis) / np.sqrt((x * x).sum(axis) * (y * y).sum(axis))


@pytest.mark.parametrize("bootstrap", ["bca", "percentile"])
@pytest.mark.parametrize(
    ("data", "kind", "statistic"),
    [
        ((COLUMN,), "mean", np.mean),
        ((COLUMN,), "median", np.median),
        ((COLUMN, PER), "mean", ratio),
        ((COLUMN + 2 * PER, PER), "r_squared", r_squared),
        ((COLUMN, 3 * PER), "determination", determination),
        ((np.round(COLUMN + 2 * PER, 1), PER), "spearman", spearman),
    ],
    ids=["mean", "median", "ratio", "r_squared", "determination", "spearman"],
)
def test_the_interval_is_scipys_bootstrap(data, kind, statistic, bootstrap, monkeypatch):
    """To the precision of 20000 draws on both sides; a median's draws take few values."""
    monkeypatch.setattr(statistics, "RESAMPLES", 20000)
    statistics._kept_draws.cache_clear()
    found = statistics.estimate(*data, *[None] * (2 - len(data)), kind, bootstrap)
    statistics._kept_draws.cache_clear()
    theirs = scipy_stats.bootstrap(
        data, statistic, n_resamples=20000, method={"bca": "BCa"}.get(bootstrap, bootstrap), paired=True, rng=1
    ).confidence_interval
    assert found.value == pytest.approx(statistic(*data, axis=0))
    off = (0.1 if kind == "median" else 0.02) * (theirs.high - theirs.low)
    assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high), abs=off)
    assert (found.n, found.interval) == (80, bootstrap)


JACKKNIFED = [(None, "mean"), (PER, "mean"), (None, "median"), (PER, "r_squared"), (PER, "determination")]
JACKKNIFED += [(PER, "spearman")]


@pytest.mark.parametrize(("per", "kind"), JACKKNIFED)
@pytest.mark.parametrize("n", [2, 3, 20, 21])
def test_the_jackknife_in_closed_form_leaves_each_sample_out(per, kind, n):
    column, per = np.round(COLUMN[:n], 1), None if per is None else per[:n]  # rounded: ties too
    slow = [
        statistics.statistic(np.delete(column, i), None if per is None else np.delete(per, i), kind) for i in range(n)
    ]
    np.testing.assert_allclose(statistics._left_out(column, per, kind), slow, rtol=1e-12)


@pytest.mark.parametrize("kind", statistics.THRESHOLDED)
def test_areas_under_curves_are_scikit_learns(kind, monkeypatch):
    """The values with and without ties, and the bootstrap's ends by scikit-learn on the same draws."""
    theirs = {"roc_auc": metrics.roc_auc_score, "average_precision": metrics.average_precision_score}[kind]
    wanted = (RNG.random(80) < 0.3).astype(float)
    for scores in (COLUMN + wanted, np.round(COLUMN + wanted)):
        assert statistics.estimate(scores, wanted, kind).value == pytest.approx(theirs(wanted, scores), abs=1e-12)
    monkeypatch.setattr(statistics, "RESAMPLES", 200)
    statistics._kept_draws.cache_clear()
    (counts,) = statistics.draws(80)
    drawn = [theirs(wanted, scores, sample_weight=times) for times in counts]
    found = statistics.estimate(scores, wanted, kind)
    statistics._kept_draws.cache_clear()
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(drawn, [0.025, 0.975])), abs=1e-12)
    assert found.interval == "percentile"


def test_a_class_that_nobody_or_everybody_has_leaves_its_area_undefined():
    for wanted in (np.zeros(80), np.ones(80)):
        assert np.isnan(statistics.estimate(COLUMN, wanted, "roc_auc").value)


def test_spearman_is_scipys_in_every_draw_and_undefined_for_what_does_not_vary():
    column, per = np.round(COLUMN, 1), np.round(PER, 1)  # ties
    assert float(statistics.statistic(column, per, "spearman")) == pytest.approx(
        scipy_stats.spearmanr(column, per).statistic
    )
    drawn = statistics.resampled(column[:, None], per[:, None], "spearman")[:, 0]
    counts = np.concatenate(list(statistics.draws(80)))
    for number in range(5):
        rows = np.repeat(np.arange(80), counts[number])
        assert drawn[number] == pytest.approx(scipy_stats.spearmanr(column[rows], per[rows]).statistic)
    for constant in ((np.ones(80), per), (column, np.ones(80)), (column[:1], per[:1])):
        assert np.isnan(statistics.estimate(*constant, "spearman").value)


def test_r_squared_of_what_does_not_vary():
    found = statistics.estimate(np.zeros(80), PER, "r_squared")
    assert (found.value, found.low, found.high) == (0, 0, 0)  # nothing changes: nothing is directed
    assert np.isnan(statistics.estimate(COLUMN, np.ones(80), "r_squared").value)
    assert statistics.estimate(3 - 2 * PER, PER, "r_squared").value == pytest.approx(1)


def test_what_would_divide_by_nothing_is_undefined():
    nothing = np.zeros(40)
    found = statistics.estimate(np.arange(40.0), nothing, "mean")
    assert math.isnan(found.value) and math.isnan(found.low) and math.isnan(found.high) and found.n == 40
    # One sample alone carries the denominator: the value is there, an interval over samples is not.
    nothing[7] = 2.0
    found = statistics.estimate(np.arange(40.0), nothing, "mean")
    assert found.value == pytest.approx(np.arange(40.0).sum() / 2)
    assert math.isnan(found.low) and math.isnan(found.high) and found.interval == "none"


def test_a_ratio_of_a_column_to_itself_has_no_spread():
    """Resampled apart it would."""
    assert statistics.estimate(PER, PER, "mean").high == pytest.approx(1.0)


def test_columns_without_spread_say_so():
    found = statistics.estimate(np.full(9, 0.25), None, "mean")
    assert (found.value, found.low, found.high, found.interval) == (0.25, 0.25, 0.25, "equal")
    assert statistics.estimate(np.array([0.25]), None, "mean").interval == "none"
    # One value in fifty that is another: skewed as can be, and still an interval.
    rare = statistics.estimate(np.array([1.0] + [0.0] * 49), None, "mean")
    assert 0 <= rare.low < rare.value < rare.high < 0.2


def test_few_samples_are_marked_where_the_interval_is_the_bootstraps():
    assert statistics.few(statistics.FEW - 1, "mean") and not statistics.few(statistics.FEW, "median")
    assert not statistics.few(3, "repeats") and not statistics.few(3, "proportion")
    assert leaderboard.table([cell("a", [0.0, 1.0])])["few"].all()
    assert not leaderboard.table([cell("a", [0.0, 1.0] * 20)])["few"].any()


def test_a_median_is_the_median():
    assert statistics.estimate(COLUMN, None, "median").value == np.median(COLUMN)


def test_a_proportion_has_wilsons_interval():
    hits = np.array([1.0] * 7 + [0.0] * 3)
    found = statistics.estimate(hits, None, "proportion")
    z, p, n = 1.959963984540054, 0.7, 10
    centre, half = (p + z**2 / (2 * n)), z * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    assert (found.value, found.n) == (0.7, 10)
    assert found.low == pytest.approx((centre - half) / (1 + z**2 / n))
    assert found.high == pytest.approx((centre + half) / (1 + z**2 / n))


def test_repeats_have_students_interval():
    found = statistics.estimate(np.array([1.0, 2.0, 4.0]), None, "repeats")
    low, high = scipy_stats.t.interval(0.95, 2, loc=7 / 3, scale=scipy_stats.sem([1, 2, 4]))
    assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))


def test_memory_bounds_do_not_change_the_draws(monkeypatch):
    whole = [statistics.estimate(COLUMN, PER, "mean"), statistics.estimate(COLUMN, None, "median")]
    monkeypatch.setattr(statistics, "PART", 800)
    for kept in (statistics.KEPT, 0):
        monkeypatch.setattr(statistics, "KEPT", kept)
        statistics._kept_draws.cache_clear()
        assert [statistics.estimate(COLUMN, PER, "mean"), statistics.estimate(COLUMN, None, "median")] == whole


def test_nothing_gives_nothing():
    assert statistics.estimate(np.empty(0), None, "mean").n == 0
    assert np.isnan(statistics.estimate(np.empty(0), None, "mean").value)


@pytest.mark.parametrize(
    ("direction", "target", "ranks"),
    [("higher", None, {"a": 1, "b": 2, "c": 2, "d": 4}), ("lower", None, {"a": 4, "b": 2, "c": 2, "d": 1}),
     ("target", 0.3, {"a": 4, "b": 1, "c": 1, "d": 3})],
)  # fmt: skip
def test_ranks_follow_the_direction_and_share_ties(direction, target, ranks):
    means = {"a": 0.9, "b": 0.4, "c": 0.4, "d": 0.1}
    board = leaderboard.table([cell(m, [v, v], direction=direction, target=target) for m, v in means.items()])
    assert dict(zip(board["method"], board["rank"])) == ranks


def test_only_comparable_cells_are_ranked_together():
    board = leaderboard.table([cell("a", [1, 1]), cell("b", [0, 0], sample_key="t"), cell("c", [0, 0], metric_key="n")])
    assert board["rank"].tolist() == [1, 1, 1]


def test_undefined_cells_have_no_rank():
    board = leaderboard.table([cell("a", [1, 1]), cell("b", [np.nan, np.nan])]).set_index("method")
    assert board.loc["a", "rank"] == 1
    assert pd.isna(board.loc["b", "rank"])
    assert (board.loc["b", "n"], board.loc["b", "excluded"]) == (0, 2)


def test_the_csv_is_byte_stable_whatever_the_order_of_the_cells():
    cells = [cell(m, COLUMN[:9] * k) for k, m in enumerate("badc", 1)]
    text = leaderboard.to_csv(leaderboard.table(cells))
    assert text == leaderboard.to_csv(leaderboard.table(cells[::-1]))
    assert leaderboard.to_csv(leaderboard.read_text(text)) == text

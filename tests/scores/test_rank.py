"""From score files to tests, ranks and flags, in worlds where the answer is known."""

import io
import itertools
import sys

import numpy as np
import pandas as pd
import pytest
from scipy.stats import ttest_rel

from tests.cells import cell
from xaibench.report import terminal
from xaibench.scores import leaderboard, rank
from xaibench.scores.rank import Contestant

NOISE = np.random.default_rng(3).normal(size=(40, 8))


def world(means, **how):
    """Cells whose samples scatter by 1 around these means, each method with a noise of its own."""
    return [cell(method, NOISE[:, at] + mean, **how) for at, (method, mean) in enumerate(means.items())]


def one(cells):
    (found,) = rank.comparisons(cells)
    return found


def test_what_is_far_apart_differs_and_what_is_near_does_not():
    found = one(world({"a": 3.0, "b": 0.0, "c": 0.02}))
    at = {method.name: place for place, method in enumerate(found.contestants)}
    assert found.differ[at["a"], [at["b"], at["c"]]].all() and not found.differ[at["b"], at["c"]]
    assert dict(zip(at, found.letters)) == {"a": "a", "b": "b", "c": "b"}
    assert found.ranks[at["a"]] == 1 and found.best[at["a"]] == 1
    low, high = found.rank_intervals
    assert (low[at["a"]], high[at["a"]]) == (1, 1)
    assert (low[at["b"]], high[at["b"]]) == (2, 3)
    np.testing.assert_allclose(found.shares.sum(axis=1), 1)
    assert found.shares[at["a"]].tolist() == [1, 0, 0]
    assert found.friedman_p < 1e-6
    assert [at["a"]] == found.nemenyi_groups[0]
    assert not found.control_wins and not found.cannot_tell


@pytest.mark.parametrize(
    ("direction", "target", "best"),
    [("higher", None, "a"), ("lower", None, "c"), ("target", 4.0, "a"), ("target", -9.0, "c")],
)
def test_the_direction_decides_who_is_best(direction, target, best):
    found = one(world({"a": 3.0, "b": 0.0, "c": -4.0}, direction=direction, target=target))
    assert found.contestants[found.order[0]].name == best
    assert found.best.max() == 1
    assert found.differ[np.triu_indices(3, 1)].all()


@pytest.mark.parametrize(
    ("means", "controls", "cannot_tell"),
    [
        ({"gradcam": 3.0, "gradient": 0.0, "random": 0.0}, (), False),
        ({"gradcam": 3.0, "gradient": 0.0, "sobel": 5.0}, ("sobel",), False),
        ({"gradcam": 3.0, "gradient": 0.0, "sobel": 2.95}, ("sobel",), False),
        ({"gradcam": 0.0, "gradient": 0.0, "constant": -3.0}, (), True),
        # The truth is no control, and no rival either.
        ({"gradcam": 0.0, "gradient": 0.0, "oracle": 3.0}, (), True),
        ({"gradcam": 3.0, "oracle": 5.0}, (), False),
        ({"gradcam": 0.0, "gradient": 0.0, "counterfactual": 3.0}, (), True),
        ({"random": 0.0, "constant": 0.0}, (), False),
    ],
)
def test_flags(means, controls, cannot_tell):
    found = one(world(means))
    assert tuple(method.name for method in found.winning_controls) == controls
    assert found.cannot_tell is cannot_tell


def test_binary_scores_and_repeats_have_tests_of_their_own():
    hits = one([cell("a", [1.0] * 30 + [0.0] * 10, kind="proportion"), cell("b", [0.0] * 40, kind="proportion")])
    assert hits.p[0, 1] < 0.001
    repeats = one([cell(m, [0.25, 0.5, mean], kind="repeats") for m, mean in {"a": 0.75, "b": 0.5}.items()])
    assert repeats.p[0, 1] == pytest.approx(ttest_rel([0.25, 0.5, 0.75], [0.25, 0.5, 0.5]).pvalue)
    assert repeats.few


def test_all_are_compared_on_the_samples_that_all_have():
    a, b, c = (NOISE[:, at] + mean for at, mean in enumerate((2.0, 0.0, 1.0)))
    b[:4], c[2:] = np.nan, np.nan
    found = one([cell("a", a), cell("b", b), cell("c", c)])
    assert (found.n, found.left_out) == (36, (Contestant("c"),))
    np.testing.assert_allclose(found.values, [a[4:].mean(), b[4:].mean()])


def test_reruns_under_other_seeds_are_no_further_methods():
    reruns = [cell("a", NOISE[:, 5], variant=f"seed={seed}") for seed in (1, 2)]
    assert [str(m) for m in one([*world({"a": 0.0, "b": 1.0}), *reruns]).contestants] == ["a", "b"]
    assert [str(m) for m in one(reruns).contestants] == ["a (seed=1)", "a (seed=2)"]


def test_nothing_to_compare():
    assert rank.comparisons([]) == []
    assert rank.comparisons(world({"a": 0.0})) == []
    assert rank.comparisons([cell("a", [np.nan] * 3), cell("b", [1.0] * 3)]) == []


def test_overall_shows_agreement_and_disagreement():
    means = {"a": 9.0, "b": 6.0, "c": 3.0, "random": 0.0, "oracle": 20.0}
    reverse = {"a": 3.0, "b": 6.0, "c": 9.0, "random": 0.0}
    alike = rank.comparisons([*world(means, metric="m1"), *world(means, metric="m2")])
    (view,) = rank.overall(alike)
    assert [m.name for m in view.contestants] == ["a", "b", "c", "random"]
    assert view.mean_ranks.tolist() == [1, 2, 3, 4]
    assert (view.agreement, view.agreement_methods) == (1, 1)
    np.testing.assert_allclose(view.correlations, 1)
    (view,) = rank.overall(rank.comparisons([*world(means, metric="m1"), *world(reverse, metric="m3")]))
    # W of two judges is (1 + Spearman's correlation) / 2.
    assert view.correlations[0, 1] == pytest.approx(0.2)
    assert (view.agreement, view.agreement_methods) == (pytest.approx(0.6), pytest.approx(0.0))
    assert (view.low[0], view.high[0]) == (1, 3)


def test_overall_leaves_out_and_names_what_it_cannot_rank_everywhere():
    means = {"a": 9.0, "b": 6.0, "c": 3.0, "d": 1.0, "e": 0.0}
    narrow = [*world({"a": 1.0, "b": 2.0}, metric="m3")]
    without_e = world({"a": 9.0, "b": 6.0, "c": 3.0, "d": 1.0}, metric="m2")
    (view,) = rank.overall(rank.comparisons([*world(means, metric="m1"), *without_e, *narrow]))
    assert [m.name for m in view.contestants] == ["a", "b", "c", "d"]
    assert [m.name for m in view.left_out] == ["e"]
    assert [c.metric for c in view.thin] == ["m3"]


def test_rows_for_files():
    found = rank.comparisons(world({"gradcam": 3.0, "gradient": 0.0, "sobel": 5.0}))
    methods, pairs = rank.method_rows(found), rank.pair_rows(found)
    assert methods["method"].tolist() == ["sobel", "gradcam", "gradient"]
    assert methods["control"].tolist() == [True, False, False]
    assert list(zip(pairs["better"], pairs["worse"])) == [
        ("sobel", "gradcam"), ("sobel", "gradient"), ("gradcam", "gradient"),
    ]  # fmt: skip
    assert (pairs["gap"] > 0).all()
    assert rank.metric_rows(found)["control_wins"].tolist() == ["sobel"]


def test_marks_say_what_no_method_beats():
    found = rank.comparisons(world({"gradcam": 0.0, "gradient": 0.0, "sobel": 5.0}))
    assert rank.marks(found) == "! mean: no method beats sobel; mean: no two methods differ (controls and truth aside)"
    assert rank.marks(rank.comparisons(world({"gradcam": 3.0, "gradient": 0.0}))) == ""


def test_equal_values_are_equal_whatever_their_unit_and_share_one_rank_everywhere():
    """The leaderboard, the ranks and the resampled ranks say the same: 1, 1, 1, 4."""
    for unit in (1e-15, 1.0, 1e12):
        values = {"a": 3.0, "b": 3.0 * (1 + 1e-13), "c": 3.0 * (1 - 1e-13), "d": 3.0 * (1 - 1e-6)}
        cells = [cell(method, [value * unit] * 6) for method, value in values.items()]
        found = one(cells)
        assert found.ranks.tolist() == leaderboard.table(cells)["rank"].tolist() == [1, 1, 1, 4]
        assert [low.tolist() for low in found.rank_intervals] == [[1, 1, 1, 4]] * 2
        assert found.sample_ranks.tolist() == [2, 2, 2, 4]  # which are averaged and tested
        assert [str(found.contestants[at]) for at in found.order] == ["a", "b", "c", "d"]
    # A zero has no unit of its own: what rounding leaves of it is told by the values beside it.
    rounded = {"a": 1e-17, "b": -1e-17, "c": -0.5, "d": -1.0}
    assert one([cell(method, [value] * 6) for method, value in rounded.items()]).ranks.tolist() == [1, 1, 3, 4]
    assert one([cell(m, [v] * 6) for m, v in {"a": 3e-17, "b": 1e-17, "c": 2e-17}.items()]).ranks.tolist() == [1, 3, 2]


def test_methods_share_a_letter_if_and_only_if_they_are_not_told_apart():
    """`control` is told apart from `a` and not from `z`, though it lies between them: z scatters."""
    steady = np.tile([0.0, 0.1], 20)
    values = {"a": steady + 1, "control": steady + 0.95, "z": steady + 0.9 + 3 * (NOISE[:, 0] - NOISE[:, 0].mean())}
    found = one([cell("random" if m == "control" else m, v) for m, v in values.items()])
    at = {c.name: place for place, c in enumerate(found.contestants)}
    assert [found.contestants[place].name for place in found.order] == ["a", "random", "z"]
    assert found.differ[at["a"], at["random"]] and not found.differ[at["a"], at["z"]]
    assert found.cannot_tell
    for this, that in itertools.combinations(range(3), 2):
        assert bool(set(found.letters[this]) & set(found.letters[that])) is not bool(found.differ[this, that])


def test_a_method_that_is_the_same_everywhere_has_no_best_and_worst_metric(capsys, monkeypatch):
    monkeypatch.setattr(terminal.stdout, "file", sys.stdout)
    means = {"a": 9.0, "b": 6.0, "c": 3.0}
    swapped = {"a": 9.0, "b": 3.0, "c": 6.0}
    cells = [*world(means, metric="m1"), *world(means, metric="m2"), *world(swapped, metric="m3")]
    terminal.overall(rank.overall(rank.comparisons(cells)))
    out = capsys.readouterr().out
    rows = {line.split("│")[3].strip(): [part.strip() for part in line.split("│")[4:6]] for line in out.splitlines()
            if line.startswith("│")}  # fmt: skip
    assert rows == {
        "a": ["the same under all (1)", ""],
        "b": ["m1 and 1 more (2)", "m3 (3)"],
        "c": ["m3 (2)", "m1 and 1 more (3)"],
    }
    # Metrics that rank all alike have no correlation to be furthest apart by.
    same = [cell(method, [1.0] * 6, metric=metric) for method in "ab" for metric in ("m1", "m2")]
    terminal.overall(rank.overall(rank.comparisons(same)))
    assert "furthest" not in capsys.readouterr().out


def test_the_command_line_shows_ranks_and_writes_them(xaibench):
    sweep = ("method=saliency,gradcam,random,constant", "metric=pointing_game,complexity", "dataset.limit=16")
    assert xaibench("run", "-m", *sweep)[0] == 0
    code, out, _ = xaibench("rank", "--metric", "pointing_game", "--metric", "complexity")
    assert code == 0
    assert "pointing_game ↑ · 16 samples" in out and "all 2 metrics" in out and "Kendall's W" in out
    rows = pd.read_csv(io.StringIO(xaibench("rank", "--csv", "methods")[1]))
    pointing = rows[rows["metric"] == "pointing_game"].set_index("method")
    assert set(pointing.index) == {"saliency", "gradcam", "random", "constant"}
    board = pd.read_csv("results/leaderboard.csv").set_index(["method", "statistic"])
    for method in pointing.index:
        assert pointing.loc[method, "value"] == board.loc[(method, "pointing_game"), "value"]
    assert len(pd.read_csv(io.StringIO(xaibench("rank", "--csv", "pairs")[1]))) == 2 * 6
    code, out, _ = xaibench("leaderboard", "--metric", "pointing_game")
    assert code == 0 and "no method beats" not in out
    code, _, said = xaibench("rank", "--metric", "pointing_gam")
    assert code == 2 and "did you mean 'pointing_game'?" in said
    code, out, said = xaibench("rank", "--method", "saliency")
    assert (code, out) == (0, "") and "two methods" in said


def test_what_asks_the_network_for_its_counterfactual_is_an_oracle():
    asked = rank.Contestant("integrated_gradients", "baseline=counterfactual_same,steps=10")
    plain = rank.Contestant("integrated_gradients", "baseline=black")
    truth = rank.Contestant("counterfactual", "goal=quantile:0.9")
    assert [one.is_rival for one in (asked, plain, truth)] == [False, True, False]

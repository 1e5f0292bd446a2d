"""Tables through the command line: trained, explained, scored by removal and by retraining on chosen columns."""

import io
import itertools
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
from scipy import stats

# Every corner of a cube 500 times: in a split columns are nearly orthogonal, and R squared nearly a sum of squares.
WEIGHTS = {"a": 1, "b": 3, "c": 2}
SQUARES = {name: weight**2 / 14 for name, weight in WEIGHTS.items()}


@pytest.fixture
def cube(here: Path) -> list[str]:
    rows = [
        (*corner, sum(w * x for w, x in zip(WEIGHTS.values(), corner)))
        for corner in itertools.product((-1, 1), repeat=3)
    ]
    pd.DataFrame(rows * 500, columns=[*WEIGHTS, "y"]).to_csv("cube.csv", index=False)
    return [
        "run",
        "model=linear",
        "model.input_size=[1,1,3]",
        "dataset=table",
        "dataset.path=cube.csv",
        "dataset.folds=4",
    ]


def statistics(metric: str) -> dict[str, float]:
    board = pd.read_csv("results/leaderboard.csv")
    return dict(board[board.metric == metric][["statistic", "value"]].itertuples(index=False))


@pytest.mark.parametrize("shared", ["true", "false"])
def test_retraining_without_a_column_loses_its_share_of_the_variance(shared, cube, xaibench):
    """R squared of a linear network is the sum of the squares of the columns that it is left with."""
    retrained = ["method=saliency", f"metric.shared={shared}", "metric.fractions=[0.34,0.67]", "metric.repeats=1"]
    for metric in ("roar", "kar"):
        assert xaibench(*cube, *retrained, f"metric={metric}")[0] == 0
    roar, kar = statistics("roar"), statistics("kar")
    assert roar["r2_at_0.34"] == pytest.approx(SQUARES["a"] + SQUARES["c"], abs=0.08)
    assert roar["r2_at_0.67"] == pytest.approx(SQUARES["a"], abs=0.08)
    assert kar["r2_at_0.34"] == pytest.approx(SQUARES["b"] + SQUARES["c"], abs=0.08)
    assert kar["r2_at_0.67"] == pytest.approx(SQUARES["b"], abs=0.08)
    points = [(0, 1), (0.34, roar["r2_at_0.34"]), (0.67, roar["r2_at_0.67"])]
    area = sum((x2 - x1) * (y1 + y2) / 2 for (x1, y1), (x2, y2) in itertools.pairwise(points))
    assert roar["roar_auc"] == pytest.approx(area, abs=1e-3)


def test_agreement_with_exact_shapley_values(cube, xaibench):
    """Of a linear network these are w x: so is input times gradient; the gradient, w, agrees as far as signs allow."""
    for method in (["exact_shapley", "method.players=3"], ["input_x_gradient"], ["gradient"]):
        assert xaibench(*cube, f"method={method[0]}", *method[1:], "metric=sparseness", "dataset.limit=12")[0] == 0
    code, out, _ = xaibench("rank", "--csv", "maps")
    rows = pd.read_csv(io.StringIO(out)).set_index(["method", "other"])
    (path,) = Path("cache/maps").rglob("exact_shapley/*/shard-*.h5")
    with h5py.File(path) as file:
        values = file["maps"][()].reshape(12, 3)
    weights = np.array(list(WEIGHTS.values()))
    np.testing.assert_allclose(values, weights * np.sign(values), rtol=0.1)
    expected = np.mean([stats.spearmanr(row, weights).statistic for row in weights * np.sign(values)])
    assert code == 0 and rows["correlation"]["exact_shapley players=3", "gradient"] == pytest.approx(expected, abs=1e-6)
    assert rows["correlation"]["exact_shapley players=3", "input_x_gradient"] == pytest.approx(1)


def test_quality_is_the_error_of_the_table(cube, xaibench):
    assert xaibench(*cube, "method=gradient", "metric=quality")[0] == 0
    found = statistics("quality")
    assert found["r2"] == pytest.approx(1) and found["mse"] == pytest.approx(0, abs=1e-9)


def test_another_width_takes_one_override_and_training_says_r_squared(cube, xaibench):
    code, _, talk = xaibench(*cube[:2], *cube[3:], "method=gradient", "metric=quality")
    assert code == 2 and "set model.input_size=[1,1,3]" in talk
    code, printed, _ = xaibench("train", *cube[1:])
    assert code == 0 and "test R squared 1.0000" in printed


def test_method_and_metric_draw_the_same_background(cube, xaibench):
    """Of a linear network the Shapley values against a background add up to what the metric's background loses."""
    filled = ["method=exact_shapley", "method.players=3", "method.fill=background", "metric.fill=background"]
    assert xaibench(*cube, *filled, "metric=completeness", "dataset.limit=8")[0] == 0
    found = statistics("completeness")
    assert found["completeness_error"] < 1e-5
    assert xaibench(*cube, *filled, "metric=sensitivity_n", "metric.largest=0.7", "dataset.limit=8")[0] == 0
    assert statistics("sensitivity_n")["sensitivity_n"] == pytest.approx(1, abs=1e-5)

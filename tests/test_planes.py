"""The plane worlds through the command line: trained by recipe where that is missing, explained on the grid."""

import pytest

TINY = ("model=xor_net", "dataset=xor", "dataset.split=grid", "dataset.steps=5", "model.recipe.epochs=1")


def test_a_missing_network_is_trained_and_its_truth_is_the_oracle(xaibench, here):
    code, _, talk = xaibench("run", *TINY, "method=oracle", "metric=completeness")
    assert code == 0 and "training xor_net on 10000 samples of xor" in talk
    code, _, talk = xaibench("run", *TINY, "method=gradient", "metric=completeness", "dataset.filter.correct=true")
    assert code == 0 and "training" not in talk


@pytest.mark.parametrize("metric", ["pointing_game", "roc_auc"])
def test_a_graded_truth_is_no_region(metric, xaibench):
    code, _, talk = xaibench("run", *TINY, "model.weights=random", "method=oracle", f"metric={metric}")
    assert code == 2 and "needs a region: the truth of dataset=xor" in talk

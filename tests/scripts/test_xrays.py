"""The tables of X-rays: intervals over cases, and how the two copies of a finding share a map."""

import numpy as np
import pytest

OVERRIDES = ["model=chest_cnn", "model.weights=random", "dataset=chest", "dataset.redundancy=or", "dataset.limit=12"]


def test_intervals_draw_cases_as_wholes(script):
    xrays, values = script("xrays"), np.random.default_rng(0).normal(size=400)
    mean, low, high = xrays.interval(values)
    assert mean == values.mean()
    # Of means of so many, nearly normal: 1.96 standard errors either way.
    assert (high - low) / 2 == pytest.approx(1.96 * values.std() / 20, rel=0.1)
    # Every value four times is four times the data, unless the copies are known to be one case.
    copies, cases = np.repeat(values, 4), np.repeat(np.arange(400), 4)
    again = xrays.interval(copies, cases)
    assert again == pytest.approx((mean, low, high)) and np.ptp(xrays.interval(copies)[1:]) < 0.6 * (high - low)


@pytest.mark.parametrize(("method", "inside"), [("oracle", 1.0), ("constant", None)])
def test_a_map_of_both_copies_is_shared_as_their_areas_are(script, here, method, inside):
    table = script("xrays").copies([*OVERRIDES, f"method={method}"]).set_index("statistic")["mean"]
    from xaibench.datasets.chest import Chest
    from xaibench.rng import permutation

    data = Chest(redundancy="or")
    samples = permutation(len(data), 0)[:12]
    areas = [[copy.sum() for copy in data.draw(data.image_of(k)).copies[data[k].label]] for k in samples]
    assert table["lesser"] == pytest.approx(np.mean([min(two) / sum(two) for two in areas]))
    assert table["inside"] == pytest.approx(inside or table["area"]) and table["both"] == 1

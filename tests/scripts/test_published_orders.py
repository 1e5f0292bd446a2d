"""Published orders: they hold, are the opposite, or open, by the paired interval of the difference."""

import numpy as np
import pandas as pd

from tests.cells import cell


def published(**values):
    rows = [(method, "", "theirs", "score", "mean", "", value) for method, value in values.items()]
    names = ["method", "method_variant", "model", "metric", "statistic", "reading", "value"]
    return pd.DataFrame(rows, columns=names)


def test_an_order_counts_only_where_the_paired_interval_excludes_0(script):
    orders = script("published_orders").orders
    scene = np.random.default_rng(0).normal(
        size=40
    )  # what all methods have in common, far larger than what they differ by
    noise = np.random.default_rng(1).normal(size=(3, 40))
    cells = [
        cell("low", scene + 0.01 * noise[0]),
        cell("high", scene + 0.1 + 0.01 * noise[1]),
        cell("near", scene + 0.1 + 0.01 * noise[2]),
        cell("absent", scene),
    ]
    (row,) = orders(published(low=1.0, high=2.0, near=3.0, missing=0.0), cells)
    assert row["holds"] == [("low", "high"), ("low", "near")] and row["opposite"] == [] and row["open"] == 1
    (row,) = orders(published(low=2.0, high=1.0, near=2.0), cells)
    assert row["opposite"] == [("low", "high")] and row["holds"] == [] and row["open"] == 1
    assert orders(published(low=1.0, missing=2.0), cells) == []

"""Orders on two networks: decided by the paired interval on each, and then the same or reversed."""

import numpy as np

from tests.cells import cell


def cells(model, **shifts):
    """Methods that differ by these shifts, and a little, from what the images have in common."""
    draw = np.random.default_rng(len(model))
    images = draw.normal(size=40)
    found = [cell(method, images + shift + 0.01 * draw.normal(size=40)) for method, shift in shifts.items()]
    for one in found:
        one.card["model"] = model
    return found


def test_an_order_survives_where_both_networks_decide_it_alike(script):
    orders = script("network_orders").orders
    first = cells("first", low=0.0, high=1.0, near=1.001, only=5.0)
    (row,) = orders([*first, *cells("second", low=0.0, high=-1.0, near=1.0)], "first", "second")
    assert row.metric == "score" and list(row.values) == ["low", "high", "near"]
    assert row.same == [("low", "near")] and row.reversed == [("low", "high")] and row.decided == (2, 3)
    assert abs(row.values["high"][0] - row.values["low"][0] - 1) < 0.02
    # Of the pairs by value, low-high is reversed, low-near the same, and high-near goes with either: 0.001 apart.
    assert abs(abs(row.tau) - 1 / 3) < 1e-12


def test_a_method_without_values_is_in_no_pair(script):
    orders = script("network_orders").orders
    first = cells("first", low=0.0, high=1.0, undefined=np.nan)
    (row,) = orders([*first, *cells("second", low=0.0, high=1.0, undefined=2.0)], "first", "second")
    assert list(row.values) == ["low", "high"] and row.same == [("low", "high")] and row.decided == (1, 3)
    assert row.tau == 1
    assert orders([*first, *cells("second", low=0.0)], "first", "second") == []

"""Score files made by hand."""

import pandas as pd

from xaibench.scores.leaderboard import Cell


def cell(
    method, values, *, metric="score", direction="higher", variant="", kind="mean", target=None, tolerance=0.005,
    metric_key="m", sample_key="s", map_key="",
):  # fmt: skip
    """The cell of a method under a metric with one statistic, `mean`, over these values by sample."""
    card = {
        "model": "net", "dataset": "data", "method": method, "method_variant": variant, "metric": metric,
        "metric_variant": "", "n": len(values), "method_cost": [1, 2],
        "keys": {
            "model_key": "a", "data_key": "b", "map_key": method + map_key, "metric_key": metric + metric_key,
            "sample_key": sample_key,
        },
        "statistics": [{
            "name": "mean", "direction": direction, "column": "value", "per": None, "kind": kind, "target": target,
            "tolerance": tolerance,
        }],
    }  # fmt: skip
    return Cell(card, pd.DataFrame({"value": values}, index=pd.RangeIndex(len(values), name="sample"), dtype=float))

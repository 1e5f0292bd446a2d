"""Published tables beside ours; the presets that make ours."""

import io
import itertools
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from xaibench import listing
from xaibench.build import build
from xaibench.config import compose_job
from xaibench.scores import compare, leaderboard

REFERENCE = Path(__file__).parents[2] / "results" / "reference"
# Published methods that have not landed here.
ABSENT = {"pattern_attribution", "deepshap"}
# What metrics that score the network have in the place of a method.
NO_METHOD = {"none"}
PRESETS = [item.name for item in listing.items("experiment")]


def config(experiment: str) -> dict:
    return yaml.safe_load((listing.CONF / "experiment" / f"{experiment}.yaml").read_text())


def swept(experiment: str) -> dict[str, list[str]]:
    params = config(experiment)["hydra"]["sweeper"]["params"]
    return {key: re.split(r",\s*(?![^\[]*\])", str(values)) for key, values in params.items()}  # not within brackets


@pytest.mark.parametrize("experiment", PRESETS)
def test_every_preset_composes_and_names_what_there_is(xaibench, experiment):
    params = swept(experiment)
    for group in ("method", "metric"):
        assert set(params[group]) <= {item.name for item in listing.items(group)}
    # One cell of it: planned on the bundled network, composed where it takes data or weights of its own.
    cell = [f"{key}={values[0 if '.' in key else -1]}" for key, values in params.items()]
    if "defaults" in config(experiment):
        job = compose_job([f"experiment={experiment}", *cell])
        assert (job.method, job.metric) == (params["method"][-1], params["metric"][-1])
        return
    code, out, said = xaibench("run", f"experiment={experiment}", *cell, "dataset.limit=2", "runner.plan=true")
    assert code == 0, said
    assert "passes to do" in out


@pytest.mark.parametrize("experiment", compare.experiments())
def test_published_tables_say_where_they_are_from_and_fit_our_names(experiment):
    theirs = compare.read(experiment)
    assert experiment in PRESETS
    assert all(theirs.facts[name] for name in ("source", "table", "data", "n", "differs"))
    assert np.isfinite(theirs.rows["value"]).all()
    assert not theirs.rows.duplicated(["method", "method_variant", "model", "metric", "statistic"]).any()
    assert set(theirs.rows["method"]) <= {item.name for item in listing.items("method")} | ABSENT | NO_METHOD
    for metric, rows in theirs.rows.groupby("metric"):
        text = (listing.CONF / "metric" / f"{metric}.yaml").read_text()
        statistics = {statistic.name for statistic in build(yaml.safe_load(text), "metric").statistics}
        assert set(rows["statistic"]) <= statistics


def test_table_1_beside_the_committed_leaderboard():
    """The correlations that results/reference/README.md states, which were computed apart from this code."""
    board = leaderboard.read_csv(REFERENCE / "iba_table1.csv")
    frame = compare.beside(compare.read("iba_table1"), board)
    agreed = compare.agreement(frame)
    found = agreed[agreed["published_model"] == "ResNet-50 8x8"].set_index("model")
    assert found["correlation"].round(2).to_dict() == {"mobilenet_v2": 0.89, "resnet20": 0.72, "smallcnn": 0.52}
    assert found["methods"].to_dict() == {"mobilenet_v2": 7, "resnet20": 9, "smallcnn": 10}
    row = frame[(frame["method"] == "guided_backprop") & (frame["model"] == "smallcnn")].iloc[0]
    assert (row["published"], round(row["value"], 3), row["metric_variant"]) == (0.491, 0.804, "")
    # Published, and nothing of ours: the row stays.
    assert frame[frame["method"] == "pattern_attribution"]["value"].isna().all()


def test_tables_3_2_and_3_3_beside_the_committed_leaderboard():
    """By hand: in d, saliency and occlusion change places, under rho_sure IBA and IxG: 1 - 6 (1 + 1) / (5 * 24)."""
    board = leaderboard.read_csv(REFERENCE / "plane_xor.csv")
    agreed = compare.agreement(compare.beside(compare.read("xor"), board[board["model"] == "xor_net"]))
    found = agreed.set_index("statistic")["correlation"].round(2).to_dict()
    assert found == {"dim_diff_sum": 0.9, "rho_sure": 0.9, "rho_boundary": 0.6}
    assert set(agreed["methods"]) == {5}


def test_pairs_in_the_published_order_are_counted_one_by_one():
    board = leaderboard.read_csv(REFERENCE / "iba_table1.csv")
    frame = compare.beside(compare.read("iba_table1"), board)
    agreed = compare.agreement(frame)
    assert len(agreed) > 3
    for row in agreed.to_dict("records"):
        part = frame[frame["as_read"]].dropna(subset="value")
        for name in ("metric", "statistic", "published_model", *compare.HERE):
            part = part[part[name] == row[name]]
        values = list(zip(part["published"], part["value"]))
        pairs = [(a, b) for a, b in itertools.combinations(values, 2) if a[0] != b[0]]
        ordered = [pair for pair in pairs if (pair[0][0] < pair[1][0]) == (pair[0][1] < pair[1][1])]
        assert (row["pairs"], row["ordered"]) == (len(pairs), len(ordered))


def test_verdicts_are_words_and_orders(xaibench, here):
    """Nuzzo's, beside the committed leaderboard of two networks: what fails against what passes, 5 x 12 and 4 x 3."""
    code, out, _ = xaibench("compare", "sanity_rules", "--leaderboard", str(REFERENCE / "sanity_rules.csv"))
    assert code == 0 and "passes" in out and "fails" in out
    said = [line.partition(" methods, ")[2] for line in out.splitlines() if "rank correlation" in line]
    assert said == 2 * ["60 of 60 pairs in the published order"] + 2 * ["12 of 12 pairs in the published order"]
    assert compare.read("sanity_rules").words == {0.0: "passes", 1.0: "fails"} and not compare.read("xor").words


def test_table_4_has_both_bottlenecks_beside_ours(xaibench):
    """As results/reference/README.md has them at beta 10, whose table was made apart from this code."""
    board = ["--leaderboard", str(REFERENCE / "iba_capacity.csv")]
    code, out, said = xaibench("compare", "iba_beta_sweep", "--csv", *board)
    assert code == 0, said
    frame = pd.read_csv(io.StringIO(out)).set_index(["metric", "statistic"])
    assert len(frame) == 10 and frame["as_read"].all()
    assert frame.loc[("readout_capacity", "information"), ["published", "value"]].round(3).tolist() == [0.079, 0.108]
    assert frame.loc[("readout_capacity", "bottleneck_top1"), ["published", "value"]].round(3).tolist() == [0.66, 0.831]
    assert frame.loc[("bottleneck_capacity", "information"), ["published", "value"]].round(3).tolist() == [0.098, 0.05]


def test_compare_on_the_command_line(xaibench, here):
    code, out, _ = xaibench("compare", "iba_table1", "--leaderboard", str(REFERENCE / "iba_table1.csv"))
    assert code == 0
    assert "resnet20 on imagefolder (tile=4): rank correlation 0.72 over 9 methods" in out
    assert "none of ours: xaibench run experiment=iba_table1" in out  # the box score
    assert "differs: " in out and "source: Sixt 2022" in out
    text = xaibench("compare", "iba_table1", "--csv", "--leaderboard", str(REFERENCE / "iba_table1.csv"))[1]
    assert len(pd.read_csv(io.StringIO(text))) > 60
    assert xaibench("compare", "pathway_lerf")[0] == 3
    code, _, said = xaibench("compare", "iba_table")
    assert code == 2 and "did you mean 'iba_table1'?" in said

"""The gate: its verdicts, tolerances and reports; what it catches and what it lets pass."""

import importlib.util
import json
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from scipy import stats as scipy_stats

from tests.cells import cell
from xaibench.errors import UserError
from xaibench.report import check_report
from xaibench.scores import check, leaderboard

DOCS = Path(__file__).parents[2] / "docs"
BASE = {"a": 0.5, "b": 0.4}


def verdict(before: dict, after: dict, **how) -> tuple[dict[str, str], int]:
    """Marks by method, and the exit code, of two leaderboards with these means."""
    boards = [leaderboard.table([cell(m, [v, v], **how) for m, v in means.items()]) for means in (before, after)]
    rows = check.check(*boards)
    return {row.identity[2]: row.mark for row in rows}, check.exit_code(rows)


@pytest.mark.parametrize(
    ("after", "marks", "code"),
    [
        ({"a": 0.5, "b": 0.4}, {"a": "=", "b": "="}, 0),
        ({"a": 0.504, "b": 0.396}, {"a": "=", "b": "="}, 0),
        ({"a": 0.494, "b": 0.4}, {"a": "-", "b": "="}, 1),
        ({"a": 0.6, "b": 0.4}, {"a": "+", "b": "="}, 0),
        ({"a": 0.5, "b": 0.4, "c": 0.1}, {"a": "=", "b": "=", "c": "*"}, 0),
        ({"a": 0.5}, {"a": "=", "b": "!"}, 1),
        ({"a": 0.5, "b": np.nan}, {"a": "=", "b": "-"}, 1),
        ({}, {"a": "!", "b": "!"}, 3),
        ({"c": 1.0}, {"a": "!", "b": "!", "c": "*"}, 3),
    ],
)
def test_the_gate(after, marks, code):
    assert verdict(BASE, after) == (marks, code)


def test_the_gate_follows_the_direction():
    assert verdict(BASE, {"a": 0.6, "b": 0.3}, direction="lower")[0] == {"a": "-", "b": "+"}
    assert verdict(BASE, {"a": 0.2, "b": 0.3}, direction="target", target=0.3)[0] == {"a": "+", "b": "+"}


@pytest.mark.parametrize(
    ("change", "why"), [({"metric_key": "n"}, "the metric changed"), ({"sample_key": "t"}, "other samples")]
)
def test_other_metrics_and_other_samples_are_not_compared(change, why):
    before, after = leaderboard.table([cell("a", [1, 1])]), leaderboard.table([cell("a", [1, 1], **change)])
    rows = check.check(before, after)
    assert [(row.mark, row.why) for row in rows] == [("x", why)]
    assert check.exit_code(rows) == 3


def test_an_empty_baseline_compares_nothing():
    assert check.exit_code(check.check(leaderboard.table([]), leaderboard.table([cell("a", [1])]))) == 3


WIDE = [0.0, 1.0] * 20  # an interval over samples of about 0.35 to 0.65


def shifted(*by, variant="", map_key="drawn anew"):
    cells = ([v + d for v in WIDE] for d in by)
    return [cell("a", values, variant=variant.format(s), map_key=map_key) for s, values in enumerate(cells, start=1)]


def test_the_tolerance_is_what_a_rerun_exceeds_rarely_never_the_interval_over_samples():
    reruns = shifted(0.01, -0.01, 0.02, variant="seed={}")
    before = leaderboard.table([cell("a", WIDE), *reruns])
    tolerance = scipy_stats.t.ppf(1 - check.FALSE_ALARMS, 2) * np.sqrt(2) * np.std([0.51, 0.49, 0.52], ddof=1)
    for drop, mark in ((0.99 * tolerance, "="), (1.01 * tolerance, "-")):
        # The reruns are not run again, and nobody misses them.
        (row,) = check.check(before, leaderboard.table(shifted(-drop)))
        assert row.tolerance == pytest.approx(tolerance, rel=1e-4)
        assert row.mark == mark
    # Without reruns, or under the very keys of the baseline (the same draws), nothing but the floor is allowed.
    alone = check.check(leaderboard.table([cell("a", WIDE)]), leaderboard.table(shifted(-0.01)))
    same = check.check(before, leaderboard.table(shifted(-0.01, map_key="")))
    assert [(row.mark, row.tolerance) for row in (*alone, *same)] == [("-", 0.005)] * 2


def test_reruns_that_are_run_again_are_compared_and_ranked_nowhere():
    board = leaderboard.table([cell("a", WIDE), *shifted(0.01, -0.01, variant="seed={}")])
    assert board.set_index("method_variant")["rank"].fillna(0).to_dict() == {"": 1, "seed=1": 0, "seed=2": 0}
    assert [row.mark for row in check.check(board, board)] == ["="] * 3
    # Under seeds alone there is nothing that they rerun.
    board = leaderboard.table(shifted(0.01, -0.01, variant="seed={}"))
    assert board["rank"].tolist() == [1, 2]
    assert [row.mark for row in check.check(board, leaderboard.table([]))] == ["!", "!"]


@pytest.mark.parametrize("rows", [1, 12])
def test_reruns_raise_an_alarm_in_less_than_one_check_of_twenty(rows):
    """Simulated: normal values, one run and nine reruns in the baseline, one more run to check, all rows at once."""
    random, alarms, checks = np.random.default_rng(rows), 0, 1000
    for _ in range(checks):
        before, now, reruns = np.split(random.normal(size=(11, rows)), [1, 2])
        alarms += bool((before - now > check.rerun_tolerance(reruns, rows)).any())
    # Two standard errors about 3 %.
    assert 0.019 < alarms / checks < 0.041


def test_tolerances_of_a_statistic_of_one_metric_and_of_a_file(here):
    cells = [cell("a", [1.0], metric=metric, tolerance=0.1) for metric in ("one", "two")]
    assert check.floors(cells)["one.mean"] == check.floors(cells)["two.mean@common"] == 0.1
    found = check.floors(cells, {"mean": 0.2, "two.mean": 0.3})
    assert (found["one.mean"], found["two.mean"], found["two.mean@common"]) == (0.2, 0.3, 0.3)
    with pytest.raises(UserError, match=r"one\.man: .*did you mean 'one\.mean'"):
        check.floors(cells, {"one.man": 0.2})
    (here / "t.yaml").write_text("two.mean: 0.3\nmean: 0.2\n")
    assert check.read_tolerances(here / "t.yaml") == {"two.mean": 0.3, "mean": 0.2}
    for text in ("- 1", "mean: much", "a: b: c"):
        (here / "t.yaml").write_text(text)
        with pytest.raises(UserError, match=r"t\.yaml: expected lines such as"):
            check.read_tolerances(here / "t.yaml")


def outcome():
    before = [cell(m, [v, v]) for m, v in {"a": 0.5, "b": 0.4, "c": 0.3, "d|e": 0.2}.items()]
    after = [cell(m, [v, v]) for m, v in {"a": 0.4, "b": 0.4, "c": 0.35, "f": 0.2}.items()]
    return check.check(leaderboard.table(before), leaderboard.table(after))


def test_json_has_every_row_and_the_verdict():
    found = json.loads(check_report.to_json(outcome()))
    assert found["exit_code"] == 1
    assert found["counts"] == {
        "regressed": 1, "failed": 0, "missing": 1, "not comparable": 0, "better": 1, "new": 1, "same": 1,
    }  # fmt: skip
    assert {row["method"]: row["verdict"] for row in found["rows"]} == {
        "a": "regressed", "b": "same", "c": "better", "d|e": "missing", "f": "new",
    }  # fmt: skip
    assert (found["rows"][0]["before"], found["rows"][0]["after"]) == (0.5, 0.4)
    undefined = check.check(leaderboard.table([cell("a", [1.0])]), leaderboard.table([cell("a", [np.nan])]))
    assert json.loads(check_report.to_json(undefined))["rows"][0]["after"] is None
    assert "| undefined |" in check_report.to_markdown(undefined, "b.csv")


def test_markdown_tells_the_worst_first():
    text = check_report.to_markdown(outcome(), "base.csv")
    lines = text.splitlines()
    assert lines[0] == "### xaibench: regressed"
    assert lines[2].startswith("Against `base.csv`, compared 3 rows: 1 regressed, 1 missing, 1 better, 1 new, 1 same")
    rows = [line for line in lines if line.startswith("| ") and "---" not in line]
    assert [row.split("|")[1].strip(" *") for row in rows] == ["", "regressed", "missing", "better", "new"]
    assert rows[1] == "| **regressed** | a on net, data | score mean ↑ | 0.5000 | 0.4000 | -0.1000 | 0.005 |  |"
    assert len({row.count("|") for row in rows}) == 1
    many = check.check(leaderboard.table([cell(f"m{i}", [1.0]) for i in range(60)]), leaderboard.table([]))
    assert "... and 10 more rows" in check_report.to_markdown(many, "base.csv")


def test_losing_samples_is_a_regression():
    before, after = (leaderboard.table([cell("a", values)]) for values in ([1.0, 1.0], [1.0, np.nan]))
    row = check.check(before, after)[0]
    assert (row.mark, row.why) == ("-", "excludes 1 samples, was 0")


def test_changed_samples_are_counted_where_both_sides_have_them():
    old, new = cell("a", [1.0, 2.0, 3.0]), cell("a", [2.0, 1.0, 3.0])
    (row,) = check.check(
        leaderboard.table([old]),
        leaderboard.table([new]),
        samples_before=check.per_sample([old]),
        samples_after=check.per_sample([new]),
    )
    assert (row.mark, row.changed) == ("=", 2)


@pytest.fixture
def gate():
    spec = importlib.util.spec_from_file_location("gate", Path(__file__).parents[2] / "scripts" / "gate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_damaged_maps_are_caught_and_sound_ones_pass(xaibench, here, gate):
    """A method of a user's on the bundled network, damaged as by a bug: same name, other numbers."""
    metrics = "metric=roc_auc,sparseness"
    codes = {}
    for damage in ("none", *gate.DAMAGES):
        gate.write(here, "gradcam", damage)
        code, _, said = xaibench("run", "-m", "--config-dir=mine", "method=damaged", metrics, "dataset.limit=12")
        assert code == 0, said
        if not codes:
            (here / "baseline.csv").write_bytes((here / "results" / "leaderboard.csv").read_bytes())
        codes[damage] = xaibench("check", "--baseline", "baseline.csv", "--output", "outcome.md", "--format=markdown")
        regressed = "**regressed**" in (here / "outcome.md").read_text()
        assert regressed == (damage != "none")
    assert {damage: code for damage, (code, _, _) in codes.items()} == {"none": 0, "flip": 1, "shift": 1, "noise": 1}


def test_the_example_workflow_gates_a_pull_request(xaibench, here):
    """docs/ci-example.yml as it stands: its commands but for the sweep, which `make test` runs."""
    steps = yaml.safe_load((DOCS / "ci-example.yml").read_text())["jobs"]["attribution"]["steps"]
    commands = [line for step in steps for line in step.get("run", "").splitlines() if line.startswith("xaibench ")]
    assert commands[0] == "xaibench run experiment=baseline"
    makefile = (DOCS.parent / "Makefile").read_text()
    assert commands[0] in makefile
    # Both compute anew: what an earlier commit left in a cache is not this one's.
    assert not any("cache" in str(step.get("uses")) or "path" in step.get("with", {}) for step in steps)
    assert makefile.index("rm -rf build/baseline") < makefile.index(commands[0])
    assert xaibench("run", "method=random", "metric=sparseness", "dataset.limit=3")[0] == 0
    shutil.copy("results/leaderboard.csv", "results/baseline.csv")
    commands = [command.removesuffix(" || true") for command in commands]
    assert [xaibench(*shlex.split(command)[1:])[0] for command in commands[1:]] == [0, 0]
    assert (here / "check.xml").read_text().startswith("<?xml")
    # Nothing that reads the outcome runs where there is none.
    assert all(
        "hashFiles('check.md')" in step["if"]
        for step in steps
        if "check.md" in step.get("run", "").split("--output")[0]
    )
    assert (here / "check.md").read_text().startswith("### xaibench: no regression")


def test_runs_under_other_seeds_raise_no_alarm(xaibench, here, gate):
    """The smallest of scripts/gate.py: one run, four reruns in the baseline, three to check."""
    assert xaibench("run", "-m", "seed=range(8)", "method=random", "metric=roc_auc", "dataset.limit=12")[0] == 0
    said = list(gate.false_alarms(here / "results", 4, 3, baselines=50))
    assert said[0].startswith("0 of 3 reruns"), said


def test_a_leaderboard_of_another_version_is_read_if_it_is_older(tmp_path):
    """The committed baseline is of this schema; one without the keys of network and data is of schema 1."""
    now = leaderboard.read_csv(DOCS.parent / "results" / "baseline.csv")
    assert set(now["schema"]) == {leaderboard.BOARD}
    text = leaderboard.to_csv(now.drop(columns=list(leaderboard.KEYED)).assign(schema=1))
    before = leaderboard.read_text(text)
    assert before["value"].equals(now["value"]) and set(before["model_key"]) == {""}
    later = tmp_path / "later.csv"
    later.write_text(leaderboard.to_csv(now.assign(schema=leaderboard.BOARD + 1)))
    with pytest.raises(UserError, match="another version wrote it"):
        leaderboard.read_csv(later)

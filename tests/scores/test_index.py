"""The index of score files: the same bytes with it and without, whatever happens to it or to them."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from xaibench.scores import cells, index, leaderboard, rank, score_files, statistics

METHODS = ("gradient", "random", "sobel")


def statistic(name, **others):
    from xaibench.metrics.base import Statistic

    return Statistic(**{"name": name, "direction": "higher", "column": name, **others})


STATISTICS = (
    statistic("area"),
    statistic("ratio", column="area", per="first"),
    statistic("first", direction="lower", kind="median"),
)


def write(results, method, metric="metric", seed=0, undefined=(), variant="", map_key=""):
    """A cell of 12 samples; those that are undefined have no area."""
    random = np.random.default_rng([seed, len(method), len(metric)])
    columns = {"area": random.normal(size=12), "first": random.uniform(0.5, 1, 12), "status": np.zeros(12, int)}
    columns["area"][list(undefined)] = np.nan
    columns["curve"] = columns["first"][:, None] * np.linspace(1, 0, 4)
    keys = {"model_key": "n", "data_key": "d", "map_key": method + map_key, "metric_key": metric, "sample_key": "s"}
    return score_files.write(
        score_files.Record(
            "net", "data", method, metric, variant, "", results, tuple(range(12)), {}, STATISTICS,
            {"curve": [0.0, 0.3, 0.6, 1.0]}, keys, computed=True,
            details={
                "method_cost": (1, 2), "seconds": {"maps": 1.5, "scores": 2.0}, "peak_memory_bytes": 10**9,
                "device": "cpu", "threads": 1, "command": f"xaibench run method={method}",
                "config": {"metric": {}, "method": {}}, "x_label": "share", "others": [], "metric_cost": (1, 1),
                "collapse": None,
            },
        ),
        columns,
    )  # fmt: skip


@pytest.fixture
def results(tmp_path):
    for metric in ("metric", "other"):
        for method in METHODS:
            write(tmp_path / "results", method, metric)
    return tmp_path / "results"


def board(results):
    """What both files are, by the index."""
    index.update(results)
    return [(results / name).read_bytes() for name in ("leaderboard.csv", "cost.csv")]


def rebuilt(results):
    """What both files are, from the score files alone."""
    elsewhere = results.with_name("rebuilt")
    shutil.rmtree(elsewhere, ignore_errors=True)
    leaderboard.write(elsewhere, leaderboard.read_sound(results)[0])
    return [(elsewhere / name).read_bytes() for name in ("leaderboard.csv", "cost.csv")]


def read_files(results, monkeypatch):
    """Which files an update reads."""
    read = []
    original = cells.read_cell
    with monkeypatch.context() as patch:

        def noted(path, contents):
            read.append(path.stem.partition("-")[0])
            return original(path, contents)

        patch.setattr(index, "read_cell", noted)
        index.update(results)
    return read


def test_what_changes_is_read_and_the_files_are_those_of_a_rebuild(results, monkeypatch):
    assert len(read_files(results, monkeypatch)) == 6
    assert read_files(results, monkeypatch) == []
    assert board(results) == rebuilt(results)
    write(results, "sobel", "other", seed=1)
    assert read_files(results, monkeypatch) == ["sobel"]
    assert board(results) == rebuilt(results)
    write(results, "input", "other", seed=1)
    assert read_files(results, monkeypatch) == ["input"]
    assert board(results) == rebuilt(results)
    next(results.rglob("other/gradient-*.csv")).unlink()
    next(results.rglob("other/gradient-*.json")).unlink()
    assert read_files(results, monkeypatch) == []
    assert board(results) == rebuilt(results)


def test_what_the_system_says_is_believed_once_files_have_settled(results, monkeypatch):
    """Without a look into the files: their content is digested only while it may still change unseen."""
    index.update(results)
    monkeypatch.setattr(index, "SETTLED", -(10**12))
    index.update(results)
    digested = []
    look = index._looked_at
    monkeypatch.setattr(
        index,
        "_looked_at",
        lambda scores, stem, *rest: digested.append(scores / f"{stem}.csv") or look(scores, stem, *rest),
    )
    index.update(results)
    assert digested == []
    touched = next(results.rglob("random-*.csv"))
    touched.touch()
    index.update(results)
    assert digested == [touched]


def test_samples_in_common_follow_the_cells_that_have_them(results, monkeypatch):
    """A cell that excludes much gives all of them further rows, on what they have in common; and takes them away."""
    plain = board(results)
    write(results, "sobel", undefined=(3, 7))
    with_common = board(results)
    assert with_common == rebuilt(results) and b"area@common" in with_common[0] and b"@common" not in plain[0]
    assert read_files(results, monkeypatch) == []
    write(results, "input", undefined=(1,))
    assert board(results) == rebuilt(results)
    frame = pd.read_csv(results / "leaderboard.csv")
    common = frame[(frame["statistic"] == "area@common") & (frame["metric"] == "metric")]
    assert common["n"].tolist() == [9] * 4
    (value,) = common.loc[common["method"] == "random", "value"]
    columns = cells.read_cell(next(results.rglob("metric/random-*.csv"))).columns
    assert value == pytest.approx(columns["area"].drop([1, 3, 7]).mean(), rel=1e-5)
    write(results, "sobel")
    write(results, "input")
    assert b"@common" not in board(results)[0] and board(results) == rebuilt(results)


@pytest.mark.parametrize("damage", ["cut", "flipped", "gone", "empty", "no index", "of other code", "torn line"])
def test_a_damaged_index_costs_the_reading_alone(results, monkeypatch, damage):
    index.update(results)
    path = results / "scores" / index.INDEX
    data = path.read_bytes()
    changed = {
        "cut": data[: len(data) // 2],
        "flipped": data.replace(b'"area"', b'"aera"'),
        "gone": b"",
        "empty": b"\n\n",
        "no index": b"\xff\x00" * 50,
        "torn line": data[:-40],
    }
    if damage == "of other code":
        monkeypatch.setattr(index, "maker", lambda: "another")
    else:
        path.write_bytes(changed[damage])
    assert read_files(results, monkeypatch)
    assert read_files(results, monkeypatch) == []
    assert board(results) == rebuilt(results)


def test_a_file_that_was_edited_is_found_though_it_was_known(results):
    index.update(results)
    path = next(results.rglob("metric/random-*.csv"))
    text = path.read_text()
    path.write_text(text.replace("ok,0.", "ok,1.", 1))
    found, damaged = index.summaries(results)
    assert [error.path for error in damaged] == [path] and len(found) == 5
    assert "random" not in {cell.card["method"] for cell in found if cell.card["metric"] == "metric"}
    path.write_text(text)
    assert index.summaries(results)[1] == [] and board(results) == rebuilt(results)
    path.with_suffix(".h5").unlink()
    assert "is gone" in str(index.summaries(results)[1][0])


def test_results_that_were_moved_are_known_by_their_content(results, monkeypatch):
    index.update(results)
    moved = results.with_name("moved")
    shutil.copytree(results, moved)
    shutil.rmtree(results)
    assert read_files(moved, monkeypatch) == []
    assert all(str(cell.path).startswith(str(moved)) for cell in index.summaries(moved)[0])


def test_several_processes_may_update_at_once(results):
    code = (
        "import sys; from pathlib import Path; from xaibench.scores import index\n"
        "for _ in range(4): index.update(Path(sys.argv[1]))"
    )
    started = [subprocess.Popen([sys.executable, "-c", code, str(results)]) for _ in range(2)]
    for seed in range(3):
        write(results, "input", seed=seed)
    assert [process.wait() for process in started] == [0] * 2
    assert board(results) == rebuilt(results)
    lines = [line for line in (results / "scores" / index.INDEX).read_bytes().split(b"\n") if line]
    assert all(json.loads(part) for line in lines for part in line.partition(b" ")[2].split(index.STATISTICS))


def test_the_index_does_not_grow_with_what_is_past(results, monkeypatch):
    monkeypatch.setattr(index, "SPARE", 10)
    for seed in range(25):
        write(results, "random", seed=seed)
        index.summaries(results)
        assert (results / "scores" / index.INDEX).read_bytes().count(b"\n") <= 2 * 6 + 10 + 1
    assert board(results) == rebuilt(results)


def test_csv_is_what_pandas_writes():
    """Another implementation: integers, gaps, fractions, quotes, line ends, and none of what a spreadsheet computes."""
    frame = pd.DataFrame(
        {
            "text": ["a,b", 'say "x"', "two\nlines", ""], "whole": [1, 20000000, -3, 0],
            "fraction": [1e-7, 123456789.0, np.nan, -0.0], "gap": [1, None, 3, 4000000], "none": [None] * 4,
            "bool": [True, False, True, True],
        }
    )  # fmt: skip
    expected = frame.to_csv(index=False, float_format="%.6g", lineterminator="\n")
    assert leaderboard.to_csv(frame) == expected
    assert leaderboard.to_csv(pd.DataFrame({"a": ["=1+1", "b"]})) == "a\n'=1+1\nb\n"


def test_quantiles_are_numpys_to_the_bit():
    random = np.random.default_rng(0)
    for size in (2, 3, 10, 2000):
        for scale in (1e-9, 1.0, 1e9):
            drawn, levels = random.normal(size=size) * scale, np.array([0.0, *random.uniform(size=20), 1.0])
            assert statistics._quantiles(drawn, levels) == np.quantile(drawn, levels).tolist()


# ---- what commands show of many --------------------------------------------------------------------------------------


def test_many_cells_have_an_overview_and_a_page_is_asked_to_be_of_some(xaibench, here, monkeypatch):
    from xaibench.report import folder, terminal

    for metric in ("metric", "other"):
        for method in METHODS:
            write(here / "results", method, metric)
    tables = xaibench("leaderboard")[1]
    assert "gradient" in tables and "net · data · metric" in tables
    monkeypatch.setattr(terminal, "MOST_SHOWN", 5)
    monkeypatch.setattr(folder, "MOST", 5)
    for command in ("leaderboard", "rank"):
        code, out, _ = xaibench(command)
        assert code == 0 and "6 cells" in out and "--metric NAME" in out and "net · data · metric" not in out
    assert "net · data · all 2 metrics" in xaibench("rank")[1]
    assert "net · data · metric" in xaibench("rank", "--metric", "metric")[1]
    code, _, said = xaibench("report")
    assert code == 2 and "6 cells" in said and "--model net --dataset data" in said
    assert xaibench("report", "--metric", "metric", "--images", "0")[0] == 0


def test_more_methods_than_can_be_tested_are_named(xaibench, here, monkeypatch):
    for method in METHODS:
        write(here / "results", method)
    monkeypatch.setattr(rank, "MOST", 2)
    code, out, said = xaibench("leaderboard")
    assert code == 0 and "gradient" in out and "not compared, more than 2 methods: metric (3 methods on data)" in said
    assert "no two methods differ" not in out and "no method beats" not in out
    assert "metric (3 methods on data)" in xaibench("rank")[2]


def test_a_cell_that_is_asked_for_again_leaves_its_files_and_a_newer_one_replaces_the_older(results):
    before = {path: path.stat().st_mtime_ns for path in results.rglob("metric/random-*")}
    write(results, "random")
    assert {path: path.stat().st_mtime_ns for path in results.rglob("metric/random-*")} == before
    # A method of a newer version: another key, the same question.
    outcome = write(results, "random", map_key="2")
    assert [path.stem for path in results.rglob("metric/random-*.csv")] == [outcome.rows.stem]
    # Another variant asks another one; so does it where nothing has been noted of the folder yet.
    outcome.rows.with_name(score_files.ANSWERS).unlink()
    write(results, "random", variant="seed=1", map_key="3")
    assert len(list(results.rglob("metric/random-*.csv"))) == 2
    write(results, "random", map_key="4")
    assert len(list(results.rglob("metric/random-*.csv"))) == 2 and len(list(results.rglob("metric/random-*"))) == 6

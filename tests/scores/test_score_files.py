"""Score files that are not as a run wrote them, rows of another network, runs that failed: said, not believed."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.cells import cell
from xaibench.scores import check, leaderboard
from xaibench.store import provenance

SWEEP = ("method=gradient,input,random", "metric=degradation", "dataset.limit=4", "metric.steps=4")
OWN = """
from pathlib import Path
from xaibench.methods.base import Method
class Mine(Method):
    def attribute(self, classifier, inputs, targets, context):
        if Path("stop").exists():
            import os, signal
            os.kill(os.getpid(), signal.SIGKILL)
        if Path("broken").exists():
            1 / 0
        return inputs
"""


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """A folder with the results and the cache of three methods, and their leaderboard as a baseline."""
    folder = tmp_path_factory.mktemp("made")
    code = "import sys; from xaibench.cli import main; sys.exit(main(sys.argv[1:]))"
    subprocess.run([sys.executable, "-c", code, "run", "-m", *SWEEP], check=True, cwd=folder)
    shutil.copy(folder / "results" / "leaderboard.csv", folder / "baseline.csv")
    return folder


@pytest.fixture
def results(made, here):
    """A copy of that folder, to be damaged; its baseline too."""
    shutil.copytree(made, here, dirs_exist_ok=True)
    return Path("results")


def file_of(method, suffix=".csv"):
    (path,) = Path("results/scores").rglob(f"{method}-*{suffix}")
    return path


def without_digests(method):
    """As an earlier version wrote it."""
    card = file_of(method, ".json")
    card.write_text(
        json.dumps({k: v for k, v in json.loads(card.read_text()).items() if k not in ("files", "sources")})
    )


def edited(path):
    lines = path.read_text().splitlines()
    lines[1] = lines[1].rpartition(",")[0] + ",0.9"
    path.write_text("\n".join(lines) + "\n")


DAMAGES = {
    "edited by hand": edited,
    "cut in a number": lambda path: path.write_text(path.read_text().rpartition("0.")[0] + "0.\n"),
    "cut": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "doubled": lambda path: path.write_text(path.read_text() + "".join(path.read_text().splitlines(True)[1:])),
    "empty": lambda path: path.write_text(""),
    "gone": lambda path: path.unlink(),
    "curves changed": lambda path: path.with_suffix(".h5").write_bytes(b"0" * 2000),
    "curves gone": lambda path: path.with_suffix(".h5").unlink(),
    "card cut": lambda path: path.with_suffix(".json").write_text('{"schema": 1, "keys"'),
    "card of another shape": lambda path: path.with_suffix(".json").write_text("[1, 2]"),
    "card gone": lambda path: path.with_suffix(".json").unlink(),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_score_file_is_named_the_rest_is_shown_and_a_run_makes_it_again(xaibench, results, damage):
    before, path = file_of("gradient").read_bytes(), file_of("gradient")
    DAMAGES[damage](path)
    page = [("report", "--images", "0")] if damage in ("cut in a number", "card gone") else []
    for command in (("leaderboard", "--csv"), ("rank", "--csv", "methods"), *page):
        code, out, said = xaibench(*command)
        assert code == 1 and str(path) in said, (command, said)
        assert "run again: xaibench run method=gradient" in said or ("card" in damage and "deleting it" in said)
        assert "gradient" not in out and (command[0] == "report" or "input" in out)
    code, out, said = xaibench("check", "--baseline", "baseline.csv")
    assert code == 1 and str(path) in said
    assert "3 failed" in out and "6 same" in out and "better" not in out.splitlines()[-1]
    assert xaibench("run", "method=gradient", *SWEEP[1:])[0] == 0
    assert file_of("gradient").read_bytes() == before
    assert xaibench("check", "--baseline", "baseline.csv")[:2] == (0, "compared 9 rows: 9 same\n")


@pytest.mark.parametrize("damage", ["cut", "doubled"])
def test_files_from_before_the_digests_are_read_and_what_can_be_seen_is_named(xaibench, results, damage):
    without_digests("gradient")
    assert xaibench("check", "--baseline", "baseline.csv")[:2] == (0, "compared 9 rows: 9 same\n")
    path = file_of("gradient")
    DAMAGES[damage](path)
    code, _, said = xaibench("leaderboard")
    assert code == 1 and str(path) in said and "TypeError" not in said


def test_a_folder_that_must_not_be_written_still_has_its_table(results):
    """As an unprivileged user: root is allowed everything."""
    code = (
        "import os, sys; from xaibench.cli import main; from xaibench.report import terminal\n"
        "os.getuid() or os.setuid(65534)\n"
        "sys.exit(main(['leaderboard', '--csv']))"
    )
    expected = (results / "leaderboard.csv").read_text()
    os.chmod(results, 0o555)
    here = Path.cwd()
    for folder in (here, *here.parents):
        if folder.owner() == "root" and str(folder).startswith("/tmp/"):
            os.chmod(folder, 0o755)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    os.chmod(results, 0o755)
    assert (done.returncode, done.stdout) == (0, expected), done.stderr
    assert "cannot write results/leaderboard.csv: Permission denied" in done.stderr


def test_a_copy_of_a_score_file_is_no_second_row(xaibench, results):
    path = file_of("gradient")
    for suffix in (".csv", ".json", ".h5"):
        shutil.copy(path.with_suffix(suffix), path.with_name("gradient-copied" + suffix))
    code, out, said = xaibench("leaderboard", "--csv")
    assert code == 1 and "gradient-copied.csv" in said and str(path) in said and "gradient" not in out
    assert xaibench("check", "--baseline", "baseline.csv")[0] == 1


@pytest.mark.parametrize("value", ["nan", "-1", "inf", "-0.1", "much"])
def test_tolerances_that_allow_all_or_nothing_are_refused(xaibench, results, value):
    code, _, said = xaibench("check", "--baseline", "baseline.csv", "--tolerance", f"degradation={value}")
    assert code == 2 and f"degradation={value}" in said
    Path("t.yaml").write_text(f"degradation: {'.nan' if value == 'nan' else '.inf' if value == 'inf' else value}\n")
    assert xaibench("check", "--baseline", "baseline.csv", "--tolerances", "t.yaml")[0] == 2


def test_a_baseline_without_values_compares_nothing(xaibench, results):
    frame = pd.read_csv("baseline.csv", dtype=str, keep_default_na=False)
    frame.assign(value="").to_csv("empty.csv", index=False)
    code, out, _ = xaibench("check", "--baseline", "empty.csv")
    assert code == 3 and "9 new" in out and "better" not in out.splitlines()[-1]
    # One without a value says nothing of itself, and does not keep the others from being compared.
    frame.loc[0, "value"] = ""
    frame.to_csv("one.csv", index=False)
    assert "8 same" in xaibench("check", "--baseline", "one.csv")[1]
    Path("cut.csv").write_text(Path("baseline.csv").read_text()[:-30])
    code, _, said = xaibench("check", "--baseline", "cut.csv")
    assert code == 2 and "cut.csv" in said and "line 10" in said
    Path("twice.csv").write_text(Path("baseline.csv").read_text() + Path("baseline.csv").read_text().splitlines()[1])
    code, _, said = xaibench("check", "--baseline", "twice.csv")
    assert code == 3 and "twice.csv: two rows of smallcnn" in said


# ---- other weights, other data ---------------------------------------------------------------------------------------


def test_two_networks_under_one_name_are_two_rows_and_no_comparison(xaibench, results):
    """`model.weights=random` into the same results: the labels are the same, the network is not."""
    assert xaibench("run", "method=gradient", *SWEEP[1:], "model.weights=random")[0] == 0
    board = pd.read_csv("results/leaderboard.csv")
    rows = board[(board["method"] == "gradient") & (board["statistic"] == "degradation")]
    assert rows["model_key"].nunique() == 2 and rows["data_key"].nunique() == 1 and rows["value"].nunique() == 2
    identity = [*leaderboard.IDENTITY, "model_key", "data_key", "sample_key"]
    assert not board.duplicated(identity).any()
    assert list(board.columns) == list(leaderboard.COLUMNS)
    code, _, said = xaibench("check", "--baseline", "baseline.csv")
    both = list(Path("results/scores").rglob("gradient-*.csv"))
    assert code == 3 and len(both) == 2 and all(str(path) in said for path in both) and "other weights" in said
    # People are shown which is which, in tables and on the page, of which each is a board of its own.
    for text in (xaibench("leaderboard")[1], xaibench("rank", "--all")[1]):
        assert all(f"smallcnn [{key[:6]}]" in text for key in set(board["model_key"])) or "rank" in text
    xaibench("report", "--images", "2")
    html = Path("results/report/index.html").read_text()
    assert all(f"smallcnn [{key[:6]}]" in html for key in set(board["model_key"]))
    assert xaibench("report", "--leaderboard", "results/leaderboard.csv", "--out", "page")[0] == 0
    assert "smallcnn [" in Path("page/index.html").read_text()


def test_a_lone_row_of_other_weights_is_compared_and_says_so(xaibench, results):
    shutil.rmtree("results")
    assert xaibench("run", "-m", *SWEEP, "model.weights=random")[0] == 0
    code, out, _ = xaibench("check", "--baseline", "baseline.csv", "--format", "json")
    rows = json.loads(out)["rows"]
    assert code == 1 and all("other weights" in row["why"] for row in rows)
    assert {row["verdict"] for row in rows} >= {"regressed"}
    # A baseline from before the columns says nothing of weights: values alone are compared.
    old = pd.read_csv("baseline.csv", dtype=str, keep_default_na=False).drop(columns=["model_key", "data_key"])
    old.to_csv("old.csv", index=False)
    rows = json.loads(xaibench("check", "--baseline", "old.csv", "--format", "json")[1])["rows"]
    assert [row["why"] for row in rows] == [""] * 9


def test_a_row_that_is_the_same_by_other_weights_is_shown():
    (one, other) = (leaderboard.table([cell("a", [1.0, 2.0])]) for _ in range(2))
    (row,) = check.check(one.assign(model_key="w"), other)
    assert (row.mark, row.why) == ("=", "other weights")
    (row,) = check.check(one.assign(data_key="d"), other)
    assert (row.mark, row.why) == ("=", "other data")


# ---- other code, failed runs -----------------------------------------------------------------------------------------


def test_results_that_other_code_of_ours_made_are_refused(xaibench, results):
    card = json.loads(file_of("gradient", ".json").read_text())
    assert card["sources"] == [provenance.sources()]
    # Numbers that come out of an older cache are the older code's, whoever writes the file.
    spec = next(Path("cache/maps").rglob("gradient/*/spec.json"))
    spec.write_text(spec.read_text().replace(provenance.sources(), "0123456789abcdef"))
    assert xaibench("run", "method=gradient", *SWEEP[1:])[0] == 0
    code, out, said = xaibench("check", "--baseline", "baseline.csv")
    assert code == 3 and out == ""
    assert str(file_of("gradient")) in said and "0123456789abcdef" in said and "runner.reuse=force" in said
    assert xaibench("leaderboard")[0] == 0
    assert xaibench("run", "method=gradient", *SWEEP[1:], "runner.reuse=force")[0] == 0
    assert xaibench("check", "--baseline", "baseline.csv")[0] == 0


def test_the_digest_of_our_code_follows_every_file_of_it(tmp_path):
    package = Path(provenance.__file__).parents[1]
    code = "from xaibench.store import provenance; print(provenance.sources())"

    def digest():
        done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    shutil.copytree(package, tmp_path / "xaibench", ignore=shutil.ignore_patterns("__pycache__", "*.safetensors"))
    assert digest() == provenance.sources()
    edit = tmp_path / "xaibench" / "methods" / "gradients" / "gradient.py"
    edit.write_text(edit.read_text() + "\n")
    assert digest() != provenance.sources()


def own_method(folder):
    (folder / "mine.py").write_text(OWN)
    (folder / "own" / "method").mkdir(parents=True)
    (folder / "own" / "method" / "mine.yaml").write_text("# Mine.\n_target_: mine.Mine\n")
    return ("--config-dir=own", "method=mine", *SWEEP[1:], "runner.reuse=force")


@pytest.mark.parametrize("sweep", [False, True])
def test_rows_of_an_earlier_run_do_not_pass_for_those_of_one_that_failed(xaibench, here, sweep):
    run = ("run", *(["-m"] if sweep else []), *own_method(here))
    assert xaibench(*run)[0] == 0
    shutil.copy("results/leaderboard.csv", "baseline.csv")
    Path("broken").touch()
    assert xaibench(*run)[0] == 1
    code, out, _ = xaibench("check", "--baseline", "baseline.csv")
    assert code == 1 and "compared 0 rows: 3 failed" in out and "division by zero" in out
    Path("broken").unlink()
    assert xaibench(*run)[0] == 0
    assert xaibench("check", "--baseline", "baseline.csv")[:2] == (0, "compared 3 rows: 3 same\n")
    assert not list(Path("results").rglob(".unfinished*"))


def test_nor_for_those_of_one_that_was_killed_or_whose_class_is_broken(xaibench, here, spawn):
    arguments = ("run", *own_method(here))
    code = "import sys; sys.path.append('.'); from xaibench.cli import main; sys.exit(main(sys.argv[1:]))"
    assert spawn(code, *arguments).wait() == 0
    shutil.copy("results/leaderboard.csv", "baseline.csv")
    Path("stop").touch()
    assert spawn(code, *arguments).wait() == -signal.SIGKILL
    code_, out, _ = xaibench("check", "--baseline", "baseline.csv")
    assert code_ == 1 and "3 failed" in out and "it began and did not end" in out
    Path("stop").unlink()
    assert spawn(code, *arguments).wait() == 0
    assert xaibench("check", "--baseline", "baseline.csv")[0] == 0
    Path("mine.py").write_text("def (")
    time.sleep(0.01)
    assert spawn(code, *arguments).wait() == 2
    code_, out, _ = xaibench("check", "--baseline", "baseline.csv")
    assert code_ == 1 and "3 failed" in out and "importing it failed" in out
    Path("mine.py").write_text(OWN)
    assert spawn(code, *arguments).wait() == 0
    assert xaibench("check", "--baseline", "baseline.csv")[0] == 0


def test_the_gate_has_the_ranks_rule_for_what_is_equal():
    """A drop by the tolerance itself is allowed, and small units are no excuse to call a changed sample unchanged."""
    (row,) = check.check(leaderboard.table([cell("a", [0.5] * 2)]), leaderboard.table([cell("a", [0.495] * 2)]))
    assert (row.mark, row.tolerance) == ("=", 0.005)
    unit = 1e-12
    old, new = (cell("a", np.array(values) * unit) for values in ([1.0, 2.0, 3.0], [1.0, 2.1, 3.0]))
    tables = (leaderboard.table([old]), leaderboard.table([new]))
    (row,) = check.check(*tables, samples_before=check.per_sample([old]), samples_after=check.per_sample([new]))
    assert row.changed == 1

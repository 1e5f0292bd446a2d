"""What a person sees while it runs: real sweeps, with a method that takes its time, in a log and on a terminal."""

import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from xaibench.errors import about
from xaibench.report import terminal
from xaibench.report.terminal import Pace, Sweep

SLOW = """
import time
from xaibench.methods.base import Method
class Slow(Method):
    def __init__(self, seconds: float = 0.0, k: int = 0, fail: bool = False):
        self.seconds, self.fail = seconds, fail
    def attribute(self, classifier, inputs, targets, context):
        if self.fail:
            raise RuntimeError("the same trouble")
        time.sleep(self.seconds)
        return inputs
"""


@pytest.fixture
def slow(here):
    (here / "slow_one.py").write_text(SLOW)
    (here / "conf" / "method").mkdir(parents=True)
    (here / "conf" / "method" / "slow.yaml").write_text(
        "# Slow.\n_target_: slow_one.Slow\nseconds: 0\nk: 0\nfail: false\n"
    )
    return ("run", "-m", "--config-dir", "conf", "method=slow", "dataset.limit=3", "metric.steps=2")


def test_a_log_says_what_will_be_done_and_where_it_is_within_a_block(xaibench, slow, monkeypatch):
    monkeypatch.setattr(terminal, "SECONDS_BETWEEN_LINES", 0.4)
    code, out, said = xaibench(*slow, "method.k=0,1,2", "method.seconds=1.0")
    assert code == 0, said
    assert said.splitlines()[0].startswith("3 cells to run (3 method.k)")
    assert re.search(r"^cell 1 of 3: smallcnn x shapes x slow x degradation: 0 of 3 maps, 0 of 3 scores", said, re.M)
    # The one block of maps is not done yet, and still it speaks.
    assert (
        len(re.findall(r"^cell 2 of 3: .*0 of 3 maps.* so far.*about \d+ s to the end of the sweep", said, re.M)) >= 1
    ), said
    assert "cell 3 of 3" in said and "3 of 3 cells done" in said
    assert "cell" not in out


def test_how_long_a_sweep_takes_is_said_once_as_soon_as_it_is_known(xaibench, slow, monkeypatch):
    monkeypatch.setattr(terminal, "SECONDS_BEFORE_ESTIMATE", 0.5)
    code, _, said = xaibench(*slow, "method.k=range(4)", "method.seconds=0.3")
    assert code == 0 and "to the end of the sweep" not in said, said  # less than is worth a line
    monkeypatch.setattr(terminal, "SECONDS_BETWEEN_LINES", 0.8)
    code, _, said = xaibench(*slow, "method.k=range(6)", "method.seconds=0.7")
    assert code == 0
    told = re.findall(r"^(\d) of 6 cells took \d+ s: about \d+ s to the end of the sweep$", said, re.M)
    assert told == ["3"], said


def test_cells_shorter_than_half_a_minute_share_it(xaibench, slow, monkeypatch):
    monkeypatch.setattr(terminal, "SECONDS_BETWEEN_LINES", 1.5)
    code, _, said = xaibench(*slow, "method.k=range(6)", "method.seconds=0.7")
    assert code == 0 and 2 <= len(re.findall(r"^cell \d of 6", said, re.M)) <= 12, said


def test_a_terminal_has_a_bar_of_the_sweep_and_of_each_stage(slow, here):
    """A real process on a pseudo-terminal."""
    inside, outside = pty.openpty()
    command = [sys.executable, "-m", "xaibench", *slow, "method.k=0,1,2", "method.seconds=0.5"]
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root), "TERM": "xterm", "COLUMNS": "120"}
    process = subprocess.Popen(command, cwd=here, env=environment, stdout=subprocess.DEVNULL, stderr=outside)
    os.close(outside)
    seen = b""
    while True:
        try:
            part = os.read(inside, 4096)
        except OSError:
            break
        if not part:
            break
        seen += part
    assert process.wait(60) == 0
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", seen.decode())
    for number in (1, 2, 3):
        assert f"cell {number} of 3" in text
    assert "slow x degradation: maps" in text and "3/3" in text
    assert re.search(r"cell 2 of 3 .* \d+ s", text)


def test_estimates_are_of_the_pace_so_far(monkeypatch):
    now = 100.0
    monkeypatch.setattr(terminal.time, "monotonic", lambda: now)
    monkeypatch.setattr(terminal.time, "time", lambda: now)
    pace = Pace({"maps": 10, "scores": 10}, Sweep(3, 4, began=80.0))
    assert pace.left_of("maps") is None
    pace.report("fits", 0)
    now += 30
    pace.report("maps", 0)  # the fit's half minute is not the maps'
    now += 4
    pace.report("maps", 2)
    now += 1
    pace.report("scores", 2)
    assert pace.left_of("maps") == 16 and pace.left_of("scores") == 4
    # 2.2 cells took 55 s.
    assert pace.left_of_sweep() == pytest.approx(55 / 2.2 * 1.8)
    assert (
        pace.line("a")
        == "cell 3 of 4: a: 2 of 10 maps, 2 of 10 scores, about 20 s left, about 45 s to the end of the sweep"
    )
    assert [about(s) for s in (None, 5, 119, 600, 9000)] == ["", "5 s", "119 s", "10 min", "2.5 h"]


def test_equal_failures_are_told_once_with_a_count_and_each_again(xaibench, slow, here):
    code, _, said = xaibench(*slow, "method.k=0,1,2,3", "method.fail=true,false")
    assert code == 1
    assert said.count("the same trouble") == 2  # as it happens, and at the end
    assert said.count("for the same reason as before") == 3
    assert "4 of 8 cells done, 4 failed" in said
    words = "this failed in a way that was not foreseen: RuntimeError: the same trouble"
    assert f"failed (4 cells): {words}" in said
    again = re.findall(r"^  again: (xaibench run .*)$", said, re.M)
    assert len(again) == 4 and all(f"--config-dir={here / 'conf'}" in line for line in again)


def test_a_plan_trains_fits_and_fetches_nothing(xaibench, here, monkeypatch):
    def never(*arguments, **options):
        raise AssertionError("a plan computed something")

    from xaibench.engine import training
    from xaibench.methods.bottleneck.iba import IBA

    monkeypatch.setattr(training, "train", never)
    monkeypatch.setattr(IBA, "fit", never)
    recipe = ("model.weights=recipe", "runner.plan=true", "dataset.limit=5")
    code, out, _ = xaibench("run", *recipe, "method=iba", "dataset.filter.correct=true")
    assert code == 0
    rows = {line.split("│")[1].strip(): line for line in out.splitlines() if line.startswith("│")}
    assert re.search(r"weights +│ [0-9a-f]{16} +│ +0 │ +1 │", rows["weights"])
    assert "after training" in rows["maps"] and "after training" in rows["scores"] and "│       5 │" in rows["maps"]
    for metric in ("roar", "label_randomization"):
        code, out, said = xaibench("run", *recipe, f"metric={metric}")
        assert code == 0 and "after training" in out, said
    assert out.count("weights") == 2  # label_randomization trains two
    code, _, said = xaibench("run", "dataset=mnist", "model=lenet", "runner.plan=true", "dataset.root=away")
    assert code == 2 and "downloads nothing" in said and not (here / "away").exists()
    monkeypatch.setenv("TORCH_HOME", str(here / "hub"))
    code, out, said = xaibench(
        "run", "model=torchvision", "model.arch=resnet18", "model.weights=DEFAULT", "runner.classes=any", *recipe[1:]
    )
    assert code == 0 and "a download of DEFAULT" in out and not (here / "hub" / "hub").exists(), said
    assert not list(here.glob("cache/weights/**/*")) and not list(here.glob("cache/fits/**/*"))
    monkeypatch.undo()


def test_what_a_plan_says_of_keys_is_what_the_run_has(xaibench, here):
    """The key of an untrained network's training is that of the training."""
    recipe = ("model=rog_net", "dataset=ring_of_gaussians", "model.weights=recipe", "model.recipe.epochs=1")
    code, out, said = xaibench("run", *recipe, "metric=completeness", "dataset.limit=2", "runner.plan=true")
    assert code == 0, said
    key = re.search(r"weights +│ ([0-9a-f]{16})", out)[1]
    code, out, said = xaibench("train", *recipe)
    assert code == 0 and f"/{key}/" in out, said
    code, out, said = xaibench("run", *recipe, "metric=completeness", "dataset.limit=2", "runner.plan=true")
    assert code == 0 and "weights" not in out and "after training" not in out
    torch.manual_seed(0)


def test_a_sweep_of_finished_cells_says_where_it_is(xaibench, slow, monkeypatch):
    """They say nothing of themselves."""
    assert xaibench(*slow, "method.k=range(5)")[0] == 0
    monkeypatch.setattr(terminal, "SECONDS_BETWEEN_LINES", 0.001)
    code, _, said = xaibench(*slow, "method.k=range(5)")
    lines = re.findall(r"^cell (\d+) of 5: about \d+ s to the end of the sweep$", said, re.M)
    assert code == 0 and len(lines) >= 3 and lines == sorted(lines, key=int), said

"""Workers that are killed: the others go on, and the sweep ends in its list with the command that runs the rest."""

import shlex
import time

import pytest

MAIN = "import sys; from xaibench.cli import main; sys.exit(main(sys.argv[1:]))"
QUICK = ("dataset.limit=2", "metric.steps=2")

# Its cell k=0 kills its own process, as the kernel does where memory runs out, until somebody makes the file `spared`.
FATAL = """
import os, signal, time
from pathlib import Path
from xaibench.methods.base import Method

class Fatal(Method):
    def __init__(self, k: int = 0, seconds: float = 0.0):
        self.k, self.seconds = k, seconds
    def attribute(self, classifier, inputs, targets, context):
        Path(f"begun-{self.k}").touch()
        if self.k == 0 and not Path("spared").exists():
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(self.seconds)
        return inputs * (self.k + 1)
"""


@pytest.fixture
def fatal(here):
    """The start of a command with that method."""
    (here / "fatal.py").write_text(FATAL)
    (here / "conf/method").mkdir(parents=True)
    (here / "conf/method/fatal.yaml").write_text("_target_: fatal.Fatal\nk: 0\nseconds: 0.0\n")
    return ("run", "-m", "--config-dir=conf", "method=fatal", *QUICK)


def until(there, process, log, seconds=120):
    """Wait until something is there."""
    deadline = time.monotonic() + seconds
    while not there():
        assert process.poll() is None and time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("launcher", "how", "lost"),
    [("joblib", "hydra.launcher.n_jobs=2", [0]), ("submitit_local", "runner.cells_per_task=2", [0, 1])],
)
def test_a_killed_worker_leaves_the_others_standing(xaibench, here, spawn, fatal, launcher, how, lost):
    """joblib: only the cell at fault is lost; submitit: also what its job had not begun. The commands that the list
    has make the leaderboard what it would have been."""
    pytest.importorskip(f"hydra_plugins.hydra_{launcher.split('_')[0]}_launcher")
    sweep = (*fatal, "method.k=range(3)")
    process = spawn(MAIN, *sweep, f"hydra/launcher={launcher}", how)
    said = here / "log.txt"
    assert process.wait(240) == 1, said.read_text()
    text = said.read_text()
    assert f"{3 - len(lost)} of 3 cells done, {len(lost)} failed" in text
    assert "Traceback" not in text
    assert {row.split(",")[3] for row in (here / "results/leaderboard.csv").read_text().splitlines()[1:]}
    again = [shlex.split(line)[1:] for line in text.splitlines() if line.startswith("  again: ")]
    assert [next(word for word in words if word.startswith("method.k=")) for words in again] == [
        f"method.k={k}" for k in lost
    ]
    (here / "spared").touch()
    for words in again:
        assert xaibench(*words[1:])[0] == 0
    assert xaibench(*sweep, "paths.cache=c", "paths.results=r")[0] == 0
    assert (here / "results/leaderboard.csv").read_bytes() == (here / "r/leaderboard.csv").read_bytes()

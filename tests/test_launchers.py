"""Workers that are killed: the others go on, and the sweep ends in its list with the command that runs the rest.

The scenes on SLURM start a real one (`../shared/tools`), where its packages are installed.
"""

import contextlib
import fcntl
import os
import re
import shlex
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import pytest

from .conftest import SHARED

LISTEN = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
MAIN = "import sys; from xaibench.cli import main; sys.exit(main(sys.argv[1:]))"
QUICK = ("dataset.limit=2", "metric.steps=2")

# Until somebody makes the file `spared`, cell k=0 kills its own process, as the kernel does where memory runs out, and
# k=1 takes so many seconds.
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
        if self.k == 1 and not Path("spared").exists():
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
        alive = process is None or process.poll() is None
        assert alive and time.monotonic() < deadline, log.read_text() if log else "waited in vain"
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


@pytest.mark.parametrize("launcher", ["joblib", "submitit_local"])
def test_ctrl_c_ends_the_workers_too(here, spawn, fatal, launcher):
    pytest.importorskip(f"hydra_plugins.hydra_{launcher.split('_')[0]}_launcher")
    (here / "fatal.py").write_text(FATAL.replace("touch()", "write_text(str(os.getpid()))"))
    more = ["hydra.launcher.n_jobs=2"] if launcher == "joblib" else []
    process = spawn(LISTEN + MAIN, *fatal, "method.k=1,2", "method.seconds=600", f"hydra/launcher={launcher}", *more)
    until((here / "begun-1").exists, process, here / "log.txt")
    process.send_signal(signal.SIGINT)
    assert process.wait(180) == 130, (here / "log.txt").read_text()
    text = (here / "log.txt").read_text()
    assert "interrupted" in text
    assert launcher == "submitit_local" or "Traceback" not in text, text  # submitit's controllers leave theirs
    worker = Path("/proc", (here / "begun-1").read_text(), "stat")
    until(lambda: not worker.exists() or ") Z " in worker.read_text(), None, here / "log.txt", 120)


# Blocks of one sample. Each says in a file that it is begun, and by which process. It takes some seconds; where these
# are 0 the second one takes until somebody makes the file `spared`.
SLOW = """
import os, time
from pathlib import Path
from xaibench.methods.base import Method

class Slow(Method):
    def __init__(self, seconds: float = 0.0):
        self.seconds = seconds
    def cost(self, classifier):
        return 10**6, 0
    def attribute(self, classifier, inputs, targets, context):
        with open("blocks", "a") as file:
            file.write(f"{os.getpid()}\\n")
        time.sleep(self.seconds)
        while not self.seconds and len(Path("blocks").read_text().split()) == 2 and not Path("spared").exists():
            time.sleep(0.05)
        return inputs
"""


@pytest.fixture
def slow(here):
    """The start of a command with that method."""
    (here / "slow.py").write_text(SLOW)
    (here / "conf/method").mkdir(parents=True)
    (here / "conf/method/slow.yaml").write_text("_target_: slow.Slow\nseconds: 0.0\n")
    return ("run", "-m", "--config-dir=conf", "method=slow", "metric.steps=2")


def test_before_a_job_is_queued_again_its_block_is_written(here, spawn, slow):
    """The signal comes while the second of three blocks is being computed, which is written before the job goes; the
    one that follows it finds two and computes the third. No block is computed twice."""
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    process = spawn(MAIN, *slow, "dataset.limit=3", "hydra/launcher=submitit_local")
    until(lambda: len(begun(here)) == 2, process, here / "log.txt")
    os.kill(int(begun(here)[1]), signal.SIGUSR2)
    (here / "spared").touch()
    assert process.wait(180) == 0, (here / "log.txt").read_text()
    assert len(begun(here)) == 3 and len(set(begun(here))) == 2
    assert "1 of 1 cells done, 0 failed" in (here / "log.txt").read_text()


def begun(here):
    """The blocks that `Slow` has begun, by the processes that did."""
    return (here / "blocks").read_text().split() if (here / "blocks").exists() else []


SBATCH = """#!/bin/sh
for script; do true; done
cat "$script" > asked
echo Submitted batch job 77
"""


def test_what_is_asked_of_slurm(xaibench, here, monkeypatch):
    """The overrides of docs/cluster.md as sbatch gets them, from an sbatch that keeps what it is given."""
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    (here / "bin").mkdir()
    for name in ("sbatch", "srun"):
        (here / "bin" / name).write_text(SBATCH)
        (here / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{here / 'bin'}:{os.environ['PATH']}")
    wanted = {
        "timeout_min": (240, "time=240"),
        "signal_delay_s": (90, "signal=USR2@90"),
        "gpus_per_node": (2, "gpus-per-node=2"),
        "cpus_per_task": (4, "cpus-per-task=4"),
        "mem_gb": (16, "mem=16GB"),
        "partition": ("long", "partition=long"),
        "account": ("lab", "account=lab"),
        "qos": ("low", "qos=low"),
        "constraint": ("a100", "constraint=a100"),
        "array_parallelism": (2, "array=0-2%2"),
    }
    asked = [f"hydra.launcher.{name}={value}" for name, (value, _) in wanted.items()]
    asked += ["+hydra.launcher.additional_parameters.mail-type=END"]
    sweep = ("run", "-m", "--detach", "method=gradient,saliency,input", "runner.cells_per_task=1", *QUICK)
    code, _, said = xaibench(*sweep, "hydra/launcher=submitit_slurm", *asked)
    assert code == 0, said
    assert "3 jobs xaibench-smallcnn-degradation: 77_0 to 77_2" in said
    script = (here / "asked").read_text().splitlines()
    assert {f"#SBATCH --{line}" for _, line in wanted.values()} <= set(script)
    assert {"#SBATCH --mail-type=END", "#SBATCH --job-name=xaibench-smallcnn-degradation"} <= set(script)
    code, _, said = xaibench(*sweep, "hydra/launcher=submitit_slurm", "hydra.launcher.gres=gpu:2")
    assert code == 0 and "#SBATCH --gres=gpu:2" in (here / "asked").read_text().splitlines()


# ---- SLURM -----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def locked(name, how):
    """Workers of pytest that share this SLURM wait for each other."""
    with (Path(tempfile.gettempdir()) / f"xaibench-{name}.lock").open("w") as lock:
        fcntl.flock(lock, how)
        yield lock


@pytest.fixture(scope="session")
def started():
    """A SLURM of four processors on this machine. Each worker has its session: the one that started it ends it when no
    other is at it."""
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    if os.getuid() != 0 or not all(map(shutil.which, ("slurmctld", "slurmd", "munged", "sbatch"))):
        pytest.skip("no SLURM to start: it takes root and the packages slurmctld, slurmd, slurm-client and munge")
    if not (SHARED / "tools/slurm-up.sh").exists():
        pytest.skip("no SLURM to start: ../shared/tools/slurm-up.sh is absent")
    with locked("slurm", fcntl.LOCK_EX) as lock:
        runs = subprocess.run(["squeue"], capture_output=True).returncode == 0
        if not runs:
            subprocess.run(["bash", SHARED / "tools/slurm-up.sh"], check=True, capture_output=True, timeout=120)
        fcntl.flock(lock, fcntl.LOCK_SH)
        yield
        if not runs:
            fcntl.flock(lock, fcntl.LOCK_EX)
            subprocess.run(["bash", SHARED / "tools/slurm-down.sh"], check=True, capture_output=True, timeout=60)


@pytest.fixture
def cluster(started):
    """SLURM, with other workers' jobs beside."""
    with locked("slurm-jobs", fcntl.LOCK_SH):
        yield


@pytest.fixture
def whole_cluster(started):
    """SLURM for one test alone: what it submits drives other jobs out."""
    with locked("slurm-jobs", fcntl.LOCK_EX):
        yield


SLURM = ("hydra/launcher=submitit_slurm", "hydra.launcher.timeout_min=10")


def test_slurm_has_the_results_of_one_process(xaibench, here, spawn, fatal, cluster):
    """12 cells by four jobs; each shard is computed once."""
    (here / "spared").touch()
    sweep = (*fatal, "method.k=range(12)")
    process = spawn(MAIN, *sweep, *SLURM, "runner.cells_per_task=3")
    assert process.wait(240) == 0, (here / "log.txt").read_text()
    text = (here / "log.txt").read_text()
    (first, last) = re.search(
        r"4 jobs xaibench-smallcnn-degradation: (\d+)_0 to (\d+)_3; logs: .*submitit", text
    ).groups()
    assert first == last
    assert [line.split()[-1] for line in text.splitlines() if line.startswith(f"  {first}_")] == [
        f"method.k={k}" for k in range(12)
    ]
    assert "0 of 12 done, 0 running, 0 failed" in text and "12 of 12 cells done, 0 failed" in text
    assert xaibench(*sweep, "paths.cache=c", "paths.results=r")[0] == 0
    assert (here / "results/leaderboard.csv").read_bytes() == (here / "r/leaderboard.csv").read_bytes()


def test_slurm_jobs_that_are_killed_or_cancelled_are_in_the_list(here, spawn, fatal, cluster):
    process = spawn(MAIN, *fatal, "method.k=range(3)", "method.seconds=600", *SLURM, "runner.cells_per_task=1")
    until((here / "begun-1").exists, process, here / "log.txt")
    job = re.search(r"(\d+)_1: method.k=1", (here / "log.txt").read_text())[1]
    subprocess.run(["scancel", f"{job}_1"], check=True)
    assert process.wait(240) == 1, (here / "log.txt").read_text()
    text = (here / "log.txt").read_text()
    assert "1 of 3 cells done, 2 failed" in text and "Traceback" not in text
    assert f"failed: its job {job}_0 ended (FAILED) while at it" in text
    assert f"failed: its job {job}_1 ended (CANCELLED) while at it" in text
    again = [shlex.split(line) for line in text.splitlines() if line.startswith("  again: ")]
    assert [word for words in again for word in words if "method.k=" in word] == ["method.k=0", "method.k=1"]
    assert (here / "results/leaderboard.csv").exists()


def test_a_sweep_left_to_slurm_is_found_again(xaibench, here, spawn, fatal, cluster):
    code, _, said = xaibench(*fatal, "method.k=1", "method.seconds=600", *SLURM, "--detach")
    assert code == 0 and "cells done" not in said
    (folder,) = (here / "results/.sweeps").iterdir()
    assert f"xaibench sweep wait {folder}" in said
    until((here / "begun-1").exists, None, here / "fatal.py")
    assert xaibench("sweep", "status", str(folder))[1].startswith("0 of 1 done, 1 running, 0 failed\n")
    process = spawn(LISTEN + MAIN, "sweep", "wait", str(folder))
    until(lambda: "1 running" in (here / "log.txt").read_text(), process, here / "log.txt")
    process.send_signal(signal.SIGINT)
    assert process.wait(180) == 130
    job = re.search(r"1 job xaibench-smallcnn-degradation: (\d+);", said)[1]
    assert f"this job goes on: {job}" in (here / "log.txt").read_text()
    assert xaibench("sweep", "cancel", str(folder))[2] == f"cancelled: {job}\n"
    code, _, said = xaibench("sweep", "wait", str(folder))
    assert code == 1 and "0 of 1 cells done, 1 failed" in said and f"its job {job} ended (CANCELLED)" in said


def test_slurm_jobs_that_are_preempted_end_well(here, spawn, fatal, whole_cluster):
    """By a job of the partition that goes before."""
    process = spawn(MAIN, *fatal, "method.k=1", "method.seconds=600", *SLURM)
    until((here / "begun-1").exists, process, here / "log.txt")
    job = job_of(here)
    (here / "spared").touch()
    subprocess.run(["srun", "--partition=urgent", "--ntasks=4", "true"], check=True, capture_output=True, timeout=90)
    until(lambda: pending(job), process, here / "log.txt")
    begin_now(job)
    assert process.wait(240) == 0, (here / "log.txt").read_text()
    assert "1 of 1 cells done, 0 failed" in (here / "log.txt").read_text()


def test_slurm_jobs_that_are_out_of_time_go_on_where_they_were(here, spawn, slow, cluster):
    """A limit of a minute, and blocks that take longer together: SLURM sends its signal, the block at work is written,
    and the job that is queued again computes the others. No block is computed twice."""
    limit = ("hydra.launcher.timeout_min=1", "hydra.launcher.signal_delay_s=10", "hydra.launcher.max_num_timeout=20")
    cell = (*slow, "method.seconds=2", "dataset.limit=32")
    process = spawn(MAIN, *cell, "hydra/launcher=submitit_slurm", *limit)
    until(lambda: "degradation: " in (here / "log.txt").read_text(), process, here / "log.txt")
    job, again = job_of(here), 0
    while process.poll() is None:
        if pending(job) and begun(here):
            begin_now(job)
            again += 1
        time.sleep(1)
    assert process.wait() == 0, (here / "log.txt").read_text()
    assert again and len(begun(here)) == 32 and len(set(begun(here))) > 1
    assert "1 of 1 cells done, 0 failed" in (here / "log.txt").read_text()


def job_of(here):
    """The id of the one job that a command says it has submitted."""
    return re.search(r"degradation: (\d+);", (here / "log.txt").read_text())[1]


def pending(job):
    """Whether SLURM has queued a job."""
    asked = ["squeue", "--noheader", f"--jobs={job}", "--format=%T"]
    return subprocess.run(asked, capture_output=True, text=True).stdout.strip() == "PENDING"


def begin_now(job):
    """Have a job that is queued again begin now, instead of two minutes later: when its former processes are over and
    SLURM has their exit code, which it would otherwise take for that of the new ones."""
    step = ["pgrep", "--full", rf"slurmstepd: \[{job}\."]
    until(lambda: subprocess.run(step, capture_output=True).returncode == 1, None, None, seconds=60)
    time.sleep(3)
    subprocess.run(["scontrol", "update", f"jobid={job}", "starttime=now"], check=True)


def test_what_slurm_refuses_is_said_in_a_line(xaibench, cluster):
    code, _, said = xaibench("run", "-m", *SLURM, "seed=0", "hydra.launcher.partition=nothing", *QUICK)
    assert code == 2 and "SLURM takes no such job: sbatch: error: invalid partition specified: nothing" in said
    code, _, said = xaibench("run", "--detach", *QUICK)
    assert code == 2 and "--detach: expected a sweep that SLURM has" in said
    code, _, said = xaibench("sweep", "status", "results/.sweeps/gone")
    assert code == 2 and "expected the folder of a sweep" in said

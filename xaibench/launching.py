"""How launched jobs of a sweep get to Hydra's launchers, and what is made of workers that are killed.

The launchers do the work: joblib's starts processes, submitit's hands jobs to SLURM or to processes of this machine.
But joblib ends all workers when one is killed, and submitit's raises at the first job that has no result: here cells
that were not begun are launched again, and jobs are waited for until each is over, by the statuses of their cells.
"""

import contextlib
import getpass
import itertools
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hydra.plugins.launcher import Launcher

from . import sweeps
from .errors import UserError, first_line
from .sweeps import Launched, Plan

# The states of SLURM jobs that may still do something (man squeue); submitit's local ones run until they do not.
LIVE = {
    *("PENDING", "RUNNING", "SUSPENDED", "COMPLETING", "CONFIGURING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD"),
    *("RESIZING", "SIGNALING", "STAGE_OUT", "STOPPED", "SPECIAL_EXIT"),
}
# How often statuses are looked for, and the scheduler is asked: at first often, then every half minute.
SECONDS_BETWEEN_LOOKS = 1.0
SECONDS_BETWEEN_QUESTIONS = (2.0, 30.0)
# A shared file system may show statuses later than the scheduler tells that their job is done.
SECONDS_FOR_FILES = 15.0


@dataclass(frozen=True)
class State:
    """Of a job: its state in SLURM's words, and why it is pending."""

    name: str
    reason: str = ""

    @property
    def live(self) -> bool:
        """Whether it may still do something."""
        return self.name in LIVE


Ask = Callable[[], Mapping[str, State]]


def name(launcher: Any, usual: str, better: str) -> None:
    """Name the jobs of a scheduler, unless somebody gave them another name than the usual one."""
    if _is_of("submitit", launcher) and launcher.params["name"] == usual:
        launcher.params["name"] = better


def launch(launcher: Launcher, folder: Path, chunks: range, overrides: list[str], leave: bool) -> list[Any]:
    """Launch some of the plan's chunks and wait until they are over -> what the launcher returned of each.

    leave: do not wait for jobs of SLURM.
    """
    if _is_of("joblib", launcher):
        return _by_joblib(launcher, folder, chunks, overrides)
    if _is_of("submitit", launcher):
        _by_submitit(launcher, folder, chunks, overrides, leave)
        return []
    return _launched(launcher, chunks, overrides)


def _is_of(plugin: str, launcher: Launcher) -> bool:
    return type(launcher).__module__.startswith(f"hydra_plugins.hydra_{plugin}_launcher")


def _launched(launcher: Launcher, chunks: range, overrides: list[str]) -> list[Any]:
    return list(launcher.launch([overrides] * len(chunks), initial_job_idx=chunks.start))


# ---- joblib ----------------------------------------------------------------------------------------------------------


def _by_joblib(launcher: Launcher, folder: Path, chunks: range, overrides: list[str]) -> list[Any]:
    """joblib ends all its workers when one is killed. What they had not begun goes on with new ones; of the cells that
    they were at each has a second try, alone, so that only the one at fault is lost."""
    from joblib.externals.loky.process_executor import TerminatedWorkerError

    from .report import terminal

    try:
        return _launched(launcher, chunks, overrides)
    except TerminatedWorkerError:
        plan = sweeps.read_plan(folder)
        left = {number for job in chunks for number in range(*plan.chunks[job])} - sweeps.told(folder)
        tried = sorted(left & {sweeps.cell_at(folder, job) for job in chunks})
        if not tried or len(chunks) == len(left) == 1:
            return []  # killed before any work, or once more: lost
        size = max(end - first for first, end in (plan.chunks[job] for job in chunks))
        terminal.worker_killed([plan.differing(number) for number in tried])
        anew = _by_joblib(launcher, folder, further(folder, _runs(left.difference(tried), size)), overrides)
        return anew + [
            result
            for number in tried
            for result in _by_joblib(launcher, folder, further(folder, [(number, number + 1)]), overrides)
        ]


def further(folder: Path, chunks: list[tuple[int, int]]) -> range:
    """Add chunks to the plan of a sweep -> their numbers."""
    plan = sweeps.read_plan(folder)
    sweeps.write_plan(folder, replace(plan, chunks=[*plan.chunks, *chunks]))
    return range(len(plan.chunks), len(plan.chunks) + len(chunks))


def _runs(numbers: set[int], size: int) -> list[tuple[int, int]]:
    """The runs (first, end) of at most `size` that some numbers make."""
    runs = []
    for _, group in itertools.groupby(enumerate(sorted(numbers)), lambda pair: pair[1] - pair[0]):
        members = [number for _, number in group]
        parts = (members[at : at + size] for at in range(0, len(members), size))
        runs += [(part[0], part[-1] + 1) for part in parts]
    return runs


# ---- submitit --------------------------------------------------------------------------------------------------------


def _by_submitit(launcher: Any, folder: Path, chunks: range, overrides: list[str], leave: bool) -> None:
    from .report import terminal

    submitted = _submitted(launcher, chunks, overrides)
    cluster = "slurm" if type(submitted[0]).__name__ == "SlurmJob" else "local"
    before = sweeps.read_jobs(folder)
    jobs = [Launched(cluster, job.job_id, str(job.paths.folder)) for job in submitted]
    sweeps.write_jobs(folder, [*before, *jobs])
    plan = sweeps.read_plan(folder)
    of_job = [[plan.differing(number) for number in range(*plan.chunks[job])] for job in chunks]
    terminal.launched([job.id for job in jobs], of_job, launcher.params["name"], str(Path(jobs[0].log).parent))
    if cluster == "local":
        try:
            wait(folder, lambda: {job.job_id: State("RUNNING") for job in submitted if job.state == "RUNNING"})
        except KeyboardInterrupt:
            for job in submitted:
                job.cancel()
            terminal.cancelled([job.job_id for job in submitted])
            raise
    elif leave:
        terminal.left(folder)
    else:
        wait_for_slurm(folder)


def _submitted(launcher: Launcher, chunks: range, overrides: list[str]) -> list[Any]:
    """Let submitit's launcher submit, without waiting for results -> its jobs. Raises UserError if it cannot."""
    from submitit import AutoExecutor
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    executors: Any = AutoExecutor
    theirs = executors.map_array

    def submit(executor: AutoExecutor, *arguments: Any) -> list[_Handle]:
        return [_Handle(job) for job in theirs(executor, *arguments)]

    executors.map_array = submit
    try:
        return _launched(launcher, chunks, overrides)
    except (FailedJobError, FailedSubmissionError, ValueError) as error:
        said = next((line for line in str(error).splitlines() if "sbatch: error" in line), first_line(error))
        raise UserError(f"hydra.launcher: SLURM takes no such job: {said.strip()}") from error
    except RuntimeError as error:
        if "srun" not in str(error):
            raise
        said = "there is no SLURM on this machine (no srun); hydra/launcher=submitit_local runs jobs without one"
        raise UserError(f"hydra/launcher=submitit_slurm: {said}") from error
    finally:
        executors.map_array = theirs


class _Handle:
    """What the launcher takes for a job and asks for its results: the job itself, which is not waited for."""

    def __init__(self, job: Any) -> None:
        self.job = job

    def results(self) -> list[Any]:
        return [self.job]


def slurm_states() -> dict[str, State]:
    """The jobs of this user that SLURM has or had until lately, by id (array elements as 12_3).

    squeue is asked since every cluster has it; sacct takes a data base. Raises UserError if it does not answer.
    """
    question = ["squeue", "--noheader", "--array", "--states=all", f"--user={getpass.getuser()}", "--format=%i|%T|%r"]
    try:
        answer = subprocess.run(question, capture_output=True, text=True, check=True, timeout=60).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise UserError(f"SLURM does not answer (squeue): {first_line(error)}") from error
    rows = (line.split("|", 2) for line in answer.splitlines())
    return {row[0]: State(row[1], row[2] if row[1] == "PENDING" else "") for row in rows if len(row) == 3}


def status(folder: Path) -> str:
    """How far a sweep is and the jobs that SLURM still has of it, in words. Raises UserError if no scheduler has it."""
    jobs = _of_slurm(folder)
    states = slurm_states()
    far = how_far(sweeps.Account(folder, sweeps.read_plan(folder)), jobs, states)
    lines = [f"  {job.id}: {states[job.id].name.lower()}" for job in jobs if states.get(job.id, State("")).live]
    return "\n".join([far, *(lines or ["no job of this sweep is left; `xaibench sweep wait` tells its end"])])


def _of_slurm(folder: Path) -> list[Launched]:
    jobs = sweeps.read_jobs(folder)
    if not any(job.cluster == "slurm" for job in jobs):  # of local ones the ids are those of processes
        raise UserError(f"{folder}: expected a sweep that SLURM has, by hydra/launcher=submitit_slurm; this is another")
    return jobs


def still(folder: Path) -> list[str]:
    """The jobs of a sweep that SLURM still has."""
    states = slurm_states()
    return [job.id for job in _of_slurm(folder) if job.id in states and states[job.id].live]


def cancel(jobs: list[str]) -> None:
    """Ask SLURM to end jobs."""
    try:
        subprocess.run(["scancel", *jobs], check=True, capture_output=True, text=True)
    except subprocess.CalledProcessError as error:
        raise UserError(f"scancel {' '.join(jobs)}: {first_line(RuntimeError(error.stderr))}") from error


def wait_for_slurm(folder: Path) -> None:
    """As `wait`. On Ctrl-C it says which jobs go on, offers to cancel them, and raises KeyboardInterrupt."""
    from .report import terminal

    _of_slurm(folder)
    try:
        wait(folder, slurm_states)
    except KeyboardInterrupt:
        with contextlib.suppress(UserError):
            if (left := still(folder)) and terminal.go_on(left, folder):
                cancel(left)
                terminal.cancelled(left)
        raise


def wait(folder: Path, ask: Ask) -> None:
    """Wait until all jobs of a sweep are over, and show how far it is. ask: the states of jobs; those that it does not
    name are over. What became of each is kept in the folder."""
    from .report import terminal

    plan, jobs = sweeps.read_plan(folder), sweeps.read_jobs(folder)
    account = sweeps.Account(folder, plan)
    states: Mapping[str, State] = {}
    before: Mapping[str, State] | None = None  # the answer that first said all jobs are over
    with terminal.waiting() as show:
        for states in _answers(ask):
            over = _over(jobs, states)
            show(how_far(account, jobs, states))
            if len(over) < len(jobs):
                before = None
            elif before is None and len(sweeps.told(folder)) < len(plan.cells):
                before = states  # a job that is requeued has FAILED for a moment: asked once more
            elif states is not before:
                break
        _wait_for_files(folder, plan, jobs, states)
    sweeps.write_jobs(folder, [replace(job, state=_end_of(job, states) or job.state) for job in jobs])


def how_far(account: sweeps.Account, jobs: list[Launched], states: Mapping[str, State]) -> str:
    """Such as: 12 of 48 done, 3 running, 1 failed; 2 jobs pending (Priority)."""
    found = account.counts(_over(jobs, states))
    now = [states.get(job.id, State("")) for job in jobs]
    running = sum(
        state.name == "RUNNING" and sweeps.cell_at(account.folder, number) is not None
        for number, state in enumerate(now)
    )
    pending = Counter(state.reason for state in now if state.name == "PENDING")
    said = f"{found.done} of {found.total} done, {running} running, {found.failed} failed"
    why = ", ".join(reason for reason in pending if reason and reason != "None")
    count = pending.total()
    waits = f"; {count} job{'s' * (count != 1)} pending" + (f" ({why})" if why else "")
    return said + (waits if count else "")


def _answers(ask: Ask) -> Iterator[Mapping[str, State]]:
    """The states of jobs, at every look, while the scheduler is asked now and then. It may be away for a while."""
    began = asked = time.monotonic()
    states = ask()
    low, high = SECONDS_BETWEEN_QUESTIONS
    while True:
        yield states
        time.sleep(SECONDS_BETWEEN_LOOKS)
        now = time.monotonic()
        if now - asked >= min(max(low, (now - began) / 10), high):
            with contextlib.suppress(UserError):
                states = ask()
            asked = now


def _over(jobs: list[Launched], states: Mapping[str, State]) -> set[int]:
    return {number for number, job in enumerate(jobs) if not states.get(job.id, State("")).live}


def _end_of(job: Launched, states: Mapping[str, State]) -> str:
    return states[job.id].name if job.id in states else ""


def _wait_for_files(folder: Path, plan: Plan, jobs: list[Launched], states: Mapping[str, State]) -> None:
    """Wait a little for the statuses of jobs that SLURM says are done."""
    done = [number for number, job in enumerate(jobs) if _end_of(job, states) == "COMPLETED"]
    due = {cell for number in done for cell in range(*plan.chunks[number])}
    until = time.monotonic() + SECONDS_FOR_FILES
    while due - sweeps.told(folder) and time.monotonic() < until:
        time.sleep(SECONDS_BETWEEN_LOOKS)

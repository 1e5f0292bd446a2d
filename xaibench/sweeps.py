"""The folder of a sweep: what it was to do, what became of every cell, and its end.

Beside the statuses of its cells (NUMBER.json) it holds the plan, the jobs that a scheduler has of it, and, for each
launched job that is at work, the number of the cell that it is at (JOB.at).
"""

import json
import shlex
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .errors import UserError, nearest
from .store.files import write_atomically

PLAN, JOBS = "cells", "jobs"
# How much of the end of a log is looked through for its last words.
LAST_BYTES = 4096


@dataclass(frozen=True)
class Plan:
    """What a sweep is to do. cells: the overrides of each. chunks: (first, end), the cells of each launched job; of
    the jobs that have a cell the last one counts. time: when it began. results: the folder of the leaderboard.
    command: what runs one of its cells, before the overrides."""

    cells: list[list[str]]
    chunks: list[tuple[int, int]]
    time: float
    results: str
    command: str

    def differing(self, number: int) -> list[str]:
        """The overrides of a cell that not all cells have."""
        shared = set(self.cells[0]).intersection(self.cells[-1])  # all combinations: what changes differs at the ends
        return [text for text in self.cells[number] if text not in shared]


@dataclass(frozen=True)
class Launched:
    """A launched job that submitit has: where (slurm, or local processes), its id there, the folder of its log, and
    its state at the end, '' before."""

    cluster: str
    id: str
    log: str
    state: str = ""


@dataclass(frozen=True)
class Counts:
    """Of a sweep's cells: how many there are, are done and have failed."""

    total: int
    done: int
    failed: int


def write_plan(folder: Path, plan: Plan) -> None:
    """Replace the plan of a sweep."""
    write_atomically(folder / PLAN, json.dumps(asdict(plan)))


def read_plan(folder: Path) -> Plan:
    """The plan of a sweep. Raises UserError, with the nearest folder, where there is none."""
    try:
        return Plan(**json.loads((folder / PLAN).read_text()))
    except (OSError, ValueError, TypeError):
        near = nearest(
            folder.name, sorted((path.parent.name for path in folder.parent.glob(f"*/{PLAN}")), reverse=True)
        )
        said = f"{folder}: expected the folder of a sweep, such as results/.sweeps/20260131-120000-000000"
        raise UserError(f"{said}\n{near}".rstrip()) from None


def write_jobs(folder: Path, jobs: list[Launched]) -> None:
    """Replace what is known of the jobs that a scheduler has, in the order of the plan's chunks."""
    write_atomically(folder / JOBS, json.dumps([asdict(job) for job in jobs], indent=1))


def read_jobs(folder: Path) -> list[Launched]:
    """The jobs that a scheduler has of a sweep; none if it was left to none."""
    try:
        return [Launched(**job) for job in json.loads((folder / JOBS).read_text())]
    except FileNotFoundError:
        return []


def write_status(folder: Path, number: int, status: dict[str, Any]) -> None:
    """What became of a cell."""
    write_atomically(folder / f"{number}.json", json.dumps(status, indent=1) + "\n")


def cell_at(folder: Path, job: int) -> int | None:
    """The cell that a launched job is at, or was at when it was killed."""
    try:
        return int(_at(folder, job).read_text())
    except (FileNotFoundError, ValueError):
        return None


def begin_cell(folder: Path, job: int, number: int) -> None:
    """A launched job begins a cell."""
    _at(folder, job).write_text(str(number))


def end_job(folder: Path, job: int) -> None:
    """A launched job has been through its cells."""
    _at(folder, job).unlink(missing_ok=True)


def _at(folder: Path, job: int) -> Path:
    return folder / f"{job}.at"


def told(folder: Path) -> set[int]:
    """The cells that have a status."""
    return {int(path.stem) for path in folder.glob("*.json")}


class Account:
    """Counts the cells of a sweep while it goes on; each status is read once."""

    def __init__(self, folder: Path, plan: Plan) -> None:
        self.folder, self.plan = folder, plan
        self.failed: dict[int, bool] = {}

    def counts(self, over: set[int]) -> Counts:
        """over: the launched jobs that have ended, whose cells without a status have failed."""
        for number in told(self.folder) - self.failed.keys():
            self.failed[number] = json.loads((self.folder / f"{number}.json").read_text())["status"] == "failed"
        lost = {number for job in over for number in range(*self.plan.chunks[job])} - self.failed.keys()
        failed = sum(self.failed.values())
        return Counts(len(self.plan.cells), len(self.failed) - failed, failed + len(lost))


def statuses(folder: Path, plan: Plan, lost: bool = True) -> list[dict[str, Any]]:
    """The status of every cell, in order. lost: those that have none have failed, since nobody is at them any more;
    otherwise they are left out."""
    there, jobs = told(folder), read_jobs(folder)
    of_cell = {number: job for job, chunk in enumerate(plan.chunks) for number in range(*chunk)} if lost else {}
    found = []
    for number, cell in enumerate(plan.cells):
        if number in there:
            found.append(json.loads((folder / f"{number}.json").read_text()))
        elif lost:
            words = {"cell": " ".join(cell), "command": f"{plan.command} {shlex.join(cell)}", "files": []}
            found.append({**words, "status": "failed", "error": _why_lost(folder, number, of_cell[number], jobs)})
    return found


def _why_lost(folder: Path, number: int, job: int, jobs: list[Launched]) -> str:
    """Why a cell has no status although its launched job is over."""
    at_it = cell_at(folder, job) == number
    if job >= len(jobs):
        return f"its process was killed{' while at it; where memory runs out, the kernel does that' if at_it else ''}"
    state = f" ({jobs[job].state})" if jobs[job].state else ""
    ended = f"its job {jobs[job].id} ended{state} {'while at it' if at_it else 'before it was done'}"
    words = last_words(Path(jobs[job].log))
    return f"{ended}; log: {jobs[job].log}" + (f"\n  its last words: {words}" if words else "")


def last_words(log: Path) -> str:
    """The last error in a job's log folder, or the last line of its errors; '' if it said nothing."""
    for path in sorted(log.glob("*_log.err")):
        with open(path, "rb") as file:
            file.seek(max(0, path.stat().st_size - LAST_BYTES))
            lines = [line.strip()[:200] for line in file.read().decode(errors="replace").split("\n") if line.strip()]
        errors = [line for line in lines if "error" in line.lower()]
        return (errors or lines or [""])[-1]
    return ""


def end(folder: Path) -> Counts:
    """The end of a sweep: the leaderboard of what ran and its table, then what failed and how to run it again."""
    from .report import terminal
    from .scores import index, leaderboard

    plan = read_plan(folder)
    cells = statuses(folder, plan)
    of_sweep = {Path(file) for cell in cells for file in cell["files"]}
    if of_sweep:
        results = Path(plan.results)
        sound, damaged = index.update(results, terminal.tracked("score files read"))
        ran = leaderboard.told_apart([cell for cell in sound if cell.path in of_sweep])
        if len(ran) > terminal.MOST_SHOWN:
            terminal.overview(ran, results / "leaderboard.csv")
        else:
            terminal.leaderboard_table(leaderboard.headlines(ran))
        terminal.qualities(leaderboard.qualities(ran, sound))
        terminal.damaged(damaged)
    terminal.failures(cells)
    failed = sum(cell["status"] == "failed" for cell in cells)
    return Counts(len(cells), len(cells) - failed, failed)

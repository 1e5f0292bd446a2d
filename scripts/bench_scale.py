"""What a benchmark costs around the work itself, and how that grows: starting up, sweeps of many cells.

    python scripts/bench_scale.py                                    # all tables
    python scripts/bench_scale.py startup sweeps --cells 10 100 1000
    python scripts/bench_scale.py first --cells 10 1000 10000
    python scripts/bench_scale.py sweeps --root ../before            # of another checkout, by the same measure
    python scripts/bench_scale.py workers

Processes of their own, on one thread, and their processor's time (user and system): a busy machine has other clocks.
Ratios are to `python -c "import torch, h5py"`, run in turn with what it is held against; medians.

startup   A finished cell asked for again, beside the imports that nobody can do without. Target: 1.3 times and 0.5 s.
first     Seconds until the first cell of a sweep begins, and no further. Target: 2 s beyond the imports.
sweeps    A sweep over seeds, on two images: seconds until the first cell begins, those of each cell that has to be
          computed, those of each cell of the same sweep asked for again (from the second on: neither start nor end
          counts), and those of its end, with the leaderboard. Targets: 2 s beyond the imports, and for a finished cell
          10 ms. The peak of resident memory is the second sweep's.
killed    A sweep of the most of these cells, killed (SIGKILL) after a third and after two thirds of them and started
          again, beside an undisturbed one: whether both leaderboards are the same to the byte, and the peak of memory.
workers   The same sweep by one process, by two of joblib and by two commands side by side: by the clock, which takes an
          idle machine of two cores. Target: 1.7 times as fast.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parents[1]
IMPORTS = ("-c", "import torch, h5py")
RUN = "import sys; from xaibench.cli import main; sys.exit(main(sys.argv[1:]))"
SMALL = ("dataset.limit=2", "metric.steps=2")
# Runs a sweep, and tells on stderr the process's own seconds and memory: as it begins its first cell, as it has ended
# its last, and at the end. A cell begins where its Job is made, which both the old and the new program do in `config`.
TIMED = """
import json, os, resource, sys
def now():
    use = resource.getrusage(resource.RUSAGE_SELF)
    return use.ru_utime + use.ru_stime
from xaibench import config
marks, places = [], [config]
try:
    from xaibench import running
    places.append(running)
except ImportError:
    pass
make = config.make_job
def made(*arguments):
    marks.append(now())
    if os.environ.get("FIRST"):
        print("TIMED " + json.dumps({"marks": marks}), file=sys.stderr, flush=True)
        os._exit(0)
    return make(*arguments)
for place in places:
    place.make_job = made
from xaibench.cli import main
code = main(sys.argv[1:])
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print("TIMED " + json.dumps({"marks": marks, "end": now(), "peak": peak, "code": code}), file=sys.stderr)
"""


def processor_seconds(arguments: Sequence[str], root: Path, folder: Path) -> float:
    """User and system time of a Python process and its children, run in a folder with the package of a checkout."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    _python(arguments, root, folder)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def _python(arguments: Sequence[str], root: Path, folder: Path, **further: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", **further}
    command = [sys.executable, *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(arguments)[:200]}\n{done.stderr[-2000:]}")
    return done.stderr


def startup(options: argparse.Namespace) -> None:
    """A finished cell asked for again, over the imports."""
    with tempfile.TemporaryDirectory() as folder:
        again = ("-c", RUN, "run", *SMALL)
        _python(again, options.root, Path(folder))
        pairs = [
            (
                processor_seconds(IMPORTS, options.root, Path(folder)),
                processor_seconds(again, options.root, Path(folder)),
            )
            for _ in range(options.pairs)
        ]
    imports, ours = (statistics.median(column) for column in zip(*pairs))
    beyond = statistics.median(cell - 1.3 * alone for alone, cell in pairs)
    print("| imports, s | a finished cell, s | ratio | beyond 1.3 times the imports, s |\n|---:|---:|---:|---:|")
    print(f"| {imports:.2f} | {ours:.2f} | {ours / imports:.2f} | {beyond:.2f} |")


def first(options: argparse.Namespace) -> None:
    """Seconds to the first cell, by the number of cells."""
    print("| cells | imports, s | to the first cell, s | beyond |\n|---:|---:|---:|---:|", flush=True)
    for cells in options.cells:
        with tempfile.TemporaryDirectory() as folder:
            sweep = ("-c", TIMED, "run", "-m", "method=input", f"seed=range({cells})", *SMALL)
            pairs = [
                (
                    processor_seconds(IMPORTS, options.root, Path(folder)),
                    _marks(sweep, options.root, Path(folder), FIRST="1")["marks"][0],
                )
                for _ in range(options.pairs)
            ]
        imports, ours = (statistics.median(column) for column in zip(*pairs))
        beyond = statistics.median(there - alone for alone, there in pairs)
        print(f"| {cells} | {imports:.2f} | {ours:.2f} | {beyond:.2f} |", flush=True)


def sweeps(options: argparse.Namespace) -> None:
    """Seconds to the first cell and of each cell, by the number of cells."""
    print("| cells | to the first, s | beyond the imports | one computed, ms | finished, ms | end, s | peak, MB |")
    print("|---:|---:|---:|---:|---:|---:|---:|", flush=True)
    for cells in options.cells:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            sweep = ("-c", TIMED, "run", "-m", "method=input", f"seed=range({cells})", *SMALL)
            alone = statistics.median(processor_seconds(IMPORTS, options.root, folder) for _ in range(3))
            fresh, again = _marks(sweep, options.root, folder), _marks(sweep, options.root, folder)
            print(
                f"| {cells} | {again['marks'][0]:.2f} | {again['marks'][0] - alone:.2f} | {_each(fresh):.1f} "
                f"| {_each(again):.1f} | {again['end'] - again['marks'][-1]:.2f} | {again['peak'] / 1024:.0f} |",
                flush=True,
            )


def _marks(arguments: Sequence[str], root: Path, folder: Path, **further: str) -> dict:
    lines = _python(arguments, root, folder, **further).splitlines()
    return json.loads(next(line for line in lines if line.startswith("TIMED ")).removeprefix("TIMED "))


def _each(timed: dict) -> float:
    """Milliseconds of a cell, from the second on: the first loads what all share."""
    marks = timed["marks"][1:]
    return 1000 * (marks[-1] - marks[0]) / max(len(marks) - 1, 1)


def killed(options: argparse.Namespace) -> None:
    """A sweep that is killed twice, against one that is not."""
    cells = max(options.cells)
    print("| cells | killed after | leaderboards | processor's time, s | undisturbed, s | peak, MB |")
    print("|---:|---|---|---:|---:|---:|", flush=True)
    with tempfile.TemporaryDirectory() as name:
        folder, timed = Path(name), ("-c", TIMED, "run", "-m", "method=input", f"seed=range({cells})", *SMALL)
        used, after = 0.0, []
        for part in (1, 2):
            least = cells * part // 3
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            after.append(_kill_after(least, timed, options.root, folder))
            done = resource.getrusage(resource.RUSAGE_CHILDREN)
            used += done.ru_utime + done.ru_stime - before.ru_utime - before.ru_stime
        last = _marks(timed, options.root, folder)
        whole = _marks((*timed, "paths.cache=c", "paths.results=r"), options.root, folder)
        boards = [(folder / results / "leaderboard.csv").read_bytes() for results in ("results", "r")]
        same = "the same" if boards[0] == boards[1] else "DIFFERENT"
        peak = max(last["peak"], whole["peak"]) / 1024
        print(f"| {cells} | {after[0]} and {after[1]} | {same}, {len(boards[0].splitlines()) - 1} rows", end="")
        print(f" | {used + last['end']:.0f} | {whole['end']:.0f} | {peak:.0f} |", flush=True)


def _kill_after(least: int, arguments: Sequence[str], root: Path, folder: Path) -> int:
    """Start a command, and kill it when there are so many score files -> how many there were."""
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen([sys.executable, *arguments], cwd=folder, env=environment, **quiet)
    while (found := sum(1 for _ in folder.glob("results/scores/*/*/*/*.csv"))) < least:
        if process.poll() is not None:
            raise SystemExit(f"{' '.join(arguments)[-200:]}: it ended before it was killed")
        time.sleep(0.2)
    process.kill()
    process.wait()
    return found


def workers(options: argparse.Namespace) -> None:
    """One process, two of joblib, and two commands side by side, on a sweep of about a minute."""
    sweep = (
        "run",
        "-m",
        "method=gradient,saliency,input_x_gradient,gradcam,guided_backprop,occlusion,smoothgrad,input",
    )
    sweep += ("metric=degradation,insertion_deletion", "dataset.limit=96")
    ways: dict[str, tuple[int, tuple[str, ...]]] = {
        "one process": (1, sweep),
        "joblib, two workers": (1, (*sweep, "hydra/launcher=joblib", "hydra.launcher.n_jobs=2")),
        "two commands side by side": (2, sweep),
    }
    print("| | by the clock, s | times as fast | processor's time, s |\n|---|---:|---:|---:|")
    first = 0.0
    for name, (commands, arguments) in ways.items():
        clock, used = _together(commands, arguments, options.root)
        first = first or clock
        print(f"| {name} | {clock:.0f} | {first / clock:.2f} | {used:.0f} |", flush=True)


def _together(commands: int, arguments: Sequence[str], root: Path) -> tuple[float, float]:
    """Seconds by the clock and of the processor that so many processes of one command take, from nothing."""
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        command = [sys.executable, "-c", RUN, *arguments]
        started = [subprocess.Popen(command, cwd=folder, env=environment, **quiet) for _ in range(commands)]
        if any(process.wait() for process in started):
            raise SystemExit(f"{' '.join(arguments)}: failed")
        clock, after = time.monotonic() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    return clock, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


TABLES: dict[str, Callable[[argparse.Namespace], None]] = {
    "startup": startup,
    "first": first,
    "sweeps": sweeps,
    "killed": killed,
    "workers": workers,
}


def main() -> None:
    """Print the tables that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", nargs="*", metavar="TABLE", help=f"of {', '.join(TABLES)}; default: all")
    parser.add_argument("--root", type=Path, default=HERE, help="the checkout whose package is measured")
    parser.add_argument("--cells", type=int, nargs="+", default=[10, 100, 1000], help="of sweeps")
    parser.add_argument("--pairs", type=int, default=5, help="of startup")
    options = parser.parse_args()
    options.root = options.root.resolve()
    for name in options.tables or TABLES:
        if name not in TABLES:
            parser.error(f"{name}: there is no such table; choose from {', '.join(TABLES)}")
        print(f"\n## {name}\n")
        TABLES[name](options)


if __name__ == "__main__":
    main()

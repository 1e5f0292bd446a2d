"""What results cost at size: `python scripts/bench_results.py [--files 10 100 1000] [--shards 10 100] [--limit 120]`.

Score files of SAMPLES samples are written as a run writes them (`score_files.write`), METHODS methods under each metric
of a model and data set, and shards of one row as a slow method writes them. Then every command runs in a process of
its own, and what is printed is its processor time in seconds and its peak memory, as the kernel counts both. A command
that needs more than `--limit` seconds of processor time is ended, and shown as `> limit`.
"""

import argparse
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from xaibench.metrics.base import Statistic
from xaibench.scores import score_files
from xaibench.store import cache

SAMPLES, METHODS, METRICS, STEPS = 64, 16, 20, 20
CONTROLS = ("random", "sobel")
COMMANDS = ("rank", "rank --csv metrics", "report")
STATISTICS = (
    Statistic("area", "higher", column="area"),
    Statistic("first", "lower", kind="median", column="first"),
    Statistic("ratio", "higher", column="area", per="first"),
)


def place(number: int) -> tuple[str, str, str]:
    """Board, metric and method of the number-th score file."""
    rest, method = divmod(number, METHODS)
    board, metric = divmod(rest, METRICS)
    return f"data{board:02d}", f"metric{metric:02d}", (*CONTROLS, *(f"method{k:02d}" for k in range(METHODS)))[method]


def write(results: Path, number: int) -> None:
    """One cell: better methods have better scores, with noise between samples that the methods share."""
    dataset, metric, method = place(number)
    random, shared = np.random.default_rng(number), np.random.default_rng([number // METHODS, 1])
    first = shared.uniform(0.5, 1.0, SAMPLES)
    area = 0.3 + 0.02 * (number % METHODS) + 0.2 * shared.normal(size=SAMPLES) + 0.1 * random.normal(size=SAMPLES)
    curve = area[:, None] * np.linspace(1, 0, STEPS)
    keys = {"model_key": "net", "data_key": dataset, "map_key": f"{dataset}-{method}", "metric_key": metric}
    record = score_files.Record(
        model="net", dataset=dataset, method=method, metric=metric, method_variant="", metric_variant="",
        results=results, samples=tuple(range(SAMPLES)), filtered={}, statistics=STATISTICS,
        axes={"curve": np.linspace(0, 1, STEPS).tolist()}, keys={**keys, "sample_key": "all"}, computed=True,
        sources=("bench",),
        details={
            "method_cost": (1, 1), "metric_cost": (STEPS, 0), "others": [], "tuned_on": (), "device": "cpu",
            "seconds": {"maps": 1.0, "scores": 2.0}, "peak_memory_bytes": 10**9, "threads": 1, "x_label": "share",
            "left_out": {}, "config": {"metric": {}}, "command": "xaibench run", "collapse": "sum", "sign": "signed",
        },
    )  # fmt: skip
    columns = {"area": area, "first": first, "curve": curve, "status": np.zeros(SAMPLES, int)}
    score_files.write(record, columns)


def measured(what: Callable[[], Any], limit: int) -> str:
    """Processor time in seconds of a function in a process of its own, its output kept apart."""
    child = os.fork()
    if not child:
        resource.setrlimit(resource.RLIMIT_CPU, (limit, limit))
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        try:
            what()
        finally:
            os._exit(0)
    _, status, used = os.wait4(child, 0)
    return f"> {limit}" if os.WIFSIGNALED(status) else f"{used.ru_utime + used.ru_stime:.2f}"


# A small process that starts a command: the peak of a child counts what its parent had in memory when it was made.
START = """
import resource, subprocess, sys
limit, *words = sys.argv[1:]
resource.setrlimit(resource.RLIMIT_CPU, (int(limit), int(limit)))
done = subprocess.run([sys.executable, "-m", "xaibench", *words], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(done.returncode, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024)
"""
REFUSED = 2


def command(results: Path, line: str, limit: int) -> tuple[str, str]:
    """Processor time in seconds and peak memory in MB of `xaibench LINE` on a results folder."""
    words = [*line.split(), "--results", str(results)]
    words += ["--cache", str(results / "cache"), "--out", str(results / "page")] if line == "report" else []
    done = subprocess.run([sys.executable, "-c", START, str(limit), *words], capture_output=True, text=True, check=True)
    code, seconds, memory = map(float, done.stdout.split())
    said = f"> {limit}" if code < 0 else f"{seconds:.2f}{' (asks for some)' if code == REFUSED else ''}"
    return said, f"{memory:.0f}"


def score_file_rows(counts: Sequence[int], folder: Path, limit: int) -> None:
    """A row per number of score files."""
    names = ("leaderboard from nothing", "MB", "after one more cell", "MB", *COMMANDS)
    print("| score files |", " | ".join(names), "|\n|---" + "|---:" * len(names) + "|")
    results = folder / "results"
    made = 0
    for count in sorted(counts):
        for number in range(made, count):
            write(results, number)
        (results / "scores" / ".index").unlink(missing_ok=True)
        cells = [*command(results, "leaderboard", limit)]
        write(results, count)
        made = count + 1
        cells += command(results, "leaderboard", limit)
        cells += [command(results, line, limit)[0] for line in COMMANDS]
        print(f"| {count} | {' | '.join(cells)} |", flush=True)


def shard_rows(counts: Sequence[int], folder: Path, limit: int) -> None:
    """A row per number of shards of one row: what they cost to write, to open and read, and again once compacted."""
    print("| shards | write | open and read | finish | files after | open and read after |")
    print("|---|---:|---:|---:|---:|---:|")
    for count in counts:
        root = folder / f"cache{count}"

        def artefact(root: Path = root) -> cache.Artefact:
            return cache.Artefact(root, "maps", ("net", "data", "slow"), {"what": 1})

        def fill(count: int = count) -> None:
            made = artefact()
            made.create({"sources": "bench"})
            for sample in range(count):
                made.missing([sample])
                made.write([sample], {"maps": np.full((1, 1, 32, 32), sample, np.float32)})

        def read(count: int = count) -> None:
            assert len(artefact().read(range(count)).samples) == count

        cells = [measured(fill, limit), measured(read, limit), measured(lambda: artefact().finish(1.0), limit)]
        cells += [str(len(list(artefact().folder.glob("shard-*.h5")))), measured(read, limit)]
        print(f"| {count} | {' | '.join(cells)} |", flush=True)
        shutil.rmtree(root)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, nargs="*", default=[10, 100, 1000, 10_000])
    parser.add_argument("--shards", type=int, nargs="*", default=[10, 100, 1000, 10_000])
    parser.add_argument("--limit", type=int, default=120)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        score_file_rows(options.files, Path(folder), options.limit)
        print()
        shard_rows(options.shards, Path(folder), options.limit)

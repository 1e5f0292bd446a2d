"""Kill a run at random moments, resume it, and compare: `python scripts/crash_soak.py [--kills 20] [--seed 0]`.

Each round starts a run in an empty folder, kills it (SIGKILL) at a random moment between its first and its last
shard, checks that a second run ends with the very bytes of an undisturbed one, and that the shards which survived are
the same files (inode and bytes). Exit code 1 if any round fails.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RUN = [
    sys.executable, "-m", "xaibench", "run", "method=smoothgrad", "method.samples=4", "dataset.limit=700",
    "metric.steps=4", "runner.batch_size=16",
]  # fmt: skip


def start(folder: Path) -> subprocess.Popen:
    with open(folder / "log.txt", "ab") as log:
        return subprocess.Popen(RUN, cwd=folder, stdout=log, stderr=log)


def shards(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {str(p): (p.stat().st_ino, p.read_bytes()) for p in sorted(folder.rglob("shard-*.h5"))}


def rows(folder: Path) -> list[bytes]:
    return [p.read_bytes() for p in sorted(folder.glob("results/scores/**/*.csv"))]


def undisturbed(folder: Path) -> tuple[list[bytes], float, int]:
    """The rows of a whole run, the seconds between its first and last shard, and how many shards it has."""
    process, first, last = start(folder), None, None
    count = 0
    while process.poll() is None:
        found = len(list(folder.rglob("shard-*.h5")))
        if found > count:
            count, last = found, time.monotonic()
            first = first or last
        time.sleep(0.01)
    if process.returncode or first is None:
        sys.exit((folder / "log.txt").read_text())
    return rows(folder), last - first, len(shards(folder))


def killed(folder: Path, after: float) -> bool:
    """Run and kill `after` seconds past the first shard; False if the run was faster than that."""
    process = start(folder)
    while process.poll() is None and not list(folder.rglob("shard-*.h5")):
        time.sleep(0.005)
    time.sleep(after)
    if process.poll() is not None:
        return False
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    return True


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    random.seed(options.seed)
    bad = done = 0
    with tempfile.TemporaryDirectory() as root:
        reference = Path(root, "undisturbed")
        reference.mkdir()
        wanted, span, total = undisturbed(reference)
        print(f"undisturbed: {total} shards over {span:.1f} s")
        while done < options.kills:
            folder = Path(root, f"round-{random.random()}")
            folder.mkdir()
            after = random.uniform(0, span * 0.9)
            if not killed(folder, after):
                continue
            done += 1
            left = shards(folder)
            resumed = start(folder).wait()
            same_files = {name: shards(folder).get(name) for name in left} == left
            good = resumed == 0 and rows(folder) == wanted and same_files
            bad += not good
            print(
                f"kill {done}: {after:.2f} s after the first shard, {len(left)} shards left, {'ok' if good else 'BAD'}"
            )
    print(f"{done - bad} passed, {bad} failed")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())

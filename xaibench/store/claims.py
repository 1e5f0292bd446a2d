"""Claims: who of several processes does a piece of work. They avoid double work; correctness never depends on them."""

import contextlib
import functools
import logging
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

# Seconds until a process that waits for another one's claim says so, between the next times, and until it goes on
# without: a block takes half a minute, and whoever holds its claim for so long has been stopped, or is on its own.
WAIT_SAID, WAIT_AGAIN, WAIT_MOST = 10.0, 60.0, 600.0
log = logging.getLogger(__name__)


@contextlib.contextmanager
def claim(path: Path, what: str, wait: bool = True, most: float | None = None) -> Iterator[bool]:
    """Hold the claim that is a lock on the file `path` across processes; the kernel releases it on death. Yields False
    if another process has it and `wait` is false.

    Waiting is said, with `what` and who is waited for, and ends after `most` seconds (None: WAIT_MOST): the work is
    then done without the claim, twice at worst.
    """
    lock, held = FileLock(path), False
    # Who holds it, for those who wait. Beside the lock, which whoever tries to take it may empty.
    holder = path.with_name(f"{path.name}.by")
    try:
        held = _acquire(lock, holder, what, wait, WAIT_MOST if most is None else most)
        if not held and not wait:
            yield False
            return
    except FileNotFoundError:
        pass  # the folder has been removed meanwhile; writing makes it again
    except (OSError, NotImplementedError) as error:
        warn_once(f"file locks do not work in {path.parent.parent} ({error}): work may be done twice")
    if held:
        with contextlib.suppress(OSError):
            holder.write_text(f"process {os.getpid()} on {socket.gethostname()}")
    try:
        yield True
    finally:
        if held:
            with contextlib.suppress(OSError):
                holder.unlink()
            lock.release()


def _acquire(lock: FileLock, holder: Path, what: str, wait: bool, most: float) -> bool:
    """Whether the lock is held. Says now and then who is waited for, and gives up after `most` seconds."""
    started, said = time.monotonic(), 0
    while True:
        waited = time.monotonic() - started
        next_word = WAIT_SAID + said * WAIT_AGAIN
        try:
            lock.acquire(timeout=max(0.0, min(next_word, most) - waited) if wait else 0)
            return True
        except Timeout:
            if not wait:
                return False
        waited, who = time.monotonic() - started, _holder(holder)
        if waited >= most:
            log.warning("%s: %s has held it for %.0f s; going on without", what, who, waited)
            return False
        said += 1
        log.warning(
            "%s: waiting for %s, which is at it (%.0f s); after %.0f s this process goes on alone",
            what, who, waited, most,
        )  # fmt: skip


def _holder(path: Path) -> str:
    """Who holds a claim, as they wrote it, and whether they can go on."""
    try:
        said = path.read_text().strip()
        _, process, _, host = said.split()
    except (OSError, ValueError):
        return "another process"
    state = ""
    with contextlib.suppress(OSError):  # not on Linux, or gone
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    return f"{said}, which is stopped," if host == socket.gethostname() and state in ("T", "t") else said


def is_claimed(folder: Path) -> bool:
    """Whether a process holds a claim on something in an artefact."""
    for path in folder.glob(".claim-*"):
        if path.suffix == ".by":
            continue
        lock = FileLock(path)
        try:
            lock.acquire(timeout=0)
            lock.release()
        except Timeout:
            return True
        except (OSError, NotImplementedError):
            continue
    return False


@functools.cache
def warn_once(message: str) -> None:
    """Say it the first time."""
    log.warning(message)

"""What looking at a file once told, kept on disk until the file changes.

A file is the one that was looked at while its path, size, inode and times (of its content and of its inode, which
nobody can set back) are the same. One that changed less than two seconds before it was looked at is looked at again
the next time: another change within one tick of the clock would leave its times as they are.

The memo is a convenience, and no key depends on it: where it cannot be written, is damaged or was written by two
processes at once, files are looked at again. It lies in the folder that the environment variable XAIBENCH_MEMO names
(empty: nowhere), else in `xaibench` below XDG_CACHE_HOME or ~/.cache.
"""

import contextlib
import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ..errors import UserError, XaibenchError
from .files import remove_leftovers, write_atomically

log = logging.getLogger(__name__)

SETTLED = 2_000_000_000  # nanoseconds; the times of FAT are in steps of two seconds
LONG = 2**30  # bytes to read of which a message says so
State = list[int]


def contents(root: Path, files: Sequence[Path]) -> dict[str, str]:
    """sha256 of each file's content, by its path relative to root. Raises as `memoised` does."""
    digests = memoised(root, files, "sha256", lambda content: hashlib.sha256(content).hexdigest())
    return dict(zip((path.relative_to(root).as_posix() for path in files), digests))


def memoised(root: Path, files: Sequence[Path], what: str, of: Callable[[bytes], str]) -> list[str]:
    """`of` each file's content, in order; read and computed, in threads, only of files that the memo does not know.

    what: names the function `of` and its version. Raises UserError naming a file that cannot be read.
    """
    memo = _memo_file(root, what)
    known = _read(memo)
    names = [path.relative_to(root).as_posix() for path in files]
    states = [_state(path) for path in files]
    values: list[Any] = [
        known[name][1] if known.get(name, [None])[0] == state else None for name, state in zip(names, states)
    ]
    missing = [place for place, value in enumerate(values) if value is None]
    if not missing:
        return values
    size = sum(states[place][0] for place in missing)
    if size > LONG:
        log.info("%s: reading %d files (%.1f GB), the first time only", root, len(missing), size / 1e9)
    latest = time.time_ns() - SETTLED
    with ThreadPoolExecutor(max_workers=4) as pool:
        for place, value in zip(missing, pool.map(lambda place: of(read_bytes(files[place])), missing)):
            values[place] = value
    learned = {
        names[place]: [states[place], values[place]]
        for place in missing
        if max(states[place][2:]) < latest and _state(files[place]) == states[place]
    }
    if learned:
        _write(memo, learned)
    return values


def read_bytes(path: Path) -> bytes:
    """The content of a file. Raises UserError naming it."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise _unread(path, error) from error


def _state(path: Path) -> State:
    """Size, inode, and the times of the content and of the inode: what tells whether a file is still the same."""
    try:
        found = path.stat()
    except OSError as error:
        raise _unread(path, error) from error
    return [found.st_size, found.st_ino, found.st_mtime_ns, found.st_ctime_ns]


def _unread(path: Path, error: OSError) -> UserError:
    return UserError(f"{path}: cannot be read ({error.strerror or error})")


def _memo_file(root: Path, what: str) -> Path | None:
    """Where the memo of these files is; None if there is no place for it."""
    named = os.environ.get("XAIBENCH_MEMO")
    if named == "":
        return None
    try:
        folder = Path(named).expanduser() if named else _user_cache() / "xaibench"
    except RuntimeError:  # a user without a home
        return None
    digest = hashlib.sha256(json.dumps([str(root.resolve()), what]).encode()).hexdigest()
    return folder / f"{digest[:32]}.json"


def _user_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")


def _read(memo: Path | None) -> dict[str, list[Any]]:
    """What a memo knows, [state, value] by name; nothing if it is not there or damaged, which its first line tells."""
    if memo is None:
        return {}
    try:
        digest, _, text = memo.read_bytes().partition(b"\n")
    except OSError:
        return {}
    return json.loads(text) if digest.decode(errors="replace") == hashlib.sha256(text).hexdigest() else {}


def _write(memo: Path | None, learned: Mapping[str, list[Any]]) -> None:
    """Add to a memo. Of two processes that do so at once, the later one's knowledge stays."""
    if memo is None:
        return
    text = json.dumps(_read(memo) | dict(learned))
    # A home that is full or must not be written only costs the time to look again.
    with contextlib.suppress(XaibenchError, OSError):
        write_atomically(memo, hashlib.sha256(text.encode()).hexdigest() + "\n" + text)
        remove_leftovers(memo.parent)

"""Files that users name: what exists nearby, what identifies a listing, and a write that is whole or absent."""

import contextlib
import errno
import hashlib
import json
import os
import socket
import uuid
from collections.abc import Mapping
from pathlib import Path

from ..errors import CacheError, UserError, nearest


def existing(path: str | Path, where: str) -> Path:
    """The path, if it is there. Raises UserError naming the first part that is missing, and the nearest name there of
    its kind: a folder, or a file of the same ending."""
    path = Path(path).expanduser()
    if path.exists():
        return path
    missing = path
    while not missing.parent.is_dir():
        missing = missing.parent
    if missing == path and path.suffix:
        names = [entry.name for entry in missing.parent.iterdir() if entry.suffix == path.suffix]
    else:
        names = [entry.name for entry in missing.parent.iterdir() if entry.is_dir()]
    near = nearest(missing.name, sorted(names)) if missing.parent.absolute() != Path(path.absolute().anchor) else ""
    raise UserError(f"{where}={path}: there is no '{missing.name}' in {missing.parent.absolute()}\n{near}".rstrip())


def safe_name(name: str) -> str:
    """A folder name that any file system takes, and that leads nowhere else: no `..`."""
    safe = "".join(c if c.isalnum() or c in "._-" else "_" for c in str(name))
    return safe if safe.strip(".") else "_" * max(len(safe), 1)


def fingerprint(contents: Mapping[str, str], *identity: object) -> str:
    """sha256 over files, each by its path and the digest of its content (`memo.contents`), and what else identifies."""
    return hashlib.sha256(json.dumps([*identity, sorted(contents.items())]).encode()).hexdigest()


def write_atomically(path: Path, data: bytes | str) -> None:
    """Write aside, fsync, rename: a reader sees the old file or the new one. Raises as `write_error` says."""
    aside = path.with_name(aside_name())
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_synced(aside, data.encode() if isinstance(data, str) else data)
        os.replace(aside, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            aside.unlink()
        raise write_error(path, error) from error


def write_synced(path: Path, data: bytes) -> None:
    """Write a file and wait until it is on the disk."""
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def aside_name() -> str:
    """A hidden name for a file being written, which says which process of which machine is at it."""
    return f".aside-{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"


def remove_leftovers(folder: Path) -> None:
    """Delete files written aside by processes of this machine that are no longer alive."""
    for path in folder.glob(f".aside-{socket.gethostname()}-*"):
        try:
            os.kill(int(path.name.rsplit("-", 2)[1]), 0)
        except ProcessLookupError:
            path.unlink(missing_ok=True)
        except (ValueError, PermissionError):
            continue


def write_error(path: Path, error: OSError) -> CacheError | UserError:
    """What to tell the user: a folder that must not be written is their mistake, a full disk is not."""
    said = f"cannot write {path}: {error.strerror or error}"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
        return UserError(f"{said}\nset paths.cache and paths.results to folders that you may write")
    return CacheError(f"{said}\nwhat was finished before is kept; make room and run again")

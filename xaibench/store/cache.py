"""HDF5 artefacts on disk: keys, immutable shards, integrity, claims. Knows arrays and specs, not methods or metrics.

An artefact is a folder `<root>/<kind>/<names...>/<key>/` whose key digests everything that can change its numbers.
It holds `spec.json` (that everything, readable), shards `shard-00000.h5 ...`, and `manifest.json`, rewritten at the
end of a run. A shard is built in memory, written aside, fsynced and linked to its final name, so that a file with a
shard's name is whole; its HDF5 user block carries the sha256 of the rest, so that it can be believed on its own,
without the manifest. Two processes may work on one artefact: a claim avoids double work, and correctness never
depends on it.
"""

import contextlib
import errno
import functools
import hashlib
import io
import json
import logging
import os
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from filelock import FileLock, Timeout

from .files import aside_name, remove_leftovers, write_atomically, write_error, write_synced

SCHEMA = 1
KINDS = ("maps", "responses", "scores", "fits", "weights", "trainings", "probes")
SHARD_SAMPLES = 64
_USER_BLOCK = 512
_MARK = b"xaibench shard sha256="
log = logging.getLogger(__name__)


class CorruptShard(Exception):
    """A shard that is truncated, altered, or not a shard of this artefact."""


def canonical(spec: Any) -> str:
    """Sorted, compact JSON: the text that a key digests. Raises ValueError for NaN and infinities."""
    return json.dumps(spec, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=True)


def digest(spec: Any) -> str:
    """The key of a spec: the first 16 hexadecimal digits of the sha256 of its canonical JSON."""
    return hashlib.sha256(canonical(spec).encode()).hexdigest()[:16]


def pack(arrays: Mapping[str, np.ndarray], attributes: Mapping[str, Any]) -> bytes:
    """Named arrays [n,...] as one HDF5 file in memory: one row per chunk, Fletcher32, no compression, and the sha256
    of everything after the user block inside it."""
    buffer = io.BytesIO()
    with h5py.File(buffer, "w", userblock_size=_USER_BLOCK) as file:
        file.attrs.update(attributes)
        for name, array in arrays.items():
            array = np.ascontiguousarray(array)
            rows = array if array.ndim and array.size else array.reshape(-1)
            # Scalars per row go into one chunk: a chunk of four bytes costs more than it protects.
            chunk = None if not rows.size else ((1, *rows.shape[1:]) if rows.ndim > 1 else rows.shape)
            file.create_dataset(name, data=array, chunks=chunk, fletcher32=chunk is not None)
    data = bytearray(buffer.getvalue())
    data[:_USER_BLOCK] = _user_block(data)
    return bytes(data)


def unpack(data: bytes, key: str) -> dict[str, np.ndarray]:
    """The arrays of a packed file. Raises CorruptShard if a byte has changed or it belongs to another key."""
    if data[:_USER_BLOCK] != _user_block(data):
        raise CorruptShard("it fails its checksum" if data.startswith(_MARK) else "it is cut short or not a shard")
    try:
        with h5py.File(io.BytesIO(data), "r") as file:
            if file.attrs.get("schema") != SCHEMA or file.attrs.get("key") != key:
                raise CorruptShard("it belongs to another schema or key")
            return {name: file[name][()] for name in file}
    except (OSError, KeyError, RuntimeError) as error:
        raise CorruptShard(f"it cannot be read ({error})") from error


def _user_block(data: bytes | bytearray) -> bytes:
    """What the first bytes of a packed file must be: the sha256 of all that follows them."""
    sha256 = hashlib.sha256(memoryview(data)[_USER_BLOCK:]).hexdigest()
    return (_MARK + sha256.encode() + b"\n").ljust(_USER_BLOCK, b"\0")


@dataclass(frozen=True)
class Rows:
    """What an artefact has for a list of samples: the arrays of those present, in the order of `samples`."""

    samples: tuple[int, ...]
    arrays: dict[str, np.ndarray]


class Artefact:
    """One keyed folder of shards with a row per sample.

    kind: one of KINDS. names: folder names for people (model, dataset, method...). spec: everything that can change
    the numbers. Creating one touches nothing on disk; writing does.
    """

    def __init__(self, root: Path, kind: str, names: Sequence[str], spec: Mapping[str, Any]) -> None:
        self.root, self.kind = root, kind
        self.spec = {"schema": SCHEMA, "kind": kind, **spec}
        self.key = digest(self.spec)
        self.folder = Path(root, kind, *(safe_name(name) for name in names), self.key)
        self._index: dict[int, str] = {}
        self._known: set[str] = set()
        self._last: tuple[str, dict[str, np.ndarray]] | None = None

    @classmethod
    def opened(cls, root: Path, kind: str, names: Sequence[str], key: str) -> "Artefact | None":
        """The artefact with this key as its spec.json describes it; None if there is none, or another is described."""
        path = Path(root, kind, *(safe_name(name) for name in names), key, "spec.json")
        try:
            artefact = cls(root, kind, names, json.loads(path.read_text())["spec"])
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return artefact if artefact.key == key else None

    # ---- reading -------------------------------------------------------------------------------------------------

    def samples(self) -> list[int]:
        """The samples that there are rows of, in the order in which they were written."""
        self._refresh()
        return list(self._index)

    def missing(self, samples: Iterable[int]) -> list[int]:
        """The samples that no shard names. Shards are read, and checked, when their rows are."""
        self._refresh()
        return [sample for sample in samples if sample not in self._index]

    def read(self, samples: Sequence[int]) -> Rows:
        """The rows there are for these samples, checked. A corrupt shard is said so, removed, and counts as absent."""
        self._refresh()
        names = dict.fromkeys(self._index[s] for s in samples if s in self._index)
        shards = {name: arrays for name in names if (arrays := self._load(name)) is not None}
        found = tuple(s for s in samples if self._index.get(s) in shards)
        rows: dict[str, list[np.ndarray]] = {}
        places = {name: {int(s): i for i, s in enumerate(arrays["sample"])} for name, arrays in shards.items()}
        for sample in found:
            name = self._index[sample]
            for column, array in shards[name].items():
                rows.setdefault(column, []).append(array[places[name][sample]])
        return Rows(found, {column: np.stack(values) for column, values in rows.items()})

    def load_whole(self, name: str) -> dict[str, np.ndarray] | None:
        """The arrays of a file written by `save_whole`, or None if it is absent or corrupt (which is said)."""
        path = self.folder / f"{name}.h5"
        try:
            return unpack(path.read_bytes(), self.key)
        except FileNotFoundError:
            return None
        except CorruptShard as error:
            log.warning("%s: %s; it is computed again", path, error)
            return None

    # ---- writing -------------------------------------------------------------------------------------------------

    def create(self, provenance: Mapping[str, Any]) -> None:
        """Make the folder and its spec.json. Raises UserError where the cache cannot be written."""
        path = self.folder / "spec.json"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if digest(json.loads(path.read_text())["spec"]) == self.key:
                return
            log.warning("%s does not describe this key; written anew", path)
        except FileNotFoundError:
            pass
        except (ValueError, KeyError, TypeError):
            log.warning("%s cannot be read; written anew", path)
        except OSError as error:
            raise write_error(self.folder, error) from error
        text = json.dumps({"spec": self.spec, "provenance": dict(provenance)}, indent=1, sort_keys=True)
        write_atomically(path, text + "\n")

    def write(self, samples: Sequence[int], arrays: Mapping[str, np.ndarray]) -> Path:
        """One immutable shard with a row per sample; returns its path."""
        data = pack({"sample": np.asarray(samples, dtype=np.int64), **arrays}, {"key": self.key, "schema": SCHEMA})
        return self._publish(data)

    def save_whole(self, name: str, arrays: Mapping[str, np.ndarray]) -> None:
        """Arrays that do not belong to samples (a method's fit) as one file."""
        write_atomically(self.folder / f"{name}.h5", pack(arrays, {"key": self.key, "schema": SCHEMA}))

    def finish(self, seconds: float) -> dict[str, Any]:
        """Write the manifest: every shard with its samples and sha256, and the seconds spent so far with this run's."""
        manifest = self.manifest()
        self._refresh()
        by_shard: dict[str, list[int]] = {name: [] for name in sorted(self._known)}
        for sample, name in self._index.items():
            by_shard[name].append(sample)
        shards = [
            {"name": n, "sha256": _stated_sha256(self.folder / n), "samples": samples}
            for n, samples in by_shard.items()
        ]
        seconds = round(manifest.get("seconds", 0.0) + seconds, 3)
        if manifest.get("shards") != shards:
            manifest = {"schema": SCHEMA, "key": self.key, "shards": shards, "seconds": seconds}
            write_atomically(self.folder / "manifest.json", json.dumps(manifest, indent=1) + "\n")
        self.tidy()
        return manifest

    def tidy(self) -> None:
        """Remove claims and what dead processes of this machine left behind."""
        for path in self.folder.glob(".claim-*"):
            with contextlib.suppress(OSError):
                path.unlink()
        remove_leftovers(self.folder)

    def manifest(self) -> dict[str, Any]:
        """The manifest as last written; empty if there is none or it cannot be read."""
        try:
            return json.loads((self.folder / "manifest.json").read_text())
        except (OSError, ValueError):
            return {}

    def sources(self) -> set[str]:
        """The digest of our code that made it, as spec.json records it; `unknown` if it does not, none if there is
        no artefact."""
        try:
            return {str(json.loads((self.folder / "spec.json").read_text())["provenance"]["sources"])}
        except FileNotFoundError:
            return set()
        except (OSError, ValueError, KeyError, TypeError):
            return {"unknown"}

    def discard(self, samples: Iterable[int]) -> None:
        """Remove the shards that hold these samples: their inputs are not what they were."""
        self._refresh()
        for name in {self._index[sample] for sample in samples if sample in self._index}:
            self._forget(name)

    def remove(self) -> None:
        """Delete the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self._index, self._known, self._last = {}, set(), None

    @contextlib.contextmanager
    def claim(self, what: object, wait: bool = True) -> Iterator[bool]:
        """Hold the claim on a piece of work (`what`, such as sample ids) across processes; the kernel releases it on
        death. Yields False if another process has it and `wait` is false."""
        lock = FileLock(self.folder / f".claim-{digest(repr(what))}")
        held = False
        try:
            lock.acquire(timeout=-1 if wait else 0)
            held = True
        except Timeout:
            yield False
            return
        except (OSError, NotImplementedError) as error:
            _warn_once(f"file locks do not work in {self.folder.parent} ({error}): work may be done twice")
        try:
            yield True
        finally:
            if held:
                lock.release()

    # ---- inside --------------------------------------------------------------------------------------------------

    def _refresh(self) -> None:
        """Learn the samples of shards that have appeared since the last look."""
        try:
            names = sorted(p.name for p in self.folder.iterdir() if p.match("shard-*.h5"))
        except FileNotFoundError:
            return
        listed = {s["name"]: s["samples"] for s in self.manifest().get("shards", [])} if not self._known else {}
        for name in names:
            if name in self._known:
                continue
            samples = listed.get(name)
            if samples is None:
                arrays = self._load(name)
                samples = [] if arrays is None else arrays["sample"]
                if arrays is None:
                    continue
            self._known.add(name)
            for sample in samples:
                self._index.setdefault(int(sample), name)

    def _load(self, name: str) -> dict[str, np.ndarray] | None:
        """A shard's arrays; None, after saying so and removing it, if it is corrupt. The last one is kept in memory."""
        if self._last and self._last[0] == name:
            return self._last[1]
        path = self.folder / name
        try:
            arrays = unpack(path.read_bytes(), self.key)
        except (CorruptShard, FileNotFoundError) as error:
            reason = "it is gone" if isinstance(error, FileNotFoundError) else error
            lost = sum(1 for shard in self._index.values() if shard == name)
            log.warning("%s: %s; %s computed again", path, reason, f"its {lost} samples are" if lost else "it is")
            self._forget(name)
            return None
        self._last = (name, arrays)
        return arrays

    def _forget(self, name: str) -> None:
        with contextlib.suppress(OSError):
            (self.folder / name).unlink()
        self._index = {sample: shard for sample, shard in self._index.items() if shard != name}
        self._known.discard(name)
        self._last = None

    def _publish(self, data: bytes) -> Path:
        aside = self.folder / aside_name()
        try:
            write_synced(aside, data)
            path = _link_to_free_name(aside, self.folder)
            _sync_folder(self.folder)
        except OSError as error:
            with contextlib.suppress(OSError):
                aside.unlink()
            raise write_error(self.folder, error) from error
        self._refresh()
        return path


def _link_to_free_name(aside: Path, folder: Path) -> Path:
    """Give a finished file the next free shard name, never replacing one."""
    number = 1 + max((int(p.stem[6:]) for p in folder.glob("shard-*.h5") if p.stem[6:].isdigit()), default=-1)
    while True:
        path = folder / f"shard-{number:05d}.h5"
        try:
            os.link(aside, path)
            aside.unlink()
            return path
        except FileExistsError:
            number += 1
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK):
                raise
            # A file system without hard links: reserve the name, then rename over the reservation.
            with contextlib.suppress(FileExistsError):
                os.close(os.open(path, os.O_CREAT | os.O_EXCL))
                os.replace(aside, path)
                return path
            number += 1


def _sync_folder(folder: Path) -> None:
    # Not every file system lets a folder be opened or synced; the rename itself is done.
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _stated_sha256(path: Path) -> str:
    try:
        with open(path, "rb") as file:
            return file.read(_USER_BLOCK)[len(_MARK) : len(_MARK) + 64].decode("ascii", "replace")
    except OSError:
        return ""


def safe_name(name: str) -> str:
    """A folder name that any file system takes."""
    return "".join(c if c.isalnum() or c in "._-" else "_" for c in str(name)) or "_"


@functools.cache
def _warn_once(message: str) -> None:
    log.warning(message)


# ---- the whole cache: what `xaibench cache` shows and does -----------------------------------------------------------


@dataclass(frozen=True)
class Listed:
    """One artefact as `cache ls` shows it: kind, path below the root, shards, samples, bytes, time of last change."""

    kind: str
    path: str
    shards: int
    samples: int
    size: int
    changed: float


def artefacts(root: Path) -> list[Path]:
    """The folder of every artefact below the root, sorted."""
    return sorted(path.parent for kind in KINDS for path in Path(root, kind).rglob("spec.json"))


def listing(root: Path) -> list[Listed]:
    """Every artefact with its size, sorted by path."""
    listed = []
    for folder in artefacts(root):
        files = [p for p in folder.rglob("*") if p.is_file()]
        try:
            manifest = json.loads((folder / "manifest.json").read_text())
        except (OSError, ValueError):
            manifest = {"shards": []}
        below = folder.relative_to(root)
        listed.append(
            Listed(
                kind=below.parts[0],
                path=str(Path(*below.parts[1:])),
                shards=len(list(folder.glob("shard-*.h5"))),
                samples=sum(len(s["samples"]) for s in manifest["shards"]),
                size=sum(p.stat().st_size for p in files),
                changed=max(p.stat().st_mtime for p in files),
            )
        )
    return listed


def verify(root: Path) -> tuple[int, list[str]]:
    """Check every HDF5 file of every artefact against its own checksum -> (files checked, what is wrong)."""
    checked, wrong = 0, []
    for folder in artefacts(root):
        try:
            spec = json.loads((folder / "spec.json").read_text())["spec"]
            if digest(spec) != folder.name:
                wrong.append(f"{folder / 'spec.json'}: it does not describe its key")
        except (OSError, ValueError, KeyError, TypeError):
            wrong.append(f"{folder / 'spec.json'}: it cannot be read")
        for path in sorted(folder.glob("*.h5")):
            checked += 1
            try:
                unpack(path.read_bytes(), folder.name)
            except (CorruptShard, OSError) as error:
                wrong.append(f"{path}: {error}")
    return checked, wrong


def prune(root: Path, older_than: float | None, max_size: int | None) -> list[Listed]:
    """Delete artefacts not changed for `older_than` seconds, then the oldest until the rest fits `max_size` bytes."""
    entries = sorted(listing(root), key=lambda entry: entry.changed)
    total, now, removed = sum(e.size for e in entries), time.time(), []
    for entry in entries:
        too_old = older_than is not None and now - entry.changed > older_than
        too_much = max_size is not None and total > max_size
        if too_old or too_much:
            shutil.rmtree(Path(root, entry.kind, entry.path))
            total -= entry.size
            removed.append(entry)
    return removed

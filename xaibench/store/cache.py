"""HDF5 artefacts on disk: keys, immutable shards, integrity, claims. Knows arrays and specs, not methods or metrics.

An artefact is a folder `<root>/<kind>/<names...>/<key>/` whose key digests everything that can change its numbers.
It holds `spec.json` (that everything, readable), shards `shard-00000.h5 ...`, and `manifest.json`, rewritten at the
end of a run. A shard is built in memory, written aside, fsynced and linked to its final name, so that a file with a
shard's name is whole; its HDF5 user block carries the sha256 of the rest, so that it can be believed on its own,
without the manifest. Two processes may work on one artefact: a claim avoids double work, and correctness never
depends on it.

Once there are many small shards, the end of a run merges them: the larger shard is published under the next free name,
then the manifest is rewritten, then the small ones are removed. At each moment every row is in some shard; whoever
misses a shard that has been merged looks again, and finds its rows.
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
import socket
import time
import uuid
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
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
# So many shards of fewer than SMALL bytes are merged, into shards of up to PACKED bytes and rows: one row is read by
# reading its shard, and a damaged shard is lost as a whole.
MANY, SMALL, PACKED_BYTES, PACKED_ROWS = 32, 2**20, 2**23, 1024
# Times that a reader looks again for shards that were merged while it read.
LOOKS = 5
_USER_BLOCK = 512
_MARK = b"xaibench shard sha256="
# Seconds until a process that waits for another one's claim says so, between the next times, and until it goes on
# without: a block takes half a minute, and whoever holds its claim for so long has been stopped, or is on its own.
WAIT_SAID, WAIT_AGAIN, WAIT_MOST = 10.0, 60.0, 600.0
log = logging.getLogger(__name__)


class CorruptShard(Exception):
    """A shard that is truncated, altered, or not a shard of this artefact."""


def canonical(spec: Any) -> str:
    """Sorted, compact JSON: the text that a key digests. Raises ValueError for NaN and infinities."""
    return json.dumps(spec, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=True)


def digest(spec: Any) -> str:
    """The key of a spec: the first 16 hexadecimal digits of the sha256 of its canonical JSON."""
    return hashlib.sha256(canonical(spec).encode()).hexdigest()[:16]


def pack(arrays: Mapping[str, np.ndarray], attributes: Mapping[str, Any], compressed: Sequence[str] = ()) -> bytes:
    """Named arrays [n,...] as one HDF5 file in memory: one row per chunk, Fletcher32, and the sha256 of everything
    after the user block inside it. compressed: the arrays for which the time of that is well spent: mostly zeros."""
    buffer = io.BytesIO()
    with h5py.File(buffer, "w", userblock_size=_USER_BLOCK) as file:
        file.attrs.update(attributes)
        for name, array in arrays.items():
            array = np.ascontiguousarray(array)
            rows = array if array.ndim and array.size else array.reshape(-1)
            # Scalars per row go into one chunk: a chunk of four bytes costs more than it protects.
            chunk = None if not rows.size else ((1, *rows.shape[1:]) if rows.ndim > 1 else rows.shape)
            gzip = "gzip" if name in compressed and chunk else None
            file.create_dataset(name, data=array, chunks=chunk, fletcher32=chunk is not None, compression=gzip)
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
    return _block(_sha256(data))


def _sha256(data: bytes | bytearray) -> str:
    return hashlib.sha256(memoryview(data)[_USER_BLOCK:]).hexdigest()


def _block(sha256: str) -> bytes:
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
        self._provenance: dict[str, Any] = {}
        self._begin()

    def _begin(self) -> None:
        """Know nothing of what is on disk."""
        # The shard of each sample, the samples of each shard that has been looked at, and the number of the next one.
        self._index: dict[int, str] = {}
        self._known: dict[str, tuple[int, ...]] = {}
        self._next = 0
        # The manifest that was there at the last look at the whole folder; None to look at it all again.
        self._listed: tuple[int, ...] | None = None
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
        shards = self._shards_of(samples)
        places = {name: {int(s): i for i, s in enumerate(arrays["sample"])} for name, arrays in shards.items()}
        # A shard may have got the name of one that is gone: what it holds counts, not what was known by its name.
        if any(s not in places.get(self._index.get(s, ""), (s,)) for s in samples):
            self._index = {s: n for s, n in self._index.items() if n not in places or s in places[n]}
            for name, held in places.items():
                self._index = dict.fromkeys(held, name) | self._index
        found = tuple(s for s in samples if s in places.get(self._index.get(s, ""), ()))
        # A shard in which no sample could be scored has no columns of scores: there they are NaN.
        empty = {
            column: np.full_like(array[0], np.nan) if array.dtype.kind == "f" else array[0]
            for name in dict.fromkeys(self._index[s] for s in found)
            for column, array in shards[name].items()
        }
        rows = {
            column: np.stack(
                [
                    shards[n][column][places[n][s]] if column in shards[n] else nan
                    for s in found
                    for n in [self._index[s]]
                ]
            )
            for column, nan in empty.items()
        }
        return Rows(found, rows)

    def _shards_of(self, samples: Sequence[int]) -> dict[str, dict[str, np.ndarray]]:
        """The shards that these samples are known to be in, by name. Those that are gone have been merged into others
        while this process was at it, which are looked for, or their rows are lost, which is said."""
        shards: dict[str, dict[str, np.ndarray]] = {}
        for _ in range(LOOKS):
            names = dict.fromkeys(self._index[s] for s in samples if s in self._index)
            gone = []
            for name in names:
                try:
                    if name not in shards and (arrays := self._load(name)) is not None:
                        shards[name] = arrays
                except FileNotFoundError:
                    gone.append(name)
            if not gone:
                break
            held = {name: self._known.get(name, ()) for name in gone}
            self._forget(gone)
            self._refresh()
            for name in gone:
                if lost := sum(sample not in self._index for sample in held[name]):
                    log.warning("%s: it is gone; its %d samples are computed again", self.folder / name, lost)
        return shards

    def shards(self, samples: Iterable[int]) -> dict[str, str]:
        """The shards that hold these samples, and the sha256 that each states. Raises KeyError for a sample that was
        not there at the last look."""
        names = dict.fromkeys(self._index[sample] for sample in samples)
        return {name: _stated_sha256(self.folder / name) for name in names}

    def holds(self, shards: Mapping[str, str]) -> bool:
        """Whether these shards are there, each with this sha256, and whole."""
        try:
            contents = {name: (self.folder / name).read_bytes() for name in shards}
        except OSError:
            return False
        return all(data.startswith(_block(shards[n])) and _sha256(data) == shards[n] for n, data in contents.items())

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
        path, self._provenance = self.folder / "spec.json", dict(provenance)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            found = json.loads(path.read_text())
            if digest(found["spec"]) == self.key:
                made = self.sources()
                if made >= {provenance.get("sources", "unknown")}:
                    return
                # Rows of other code than made those that are there: both are named.
                provenance = {**found["provenance"], "sources": " ".join(sorted(made | {provenance["sources"]}))}
            else:
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
        self._refresh()
        return self._publish({"sample": np.asarray(samples, dtype=np.int64), **arrays})

    def save_whole(self, name: str, arrays: Mapping[str, np.ndarray]) -> None:
        """Arrays that do not belong to samples (a method's fit) as one file."""
        write_atomically(self.folder / f"{name}.h5", pack(arrays, {"key": self.key, "schema": SCHEMA}))

    def finish(self, seconds: float) -> dict[str, Any]:
        """Write the manifest: every shard with its samples and sha256, and the seconds spent so far with this run's."""
        self._refresh()
        manifest = self._list_shards(seconds)
        if self._is_scattered():
            with self.claim("merge", wait=False) as mine:
                if mine:
                    manifest = self._merge()
        self.tidy()
        return manifest

    def _list_shards(self, seconds: float) -> dict[str, Any]:
        """Write the manifest, if the shards are others than it says."""
        manifest = self.manifest()
        by_shard: dict[str, list[int]] = {}
        for sample, name in self._index.items():
            by_shard.setdefault(name, []).append(sample)
        shards = [
            {"name": n, "sha256": _stated_sha256(self.folder / n), "samples": by_shard[n]}
            for n in sorted(by_shard)
            if (self.folder / n).exists()
        ]
        seconds = round(manifest.get("seconds", 0.0) + seconds, 3)
        if manifest.get("shards") != shards:
            manifest = {"schema": SCHEMA, "key": self.key, "shards": shards, "seconds": seconds}
            write_atomically(self.folder / "manifest.json", json.dumps(manifest, indent=1) + "\n")
        return manifest

    def tidy(self) -> None:
        """Remove claims and what dead processes of this machine left behind."""
        for path in self.folder.glob(".claim-*"):
            with contextlib.suppress(OSError):
                path.unlink()
        remove_leftovers(self.folder)

    def manifest(self) -> dict[str, Any]:
        """The manifest as last written; empty if there is none or it is none."""
        return _read_manifest(self.folder)

    def sources(self) -> set[str]:
        """The digests of our code that made its rows, as spec.json records them; `unknown` if it does not, none if
        there is no artefact."""
        try:
            return set(json.loads((self.folder / "spec.json").read_text())["provenance"]["sources"].split())
        except FileNotFoundError:
            return set()
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return {"unknown"}

    def discard(self, samples: Iterable[int]) -> None:
        """Remove the shards that hold these samples: their inputs are not what they were. Of merged ones, what was a
        shard of its own: its rows share a batch when they are computed."""
        self._refresh()
        out = set(samples)
        for name, arrays in self._shards_of([sample for sample in out if sample in self._index]).items():
            parts = self._parts(name, arrays)
            if left := [part for part in parts if out.isdisjoint(part["sample"].tolist())]:
                self._publish_parts(left)
            self._forget([name])

    def remove(self) -> None:
        """Delete the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self._begin()

    @contextlib.contextmanager
    def claim(self, what: object, wait: bool = True, most: float | None = None) -> Iterator[bool]:
        """Hold the claim on a piece of work (`what`, such as sample ids) across processes; the kernel releases it on
        death. Yields False if another process has it and `wait` is false.

        Waiting is said, with who is waited for, and ends after `most` seconds (None: WAIT_MOST): the work is then done
        without the claim, twice at worst.
        """
        path = self.folder / f".claim-{digest(repr(what))}"
        lock, held = FileLock(path), False
        # Who holds it, for those who wait. Beside the lock, which whoever tries to take it may empty.
        holder = path.with_name(f"{path.name}.by")
        try:
            held = self._acquire(lock, holder, wait, WAIT_MOST if most is None else most)
            if not held and not wait:
                yield False
                return
        except FileNotFoundError:
            pass  # the folder has been removed meanwhile; writing makes it again
        except (OSError, NotImplementedError) as error:
            _warn_once(f"file locks do not work in {self.folder.parent} ({error}): work may be done twice")
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

    def _acquire(self, lock: FileLock, holder: Path, wait: bool, most: float) -> bool:
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
            what = f"{self.kind} {'/'.join(self.folder.parts[-4:])}"
            if waited >= most:
                log.warning("%s: %s has held it for %.0f s; going on without", what, who, waited)
                return False
            said += 1
            log.warning(
                "%s: waiting for %s, which is at it (%.0f s); after %.0f s this process goes on alone",
                what, who, waited, most,
            )  # fmt: skip

    # ---- inside --------------------------------------------------------------------------------------------------

    def _refresh(self) -> None:
        """Learn the samples of shards that have appeared since the last look.

        The folder is listed at first and whenever the manifest has changed, which it does before shards are removed.
        Otherwise new shards have the next names: to look for them costs the same however many there are.
        """
        for _ in range(LOOKS):
            manifest = _stamp(self.folder / "manifest.json")
            try:
                if self._listed != manifest:
                    self._learn_all()
                    self._listed = manifest
                while (self.folder / _shard_name(self._next)).exists():
                    self._next += 1
                    self._learn(_shard_name(self._next - 1), {})
                return
            except FileNotFoundError:  # merged into another meanwhile, or there is no folder
                self._listed = None
                if not self.folder.exists():
                    return

    def _learn_all(self) -> None:
        names = _in_order(p.name for p in self.folder.iterdir() if p.match("shard-*.h5"))
        listed = {s["name"]: s for s in self.manifest().get("shards", [])}
        self._next = _next_number(names)
        for name in names:
            self._learn(name, listed)

    def _learn(self, name: str, listed: Mapping[str, Any]) -> None:
        """Learn a shard's samples: from the manifest's entry, or by reading it. Raises FileNotFoundError."""
        if name in self._known:
            return
        # A manifest that was not rewritten may mean another shard, which had the name before.
        entry = listed.get(name)
        samples = entry["samples"] if entry and entry["sha256"] == _stated_sha256(self.folder / name) else None
        if samples is None:
            arrays = self._load(name)
            if arrays is None:
                return
            samples = arrays["sample"].tolist()
        self._known[name] = tuple(samples)
        for sample in samples:
            self._index.setdefault(sample, name)

    def _load(self, name: str) -> dict[str, np.ndarray] | None:
        """A shard's arrays; None, after saying so and removing it, if it is corrupt. The last one is kept in memory.

        Raises FileNotFoundError.
        """
        if self._last and self._last[0] == name:
            return self._last[1]
        path = self.folder / name
        try:
            arrays = unpack(path.read_bytes(), self.key)
        except CorruptShard as error:
            lost = sum(1 for shard in self._index.values() if shard == name)
            log.warning("%s: %s; %s computed again", path, error, f"its {lost} samples are" if lost else "it is")
            self._forget([name])
            return None
        self._last = (name, arrays)
        return arrays

    def _forget(self, names: Collection[str]) -> None:
        """Remove shards. Their samples are known by other shards that hold them too, if there are any."""
        for name in names:
            with contextlib.suppress(OSError):
                (self.folder / name).unlink()
            self._known.pop(name, None)
        self._index = {sample: shard for sample, shard in self._index.items() if shard not in names}
        for name, samples in self._known.items():
            for sample in samples:
                self._index.setdefault(sample, name)
        self._last = self._listed = None

    def _publish(self, arrays: Mapping[str, np.ndarray], **attributes: Any) -> Path:
        """Write a shard under the next free name."""
        data = pack(arrays, {"key": self.key, "schema": SCHEMA, **attributes})
        aside = self.folder / aside_name()
        if not self.folder.is_dir():  # removed while this run was at it: `cache prune`, or by hand
            self._begin()
            self.create(self._provenance)
        try:
            write_synced(aside, data)
            path = _link_to_free_name(aside, self.folder, self._next)
            _sync_folder(self.folder)
        except OSError as error:
            with contextlib.suppress(OSError):
                aside.unlink()
            raise write_error(self.folder, error) from error
        self._refresh()
        return path

    # ---- many small shards ---------------------------------------------------------------------------------------

    def _is_scattered(self) -> bool:
        """Whether there are many small shards, or a merge did not come to its end: rows are there twice."""
        return len(self._small()) >= MANY or sum(map(len, self._known.values())) > len(self._index)

    def _small(self) -> list[str]:
        """The shards that are worth merging, in order."""
        if len(self._known) < MANY:
            return []
        small = (name for name, samples in self._known.items() if len(samples) <= PACKED_ROWS // 2)
        return _in_order(name for name in small if _size(self.folder / name) < SMALL)

    def _merge(self) -> dict[str, Any]:
        """Merge small shards, and remove those whose rows others hold; returns the manifest.

        At each step all rows are there: the merged shard is published, then listed, then the small ones are removed.
        """
        self._listed = None  # another process may have been faster
        self._refresh()
        if len(small := self._small()) >= MANY:
            for parts in self._packs(small):
                self._publish_parts(parts)
        redundant = self._redundant()
        manifest = self._list_shards(0.0)
        self._forget(redundant)
        return manifest

    def _packs(self, names: Sequence[str]) -> Iterator[list[dict[str, np.ndarray]]]:
        """The rows of shards in packs of at most PACKED_BYTES and PACKED_ROWS, each of shards that were written as one,
        with the same columns. Rows that another shard is known by are left out."""
        packs: dict[Any, _Pack] = {}
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                for part in self._parts(name, self._load(name) or {}):
                    mine = [self._index.get(sample) == name for sample in part["sample"].tolist()]
                    rows = {column: array[mine] for column, array in sorted(part.items())}
                    alike = tuple((column, array.dtype.str, array.shape[1:]) for column, array in rows.items())
                    if alike in packs and not packs[alike].takes(rows):
                        yield packs.pop(alike).parts
                    if any(mine):
                        packs.setdefault(alike, _Pack()).add(rows)
        yield from (pack.parts for pack in packs.values() if len(pack.parts) > 1)

    def _parts(self, name: str, arrays: Mapping[str, np.ndarray]) -> list[dict[str, np.ndarray]]:
        """The rows of a shard by what were shards of their own before they were merged."""
        ends = np.array([len(arrays["sample"])]) if arrays else np.zeros(0, dtype=int)
        if ends.sum() > 1:
            with h5py.File(self.folder / name, "r") as file:
                ends = np.cumsum(file.attrs.get("merged", ends))
        return [{column: array[start:end] for column, array in arrays.items()} for start, end in zip([0, *ends], ends)]

    def _publish_parts(self, parts: Sequence[Mapping[str, np.ndarray]]) -> None:
        """One shard of the rows of several, by which their samples are known from now on."""
        arrays = {column: np.concatenate([part[column] for part in parts]) for column in parts[0]}
        path = self._publish(arrays, merged=[len(part["sample"]) for part in parts])
        if path.name in self._known:
            self._index |= dict.fromkeys(arrays["sample"].tolist(), path.name)

    def _redundant(self) -> list[str]:
        """The shards all of whose rows are in later ones, which are checked. Their samples are known by those.

        Later ones only, so that two processes never take each other's shard for the one that stays.
        """
        holder: dict[int, str] = {}
        redundant = []
        for name in reversed(_in_order(self._known)):
            if all(sample in holder for sample in self._known[name]):
                redundant.append(name)
            for sample in self._known[name]:
                holder.setdefault(sample, name)
        moved = {sample: holder[sample] for name in redundant for sample in self._known[name]}
        with contextlib.suppress(FileNotFoundError):
            if all(self._load(name) is not None for name in sorted(set(moved.values()))):
                self._index |= moved
                return redundant
        return []


def _shard_name(number: int) -> str:
    return f"shard-{number:05d}.h5"


def _next_number(names: Iterable[str]) -> int:
    """The number after the highest of these shards'."""
    numbers = (Path(name).stem.removeprefix("shard-") for name in names)
    return 1 + max((int(number) for number in numbers if number.isdigit()), default=-1)


class _Pack:
    """Rows that become one shard."""

    def __init__(self) -> None:
        self.parts: list[dict[str, np.ndarray]] = []
        self.rows = self.bytes = 0

    def takes(self, rows: Mapping[str, np.ndarray]) -> bool:
        """Whether there is room for these."""
        size = sum(array.nbytes for array in rows.values())
        return self.bytes + size <= PACKED_BYTES and self.rows + len(rows["sample"]) <= PACKED_ROWS

    def add(self, rows: dict[str, np.ndarray]) -> None:
        """Put them in."""
        self.parts.append(rows)
        self.rows += len(rows["sample"])
        self.bytes += sum(array.nbytes for array in rows.values())


def _in_order(names: Iterable[str]) -> list[str]:
    """Shards by number, which has more than five digits if it must."""
    return sorted(names, key=lambda name: (len(name), name))


def _stamp(path: Path) -> tuple[int, ...]:
    """What tells whether a file has been written anew; empty if there is none."""
    try:
        found = path.stat()
    except OSError:
        return ()
    return (found.st_ino, found.st_mtime_ns, found.st_size)


def _size(path: Path) -> int:
    """In bytes; 0 for what is gone."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _link_to_free_name(aside: Path, folder: Path, number: int) -> Path:
    """Give a finished file the first free shard name from a number on, never replacing one."""
    while True:
        path = folder / _shard_name(number)
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


def _read_manifest(folder: Path) -> dict[str, Any]:
    """A folder's manifest; empty if there is none, or if what is there has another shape."""
    try:
        found = json.loads((folder / "manifest.json").read_text())
        shards = [
            {"name": str(s["name"]), "sha256": str(s["sha256"]), "samples": [int(sample) for sample in s["samples"]]}
            for s in found["shards"]
        ]
        return {**found, "shards": shards, "seconds": float(found["seconds"])}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError):
        _warn_once(f"{folder / 'manifest.json'}: it is no manifest; the shards are read instead")
        return {}


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


def _stated_sha256(path: Path) -> str:
    try:
        with open(path, "rb") as file:
            return file.read(_USER_BLOCK)[len(_MARK) : len(_MARK) + 64].decode("ascii", "replace")
    except OSError:
        return ""


def safe_name(name: str) -> str:
    """A folder name that any file system takes, and that leads nowhere else: no `..`."""
    safe = "".join(c if c.isalnum() or c in "._-" else "_" for c in str(name))
    return safe if safe.strip(".") else "_" * max(len(safe), 1)


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
    found = (path.parent for kind in KINDS for path in Path(root, kind).rglob("spec.json"))
    return sorted(folder for folder in found if not folder.name.startswith("."))


def listing(root: Path) -> list[Listed]:
    """Every artefact with its size, sorted by path."""
    listed = []
    for folder in artefacts(root):
        files = []
        for path in folder.rglob("*"):
            with contextlib.suppress(FileNotFoundError):  # a run is at it
                files += [path.stat()] if path.is_file() else []
        below = folder.relative_to(root)
        listed.append(
            Listed(
                kind=below.parts[0],
                path=str(Path(*below.parts[1:])),
                shards=len(list(folder.glob("shard-*.h5"))),
                samples=sum(len(s["samples"]) for s in _read_manifest(folder).get("shards", [])),
                size=sum(stat.st_size for stat in files),
                changed=max((stat.st_mtime for stat in files), default=0.0),
            )
        )
    return listed


def verify(root: Path) -> tuple[int, list[str]]:
    """Check every HDF5 file of every artefact against its own checksum, and what its manifest says of them -> (files
    checked, what is wrong)."""
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
        for shard in _read_manifest(folder).get("shards", []):
            path = folder / shard["name"]
            if not path.exists():
                wrong.append(f"{path}: it is gone; its {len(shard['samples'])} samples are computed again by a run")
            elif shard["sha256"] != _stated_sha256(path):
                wrong.append(f"{folder / 'manifest.json'}: it means another {shard['name']}; a run writes it anew")
        if (folder / "manifest.json").exists() and not _read_manifest(folder):
            wrong.append(f"{folder / 'manifest.json'}: it is no manifest; a run writes it anew")
    return checked, wrong


def prune(
    root: Path,
    older_than: float | None,
    max_size: int | None,
    also: Collection[Path] = (),
    dry_run: bool = False,
) -> list[Listed]:
    """Delete the artefacts in the folders `also`, those not changed for `older_than` seconds, then the oldest until the
    rest fits `max_size` bytes.

    Those that a process holds a claim on are left; a run that is between two claims makes again what it misses.
    dry_run: only say which these are.
    """
    for kind in () if dry_run else KINDS:
        for leftover in Path(root, kind).rglob(".pruned-*"):
            shutil.rmtree(leftover, ignore_errors=True)
    entries = sorted(listing(root), key=lambda entry: entry.changed)
    total, now, removed = sum(e.size for e in entries), time.time(), []
    for entry in entries:
        too_old = older_than is not None and now - entry.changed >= older_than
        too_much = max_size is not None and total > max_size
        folder = Path(root, entry.kind, entry.path)
        if (too_old or too_much or folder in also) and not _is_claimed(folder):
            if not dry_run and not _remove(folder):
                continue
            total -= entry.size
            removed.append(entry)
    return removed


def _remove(folder: Path) -> bool:
    """Remove an artefact; False if it has gone already. Renamed first: a run finds all of it or nothing."""
    aside = folder.with_name(f".pruned-{uuid.uuid4().hex[:8]}")
    try:
        os.replace(folder, aside)
    except FileNotFoundError:
        return False
    shutil.rmtree(aside, ignore_errors=True)
    return True


def _is_claimed(folder: Path) -> bool:
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

"""Artefacts on disk: keyed folders of immutable shards. Knows arrays and specs, not methods or metrics.

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
import json
import logging
import os
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from .claims import claim, warn_once
from .files import aside_name, remove_leftovers, safe_name, write_atomically, write_error, write_synced
from .keys import digest
from .shards import SCHEMA, CorruptShard, is_whole, pack, stated_sha256, unpack

KINDS = ("maps", "responses", "scores", "fits", "weights", "trainings", "probes")
SHARD_SAMPLES = 64
# So many shards of fewer than SMALL bytes are merged, into shards of up to PACKED bytes and rows: one row is read by
# reading its shard, and a damaged shard is lost as a whole.
MANY, SMALL, PACKED_BYTES, PACKED_ROWS = 32, 2**20, 2**23, 1024
# Times that a reader looks again for shards that were merged while it read.
LOOKS = 5
log = logging.getLogger(__name__)


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
        return {name: stated_sha256(self.folder / name) for name in names}

    def holds(self, shards: Mapping[str, str]) -> bool:
        """Whether these shards are there, each with this sha256, and whole."""
        try:
            contents = {name: (self.folder / name).read_bytes() for name in shards}
        except OSError:
            return False
        return all(is_whole(data, shards[name]) for name, data in contents.items())

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
            {"name": n, "sha256": stated_sha256(self.folder / n), "samples": by_shard[n]}
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
        return read_manifest(self.folder)

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

    def claim(self, what: object, wait: bool = True, most: float | None = None) -> AbstractContextManager[bool]:
        """Hold the claim on a piece of work in this artefact (`what`, such as sample ids), see `claims.claim`."""
        said = f"{self.kind} {'/'.join(self.folder.parts[-4:])}"
        return claim(self.folder / f".claim-{digest(repr(what))}", said, wait, most)

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
        samples = entry["samples"] if entry and entry["sha256"] == stated_sha256(self.folder / name) else None
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


def read_manifest(folder: Path) -> dict[str, Any]:
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
        warn_once(f"{folder / 'manifest.json'}: it is no manifest; the shards are read instead")
        return {}

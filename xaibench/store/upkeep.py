"""The whole cache: what `xaibench cache` shows, checks and removes."""

import contextlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from .cache import KINDS, read_manifest
from .claims import is_claimed
from .keys import digest
from .shards import CorruptShard, stated_sha256, unpack


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
                samples=sum(len(s["samples"]) for s in read_manifest(folder).get("shards", [])),
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
        for shard in read_manifest(folder).get("shards", []):
            path = folder / shard["name"]
            if not path.exists():
                wrong.append(f"{path}: it is gone; its {len(shard['samples'])} samples are computed again by a run")
            elif shard["sha256"] != stated_sha256(path):
                wrong.append(f"{folder / 'manifest.json'}: it means another {shard['name']}; a run writes it anew")
        if (folder / "manifest.json").exists() and not read_manifest(folder):
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
        if (too_old or too_much or folder in also) and not is_claimed(folder):
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

"""What is known of the score files of a results folder, so that a leaderboard costs what has changed since.

`results/scores/.index` has a line of JSON per score file: a checksum of the line, the code that made it, the cell's
path, the digest of its files' content, what the system said of them (size, inode, times), and its `Summary`. A file is
the one that was read while the system says the same of it, or else while its content has the same digest; others are
read, checked and summarised again. The file is a convenience: lines are only ever added, by several processes at once
if it comes to that, a line that is damaged or of other code counts as absent, and where it cannot be written files are
read again. The leaderboard is the same, to the byte, with it and without.
"""

import contextlib
import functools
import hashlib
import json
import os
import time
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy

from ..errors import XaibenchError
from ..garbage import uncollected
from ..store import provenance
from ..store.files import write_atomically
from ..store.memo import SETTLED
from . import leaderboard
from .cells import SUFFIXES, Damaged, Summary, found_below, one_answer_each, read_cell
from .summary import read_again, summary, with_common

INDEX = ".index"
# In a line, before the statistics that the card declares: those of a metric's cells are the same, and parsed once. JSON
# has it nowhere else.
STATISTICS = b"\t"
SPARE = 100  # lines of the past that are let be, however few files there are
# Shows how far the reading of files is: what it is given, one after the other.
Tracked = Callable[[Sequence[str]], Iterable[str]]


@dataclass(frozen=True)
class _Line:
    """What is known of a cell: the digest of its files, what the system says of each, and its summary."""

    content: str
    states: Any
    summary: Summary


@uncollected()
def update(results: Path, tracked: Tracked = iter) -> tuple[list[Summary], list[Damaged]]:
    """Write results/leaderboard.csv and cost.csv; returns, and costs, what `summaries` does."""
    found, damaged = summaries(results, tracked)
    leaderboard.write(results, found)
    return found, damaged


@uncollected()
def summaries(results: Path, tracked: Tracked = iter) -> tuple[list[Summary], list[Damaged]]:
    """The summaries of the score files below results/scores that are as a run wrote them, and what is wrong with the
    others: what `cells.read_sound` finds, at the cost of what is not known yet.

    tracked: called with the cells that have to be read.
    """
    scores, started = results / "scores", time.time_ns()
    known = _read(scores)
    states = {stem: _states(files, started) for stem, files in found_below(scores).items()}
    learned: dict[str, _Line] = {}
    damaged: list[Damaged] = []
    changed = [
        stem for stem in states if stem not in known or states[stem] is None or known[stem].states != states[stem]
    ]
    for stem in tracked(changed):
        try:
            learned[stem] = _looked_at(scores, stem, states[stem], known.get(stem))
        except Damaged as error:
            damaged.append(error)
    bad = {str(error.path) for error in damaged}
    lines = {stem: learned.get(stem) or known[stem] for stem in states if f"{scores / stem}.csv" not in bad}
    whole = {stem: line.summary for stem, line in lines.items()}
    added = with_common(list(whole.values()), read_again)
    for stem, one in whole.items():
        if id(one) in added:
            learned[stem] = lines[stem] = _Line(lines[stem].content, lines[stem].states, added[id(one)])
    _add(scores, {stem: line for stem, line in learned.items() if line != known.get(stem)}, lines)
    kept, twice = one_answer_each([line.summary for line in lines.values()])
    # Without two that answer the same question, fewer cells have other samples in common.
    still = with_common(kept, read_again) if twice else {}
    return [still.get(id(one), one) for one in kept], [*damaged, *twice]


def _looked_at(scores: Path, stem: str, states: Any, known: _Line | None) -> _Line:
    """What is known of a cell after its files have been looked at: read, unless their content is the known one."""
    path = scores / f"{stem}.csv"
    contents: dict[str, bytes] = {}
    for suffix in SUFFIXES:
        with contextlib.suppress(OSError):
            contents[suffix] = path.with_suffix(suffix).read_bytes()
    parts = (f"{suffix}{hashlib.sha256(data).hexdigest()}" for suffix, data in contents.items())
    content = hashlib.sha256("".join(parts).encode()).hexdigest()
    if known is not None and known.content == content:
        return _Line(content, states, known.summary)
    return _Line(content, states, summary(read_cell(path, contents)))


def _states(files: Mapping[str, os.stat_result], now: int) -> list[list[Any]] | None:
    """What the system says of a cell's files; None if one changed so lately that another change would not show."""
    if any(max(file.st_mtime_ns, file.st_ctime_ns) >= now - SETTLED for file in files.values()):
        return None
    return [[name, f.st_size, f.st_ino, f.st_mtime_ns, f.st_ctime_ns] for name, f in sorted(files.items())]


@functools.cache
def maker() -> str:
    """What a summary depends on besides its file: our code and the libraries that it computes with."""
    return f"{provenance.sources()} numpy {np.__version__} scipy {scipy.__version__}"


def _read(scores: Path) -> dict[str, _Line]:
    """What the index says by path, the later line before the earlier; nothing if there is none."""
    try:
        text = (scores / INDEX).read_bytes()
    except OSError:
        return {}
    found, ours = {}, b"[" + json.dumps(maker()).encode() + b","
    shared = functools.cache(json.loads)
    for line in text.split(b"\n"):
        checksum, _, body = line.partition(b" ")
        if not body.startswith(ours) or checksum != b"%08x" % zlib.crc32(body):
            continue
        own, _, declared = body.partition(STATISTICS)
        _, stem, content, states, card, estimates, undefined = json.loads(own)
        card["statistics"] = shared(declared)
        found[stem] = _Line(content, states, Summary(card, estimates, undefined, Path(f"{scores}/{stem}.csv")))
    return found


def _add(scores: Path, learned: Mapping[str, _Line], all_lines: Mapping[str, _Line]) -> None:
    """Add to the index; write it anew once most of its lines are of the past."""
    if not learned:
        return
    # A home of someone else's or a full disk only costs the time to read again.
    with contextlib.suppress(XaibenchError, OSError):
        path = scores / INDEX
        lines = 0
        with contextlib.suppress(FileNotFoundError):
            lines = path.read_bytes().count(b"\n")
        if lines + len(learned) > 2 * len(all_lines) + SPARE:
            write_atomically(path, b"".join(_line(stem, line) for stem, line in all_lines.items()))
            return
        with open(path, "ab", buffering=0) as file:
            # In one go, and on a line of its own, whatever a process that died left before it.
            file.write(b"\n" + b"".join(_line(stem, line) for stem, line in learned.items()))


def _line(stem: str, line: _Line) -> bytes:
    one = line.summary
    card = {name: value for name, value in one.card.items() if name != "statistics"}
    parts = [maker(), stem, line.content, line.states, card, one.estimates, one.undefined]
    own, declared = (json.dumps(part, separators=(",", ":")) for part in (parts, one.card["statistics"]))
    body = own.encode() + STATISTICS + declared.encode()
    return b"%08x %s\n" % (zlib.crc32(body), body)

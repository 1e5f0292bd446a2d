"""A finished cell asked for again: by digests its score files are known to be what a run would write.

What `score_files.write` writes is a function of the rows, of the record and of our code. `written.json`, beside the
rows, notes what went in and what came out. A cell of which all of it is still the same needs neither its rows unpacked
nor its files written. Its shards and its files are read all the same: with one byte changed the cell goes the long way,
which says and mends what is wrong. The note is a convenience: where it is absent or damaged, cells go the long way too.
"""

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any

from ..scores import score_files
from ..scores.score_files import Outcome, Record
from ..store import provenance
from ..store.cache import Artefact

WRITTEN = "written.json"
# Of a record, what only the card of the run that computed has, or what says where the files are.
_NOT_IN_FILES = ("results", "filtered", "statistics", "computed", "details")


def find(scores: Artefact, record: Record) -> Outcome | None:
    """The score files of these rows, if they are what a run would write; None if not, or if nobody knows."""
    noted = _noted(scores)
    if noted.get("from") != _source(record) or not scores.holds(noted["shards"]):
        return None
    outcome = score_files.outcome(record)
    return outcome if score_files.are_written(outcome, noted["card"]) else None


def note(scores: Artefact, record: Record, outcome: Outcome) -> None:
    """Note that these files were written of these rows."""
    with contextlib.suppress(OSError, KeyError):  # gone again, or not to be written: it is asked the long way
        card = score_files.sha256(outcome.card.read_bytes())
        noted = {"from": _source(record), "shards": scores.shards(record.samples), "card": card}
        if noted != _noted(scores):
            (scores.folder / WRITTEN).write_text(json.dumps(noted) + "\n")


def _noted(scores: Artefact) -> Mapping[str, Any]:
    """The note; empty if there is none."""
    try:
        noted = json.loads((scores.folder / WRITTEN).read_text())
        return {"from": str(noted["from"]), "shards": dict(noted["shards"]), "card": str(noted["card"])}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _source(record: Record) -> str:
    """The digest of all that the files of a cell whose rows are there depend on, but for the rows and the old card."""
    fields = {f.name: getattr(record, f.name) for f in dataclasses.fields(record) if f.name not in _NOT_IN_FILES}
    made = [provenance.sources(), provenance.versions(), fields]
    return hashlib.sha256(json.dumps(made, sort_keys=True).encode()).hexdigest()

"""Which artefacts of a cache no key can name any more: made by a class that has gone, or is of another version now."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..build import SOURCE, TARGET, is_spec, locate
from ..errors import UserError
from ..source import source_digest
from ..store.shards import SCHEMA
from ..store.upkeep import artefacts

OURS = __package__.partition(".")[0]


def unreachable(root: Path) -> list[Path]:
    """The folders of artefacts that no current key reaches, sorted.

    Such are those of another schema, those whose description names a class of ours that is gone or whose `version` is
    another now, or a class from outside whose code is another, and whatever was made from them. A class from outside
    that cannot be imported here may be there elsewhere: its artefacts are left.
    """
    specs = dict(_specs(root))
    gone = {folder for folder, spec in specs.items() if spec is None or not _is_current(spec)}
    while True:
        keys = {folder.name for folder in gone}
        made_from_gone = {f for f, spec in specs.items() if f not in gone and keys & set(_keys(spec))}
        if not made_from_gone:
            return sorted(gone)
        gone |= made_from_gone


def _specs(root: Path) -> Iterator[tuple[Path, Mapping[str, Any] | None]]:
    """Every artefact's folder and its spec; None for one that cannot be read."""
    for folder in artefacts(root):
        try:
            yield folder, dict(json.loads((folder / "spec.json").read_text())["spec"])
        except (OSError, ValueError, KeyError, TypeError):
            yield folder, None


def _is_current(value: Any) -> bool:
    """Whether every class that a spec describes is as it was."""
    if isinstance(value, Mapping):
        if value.get("schema", SCHEMA) != SCHEMA or (is_spec(value) and not _is_same(value)):
            return False
        return all(map(_is_current, value.values()))
    return all(map(_is_current, value)) if isinstance(value, list) else True


def _is_same(described: Mapping[str, Any]) -> bool:
    """Whether a class has the version, or the code, that its description says."""
    path = str(described[TARGET])
    try:
        target = locate(path, TARGET)
    except UserError:
        return path.partition(".")[0] != OURS
    if described.get(SOURCE):
        return described[SOURCE] == source_digest(target)
    return "version" not in described or getattr(target, "version", described["version"]) == described["version"]


def _keys(value: Any) -> Iterator[str]:
    """The keys of other artefacts in a spec: the texts that are as long as a key."""
    if isinstance(value, str) and len(value) == 16:
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from _keys(part)
    elif isinstance(value, list):
        for part in value:
            yield from _keys(part)

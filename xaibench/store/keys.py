"""Keys: what an artefact's spec digests to."""

import hashlib
import json
from typing import Any


def canonical(spec: Any) -> str:
    """Sorted, compact JSON: the text that a key digests. Raises ValueError for NaN and infinities."""
    return json.dumps(spec, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=True)


def digest(spec: Any) -> str:
    """The key of a spec: the first 16 hexadecimal digits of the sha256 of its canonical JSON."""
    return hashlib.sha256(canonical(spec).encode()).hexdigest()[:16]

"""Tests between methods that have been computed before, by the digest of all that they were computed from.

`results/scores/.tests` has a line per test: a checksum, the digest, how many methods, and the matrix of p. It is a
convenience: lines are only ever added, one that is damaged counts as absent, and where the file cannot be written tests
are computed again. Whoever deletes it loses seconds.
"""

import base64
import contextlib
import functools
import hashlib
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from .index import maker

TESTS = ".tests"
# Of a larger file nothing is kept: it is begun anew. A test of 16 methods takes 3 kB.
MOST_BYTES = 2**25


class KnownTests:
    """The tests kept in a folder of score files; None keeps nothing."""

    def __init__(self, scores: Path | None = None) -> None:
        self.path = scores and scores / TESTS

    def matrix(self, compute: Callable[[], np.ndarray], *source: np.ndarray | str | float | None) -> np.ndarray:
        """The matrix [m,m] that was computed from these arrays and words by this code, or that `compute` returns."""
        if self.path is None:
            return compute()
        digest = _digest(source)
        if digest not in self._known:
            self._known[digest] = compute().astype(np.float64)
            self._add(digest)
        return self._known[digest]

    @functools.cached_property
    def _known(self) -> dict[str, np.ndarray]:
        assert self.path is not None  # as asked before
        known = {}
        with contextlib.suppress(OSError):
            for line in self.path.read_bytes().split(b"\n"):
                checksum, _, body = line.partition(b" ")
                if body and checksum == b"%08x" % zlib.crc32(body):
                    digest, methods, numbers = body.split(b" ")
                    found = np.frombuffer(base64.b64decode(numbers), dtype="<f8")
                    known[digest.decode()] = found.reshape(int(methods), -1)
        return known

    def _add(self, digest: str) -> None:
        assert self.path is not None
        found = self._known[digest]
        body = b"%s %d %s" % (digest.encode(), len(found), base64.b64encode(found.astype("<f8").tobytes()))
        with contextlib.suppress(OSError):
            too_large = self.path.exists() and self.path.stat().st_size > MOST_BYTES
            with open(self.path, "wb" if too_large else "ab", buffering=0) as file:
                # In one go, and on a line of its own, whatever a process that died left before it.
                file.write(b"\n%08x %s\n" % (zlib.crc32(body), body))


def _digest(source: tuple[np.ndarray | str | float | None, ...]) -> str:
    sha = hashlib.sha256(maker().encode())
    for part in source:
        said = f"{part.dtype.str}{part.shape}" if isinstance(part, np.ndarray) else repr(part)
        sha.update(f"\0{said}\0".encode())
        if isinstance(part, np.ndarray):
            sha.update(np.ascontiguousarray(part).tobytes())
    return sha.hexdigest()

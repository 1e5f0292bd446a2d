"""One artefact being filled: read what is there, compute what is missing, block by block."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import CacheError, UserError
from ..store.cache import Artefact

log = logging.getLogger(__name__)
Arrays = dict[str, np.ndarray]


@dataclass
class Stage:
    """An artefact with a row per sample, and the function that computes the rows of some samples.

    It is filled in blocks of a fixed size along `order`, so that neither a crash nor who asks first changes which
    samples share a batch (and with it the last bits of their numbers).

    order: all samples that it may hold. size: samples per block, asked only when something is missing.
    compute: samples -> columns. provenance: what spec.json records beside the spec.
    checksums: samples -> the CRC32 of their inputs as they are now. It is kept in every shard and compared when rows
        are read: where an input has changed under its name, its rows are made anew. None for scores, which are read
        without their inputs.
    only_cache: refuse to compute. report: called with (kind, samples done) after each block.
    """

    artefact: Artefact
    order: Sequence[int]
    size: Callable[[], int]
    compute: Callable[[Sequence[int]], Arrays]
    provenance: Mapping[str, Any]
    checksums: Callable[[Sequence[int]], np.ndarray] | None = None
    only_cache: bool = False
    report: Callable[[str, int], None] = lambda kind, done: None

    def rows(self, samples: Sequence[int]) -> Arrays:
        """The columns of these samples, after filling every block that misses one of them."""
        arrays = self._filled_rows(samples)
        if self.checksums is not None:
            same = arrays["input_crc32"] == self.checksums(samples)
            changed = [sample for sample, is_same in zip(samples, same) if not is_same]
            if changed:
                log.warning(
                    "%d inputs have changed since their %s were made (sample %d first); made again",
                    len(changed),
                    self.artefact.kind,
                    changed[0],
                )
                self.artefact.discard(changed)
                arrays = self._filled_rows(samples)
        return arrays

    def _filled_rows(self, samples: Sequence[int]) -> Arrays:
        found = self.artefact.read(samples)
        if len(found.samples) < len(samples):
            absent = set(samples).difference(found.samples)
            for block in self.blocks():
                if absent.intersection(block):
                    self.fill(block)
            found = self.artefact.read(samples)
        if len(found.samples) < len(samples):
            raise CacheError(f"{self.artefact.folder}: what was just written cannot be read back; check the disk")
        return found.arrays

    def fill(self, block: Sequence[int], wait: bool = True) -> bool:
        """Have a row for each sample of a block. False if another process is computing it and `wait` is false."""
        if len(self.artefact.read(block).samples) < len(block):
            if self.only_cache:
                raise UserError(
                    f"runner.reuse=only-cache: {self.artefact.folder} misses "
                    f"{len(self.artefact.missing(block))} of {len(block)} samples; use runner.reuse=missing"
                )
            self.artefact.create(self.provenance)
            with self.artefact.claim(tuple(block), wait) as mine:
                if not mine:
                    return False
                missing = self.artefact.missing(block)
                if missing:
                    columns = self.compute(missing)
                    if self.checksums is not None:
                        columns = {**columns, "input_crc32": self.checksums(missing)}
                    self.artefact.write(missing, columns)
        self.report(self.artefact.kind, len(block))
        return True

    def fill_all(self) -> None:
        """Fill every block; those that other processes are at are left to them first, and waited for at the end."""
        waiting = list(self.blocks())
        for wait in (False, True):
            waiting = [block for block in waiting if not self.fill(block, wait)]

    def blocks(self) -> Iterator[Sequence[int]]:
        """The samples in blocks, in order."""
        size = self.size()
        for start in range(0, len(self.order), size):
            yield self.order[start : start + size]

    def finish(self, seconds: float) -> None:
        """Write the manifest, if the artefact exists."""
        if self.artefact.folder.exists():
            self.artefact.finish(seconds)

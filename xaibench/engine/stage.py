"""One artefact being filled: what is there, compute what is missing, block by block."""

import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch

from .. import interrupt
from ..errors import CacheError, UserError
from ..store.cache import Artefact
from .device import synchronise

log = logging.getLogger(__name__)
Arrays = dict[str, np.ndarray]
# How often rows that go between writing and reading are made again: `cache prune` may pass by.
ATTEMPTS = 3
# Called with a kind of artefact and how many more of its samples are done.
Report = Callable[[str, int], None]


def silent(kind: str, done: int) -> None:
    """The Report that says nothing."""


class Filled(Protocol):
    """What can be filled: a `Stage`, a `Fit`, the trainings of a metric that retrains."""

    @property
    def kind(self) -> str: ...
    @property
    def reads(self) -> "Sequence[Filled]": ...
    @property
    def reads_all(self) -> bool: ...
    @property
    def order(self) -> Sequence[int]: ...
    def misses(self, samples: Sequence[int], /) -> bool: ...
    def fill(self, samples: Sequence[int], /, wait: bool = True, report: Report = silent) -> bool: ...
    def sources(self) -> set[str]: ...
    def finish(self) -> None: ...


@dataclass(eq=False)
class Stage:
    """An artefact with a row per sample, and the function that computes the rows of some samples.

    It is filled in blocks of a fixed size along `order`, so that neither a crash nor who asks first changes which
    samples share a batch (and with it the last bits of their numbers). Where a row takes minutes, `compute` may `keep`
    rows before the block is complete: a killed run then goes on with the others, which no longer share their batch.

    order: all samples that it may hold. size: samples per block, asked only when something is missing.
    compute: samples -> columns. It reads rows of the stages in `reads`, which are filled before it.
    device: where it computes.
    reads_all: the stage needs all rows of what it reads, not those of its own samples alone.
    provenance: what spec.json records beside the spec.
    checksums: samples -> the CRC32 of their inputs as they are now. It is kept in every shard and compared with what
        is there: where an input has changed under its name, its rows count as missing. None for scores, which are read
        without their inputs.
    expect: told which samples come next, while others are computed; None for rows that are no samples.
    only_cache: refuse to compute.
    """

    artefact: Artefact
    order: Sequence[int]
    size: Callable[[], int]
    compute: Callable[[Sequence[int]], Arrays]
    device: torch.device
    provenance: Mapping[str, Any]
    reads: Sequence[Filled] = ()
    reads_all: bool = False
    checksums: Callable[[Sequence[int]], np.ndarray] | None = None
    expect: Callable[[Sequence[int]], None] | None = None
    only_cache: bool = False
    seconds: float = 0.0
    _last: tuple[tuple[int, ...], Arrays] | None = None

    @property
    def kind(self) -> str:
        """The kind of its artefact: responses, maps, scores."""
        return self.artefact.kind

    def rows(self, samples: Sequence[int]) -> Arrays:
        """The columns of these samples, which have been filled; what has gone since is made again."""
        if self._last is None or self._last[0] != tuple(samples):
            found = self.artefact.read(samples)
            for _ in range(ATTEMPTS):
                if len(found.samples) == len(samples):
                    break
                lost = len(samples) - len(found.samples)
                log.warning("%s: %d samples went while they were needed; made again", self.artefact.folder, lost)
                self.fill(samples)
                found = self.artefact.read(samples)
            if len(found.samples) < len(samples):
                raise CacheError(
                    f"{self.artefact.folder}: what is written there is gone or unreadable when it is read back\n"
                    "something removes it (`cache prune`?), or the disk is broken"
                )
            self._last = tuple(samples), found.arrays
        return self._last[1]

    def misses(self, samples: Sequence[int]) -> bool:
        """Whether a row of these samples is absent, corrupt, or made from another input than there is now."""
        found = self.artefact.read(samples)
        if len(found.samples) < len(samples):
            return True
        changed = self._changed(samples, found.arrays)
        if changed:
            log.warning(
                "%d inputs have changed since their %s were made (sample %d first); made again",
                len(changed),
                self.kind,
                changed[0],
            )
            self.artefact.discard(changed)
            return True
        self._last = tuple(samples), found.arrays
        return False

    def fill(self, samples: Sequence[int], wait: bool = True, report: Report = silent) -> bool:
        """Fill the blocks of these samples. False if another process is at one of them and `wait` is false."""
        wanted = dict.fromkeys(self._position[sample] // self._size for sample in samples)
        blocks = [self._block(number) for number in wanted]
        filled = [self._fill_block(block, wait, report) for block in ahead(blocks, self.expect)]
        return all(filled)

    def keep(self, samples: Sequence[int], columns: Arrays) -> None:
        """Write rows of a block that is being computed; those that are there already stay. A signal that was put off
        until now is answered."""
        left = self.artefact.missing(samples)
        if len(left) < len(samples):
            rows = [samples.index(sample) for sample in left]
            columns = {name: values[rows] for name, values in columns.items()}
        if left:
            if self.checksums is not None:
                columns = {**columns, "input_crc32": self.checksums(left)}
            self.artefact.write(left, columns)
        interrupt.answer()

    def blocks(self) -> Iterator[Sequence[int]]:
        """The samples in blocks, in order."""
        return map(self._block, range(-(-len(self.order) // self._size)))

    def sources(self) -> set[str]:
        """The digests of our code that its rows were made by."""
        return self.artefact.sources()

    def finish(self) -> None:
        """Write the manifest, with the seconds that this run spent, if the artefact exists."""
        if self.artefact.folder.exists():
            self.artefact.finish(self.seconds)

    @contextlib.contextmanager
    def timed(self) -> Iterator[None]:
        """Counts the seconds of what it encloses as this stage's, what the device has left of it included."""
        synchronise(self.device)
        started = time.perf_counter()
        yield
        synchronise(self.device)
        self.seconds += time.perf_counter() - started

    def _fill_block(self, block: Sequence[int], wait: bool, report: Report) -> bool:
        missing = self.artefact.missing(block)
        if missing:
            if self.only_cache:
                raise UserError(
                    f"runner.reuse=only-cache: {self.artefact.folder} misses {len(missing)} of {len(block)} samples; "
                    "use runner.reuse=missing"
                )
            self.artefact.create(self.provenance)
            with self.artefact.claim(tuple(block), wait) as mine:
                if not mine:
                    return False
                missing = self.artefact.missing(block)
                if missing:
                    self.keep(missing, self.compute(missing))
        report(self.kind, len(block))
        return True

    def _changed(self, samples: Sequence[int], arrays: Arrays) -> list[int]:
        if self.checksums is None:
            return []
        same = arrays["input_crc32"] == self.checksums(samples)
        return [sample for sample, is_same in zip(samples, same) if not is_same]

    def _block(self, number: int) -> Sequence[int]:
        return self.order[number * self._size : (number + 1) * self._size]

    @cached_property
    def _size(self) -> int:
        return self.size()

    @cached_property
    def _position(self) -> dict[int, int]:
        return {sample: place for place, sample in enumerate(self.order)}


@dataclass(eq=False)
class Fit:
    """What a method or metric estimates once: an artefact of one file, read or made as a whole.

    make: -> named tensors as arrays. arrays: those that are there, or None; provenance, only_cache: see `Stage`.
    """

    artefact: Artefact
    make: Callable[[], Arrays]
    provenance: Mapping[str, Any]
    only_cache: bool

    kind, reads, reads_all, order = "fits", (), False, ()

    def arrays(self) -> Arrays | None:
        """What was fitted, or None if it is absent or corrupt."""
        return self.artefact.load_whole("fit")

    def misses(self, samples: Sequence[int]) -> bool:
        """Whether it has to be made, whatever the samples."""
        return self.arrays() is None

    def fill(self, samples: Sequence[int], wait: bool = True, report: Report = silent) -> bool:
        """Make it, unless another process does and `wait` is false: then the answer is False."""
        if self.only_cache:
            raise UserError(f"runner.reuse=only-cache: {self.artefact.folder} is missing; use runner.reuse=missing")
        self.artefact.create(self.provenance)
        with self.artefact.claim("fit", wait) as mine:
            if not mine:
                return False
            if self.arrays() is None:
                self.artefact.save_whole("fit", self.make())
                interrupt.answer()
        self.artefact.tidy()
        return True

    def sources(self) -> set[str]:
        """The digests of our code that it was made by."""
        return self.artefact.sources()

    def finish(self) -> None:
        """Nothing is left to write."""


def ahead(blocks: Sequence[Sequence[int]], expect: Callable[[Sequence[int]], None] | None) -> Iterator[Sequence[int]]:
    """Blocks in turn; before each, `expect` is told the one after it."""
    for block, following in zip(blocks, [*blocks[1:], ()]):
        if expect is not None and following:
            expect(following)
        yield block


def needed(stages: Sequence[Filled], block: Sequence[int]) -> list[tuple[Filled, Sequence[int]]]:
    """What has to be filled, from top to bottom, so that the last of the stages gets its rows of a block: the stages
    that miss rows which a stage below them has to read, and the samples of those rows."""
    wanted: dict[Any, Sequence[int]] = {stages[-1]: block}
    missing: list[tuple[Filled, Sequence[int]]] = []
    for stage in reversed(stages):
        samples = wanted.get(stage)
        if samples is not None and stage.misses(samples):
            missing.insert(0, (stage, samples))
            for above in stage.reads:
                wanted.setdefault(above, above.order if stage.reads_all else samples)
    return missing

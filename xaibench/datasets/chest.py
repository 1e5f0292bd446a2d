"""Generated pictures that look a little like chest X-rays: two lungs, six zones of graded opacity, and findings.

Everything is known of them: where each finding is, how severe each zone is, how often a finding occurs, and whether one
copy of it is enough. They model no disease; findings are named after their looks.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ..errors import UserError, nearest
from ..rng import seed_of
from .base import Dataset, Example
from .boxes import Boxes
from .zones import TASKS, WORST, ZONES, Task, regions_of, zones_of

VERSION = 1  # raised when any pixel of any image changes
SIDE = 64
SPLITS = {"train": range(0, 4_000), "validation": range(50_000, 51_000), "test": range(52_000, 54_000)}
REDUNDANCIES = ("none", "or", "and")
WEAK = "healthy"
OPAQUE = 0.2  # how much brighter than air the worst zone is, in pixel values
# One over the finding's expected number of images, of the findings in their order: half to a twentieth, so that rare
# ones are rare enough for a loss to pass over them.
PREVALENCE = (0.3, 0.25, 0.2, 0.15, 0.12, 0.1, 0.07, 0.05)

_CENTRES = np.arange(SIDE) + 0.5
_Y, _X = np.meshgrid(_CENTRES, _CENTRES, indexing="ij")


class Chest(Dataset):
    """Grey 64x64 pictures, as RGB, of two lungs.

    Images come from one infinite sequence. Image k depends on (generator_seed, prevalence, redundancy, k) alone; a
    split is a range of k.

    split: train (4000 images), validation (1000) or test (2000). In `train` every image is one sample, whatever is in
        it, since trainings read the vector of all its labels; elsewhere a sample is an image and a label of it that is
        present. Ids count them.
    task: `findings`: eight outputs, the findings; a sample's mask is its finding, all copies. `healthy`: two classes,
        by a weak label, whether any of them is there; every image is one sample, its mask is all that makes it
        unhealthy. `global`, `zones`, `detector`, `detector:<level>`: of the zones' severities, see `zones.Task`; there
        are no findings then.
    prevalence: of each finding, alone and independent of the others; null is `PREVALENCE`, 0.3 down to 0.05.
    redundancy: `none`: a finding that is present lies in one of the lungs. `or`: one copy is enough. In `test` there
        is one in each lung; in the other splits as often only one, so that a network learns that it suffices. `and`:
        it takes one in each lung. Of the images without the finding half have one copy, in either lung.
    samples: `labels`, as above; `images`: every image is one sample, as in `train`, for `target=fixed:<k>`. The label
        of such a sample is the first that is present, or 0, and its mask what that label is about.
    generator_seed: another value is another sequence.
    """

    has_masks = True

    def __init__(
        self,
        split: str = "test",
        task: str = "findings",
        prevalence: tuple[float, ...] | None = None,
        redundancy: str = "none",
        samples: str = "labels",
        generator_seed: int = 0,
    ) -> None:
        for name, value, known in (
            ("split", split, SPLITS),
            ("task", task, ("findings", WEAK, *TASKS)),
            ("redundancy", redundancy, REDUNDANCIES),
            ("samples", samples, ("labels", "images")),
        ):
            if value not in known:
                raise UserError(f"dataset.{name}={value}: {nearest(value, known)}")
        self.prevalence = PREVALENCE if prevalence is None else tuple(prevalence)
        if len(self.prevalence) != len(FINDINGS) or not all(0 <= share <= 1 for share in self.prevalence):
            raise UserError(
                f"dataset.prevalence={list(self.prevalence)}: expected {len(FINDINGS)} numbers from 0 to 1, of "
                f"{', '.join(FINDINGS)}"
            )
        self.split, self.redundancy, self.generator_seed = split, redundancy, generator_seed
        self.weak = task == WEAK
        self.task = None if self.weak or task == "findings" else Task(task)
        names = ("healthy", "unhealthy") if self.weak else tuple(FINDINGS)
        self.class_names = names if self.task is None else self.task.class_names
        self.graded_masks = self.task is not None and self.task.graded
        self.multi_label = not self.weak and (self.task is None or self.task.multi_label)
        whole = self.weak or split == "train" or samples == "images"
        self._samples = [
            (index, part)
            for index, position in enumerate(SPLITS[split])
            for part in (self._parts(position)[:1] or [0] if whole else self._parts(position))
        ]
        words = json.dumps([task, self.prevalence, redundancy, whole])
        self.fingerprint = f"chest-{VERSION}:generator_seed={generator_seed}:split={split}:{words}"

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> Example:
        image, part = self._samples[index]
        drawn = self.draw(image)
        if self.weak:
            mask = torch.from_numpy(drawn.findings[drawn.present].any(0))
            return Example(drawn.image, int(drawn.present.any()), mask)
        if self.task is None:
            present = torch.from_numpy(drawn.present).float()
            return Example(drawn.image, part, torch.from_numpy(drawn.findings[part]), present)
        severities = drawn.severities
        mask = self.task.mask(severities, drawn.zones, part)
        return Example(drawn.image, self.task.label(severities, part), mask, self.task.labels(severities))

    def image_of(self, index: int) -> int:
        """The number of a sample's image in the split."""
        return self._samples[index][0]

    def boxes(self, index: int) -> Boxes:
        """The smallest box around each copy of a sample's finding, or by `healthy` of all findings that are there."""
        image, part = self._samples[index]
        drawn = self.draw(image)
        parts = np.flatnonzero(drawn.present).tolist() if self.weak else [part]
        return Boxes(tuple(_box(mask) for part in parts for mask in drawn.copies[part]))

    def regions(self, indices: Sequence[int]) -> dict[str, torch.Tensor]:
        """The lungs and the zones of these samples' images by name, bool [N,64,64] each."""
        found = [regions_of(self.draw(self.image_of(index)).zones) for index in indices]
        return {name: torch.from_numpy(np.stack([one[name] for one in found])) for name in found[0]}

    @property
    def concept_names(self) -> tuple[str, ...]:
        """The findings and the lungs; where there are severities, the lungs and the zones."""
        return (*FINDINGS, "lungs") if self.task is None else ("lungs", *ZONES)

    def concepts(self, indices: Sequence[int]) -> dict[str, torch.Tensor]:
        """All findings of these samples' images, copies that are not enough too, and the lungs; or `regions`."""
        regions = self.regions(indices)
        if self.task is not None:
            return regions
        drawn = np.stack([self.draw(self.image_of(index)).findings for index in indices])
        return {name: torch.from_numpy(drawn[:, k]) for k, name in enumerate(FINDINGS)} | {"lungs": regions["lungs"]}

    def draw(self, image: int) -> "Drawing":
        """An image of the split, with all that is known of it."""
        position = SPLITS[self.split][image]
        rng = self._generator("image", position)
        lungs = _lungs(rng)
        zones, severities = zones_of(lungs), self._severities(position)
        light = _body(rng, lungs)
        copies: dict[int, list[np.ndarray]] = {}
        findings, present = np.zeros((len(FINDINGS), SIDE, SIDE), dtype=bool), np.zeros(len(FINDINGS), dtype=bool)
        if self.task is not None:
            light = light + _opacity(rng, zones, severities)
        else:
            sides = self._sides(position)
            for k, (shape, there) in enumerate(zip(FINDINGS.values(), sides)):
                for side in there:
                    layer = shape(rng, lungs[side])
                    light = light + layer
                    copies.setdefault(k, []).append(layer != 0)
                if there:
                    findings[k] = np.any(copies[k], axis=0)
                present[k] = len(there) == 2 if self.redundancy == "and" else bool(there)
        light = light + 0.03 * (rng.random((SIDE, SIDE)) - 0.5)
        grey = np.rint(255 * light.clip(0, 1)).astype(np.uint8)
        pixels = torch.from_numpy(grey).float().div(255).expand(3, SIDE, SIDE)
        return Drawing(pixels, zones, severities, present, findings, copies)

    def _parts(self, position: int) -> list[int]:
        """The labels of an image that are samples, without drawing it."""
        if self.task is not None:
            return self.task.parts(self._severities(position))
        needed = 2 if self.redundancy == "and" else 1
        return [k for k, sides in enumerate(self._sides(position)) if len(sides) >= needed]

    def _sides(self, position: int) -> list[list[int]]:
        """In which of the two lungs each finding lies, of an image of the sequence."""
        rng = self._generator("findings", position)
        found: list[list[int]] = []
        # All are drawn for every finding, so that what one is does not depend on another.
        for share, (is_there, is_left, is_single) in zip(self.prevalence, rng.random((len(FINDINGS), 3))):
            one, there = [int(is_left < 0.5)], is_there < share
            if self.redundancy == "none":
                sides = one if there else []
            elif self.redundancy == "or":
                sides = [] if not there else one if is_single < 0.5 and self.split != "test" else [0, 1]
            else:
                sides = [0, 1] if there else one if is_single < 0.5 else []
            found.append(sides)
        return found

    def _severities(self, position: int) -> tuple[int, ...]:
        """The severity of each zone: a part of it is drawn for the image, so that its zones go together."""
        common, *own = self._generator("severities", position).random(7)
        return tuple(int(min((WORST + 1) * (0.6 * common + 0.5 * one - 0.05), WORST)) for one in own)

    def _generator(self, purpose: str, position: int) -> np.random.Generator:
        # Only `random` is drawn from it, the same on every platform and in every version of numpy.
        return np.random.Generator(np.random.PCG64(seed_of("chest", self.generator_seed, purpose, position)))


@dataclass(frozen=True)
class Drawing:
    """An image. image: float32 [3,64,64] in [0, 1]; zones: bool [6,64,64]; severities: of the zones; present: bool [8],
    which findings the image has; findings: bool [8,64,64], exactly the pixels that each changes; copies: of those that
    lie in it, one by one, which by `redundancy: and` may be of a finding that is not present."""

    image: torch.Tensor
    zones: np.ndarray
    severities: tuple[int, ...]
    present: np.ndarray
    findings: np.ndarray
    copies: dict[int, list[np.ndarray]]


def _between(rng: np.random.Generator, low: float, high: float) -> float:
    return low + (high - low) * rng.random()


def _lungs(rng: np.random.Generator) -> np.ndarray:
    """Two ellipses, bool [2,64,64]."""
    lungs = []
    for middle in (18.5, 45.5):
        x, y = middle + _between(rng, -1.5, 1.5), 31 + _between(rng, -2, 2)
        across, down = _between(rng, 10, 12), _between(rng, 22, 26)
        lungs.append(((_X - x) / across) ** 2 + ((_Y - y) / down) ** 2 < 1)
    return np.stack(lungs)


def _body(rng: np.random.Generator, lungs: np.ndarray) -> np.ndarray:
    """A body with ribs and a heart, brighter than the air in its lungs: [64,64] in [0, 1]."""
    light = np.where(lungs.any(0), 0.22, 0.55) + _between(rng, -0.05, 0.05)
    slope, period, phase = _between(rng, -0.1, 0.1), _between(rng, 7, 9), rng.random()
    ribs = np.cos(2 * np.pi * ((_Y + slope * np.abs(_X - SIDE / 2)) / period + phase))
    heart = ((_X - 36) / 9) ** 2 + ((_Y - 42) / 10) ** 2 < 1
    return light + 0.03 * ribs + 0.12 * (heart & ~lungs.any(0))


def _opacity(rng: np.random.Generator, zones: np.ndarray, severities: Sequence[int]) -> np.ndarray:
    """The haze of each zone, with the severity in the mean and spots in it: [64,64]."""
    spots = np.zeros((SIDE, SIDE))
    for _ in range(40):
        x, y, size = _between(rng, 0, SIDE), _between(rng, 0, SIDE), _between(rng, 2, 5)
        spots += np.exp(-((_X - x) ** 2 + (_Y - y) ** 2) / (2 * size**2))
    levels = (zones * np.array(severities)[:, None, None]).sum(0) / WORST
    return OPAQUE * levels * (0.7 + 0.3 * np.tanh(spots))


# Findings: how much brighter a picture gets, [64,64], 0 where the finding is not. Each lies in one lung.


def _inside(rng: np.random.Generator, lung: np.ndarray, margin: float) -> tuple[float, float]:
    """A place in a lung, that far from the edges of its box where there is room."""
    rows, columns = np.flatnonzero(lung.any(1)), np.flatnonzero(lung.any(0))
    y = _between(rng, rows[0] + 6 + margin, rows[-1] + 1 - 6 - margin)
    middle, room = columns.mean() + 0.5, max(len(columns) / 2 - 3 - margin, 0.5)
    return _between(rng, middle - room, middle + room), y


def _distance(x: float, y: float) -> np.ndarray:
    return np.hypot(_X - x, _Y - y)


def _nodule(rng: np.random.Generator, lung: np.ndarray) -> np.ndarray:
    return 0.35 * (_distance(*_inside(rng, lung, 3)) < _between(rng, 2.2, 3.0))


def _mass(rng: np.random.Generator, lung: np.ndarray) -> np.ndarray:
    return 0.3 * (_distance(*_inside(rng, lung, 6)) < _between(rng, 5.5, 7))


def _ring(rng: np.random.Generator, lung: np.ndarray) -> np.ndarray:
    distance, radius = _distance(*_inside(rng, lung, 6)), _between(rng, 4.5, 6)
    return 0.3 * (np.abs(distance - radius) < 1)


def _plate(rng: np.random.Generator, lung: np.ndarray) -> np.ndarray:
    x, y = _inside(rng, lung, 7)
    return 0.3 * ((np.abs(_X - x) < _between(rng, 6, 8)) & (np.abs(_Y - y) < 1.2))


def _fluid(rng: np.random.Generator, lung: np.ndarray) -> np.ndarray:
    rows = np.flatnonzero(lung.any(1))
    return 0.3 * (lung & (rows[-1] + 1 - _Y < _between(rng, 0.15, 0.3) * len(rows)))


def _haze(rng: np.random.Generator, lung: np.ndarray) -> np.ndarray:
    distance, radius = _distance(*_inside(rng, lung, 6)), _between(rng, 8, 10)
    return 0.2 * np.where(distance < radius, 0.2 + 0.8 * (1 - (distance / radius) ** 2), 0)


def _patches(rng: np.random.Generator, lung: np.ndarray) -> np.ndarray:
    x, y = _inside(rng, lung, 5)
    angles = 2 * np.pi * (np.arange(6) + rng.random()) / 6
    dots = [_distance(x + 5 * np.cos(angle), y + 5 * np.sin(angle)) < 1.3 for angle in angles]
    return 0.35 * np.any(dots, axis=0)


def _rim(rng: np.random.Generator, lung: np.ndarray) -> np.ndarray:
    """A darker crescent between the lung's outer edge and the same lung pushed inwards; the lung's upper half."""
    columns, rows = np.flatnonzero(lung.any(0)), np.flatnonzero(lung.any(1))
    push = int(_between(rng, 3, 5)) * (1 if columns.mean() < SIDE / 2 else -1)
    return -0.15 * (lung & ~np.roll(lung, push, axis=1) & (rows.mean() > _Y))


FINDINGS: dict[str, Callable[[np.random.Generator, np.ndarray], np.ndarray]] = {
    "nodule": _nodule,
    "mass": _mass,
    "ring": _ring,
    "plate": _plate,
    "fluid": _fluid,
    "haze": _haze,
    "patches": _patches,
    "rim": _rim,
}


def _box(mask: np.ndarray) -> tuple[float, float, float, float]:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)

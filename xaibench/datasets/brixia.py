"""Chest X-rays with the severity that radiologists gave to each of six zones, from a folder."""

import csv
import logging
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from .. import rng
from ..errors import UserError, nearest
from ..store.files import existing, fingerprint
from ..store.memo import contents
from . import pictures
from .base import Dataset, Example
from .zones import WORST, ZONES, Task, lungs_of, regions_of, zones_of

log = logging.getLogger(__name__)
VERSION = 1  # raised when the same files give other samples
SPLITS = ("train", "test")
GROUPINGS = ("case", "random")
READERS = {"senior": "S", "junior": "J"}

_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_HASH = re.compile(r"[0-9a-f]{32}")
# What begins the part of a name that tells the pictures of a case apart: a day, a figure, a projection.
_LATER = re.compile(
    r"[-_.,]+(days?[-_]?\d|\d+-(hours|days)|admission|prior|later|fig\d|f\d|g\d\d|gr\d|pdf|(pa|aps?)\b).*"
)


class Brixia(Dataset):
    """Frontal chest X-rays with six severities of 0 to 3 each, as squares of `side` pixels; zones as in `zones`.

    root: holds `images/`, `scores.csv` with the columns image, S-A to S-F (a senior radiologist's) and J-A to J-F (a
        junior's), and `lungs/` with a mask of two lungs for some of the images, of the same name and size.
    split, folds, fold: `test` is the fold of this number, of so many; `train` is all others.
    grouping: `case` keeps the pictures of one case in one fold; by the column `source_file`, see `case_of`. `random`
        deals out pictures: those of a case are then on both sides, and errors are too small.
    task: see `zones.Task`. reader: whose severities are the truth, `senior` or `junior`.
    regions: whether there are masks. Then images without lungs are left out of `test`, and named; `train` keeps all
        images and has no masks. With false, all images are there, for `quality`.
    side: pictures are squeezed into a square, as the released code does, so that no part of a lung is cut off.
    fold_seed: another one deals out other folds.

    Raises UserError for missing files and columns, and for severities that are none.
    """

    def __init__(
        self,
        root: str,
        split: str = "test",
        task: str = "global",
        folds: int = 5,
        fold: int = 0,
        grouping: str = "case",
        reader: str = "senior",
        regions: bool = True,
        side: int = 224,
        fold_seed: int = 0,
    ) -> None:
        for name, value, known in (
            ("split", split, SPLITS),
            ("grouping", grouping, GROUPINGS),
            ("reader", reader, READERS),
        ):
            if value not in known:
                raise UserError(f"dataset.{name}={value}: {nearest(value, known)}")
        if folds < 2 or not 0 <= fold < folds:
            raise UserError(f"dataset.fold={fold} of dataset.folds={folds}: expected 0 to {max(folds, 2) - 1}")
        if side < 1:
            raise UserError(f"dataset.side={side}: expected a positive number of pixels")
        self.root, self.side, self.task = existing(root, "dataset.root"), side, Task(task)
        table = existing(self.root / "scores.csv", "dataset.root")
        rows = _read(table, READERS[reader], grouping)
        self.cases = [case_of(row["source_file"]) if grouping == "case" else row["image"] for row in rows]
        names = [row["image"] for row in rows]
        chosen = [
            i for i, own in enumerate(folds_of(self.cases, folds, fold_seed)) if (own == fold) == (split == "test")
        ]
        self.has_masks = regions and split == "test"
        lungs = [self.root / "lungs" / name for name in names]
        without = [names[i] for i in chosen if self.has_masks and not lungs[i].is_file()]
        if without:
            log.warning(
                "%s: %d of %d images of this fold have no lung mask and are left out of region metrics: %s\n"
                "dataset.regions=false keeps them, without masks",
                *(self.root, len(without), len(chosen), ", ".join(without[:4]) + (", ..." if without[4:] else "")),
            )
            self.left_out = {"without lung mask": without}
        self._images = [i for i in chosen if names[i] not in without]
        self._rows, self._names = rows, names
        self._severities = [_severities(row, READERS[reader], table) for row in rows]
        self._samples = [
            (i, part) for i in self._images for part in self._parts(self._severities[i], whole=split == "train")
        ]
        self.class_names, self.graded_masks = self.task.class_names, self.task.graded
        self.multi_label = self.task.multi_label
        files = [self.root / "images" / names[i] for i in self._images]
        for file in files:
            existing(file, "dataset.root")
        self._digests = contents(self.root, files + ([lungs[i] for i in self._images] if self.has_masks else []))
        words = (VERSION, pictures.VERSION, split, task, folds, fold, grouping, reader, regions, side, fold_seed)
        scores = [(names[i], self._severities[i]) for i in self._images]
        self.fingerprint = fingerprint(self._digests, "brixia", words, scores)

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> Example:
        i, part = self._samples[index]
        name, severities = self._names[i], self._severities[i]
        picture = pictures.read(self.root / "images" / name, self._digests[f"images/{name}"]).image
        image = picture.resize((self.side, self.side), Image.Resampling.BILINEAR)
        mask = self.task.mask(severities, self._zones(i), part) if self.has_masks else None
        return Example(image, self.task.label(severities, part), mask, self.task.labels(severities))

    def picture_of(self, index: int) -> tuple[str, str]:
        """The file name of a sample's image, and its case."""
        i, _ = self._samples[index]
        return self._names[i], self.cases[i]

    def regions(self, indices: Sequence[int]) -> dict[str, torch.Tensor]:
        """The lungs and the zones of these samples' images by name, bool [N,S,S] each.

        Raises UserError if the images have no lung masks.
        """
        if not self.has_masks:
            raise UserError("dataset=brixia has regions in its test folds with dataset.regions=true")
        found = [regions_of(self._zones(self._samples[index][0])) for index in indices]
        return {name: torch.from_numpy(np.stack([one[name] for one in found])) for name in found[0]}

    @property
    def concept_names(self) -> tuple[str, ...]:
        """The lungs and the zones, where there are masks of them."""
        return ("lungs", *ZONES) if self.has_masks else ()

    def concepts(self, indices: Sequence[int]) -> dict[str, torch.Tensor]:
        """As `regions`."""
        return self.regions(indices)

    def _parts(self, severities: Sequence[int], whole: bool) -> list[int]:
        return (self.task.parts(severities)[:1] or [0]) if whole else self.task.parts(severities)

    def _zones(self, i: int) -> np.ndarray:
        path = self.root / "lungs" / self._names[i]
        drawn = pictures.read(path, self._digests[f"lungs/{self._names[i]}"]).image.convert("L")
        try:
            zones = zones_of(lungs_of(np.asarray(drawn) > 127))
        except ValueError as error:
            raise UserError(f"{path}: {error}") from error
        # Thirds first, in the picture's own pixels: squeezing moves no border of a zone by more than half a pixel.
        squeezed = [Image.fromarray(zone).resize((self.side, self.side), Image.Resampling.NEAREST) for zone in zones]
        return np.stack([np.asarray(zone) for zone in squeezed])


def case_of(source: str) -> str:
    """The case that a picture is of, as far as its original file name tells.

    Names that are nothing but an identifier are cases of their own. From others the file's ending is taken, a day,
    figure, projection or the like with all that follows it, a second number, and a letter behind a number:
    covid-19-pneumonia-58-day-9.jpg and covid-19-pneumonia-58-prior.jpg are of one case, lancet-case2a.jpg and
    lancet-case2b.jpg as well. Where it cannot be told, pictures rather count as one case than as two.
    """
    stem = re.sub(r"\.(jpe?g|png|gif)$", "", source.strip().lower())
    for identifier in (_UUID, _HASH):
        if found := identifier.match(stem):
            return found.group()
    if found := re.fullmatch(r"(\d+)_\d+_\d+", stem):
        return found.group(1)
    stem = _LATER.sub("", stem)
    stem = re.sub(r"(\d)[a-z]$", r"\1", stem)
    if found := re.fullmatch(r"(.*\d)-\d+", stem):
        return found.group(1)
    # A number behind `pneumonia` counts cases; behind another word it counts the pictures of one.
    found = re.fullmatch(r"(.*[a-z])-\d+", stem)
    return found.group(1) if found and not stem.rpartition("-")[0].endswith(("pneumonia", "ards")) else stem


def folds_of(cases: Sequence[str], folds: int, seed: int) -> list[int]:
    """The fold of each picture: cases in a seeded order, each to the fold with the fewest pictures so far."""
    order = sorted(set(cases))
    sizes, found = [0] * folds, {}
    for place in rng.permutation(len(order), seed):
        fold = sizes.index(min(sizes))
        found[order[place]] = fold
        sizes[fold] += cases.count(order[place])
    return [found[case] for case in cases]


def _read(table: Path, reader: str, grouping: str) -> list[dict[str, str]]:
    wanted = ["image", *(f"{reader}-{zone}" for zone in ZONES), *(["source_file"] if grouping == "case" else [])]
    try:
        with open(table, newline="", encoding="utf-8-sig") as file:
            rows = csv.DictReader(file)
            found, columns = list(rows), rows.fieldnames or []
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{table}: not a readable CSV file ({error})") from error
    if missing := [column for column in wanted if column not in columns]:
        hint = "; dataset.grouping=random needs none" if missing[0] == "source_file" else ""
        raise UserError(f"{table}: there is no column '{missing[0]}': {nearest(missing[0], columns)}{hint}")
    if not found:
        raise UserError(f"{table}: it has no rows")
    return found


def _severities(row: dict[str, str], reader: str, table: Path) -> tuple[int, ...]:
    found = []
    for zone in ZONES:
        value = (row[f"{reader}-{zone}"] or "").strip()
        if not value.isdecimal() or int(value) > WORST:
            raise UserError(f"{table}: {row['image']}: {reader}-{zone}={value}: expected a severity of 0 to {WORST}")
        found.append(int(value))
    return tuple(found)

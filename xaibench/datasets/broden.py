"""A folder of pictures in which every concept is drawn, in the format of Broden (Bau et al. 2017)."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image

from ..errors import UserError, first_line, nearest
from ..store.files import existing, fingerprint
from ..store.memo import contents, read_bytes
from . import pictures
from .base import Dataset, Example

INDEX, LABELS, IMAGES = "index.csv", "label.csv", "images"
# Columns of index.csv that are no category of concepts. `class` is ours: the class of the picture.
OTHERS = ("image", "split", "ih", "iw", "sh", "sw", "class")
# The words that a split may have in the table, the first that occurs: Broden has train and val.
_SPLITS = {"train": ("train",), "validation": ("validation", "val"), "test": ("test", "val", "validation")}


@dataclass(frozen=True)
class Row:
    """A picture, its class, and what is drawn in it: files, and numbers of concepts that the whole picture shows."""

    image: Path
    label: str
    files: tuple[Path, ...]
    numbers: tuple[int, ...]


class Broden(Dataset):
    """Pictures with concepts. An id is a row of the split in index.csv.

    root: a folder with `index.csv`, `label.csv` and `images`. index.csv has a row for each picture: `image`, its path
        below images; `split`; and a column for each category of concepts (object, part, color, ...) with the names of
        PNG files below images, or numbers of concepts that the whole picture shows, separated by `;`. In such a file
        the pixel's red + 256 * green is the number of its concept, 0 for none; it may be smaller than the picture.
        label.csv has `number` and `name` of each concept, and may have its `frequency`. A column `class`, which Broden
        does not have, names the class of each picture; without one every label is 0.
    split: train, validation or test; where there is no test, `val` is taken.
    categories: which columns; null for all. concepts: which names; null for the `most` with the largest frequency, or,
        where that is not stated, for the first `most` in label.csv, of all splits alike.
    Raises UserError for tables that lack something, for a split, category or concept that is not there, and for files
    that are missing or cannot be read.
    """

    def __init__(
        self,
        root: str,
        split: Literal["train", "validation", "test"] = "test",
        categories: Sequence[str] | None = None,
        concepts: Sequence[str] | None = None,
        most: int = 20,
    ) -> None:
        if split not in _SPLITS:
            raise UserError(f"dataset.split={split}: {nearest(split, _SPLITS)}")
        folder = existing(root, "dataset.root")
        index, labels = (existing(folder / name, "dataset.root") for name in (INDEX, LABELS))
        rows = _rows(folder, index, split, categories)
        self._rows, self._numbers = rows, _chosen(labels, concepts, most)
        self.class_names = tuple(
            sorted({row["class"] for row in _table(index, ("image", "split")) if row.get("class")})
        )
        files = [index, labels, *(path for row in rows for path in (row.image, *row.files))]
        for path in files:
            existing(path, "dataset.root")
        self._digests = contents(folder, list(dict.fromkeys(files)))
        self._folder = folder
        self.fingerprint = fingerprint(self._digests, "broden", pictures.VERSION, split)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Example:
        row = self._rows[index]
        picture = pictures.read(row.image, self._digests[row.image.relative_to(self._folder).as_posix()])
        return Example(picture.image, self.class_names.index(row.label) if row.label else 0)

    @property
    def concept_names(self) -> tuple[str, ...]:
        return tuple(self._numbers)

    def concepts(self, indices: Sequence[int]) -> dict[str, torch.Tensor]:
        drawn = [self._drawn(self._rows[index]) for index in indices]
        return {name: torch.stack([one[name] for one in drawn]) for name in self._numbers}

    def _drawn(self, row: Row) -> dict[str, torch.Tensor]:
        """Where each concept is in a picture: bool [H,W], at the picture's size."""
        width, height = pictures.size(row.image)
        shown = [_codes(path, (width, height)) for path in row.files]
        shown += [np.full((height, width), number) for number in row.numbers]
        found = {name: np.zeros((height, width), dtype=bool) for name in self._numbers}
        for name, numbers in self._numbers.items():
            for codes in shown:
                found[name] |= np.isin(codes, numbers)
        return {name: torch.from_numpy(where) for name, where in found.items()}


def _codes(path: Path, size: tuple[int, int]) -> np.ndarray:
    """The numbers that a file's pixels are, enlarged to a picture's (width, height): int [H,W]."""
    try:
        with Image.open(io.BytesIO(read_bytes(path))) as image:
            pixels = np.asarray(image.convert("RGB").resize(size, Image.Resampling.NEAREST)).astype(np.int64)
    except UserError:
        raise
    except Exception as error:  # Pillow has no one class for what it cannot read
        raise UserError(f"{path}: not a readable PNG of numbers of concepts ({first_line(error)})") from error
    return pixels[..., 0] + 256 * pixels[..., 1]


def _table(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """The rows of a CSV file with at least these columns. Raises UserError."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            rows = [{name: value or "" for name, value in row.items() if name} for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: not a readable CSV file ({first_line(error)})") from error
    for column in columns:
        if column not in (reader.fieldnames or ()):
            raise UserError(f"{path}: there is no column '{column}'\nexpected {', '.join(columns)}; see docs/worlds.md")
    return rows


def _rows(folder: Path, index: Path, split: str, categories: Sequence[str] | None) -> list[Row]:
    """The pictures of a split, with what is drawn in them in these categories."""
    table = _table(index, ("image", "split"))
    known = [name for name in (table[0] if table else ()) if name not in OTHERS]
    for category in categories or ():
        if category not in known:
            raise UserError(f"dataset.categories: {category} is no column of {index}: {nearest(category, known)}")
    present = {row["split"] for row in table}
    word = next((word for word in _SPLITS[split] if word in present), None)
    if word is None:
        raise UserError(f"dataset.split={split}: {index} has no row of it, only {', '.join(sorted(present)) or 'none'}")
    found = []
    for row in table:
        if row["split"] == word:
            cells = [cell.strip() for name in categories or known for cell in row[name].split(";") if cell.strip()]
            files = tuple(folder / IMAGES / cell for cell in cells if not cell.isdecimal())
            numbers = tuple(int(cell) for cell in cells if cell.isdecimal())
            found.append(Row(folder / IMAGES / row["image"], row.get("class", ""), files, numbers))
    if unnamed := [row.image.name for row in found if not row.label and any(other.label for other in found)]:
        raise UserError(f"{index}: expected a class for every picture or for none, {unnamed[0]} has none")
    return found


def _chosen(labels: Path, concepts: Sequence[str] | None, most: int) -> dict[str, list[int]]:
    """The concepts that are looked for, with their numbers: a name may have several."""
    table = _table(labels, ("number", "name"))
    numbers: dict[str, list[int]] = {}
    weight: dict[str, float] = {}
    for line, row in enumerate(table, start=2):
        try:
            number, frequency = int(row["number"]), float(row.get("frequency") or 0)
        except ValueError as error:
            raise UserError(f"{labels}: line {line}: expected a whole number and a frequency ({error})") from error
        if number > 0:  # 0 is none of them
            numbers.setdefault(row["name"], []).append(number)
            weight[row["name"]] = weight.get(row["name"], 0.0) + frequency
    for concept in concepts or ():
        if concept not in numbers:
            raise UserError(f"dataset.concepts: {concept} is not in {labels}: {nearest(concept, numbers)}")
    names = concepts if concepts is not None else sorted(numbers, key=lambda name: -weight[name])[:most]
    return {name: numbers[name] for name in names}

"""The NIH's chest X-rays with boxes around their findings, from the user's download."""

import csv
import logging
from pathlib import Path

import torch

from ..errors import UserError, nearest
from ..store.files import existing, fingerprint
from ..store.memo import contents
from . import pictures
from .base import Dataset, Example
from .boxes import Boxes

log = logging.getLogger(__name__)
VERSION = 1  # raised when the same files give other samples
BOXES, ENTRIES = "BBox_List_2017.csv", "Data_Entry_2017.csv"
# As the table of boxes names them; the table of labels says Infiltration.
FINDINGS = ("Atelectasis", "Cardiomegaly", "Effusion", "Infiltrate", "Mass", "Nodule", "Pneumonia", "Pneumothorax")
# The header of the table of boxes, whose brackets span four columns.
COLUMNS = ("Image Index", "Finding Label", "Bbox [x", "y", "w", "h]")


class NIH(Dataset):
    """ChestX-ray8 (Wang et al. 2017), for a network with eight outputs, one for each finding that has boxes.

    root: the download: pictures anywhere below it, `BBox_List_2017.csv` and, for the vectors of all labels,
        `Data_Entry_2017.csv`.
    split: `test`: one sample for each box, whose label is its finding and whose mask is the box. `train`: the pictures
        of Data_Entry_2017.csv that have no box, one sample each, without masks; its label is the first finding that
        is present, or 0, and trainings read the vectors.

    Pictures that the tables name and that are not there (a part of the download) are left out and counted. Raises
    UserError for missing files and columns, unknown findings, and if no picture is there.
    """

    class_names = FINDINGS
    multi_label = True

    def __init__(self, root: str, split: str = "test") -> None:
        if split not in ("train", "test"):
            raise UserError(f"dataset.split={split}: {nearest(split, ('train', 'test'))}")
        self.root = existing(root, "dataset.root")
        boxes = _boxes(existing(self.root / BOXES, "dataset.root"))
        entries = self.root / ENTRIES
        labels = _labels(entries) if split == "train" or entries.is_file() else {}
        if split == "train":
            boxed = {name for name, _, _ in boxes}
            named = [(name, labels[name].index(1) if 1 in labels[name] else 0, None) for name in labels]
            samples: list[tuple[str, int, Boxes | None]] = [row for row in named if row[0] not in boxed]
        else:
            samples = list(boxes)
        there = {path.name: path for path in sorted(self.root.rglob("*.png"))}
        self._samples = [row for row in samples if row[0] in there]
        absent = sorted({name for name, _, _ in samples} - set(there))
        if not self._samples:
            first = f", such as {samples[0][0]}" if samples else ""
            raise UserError(f"dataset.root={self.root}: none of the pictures that its tables name is below it{first}")
        if absent:
            log.warning("%s: %d pictures that its tables name are not there, such as %s", root, len(absent), absent[0])
            self.left_out = {"not there": len(absent)}
        self.has_masks = split == "test"
        self._paths = {name: there[name] for name, _, _ in self._samples}
        self._labels = {name: labels.get(name) for name in self._paths}
        if None in self._labels.values():
            # Without the table of labels, what has a box is what is known to be present.
            for name, label, _ in self._samples:
                known = self._labels[name] or [0] * len(FINDINGS)
                self._labels[name] = [1 if k == label else value for k, value in enumerate(known)]
        digests = contents(self.root, list(self._paths.values()))
        self._digests = dict(zip(self._paths, digests.values()))
        rows = [(name, label, box and box.corners, self._labels[name]) for name, label, box in self._samples]
        self.fingerprint = fingerprint(digests, "nih", VERSION, pictures.VERSION, split, rows)

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> Example:
        name, label, box = self._samples[index]
        image = pictures.read(self._paths[name], self._digests[name]).image
        mask = None if box is None else box.mask(*image.size)
        return Example(image, label, mask, torch.tensor(self._labels[name], dtype=torch.float32))


def _rows(path: Path, columns: tuple[str, ...]) -> list[dict[str, str]]:
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            if missing := [column for column in columns if column not in (reader.fieldnames or ())]:
                raise UserError(f"{path}: there is no column '{missing[0]}': expected those of the NIH's table")
            return list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: not a readable CSV file ({error})") from error


def _boxes(path: Path) -> list[tuple[str, int, Boxes]]:
    """Picture, finding and box of each row, in order."""
    found = []
    for number, row in enumerate(_rows(path, COLUMNS), 2):
        name, finding = row[COLUMNS[0]], row[COLUMNS[1]]
        if finding not in FINDINGS:
            raise UserError(f"{path}: line {number}: Finding Label={finding}: {nearest(finding, FINDINGS)}")
        try:
            x, y, width, height = (float(row[column]) for column in COLUMNS[2:])
        except ValueError:
            x = y = width = height = 0.0
        if not (width > 0 and height > 0):
            raise UserError(f"{path}: line {number}: expected x, y and a positive width and height in pixels")
        found.append((name, FINDINGS.index(finding), Boxes(((x, y, x + width, y + height),))))
    return found


def _labels(path: Path) -> dict[str, list[int]]:
    """Which of the eight findings each picture has, 1 or 0."""
    rows = _rows(existing(path, "dataset.root"), ("Image Index", "Finding Labels"))
    found = {}
    for row in rows:
        words = row["Finding Labels"].replace("Infiltration", "Infiltrate").split("|")
        found[row["Image Index"]] = [int(finding in words) for finding in FINDINGS]
    return found

"""Any folder of class folders of images, with an optional table from folder names to class indices."""

import csv
from pathlib import Path
from typing import Literal

from torchvision import datasets

from ..errors import UserError, first_line, nearest
from ..files import existing, fingerprint
from .base import Dataset, Example

_FOLDERS = {"train": ("train",), "validation": ("validation", "val"), "test": ("test",)}


class ImageFolder(Dataset):
    """Images as torchvision's ImageFolder lists them; a sample's id is its index in that sorted listing.

    root: holds one folder per split (`train`, `validation` or `val`, `test`), each a folder of class folders; or is a
        folder of class folders itself, which then is the split asked for, except `train`, which is refused.
    classes: a CSV file with a column `index` and columns that name the class (such as wnid and name). The column that
        the folder names are found in maps them to their index; without a file the index counts the sorted folders.
    Images are RGB. Raises UserError for missing folders, and for folders that the CSV does not name.
    """

    def __init__(
        self, root: str, split: Literal["train", "validation", "test"] = "test", classes: str | None = None
    ) -> None:
        folder = _split_folder(existing(root, "dataset.root"), split)
        try:
            listing = datasets.ImageFolder(folder)
        except FileNotFoundError as error:
            raise UserError(f"dataset.root={root}: {first_line(error)}") from error
        self._load = listing.loader
        if classes is None:
            indices, self.class_names = {i: i for i in range(len(listing.classes))}, tuple(listing.classes)
        else:
            indices, self.class_names = _read_classes(existing(classes, "dataset.classes"), listing.classes)
        self._samples = [(path, indices[position]) for path, position in listing.samples]
        # The indices count too: another table gives the same images other labels.
        files = (Path(path) for path, _ in self._samples)
        self.fingerprint = fingerprint(folder, files, "imagefolder", sorted(indices.items()))

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> Example:
        path, label = self._samples[index]
        try:
            return Example(self._load(path), label)
        except OSError as error:
            raise UserError(f"{path}: not a readable image ({error})") from error


def _split_folder(root: Path, split: str) -> Path:
    for name in _FOLDERS[split]:
        if (root / name).is_dir():
            return root / name
    others = [name for names in _FOLDERS.values() for name in names if (root / name).is_dir()]
    if others:
        raise UserError(f"dataset.split={split}: {root} has no folder for it, it has {', '.join(others)}")
    if split == "train":
        raise UserError(
            f"dataset.split=train: {root} is a folder of classes without splits, which is for evaluation only\n"
            "to train on it, move its class folders into 'train' and others into 'test'"
        )
    return root


def _read_classes(table: Path, folders: list[str]) -> tuple[dict[int, int], tuple[str, ...]]:
    """The class index of each folder by its position, and the name of every index of the table."""
    with open(table, newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    columns = [column for column in (rows[0] if rows else {}) if column]
    if "index" not in columns or not all((row["index"] or "").isdecimal() for row in rows):
        raise UserError(f"dataset.classes={table}: expected a CSV with a column 'index' of whole numbers")
    column = max(columns, key=lambda c: len({row[c] for row in rows} & set(folders)))
    by_folder: dict[str, set[int]] = {}
    for row in rows:
        by_folder.setdefault(row[column], set()).add(int(row["index"]))
    indices = {}
    for position, folder in enumerate(folders):
        found = by_folder.get(folder, set())
        if not found:
            raise UserError(
                f"dataset.classes={table}: does not name the folder '{folder}': {nearest(folder, by_folder)}"
            )
        if len(found) > 1:
            raise UserError(f"dataset.classes={table}: names '{folder}' twice, for the classes {sorted(found)}")
        indices[position] = found.pop()
    label = "name" if "name" in columns else column
    names = {int(row["index"]): row[label] for row in rows}
    return indices, tuple(names.get(i, "") for i in range(max(names) + 1))

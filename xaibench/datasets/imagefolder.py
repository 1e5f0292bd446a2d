"""Any folder of class folders of images; optional: a table from folder names to class indices, and bounding boxes."""

import csv
from pathlib import Path
from typing import Literal

from PIL import Image
from torchvision import datasets

from ..errors import UserError, first_line, nearest
from ..store.files import existing, fingerprint
from .base import Dataset, Example
from .boxes import Boxes, match, read_boxes

_FOLDERS = {"train": ("train",), "validation": ("validation", "val"), "test": ("test",)}


class ImageFolder(Dataset):
    """Images as torchvision's ImageFolder lists them; a sample's id is its index in that sorted listing.

    root: holds one folder per split (`train`, `validation` or `val`, `test`), each a folder of class folders; or is a
        folder of class folders itself, which then is the split asked for, except `train`, which is refused.
    classes: a CSV file with a column `index` and columns that name the class (such as wnid and name). The column that
        the folder names are found in maps them to their index; without a file the index counts the sorted folders.
    boxes: a CSV file (file,xmin,ymin,xmax,ymax) or a folder of Pascal VOC XML files, as `boxes.read_boxes` and
        `boxes.match` say. The union of an image's boxes is its mask. Only images that have boxes are in the data set;
        `train`, which is for fitting, may have none at all, and then keeps all its images and has no masks.
    max_box: with boxes, images whose mask covers more than this share of the image are left out as well: a third is
        usual, since chance would hit larger ones. It is measured in the whole picture, as the data set cannot know
        what a model crops (the IBA paper measures after the crop). null keeps all.
    What is left out has no id: ids count the images that are kept. Boxes are part of the fingerprint.
    Images are RGB. Raises UserError for missing folders, for folders that the CSV does not name, and for boxes that
    are malformed or belong to no image.
    """

    def __init__(
        self,
        root: str,
        split: Literal["train", "validation", "test"] = "test",
        classes: str | None = None,
        boxes: str | None = None,
        max_box: float | None = 0.33,
    ) -> None:
        if max_box is not None and not 0 < max_box <= 1:
            raise UserError(f"dataset.max_box={max_box}: expected a share of the image between 0 and 1, or null")
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
        self._boxes: list[Boxes] = []
        if boxes is not None:
            self._keep_boxed(folder, split, existing(boxes, "dataset.boxes"), max_box)
        self.has_masks = bool(self._boxes)
        # The indices and boxes count too: another table gives the same images other labels.
        files = (Path(path) for path, _ in self._samples)
        drawn = [[(found.corners, found.size) for found in self._boxes]] if self._boxes else []
        self.fingerprint = fingerprint(folder, files, "imagefolder", sorted(indices.items()), *drawn)

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> Example:
        path, label = self._samples[index]
        try:
            image = self._load(path)
        except OSError as error:
            raise UserError(f"{path}: not a readable image ({error})") from error
        return Example(image, label, self._boxes[index].mask(*image.size) if self.has_masks else None)

    def _keep_boxed(self, folder: Path, split: str, path: Path, max_box: float | None) -> None:
        """Leave only the samples with boxes that are small enough, and remember the boxes."""
        boxes, images = read_boxes(path), [Path(image).relative_to(folder).as_posix() for image, _ in self._samples]
        matched = match(boxes, images)
        if not matched:
            if split == "train":
                return
            raise UserError(
                f"dataset.boxes={path}: names no image of {folder}, such as '{images[0]}'\n"
                f"it names '{next(iter(boxes))}' and {len(boxes) - 1} others"
            )
        kept = [
            (sample, matched[image])
            for sample, image in zip(self._samples, images)
            if image in matched and (max_box is None or _share(matched[image], sample[0]) <= max_box)
        ]
        if not kept:
            raise UserError(f"dataset.max_box={max_box}: the boxes of all {len(matched)} images cover more than that")
        self._samples, self._boxes = [sample for sample, _ in kept], [found for _, found in kept]


def _share(boxes: Boxes, path: str) -> float:
    """How much of its picture the boxes cover; the image is only opened if the annotation does not state its size."""
    width, height = boxes.size or _size(path)
    mask = boxes.mask(round(width), round(height))
    return mask.count_nonzero().item() / mask.numel()


def _size(path: str) -> tuple[int, int]:
    try:
        with Image.open(path) as image:
            return image.size
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


def _read_table(table: Path) -> list[dict[str, str]]:
    """The rows of a CSV, at least one, each with an `index`."""
    with open(table, newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    if not rows or not all((row.get("index") or "").isdecimal() for row in rows):
        raise UserError(f"dataset.classes={table}: expected a CSV with a column 'index' of whole numbers")
    return rows


def _read_classes(table: Path, folders: list[str]) -> tuple[dict[int, int], tuple[str, ...]]:
    """The class index of each folder by its position, and the name of every index of the table."""
    rows = _read_table(table)
    columns = [column for column in rows[0] if column]
    column = max(columns, key=lambda c: len({row[c] for row in rows} & set(folders)))
    by_folder: dict[str, set[int]] = {}
    for row in rows:
        by_folder.setdefault(row[column], set()).add(int(row["index"]))
    for folder in folders:
        found = by_folder.get(folder, set())
        if not found:
            raise UserError(
                f"dataset.classes={table}: does not name the folder '{folder}': {nearest(folder, by_folder)}"
            )
        if len(found) > 1:
            raise UserError(f"dataset.classes={table}: names '{folder}' twice, for the classes {sorted(found)}")
    indices = {position: min(by_folder[folder]) for position, folder in enumerate(folders)}
    label = "name" if "name" in columns else column
    names = {int(row["index"]): row[label] for row in rows}
    return indices, tuple(names.get(i, "") for i in range(max(names) + 1))

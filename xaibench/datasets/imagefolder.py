"""Any folder of class folders of images; optional: a table from folder names to class indices, and bounding boxes."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image

from ..errors import UserError, nearest
from ..store.files import existing, fingerprint
from . import pictures
from .boxes import Boxes, match, read_boxes
from .pictures import Picture, PictureFolder

_FOLDERS = {"train": ("train",), "validation": ("validation", "val"), "test": ("test",)}


class ImageFolder(PictureFolder):
    """Images by class folder, folder and file name, as `pictures.listing` says; an id is an index of that listing.

    root: holds one folder per split (`train`, `validation` or `val`, `test`), each a folder of class folders; or is a
        folder of class folders itself, which then is the split asked for, except `train`, which is refused.
    classes: a CSV file with a column `index` and columns that name the class (such as wnid and name). The column that
        the folder names are found in maps them to their index; without a file the index counts the sorted folders.
    boxes: a CSV file (file,xmin,ymin,xmax,ymax) or a folder of Pascal VOC XML files, as `boxes.read_boxes` and
        `boxes.match` say. The union of an image's boxes is its mask. Only images that have boxes are in the data set;
        `train`, which is for fitting, may have none at all, and then keeps all its images and has no masks.
        They lie on the picture as it is shown; where an annotation states the size that the picture has before EXIF
        turns it by 90 degrees, its boxes are turned as well.
    max_box: with boxes, images whose mask covers more than this share of the image are left out as well: a third is
        usual, since chance would hit larger ones. It is measured in the whole picture, as the data set cannot know
        what a model crops (the IBA paper measures after the crop). null keeps all.
    sort: the order of the class folders, `text` (10 before 2, as torchvision sorts) or `natural` (2 before 10). As
        text, a warning says so if numbers in their names are out of order.
    unreadable: what to do with an image that cannot be decoded. `refuse`: raise UserError where it is met; `skip`:
        leave all of them out, and name them in a warning and in `left_out`.
    What is left out has no id: ids count the images that are kept. The fingerprint covers content, classes, boxes,
    what could not be read, and the version of how pictures are read.
    Images are RGB (see `pictures.decode`). Raises UserError for missing folders, for folders that the CSV does not
    name, and for boxes that are malformed or belong to no image.
    """

    def __init__(
        self,
        root: str,
        split: Literal["train", "validation", "test"] = "test",
        classes: str | None = None,
        boxes: str | None = None,
        max_box: float | None = 0.33,
        sort: pictures.Sort = "text",
        unreadable: pictures.Unreadable = "refuse",
    ) -> None:
        if max_box is not None and not 0 < max_box <= 1:
            raise UserError(f"dataset.max_box={max_box}: expected a share of the image between 0 and 1, or null")
        folder = _split_folder(existing(root, "dataset.root"), split)
        listing = pictures.listing(folder, sort, unreadable)
        pictures.warn(folder, listing)
        if classes is None:
            indices, self.class_names = list(range(len(listing.classes))), listing.classes
            if sort == "text":
                pictures.warn_of_order(folder, listing.classes)
        else:
            indices, self.class_names = _read_classes(existing(classes, "dataset.classes"), listing.classes)
        samples = [(str(path), indices[position]) for path, position in listing.files]
        self._boxes: list[Boxes] = []
        if boxes is not None:
            samples, self._boxes = _boxed(folder, samples, split, existing(boxes, "dataset.boxes"), max_box)
        self.has_masks = bool(self._boxes)
        super().__init__(folder, samples, listing.left_out)
        # The labels and boxes count too: another table gives the same images other labels.
        labels = list(zip(listing.classes, indices))
        drawn = [[(found.corners, found.size) for found in self._boxes]] if self._boxes else []
        unread = sorted(listing.left_out.get("unreadable", ()))
        self.fingerprint = fingerprint(self._digests, "imagefolder", pictures.VERSION, labels, unread, *drawn)

    def _mask(self, index: int, picture: Picture) -> torch.Tensor | None:
        if not self.has_masks:
            return None
        boxes, (width, height) = self._boxes[index], picture.image.size
        if picture.turn in pictures.QUARTER and width != height and boxes.size == (height, width):
            drawn = Image.fromarray(boxes.mask(height, width).numpy()).transpose(picture.turn)
            return torch.from_numpy(np.array(drawn))
        return boxes.mask(width, height)


def _boxed(
    folder: Path, samples: list[tuple[str, int]], split: str, path: Path, max_box: float | None
) -> tuple[list[tuple[str, int]], list[Boxes]]:
    """Only the samples with boxes that are small enough, and their boxes; all samples and none for a bare `train`."""
    boxes, images = read_boxes(path), [Path(image).relative_to(folder).as_posix() for image, _ in samples]
    matched = match(boxes, images)
    if not matched:
        if split == "train":
            return samples, []
        raise UserError(
            f"dataset.boxes={path}: names no image of {folder}, such as '{images[0]}'\n"
            f"it names '{next(iter(boxes))}' and {len(boxes) - 1} others"
        )
    kept = [
        (sample, matched[image])
        for sample, image in zip(samples, images)
        if image in matched and (max_box is None or _share(matched[image], sample[0]) <= max_box)
    ]
    if not kept:
        raise UserError(f"dataset.max_box={max_box}: the boxes of all {len(matched)} images cover more than that")
    return [sample for sample, _ in kept], [found for _, found in kept]


def _share(boxes: Boxes, path: str) -> float:
    """How much of its picture the boxes cover; the image is only opened if the annotation does not state its size."""
    width, height = boxes.size or pictures.size(Path(path))
    mask = boxes.mask(round(width), round(height))
    return mask.count_nonzero().item() / mask.numel()


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


def _read_classes(table: Path, folders: Sequence[str]) -> tuple[list[int], tuple[str, ...]]:
    """The class index of each folder, and the name of every index of the table."""
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
    indices = [min(by_folder[folder]) for folder in folders]
    label = "name" if "name" in columns else column
    names = {int(row["index"]): row[label] for row in rows}
    return indices, tuple(names.get(i, "") for i in range(max(names) + 1))

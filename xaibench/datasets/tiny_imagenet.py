"""Tiny ImageNet in the folders that it is distributed in, with its boxes as masks."""

from pathlib import Path
from typing import Literal

import torch

from .. import rng
from ..errors import UserError
from ..store.files import existing, fingerprint
from . import pictures
from .boxes import Boxes
from .pictures import Picture, PictureFolder

TRAINED = 0.8  # of each class's pictures in `train`


class TinyImageNet(PictureFolder):
    """200 classes of 64x64 photographs (Stanford's CS231n), each with the box of its object as mask.

    root: the unpacked archive: `train/WNID/images` with `train/WNID/WNID_boxes.txt`, `val/images` with
        `val/val_annotations.txt`, and `words.txt` for the names of the classes.
    split: as Nuzzo 2020, section 7.1: `train` is 80 % of the pictures of each class in `train` (80 000), drawn with
        the data set's own seed, `validation` the others (20 000), and `test` the labelled `val` (10 000); the labels
        of its own `test` are not public.
    Ids follow class and file name. Boxes are of whole pixels, the last one included.
    Raises UserError for a folder that is not like that, and for a picture without a box.
    """

    has_masks = True

    def __init__(self, root: str, split: Literal["train", "validation", "test"] = "test") -> None:
        folder = existing(root, "dataset.root")
        wnids = sorted(path.name for path in (folder / "train").glob("n*") if path.is_dir())
        if not wnids:
            raise UserError(
                f"dataset.root={root}: there is no class folder train/n...; "
                "expected the unpacked archive, with train, val and words.txt"
            )
        boxes = _of_val(folder, wnids) if split == "test" else _of_train(folder, wnids, split)
        super().__init__(folder, [(str(path), label) for path, (label, _) in boxes.items()], {})
        self._boxes = [Boxes((corners,)) for _, corners in boxes.values()]
        names = _names(folder)
        self.class_names = tuple(names.get(wnid, wnid) for wnid in wnids)
        drawn = [one.corners for one in self._boxes]
        self.fingerprint = fingerprint(self._digests, "tiny_imagenet", pictures.VERSION, split, wnids, drawn)

    def _mask(self, index: int, picture: Picture) -> torch.Tensor:
        return self._boxes[index].mask(*picture.image.size)


# By path: the class and the corners of the box.
_Found = dict[Path, tuple[int, tuple[float, float, float, float]]]


def _of_train(folder: Path, wnids: list[str], split: str) -> _Found:
    found: _Found = {}
    for label, wnid in enumerate(wnids):
        rows = _rows(folder / "train" / wnid / f"{wnid}_boxes.txt", 5)
        corners = {name: _corners(row) for name, *row in rows}
        files = sorted((folder / "train" / wnid / "images").iterdir())
        order = rng.permutation(len(files), rng.seed_of("tiny_imagenet", wnid))
        trained = set(order[: round(TRAINED * len(files))])
        for place, path in enumerate(files):
            if (place in trained) == (split == "train"):
                if path.name not in corners:
                    raise UserError(f"{path}: {wnid}_boxes.txt beside it has no box for it")
                found[path] = label, corners[path.name]
    return found


def _of_val(folder: Path, wnids: list[str]) -> _Found:
    labels, table = {wnid: label for label, wnid in enumerate(wnids)}, folder / "val" / "val_annotations.txt"
    found: _Found = {}
    for name, wnid, *row in _rows(table, 6):
        if wnid not in labels:
            raise UserError(f"{table}: {name} is of class {wnid}, and there is no folder train/{wnid}")
        found[folder / "val" / "images" / name] = labels[wnid], _corners(row)
    return dict(sorted(found.items(), key=lambda item: (item[1][0], item[0])))


def _rows(table: Path, fields: int) -> list[list[str]]:
    try:
        rows = [line.split() for line in table.read_text().splitlines() if line.strip()]
    except OSError as error:
        raise UserError(f"{table}: it cannot be read ({error.strerror or error})") from error
    for number, row in enumerate(rows, 1):
        if len(row) != fields or not all(value.isdecimal() for value in row[-4:]):
            raise UserError(f"{table}, line {number}: expected {fields} fields, the last four of them whole numbers")
    return rows


def _corners(row: list[str]) -> tuple[float, float, float, float]:
    left, top, right, bottom = (int(value) for value in row)
    return left, top, right + 1, bottom + 1


def _names(folder: Path) -> dict[str, str]:
    """The first name of each class by its wnid, as far as words.txt says."""
    table = folder / "words.txt"
    lines = table.read_text().splitlines() if table.is_file() else []
    pairs = (line.split("\t", 1) for line in lines)
    return {pair[0]: pair[1].split(",")[0].strip() for pair in pairs if len(pair) == 2}

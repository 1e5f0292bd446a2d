"""Bounding boxes from a table or from Pascal VOC's XML files (ImageNet's format), and their masks."""

import csv
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from xml.etree import ElementTree

import torch

from ..errors import UserError, first_line

CORNERS = ("xmin", "ymin", "xmax", "ymax")


@dataclass(frozen=True)
class Boxes:
    """All boxes of one image.

    corners: xmin, ymin, xmax, ymax of each, in pixels from the upper left edge of the picture.
    size: width and height of the picture that they were drawn in; None: the image itself.
    """

    corners: tuple[tuple[float, float, float, float], ...]
    size: tuple[float, float] | None = None

    def mask(self, width: int, height: int) -> torch.Tensor:
        """Bool [height,width]: the pixels whose centre lies in a box, boxes scaled to this size and cut off by it."""
        drawn_width, drawn_height = self.size or (width, height)
        x = (torch.arange(width, dtype=torch.float64) + 0.5) * (drawn_width / width)
        y = (torch.arange(height, dtype=torch.float64) + 0.5) * (drawn_height / height)
        mask = torch.zeros(height, width, dtype=torch.bool)
        for xmin, ymin, xmax, ymax in self.corners:
            mask |= ((ymin <= y) & (y < ymax))[:, None] & ((xmin <= x) & (x < xmax))
        return mask


def read_boxes(path: Path) -> dict[str, Boxes]:
    """The boxes of each image that a CSV file, or a folder of XML files, names: by the name given there.

    CSV: columns file, xmin, ymin, xmax, ymax; several rows of one file are several boxes. XML: the name is the file's
    path in the folder without `.xml`; all objects count, whatever their name; one without objects is left out.
    Raises UserError naming file, place and what was expected.
    """
    boxes = _read_folder(path) if path.is_dir() else _read_table(path)
    if not boxes:
        raise UserError(f"dataset.boxes={path}: holds no box: expected a CSV file or a folder of Pascal VOC XML files")
    return boxes


def match(boxes: dict[str, Boxes], images: Iterable[str]) -> dict[str, Boxes]:
    """The boxes of those images (paths such as class/file.png) that have some.

    A name may be the image's path or its file name, each with or without the ending. Raises UserError for a name
    that fits two images.
    """
    matched: dict[str, Boxes] = {}
    taken: dict[str, str] = {}
    for image in images:
        path = PurePosixPath(image)
        names = (image, path.with_suffix("").as_posix(), path.name, path.stem)
        name = next((name for name in names if name in boxes), None)
        if name is None:
            continue
        if name in taken:
            raise UserError(
                f"dataset.boxes: '{name}' may mean {taken[name]} or {image}\nname images with their class folder"
            )
        taken[name], matched[image] = image, boxes[name]
    return matched


def _read_table(path: Path) -> dict[str, Boxes]:
    columns = ("file", *CORNERS)
    corners: dict[str, list[tuple[float, float, float, float]]] = {}
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, skipinitialspace=True)
            if missing := [column for column in columns if column not in (reader.fieldnames or ())]:
                raise UserError(
                    f"dataset.boxes={path}: there is no column '{missing[0]}'\n"
                    f"expected a CSV with the columns {','.join(columns)} in pixels, or a folder of VOC XML files"
                )
            for row in reader:
                where = f"dataset.boxes={path}: line {reader.line_num}"
                if not row["file"]:
                    raise UserError(f"{where}: expected the name of an image under 'file'")
                name = PurePosixPath(row["file"].strip().replace("\\", "/")).as_posix()
                corners.setdefault(name, []).append(_corners(row, where))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"dataset.boxes={path}: not a readable CSV file ({first_line(error)})") from error
    return {name: Boxes(tuple(found)) for name, found in corners.items()}


def _read_folder(folder: Path) -> dict[str, Boxes]:
    found = {}
    for path in sorted(folder.rglob("*.xml")):
        boxes = _read_xml(path)
        if boxes.corners:
            found[path.relative_to(folder).with_suffix("").as_posix()] = boxes
    return found


def _read_xml(path: Path) -> Boxes:
    where = f"dataset.boxes: {path}"
    try:
        root = ElementTree.parse(path, ElementTree.XMLParser(target=_Builder())).getroot()
    except (OSError, ElementTree.ParseError, ValueError) as error:
        raise UserError(f"{where}: not a readable XML file ({first_line(error)})") from error
    if root.tag != "annotation":
        raise UserError(f"{where}: expected Pascal VOC's <annotation>, not <{root.tag}>")
    given, size = root.find("size"), None
    if given is not None:
        width, height = (_number(given.findtext(name), name, where) for name in ("width", "height"))
        size = (width, height)
        if not min(size) > 0:
            raise UserError(f"{where}: expected a positive width and height, not {size[0]:g} and {size[1]:g}")
    corners = []
    for thing in root.findall("object"):
        box = thing.find("bndbox")
        if box is None:
            raise UserError(f"{where}: expected a <bndbox> in every <object>")
        corners.append(_corners({name: box.findtext(name) for name in CORNERS}, where))
    return Boxes(tuple(corners), size)


class _Builder(ElementTree.TreeBuilder):
    """Annotations have no document type, and without one there are no entities that could expand without end."""

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        raise ValueError("it declares a document type, which annotations do not have")


def _corners(values: dict[str, str | None], where: str) -> tuple[float, float, float, float]:
    xmin, ymin, xmax, ymax = (_number(values[name], name, where) for name in CORNERS)
    if not (xmin < xmax and ymin < ymax):
        raise UserError(
            f"{where}: expected xmin < xmax and ymin < ymax, not {xmin:g},{ymin:g},{xmax:g},{ymax:g} (x, y, x, y)"
        )
    return xmin, ymin, xmax, ymax


def _number(value: str | None, name: str, where: str) -> float:
    try:
        number = float(value or "")
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise UserError(f"{where}: {name}={(value or '').strip()}: expected a number of pixels")
    return number

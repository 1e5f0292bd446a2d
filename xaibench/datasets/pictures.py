"""Class folders of pictures: which files are pictures, and what pixels they hold: see docs/pictures.md."""

import hashlib
import io
import logging
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import PIL
import torch
from PIL import Image, UnidentifiedImageError

from ..errors import UserError, first_line
from ..store.memo import contents, memoised, read_bytes
from .base import Dataset, Example

log = logging.getLogger(__name__)

# Bumped when the same file gives other pixels.
VERSION = 1
ENDINGS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
# Folders of previews and waste that systems put beside pictures.
SYSTEM = ("__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "lost+found")

Sort = Literal["text", "natural"]
Unreadable = Literal["refuse", "skip"]

ORIENTATION = 0x0112  # the EXIF tag, and what it asks for
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
QUARTER = tuple(TURNS[tag] for tag in (5, 6, 7, 8))


@dataclass(frozen=True)
class Picture:
    """A decoded picture: RGB, as a viewer shows it; turn: how EXIF had the stored pixels turned for that."""

    image: Image.Image
    turn: Image.Transpose | None = None


@dataclass(frozen=True)
class Listing:
    """What a folder of class folders holds.

    classes: in their order. files: each picture with the position of its class. left_out: what else there is, for
    messages and the score card: by a word for the kind, how many or which.
    """

    classes: tuple[str, ...]
    files: tuple[tuple[Path, int], ...]
    left_out: Mapping[str, Any] = field(default_factory=dict)


def listing(folder: Path, sort: Sort = "text", unreadable: Unreadable = "refuse") -> Listing:
    """The class folders of a folder and the pictures in them, at any depth, by class, folder and file name.

    Names that start with a dot and folders of SYSTEM are passed over. Links to folders are followed, but not to one
    that holds the link, and no folder counts twice in a class. What is left out besides is counted, and a warning
    says so. sort: the order of the classes. unreadable: with `skip`, pictures that cannot be decoded are left out
    (all are decoded once for that).
    Raises UserError if there is no class folder, if one holds no picture, and for what is named like a picture and is
    no file (a FIFO, a link to nothing), unless that is to be skipped.
    """
    above = folder.resolve()
    entries = _entries(folder)
    looped = [entry for entry in entries if _is_folder(entry) and _leads_back(Path(entry).resolve(), (above,))]
    classes = _sorted([entry.name for entry in entries if _is_folder(entry) and entry not in looped], sort)
    if not classes:
        raise UserError(f"dataset.root={folder}: there is no class folder in it")
    outside = sum(_is_picture(entry) for entry in entries if not _is_folder(entry))
    files: list[tuple[Path, int]] = []
    broken: dict[Path, str] = {}
    endings: Counter[str] = Counter()
    links = len(looped)
    for position, name in enumerate(classes):
        before = len(files) + len(broken)
        others: Counter[str] = Counter()
        for inside, followed in _folders(folder / name, above):
            links += not followed
            for entry in inside:
                if _is_folder(entry):
                    continue
                if not _is_picture(entry):
                    others[Path(entry).suffix.lower() or "no ending"] += 1
                elif _is_file(entry):
                    files.append((Path(entry), position))
                else:
                    broken[Path(entry)] = "it is no file, but a FIFO, a device or a link to nothing"
        if len(files) + len(broken) == before:
            found = f", only {_counted(others)}" if others else ""
            raise UserError(f"dataset.root={folder}: there is no picture in the class folder '{name}'{found}\n"
                            f"pictures are files that end in {', '.join(ENDINGS)}")  # fmt: skip
        endings += others
    if broken and unreadable == "refuse":
        path, why = next(iter(broken.items()))
        raise refusal(path, why)
    if unreadable == "skip":
        broken |= _unreadable(folder, [path for path, _ in files])
        files = [(path, position) for path, position in files if path not in broken]
        if not files:
            raise UserError(f"dataset.root={folder}: none of its {len(broken)} pictures can be read")
    left_out = {
        "unreadable": {path.relative_to(folder).as_posix(): broken[path] for path in sorted(broken)},
        "other endings": dict(sorted(endings.items())),
        "outside of class folders": outside,
        "links that lead back": links,
    }
    return Listing(tuple(classes), tuple(files), {kind: found for kind, found in left_out.items() if found})


class PictureFolder(Dataset):
    """Pictures below a folder, decoded as they are asked for.

    samples: (path, label) by id. left_out: as of a Listing. Raises UserError for a file that cannot be read.
    """

    def __init__(self, folder: Path, samples: Sequence[tuple[str, int]], left_out: Mapping[str, Any]) -> None:
        self._samples, self.left_out = list(samples), left_out
        files = [Path(path) for path, _ in self._samples]
        self._digests = contents(folder, files)
        self._digest_of = dict(zip((path for path, _ in self._samples), self._digests.values()))

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> Example:
        path, label = self._samples[index]
        picture = read(Path(path), self._digest_of[path])
        return Example(picture.image, label, self._mask(index, picture))

    def _mask(self, index: int, picture: Picture) -> torch.Tensor | None:
        """What a sample's label is about; unknown, unless a subclass knows."""
        return None


def warn(folder: Path, found: Listing) -> None:
    """Say what a listing left out, a line for each kind."""
    texts = {
        "other endings": lambda what: f"{_counted(what)} in its class folders are not read as pictures",
        "outside of class folders": lambda count: f"{count} pictures beside the class folders are in no class",
        "links that lead back": lambda count: (
            f"did not follow {count} links to folders that hold them or are listed already"
        ),
        "unreadable": lambda what: (
            f"left out {len(what)} of {len(what) + len(found.files)} pictures (dataset.unreadable=skip): {_named(what)}"
        ),
    }
    for kind, what in found.left_out.items():
        log.warning("%s: %s", folder, texts[kind](what))


def warn_of_order(folder: Path, classes: Sequence[str]) -> None:
    """Say so if numbers in the names of class folders are out of order."""
    natural = _sorted(classes, "natural")
    if natural != list(classes):
        place = next(place for place, pair in enumerate(zip(classes, natural)) if pair[0] != pair[1])
        log.warning(
            "%s: class folders are sorted as text, '%s' is class %d; dataset.sort=natural counts '%s' as class %d",
            *(folder, classes[place], place, natural[place], place),
        )


def decode(content: bytes) -> Picture:
    """The pixels of a picture file, RGB with 8 bits.

    Turned as EXIF says; what is transparent lies on white; of 16 bits the upper 8 count; floats from 0 to 1 are shares
    of white; of several frames the first. Raises whatever Pillow raises, and ValueError for pixels of which it is not
    known how bright they are: floats outside of 0 to 1, 32-bit whole numbers.
    """
    with Image.open(io.BytesIO(content)) as image:
        turn = _turn(image)
        image.load()
        shown = _rgb(image)
        # Pillow turns TIFF itself.
        return Picture(shown if turn is None or image.format == "TIFF" else shown.transpose(turn), turn)


def size(path: Path) -> tuple[int, int]:
    """Width and height of a picture as it is shown, from the head of its file. Raises UserError naming the file."""
    try:
        with Image.open(path) as image:
            width, height = image.size
            turned = _turn(image) in QUARTER and image.format != "TIFF"
            return (height, width) if turned else (width, height)
    except Exception as error:  # Pillow has no one class for what it cannot read
        raise refusal(path, _reason(error)) from error


def read(path: Path, digest: str | None = None) -> Picture:
    """A picture from its file. digest: sha256 of the content that the file had when the data set was listed.

    Raises UserError naming the file if it cannot be decoded or has another content by now.
    """
    content = read_bytes(path)
    if digest is not None and hashlib.sha256(content).hexdigest() != digest:
        raise UserError(f"{path}: changed after this run began\nrun again: what was computed so far is kept")
    try:
        return decode(content)
    except MemoryError:
        raise
    except Exception as error:
        raise refusal(path, _reason(error)) from error


def refusal(path: Path, why: str) -> UserError:
    """What to tell of a picture that cannot be read."""
    return UserError(
        f"{path}: not a readable image ({why})\n"
        "mend or remove it, or set dataset.unreadable=skip, which leaves such files out and counts them"
    )


def _unreadable(folder: Path, files: Sequence[Path]) -> dict[Path, str]:
    """The files that cannot be decoded, and why."""

    def why(content: bytes) -> str:
        try:
            decode(content)
        except MemoryError:
            raise
        except Exception as error:
            return _reason(error)
        return ""

    reasons = memoised(folder, files, f"unreadable: pictures {VERSION}, Pillow {PIL.__version__}", why)
    return {path: reason for path, reason in zip(files, reasons) if reason}


def _reason(error: Exception) -> str:
    # Pillow's own text names an address in memory.
    known = not isinstance(error, UnidentifiedImageError)
    return first_line(error) if known else "it is empty, damaged or of a format that Pillow does not know"


# ---- pixels ----------------------------------------------------------------------------------------------------------


def _turn(image: Image.Image) -> Image.Transpose | None:
    """How EXIF wants a picture turned; EXIF that is damaged wants nothing."""
    try:
        return TURNS.get(image.getexif().get(ORIENTATION, 0))
    except Exception:  # it is metadata: the pixels may be in order, and if not, loading them says so
        return None


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode == "I":
        raise ValueError("its pixels are whole numbers of 32 bits, of which none is known to be white: save 8 or 16")
    if image.mode == "F":
        values = np.asarray(image)
        if not (values.min() >= 0 and values.max() <= 1):
            raise ValueError("its pixels are floats outside of 0 to 1, of which none is known to be white")
        return Image.fromarray(np.round(values * 255).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        seen = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", seen.size, "white"), seen).convert("RGB")
    return image.convert("RGB")


# ---- files -----------------------------------------------------------------------------------------------------------


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """What is in a folder, by name, without what is hidden or the system's."""
    try:
        with os.scandir(folder) as found:
            entries = [entry for entry in found if not entry.name.startswith(".") and entry.name not in SYSTEM]
    except OSError as error:
        raise UserError(f"dataset.root: {folder} cannot be read ({error.strerror or error})") from error
    return sorted(entries, key=lambda entry: entry.name)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    # Not by the entry's own method alone, which raises for a link that leads to itself.
    return entry.is_dir(follow_symlinks=False) or (entry.is_symlink() and os.path.isdir(entry))


def _is_file(entry: os.DirEntry[str]) -> bool:
    return entry.is_file(follow_symlinks=False) or (entry.is_symlink() and os.path.isfile(entry))


def _is_picture(entry: os.DirEntry[str]) -> bool:
    return entry.name.lower().endswith(ENDINGS)


def _folders(folder: Path, above: Path) -> Iterator[tuple[list[os.DirEntry[str]], bool]]:
    """What is in a folder and in those below it, by path, and whether it was looked into at all: not if a link leads
    back to it."""
    seen: set[Path] = set()
    found: list[tuple[str, list[os.DirEntry[str]], bool]] = []
    waiting: list[tuple[Path, tuple[Path, ...]]] = [(folder, (above,))]
    while waiting:
        here, chain = waiting.pop()
        real = here.resolve()
        followed = real not in seen and not _leads_back(real, chain)
        seen.add(real)
        inside = _entries(here) if followed else []
        found.append((str(here), inside, followed))
        # The last one is taken first.
        waiting += [(Path(entry), (*chain, real)) for entry in reversed(inside) if _is_folder(entry)]
    for _, inside, followed in sorted(found, key=lambda one: one[0]):
        yield inside, followed


def _leads_back(real: Path, chain: Iterable[Path]) -> bool:
    """Whether a folder holds one of those on the way to it."""
    return any(real == one or real in one.parents for one in chain)


def _sorted(names: Iterable[str], sort: Sort) -> list[str]:
    def natural(name: str) -> tuple[Any, str]:
        parts = [part for part in re.split(r"(\d+)", name) if part]
        return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts], name

    return sorted(names, key=natural if sort == "natural" else None)


def _counted(endings: Mapping[str, int]) -> str:
    return f"{sum(endings.values())} files ({', '.join(f'{count} {ending}' for ending, count in endings.items())})"


def _named(broken: Mapping[str, str]) -> str:
    shown = [f"{name} ({why})" for name, why in list(broken.items())[:3]]
    return ", ".join(shown) + (f" and {len(broken) - 3} more, in the score card" if len(broken) > 3 else "")

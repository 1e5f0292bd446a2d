"""Sentences of two or more classes, as files and folders of plain text."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from .. import rng
from ..errors import UserError
from ..store.files import existing, fingerprint
from .base import Dataset, Example

# A word with the apostrophes and hyphens within it, or one sign.
TOKEN = re.compile(r"\w+(?:['’-]\w+)*|[^\w\s]")
VERSION = 1  # raised when a text is cut into other words
# Of the sentences of a class, by number of ten.
SPLITS = {"train": range(8), "validation": range(8, 9), "test": range(9, 10)}


def tokens(text: str) -> tuple[str, ...]:
    """The words and signs of a text, in lower case; HTML's line breaks, of which IMDB's reviews are full, are none."""
    return tuple(TOKEN.findall(text.lower().replace("<br />", " ")))


class Texts(Dataset):
    """Texts with their classes.

    texts: (class, text), in the data set's order. Texts without a word are left out and counted. Raises UserError for
    fewer than two classes with texts.
    """

    def _take(self, names: tuple[str, ...], texts: list[tuple[int, str]], where: str) -> None:
        kept = [(label, tokens(text)) for label, text in texts]
        self.sentences = [(label, words) for label, words in kept if words]
        if empty := len(kept) - len(self.sentences):
            self.left_out = {"without a word": empty}
        if len({label for label, _ in self.sentences}) < 2:
            found = ", ".join(f"{name} {sum(row[0] == label for row in kept)}" for label, name in enumerate(names))
            raise UserError(f"{where}: expected texts of two classes at least (found {found or 'none'})")
        self.class_names = names

    def __len__(self) -> int:
        return len(self.sentences)

    def __getitem__(self, index: int) -> Example:
        label, words = self.sentences[index]
        return Example(words, label)

    def words(self) -> Iterator[tuple[str, ...]]:
        """The words of each text, for a vocabulary."""
        return (words for _, words in self.sentences)


class Reviews(Texts):
    """A file for each class with a text on each line, or a folder for each class with a text in each file.

    root: a folder with such files (`rt-polarity.neg`, `rt-polarity.pos`; also neg.txt, pos.txt) or such folders.
        Classes are named by the ending of files that share a name, else by the name, in the order of the alphabet.
    split: the texts of each class in a fixed random order: eight tenths `train`, one `validation`, one `test`.
    Texts are UTF-8, cut into words by `tokens`. Raises UserError for what is absent or no text.
    """

    def __init__(self, root: str, split: Literal["train", "validation", "test"] = "test") -> None:
        folder = existing(root, "dataset.root")
        sources = sources_of(folder)
        names = tuple(_class_names(sources))
        texts: list[tuple[int, str]] = []
        files: list[tuple[str, str]] = []
        for label, source in enumerate(sources):
            found = _lines(source) if source.is_file() else [read(path) for path in sorted(source.glob("*.txt"))]
            files += [(source.name, text) for text in found]
            order = rng.permutation(len(found), 0)
            chosen = [place for number, place in enumerate(order) if number % 10 in SPLITS[split]]
            texts += [(label, found[place]) for place in sorted(chosen)]
        self._take(names, texts, f"dataset.root={root}")
        self.fingerprint = fingerprint({}, "reviews", VERSION, split, files)


class Imdb(Texts):
    """The film reviews of Maas et al. 2011, a user's folder `aclImdb`: `train` and `test`, each with `neg` and `pos`.

    root: that folder. split: `train` is nine tenths of its train folder, `validation` the others, `test` the test
        folder. Raises UserError for what is absent or no text.
    """

    def __init__(self, root: str, split: Literal["train", "validation", "test"] = "test") -> None:
        folder = existing(root, "dataset.root") / ("test" if split == "test" else "train")
        names, texts = ("neg", "pos"), []
        for label, name in enumerate(names):
            if not (folder / name).is_dir():
                raise UserError(f"dataset.root={root}: no folder {folder.name}/{name}, expected that of aclImdb")
            paths = sorted((folder / name).glob("*.txt"))
            kept = [split == "test" or (place % 10 == 9) == (split == "validation") for place in range(len(paths))]
            texts += [(label, read(path)) for path, keep in zip(paths, kept) if keep]
        self._take(names, texts, f"dataset.root={root}")
        self.fingerprint = fingerprint({}, "imdb", VERSION, split, texts)


def sources_of(folder: Path) -> list[Path]:
    """The files or folders of the classes. Raises UserError if there are fewer than two."""
    folders = sorted(path for path in folder.iterdir() if path.is_dir() and any(path.glob("*.txt")))
    files = sorted(p for p in folder.iterdir() if p.is_file() and not p.name.startswith(".") and not _about(p))
    found = folders or files
    if len(found) < 2:
        raise UserError(
            f"dataset.root={folder}: expected a text file for each of two classes (neg.txt, pos.txt) or a folder of "
            f".txt files for each, found {', '.join(path.name for path in found) or 'neither'}"
        )
    return found


def read(path: Path) -> str:
    """A file of UTF-8 text, without a byte-order mark. Raises UserError with the place of what is none."""
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}: no UTF-8 text (byte {error.start} is {error.object[error.start]:#04x}), expected plain text"
        ) from error


def _lines(path: Path) -> list[str]:
    # Not `splitlines`, which ends lines at characters that reviews have within them (NEL).
    lines = read(path).split("\n")
    return lines[:-1] if lines[-1] == "" else lines


def _about(path: Path) -> bool:
    return path.stem.lower() in ("readme", "license", "scores") or path.suffix in (".md", ".csv", ".gz", ".json")


def _class_names(sources: list[Path]) -> list[str]:
    endings = [path.suffix.removeprefix(".") for path in sources]
    of_one_name = len({path.stem for path in sources}) == 1 and all(endings)
    return endings if of_one_name else [path.stem for path in sources]

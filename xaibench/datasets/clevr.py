"""CLEVR's questions about rendered scenes, from a folder."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from ..errors import UserError, nearest
from ..store.files import existing, fingerprint
from ..store.memo import contents
from . import pictures
from .base import Dataset, Example

VERSION = 1  # raised when the same files give other samples
MOST_WORDS = 100  # numbers that the network knows; CLEVR's templates use some ninety
# As the archive calls them; the answers of its test questions are not public.
SPLITS = {"train": "train", "validation": "val"}

COLOURS = ("blue", "brown", "cyan", "gray", "green", "purple", "red", "yellow")
GROUPS = (
    ("yes", "no"),
    tuple(map(str, range(11))),
    COLOURS,
    ("cube", "cylinder", "sphere"),
    ("small", "large"),
    ("metal", "rubber"),
)
ANSWERS = tuple(answer for group in GROUPS for answer in group)


class Clevr(Dataset):
    """Rendered scenes and a question about each (CLEVR 1.0, Johnson et al. 2017); the label answers it.

    A sample is a question; ten or so are asked of each scene. It is coded as the numbers of its words, from 1 on, and
    0 behind the last: words in the order of the alphabet, those of the validation questions, which use all of CLEVR's
    templates. The 28 answers fall into six categories. There are no masks.

    root: the unpacked archive: `images/train`, `images/val` and `questions/CLEVR_<split>_questions.json`.
    split: `train` or `validation`; the answers of the test questions are not public.
    longest: the most words of a question, as the network's `questions`.
    side: scenes of 480x320 pixels are squeezed into squares of so many, as Sixt 2022 does.

    Raises UserError for a missing file, a file of questions that is none, an answer that is none of the 28, a question
    that is too long, a word that no validation question has, more words than networks know, and sizes below 1.
    """

    class_names = ANSWERS
    categories = tuple(tuple(ANSWERS.index(answer) for answer in group) for group in GROUPS)

    def __init__(self, root: str, split: str = "validation", longest: int = 50, side: int = 128) -> None:
        if split not in SPLITS:
            raise UserError(f"dataset.split={split}: {nearest(split, SPLITS)}")
        for name, value in (("longest", longest), ("side", side)):
            if value < 1:
                raise UserError(f"dataset.{name}={value}: expected a positive number")
        folder = existing(root, "dataset.root")
        asked = _questions(folder, split)
        reference = asked if split == "validation" else _questions(folder, "validation")
        self.vocabulary = tuple(sorted({word for one in reference for word in words(one["question"])}))
        if len(self.vocabulary) > MOST_WORDS:
            said = f"{len(self.vocabulary)} different words in the validation questions"
            raise UserError(f"dataset.root={root}: {said}, CLEVR has at most {MOST_WORDS}")
        number = {word: place for place, word in enumerate(self.vocabulary, 1)}
        self.questions = torch.zeros(len(asked), longest)
        for row, one in enumerate(asked):
            spoken = words(one["question"])
            if len(spoken) > longest:
                raise UserError(f"dataset.longest={longest}: a question has {len(spoken)} words: {one['question']}")
            if unknown := [word for word in spoken if word not in number]:
                raise UserError(f"dataset.root={root}: no validation question has the word {unknown[0]}")
            self.questions[row, : len(spoken)] = torch.tensor([number[word] for word in spoken], dtype=torch.float32)
        self._labels = [_label(one["answer"], root) for one in asked]
        self._words = [one["question"] for one in asked]
        self._images = [folder / "images" / SPLITS[split] / one["image_filename"] for one in asked]
        distinct = list(dict.fromkeys(self._images))
        for path in distinct:
            existing(path, "dataset.root")
        self._digests = contents(folder, distinct)
        self._folder, self.side = folder, side
        options = (VERSION, pictures.VERSION, split, longest, side)
        asked_of = [(path.name, text, label) for path, text, label in zip(self._images, self._words, self._labels)]
        self.fingerprint = fingerprint(self._digests, "clevr", options, self.vocabulary, asked_of)

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> Example:
        path = self._images[index]
        picture = pictures.read(path, self._digests[path.relative_to(self._folder).as_posix()])
        image = picture.image.resize((self.side, self.side), Image.Resampling.BILINEAR)
        return Example(image, self._labels[index], question=self.questions[index])

    def question_of(self, index: int) -> int:
        """Which of `questions` a sample asks: each asks its own."""
        return index

    def words_of(self, index: int) -> str:
        """The question of a sample, for people."""
        return self._words[index]


def words(question: str) -> list[str]:
    """The words of a question in lower case, without punctuation."""
    return re.findall(r"[a-z0-9]+", question.lower())


def _questions(folder: Path, split: str) -> list[Mapping[str, Any]]:
    """What the archive says of each question of a split."""
    path = existing(folder / "questions" / f"CLEVR_{SPLITS[split]}_questions.json", "dataset.root")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))["questions"]
        for one in found:
            if not all(isinstance(one[key], str) for key in ("question", "answer", "image_filename")):
                raise TypeError
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path}: expected CLEVR's questions, each with a question, an answer and an image_filename"
        ) from error
    return found


def _label(answer: str, root: str) -> int:
    if answer not in ANSWERS:
        raise UserError(f"dataset.root={root}: a question has the answer {answer}: {nearest(answer, ANSWERS)}")
    return ANSWERS.index(answer)

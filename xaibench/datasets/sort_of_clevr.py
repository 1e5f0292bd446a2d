"""Generated scenes of six coloured objects and a question about each: Sort-of-CLEVR.

Santoro et al. 2017, "A simple neural network module for relational reasoning", section 4.2, drawn anew: what is asked
is known, and so is the object that the question names.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ..errors import UserError, nearest
from ..rng import seed_of
from .base import Dataset, Example

VERSION = 1  # raised when any pixel, question or answer changes
SIDE = 64
RADIUS = 5  # an object is 11 pixels wide
APART = 2 * RADIUS + 2  # of centres, in the direction in which they are further apart: one pixel stays between objects
CLEAR = 1.5  # pixels by which an answer about places is decided at least
SPLITS = {"train": range(0, 360_000), "validation": range(360_000, 363_600), "test": range(363_600, 367_200)}

COLOURS = {
    "red": (230, 25, 25),
    "green": (25, 170, 25),
    "blue": (25, 50, 230),
    "orange": (250, 150, 0),
    "grey": (128, 128, 128),
    "yellow": (240, 230, 20),
}
BACKGROUND = 245
NON_RELATIONAL = {"shape": "what shape is {}?", "left": "is {} on the left?", "top": "is {} at the top?"}
RELATIONAL = {
    "closest": "what shape is the object closest to {}?",
    "furthest": "what shape is the object furthest from {}?",
    "count": "how many objects have the shape of {}?",
}
KINDS = NON_RELATIONAL | RELATIONAL
SETS = {"all": tuple(KINDS), "non_relational": tuple(NON_RELATIONAL), "relational": tuple(RELATIONAL)}
ANSWERS = ("yes", "no", "square", "circle", "1", "2", "3", "4", "5", "6")
CATEGORIES = ((0, 1), (2, 3), (4, 5, 6, 7, 8, 9))
SQUARE, CIRCLE = 0, 1

# The pixels of a square and of a circle, and the paint of each object.
_RADII = np.hypot(*np.mgrid[-RADIUS : RADIUS + 1, -RADIUS : RADIUS + 1])
_OUTLINES = np.stack([np.ones_like(_RADII, dtype=bool), _RADII <= RADIUS + 0.3])
_PAINT = np.array(list(COLOURS.values()), dtype=np.uint8)[..., None, None]
PAIRS = np.triu_indices(len(COLOURS), 1)


@dataclass(frozen=True)
class Scene:
    """Six objects, in the order of COLOURS. centres: [6,2], column and row; shapes: [6], SQUARE or CIRCLE."""

    centres: np.ndarray
    shapes: np.ndarray


class SortOfClevr(Dataset):
    """64x64 RGB scenes of six objects, one of each colour, squares or circles; the label answers a question about one.

    Questions come in six kinds, of each colour. Three are of the object alone: its shape, whether it is in the left
    half, whether in the upper one. Three are of its relation to the others: the shape of the closest object, that of
    the furthest, how many have its shape, itself included. A question is coded in 11 bits: six of the colour, two of
    whether it is about relations, three of which of the three. The ten answers fall into three categories: yes or no,
    the shapes, the numbers.

    The mask is the object that the question names. Its pixels are all that an answer may depend on for the questions
    of the object alone; for the others the network has to look elsewhere as well.

    Objects do not touch, and a scene is drawn anew until its own question is decided by 1.5 pixels: the object is that
    far from the middle of the image, the closest (or furthest) one that much closer (or further) than the next.
    Image k of the sequence depends on (generator_seed, questions, k) alone; a split is a range of k, and the questions
    take turns.

    split: `train` (360000 images), `validation` (3600) or `test` (3600).
    questions: `all`, `non_relational`, `relational`, or one kind: `shape`, `left`, `top`, `closest`, `furthest`,
        `count`.
    generator_seed: another value is another sequence.
    Raises UserError for a split or kind of question that there is not.
    """

    class_names = ANSWERS
    categories = CATEGORIES
    has_masks = True

    def __init__(self, split: str = "test", questions: str = "all", generator_seed: int = 0) -> None:
        if split not in SPLITS:
            raise UserError(f"dataset.split={split}: {nearest(split, SPLITS)}")
        if questions not in {*SETS, *KINDS}:
            raise UserError(f"dataset.questions={questions}: {nearest(questions, [*SETS, *KINDS])}")
        self.split, self.generator_seed = split, generator_seed
        self.asked = [(kind, colour) for kind in SETS.get(questions, (questions,)) for colour in range(len(COLOURS))]
        self.questions = torch.stack([encode(kind, colour) for kind, colour in self.asked])
        self.fingerprint = f"sort_of_clevr-{VERSION}:{generator_seed=}:{questions=}:{split=}"

    def __len__(self) -> int:
        return len(SPLITS[self.split])

    def __getitem__(self, index: int) -> Example:
        kind, colour = self.asked[self.question_of(index)]
        scene = self.scene(index)
        image, masks = render(scene)
        return Example(
            torch.from_numpy(image), answer(scene, kind, colour), torch.from_numpy(masks[colour]),
            question=self.questions[self.question_of(index)],
        )  # fmt: skip

    def question_of(self, index: int) -> int:
        """Which of `questions` a sample asks."""
        return SPLITS[self.split][index] % len(self.asked)

    def scene(self, index: int) -> Scene:
        """The objects of a sample."""
        position = SPLITS[self.split][index]
        kind, colour = self.asked[position % len(self.asked)]
        # Only `random` is drawn from it: the same on every platform and in every version of numpy.
        seed = seed_of("sort_of_clevr", self.generator_seed, kind, colour, position)
        drawn = np.random.Generator(np.random.PCG64(seed))
        while True:
            for scene in draw(drawn):
                if is_clear(scene, kind, colour):
                    return scene

    @property
    def concept_names(self) -> tuple[str, ...]:
        """The colours and the shapes."""
        return (*COLOURS, "square", "circle")

    def concepts(self, indices: Sequence[int]) -> dict[str, torch.Tensor]:
        """Where the object of each colour is, and where objects of each shape are, bool [N,64,64] each."""
        drawn = [self.scene(index) for index in indices]
        masks = torch.stack([torch.from_numpy(render(scene)[1]) for scene in drawn])
        squares = torch.stack([torch.from_numpy(scene.shapes == SQUARE) for scene in drawn])[:, :, None, None]
        found = dict(zip(COLOURS, masks.unbind(1)))
        return {**found, "square": (masks & squares).any(1), "circle": (masks & ~squares).any(1)}

    def words_of(self, index: int) -> str:
        """The question of a sample, for people."""
        kind, colour = self.asked[self.question_of(index)]
        return KINDS[kind].format(f"the {list(COLOURS)[colour]} object")


def encode(kind: str, colour: int) -> torch.Tensor:
    """A question as float32 [11], zeros and ones: six for the colour, two for whether it is relational, three for
    which one."""
    bits = torch.zeros(11)
    place = list(KINDS).index(kind)
    bits[[colour, 6 + place // 3, 8 + place % 3]] = 1
    return bits


def draw(rng: np.random.Generator) -> Iterator[Scene]:
    """Those of 16 random scenes whose objects do not come too near to each other."""
    values = rng.random((16, len(COLOURS), 3))
    centres = RADIUS + np.floor(values[..., :2] * (SIDE - 2 * RADIUS)).astype(np.int64)
    gaps = np.abs(centres[:, PAIRS[0]] - centres[:, PAIRS[1]]).max(-1)
    shapes = (values[..., 2] < 0.5).astype(np.int64)
    for chosen in np.nonzero((gaps >= APART).all(1))[0]:
        yield Scene(centres[chosen], shapes[chosen])


def distances(scene: Scene, colour: int) -> np.ndarray:
    """How far the centre of each object is from that of one of them, [6]."""
    return np.sqrt(((scene.centres - scene.centres[colour]) ** 2).sum(-1))


def is_clear(scene: Scene, kind: str, colour: int) -> bool:
    """Whether the answer is decided by CLEAR pixels."""
    if kind in ("left", "top"):
        return bool(abs(scene.centres[colour, int(kind == "top")] - (SIDE - 1) / 2) >= CLEAR)
    if kind in ("closest", "furthest"):
        ordered = np.sort(np.delete(distances(scene, colour), colour))
        first, second = ordered[:2] if kind == "closest" else ordered[[-1, -2]]
        return bool(abs(first - second) >= CLEAR)
    return True


def answer(scene: Scene, kind: str, colour: int) -> int:
    """The answer to a question about the object of a colour, as an index of ANSWERS."""
    middle = (SIDE - 1) / 2
    if kind in ("left", "top"):
        return 0 if scene.centres[colour, int(kind == "top")] < middle else 1
    if kind == "count":
        return 3 + int((scene.shapes == scene.shapes[colour]).sum())
    found = colour
    if kind != "shape":
        away = distances(scene, colour)
        away[colour] = np.inf if kind == "closest" else -np.inf
        found = int(away.argmin() if kind == "closest" else away.argmax())
    return 2 + int(scene.shapes[found])


def render(scene: Scene) -> tuple[np.ndarray, np.ndarray]:
    """The image, uint8 [3,64,64], and where each object is, bool [6,64,64]."""
    image = np.full((3, SIDE, SIDE), BACKGROUND, dtype=np.uint8)
    masks = np.zeros((len(COLOURS), SIDE, SIDE), dtype=bool)
    for (column, row), shape, mask, colour in zip(scene.centres, scene.shapes, masks, _PAINT):
        mask[row - RADIUS : row + RADIUS + 1, column - RADIUS : column + RADIUS + 1] = _OUTLINES[shape]
        np.copyto(image, colour, where=mask)
    return image, masks

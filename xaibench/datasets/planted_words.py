"""A world of sentences with a known truth: one word decides, wherever it stands."""

from collections.abc import Iterator
from typing import Literal

import torch

from ..errors import UserError
from ..rng import generator
from .base import Dataset, Example

VERSION = 1  # raised when any sentence changes
SIZES = {"train": 2_000, "validation": 400, "test": 1_000}
CLASSES = ("bad", "good")
DECIDING = ("dreadful", "splendid")
OTHERS = tuple(
    """
    the a this that film story scene actor camera music night city house road summer winter man woman child friend
    train letter garden river window door year day moment face voice and or with without under over near behind after
    before while because although walks sings waits opens closes finds keeps tells shows leaves . , ;
    """.split()  # noqa: SIM905 (a line of words is easier to read)
)


class PlantedWords(Dataset):
    """Random words in a row, and among them, at a random place, the one word that says the class.

    `dreadful` stands in every sentence of class `bad`, `splendid` in every one of class `good`; all other words, how
    many there are (`shortest` to `longest`, the deciding one included) and the place are drawn alike in both classes.
    So nothing but that word says anything of the label, and the mask is its place. Where it stands is uniform: first
    and last place decide no more often than others.

    split: `train` (2000 sentences), `validation` (400), `test` (1000), half of each class.
    generator_seed: another value is another draw.
    Raises UserError for lengths that are none.
    """

    class_names = CLASSES
    has_masks = True

    def __init__(
        self,
        split: Literal["train", "validation", "test"] = "test",
        shortest: int = 6,
        longest: int = 20,
        generator_seed: int = 0,
    ) -> None:
        if not 1 <= shortest <= longest:
            raise UserError(
                f"dataset.shortest={shortest}, dataset.longest={longest}: expected 1 <= shortest <= longest"
            )
        self.split, self.shortest, self.longest, self.seed = split, shortest, longest, generator_seed
        parameters = f"{shortest}-{longest}:generator_seed={generator_seed}:split={split}"
        self.fingerprint = f"planted_words-{VERSION}:{parameters}"

    def __len__(self) -> int:
        return SIZES[self.split]

    def __getitem__(self, index: int) -> Example:
        draw = generator("planted_words", self.seed, self.split, index)
        length = int(torch.randint(self.shortest, self.longest + 1, (), generator=draw))
        words = [OTHERS[number] for number in torch.randint(len(OTHERS), (length,), generator=draw).tolist()]
        place, label = int(torch.randint(length, (), generator=draw)), index % 2
        words[place] = DECIDING[label]
        mask = torch.zeros(1, length, dtype=torch.bool)
        mask[0, place] = True
        return Example(tuple(words), label, mask)

    def words(self) -> Iterator[tuple[str, ...]]:
        """The words of each sentence, for a vocabulary."""
        return (tuple(self[index].image) for index in range(len(self)))  # type: ignore[arg-type]

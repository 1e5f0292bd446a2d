"""Networks of sentences: how words become the places of an input [E,1,T], and what turns them into it."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, cast, runtime_checkable

import torch
from PIL import Image
from torch import nn

from ..errors import UserError
from .preprocessing import Preprocessing

PADDING = 0  # the id that stands for no word


@runtime_checkable
class ReadsWords(Protocol):
    """A network of sentences. It takes vectors [B,E,1,T], a place for each word (or part of one) and all of them real;
    the table that they come from is its own, but comes before it."""

    length: int
    """T of the longest sentence; what comes later in a sentence is not read."""

    @property
    def table(self) -> nn.Embedding:
        """The vectors [V,E] of ids."""

    @property
    def unknown(self) -> int:
        """The id of a word that the table does not have."""

    def places(self, words: Sequence[str]) -> tuple[list[int], list[int]]:
        """The ids of at most `length` places, and which word each is of, counted from 0."""


@runtime_checkable
class LearnsWords(ReadsWords, Protocol):
    """A network of sentences whose table is trained with it, for the words of its training data."""

    def learn(self, sentences: Iterable[Sequence[str]]) -> None:
        """Take the words of these sentences into the table."""

    def answers(self, ids: torch.Tensor) -> torch.Tensor:
        """Logits [B,K] of ids [B,1,T], padded with PADDING; differentiable in the table too."""


class OfIds(nn.Module):
    """A network that learns words, as a function of their ids, so that the table is trained with it."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Logits [B,K] of ids [B,1,T]."""
        return cast(LearnsWords, self.network).answers(ids)


@dataclass(frozen=True)
class Sentences(Preprocessing):
    """From words to inputs [E,1,length]: the vectors of a network's table, and zeros behind them.

    length: T. words: the digest of the table and of what finds words in it, so that two trainings are told apart.
    """

    length: int = 0
    words: str = ""

    @classmethod
    def of(cls, network: ReadsWords) -> "Sentences":
        """That of a network, as its table is now."""
        table = network.table.weight.detach().cpu().float().clone()
        found = network.places(("the", "a", "good", "bad", "film"))
        digest = hashlib.sha256(table.numpy().tobytes() + repr(found).encode()).hexdigest()
        made = cls(length=network.length, words=digest)
        # No fields: what the digest stands for.
        object.__setattr__(made, "_network", network)
        object.__setattr__(made, "_table", table)
        return made

    @property
    def unknown(self) -> torch.Tensor:
        """The vector [E] of an unknown word."""
        return self._read()[1][self._read()[0].unknown]

    def image(self, image: Image.Image | torch.Tensor | tuple[str, ...]) -> torch.Tensor:
        """Words -> float32 [E,1,length]. Raises UserError for no words, and for what is no sentence."""
        network, table = self._read()
        ids, _ = network.places(_words(image))
        inputs = torch.zeros(table.shape[1], 1, self.length)
        inputs[:, 0, : len(ids)] = table[ids].T
        return inputs

    def pixels(self, image: Image.Image | torch.Tensor | tuple[str, ...]) -> torch.Tensor:
        """Words -> ids [1,1,length], int64, padded."""
        ids, _ = self._read()[0].places(_words(image))
        padded = torch.full((1, 1, self.length), PADDING)
        padded[..., : len(ids)] = torch.tensor(ids)
        return padded

    def inputs(self, pixels: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        """Ids [B,1,1,T] -> ids [B,1,T] on the device of `like`, for `OfIds`."""
        return pixels[:, 0].to(like.device)

    def valid(self, image: Image.Image | torch.Tensor | tuple[str, ...]) -> torch.Tensor:
        """Which places [1,length] hold a word."""
        ids, _ = self._read()[0].places(_words(image))
        return torch.arange(self.length)[None] < len(ids)

    def truth(self, mask: torch.Tensor, image: Image.Image | torch.Tensor | tuple[str, ...]) -> torch.Tensor:
        """A mask [1,words] -> [1,length], False or 0 behind the sentence; a word's parts all have its value."""
        _, owners = self._read()[0].places(_words(image))
        found = torch.zeros(1, self.length, dtype=mask.dtype)
        found[0, : len(owners)] = mask[0, owners]
        return found

    def _read(self) -> tuple[ReadsWords, torch.Tensor]:
        return vars(self)["_network"], vars(self)["_table"]


def _words(image: Image.Image | torch.Tensor | tuple[str, ...]) -> tuple[str, ...]:
    if not isinstance(image, tuple):
        raise UserError("the model reads sentences, and the data set has none: choose one such as dataset=reviews")
    if not image:
        raise UserError("the data set has a sentence without words: expected one at least")
    return image

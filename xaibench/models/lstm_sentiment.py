"""Four stacked LSTMs that read a sentence, each a layer of its own."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import chain

import torch
from torch import nn

from ..errors import UserError
from .sentences import PADDING

UNKNOWN = 1


class Recurrent(nn.Module):
    """An LSTM over the places of features [B,C,1,T] -> [B,H,1,T], from the first to the last."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(inputs, outputs, batch_first=True)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """What it puts out at each place."""
        return self.lstm(features[:, :, 0].mT)[0].mT[:, :, None]

    def train(self, mode: bool = True) -> "Recurrent":
        """As ever, but the LSTM stays in training mode: cuDNN's has gradients only there, and it is the same in both,
        having no dropout."""
        super().train(mode)
        self.lstm.train()
        return self


class LstmSentiment(nn.Module):
    """Vectors [B,E,1,T] -> four LSTMs, one upon the other -> the mean over the places -> logits [B,K].

    The network of InputIBA's study of texts (Khakzar 2022, chapter 6: 100 and 256 wide, on IMDB), here narrower by
    default, with two logits for one, and a mean over places for what the last one puts out: behind a last place alone
    nothing of the others would be left to attribute at `rnn_4`.

    num_classes: K. embedding: E. hidden: of each LSTM. length: the most places T of a sentence; longer ones are cut.
    vocabulary: how many words the table has room for, besides padding and the unknown word. It is filled by `learn`
        with the most frequent words of the training sentences; those that occur once there are unknown, which is what
        the vector of unknown words is trained on.
    dropout: of the vectors and of what is averaged, in training only.

    `words` holds the first eight bytes of the SHA-256 of each word, by row of the table from 2 on, so that a
    checkpoint is enough to read sentences; 0 where there is no word.
    """

    places_are_words = True  # and no parts of words
    words: torch.Tensor

    def __init__(
        self,
        num_classes: int = 2,
        embedding: int = 64,
        hidden: int = 64,
        length: int = 64,
        vocabulary: int = 10_000,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        for name, value in (
            ("embedding", embedding),
            ("hidden", hidden),
            ("length", length),
            ("vocabulary", vocabulary),
        ):
            if value < 1:
                raise UserError(f"model.{name}={value}: expected a positive number")
        self.length = length
        self.register_buffer("words", torch.zeros(vocabulary, dtype=torch.int64))
        self.embedding = nn.Embedding(vocabulary + 2, embedding, padding_idx=PADDING)
        self.rnn_1 = Recurrent(embedding, hidden)
        self.rnn_2, self.rnn_3, self.rnn_4 = (Recurrent(hidden, hidden) for _ in range(3))
        self.head = nn.Linear(hidden, num_classes)
        self.dropout = nn.Dropout(dropout)
        self._rows: dict[int, int] = {}

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Logits [B,K] of vectors [B,E,1,T], none of them padding."""
        return self.head(self.rnn_4(self.rnn_3(self.rnn_2(self.rnn_1(inputs)))).mean((2, 3)))

    def answers(self, ids: torch.Tensor) -> torch.Tensor:
        """Logits [B,K] of ids [B,1,T], padded at the end: what `forward` answers to each sentence without padding."""
        real = ids != PADDING
        longest = int(real.sum(2).max())
        ids, real = ids[..., :longest], real[..., :longest]
        vectors = self.dropout(self.embedding(ids).permute(0, 3, 1, 2))
        # Padding comes last, so that no real place has read it.
        features = self.rnn_4(self.rnn_3(self.rnn_2(self.rnn_1(vectors))))
        share = real.to(features) / real.sum(2, keepdim=True)
        return self.head(self.dropout((features * share[:, None]).sum((2, 3))))

    # ---- words ---------------------------------------------------------------------------------------------------

    @property
    def table(self) -> nn.Embedding:
        """The vectors of ids."""
        return self.embedding

    @property
    def unknown(self) -> int:
        """The id of a word that the table does not have."""
        return UNKNOWN

    def places(self, words: Sequence[str]) -> tuple[list[int], list[int]]:
        """The ids of the first `length` words; each is a place."""
        rows = self._known()
        ids = [rows.get(_digest(word), UNKNOWN) for word in words[: self.length]]
        return ids, list(range(len(ids)))

    def learn(self, sentences: Iterable[Sequence[str]]) -> None:
        """Fill the table's rows with the most frequent words, equally frequent ones by the alphabet."""
        counts = Counter(chain.from_iterable(sentences))
        frequent = sorted((word for word, count in counts.items() if count > 1), key=lambda w: (-counts[w], w))
        digests = [_digest(word) for word in frequent[: len(self.words)]]
        self.words.zero_()
        self.words[: len(digests)] = torch.tensor(digests, dtype=torch.int64)
        self._rows = {}

    def _known(self) -> dict[int, int]:
        """The row of the table of each word's digest."""
        if not self._rows:
            digests = self.words.tolist()
            self._rows = {digest: row for row, digest in enumerate(digests, start=UNKNOWN + 1) if digest}
        return self._rows


def _digest(word: str) -> int:
    return int.from_bytes(hashlib.sha256(word.encode()).digest()[:8], "big", signed=True)

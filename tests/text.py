"""Sentences and networks of them, for tests."""

import torch

from xaibench.datasets.base import Batch, Dataset, Example, Samples
from xaibench.models.classifier import Classifier
from xaibench.models.lstm_sentiment import LstmSentiment
from xaibench.models.sentences import Sentences

WORDS = tuple("abcdefghijk")


def network(length: int = 12, seed: int = 0, dtype: torch.dtype = torch.float32) -> LstmSentiment:
    """A small network with random weights that knows WORDS, with room for so many places."""
    torch.manual_seed(seed)
    net = LstmSentiment(num_classes=3, embedding=5, hidden=6, length=length, vocabulary=16, dropout=0.0)
    net.learn([WORDS, WORDS])
    for name, parameter in net.named_parameters():  # so that places matter unlike
        if "lstm.weight" in name or "head" in name:
            parameter.data *= 3
    return net.to(dtype).eval()


def classifier(net: LstmSentiment, batch_size: int = 16) -> Classifier:
    """A network as methods and metrics get it."""
    return Classifier(
        name="lstm",
        module=net,
        input_size=(net.table.embedding_dim, 1, net.length),
        preprocessing=Sentences.of(net),
        layers={"bottleneck": "rnn_4"},
        places="words",
        batch_size=batch_size,
    )


class Lines(Dataset):
    """Given sentences; class and truth are those of the first word."""

    class_names, has_masks, fingerprint = ("0", "1", "2"), True, "lines"

    def __init__(self, *lines: str) -> None:
        self.lines = [tuple(line.split()) for line in lines]

    def __len__(self) -> int:
        return len(self.lines)

    def __getitem__(self, index: int) -> Example:
        words = self.lines[index]
        return Example(words, index % 3, (torch.arange(len(words)) == index % len(words))[None])


def batch(net: LstmSentiment, *lines: str) -> Batch:
    """Sentences as one batch, padded to the length of a network."""
    return Samples(Lines(*lines), Sentences.of(net), ()).load(range(len(lines)))

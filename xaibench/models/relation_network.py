"""Networks that answer a question about a picture by looking at all pairs of its places."""

from itertools import pairwise

import torch
from torch import nn

SIDE = 4  # places of the last convolution's map, each way: an image has 16 times as many pixels
SIDE_OF_CLEVR = 8
WORDS = 100  # the highest number of a word: CLEVR's templates use some ninety


class RelationNetwork(nn.Module):
    """Four convolutions -> every pair of places, with the question -> the sum over pairs of g -> f -> logits [B,K].

    Santoro et al. 2017. Sixt 2022, chapter 5, explains such a network of CLEVR (`ClevrRelationNetwork`); here are 16
    places for 64, layers of 64, and a question that is a vector. f and g have two and four hidden layers. A forward
    pass takes 11 million multiply-adds.

    It starts from weights that keep the size of values (He et al. 2015), but for two layers of g: the last one's are a
    sixteenth of that, so that a sum over 256 pairs is no larger than one of them, and those of the first that read the
    question four times it, since three bits beside some sixty numbers would take long to be heard.

    num_classes: answers K. questions: numbers Q that a question is coded in. channels: of each convolution. width: of
        each layer of g and f.
    """

    coordinates: torch.Tensor
    question: torch.Tensor

    def __init__(self, num_classes: int = 10, questions: int = 11, channels: int = 24, width: int = 64) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before in (3, channels, channels, channels):
            layers += [nn.Conv2d(before, channels, 3, stride=2, padding=1), nn.ReLU()]
        self.features = nn.Sequential(*layers)
        self.g, self.f = reasoning(2 * (channels + 2) + questions, width, num_classes)
        self.register_buffer("coordinates", coordinates_of(SIDE, 2))
        self.register_buffer("question", torch.zeros(questions), persistent=False)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        with torch.no_grad():
            self.g.get_parameter("0.weight")[:, -questions:].mul_(4)
            self.g.get_parameter("6.weight").div_(SIDE**2)

    def forward(self, images: torch.Tensor, questions: torch.Tensor | None = None) -> torch.Tensor:
        """Logits [B,K] of images [B,3,64,64] and the question of each, [B,Q]; without them, of `question` for all."""
        return self.answers(self.features(images), self.question[None] if questions is None else questions)

    def answers(self, features: torch.Tensor, questions: torch.Tensor) -> torch.Tensor:
        """Logits [B,K] of what `features` makes of images, [B,C,4,4], and questions [B,Q] or [1,Q]."""
        return self.f(self.g(pairs(features, self.coordinates, questions)).sum((1, 2)))


class ClevrRelationNetwork(nn.Module):
    """The relation network of CLEVR: as `RelationNetwork`, of 64 places, with a question in words that an LSTM reads.

    Santoro et al. 2017, with the sizes of Sixt 2022, chapter 5, and his released code: convolutions with batch
    normalisation on 128x128 pixels, coordinates from -4 to 4, and the LSTM's last state in each of 4096 pairs. The
    question is read from its last word to its first. Dropout, which he removed, is left out. It starts from torch's
    initial weights.

    num_classes: answers K. questions: the most words Q of a question: their numbers, from 1
        to WORDS, and 0 behind the last. channels: of each convolution. embedding: numbers that a word becomes. state:
        of the LSTM. width: of each layer of g and f.
    """

    coordinates: torch.Tensor
    question: torch.Tensor

    def __init__(
        self,
        num_classes: int = 28,
        questions: int = 50,
        channels: int = 24,
        embedding: int = 32,
        state: int = 128,
        width: int = 256,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before in (3, channels, channels, channels):
            layers += [
                nn.Conv2d(before, channels, 3, stride=2, padding=1, bias=False),
                nn.BatchNorm2d(channels),
                nn.ReLU(),
            ]
        self.features = nn.Sequential(*layers)
        self.embedding = nn.Embedding(WORDS + 1, embedding, padding_idx=0)
        self.lstm = nn.LSTM(embedding, state, batch_first=True)
        self.g, self.f = reasoning(2 * (channels + 2) + state, width, num_classes)
        self.register_buffer("coordinates", coordinates_of(SIDE_OF_CLEVR, 4))
        self.register_buffer("question", torch.zeros(questions), persistent=False)

    def forward(self, images: torch.Tensor, questions: torch.Tensor | None = None) -> torch.Tensor:
        """Logits [B,K] of images [B,3,128,128] and the question of each, [B,Q]; without them, of `question` for all."""
        read = self.read(self.question[None] if questions is None else questions)
        return self.f(self.g(pairs(self.features(images), self.coordinates, read)).sum((1, 2)))

    def read(self, questions: torch.Tensor) -> torch.Tensor:
        """What the LSTM makes of questions [B,Q]: its state [B,S] behind the first word, from the last one on."""
        states, _ = self.lstm(self.embedding(questions.long().flip(1)))
        return states[:, -1]


def reasoning(inputs: int, width: int, num_classes: int) -> tuple[nn.Sequential, nn.Sequential]:
    """g, four layers with ReLUs that read a pair, and f, two such layers and one that answers."""
    g, f = (
        [layer for sizes in pairwise(widths) for layer in (nn.Linear(*sizes), nn.ReLU())]
        for widths in ([inputs, *4 * [width]], 3 * [width])
    )
    return nn.Sequential(*g), nn.Sequential(*f, nn.Linear(width, num_classes))


def coordinates_of(side: int, reach: float) -> torch.Tensor:
    """Row and column of each place, from -reach to reach: [1,2,side,side]."""
    line = torch.linspace(-reach, reach, side)
    return torch.stack(torch.meshgrid(line, line, indexing="ij"))[None]


def pairs(features: torch.Tensor, coordinates: torch.Tensor, questions: torch.Tensor) -> torch.Tensor:
    """Every pair of places of features [B,C,h,w], with their coordinates [1,2,h,w] and a question [B,Q] or [1,Q]:
    [B,P,P,2(C+2)+Q]."""
    count, places = features.shape[0], features.shape[2] * features.shape[3]
    objects = torch.cat([features, coordinates.expand(count, -1, -1, -1)], 1).flatten(2).mT
    first = objects[:, :, None].expand(-1, -1, places, -1)
    second = objects[:, None].expand(-1, places, -1, -1)
    asked = questions[:, None, None].expand(count, places, places, -1)
    return torch.cat([first, second, asked], 3)

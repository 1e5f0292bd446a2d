"""A network that answers a question about a picture by looking at all pairs of its places."""

import torch
from torch import nn

SIDE = 4  # places of the last convolution's map, each way


class RelationNetwork(nn.Module):
    """Four convolutions -> every pair of places, with the question -> the sum over pairs of g -> f -> logits [B,K].

    Santoro et al. 2017. Sixt 2022, chapter 5, explains such a network of CLEVR, with the same convolutions and their
    coordinates beside each place, but 64 places for 16, layers of 256, and a question that an LSTM reads; here it is a
    vector. f and g have two and four hidden layers. A forward pass takes 11 million multiply-adds.

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
        pair = 2 * (channels + 2) + questions
        self.g = nn.Sequential(
            nn.Linear(pair, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(),
            nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(),
        )  # fmt: skip
        self.f = nn.Sequential(
            nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, num_classes)
        )
        line = torch.linspace(-2, 2, SIDE)
        self.register_buffer("coordinates", torch.stack(torch.meshgrid(line, line, indexing="ij"))[None])
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
        count, places = features.shape[0], SIDE**2
        objects = torch.cat([features, self.coordinates.expand(count, -1, -1, -1)], 1).flatten(2).mT
        first = objects[:, :, None].expand(-1, -1, places, -1)
        second = objects[:, None].expand(-1, places, -1, -1)
        asked = questions[:, None, None].expand(count, places, places, -1)
        return self.f(self.g(torch.cat([first, second, asked], 3)).sum((1, 2)))

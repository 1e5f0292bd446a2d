"""Small networks with known parts, and Classifiers around them."""

import torch
from torch import nn

from xaibench.models.classifier import Classifier
from xaibench.models.preprocessing import Preprocessing
from xaibench.models.smallvit import SmallViT

SIZE = (3, 16, 16)
LAYERS = {
    "last_conv": "features",
    "bottleneck_early": "features.0",
    "bottleneck": "features.3",
    "bottleneck_late": "features.5",
}


class VGGLike(nn.Module):
    """Three convolutions, one ReLU module in place, one used twice, max pooling, two linear layers."""

    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        shared = nn.ReLU()
        self.features = nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
            nn.Conv2d(6, 8, 3, padding=1),
            shared,
            nn.Conv2d(8, 8, 3, padding=1),
        )
        self.head = nn.Sequential(
            shared, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 12), nn.ReLU(), nn.Linear(12, classes)
        )

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(inputs))


class Pooled(nn.Module):
    """Three convolutions, in-place ReLUs, the mean over places, one linear layer: what CAM asks for."""

    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
            nn.Conv2d(6, 8, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(8, 8, 3, padding=1),
        )
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, classes))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(inputs))


def transformer() -> nn.Module:
    """A vision transformer of SIZE: 4x4 patches and a class token, two blocks with two heads each."""
    torch.manual_seed(0)
    return SmallViT(num_classes=5, width=16, depth=2, heads=2, side=SIZE[1], patch=4)


def unbiased() -> nn.Module:
    """VGGLike whose prediction follows what it sees: weights large, biases 0."""
    module = VGGLike()
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(layer.weight)
            nn.init.zeros_(layer.bias)
    return module


class FullyConnected(nn.Module):
    """Two hidden layers of a few ReLUs."""

    def __init__(self, size: tuple[int, int, int] = SIZE, hidden: int = 6, classes: int = 5) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Flatten(),
            nn.Linear(size[0] * size[1] * size[2], hidden),
            nn.ReLU(),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Linear(hidden, classes),
        )

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.layers(inputs)


class Linear(nn.Module):
    """Logits W x + b of the flattened input: every attribution has a closed form."""

    def __init__(self, size: tuple[int, int, int] = SIZE, classes: int = 5) -> None:
        super().__init__()
        self.layer = nn.Linear(size[0] * size[1] * size[2], classes)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.layer(inputs.flatten(1))


class Rows(nn.Module):
    """A function of the features of a row: linear, or with a product of the first two besides."""

    def __init__(self, weights: torch.Tensor, product: float) -> None:
        super().__init__()
        self.weights, self.product = nn.Parameter(weights.clone()), product

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        rows = inputs.flatten(1).to(self.weights)
        return rows @ self.weights.T + 0.7 + self.product * rows[:, :1] * rows[:, 1:2]


class Block(nn.Module):
    """Pre-activation residual block with one in-place ReLU module used twice, its result read twice."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
        self.relu, self.fc = nn.ReLU(inplace=True), nn.Linear(3, 5)

    def forward(self, inputs):
        x = self.first(inputs)
        y = self.relu(self.second(x))
        z = self.relu(x + self.first(y) - 0.5 * y)
        return self.fc(z.mean((2, 3)) - 0.1 * z.amax((2, 3)))


class Discarded(nn.Module):
    """An in-place ReLU whose return value nobody takes."""

    def __init__(self):
        super().__init__()
        self.conv, self.relu, self.fc = nn.Conv2d(3, 6, 3), nn.ReLU(inplace=True), nn.Linear(6, 5)

    def forward(self, inputs):
        x = self.conv(inputs)
        self.relu(x)
        return self.fc(x.mean((2, 3)))


class Functional(nn.Module):
    """A network whose second rectifier is not a module."""

    def __init__(self, rectify):
        super().__init__()
        self.conv, self.relu, self.fc, self.rectify = nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Linear(6, 5), rectify

    def forward(self, inputs):
        return self.fc(self.rectify(self.relu(self.conv(inputs)).mean((2, 3)) - 0.1))


def brighter(module):
    """Large activations, so that ReLU6 saturates in places."""
    with torch.no_grad():
        for layer in module.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.bias.normal_(1, 2)
    return module


def classifier(
    module: nn.Module, size: tuple[int, int, int] = SIZE, dtype: torch.dtype = torch.float64, **keywords
) -> Classifier:
    """A Classifier of three-channel inputs with an asymmetric normalisation."""
    keywords.setdefault("preprocessing", Preprocessing(mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3)))
    keywords.setdefault("layers", LAYERS)
    return Classifier(type(module).__name__, module.to(dtype), size, **keywords)


def seeded(count: int, size: tuple[int, ...] = SIZE, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """`count` normalised inputs, each with its own brightness and contrast."""
    draw = torch.Generator().manual_seed(count)
    spread = 0.5 + torch.rand(count, 1, 1, 1, generator=draw)
    return (torch.randn(count, *size, generator=draw) * spread + spread - 1).to(dtype)


def photographs(count: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """Such inputs cut to what an image can be: between black and white of `classifier`."""
    black, white = (
        classifier(Linear()).preprocessing.normalise(torch.full((3, 1, 1), x).to(dtype)) for x in (0.0, 1.0)
    )
    return seeded(count, dtype=dtype).clamp(black, white)

"""The bundled network: small enough to benchmark on a laptop, with the parts that attribution methods read."""

import torch
from torch import nn


class SmallCNN(nn.Module):
    """VGG-like: five 3x3 convolutions with ReLU and three max poolings, a maximum over places, two linear layers.

    Inputs [B,3,64,64] -> logits [B,num_classes]. A forward pass takes 12.1 million multiply-adds; the last
    convolution's map has 8x8 places. Every ReLU is a module of its own, not in place; there is no batch normalisation.
    The maximum over places is what finds an object anywhere: with a mean, training takes many times as long.

    num_classes: outputs.
    """

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(16, 24, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(24, 48, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(48, 64, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(64, 64, 3, padding=1),
            nn.ReLU(),
        )
        self.pool = nn.MaxPool2d(8)
        self.classifier = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, num_classes))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.pool(self.features(inputs)))

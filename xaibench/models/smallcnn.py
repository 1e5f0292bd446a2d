"""The bundled network: small enough to benchmark on a laptop, with the parts that attribution methods read."""

import torch
from torch import nn


class SmallCNN(nn.Module):
    """VGG-like: five 3x3 convolutions with ReLU, three max poolings, a mean over places, two linear layers.

    Inputs [B,3,H,W], H and W at least 8 -> logits [B,num_classes]. At 64x64 a forward pass takes 12.1 million
    multiply-adds, and the last convolution's map has 8x8 places. Every ReLU is a module of its own, not in place, and
    there is no batch normalisation.

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
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, num_classes))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.pool(self.features(inputs)))

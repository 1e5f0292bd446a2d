"""The MNIST network of the thesis: two convolutions, two poolings, three linear layers."""

import torch
from torch import nn


class LeNet(nn.Module):
    """Inputs [B,1,28,28] -> logits [B,num_classes]; every ReLU is a module of its own, not in place.

    The thesis gives the layers but not their sizes; these are the PyTorch tutorial's (6 and 16 channels of 5x5, then
    120 and 84 units). `relu2` gives the last feature map [B,16,8,8].
    num_classes: outputs.
    """

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.conv1, self.relu1, self.pool1 = nn.Conv2d(1, 6, 5), nn.ReLU(), nn.MaxPool2d(2)
        self.conv2, self.relu2, self.pool2 = nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2)
        self.flatten = nn.Flatten()
        self.linear1, self.relu3 = nn.Linear(16 * 4 * 4, 120), nn.ReLU()
        self.linear2, self.relu4 = nn.Linear(120, 84), nn.ReLU()
        self.linear3 = nn.Linear(84, num_classes)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        x = self.pool1(self.relu1(self.conv1(inputs)))
        x = self.flatten(self.pool2(self.relu2(self.conv2(x))))
        return self.linear3(self.relu4(self.linear2(self.relu3(self.linear1(x)))))

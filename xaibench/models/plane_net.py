"""The networks of the worlds of two features: one hidden layer of a few ReLUs, or none."""

import torch
from torch import nn


class PlaneNet(nn.Module):
    """Inputs [B,1,1,2] -> outputs [B,outputs]; `input` passes the two features on, as a layer that can be named.

    Heurich 2021 gives the layers (2, 10, 1) and not the activations; his appendix defines ReLU only.
    outputs: 1, trained to 0 and 1 with squared error, or one per class. hidden: ReLUs.
    Its features stand for two pixels: `feature_ablation` replaces them by grey, for one.
    sigmoid: whether the outputs pass one, which is how the thesis's figures read its scalar output.
    """

    places = "pixels"

    def __init__(self, outputs: int = 1, hidden: int = 10, sigmoid: bool = True) -> None:
        super().__init__()
        self.input, self.flatten = nn.Identity(), nn.Flatten()
        self.linear1, self.relu = nn.Linear(2, hidden), nn.ReLU()
        self.linear2 = nn.Linear(hidden, outputs)
        self.output = nn.Sigmoid() if sigmoid else nn.Identity()

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        features = self.flatten(self.input(inputs))
        return self.output(self.linear2(self.relu(self.linear1(features))))


class LinearNet(nn.Module):
    """Inputs [B,1,1,2] -> outputs [B,1]: one linear layer, without a bias, so that what it answers is w x."""

    places = "pixels"  # as of `PlaneNet`

    def __init__(self) -> None:
        super().__init__()
        self.flatten, self.linear = nn.Flatten(), nn.Linear(2, 1, bias=False)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.linear(self.flatten(inputs))

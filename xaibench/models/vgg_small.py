"""A VGG with batch normalisation for small images: the network of the thesis's sanity checks, narrower."""

import torch
from torch import nn


class VGGSmall(nn.Module):
    """Ten 3x3 convolutions (2, 2, 3, 3) with four max poolings, three linear layers (Nuzzo 2020, table 7.1).

    Inputs [B,3,32,32] -> logits [B,num_classes]. Batch normalisation lies before every ReLU, in the linear layers too;
    every ReLU is a module of its own, not in place. The layers are `conv1` to `conv10` and `fc1` to `fc3`.
    The thesis has width 64, 64x64 pixels and dropout; here the width is free and there is no dropout.

    width: channels of the first convolutions, doubled after each pooling; the linear layers have 32 times as many
        units. num_classes: outputs.
    """

    def __init__(self, width: int = 8, num_classes: int = 10) -> None:
        super().__init__()
        layers: list[tuple[str, nn.Module]] = []
        channels, number = 3, 0
        for stage, depth in enumerate((2, 2, 3, 3)):
            for _ in range(depth):
                number, before, channels = number + 1, channels, width * 2**stage
                layers += [
                    (f"conv{number}", nn.Conv2d(before, channels, 3, padding=1)),
                    (f"bn{number}", nn.BatchNorm2d(channels)),
                    (f"relu{number}", nn.ReLU()),
                ]
            layers.append((f"pool{stage + 1}", nn.MaxPool2d(2)))
        layers.append(("flatten", nn.Flatten()))
        features, units = channels * 2 * 2, 32 * width
        for number in (1, 2):
            layers += [
                (f"fc{number}", nn.Linear(features, units)),
                (f"fc{number}_bn", nn.BatchNorm1d(units)),
                (f"fc{number}_relu", nn.ReLU()),
            ]
            features = units
        layers.append(("fc3", nn.Linear(units, num_classes)))
        for name, layer in layers:
            self.add_module(name, layer)
            if isinstance(layer, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        for layer in self.children():
            inputs = layer(inputs)
        return inputs

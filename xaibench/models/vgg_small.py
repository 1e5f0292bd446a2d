"""A VGG with batch normalisation for small images: the network of the thesis's sanity checks, narrower."""

from collections.abc import Mapping
from typing import Any

from torch import nn


class VGGSmall(nn.Sequential):
    """Ten 3x3 convolutions (2, 2, 3, 3) with four max poolings, three linear layers (Nuzzo 2020, table 7.1).

    Inputs [B,3,side,side] -> logits [B,num_classes]. Batch normalisation lies before every ReLU, in the linear layers
    too; every ReLU is a module of its own, not in place. The layers are `conv1` to `conv10` and `fc1` to `fc3`.
    The thesis has width 64, side 64, and dropout of 0.25 and 0.5.

    width: channels of the first convolutions, doubled after each pooling; the linear layers have 32 times as many
        units. num_classes: outputs. side: of the inputs, in pixels, a multiple of 16.
    dropout_conv, dropout_dense: the share of values that a training drops behind the ReLU of each convolution and of
        each hidden linear layer. Raises ValueError for another side.
    """

    added: Mapping[str, Any] = {"side": 32, "dropout_conv": 0.0, "dropout_dense": 0.0}

    def __init__(
        self,
        width: int = 8,
        num_classes: int = 10,
        side: int = 32,
        dropout_conv: float = 0.0,
        dropout_dense: float = 0.0,
    ) -> None:
        super().__init__()
        if side < 16 or side % 16:
            raise ValueError(f"side={side}: expected a multiple of 16, such as 32 or 64")
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
                if dropout_conv:
                    layers.append((f"dropout{number}", nn.Dropout(dropout_conv)))
            layers.append((f"pool{stage + 1}", nn.MaxPool2d(2)))
        layers.append(("flatten", nn.Flatten()))
        features, units = channels * (side // 16) ** 2, 32 * width
        for number in (1, 2):
            layers += [
                (f"fc{number}", nn.Linear(features, units)),
                (f"fc{number}_bn", nn.BatchNorm1d(units)),
                (f"fc{number}_relu", nn.ReLU()),
            ]
            if dropout_dense:
                layers.append((f"fc{number}_dropout", nn.Dropout(dropout_dense)))
            features = units
        layers.append(("fc3", nn.Linear(units, num_classes)))
        for name, layer in layers:
            self.add_module(name, layer)
            if isinstance(layer, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)

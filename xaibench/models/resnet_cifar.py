"""The ResNets of He et al. 2016 for CIFAR: 6n+2 layers, shortcuts without parameters (option A)."""

from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import nn


class ResNetCifar(nn.Module):
    """Inputs [B,3,32,32] -> logits [B,num_classes]; every ReLU is a module of its own, not in place.

    depth: 6n+2 layers. num_classes: outputs. width: channels of the first stage; the second has twice, the third four
    times as many. `layer3` gives the last feature map [B,4 width,8,8], after its ReLU.
    """

    added: ClassVar[dict[str, Any]] = {"width": 16}

    def __init__(self, depth: Literal[8, 20, 56] = 20, num_classes: int = 10, width: int = 16) -> None:
        super().__init__()
        if width < 1:
            raise ValueError(f"width={width}: expected at least 1 channel")
        blocks = (depth - 2) // 6
        self.conv1, self.bn1, self.relu = _conv3x3(3, width, 1), nn.BatchNorm2d(width), nn.ReLU()
        self.layer1 = _stage(width, width, 1, blocks)
        self.layer2 = _stage(width, 2 * width, 2, blocks)
        self.layer3 = _stage(2 * width, 4 * width, 2, blocks)
        self.pool, self.flatten = nn.AdaptiveAvgPool2d(1), nn.Flatten()
        self.linear = nn.Linear(4 * width, num_classes)
        for part in self.modules():
            if isinstance(part, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(part.weight)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        x = self.relu(self.bn1(self.conv1(inputs)))
        return self.linear(self.flatten(self.pool(self.layer3(self.layer2(self.layer1(x))))))


class _Block(nn.Module):
    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1, self.relu1 = _conv3x3(channels_in, channels, stride), nn.BatchNorm2d(channels), nn.ReLU()
        self.conv2, self.bn2, self.relu2 = _conv3x3(channels, channels, 1), nn.BatchNorm2d(channels), nn.ReLU()
        self.shortcut = nn.Identity() if stride == 1 else _OptionA()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        return self.relu2(out + self.shortcut(x))


class _OptionA(nn.Module):
    """Every second pixel, and as many zero channels before and after as double the count."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        padding = x.shape[1] // 2
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, padding, padding))


def _stage(channels_in: int, channels: int, stride: int, blocks: int) -> nn.Sequential:
    first = _Block(channels_in, channels, stride)
    return nn.Sequential(first, *(_Block(channels, channels, 1) for _ in range(blocks - 1)))


def _conv3x3(channels_in: int, channels: int, stride: int) -> nn.Conv2d:
    return nn.Conv2d(channels_in, channels, 3, stride=stride, padding=1, bias=False)

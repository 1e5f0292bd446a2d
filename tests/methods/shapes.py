"""Small random networks in the shapes of VGG, ResNet and MobileNet, and their ReLUs written in other ways."""

import copy

import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models.mobilenetv2 import MobileNetV2
from torchvision.models.resnet import BasicBlock, ResNet
from torchvision.models.vgg import VGG, make_layers

SIZE = (3, 64, 64)
LAST_CONV = {"vgg": "features", "resnet": "layer4", "mobilenet": "features"}


def vgg() -> nn.Module:
    module = VGG(make_layers([8, "M", 16, "M", 16, 16, "M"]), init_weights=False)
    module.classifier = nn.Sequential(
        nn.Linear(16 * 49, 32), nn.ReLU(True), nn.Dropout(), nn.Linear(32, 16), nn.ReLU(True), nn.Linear(16, 5)
    )
    return module


class Narrow(ResNet):
    """A ResNet with an eighth of the channels."""

    def _make_layer(self, block, planes, blocks, stride=1, dilate=False):
        if planes == 64:
            self.inplanes = 8
            self.conv1, self.bn1 = nn.Conv2d(3, 8, 7, stride=2, padding=3, bias=False), nn.BatchNorm2d(8)
        return super()._make_layer(block, planes // 8, blocks, stride, dilate)

    def __init__(self, *arguments, num_classes: int) -> None:
        super().__init__(*arguments, num_classes=num_classes)
        self.fc = nn.Linear(64, num_classes)


def shaped(name: str) -> nn.Module:
    """A network with weights and statistics that let the input reach the logits, ReLU6 saturated in places."""
    torch.manual_seed(2)
    module = {
        "vgg": vgg,
        "resnet": lambda: Narrow(BasicBlock, [1, 1, 1, 1], num_classes=5),
        "mobilenet": lambda: MobileNetV2(num_classes=5, width_mult=0.25),
    }[name]()
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            if layer.bias is not None:
                nn.init.normal_(layer.bias)
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.normal_(layer.bias, 0.5, 1)
            nn.init.normal_(layer.weight, 1, 0.2)
            nn.init.normal_(layer.running_mean)
            nn.init.uniform_(layer.running_var, 0.5, 2)
    return module


class Functional(nn.Module):
    """A ReLU that is no nn.ReLU, but a call inside a module."""

    def __init__(self, six: bool, inplace: bool) -> None:
        super().__init__()
        self.six, self.inplace = six, inplace

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (F.relu6 if self.six else F.relu)(x, inplace=self.inplace)


def rewritten(module: nn.Module, how: str) -> nn.Module:
    """A copy whose ReLUs are `separate` modules, work `inplace`, are one `shared` module, or are `functional` calls."""
    module = copy.deepcopy(module)
    shared = {six: (nn.ReLU6 if six else nn.ReLU)(inplace=True) for six in (False, True)}
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.ReLU | nn.ReLU6):
                six = isinstance(child, nn.ReLU6)
                new = {
                    "separate": lambda six=six: (nn.ReLU6 if six else nn.ReLU)(),
                    "inplace": lambda six=six: (nn.ReLU6 if six else nn.ReLU)(inplace=True),
                    "shared": lambda six=six: shared[six],
                    "functional": lambda six=six: Functional(six, False),
                    "functional_inplace": lambda six=six: Functional(six, True),
                }[how]()
                setattr(parent, name, new)
    return module

"""torchvision's classifiers, with what attribution needs of them: ReLUs that hooks reach, and their preprocessing.

To import torchvision is to import `torch._dynamo`, longer than torch itself: this module is imported for networks that
have something of torchvision's alone.
"""

import contextlib
import sys
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torchvision import models
from torchvision.models import densenet, inception, resnet
from torchvision.models.googlenet import BasicConv2d as GoogLeNetConv

from ..errors import UserError, first_line, nearest


def torchvision_net(arch: str, num_classes: int = 1000) -> nn.Module:
    """One of torchvision's classifiers by its name there, such as `resnet50`, with random weights.

    arch: a name from `torchvision.models.list_models`. num_classes: outputs.
    Raises UserError for an unknown name. The auxiliary heads of GoogLeNet and Inception, which only training uses,
    are left out; both networks re-scale ImageNet-normalised inputs themselves, as torchvision's weights expect.
    """
    known = models.list_models(module=models)
    if arch not in known:
        raise UserError(f"model.arch={arch}: {nearest(arch, known)}")
    options: dict[str, Any] = {}
    if arch in ("googlenet", "inception_v3"):
        # Their own initialisation draws from truncated normals and takes seconds; PyTorch's default does not.
        options = {"aux_logits": False, "transform_input": True, "init_weights": False}
    net = models.get_model(arch, weights=None, num_classes=num_classes, **options)
    net.register_load_state_dict_pre_hook(_without_auxiliary_heads)
    return net


class TransferNet(nn.Module):
    """The first layers of one of torchvision's classifiers and a linear head on their means over places.

    Inputs [B,3,H,W] -> outputs [B,num_classes]. arch: a network whose layers are a sequence `features`, such as
    mobilenet_v2, vgg16 or densenet121. layer: the last one that is kept, such as `features.14`. num_classes: outputs.
    Parameters are named as torchvision's, so that its weights fit (`model.recipe.initial`); those of the head are new.
    """

    def __init__(self, arch: str = "mobilenet_v2", layer: str = "features.14", num_classes: int = 1) -> None:
        super().__init__()
        layers = getattr(torchvision_net(arch), "features", None)
        if not isinstance(layers, nn.Sequential):
            raise UserError(f"model.arch={arch}: its layers are no sequence `features`, as those of mobilenet_v2 are")
        names = [f"features.{name}" for name, _ in layers.named_children()]
        if layer not in names:
            raise UserError(f"model.layer={layer}: {nearest(layer, names)}")
        kept = list(layers.named_children())[: names.index(layer) + 1]
        self.features = nn.Sequential()
        for name, part in kept:
            self.features.add_module(name, part)
        with torch.no_grad():
            channels = self.features.eval()(torch.zeros(1, 3, 64, 64)).shape[1]
        self.features.train()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.head = nn.Linear(channels, num_classes)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.head(self.flatten(self.pool(self.features(inputs))))


def pretrained(arch: str, name: str, where: str = "model.weights") -> tuple[dict[str, torch.Tensor], tuple[str, ...]]:
    """torchvision's weights by their enum name: the state dict, downloaded if needed, and the class names.

    where: the setting that names them, for messages. Raises UserError for an unknown name or a failed download.
    """
    weights = _weights(arch, name)
    try:
        with contextlib.redirect_stdout(sys.stderr):  # stdout is for results, and the download prints
            # Through the network and not the file: torchvision renames old keys on the way.
            state = models.get_model(arch, weights=weights).state_dict()
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"{where}={name}: {weights.url} could not be downloaded ({first_line(error)})\n"
            f"give a state-dict file instead, {where}=FILE.pt, or put that file into TORCH_HOME/hub/checkpoints"
        ) from error
    return state, tuple(weights.meta.get("categories", ()))


def is_downloaded(arch: str, name: str) -> bool:
    """Whether torchvision's weights of this enum name lie where a download puts them."""
    return (Path(torch.hub.get_dir()) / "checkpoints" / Path(_weights(arch, name).url).name).is_file()


def preprocessing_of(arch: str, name: str) -> dict[str, Any]:
    """Mean, std, resize, crop and interpolation with which torchvision measured the named weights."""
    preset = _weights(arch, name).transforms()
    return {
        "mean": tuple(preset.mean),
        "std": tuple(preset.std),
        "resize": preset.resize_size[0],
        "crop": preset.crop_size[0],
        "interpolation": preset.interpolation.value,
    }


class _BasicBlock(resnet.BasicBlock):
    def separate(self) -> None:
        self.relu1, self.relu2 = nn.ReLU(), nn.ReLU()
        del self.relu

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        return self.relu2(out + (x if self.downsample is None else self.downsample(x)))


class _Bottleneck(resnet.Bottleneck):
    def separate(self) -> None:
        self.relu1, self.relu2, self.relu3 = nn.ReLU(), nn.ReLU(), nn.ReLU()
        del self.relu

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.relu2(self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x))))))
        out = self.bn3(self.conv3(out))
        return self.relu3(out + (x if self.downsample is None else self.downsample(x)))


class _GoogLeNetConv(GoogLeNetConv):
    def separate(self) -> None:
        self.relu = nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.relu(self.bn(self.conv(x)))


class _InceptionConv(inception.BasicConv2d):
    separate, forward = _GoogLeNetConv.separate, _GoogLeNetConv.forward


class _DenseNet(densenet.DenseNet):
    def separate(self) -> None:
        # Inside `features`, so that its output is the map after the ReLU, as in the other networks.
        self.features.add_module("relu5", nn.ReLU())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(torch.flatten(F.adaptive_avg_pool2d(self.features(x), (1, 1)), 1))


# Of each of torchvision's modules that `untangle` takes apart, the class that it becomes.
SEPARATED: dict[type, type] = {
    resnet.BasicBlock: _BasicBlock,
    resnet.Bottleneck: _Bottleneck,
    GoogLeNetConv: _GoogLeNetConv,
    inception.BasicConv2d: _InceptionConv,
    densenet.DenseNet: _DenseNet,
}


def _weights(arch: str, name: str) -> models.WeightsEnum:
    members = models.get_model_weights(arch).__members__
    if name not in members:
        raise UserError(
            f"model.weights={name}: {arch} has the weights {', '.join(members)}; or give null, recipe, bundled:FILE, "
            "or the path of a .safetensors, .pt or .pth file"
        )
    return members[name]


def _without_auxiliary_heads(module: nn.Module, state: dict[str, torch.Tensor], prefix: str, *_: Any) -> None:
    """Drop what the published files of GoogLeNet and Inception hold for the heads that were left out."""
    for key in [key for key in state if key.startswith(("aux1.", "aux2.", "AuxLogits."))]:
        del state[key]

"""ReLUs that hooks can reach, and the last feature map, whoever wrote the network."""

import sys
from typing import Any

import torch
from torch import nn

# The module whose output is the last feature map, by torchvision's naming; the first that a network has counts.
# (Swin's `features` are channels-last, and its `permute` puts them right.)
_LAST_MAPS = ("permute", "layer4", "inception5b", "Mixed_7c", "trunk_output", "conv5", "layers", "features")


def last_conv(module: nn.Module) -> str | None:
    """The path of the module whose output is the last feature map of a torchvision classifier; None if unknown.

    Of a vision transformer it is the normalisation before the last attention: behind it only the class token is read,
    so that no patch has a gradient.
    """
    return next((name for name in _LAST_MAPS if hasattr(module, name)), _before_last_attention(module))


def _before_last_attention(module: nn.Module) -> str | None:
    """The path of the layer normalisation that a module has in front of its attention, where that is the last one."""
    attentions = [path for path, part in module.named_modules() if isinstance(part, nn.MultiheadAttention)]
    if not attentions:
        return None
    parent, _, name = attentions[-1].rpartition(".")
    siblings = dict(module.get_submodule(parent).named_children())
    before = list(siblings)[: list(siblings).index(name)]
    if not before or not isinstance(siblings[before[-1]], nn.LayerNorm):
        return None
    return f"{parent}.{before[-1]}" if parent else before[-1]


def untangle(module: nn.Module) -> nn.Module:
    """Make every ReLU a module of its own, called once and not in place; the network computes the same numbers.

    Hooks on a ReLU that works in place see a tensor that changes under them; a module that a residual block calls
    twice cannot tell its calls apart; a functional ReLU cannot be hooked at all. Works on the network given: modules
    that have `inplace` get False, and torchvision's residual blocks, Inception convolutions and DenseNet get a
    forward with separate modules. Parameters and their names stay as they are.
    """
    separated = _separated()
    part: Any
    for part in list(module.modules()):
        if isinstance(part, torch.jit.ScriptModule):
            continue  # its code is fixed; nothing looks into it
        if hasattr(part, "inplace"):
            part.inplace = False
        if type(part) in separated:
            part.__class__ = separated[type(part)]
            part.separate()
    return module


def _separated() -> dict[type, type]:
    """Which classes become which; no part of a network is torchvision's unless something has imported that."""
    if "torchvision.models" not in sys.modules:
        return {}
    from .torchvision_nets import SEPARATED

    return SEPARATED

"""Batch normalisation for the time of a training: put in before it and folded into the convolutions after it."""

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval


def add_batch_norm(module: nn.Module) -> None:
    """Put a batch normalisation behind every convolution that has a bias, in place: that is where it can be folded."""
    convolutions = [
        (parent, name, child)
        for parent in module.modules()
        for name, child in parent.named_children()
        if isinstance(child, nn.Conv2d) and child.bias is not None
    ]
    for parent, name, child in convolutions:
        norm = nn.BatchNorm2d(child.out_channels).to(child.weight)
        setattr(parent, name, nn.Sequential(child, norm))


def fold_batch_norm(module: nn.Module) -> None:
    """Undo `add_batch_norm`, in place: a network in evaluation mode computes the same without them."""
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Sequential) and [type(part) for part in child] == [nn.Conv2d, nn.BatchNorm2d]:
                setattr(parent, name, fuse_conv_bn_eval(*child).requires_grad_(False))

"""Convolutions, linear layers, batch normalisation and ReLUs, whether they are modules or functions, as the steps that
they are."""

import math
from collections.abc import Callable
from typing import Any, TypeGuard, cast

import torch
from torch import fx, nn

from .steps import Contraction, Convolution

Call = Callable[..., Any]
# The mode of padding of modules that pad with something else than a constant.
PADDED: dict[Any, str] = {
    nn.ReflectionPad2d: "reflect", nn.ReplicationPad2d: "replicate", nn.CircularPad2d: "circular",
}  # fmt: skip


def convolution(
    where: tuple[str, tuple[int, ...]],
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    mode: str | None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Convolution:
    """A convolution as torch.nn.functional.conv2d takes it. mode: of `pad`, for what is no padding with zeros."""
    stride, dilation = (nn.modules.utils._pair(value) for value in (stride, dilation))
    sides = None if isinstance(padding, str) else nn.modules.utils._pair(padding)
    whole = [step * (size - 1) for step, size in zip(dilation, weight.shape[2:])]
    if padding == "valid":
        sides = (0, 0)
    if padding == "same" and all(size % 2 == 0 for size in whole):
        sides = (whole[0] // 2, whole[1] // 2)
    around = None
    if mode is not None or sides is None:
        # As `pad` wants it: the last dimension first. What cannot be halved has one more behind than before.
        before_behind = [(s, s) for s in sides] if sides is not None else [(n // 2, n - n // 2) for n in whole]
        around = {"pad": (*before_behind[1], *before_behind[0]), "mode": mode or "constant"}
        sides = (0, 0)
    options = {"stride": stride, "padding": sides, "dilation": dilation, "groups": groups}
    return Convolution(*where, weight.detach(), None if bias is None else bias.detach().view(-1, 1, 1), options, around)


def contraction(
    where: tuple[str, tuple[int, ...]], function: Call, weight: torch.Tensor, bias: torch.Tensor | None, options: Any
) -> Contraction:
    """A convolution of another kind: function(input, weight, None, **options)."""
    bias = None if bias is None else bias.detach().view(-1, *[1] * (weight.dim() - 2))
    return Contraction(*where, weight.detach(), bias, lambda x, w: function(x, w, None, **options))


def normalises(module: nn.Module | None) -> TypeGuard[nn.modules.batchnorm._BatchNorm]:
    """Whether it is a batch normalisation by kept statistics, which is a factor and a shift for each channel."""
    return isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None


def kept_statistics(norm: nn.modules.batchnorm._BatchNorm) -> tuple[Any, ...]:
    return norm.running_mean, norm.running_var, norm.weight, norm.bias, norm.eps


def factor_and_shift(
    mean: torch.Tensor | None,
    variance: torch.Tensor | None,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """What batch normalisation in evaluation does to each channel [k]: y = factor * x + shift."""
    factor = (cast(torch.Tensor, variance) + eps).rsqrt()
    factor = factor if weight is None else factor * weight.detach()
    shift = -cast(torch.Tensor, mean) * factor
    return factor, shift if bias is None else shift + bias.detach()


# How the functions that cut a range name its ends.
_ENDS = {
    "clamp": ("min", "max"),
    "clip": ("min", "max"),
    "clamp_min": ("min", "max"),
    "hardtanh": ("min_val", "max_val"),
}


def ceiling_of(node: fx.Node, module: nn.Module | None) -> float | None:
    """Above which value a ReLU, however it is written, cuts (infinity: none does); None for what is not a ReLU."""
    if module is not None:
        if isinstance(module, nn.Hardtanh):  # nn.ReLU6 is one
            return float(module.max_val) if module.min_val == 0 else None
        return math.inf if isinstance(module, nn.ReLU) else None
    name = getattr(node.target, "__name__", str(node.target))
    if name in ("relu", "relu6"):
        return 6.0 if name == "relu6" else math.inf
    ends = _ENDS.get(name, ())
    bounds = dict(zip(ends, node.args[1:])) | node.kwargs
    low, high = (bounds.get(end) for end in ends or ("", ""))
    if isinstance(low, int | float) and low == 0 and isinstance(high, int | float | None):
        return math.inf if high is None else float(high)
    return None

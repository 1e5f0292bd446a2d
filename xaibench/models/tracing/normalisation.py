"""Normalisation by the values themselves, as the parts that `steps.Normalisation` has."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional

Function = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Parts:
    """See `steps.Normalisation`."""

    mean: Function | None
    average: Function
    scale: Function
    bias: torch.Tensor | None = None


def normalised(
    module: nn.Module | None,
    target: Any,
    given: Callable[[tuple[str, ...]], dict[str, Any] | None],
    values: torch.Tensor,
) -> Parts | None:
    """The parts of a normalisation; None for what is none, or one whose weights depend on the input.

    module: what is called, or None where a function is, `target`. given: the names of a function's arguments -> what
    it was called with, but for the first. values: an input.
    """
    found: dict[str, Any] | None
    if isinstance(module, nn.LayerNorm | nn.RMSNorm | nn.GroupNorm):
        found = {
            name: getattr(module, name, None) for name in ("normalized_shape", "num_groups", "weight", "bias", "eps")
        }
    elif isinstance(module, nn.modules.instancenorm._InstanceNorm) and module.running_mean is None:
        found = {name: getattr(module, name) for name in ("weight", "bias", "eps")}
    elif target in FUNCTIONS:
        found = given(FUNCTIONS[target])
        if found is None or found.get("running_mean") is not None or found.get("p", 2) != 2:
            return None
    else:
        return None
    if target is functional.normalize:
        dim, least = found.get("dim", 1), found.get("eps", 1e-12)
        return Parts(None, partial(torch.sum, dim=dim, keepdim=True), lambda x: 1 / x.sqrt().clamp_min(least))
    weight, bias = (None if found.get(name) is None else found[name].detach() for name in ("weight", "bias"))
    eps = found.get("eps", 1e-5)
    if found.get("normalized_shape") is not None:
        dims = tuple(range(-len(found["normalized_shape"]), 0))
        mean = partial(torch.mean, dim=dims, keepdim=True)
    else:
        mean = partial(_mean_of_groups, found.get("num_groups") or values.shape[1])
        over_places = (-1, *[1] * (values.dim() - 2))
        weight, bias = (None if x is None else x.view(over_places) for x in (weight, bias))
    by_root_mean_square = isinstance(module, nn.RMSNorm) or target is functional.rms_norm
    if by_root_mean_square and eps in (None, 1e-5) and not isinstance(module, nn.RMSNorm):
        eps = found.get("eps")
    eps = torch.finfo(values.dtype).eps if eps is None else eps

    def scale(spread: torch.Tensor) -> torch.Tensor:
        factor = (spread + eps).rsqrt()
        return factor if weight is None else factor * weight

    return Parts(None if by_root_mean_square else mean, mean, scale, bias)


FUNCTIONS: dict[Any, tuple[str, ...]] = {
    functional.layer_norm: ("input", "normalized_shape", "weight", "bias", "eps"),
    functional.rms_norm: ("input", "normalized_shape", "weight", "eps"),
    functional.group_norm: ("input", "num_groups", "weight", "bias", "eps"),
    functional.instance_norm: (
        "input",
        "running_mean",
        "running_var",
        "weight",
        "bias",
        "use_input_stats",
        "momentum",
        "eps",
    ),
    functional.normalize: ("input", "p", "dim", "eps"),
}


def _mean_of_groups(groups: int, values: torch.Tensor) -> torch.Tensor:
    """The mean of each value's group of channels and all places, [B,C,...]."""
    parts = values.reshape(len(values), groups, -1)
    return parts.mean(2, keepdim=True).expand_as(parts).reshape(values.shape)

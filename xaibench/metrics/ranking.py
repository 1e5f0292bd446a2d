"""The one place that turns maps into orders of features: collapse, sign, tiles, ties."""

import torch

from ..errors import UserError, nearest

COLLAPSES = ("sum", "sum_abs", "max_abs", "mean")
SIGNS = ("signed", "absolute", "positive")


def collapse(maps: torch.Tensor, how: str, sign: str = "signed") -> torch.Tensor:
    """Maps [B,C,H,W] -> [B,H,W]: over channels the signed `sum` or `mean`, `sum_abs` or `max_abs`; then the sign.

    sign: `signed` keeps it, `absolute` takes |.|, `positive` sets negative values to 0.
    """
    if how not in COLLAPSES:
        raise UserError(f"collapse={how}: {nearest(how, COLLAPSES)}")
    if sign not in SIGNS:
        raise UserError(f"sign={sign}: {nearest(sign, SIGNS)}")
    if how == "sum":
        maps = maps.sum(1)
    elif how == "mean":
        maps = maps.mean(1)
    elif how == "sum_abs":
        maps = maps.abs().sum(1)
    else:
        maps = maps.abs().amax(1)
    if sign == "absolute":
        return maps.abs()
    return maps.clamp(min=0) if sign == "positive" else maps


def descending_order(values: torch.Tensor, generators: list[torch.Generator]) -> torch.Tensor:
    """Feature indices [B,N] from most to least relevant; equal values in the sample's own random order.

    values [B,N]; generators: one per sample, CPU. The least-relevant-first order is the same one reversed, so a
    constant map ranks like a random one.
    """
    shuffles = torch.stack([torch.randperm(values.shape[1], generator=g) for g in generators]).to(values.device)
    shuffled = values.gather(1, shuffles)
    return shuffles.gather(1, shuffled.argsort(dim=1, descending=True, stable=True))


def ranks(order: torch.Tensor) -> torch.Tensor:
    """The place of each feature in an order [B,N]: 0 for the first. The inverse permutation."""
    places = torch.arange(order.shape[1], device=order.device).expand_as(order)
    return torch.empty_like(order).scatter_(1, order, places)

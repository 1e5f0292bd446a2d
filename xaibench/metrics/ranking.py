"""The one place that turns maps into orders of features: collapse, sign, tiles, ties."""

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch.nn import functional

from ..errors import UserError, nearest

Collapse = Literal["sum", "sum_abs", "max_abs", "mean"]
Sign = Literal["signed", "absolute", "positive"]
COLLAPSES: tuple[str, ...] = get_args(Collapse)
SIGNS: tuple[str, ...] = get_args(Sign)


def collapse(maps: torch.Tensor, how: str, sign: str = "signed") -> torch.Tensor:
    """Maps [B,C,H,W] -> [B,H,W]: over channels the signed `sum` or `mean`, `sum_abs` or `max_abs`; then the sign.

    how: `none`, for a metric that reads channels, leaves [B,C,H,W].
    sign: `signed` keeps it, `absolute` takes |.|, `positive` sets negative values to 0.
    """
    if how not in (*COLLAPSES, "none"):
        raise UserError(f"collapse={how}: {nearest(how, COLLAPSES)}")
    if sign not in SIGNS:
        raise UserError(f"sign={sign}: {nearest(sign, SIGNS)}")
    if how == "sum":
        maps = maps.sum(1)
    elif how == "mean":
        maps = maps.mean(1)
    elif how == "sum_abs":
        maps = maps.abs().sum(1)
    elif how == "max_abs":
        maps = maps.abs().amax(1)
    if sign == "absolute":
        return maps.abs()
    return maps.clamp(min=0) if sign == "positive" else maps


def descending_order(values: torch.Tensor, generators: Sequence[torch.Generator]) -> torch.Tensor:
    """Feature indices [B,N] from most to least relevant; equal values in the sample's own random order.

    values [B,N]; generators: one per sample, CPU. The least-relevant-first order is the same one reversed, so a
    constant map ranks like a random one.
    """
    shuffles = torch.stack([torch.randperm(values.shape[1], generator=g) for g in generators]).to(values.device)
    shuffled = values.gather(1, shuffles) + 0.0  # -0.0 becomes 0.0: a radix sort would tell them apart
    return shuffles.gather(1, shuffled.argsort(dim=1, descending=True, stable=True))


def ranks(order: torch.Tensor) -> torch.Tensor:
    """The place of each feature in an order [B,N]: 0 for the first. The inverse permutation."""
    places = torch.arange(order.shape[1], device=order.device).expand_as(order)
    return torch.empty_like(order).scatter_(1, order, places)


def most_relevant(values: torch.Tensor, counts: torch.Tensor, generators: Sequence[torch.Generator]) -> torch.Tensor:
    """The counts[b] most relevant features of each sample, ties as above: values [B,N], counts [B] -> bool [B,N]."""
    return ranks(descending_order(values, generators)) < counts[:, None]


def mid_ranks(values: torch.Tensor) -> torch.Tensor:
    """The rank of each value of [B,N] in its row, 1 for the smallest; equal values share their mean rank. float64."""
    ordered = values.sort(dim=1).values
    below = torch.searchsorted(ordered, values)
    return (below + torch.searchsorted(ordered, values, right=True) + 1).double() / 2


def tile_grid(height: int, width: int, tile: int) -> tuple[int, int]:
    """How many tiles of side `tile` cover an image, down and across; those at the far edges may be partial."""
    return -(-height // tile), -(-width // tile)


def tile_means(maps: torch.Tensor, tile: int) -> torch.Tensor:
    """Maps [B,H,W] -> the mean of each tile [B,h,w], partial edge tiles over the pixels that they have.

    Full tiles order by their mean as by their sum; the mean makes partial tiles comparable with them. It is taken in
    double precision, where a constant map's partial and full tiles are exactly equal, so that they stay ties.
    """
    return functional.avg_pool2d(maps[:, None].double(), tile, ceil_mode=True)[:, 0].to(maps.dtype)


def places(maps: torch.Tensor, generators: Sequence[torch.Generator], tile: int = 1) -> torch.Tensor:
    """The place of each pixel's tile in its sample's order, most relevant first: maps [B,H,W] -> int32 [B,H,W].

    Place 0 is the most relevant tile; all pixels of a tile share one place; equal tiles come in the sample's own
    random order. Least relevant first is the same order from its end.
    """
    means = maps if tile == 1 else tile_means(maps, tile)
    order = descending_order(means.flatten(1), generators)
    of_tile = ranks(order).to(torch.int32).view_as(means)
    of_pixel = of_tile.repeat_interleave(tile, dim=1).repeat_interleave(tile, dim=2)
    return of_pixel[:, : maps.shape[1], : maps.shape[2]].contiguous()

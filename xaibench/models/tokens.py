"""Where the patches of an image are in the sequence of tokens that a transformer makes of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

# Tokens that are no patch: of the class, of distillation, and registers (Darcet et al. 2024 take up to eight).
MOST_OTHERS = 9


@dataclass(frozen=True)
class Grid:
    """`others` tokens of no place, such as the class token, and behind them height x width patches, row by row."""

    others: int
    height: int
    width: int

    def maps(self, tokens: torch.Tensor) -> torch.Tensor:
        """Of tokens [B,n,D] those of patches as feature maps [B,D,height,width]."""
        return tokens[:, self.others :].transpose(1, 2).unflatten(2, (self.height, self.width))

    def replaced(self, tokens: torch.Tensor, maps: torch.Tensor) -> torch.Tensor:
        """Tokens [B,n,D] with these maps [B,D,height,width] in place of the patches' own."""
        return torch.cat([tokens[:, : self.others], maps.flatten(2).transpose(1, 2)], 1)


def token_grid(count: int, size: Sequence[int]) -> Grid | None:
    """The grid of `count` tokens of an image of size (H,W): by the smallest square patches of which there are not more.

    None where that leaves more tokens aside than networks have of them, so that these are no patches of the image.
    """
    height, width = size
    for patch in range(1, min(height, width) + 1):
        rows, columns = height // patch, width // patch
        if rows * columns <= count:
            others = count - rows * columns
            return Grid(others, rows, columns) if others <= MOST_OTHERS else None
    return None


def feature_maps(values: Any, size: Sequence[int]) -> torch.Tensor:
    """What a layer returns, as feature maps [B,c,h,w]: such as they are, and of tokens [B,n,c] of an image of size
    (H,W) the patches'. Raises ValueError, which says what it is, for anything else."""
    if isinstance(values, torch.Tensor):
        if values.dim() == 4:
            return values
        if values.dim() == 3 and (grid := token_grid(values.shape[1], size)):
            return grid.maps(values)
    raise ValueError(list(values.shape) if isinstance(values, torch.Tensor) else type(values).__name__)

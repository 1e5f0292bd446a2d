"""Draw the linear regions of networks of two features whose biases are not positive, and free (Sixt 2022, chapter 5).

    python scripts/linear_regions.py --out linear_regions.png

Three layers, 2 to 10 to 10 to 1 with ReLUs between. The regions are found exactly: a square is cut along the line of
every neuron of the first layer, and each piece along those of the second, which within a piece are straight too. Both
networks have the same weights; the biases of one are minus the sizes of the other's. A colour is the direction of the
gradient, paler for a smaller one, white for none: there a map by gradients is 0. Neighbours may have one gradient.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from torch import nn

from xaibench.report.colours import INK

# Pieces of a smaller share of the square are rounding.
LEAST = 1e-12


@dataclass(frozen=True)
class Region:
    """A convex piece of the plane on which a network is one affine function.

    corners [k,2]. pattern: of each ReLU, layer by layer, whether it is on. gradient [2]: of the output.
    """

    corners: np.ndarray
    pattern: tuple[bool, ...]
    gradient: np.ndarray

    @property
    def area(self) -> float:
        """By the shoelace formula."""
        return area(self.corners)


def network(positive: bool, hidden: Sequence[int] = (10, 10), seed: int = 0) -> nn.Sequential:
    """Two features, hidden ReLUs, one output, as PyTorch draws them. positive: whether biases may be positive; else
    they are minus their sizes."""
    torch.manual_seed(seed)
    parts: list[nn.Module] = []
    for inputs, outputs in zip((2, *hidden), hidden):
        parts += [nn.Linear(inputs, outputs), nn.ReLU()]
    module = nn.Sequential(*parts, nn.Linear(hidden[-1], 1)).double()
    if not positive:
        with torch.no_grad():
            for layer in module[::2]:
                layer.bias.copy_(-layer.bias.abs())
    return module


def regions(module: nn.Sequential, side: float) -> list[Region]:
    """The linear regions of linear layers with ReLUs between them in the square from -side to side."""
    *hidden, last = [
        (layer.weight.detach().numpy(), layer.bias.detach().numpy()) for layer in module if isinstance(layer, nn.Linear)
    ]
    square = np.array([[-side, -side], [side, -side], [side, side], [-side, side]], dtype=float)
    least = LEAST * area(square)
    # What a piece makes of x: slope @ x + offset goes into the next layer.
    pieces: list[tuple[np.ndarray, tuple[bool, ...], np.ndarray, np.ndarray]] = [(square, (), np.eye(2), np.zeros(2))]
    for weight, bias in hidden:
        cut = []
        for corners, before, slope, offset in pieces:
            lines, shifts = weight @ slope, weight @ offset + bias
            parts = [(corners, ())]
            for line, shift in zip(lines, shifts):
                parts = [
                    (half, (*pattern, on))
                    for part, pattern in parts
                    for on in (True, False)
                    if area(half := clipped(part, line if on else -line, shift if on else -shift)) > least
                ]
            for part, pattern in parts:
                on = np.array(pattern)
                cut.append((part, before + pattern, lines * on[:, None], shifts * on))
        pieces = cut
    return [Region(corners, pattern, (last[0] @ slope)[0]) for corners, pattern, slope, _ in pieces]


def clipped(corners: np.ndarray, line: np.ndarray, shift: float) -> np.ndarray:
    """What of a convex polygon [k,2] lies where line @ x + shift >= 0 (Sutherland and Hodgman 1974): [m,2]."""
    heights, found = corners @ line + shift, []
    for start, end, low, high in zip(corners, np.roll(corners, -1, 0), heights, np.roll(heights, -1)):
        if low >= 0:
            found.append(start)
        if (low >= 0) != (high >= 0):
            found.append(start + low / (low - high) * (end - start))
    return np.array(found).reshape(-1, 2)


def area(corners: np.ndarray) -> float:
    """Of a polygon [k,2] whose corners go around counterclockwise."""
    (x, y), (u, v) = corners.T, np.roll(corners, -1, 0).T
    return float((x * v - u * y).sum() / 2)


def gradients(found: Sequence[Region]) -> int:
    """How many different gradients regions have, to the fourth decimal."""
    return len({tuple(np.round(region.gradient, 4) + 0.0) for region in found})


def draw(side: float, seed: int) -> Figure:
    """The regions of both networks side by side, on one scale of gradients."""
    both = {
        "biases not positive": regions(network(False, seed=seed), side),
        "biases free": regions(network(True, seed=seed), side),
    }
    most = max(np.linalg.norm(region.gradient) for found in both.values() for region in found)
    figure = Figure(figsize=(8.4, 4.5), layout="constrained")
    for axes, (name, found) in zip(figure.subplots(1, 2), both.items()):
        slopes = np.array([region.gradient for region in found])
        hue = np.arctan2(slopes[:, 1], slopes[:, 0]) / (2 * np.pi) % 1
        colours = np.stack([hue, np.linalg.norm(slopes, axis=1) / most, np.ones(len(found))], 1)
        shades = matplotlib.colors.hsv_to_rgb(colours)
        axes.add_collection(
            PolyCollection([r.corners for r in found], facecolors=shades, edgecolors=INK, linewidths=0.3)
        )
        axes.plot(0, 0, "+", color=INK)
        axes.set(xlim=(-side, side), ylim=(-side, side), aspect="equal", xlabel="x1", ylabel="x2")
        axes.set_title(f"{name}: {len(found)} regions, {gradients(found)} gradients", fontsize=9)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=float, default=5.0, help="of half the square")
    parser.add_argument("--seed", type=int, default=0, help="of the weights")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.png")
    options = parser.parse_args()
    draw(options.side, options.seed).savefig(options.out, dpi=90)


if __name__ == "__main__":
    main()

"""The grids of the study (Sixt 2022, section 6.4): images by their logit, along counterfactuals, and by concept.

Ten rows of five pictures each there, made by one function from pictures and what is known of them. The report draws
those that the cache has the maps of: a run with method counterfactual, or concept.
"""

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image
from scipy import ndimage

from ..errors import XaibenchError
from ..models.preprocessing import Preprocessing
from ..scores.leaderboard import Cell
from ..store.cache import Artefact
from . import gallery
from .colours import INK, MUTED, painted
from .sections import Drawing

METHODS = ("counterfactual", "concept")
ROWS, COLUMNS = 10, 5
# Images among which a concept's exemplars are found.
MOST = 500
REGION = (255, 210, 0)


@dataclass(frozen=True)
class Grid:
    """Pictures, uint8 [R,C,H,W,3], with the words beside each row and above each column ('' for none), and below each
    picture where there are any."""

    tiles: np.ndarray
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    below: tuple[tuple[str, ...], ...] = ()


def grid(
    pixels: np.ndarray, values: Mapping[str, np.ndarray], condition: str, rows: int = ROWS, columns: int = COLUMNS
) -> Grid:
    """The grid of a condition from pictures, uint8 [n,H,W,3].

    condition: `base`, values one entry, the answers f [n]: every column has the pictures of a fifth of them, from the
        smallest f to the largest. `counterfactual`, values the changes [n,H,W,3] of pixels from 0 to 1, by what the
        logit is brought to: every row is a picture, then the picture with each change, clipped, and the last change.
        `concept`, values maps [n,H,W] by concept: of each concept a row of the pictures with the largest sums and one
        of those with the smallest, and a line around the half of the map's range that is meant.
    Rows that there are no pictures for are left out.
    """
    if condition == "base":
        (answers,) = values.values()
        return _by_answer(pixels, answers, rows, columns)
    if condition == "counterfactual":
        return _by_change(pixels[:rows], {name: change[:rows] for name, change in values.items()})
    return _by_concept(pixels, dict(list(values.items())[: rows // 2]), columns)


def _by_answer(pixels: np.ndarray, answers: np.ndarray, rows: int, columns: int) -> Grid:
    bins = [part[:rows] for part in np.array_split(np.argsort(answers, kind="stable"), columns)]
    full = min(map(len, bins))
    tiles = np.stack([pixels[part[:full]] for part in bins], 1)
    return Grid(tiles, ("",) * full, tuple(f"{answers[part[:full]].mean():.1f}" for part in bins))


def _by_change(pixels: np.ndarray, changes: Mapping[str, np.ndarray]) -> Grid:
    last, change = list(changes.items())[-1]
    difference = np.stack([painted(one.sum(-1), True) for one in change])
    shown = [pixels, *(_changed(pixels, one) for one in changes.values()), difference]
    return Grid(np.stack(shown, 1), ("",) * len(pixels), ("image", *changes, f"change, {last}"))


def _by_concept(pixels: np.ndarray, concepts: Mapping[str, np.ndarray], columns: int) -> Grid:
    tiles, labels = [], []
    for name, maps in concepts.items():
        order = np.argsort(maps.sum((1, 2)), kind="stable")
        for sign, chosen in ((1, order[::-1][:columns]), (-1, order[:columns])):
            tiles.append(np.stack([outlined(pixels[at], _upper(sign * maps[at])) for at in chosen]))
            labels.append(f"{name} {'+' if sign > 0 else '-'}")
    return Grid(np.stack(tiles), tuple(labels), ("",) * len(tiles[0]))


def drawings(cells: Sequence[Cell], cache: Path) -> Iterator[Drawing]:
    """The grids of which the cache has the maps, of the cells of one model and data set."""
    for method in METHODS:
        found, _ = gallery.cached([cell for cell in cells if cell.card["method"] == method], cache)
        if found:
            try:
                yield _drawing(method, [(cell, maps) for cell, _, maps in found])
            except (gallery.Absent, XaibenchError):
                continue  # the gallery says what is missing


def _drawing(method: str, found: Sequence[tuple[Cell, Artefact]]) -> Drawing:
    shared = set.intersection(*(set(maps.samples()) for _, maps in found))
    most = ROWS if method == "counterfactual" else MOST
    samples = [sample for sample in found[0][1].samples() if sample in shared][:most]
    if not samples:
        raise gallery.Absent("No image has maps of all.")
    rows = [maps.read(samples).arrays for _, maps in found]
    pictures = gallery.pictured(found[0][0], found[0][1], samples, rows[0])
    pixels = np.stack([picture.pixels for picture in pictures])
    named = {_words(method, cell): arrays["maps"] for (cell, _), arrays in zip(found, rows)}
    if method == "concept":
        values = {name: maps.sum(1) for name, maps in named.items()}
        title, caption = "Concepts", "Images in which a concept is most (+) and least (-), with a line around where."
    else:
        preprocessing = Preprocessing(**found[0][1].spec["model"]["preprocessing"])
        std = np.array(preprocessing.std or (1.0,), dtype=np.float32)[:, None, None]
        values = {
            name: np.broadcast_to((maps * std).transpose(0, 2, 3, 1), pixels.shape) for name, maps in named.items()
        }
        title = "Counterfactuals"
        caption = (
            "An image, what the network would have to see for other logits, and the last change. Grey: out of reach."
        )
    return Drawing("study", method, title, caption, draw(grid(pixels, values, method)))


def _words(method: str, cell: Cell) -> str:
    """What tells the maps of a cell from those of the others of its method."""
    config = cell.card["config"]["method"]
    if method == "counterfactual":
        return str(config["goal"])
    return f"{config['factorisation']} {config['component']}"


def _upper(values: np.ndarray) -> np.ndarray:
    """Where a map is in the upper half of its range."""
    return values >= (values.max() + values.min()) / 2


def lines(words: object) -> str:
    """Words in lines that have room beside a row of a grid, or above a column."""
    return "\n".join(textwrap.wrap(str(words).replace("_", " ").replace("=", " = "), 14)[:4])


def draw(found: Grid, side: int = 80) -> Figure:
    """A grid as a figure; side: of a picture, in pixels at 100 per inch."""
    rows, columns = found.tiles.shape[:2]
    gap, margin = 4, 90 if any(found.rows) else 0
    step = side + gap + (12 if found.below else 0)
    # Much enlarged, pixels stay squares.
    how = Image.Resampling.NEAREST if side >= 2 * found.tiles.shape[2] else Image.Resampling.BICUBIC
    sheet = np.full((rows * step, columns * (side + gap), 3), 255, dtype=np.uint8)
    for row in range(rows):
        for column in range(columns):
            tile = np.asarray(Image.fromarray(found.tiles[row, column]).resize((side, side), how))
            top, left = row * step, column * (side + gap)
            sheet[top : top + side, left : left + side] = tile
    above = 6 + 12 * max(words.count("\n") + 1 for words in found.columns) if any(found.columns) else 0
    size = (sheet.shape[1] + margin, sheet.shape[0] + above)
    figure = Figure(figsize=(size[0] / 100, size[1] / 100), dpi=100)
    axes = figure.add_axes((margin / size[0], 0, 1 - margin / size[0], 1 - above / size[1]))
    axes.imshow(sheet, aspect="auto")
    axes.axis("off")
    for row, words in enumerate(found.rows):
        axes.text(-6, row * step + side / 2, words, fontsize=7, color=INK, ha="right", va="center")
    for column, words in enumerate(found.columns):
        axes.text(column * (side + gap), -4, words, fontsize=7, color=INK, va="bottom")
    for row, said in enumerate(found.below):
        for column, words in enumerate(said):
            axes.text(column * (side + gap), row * step + side + 2, words, fontsize=6, color=MUTED, va="top")
    return figure


def _changed(pixels: np.ndarray, change: np.ndarray) -> np.ndarray:
    """Pictures uint8 [n,H,W,3] with a change of pixels from 0 to 1, clipped; grey where it is not finite."""
    shown = np.clip(pixels / 255 + change, 0, 1)
    return (np.where(np.isfinite(shown), shown, 0.5) * 255).round().astype(np.uint8)


def outlined(pixels: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """A picture [H,W,3] with a line around a region, bool [H,W]."""
    line = inside & ~ndimage.binary_erosion(inside)
    shown = pixels.copy()
    shown[line] = REGION
    return shown

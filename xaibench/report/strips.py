"""Maps while the network is made random: of each method the trained network's, then those of step after step.

As in the figures of Adebayo et al. 2018, Nuzzo 2020 and Loreth 2023 (figure 4.1). Nothing is computed: a run of
`parameter_randomization` leaves the maps of every random network in the cache.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from ..errors import XaibenchError
from ..metrics.ranking import collapse
from ..models.randomise import TO, Randomisation, is_randomised
from ..scores.leaderboard import Cell, comparable
from ..scores.rank import Contestant
from ..store.cache import Artefact
from . import gallery, sections
from .colours import is_signed, painted
from .sections import Drawing
from .study import Grid, draw, lines
from .tables import Board, named

# What is random at a step, by the mode of the randomisation.
SAID = {
    "cascade": "every layer from the top down to the one above the column is random",
    "independent": "the block above the column alone is random",
    "bottom_up": "every layer from the bottom up to the one above the column is random",
}


def strip(image: np.ndarray, maps: Mapping[str, np.ndarray], steps: Sequence[str], positive: bool = False) -> Grid:
    """A row per method: its map by the trained network, then by each of the random ones; first the image.

    image: uint8 [H,W,3]. maps: of each method float32 [1 + steps,H,W]. steps: the name of each. positive: negative
    values are shown as 0.
    """
    beside = [image, *[np.full_like(image, 255)] * (len(maps) - 1)]
    rows = []
    for first, values in zip(beside, maps.values()):
        shown = np.maximum(values, 0) if positive else values
        rows.append(np.stack([first, *(painted(one, is_signed(shown)) for one in shown)]))
    return Grid(np.stack(rows), tuple(maps), ("image", "trained", *steps))


def drawings(board: Board, cache: Path) -> Iterator[Drawing]:
    """The strips of the first image, for each setting of the randomisation whose maps the cache has: of signed maps,
    and again of their positive part."""
    for cells in comparable([cell for cell in board.cells if _steps(cell)]):
        try:
            yield from _of_setting(sections.best_first(board, cells), cache)
        except (gallery.Absent, XaibenchError):
            continue  # figures are made where there is something to draw


def _steps(cell: Cell) -> list[tuple[Randomisation, str]]:
    """The random networks of the first seed and the keys of the maps by them, in the order of the steps."""
    others = [(Randomisation.parse(state), key) for state, key in cell.card.get("others", ()) if is_randomised(state)]
    return [(state, key) for state, key in others if state.seed == others[0][0].seed]


def _of_setting(cells: Sequence[Cell], cache: Path) -> Iterator[Drawing]:
    found = [(cell, kept) for cell in cells if (kept := _kept(cell, cache))]
    shared = set.intersection(*(set(artefact.samples()) for _, kept in found for artefact in kept)) if found else set()
    if not shared:
        return
    cell, (trained, *_) = found[0]
    sample = next(sample for sample in trained.samples() if sample in shared)
    (picture,) = gallery.pictured(cell, trained, [sample], trained.read([sample]).arrays)
    maps = {
        lines(Contestant.of(cell.card)): np.concatenate([_map(artefact, sample, cell) for artefact in kept])
        for cell, kept in found
    }
    states = [state for state, _ in _steps(cell)]
    name = named(cell.card["metric"], cell.card["metric_variant"])
    caption = (
        f"{name}, image {sample}, explained: {picture.explained}. From left to right {SAID[states[0].mode]} "
        f"(seed {states[0].seed}). Each map has a scale of its own"
    )
    steps = [lines(state.block.replace(TO, " to ")) for state in states]
    title = f"Maps of random networks under {name}"
    drawn = draw(strip(picture.pixels, maps, steps))
    yield Drawing("strips", f"strips-{name}", title, f"{caption}.", drawn)
    signed = {label: values for label, values in maps.items() if is_signed(values)}
    if signed:
        drawn = draw(strip(picture.pixels, signed, steps, positive=True))
        caption += "; here positive values alone, of the methods that have others."
        yield Drawing("strips", f"strips-{name}-positive", f"{title}, positive values", caption, drawn)


def _kept(cell: Cell, cache: Path) -> list[Artefact]:
    """The maps by the trained network and by those of each step; none if the cache lacks some."""
    names, keys = (*cell.folders, cell.card["method"]), [key for _, key in _steps(cell)]
    found = [Artefact.opened(cache, "maps", names, key) for key in (cell.card["keys"]["map_key"], *keys)]
    return [artefact for artefact in found if artefact] if all(found) else []


def _map(artefact: Artefact, sample: int, cell: Cell) -> np.ndarray:
    """The map [1,H,W] of a sample as the metric read it but for the sign: those of random networks are kept so."""
    maps = torch.from_numpy(artefact.read([sample]).arrays["maps"])
    return (collapse(maps, cell.card["collapse"]) if maps.shape[1] > 1 else maps[:, 0]).numpy()

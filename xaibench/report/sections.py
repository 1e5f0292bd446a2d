"""The figures of a board: what is drawn, in which section, and what is said below it."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure

from ..scores import paired
from ..scores.leaderboard import Cell, comparable
from ..scores.rank import Contestant, Overall
from . import figures
from .tables import Board, Glance, named, records

SECTIONS = {
    "ranks": "Ranks and their stability",
    "curves": "Curves",
    "gallery": "Inputs and maps",
    "strips": "Maps of random networks",
    "study": "Counterfactuals and concepts",
    "units": "What units detect",
    "agreement": "Do the metrics agree?",
    "cost": "Cost and quality",
}
NOTES = {
    "ranks": (
        "Filled: methods. Hollow: controls, which know nothing of the network, and the ground truth. "
        "Bands are 95 % intervals of the rank when samples, or metrics, are resampled.",
    ),
    "curves": (
        "Means over samples (or over repeats, where networks are retrained) with 95 % bands; "
        "dashed, the control random under the same metric; upright bars, where there are any, one deviation over the "
        "seeds on either side. The best method comes first.",
    ),
    "gallery": (),
    "strips": (
        "A map that stays as it is while the network forgets does not show what the network has learned. How alike the "
        "maps are, and how alike maps are that have nothing in common, is in the rows and curves.",
    ),
    "study": (
        "What the network itself would change for another answer, and what goes with its answer: one shortest step in "
        "its own latent, and directions of a layer. Neither is a ground truth.",
    ),
    "units": (
        "Units of a layer are compared with concepts of the data set. How many are detectors says something beside the "
        "two controls alone: random weights, and the concepts of other images.",
    ),
    "agreement": (
        "Spearman's correlation of the ranks that two metrics give the same methods, the ground truth left out. "
        "Where it is near 0 or negative, one number for all metrics would hide a disagreement.",
    ),
    "cost": (
        "Passes are those of the definition, forwards and backwards; seconds are what this run took per map. "
        "Up is better, left is cheaper.",
    ),
}


@dataclass(frozen=True)
class Drawing:
    """A figure and its place: section, file name, title for those who cannot see it, and caption."""

    section: str
    name: str
    title: str
    caption: str
    figure: Figure


def drawings(board: Board, glance: Glance) -> Iterator[Drawing]:
    """Every figure of a board that its data allow, one after the other."""
    if board.overall is not None:
        yield from _overall(board.overall)
    for found in board.comparisons:
        if found.headline:
            caption = f"{found.name}, {found.n} {'repeats' if found.kind == 'repeats' else 'samples'}. Methods beside "
            caption += "one bar at the right cannot be told apart."
            title = f"Ranks under {found.name}, with intervals"
            yield Drawing("ranks", f"ranks-{found.name}", title, caption, figures.stability(found))
    for cells in comparable(board.cells):
        if any(cell.curves for cell in cells):
            name = named(cells[0].card["metric"], cells[0].card["metric_variant"])
            ordered = best_first(board, cells)
            count = f"{cells[0].card['n']} {'repeats' if cells[0].columns.index.name == 'repeat' else 'samples'}"
            yield Drawing("curves", f"curves-{name}", f"Curves of {name}", f"{name}, {count}.", figures.curves(ordered))
    yield from _agreement(board, glance)
    yield from _cost(board, glance)


def _overall(view: Overall) -> Iterator[Drawing]:
    metrics = ", ".join(found.name for found in view.comparisons)
    caption = f"Mean rank over {len(view.comparisons)} metrics ({metrics}); strokes are the ranks under each of them."
    if view.left_out or view.thin:
        missing = [*map(str, view.left_out), *(found.name for found in view.thin)]
        caption += f" Left out, since not all of these are ranked by all: {', '.join(missing)}."
    yield Drawing("ranks", "mean-ranks", "Mean rank of each method over the metrics", caption, figures.mean_ranks(view))
    if len(view.contestants) > 2:
        caption = (
            "Critical-difference diagram over the metrics (Demšar 2006): bars join methods whose mean ranks are closer "
            "than Nemenyi's critical difference."
        )
        yield Drawing(
            "ranks", "critical-difference", "Critical-difference diagram", caption, figures.critical_difference(view)
        )


def best_first(board: Board, cells: list[Cell]) -> list[Cell]:
    """Comparable cells by their rank on the board; those without one last."""
    rows = board.frame[board.frame["headline"] & (board.frame["sample_key"] == cells[0].card["keys"]["sample_key"])]
    ranks = {
        (row["method"], row["method_variant"]): row["rank"]
        for row in rows[rows["metric"] == cells[0].card["metric"]].to_dict("records")
    }

    def place(cell: Cell) -> float:
        rank = ranks.get((cell.card["method"], cell.card["method_variant"]), np.nan)
        return np.inf if np.isnan(rank) else rank

    return sorted(cells, key=place)


def _agreement(board: Board, glance: Glance) -> Iterator[Drawing]:
    if board.overall is not None:
        names, correlations = [found.name for found in board.overall.comparisons], board.overall.correlations
        count = len(board.overall.contestants)
    else:
        names = [glance.columns[n]["name"] for n in glance.wide]
        ranked = [
            [row["cells"][n]["rank"] for n in glance.wide]
            for row in glance.rows
            if row["method"] in glance.means and not row["method"].is_oracle
        ]
        if len(ranked) < 3 or len(names) < 2:
            return
        correlations, count = paired.correlations(paired.ranks(np.array(ranked, dtype=float).T)), len(ranked)
    if count < 3:
        return
    title = "Rank correlations between metrics"
    yield Drawing("agreement", "agreement", title, f"Over {count} methods.", figures.agreement(names, correlations))


def _cost(board: Board, glance: Glance) -> Iterator[Drawing]:
    if len(glance.means) < 2:
        return
    rows = records(board.frame)
    costs = {"passes per map": {Contestant.of(row): float(row["forwards"] + row["backwards"]) for row in rows}}
    seconds = {
        Contestant.of(cell.card): cell.card["seconds"]["maps"] / cell.card["n"]
        for cell in board.cells
        if cell.columns.index.name == "sample" and cell.card["n"] and "maps" in cell.card["seconds"]
    }
    if seconds:
        costs["seconds per map"] = seconds
    figure = figures.cost(costs, glance.means, "mean rank")
    yield Drawing("cost", "cost", "Cost of methods against their rank", "", figure)

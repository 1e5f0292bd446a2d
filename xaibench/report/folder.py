"""One self-contained page of results, with its figures as PNG and SVG beside it.

    score files -> leaderboard.Cell -> comparison -> tables, figures, gallery -> page

Nothing is computed but statistics: maps and answers come from the cache, and what it lacks is said on the page.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from ..errors import UserError
from ..scores import leaderboard, rank
from ..scores.leaderboard import Cell
from ..store.files import write_atomically
from . import page
from .tables import Board, boards, boards_of_file

PAGE = "index.html"


def write(
    results: Path, cells: Sequence[Cell], cache: Path, out: Path, *, filters: Mapping[str, Sequence[str]], images: int
) -> Path:
    """The report of the score files below `results`, in the folder `out`; returns the page.

    filters: column -> wanted values. images: how many the gallery shows. Raises UserError where there are no results,
    and for a filter that nothing passes.
    """
    if not cells:
        raise UserError(f"{results}: there are no results yet; `xaibench run` makes some")
    cells = leaderboard.told_apart(leaderboard.select_cells(cells, filters))
    compared = rank.comparisons(cells)
    found = boards(cells, compared, rank.overall(compared))
    return _write(found, out, source=str(results), cache=cache, images=images)


def write_of_file(file: Path, out: Path, filters: Mapping[str, Sequence[str]]) -> Path:
    """The report of a leaderboard.csv alone: its tables, what the metrics agree on, and what methods cost."""
    frame = leaderboard.select(leaderboard.read_csv(file), filters)
    return _write(boards_of_file(leaderboard.labels_told_apart(frame)), out, source=str(file), cache=None, images=0)


def _write(found: Sequence[Board], out: Path, *, source: str, cache: Path | None, images: int) -> Path:
    text = page.render(found, out, source=source, cache=cache, images=images)
    write_atomically(out / PAGE, text)
    return out / PAGE

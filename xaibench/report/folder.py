"""One self-contained page of results, with its figures as PNG and SVG beside it.

    score files -> leaderboard.Cell -> comparison -> tables, figures, gallery -> page

Nothing is computed but statistics: maps and answers come from the cache, and what it lacks is said on the page.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..errors import UserError
from ..scores import leaderboard, rank
from ..scores.cells import Summary
from ..scores.summary import read_again
from ..store.files import write_atomically
from . import page, terminal
from .tables import Board, boards, boards_of_file

PAGE = "index.html"
# A page of more cells than this takes minutes to draw, and more than a browser likes.
MOST = 1000


def write(
    results: Path,
    summaries: Sequence[Summary],
    cache: Path,
    out: Path,
    *,
    filters: Mapping[str, Sequence[str]],
    images: int,
) -> Path:
    """The report of the score files below `results`, in the folder `out`; returns the page.

    filters: column -> wanted values. images: how many the gallery shows. Raises UserError where there are no results,
    for a filter that nothing passes, and for more than MOST cells.
    """
    if not summaries:
        raise UserError(f"{results}: there are no results yet; `xaibench run` makes some")
    asked = leaderboard.told_apart(leaderboard.select_cells(summaries, filters))
    if len(asked) > MOST:
        raise UserError(_too_many(asked))
    cells = [read_again(cell) for cell in terminal.tracked("cells read for the page")(asked)]
    compared = rank.comparisons(cells)
    shown = boards(cells, compared, rank.overall(compared))
    return _write(shown, out, source=str(results), cache=cache, images=images)


def _too_many(cells: Sequence[Summary]) -> str:
    """What to say where a page would be of too many cells."""
    boards = Counter((cell.card["model"], cell.card["dataset"]) for cell in cells)
    (model, dataset), count = boards.most_common(1)[0]
    return (
        f"{len(cells)} cells of {len(boards)} models and data sets: a page shows up to {MOST}\n"
        f"ask for some, such as --model {model} --dataset {dataset} ({count} cells)"
    )


def write_of_file(file: Path, out: Path, filters: Mapping[str, Sequence[str]]) -> Path:
    """The report of a leaderboard.csv alone: its tables, what the metrics agree on, and what methods cost."""
    frame = leaderboard.select(leaderboard.read_csv(file), filters)
    return _write(boards_of_file(leaderboard.labels_told_apart(frame)), out, source=str(file), cache=None, images=0)


def _write(found: Sequence[Board], out: Path, *, source: str, cache: Path | None, images: int) -> Path:
    text = page.render(found, out, source=source, cache=cache, images=images)
    write_atomically(out / PAGE, text)
    return out / PAGE

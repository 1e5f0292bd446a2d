"""Draw the maps of many methods side by side, from the cache: no map is computed.

    xaibench run experiment=methods
    python scripts/gallery.py --images 6 --out gallery.png

All methods that the score files name are shown, cheap ones first, or those of --methods in that order; colours, scales
and captions are those of `xaibench report`.
"""

import argparse
from pathlib import Path

from PIL import Image

from xaibench.report import gallery
from xaibench.scores import leaderboard
from xaibench.scores.leaderboard import Cell

# In the file, which a palette makes a third as large: noise hardly compresses.
COLOURS = 256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=Path("results"))
    parser.add_argument("--cache", type=Path, default=Path("cache"))
    parser.add_argument("--methods", nargs="+", metavar="METHOD", help="by name, or 'name parameter=value'")
    parser.add_argument("--images", type=int, default=6)
    parser.add_argument("--columns", type=int, default=11, help="most maps side by side")
    parser.add_argument("--side", type=int, default=96, help="of an image in the figure, in pixels")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.png")
    options = parser.parse_args()
    cells = chosen(leaderboard.read_cells(options.results), options.methods)
    found = gallery.collect(cells, options.cache, options.images)
    if not found.pictures:
        raise SystemExit("\n".join(found.missing))
    gallery.draw(found, options.columns, options.side).savefig(options.out)
    with Image.open(options.out) as drawn:
        drawn.convert("RGB").quantize(COLOURS).save(options.out, optimize=True)


def chosen(cells: list[Cell], methods: list[str] | None) -> list[Cell]:
    """The cells of these methods in their order; without names all, cheap methods first."""
    if methods is None:
        return sorted(cells, key=lambda cell: (sum(cell.card["method_cost"]), title(cell)))
    return [cell for method in methods for cell in cells if title(cell) == method]


def title(cell: Cell) -> str:
    """A method's name and overrides, as --methods takes it."""
    return " ".join(filter(None, (cell.card["method"], cell.card["method_variant"])))


if __name__ == "__main__":
    main()

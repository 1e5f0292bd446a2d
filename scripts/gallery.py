"""Draw the maps of many methods side by side, from the cache: no map is computed.

    xaibench run experiment=methods
    python scripts/gallery.py --images 6 --out gallery.png

All methods that the score files name are shown, cheap ones first, or those of --methods in that order; colours, scales
and captions are those of `xaibench report`. With --grid, maps over options of their methods, the last of them across,
and below each what its darkest colour stands for:

    xaibench run -m method=iba method.layer=bottleneck_early,bottleneck,bottleneck_late method.beta=0.1,1,10,100 \\
        dataset.limit=2
    python scripts/gallery.py --methods iba --images 1 --out depth_beta.png \\
        --grid layer=bottleneck_early,bottleneck,bottleneck_late beta=0.1,1,10,100
"""

import argparse
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from xaibench.report import gallery, study
from xaibench.report.colours import painted, scale_of
from xaibench.scores import leaderboard
from xaibench.scores.leaderboard import Cell

# In the file, which a palette makes a third as large: noise hardly compresses.
COLOURS = 256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=Path("results"))
    parser.add_argument("--cache", type=Path, default=Path("cache"))
    parser.add_argument("--methods", nargs="+", metavar="METHOD", help="by name, or 'name parameter=value'")
    parser.add_argument("--grid", nargs="+", metavar="OPTION=VALUES", help="the last goes across, others down")
    parser.add_argument("--images", type=int, default=6)
    parser.add_argument("--columns", type=int, default=11, help="most maps side by side")
    parser.add_argument("--side", type=int, default=96, help="of an image in the figure, in pixels")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.png")
    options = parser.parse_args()
    cells = leaderboard.read_cells(options.results)
    if options.grid:
        if not options.methods:
            parser.error("--grid asks for --methods")
        found = grid(cells, options.cache, options.methods, options.grid, options.images)
        figure = study.draw(found, options.side)
    else:
        pictures = shown(chosen(cells, options.methods), options.cache, options.images)
        figure = gallery.draw(pictures, options.columns, options.side)
    figure.savefig(options.out)
    with Image.open(options.out) as drawn:
        drawn.convert("RGB").quantize(COLOURS).save(options.out, optimize=True)


def shown(cells: Sequence[Cell], cache: Path, images: int) -> gallery.Gallery:
    """The pictures and maps of these cells; ends the program where there is none."""
    found = gallery.collect(cells, cache, images)
    if not found.pictures:
        raise SystemExit("\n".join(found.missing))
    return found


def grid(cells: Sequence[Cell], cache: Path, methods: Sequence[str], options: Sequence[str], images: int) -> study.Grid:
    """Of every image a row for each method and value of the options but the last, a column for each value of that;
    first the image.

    methods: as `title` has them without these options. options: OPTION=VALUE,VALUE each. The maps of other values, and
    those with other parameters changed, are left out. Ends the program where some are lacking.
    """
    *down, (column, columns) = map(values, options)
    names = [*(name for name, _ in down), column]
    own = [(cell, cell.card["config"]["method"]) for cell in cells if title(cell, names) in methods]
    of = {(title(cell, names), *(config.get(name) for name in names)): cell for cell, config in own}
    rows = list(itertools.product(methods, *(listed for _, listed in down)))
    wanted = [(*row, value) for row in rows for value in columns]
    for method, *chosen in wanted:
        if (method, *chosen) not in of:
            raise SystemExit(f"no run of {method} with {', '.join(f'{n}={v}' for n, v in zip(names, chosen))}")
    found = shown([of[one] for one in wanted], cache, images)
    if found.missing:
        raise SystemExit("\n".join(found.missing))
    drawn = dict(zip(wanted, found.columns))
    tiles, beside, scales = [], [], []
    for at, picture in enumerate(found.pictures):
        for method, *chosen in rows:
            maps = [drawn[method, *chosen, value] for value in columns]
            first = picture.pixels if (method, *chosen) == rows[0] else np.full_like(picture.pixels, 255)
            tiles.append(np.stack([first, *(painted(one.maps[at], one.signed) for one in maps)]))
            said = [method] if len(methods) > 1 or not down else []
            beside.append("\n".join(map(study.lines, [*said, *(f"{n} {value}" for n, value in zip(names, chosen))])))
            scales.append(("", *(f"{scale_of(one.maps[at]):.2g}" for one in maps)))
    above = ("image", *(study.lines(f"{column} {value}") for value in columns))
    return study.Grid(np.stack(tiles), tuple(beside), above, tuple(scales))


def values(option: str) -> tuple[str, list[Any]]:
    """An option and its values, as a sweep has them: beta=0.1,1 -> "beta", [0.1, 1]."""
    name, _, listed = option.partition("=")
    return name, [yaml.safe_load(value) for value in listed.split(",")]


def chosen(cells: list[Cell], methods: list[str] | None) -> list[Cell]:
    """The cells of these methods in their order; without names all, cheap methods first."""
    if methods is None:
        return sorted(cells, key=lambda cell: (sum(cell.card["method_cost"]), title(cell)))
    return [cell for method in methods for cell in cells if title(cell) == method]


def title(cell: Cell, without: Sequence[str] = ()) -> str:
    """A method's name and overrides, as --methods takes it; without those of some parameters."""
    changed = [part for part in cell.card["method_variant"].split(",") if part.partition("=")[0] not in without]
    return " ".join(filter(None, (cell.card["method"], ",".join(changed))))


if __name__ == "__main__":
    main()

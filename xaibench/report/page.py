"""The page: what is shown where, as the template asks for it, and the files beside it."""

import base64
import io
import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2
import numpy as np
import pandas as pd
from markupsafe import Markup
from PIL import Image

from .. import __version__
from ..scores import leaderboard, statistics
from ..scores.leaderboard import Cell
from ..scores.rank import Contestant
from ..store.files import safe_name, write_atomically
from . import colours, figures, findings, gallery, sections, strips, study, tables, units
from .sections import SECTIONS, Drawing
from .tables import Board, Glance

# The longer side of an image in the page; the file beside it has all pixels.
THUMBNAIL = 224
# Below this many pixels a side, PNG keeps each pixel at little cost; above, lossy WebP.
EXACT = 128
# Small images are blown up by whole pixels to about this side in the files beside the page.
FULL = 512
# Of red, green and blue, in the lightness of a colour (Rec. 601): words stand out on theirs.
LIGHTNESS = np.array([0.299, 0.587, 0.114])
COLUMNS = (
    ("rank", "number", "1 is the best among comparable rows"),
    ("method", "", ""),
    ("board", "", "model and data set"),
    ("metric", "of-metric", ""),
    ("statistic", "", "↑ higher is better, ↓ lower, → closest to a target"),
    ("value", "number", ""),
    ("95 % interval", "", ""),
    ("group", "", "Methods that share a letter cannot be told apart"),
    ("n", "number", "samples, or repeats"),
    ("excluded", "number", "samples for which the value is undefined"),
    ("", "more", ""),
)
# What the leaderboard is narrowed down by -> what says it in a row.
CHOICES = {"model": "model", "dataset": "dataset", "metric": "metric_name", "method": "method"}


def render(boards: Sequence[Board], out: Path, *, source: str, cache: Path | None, images: int) -> str:
    """The HTML of the page; writes figures, images and CSV files into `out`. cache: None shows no gallery."""
    views = [_view(board, out, cache, images) for board in boards]
    rows = [row for board in boards for row in tables.leaderboard_rows(board)]
    cells = [cell for board in boards for cell in board.cells]
    present = {section for view in views for section in SECTIONS if view["figures"][section]}
    present |= {"gallery"} if any(view["gallery"] for view in views) else set()
    has_groups, several = any(row["group"] for row in rows), len(boards) > 1
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda name: resources.files(__package__).joinpath(name).read_text("utf-8")),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
    )
    return environment.get_template("page.html").render(
        title=findings.counted(boards) if several else boards[0].name,
        lede=findings.lede(boards),
        sections=[
            ("summary", "At a glance"),
            ("leaderboard", "Leaderboard"),
            *((section, heading) for section, heading in SECTIONS.items() if section in present),
            ("provenance", "Where the numbers come from"),
        ],
        drawn=present,
        texts=sections.NOTES,
        boards=views,
        several_boards=several,
        choices={name: list(dict.fromkeys(row[key] for row in rows)) for name, key in CHOICES.items()},
        columns=_columns(without={"board": not several, "group": not has_groups}),
        rows=rows,
        has_groups=has_groups,
        any_few=any(row["few"] and row["interval"] for row in rows),
        few=statistics.FEW,
        has_cards=bool(cells),
        csv=_csv(boards, cells, out),
        runs=_runs(cells),
        cards=cells,
        cards_json=_json({cell.card["keys"]["score_key"]: _card(cell, out) for cell in cells}),
        results=source,
        diverging=", ".join(colours.stops(colours.DIVERGING)),
        sequential=", ".join(colours.stops(colours.SEQUENTIAL)),
        version=__version__,
    )


def _view(board: Board, out: Path, cache: Path | None, images: int) -> dict[str, Any]:
    """A board for the template, after writing its figures and images."""
    slug = safe_name(f"{board.model}-{board.dataset}")
    glance = tables.glance(board)
    drawn: dict[str, list[dict[str, Any]]] = {section: [] for section in SECTIONS}
    drawings = [*sections.drawings(board, glance)]
    if cache is not None:
        drawings += strips.drawings(board, cache)
        drawings += [*study.drawings(board.cells, cache), *units.drawings(board.cells, cache)]
    for drawing in drawings:
        drawn[drawing.section].append(_drawn(drawing, slug, out))
    return {
        "name": board.name,
        "glance": glance,
        "findings": findings.findings(board, glance),
        "figures": drawn,
        "gallery": None if cache is None else _gallery(board, glance, slug, out, cache, images),
    }


def _columns(without: Mapping[str, bool]) -> list[dict[str, Any]]:
    """The leaderboard's columns for the template."""
    return [
        {"name": name, "kind": kind, "title": title, "sorts": bool(name)}
        for name, kind, title in COLUMNS
        if not without.get(name)
    ]


# ---- figures and images ----------------------------------------------------------------------------------------------


def _drawn(drawing: Drawing, slug: str, out: Path) -> dict[str, Any]:
    """A figure for the template, after writing its files."""
    name = f"{slug}-{safe_name(drawing.name)}"
    text = figures.svg(drawing.figure)
    write_atomically(out / "figures" / f"{name}.svg", text)
    write_atomically(out / "figures" / f"{name}.png", figures.png(drawing.figure))
    return {
        "name": name,
        "title": drawing.title,
        "caption": drawing.caption,
        "width": round(drawing.figure.get_figwidth() * 96),
        "svg": Markup(figures.inlined(text, name)),
        "files": [f"figures/{quote(name)}.{kind}" for kind in ("svg", "png")],
    }


def _gallery(board: Board, glance: Glance, slug: str, out: Path, cache: Path, images: int) -> dict[str, Any]:
    """Images and maps for the template, after writing each at full size."""
    places = {row["method"]: place for place, row in enumerate(glance.rows)}

    def place(cell: Cell) -> int:
        return places.get(Contestant.of(cell.card), len(places))

    found = gallery.collect(sorted(board.cells, key=place), cache, images)
    columns = [{"label": Contestant(column.method, column.variant)} for column in found.columns]
    view: dict[str, Any] = {"rows": [], "sentences": [], "tabled": [], "columns": columns}
    view |= {"missing": found.missing, "files": []}
    if found.sentences:
        return view | {"sentences": [_sentence(found, at) for at in range(len(found.sentences))]}
    if found.rows:
        return view | {"tabled": [_row(found, at) for at in range(len(found.rows))]}
    rows = []
    for at, picture in enumerate(found.pictures):
        maps = [
            {
                "label": column.label,
                **_image(
                    colours.painted(column.maps[at], column.signed),
                    out,
                    f"gallery/{slug}/{number:02d}-{safe_name(column.label)[:60]}-{picture.sample}.png",
                ),
            }
            for number, column in enumerate(found.columns)
        ]
        image = _image(picture.pixels, out, f"gallery/{slug}/image-{picture.sample}.png")
        rows.append({"picture": picture, "image": image, "maps": maps})
    files = []
    if rows:
        drawn = gallery.draw(found)
        name = f"{slug}-gallery"
        write_atomically(out / "figures" / f"{name}.png", figures.png(drawn))
        write_atomically(out / "figures" / f"{name}.svg", figures.svg(drawn))
        files = [f"figures/{quote(name)}.{kind}" for kind in ("svg", "png")]
    return view | {"rows": rows, "files": files}


def _sentence(found: gallery.Gallery, at: int) -> dict[str, Any]:
    """A sentence for the template: of each method its words with their colours and numbers."""
    sentence = found.sentences[at]
    maps = []
    for column in found.columns:
        scores = column.maps[at][:1, : len(sentence.words)]
        ranks = (-scores[0]).argsort(kind="stable").argsort() + 1
        size = np.abs(scores).sum()
        words = [
            {
                "text": word,
                "colour": "#{:02x}{:02x}{:02x}".format(*colour),
                "ink": "#fff" if colour @ LIGHTNESS < 128 else "#111",
                "truth": place in sentence.truth,
                "said": f"{score:.4g}, rank {rank} of {len(ranks)}, {abs(score) / size if size else 0:.0%} of all",
            }
            for place, (word, score, rank, colour) in enumerate(
                zip(sentence.words, scores[0], ranks, colours.painted(scores, column.signed)[0])
            )
        ]
        maps.append({"label": Contestant(column.method, column.variant), "words": words})
    return {"picture": sentence, "maps": maps}


def _row(found: gallery.Gallery, at: int) -> dict[str, Any]:
    """A table row for the template: its features, of each method with a bar, as wide as its share of the largest."""
    row, bars = found.rows[at], []
    for column in found.columns:
        scores = column.maps[at][0]
        largest = float(np.abs(scores).max()) or 1.0
        ranks = (-scores).argsort(kind="stable").argsort() + 1
        bars.append(
            [
                {"share": score / largest, "said": f"{score:.4g}, rank {rank} of {len(ranks)}", "signed": column.signed}
                for score, rank in zip(scores.tolist(), ranks)
            ]
        )
    features = [
        {"name": name, "value": f"{value:.4g}", "truth": place in row.truth, "bars": [bar[place] for bar in bars]}
        for place, (name, value) in enumerate(zip(row.features, row.values))
    ]
    return {"picture": row, "features": features}


def _image(pixels: np.ndarray, out: Path, file: str) -> dict[str, Any]:
    """An image [H,W,3] as a data URI of at most THUMBNAIL pixels a side, after writing all its pixels to a file."""
    image = Image.fromarray(pixels)
    factor = max(1, FULL // max(image.size))
    whole = image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    write_atomically(out / file, _encoded(whole, "PNG", compress_level=3))
    exact = max(image.size) <= EXACT
    if exact:
        small, kind = _encoded(image.quantize(96, Image.Quantize.FASTOCTREE), "PNG", optimize=True), "png"
    else:
        image.thumbnail((THUMBNAIL, THUMBNAIL))
        small, kind = _encoded(image, "WEBP", quality=80), "webp"
    data = f"data:image/{kind};base64,{base64.b64encode(small).decode()}"
    return {"file": quote(file), "data": data, "exact": exact}


def _encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


# ---- where the numbers come from -------------------------------------------------------------------------------------


def _card(cell: Cell, out: Path) -> dict[str, Any]:
    """The card of a cell and the files it belongs to, for the page's script."""
    assert cell.path is not None  # a page is made of score files
    kinds = (("rows", ".csv"), ("card file", ".json"), *((("curves of each sample", ".h5"),) if cell.curves else ()))
    paths = [(what, cell.path.with_suffix(suffix)) for what, suffix in kinds]
    files = [
        {"what": what, "path": path.as_posix(), "link": quote(Path(os.path.relpath(path, out)).as_posix())}
        for what, path in paths
    ]
    return {"files": files, "card": cell.card}


def _json(value: Any) -> Markup:
    """JSON that nothing can leave: no tag is opened or closed in it."""
    return Markup(json.dumps(value, separators=(",", ":")).replace("<", "\\u003c"))


def _runs(cells: Iterable[Cell]) -> list[Mapping[str, Any]]:
    """Score files by what made them."""
    counts = Counter(
        (card["commit"] or "unknown", " ".join(f"{n} {v}" for n, v in card["versions"].items() if n in VERSIONS),
         card["device"], card["threads"])
        for card in (cell.card for cell in cells)
    )  # fmt: skip
    names = ("commit", "versions", "device", "threads")
    return [{**dict(zip(names, made)), "count": count} for made, count in counts.most_common()]


VERSIONS = ("xaibench", "python", "torch", "torchvision", "numpy")


def _csv(boards: Sequence[Board], cells: Sequence[Cell], out: Path) -> list[str]:
    """The page's rows as files beside it."""
    if not cells:
        return []
    frame = pd.concat([board.frame for board in boards])[list(leaderboard.COLUMNS)]
    write_atomically(out / "leaderboard.csv", leaderboard.to_csv(frame))
    write_atomically(out / "cost.csv", leaderboard.to_csv(leaderboard.costs(cells)))
    return ["leaderboard.csv", "cost.csv"]

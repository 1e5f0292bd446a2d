"""Draw the maps of many methods side by side, from the cache: no map is computed.

    xaibench run experiment=methods
    python scripts/gallery.py --images 6 --out gallery.png

All methods that the score files name are shown, cheap ones first, or those of --methods in that order. A map is
collapsed over channels as its method is ranked, and scaled by its own 99.5th percentile of absolute values. Methods
that are never negative have a sequential scale (from black, 0, to bright), the others a diverging one around white, 0:
red speaks for the class, blue against it. The colour-blind can tell them apart. Under each image: the class that the
network predicts, and its probability.
"""

import argparse
import json
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from xaibench import leaderboard
from xaibench.build import build
from xaibench.cache import Artefact
from xaibench.config import SELECTION
from xaibench.datasets.base import Samples
from xaibench.metrics.ranking import collapse
from xaibench.models.preprocessing import Preprocessing

PERCENTILE = 99.5
# In the file, which a palette makes a third as large: noise hardly compresses.
COLOURS = 256
DPI = 100


@dataclass(frozen=True)
class Shown:
    """The maps of one method: maps [H,W] by sample id, their specification, and the card of a score file."""

    title: str
    maps: dict[int, np.ndarray]
    spec: dict[str, Any]
    card: dict[str, Any]

    @property
    def signed(self) -> bool:
        return any(one.min() < 0 for one in self.maps.values())


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
    matplotlib.use("Agg")
    shown = read(options.results, options.cache)
    if options.methods:
        shown = [one for method in options.methods for one in shown if one.title == method]
    if not shown:
        raise SystemExit(f"{options.results}: no such maps in {options.cache}")
    gallery(shown, options.cache, options.images, options.columns, options.side).savefig(options.out, dpi=DPI)
    with Image.open(options.out) as drawn:
        drawn.convert("RGB").quantize(COLOURS).save(options.out, optimize=True)


def read(results: Path, cache: Path) -> list[Shown]:
    """The maps that the score files name and the cache has, each once, cheap methods first."""
    cards = {cell.card["keys"]["map_key"]: cell.card for cell in leaderboard.read_cells(results)}
    shown = []
    for folder in (path.parent for path in cache.glob("maps/*/*/*/*/spec.json") if path.parent.name in cards):
        card, spec = cards[folder.name], json.loads((folder / "spec.json").read_text())["spec"]
        artefact = Artefact(cache, "maps", folder.parts[-4:-1], spec)
        rows = artefact.read(sorted(set(everything(artefact))))
        how = build(card["config"]["method"], "method").collapse
        maps = collapse(torch.from_numpy(rows.arrays["maps"]), how).numpy()
        changed = [part for part in card["method_variant"].split(",") if part and not part.startswith("fit.")]
        shown.append(Shown(" ".join([card["method"], *changed]), dict(zip(rows.samples, maps)), spec, card))
    return sorted(shown, key=lambda one: (sum(one.card["method_cost"]), one.title))


def everything(artefact: Artefact) -> list[int]:
    """The samples of an artefact whose run has ended."""
    return [sample for shard in artefact.manifest().get("shards", ()) for sample in shard["samples"]]


def gallery(shown: list[Shown], cache: Path, images: int, columns: int, side: int) -> Figure:
    """Bands of at most `columns` methods; in each a row per image, which stands first in it."""
    counts: dict[int, int] = {}
    for sample in (sample for one in shown for sample in one.maps):
        counts[sample] = counts.get(sample, 0) + 1
    # Slow methods have maps of few samples: those that most methods have.
    samples = sorted(counts, key=lambda sample: (-counts[sample], sample))[:images]
    pictures, words = explained(shown[0], cache, samples)
    bands = [shown[start : start + columns] for start in range(0, len(shown), columns)]
    across = 1 + max(len(band) for band in bands)
    height, head, foot = side / DPI, 0.42, 0.2
    size = across * height * 1.04, len(bands) * (head + len(samples) * (height + foot))
    figure = plt.figure(figsize=size)

    def place(band: int, row: int, column: int) -> Axes:
        top = size[1] - band * (head + len(samples) * (height + foot)) - head - row * (height + foot)
        box = column * height * 1.04 / size[0], (top - height) / size[1], height / size[0], height / size[1]
        axes = figure.add_axes(box)
        axes.set_axis_off()
        return axes

    for number, band in enumerate(bands):
        for row, (sample, picture, word) in enumerate(zip(samples, pictures, words)):
            axes = place(number, row, 0)
            axes.imshow(picture, cmap="gray", vmin=0, vmax=1)
            axes.text(0.5, -0.03, word, transform=axes.transAxes, ha="center", va="top", fontsize=6.5)
            for column, one in enumerate(band, start=1):
                axes = place(number, row, column)
                if row == 0:
                    title = "\n".join(textwrap.wrap(one.title.replace("_", " "), 15)[:3])
                    axes.set_title(title, fontsize=7, pad=3, linespacing=0.95)
                if sample in one.maps:
                    draw(axes, one.maps[sample], one.signed)
    return figure


def draw(axes: Axes, values: np.ndarray, signed: bool) -> None:
    """A map [H,W] in its colours."""
    # A constant map has no scale; it is drawn at the end of it.
    most = np.percentile(np.abs(values), PERCENTILE) or 1.0
    axes.imshow(values, cmap="RdBu_r" if signed else "magma", vmin=-most if signed else 0, vmax=most)


def explained(one: Shown, cache: Path, samples: list[int]) -> tuple[list[np.ndarray], list[str]]:
    """The images [H,W,C] as the network gets them, in [0, 1], and what it predicts in words."""
    parameters = {name: value for name, value in one.card["config"]["dataset"].items() if name not in SELECTION}
    dataset = build(parameters, "dataset")
    preprocessing = Preprocessing(**one.spec["model"]["preprocessing"])
    inputs = Samples(dataset, preprocessing, samples).load(samples).inputs
    mean, std = (torch.tensor(values or [default]).view(-1, 1, 1) for values, default in (
        (preprocessing.mean, 0.0), (preprocessing.std, 1.0),
    ))  # fmt: skip
    pictures = (inputs * std + mean).clamp(0, 1).permute(0, 2, 3, 1).numpy()
    names = one.card["model"], one.card["dataset"], "logits"
    answers = Artefact(cache, "responses", names, {name: one.spec[name] for name in ("model", "data")}).read(samples)
    probabilities = torch.from_numpy(answers.arrays["logits"]).softmax(1)
    best = [int(row.argmax()) for row in probabilities]
    words = [f"{dataset.class_names[k]} {row[k]:.2f}" for k, row in zip(best, probabilities)]
    return list(pictures), words


if __name__ == "__main__":
    main()
